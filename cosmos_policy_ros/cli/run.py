"""What ``scripts/demo`` runs: episodes on the simulated rig, from objects placed to score given.

It starts the executables of the launch file with the same parameter files, plays the operator
through the same services, and shows what came of it: a table and a contact sheet.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NoReturn, get_args

import rclpy
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions

from cosmos_policy_ros.cli.shared import parse
from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import Task, load_task
from cosmos_policy_ros.dataset.contact_sheet import contact_sheet, future_sheet, save_sheet
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.topics import POLICY_NODE
from cosmos_policy_ros.inference.spec import ENGINES
from cosmos_policy_ros.msg import Decision
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.graph import (
    NodeProcesses,
    environment,
    exposure,
    node_processes,
)
from cosmos_policy_ros.rig.execution import Mode
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

START_TIMEOUT = 120.0  # wall s for the nodes and the engine
TRAINED_TASK, TRAINED_CHECKPOINT = "either_cube", "tiny"
HELD_OUT_SEED = 1000
BAR = 24  # characters of the progress line


@dataclass
class EpisodeReport:
    """What one episode of the demo came to."""

    seed: int
    result: Any
    reached: int
    stages: Sequence[str]
    score: float
    bag: Path
    size: int
    images: dict[str, int]
    phases: dict[str, list[float]] = field(default_factory=dict)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = argparse.ArgumentParser(
        prog="cosmos run",
        description="Run Cosmos Policy's whole ROS graph on the simulated ALOHA.",
    )
    parser.add_argument(
        "--engine",
        choices=("auto", *ENGINES),
        default="auto",
        help="what decides; auto: the checkpoint that ships with the package where it knows the "
        f"task, {TRAINED_TASK}, else the demonstrator",
    )
    parser.add_argument("--checkpoint", default="", help="folder of engine cosmos")
    parser.add_argument(
        "--planning", default="direct", help="engine cosmos: a search in config/planning"
    )
    parser.add_argument(
        "--execution",
        choices=get_args(Mode),
        default="synchronous",
        help="ask for the next chunk when the arms rest, while they move, or as latencies allow",
    )
    parser.add_argument("--devices", default="auto", help="engine cosmos: such as cpu,cpu")
    parser.add_argument(
        "--task", choices=(TRAINED_TASK, "transfer_cube", "insertion"), default=TRAINED_TASK
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=HELD_OUT_SEED,
        help="places the objects of episode one and draws the policy's noise; from 1000 on scenes "
        "that no training has seen",
    )
    parser.add_argument(
        "--episodes", type=int, default=1, help="how many, with seeds seed, seed+1…"
    )
    parser.add_argument("--chunks", type=int, default=0, help="stop after so many; 0: time limit")
    parser.add_argument(
        "--root", type=Path, default=Path("rollouts"), help="folder of the episodes"
    )
    return parse(parser, arguments)


class Demo:
    """Plays the operator for some episodes."""

    def __init__(self, client: GraphClient, task: Task, rig: RigSpec, chunks: int) -> None:
        """Listen to the decisions, whose phases are the latency table."""
        self._client, self._task, self._rig, self._chunks = client, task, rig, chunks
        self._phases: dict[str, list[float]] = defaultdict(list)
        client.node.create_subscription(
            Decision, f"{POLICY_NODE}/decision", self._keep_phases, QoSProfile(depth=50)
        )

    def run_episode(self, seed: int) -> EpisodeReport:
        """Place the objects, record a run, score it by the rig's judge."""
        client, name = self._client, self._task.name
        self._phases.clear()
        # As an operator would who moves the arms by hand: what they were last told is stale then.
        _accepted(client.arm(False))
        _accepted(client.reset_rig(name, seed))
        client.arm_when_ready(START_TIMEOUT)
        started = _accepted(client.start_episode(task=name, seed=seed, operator_name="demo"))
        # With one noise for all, scenes would succeed or fail together.
        handle = client.start_run(task=name, chunk_limit=self._chunks, seed=seed)
        result = self.watch(handle, seed)
        stopped = _accepted(client.stop_episode(reason=result.outcome))
        state = client.rig_state
        assert state is not None
        score = 100.0 * state.reached / len(state.stages)
        note = state.stages[state.reached - 1] if state.reached else "nothing reached"
        _accepted(
            client.score_episode(
                episode_id=started.episode_id,
                score=score,
                task_success=state.reached == len(state.stages),
                operator_name="the simulated rig's judge",
                note=note,
            )
        )
        bag = Path(stopped.path)
        topics = read_episode(bag).topics
        return EpisodeReport(
            seed=seed,
            result=result,
            reached=state.reached,
            stages=tuple(state.stages),
            score=score,
            bag=bag,
            size=sum(f.stat().st_size for f in bag.iterdir()),
            images={c.role: topics[f"/{c.topic}"].count for c in self._rig.cameras},
            phases=dict(self._phases),
        )

    def watch(self, handle: Any, seed: int) -> Any:
        """Show a progress line until the run ends; let it go on when a source was lost and is back.

        No hand is near a simulated arm.
        """
        chunk_seconds = self._rig.rates.chunk_steps * self._rig.rates.dt
        limit = self._chunks * chunk_seconds or self._task.time_limit
        future = handle.get_result_async()
        while not future.done():
            self._client.wait_until(lambda: True, 1.0, "")  # raises when a node has died
            state, rig = self._client.policy_state, self._client.rig_state
            if state is not None and rig is not None:
                share = min(1.0, state.chunks * chunk_seconds / limit)
                bar = "█" * round(share * BAR)
                stage = f"{rig.reached}/{len(rig.stages)} stages"
                _progress(
                    f"seed {seed} ▕{bar:░<{BAR}}▏ chunk {state.chunks:2d} {state.phase:<10} {stage}"
                )
                if state.phase == "paused":
                    print(f"\n{state.message}", file=sys.stderr)
                    self._client.pause(False)
            time.sleep(0.1)
        _progress("")
        return future.result().result

    def _keep_phases(self, message: Decision) -> None:
        for name, seconds in zip(message.phases, message.phase_seconds, strict=True):
            self._phases[name].append(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    options = parse_arguments(arguments)
    _isolate()
    signal.signal(signal.SIGTERM, _interrupt)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        reports = _run(options)
    except KeyboardInterrupt:
        print("\ninterrupted: the nodes have ended, finished episodes are complete")
        return 130
    except CosmosPolicyError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
    return 0 if all(report.result.success for report in reports) else 1


def _run(options: argparse.Namespace) -> list[EpisodeReport]:
    rig = load_rig("sim", config_folder("rigs"))
    task = load_task(options.task, config_folder("tasks"))
    engine, checkpoint = options.engine, options.checkpoint
    if engine == "auto" and options.task == TRAINED_TASK:
        engine, checkpoint = "cosmos", checkpoint or TRAINED_CHECKPOINT
    given = {"checkpoint": checkpoint} if checkpoint else {}
    if options.planning != "direct":
        given["planning"] = options.planning
    nodes = node_processes(
        rig="sim",
        task=options.task,
        engine=engine,
        execution=options.execution,
        devices=options.devices,
        root=str(options.root),
        scene_seed=options.seed,
        **given,
    )
    print(f"starting {', '.join(node.executable for node in nodes)}; engine {engine}")
    with NodeProcesses(nodes, options.root / "log") as processes:
        client = GraphClient("demo", processes.check)
        try:
            demo = Demo(client, task, rig, options.chunks)
            client.policy_ready(START_TIMEOUT)
            assert client.policy_state is not None
            print(client.policy_state.message)
            reports = []
            for seed in range(options.seed, options.seed + options.episodes):
                report = demo.run_episode(seed)
                sheets = _save_sheets(report.bag, rig)
                _print_report(report, sheets)
                reports.append(report)
        finally:
            client.close()
    if len(reports) > 1:
        done = sum(report.reached == len(report.stages) for report in reports)
        print(f"\n{done} of {len(reports)} episodes reached every stage")
    return reports


def _save_sheets(bag: Path, rig: RigSpec) -> list[Path]:
    """Save what was seen and, where something was imagined, that beside what came."""
    sheets = [save_sheet(contact_sheet(bag, rig), bag / "contact_sheet.png")]
    future = future_sheet(bag, rig)
    if future is not None:
        sheets.append(save_sheet(future, bag / "futures.png"))
    return sheets


def _print_report(report: EpisodeReport, sheets: Sequence[Path]) -> None:
    result = report.result
    idle = result.idle_seconds / result.seconds if result.seconds else 0.0
    latency = "  ".join(
        f"{name} {1000 * median(seconds):.0f}" for name, seconds in report.phases.items()
    )
    images = "  ".join(f"{role} {count}" for role, count in report.images.items())
    print(
        f"""
run         {result.outcome}: {result.message}
chunks      {result.chunks} executed, {result.refused} refused
latency ms  {latency}   (median per phase)
idle        {100 * idle:.0f} % of {result.seconds:.1f} s
images      {images}   (recorded)
stages      {report.reached} of {len(report.stages)}: {", ".join(report.stages)}
score       {report.score:g} of 100, seed {report.seed}
bag         {report.bag} ({report.size / 1e6:.1f} MB)
images    {"  ".join(map(str, sheets))}"""
    )


def _accepted(response: Any) -> Any:
    """Return the response, or raise what it says when it refuses."""
    if not response.success:
        raise CosmosPolicyError(response.message)
    return response


def _progress(text: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\x1b[2K{text}", end="", flush=True)


def _isolate() -> None:
    """Keep the demo's arms apart from real ones: its topics carry a stock ALOHA's names."""
    # Stay below 101, where a domain's ports meet the kernel's ephemeral ones.
    os.environ.setdefault("ROS_DOMAIN_ID", str(60 + os.getpid() % 40))
    os.environ |= environment()
    print(exposure())


def _interrupt(_number: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
