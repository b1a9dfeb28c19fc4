"""``cosmos run``: episodes on the simulated rig, from objects placed to score given.

It starts the executables of the launch file with the same parameter files, plays the operator
through the same services, and shows what came of it: a table and a contact sheet.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import rclpy
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions

from cosmos_policy_ros.cli.shared import add_root, positive
from cosmos_policy_ros.core.errors import ConfigError, CosmosPolicyError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import Task, choose_prompt, load_task
from cosmos_policy_ros.dataset.contact_sheet import contact_sheet, future_sheet, save_sheet
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.topics import POLICY_NODE, find_rig
from cosmos_policy_ros.inference.remote_config import load_remote
from cosmos_policy_ros.inference.spec import ENGINES
from cosmos_policy_ros.msg import Decision
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.graph import (
    NodeProcess,
    NodeProcesses,
    environment,
    exposure,
    node_processes,
)
from cosmos_policy_ros.nodes.options import ARGUMENTS
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

START_TIMEOUT = 120.0  # wall s for the nodes and the engine
TRAINED_TASK, TRAINED_CHECKPOINT, TRAINED_WORLD_MODEL = "either_cube", "tiny", "tiny_planner"
# Of the launch file's arguments, those that mean the same here.
GRAPH_OPTIONS = (
    "remote",
    "remote_config",
    "checkpoint",
    "devices",
    "planning",
    "world_model",
    "deadline",
    "compiled",
    "fp8_weights",
    "numerics",
    "denoising_steps",
    "execution",
    "transition",
    "images",
    "compression",
)
TRIAL_OPTIONS = ("protocol", "protocol_output")
PANEL, PAGE = "operator_panel", re.compile(r"operator's page: \S+")  # what it prints
BAR = 24  # characters of the progress line


def add_run(parser: argparse.ArgumentParser) -> None:
    """Run Cosmos Policy's whole ROS graph on the simulated ALOHA."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="what decides (the checkpoint that ships with the package where it knows the task, "
        f"{TRAINED_TASK}, else the demonstrator)",
    )
    for name in GRAPH_OPTIONS:
        option = ARGUMENTS[name]
        kinds: dict[str, Any] = {"action": "store_true", "default": None}
        if option.kind is not bool:
            kinds = {"metavar": option.kind.__name__.upper()}
        text = f"{option.description} ({option.text})"
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, **kinds)
    parser.add_argument(
        "--task", choices=(TRAINED_TASK, "transfer_cube", "insertion"), default=TRAINED_TASK
    )
    parser.add_argument(
        "--prompt",
        default="",
        help="one of the task's: either_cube also takes 'hand over the red cube' and '… blue cube' "
        "(the task's first)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1000,
        help="places the objects of episode one and draws the policy's noise; from 1000 on scenes "
        "that no training has seen",
    )
    parser.add_argument(
        "--episodes", type=int, default=1, help="how many, with seeds seed, seed+1…"
    )
    parser.add_argument(
        "--chunks", type=positive, help="stop after so many (the task's time limit)"
    )
    parser.add_argument(
        "--panel",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="serve the operator's page on this machine, and print its address (yes)",
    )
    parser.add_argument(
        "--by-hand",
        action="store_true",
        help="run nothing: trials are begun, ended and scored on the operator's page",
    )
    for name in TRIAL_OPTIONS:
        option = ARGUMENTS[name]
        text = f"with --by-hand: {option.description} ({option.text})"
        parser.add_argument(f"--{name.replace('_', '-')}", help=text)
    add_root(parser)
    parser.set_defaults(
        run=_run, interrupted="interrupted: the nodes have ended, finished episodes are complete"
    )


def _run(options: argparse.Namespace) -> int:
    choose_checkpoints(options)
    names = ("engine", *GRAPH_OPTIONS, *TRIAL_OPTIONS)
    given = {name: getattr(options, name) for name in names}
    if options.protocol is not None and not options.by_hand:
        raise ConfigError(
            "--protocol is for the operator's page: add --by-hand, or rehearse without a person by "
            f"`cosmos trials {options.protocol} --rehearse`"
        )
    nodes = node_processes(
        rig="sim",
        task=options.task,
        root=str(options.root),
        scene_seed=options.seed,
        panel=options.panel or options.by_hand,
        panel_port=0,  # so that two of these may run
        **{
            name: value if value is True else ARGUMENTS[name].parse(value)
            for name, value in given.items()
            if value is not None
        },
    )
    # Keep the demo's arms apart from real ones: its topics carry a stock ALOHA's names. Domains
    # stay below 101, where their ports meet the kernel's ephemeral ones.
    os.environ.setdefault("ROS_DOMAIN_ID", str(60 + os.getpid() % 40))
    os.environ |= environment()
    print(exposure())
    signal.signal(signal.SIGTERM, _interrupt)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        return _run_episodes(options, nodes)
    finally:
        rclpy.try_shutdown()


def choose_checkpoints(options: argparse.Namespace) -> None:
    """Fill in what ships with the package, where it knows the task and nothing else is asked."""
    if options.engine is None and options.remote is None and options.task == TRAINED_TASK:
        options.engine = "cosmos"
        options.checkpoint = options.checkpoint or TRAINED_CHECKPOINT
    if options.planning is not None and options.checkpoint == TRAINED_CHECKPOINT:
        options.world_model = options.world_model or TRAINED_WORLD_MODEL


def _interrupt(_number: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _run_episodes(options: argparse.Namespace, nodes: tuple[NodeProcess, ...]) -> int:
    rig = load_rig("sim", config_folder("rigs"))
    if options.remote is not None:
        rig = load_remote(options.remote, options.remote_config).executing(rig)
    task = load_task(options.task, config_folder("tasks"))
    prompt = choose_prompt(task, options.prompt)
    engine = options.engine or (options.remote and "remote") or "of the rig's choice"
    print(f"starting {', '.join(node.executable for node in nodes)}; engine {engine}")
    complete = succeeded = 0
    with NodeProcesses(nodes, options.root / "log") as processes:
        client = GraphClient("demo", processes.check)
        try:
            demo = Demo(client, task, prompt, rig, options.chunks)
            client.policy_ready(START_TIMEOUT)
            assert client.policy_state is not None
            print(client.policy_state.message)
            if PANEL in [node.executable for node in nodes]:
                page = client.wait_until(
                    lambda: PAGE.search(processes.log(PANEL)), START_TIMEOUT, "the operator's page"
                )
                print(page[0])
            while options.by_hand:
                processes.check()
                time.sleep(0.5)
            for seed in range(options.seed, options.seed + options.episodes):
                result, state = demo.run_episode(seed)
                complete += state.reached == len(state.stages)
                succeeded += result.success
        finally:
            client.close()
    if options.episodes > 1:
        print(f"\n{complete} of {options.episodes} episodes reached every stage")
    return int(succeeded < options.episodes)


class Demo:
    """Plays the operator for some episodes."""

    def __init__(
        self, client: GraphClient, task: Task, prompt: str, rig: RigSpec, chunks: int | None
    ) -> None:
        """Listen to the decisions: their phases are the latency table, their searches another."""
        self._client, self._task, self._prompt = client, task, prompt
        self._rig, self._chunks = rig, chunks
        self._decided: list[tuple[Decision, int]] = []  # and the stages reached by then

        def keep(message: Decision) -> None:
            state = client.rig_state
            self._decided.append((message, 0 if state is None else state.reached))

        client.node.create_subscription(
            Decision, f"{POLICY_NODE}/decision", keep, QoSProfile(depth=50)
        )

    def run_episode(self, seed: int) -> tuple[Any, Any]:
        """Place the objects, record a run, score it by the rig's judge, and print a report.

        Returns:
            The run's result, and the rig's state at its end.
        """
        client, task, prompt = self._client, self._task.name, self._prompt
        self._decided.clear()
        # As an operator would who moves the arms by hand: what they were last told is stale then.
        _accepted(client.arm(False))
        _accepted(client.reset_rig(task, seed, prompt))
        client.arm_when_ready(START_TIMEOUT)
        started = _accepted(
            client.start_episode(task=task, prompt=prompt, seed=seed, operator_name="demo")
        )
        # With one noise for all, scenes would succeed or fail together.
        handle = client.start_run(
            task=task, prompt=prompt, chunk_limit=self._chunks or 0, seed=seed
        )
        result = self.watch(handle, seed)
        stopped = _accepted(client.stop_episode(reason=result.outcome))
        state = client.rig_state
        assert state is not None
        score = 100.0 * state.reached / len(state.stages)
        _accepted(
            client.score_episode(
                episode_id=started.episode_id,
                score=score,
                task_success=state.reached == len(state.stages),
                operator_name="the simulated rig's judge",
                note=state.stages[state.reached - 1] if state.reached else "nothing reached",
            )
        )
        bag = Path(stopped.path)
        size = sum(file.stat().st_size for file in bag.iterdir())
        sheets = [save_sheet(contact_sheet(bag), bag / "contact_sheet.png")]
        future = future_sheet(bag)
        if future is not None:
            sheets.append(save_sheet(future, bag / "futures.png"))
        episode = read_episode(bag)
        cameras = find_rig(episode).cameras
        phases = defaultdict(list)
        for message, _ in self._decided:
            for name, seconds in zip(message.phases, message.phase_seconds, strict=True):
                phases[name].append(seconds)
        latency = "  ".join(
            f"{name} {1000 * median(seconds):.0f}" for name, seconds in phases.items()
        )
        images = "  ".join(f"{cameras[t]} {episode.topics[t].count}" for t in cameras)
        idle = result.idle_seconds / result.seconds if result.seconds else 0.0
        print(
            f"""
run         {result.outcome}: {result.message}
chunks      {result.chunks} executed, {result.refused} refused
latency ms  {latency}   (median per phase)
idle        {100 * idle:.0f} % of {result.seconds:.1f} s
images      {images}   (recorded)
stages      {state.reached} of {len(state.stages)}: {", ".join(state.stages)}
score       {score:g} of 100, seed {seed}
bag         {bag} ({size / 1e6:.1f} MB)
sheets      {"  ".join(map(str, sheets))}"""
        )
        for line in searches(self._decided, state.reached):
            print(line)
        return result, state

    def watch(self, handle: Any, seed: int) -> Any:
        """Show a progress line until the run ends; let it go on when a source was lost and is back.

        No hand is near a simulated arm.
        """
        chunk_seconds = self._rig.rates.chunk_steps * self._rig.rates.dt
        limit = self._chunks * chunk_seconds if self._chunks else self._task.time_limit
        future = handle.get_result_async()
        try:
            while not future.done():
                self._client.wait_until(lambda: True, 1.0, "")  # raises when a node has died
                state, rig = self._client.policy_state, self._client.rig_state
                if state is not None and rig is not None:
                    share = min(1.0, state.chunks * chunk_seconds / limit)
                    bar = "█" * round(share * BAR)
                    _progress(
                        f"seed {seed} ▕{bar:░<{BAR}}▏ chunk {state.chunks:2d} {state.phase:<10} "
                        f"{rig.reached}/{len(rig.stages)} stages"
                    )
                    if state.phase == "paused":
                        print(f"\n{state.message}", file=sys.stderr)
                        self._client.pause(False)
                time.sleep(0.1)
        finally:
            _progress("")
        return future.result().result


def searches(decided: Sequence[tuple[Any, int]], reached: int) -> Iterator[str]:
    """Yield what a run's searches chose from, in order, and how far it had got by then.

    Args:
        decided: ``Decision`` messages, with the stages reached when each was made.
        reached: stages at the end.
    """
    told = [(message, stages) for message, stages in decided if message.search]
    if not told:
        return
    yield "search      values of the candidates: [chosen], (left out before it had all of them)"
    after = [stages for _, stages in told[1:]] + [reached]
    for number, ((message, before), then) in enumerate(zip(told, after, strict=True), 1):
        values = "  ".join(
            f"[{_value(each)}]" if index == message.chosen else _value(each)
            for index, each in enumerate(message.candidates)
        )
        gained = f"; stage {then} reached" if then > before else ""
        yield f"  chunk {number:2d}  {values}   {message.evaluations} evaluations{gained}"


def _value(candidate: Any) -> str:
    if not candidate.finished:
        return "late"
    if candidate.dropped == "gate":
        return "refused"
    value = "none" if math.isnan(candidate.value) else f"{candidate.value:.2f}"
    return f"({value})" if candidate.dropped else value


def _accepted(response: Any) -> Any:
    """Return the response, or raise what it says when it refuses."""
    if not response.success:
        raise CosmosPolicyError(response.message)
    return response


def _progress(text: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\x1b[2K{text}", end="", flush=True)
