"""``cosmos protocol`` and ``cosmos trials``: an evaluation at a rig, blind, state by state."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

import cv2
import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from cosmos_policy_ros.cli.score import Keyboard, interview
from cosmos_policy_ros.cli.shared import GOES_ON, add_config, add_root
from cosmos_policy_ros.core.errors import ConfigError, CosmosPolicyError
from cosmos_policy_ros.core.files import replacing
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.labels import OperatorScore, rubric_of
from cosmos_policy_ros.episodes.topics import POLICY_NODE
from cosmos_policy_ros.evaluation.plan import InitialState, Job
from cosmos_policy_ros.evaluation.protocol import TrialProtocol, load_protocol, reference_picture
from cosmos_policy_ros.evaluation.rig_report import outlook, unseal, write_report
from cosmos_policy_ros.evaluation.rig_trials import (
    FAULTS,
    UNCOUNTED,
    RigTrials,
    node_parameters,
    telling,
)
from cosmos_policy_ros.evaluation.tables import spoken
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.graph import NodeProcess, NodeProcesses, environment, node_processes
from cosmos_policy_ros.rig.images import decode_image
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

READY = 600.0  # wall s for a contender to load, the policy node's own start_timeout
MOTION_BEGINS = 1.0  # wall s within which the policy node says that the arms move
ANSWER = 120.0  # wall s for the nodes to be found, to arm, and for the way to the start pose
ON_THE_WAY = 2  # images that may have been taken before the operator's answer
JUDGE = "the simulated rig's judge"


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """Photograph a protocol's initial states through the rig's own camera, once.

    The pictures are what the page lays over the live camera until a state matches. States that have
    one are passed over; --retake takes them again. A simulated rig lays out each state by itself.
    """
    _add_evaluation(parser)
    parser.add_argument("--rig", default="interbotix_1", help="whose camera (interbotix_1)")
    parser.add_argument("--camera", default="primary", help="its role in the rig file (primary)")
    parser.add_argument("--task", help="only states of this task")
    parser.add_argument("--retake", type=int, nargs="+", default=(), metavar="NUMBER")
    parser.set_defaults(run=_photograph, interrupted=GOES_ON)


def add_trials(parser: argparse.ArgumentParser) -> None:
    """Make a protocol's trials at the rig, and compare the contenders.

    Which contender runs stays sealed until every trial is made: lay out, run, score by the rubric,
    next. What a fault has ended does not count and is made again. Ctrl-C ends the day; the same
    command goes on from the episodes alone. The graph is running already, or with --rehearse is
    started here on the simulated rig, which lays out and scores by itself.
    """
    _add_evaluation(parser)
    add_root(parser)
    parser.add_argument("--operator", default="", help="who lays out and scores")
    parser.add_argument(
        "--status", action="store_true", help="say how far it is and what it can find, and end"
    )
    parser.add_argument(
        "--unseal", action="store_true", help="open the contenders now, write the tables, and end"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="on a simulated rig of its own, by itself"
    )
    parser.set_defaults(run=_trials, interrupted=GOES_ON)


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "evaluations")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the states' pictures and the tables"
    )


def _protocol(options: argparse.Namespace) -> TrialProtocol:
    return load_protocol(options.config, options.set)


# ---------------------------------------------------------------- trials


def _trials(options: argparse.Namespace) -> int:
    protocol, output = _protocol(options), options.output.expanduser()
    trials = RigTrials(protocol, options.root.expanduser())
    progress = trials.progress()
    print("\n".join(outlook(protocol, progress)), flush=True)
    if options.status:
        return 0
    if options.unseal and not any(not result.crashed for result in progress.results):
        raise ConfigError(f"{options.root}: holds no trial of '{protocol.name}' that counts yet")
    if not (options.unseal or progress.complete):
        with _graph(options) as client:
            if options.rehearse:
                _Session(client, trials, _Simulator(client)).run()
            else:
                with Keyboard() as keyboard:
                    _Session(client, trials, _Person(keyboard, output, options.operator)).run()
        progress = trials.progress()
    if protocol.blind:
        unseal(output, progress)
    print("\n".join(["", *write_report(protocol, progress, output)]))
    return 0


@contextmanager
def _graph(options: argparse.Namespace) -> Iterator[GraphClient]:
    """Join the graph, started here for a rehearsal; every wait ends when a node of ours does."""
    nodes: tuple[NodeProcess, ...] = ()
    if options.rehearse:
        os.environ.setdefault("ROS_DOMAIN_ID", str(60 + os.getpid() % 40))
        nodes = node_processes(rig="sim", engine="demonstrator", root=str(options.root))
    os.environ |= environment()
    signal.signal(signal.SIGTERM, _interrupt)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        with NodeProcesses(nodes, options.root.expanduser() / "log") as processes:
            client = GraphClient("trials", processes.check)
            try:
                yield client
            finally:
                client.close()
    finally:
        rclpy.try_shutdown()


def _interrupt(_number: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


class _Hands(Protocol):
    """Who lays a state out and who scores: a person, or the simulated rig."""

    name: str  # who scores

    def announce(self, job: Job, prompt: str, number: str) -> None:
        """Say what is to be laid out."""

    def lay_out(self, state: InitialState) -> None:
        """Return when the state is laid out and the arms may move."""

    def score(self, episode: Path, *, just_now: bool) -> OperatorScore | None:
        """Score an episode that has ended; None where the trial is to be made again."""


class _Simulator:
    name = JUDGE

    def __init__(self, client: GraphClient) -> None:
        self._client = client

    def announce(self, job: Job, prompt: str, number: str) -> None:
        print(f"trial {number}: {job.state.title}", flush=True)

    def lay_out(self, state: InitialState) -> None:
        _accepted(self._client.reset_rig(state.task, state.number, state.prompt))

    def score(self, episode: Path, *, just_now: bool) -> OperatorScore | None:
        rig = self._client.rig_state
        if not just_now or rig is None:  # the scene that it ended in is gone
            return None
        points = 100.0 * rig.reached / len(rig.stages)
        return OperatorScore(points, success=points == 100.0, operator_name=self.name)


class _Person:
    def __init__(self, keyboard: Keyboard, output: Path, name: str) -> None:
        self._keyboard, self._output, self.name = keyboard, output, name

    def announce(self, job: Job, prompt: str, number: str) -> None:
        state, picture = job.state, reference_picture(self._output, job.state)
        print(f"\ntrial {number}: {state.task}, {spoken(state.condition)}, state {state.number}")
        for title, text in (
            ("prompt", prompt),
            ("lay out", state.setup),
            ("this one", state.place),
            ("picture", str(picture) if picture.is_file() else ""),
        ):
            if text:
                print(f"  {title:<9} {text}")
        print("  a contender is being loaded …", flush=True)

    def lay_out(self, state: InitialState) -> None:
        question = "  laid out, and hands off the arms: they move now [y; Ctrl-C ends the day] "
        while self._keyboard.ask(question) != "yes":
            pass

    def score(self, episode: Path, *, just_now: bool) -> OperatorScore | None:
        found = read_episode(episode)
        if not just_now:
            print(f"\nepisode {found.id} ({found.metadata.task}) waits for its score", flush=True)
        if rubric_of(found.metadata) is None:
            raise CosmosPolicyError(f"episode {found.id}: its task has no rubric to score by")
        while True:
            given = interview(found, self._keyboard, self.name, "")
            if given is not None:
                return given
            if self._keyboard.ask("  make this trial again instead? [y/n] ") == "yes":
                return None


class _Session:
    """Trial after trial until all are made, or the operator interrupts."""

    def __init__(self, client: GraphClient, trials: RigTrials, hands: _Hands) -> None:
        self._client, self._trials, self._hands = client, trials, hands
        self._faults = 0  # in a row

    def run(self) -> None:
        """Score what waits, then make the next trial, until none is left."""
        while True:
            progress = self._trials.progress()
            for episode in progress.waiting:
                self._score(episode.path, just_now=False)
            if progress.waiting:
                continue
            if progress.complete:
                return
            self._make(progress.left[0], f"{progress.number} of {progress.total}")

    def _make(self, job: Job, number: str) -> None:
        client, trials, hands = self._client, self._trials, self._hands
        hands.announce(job, trials.prompt(job), number)
        _accepted(client.arm(False))
        # Also where it is the one that ran last: the time it takes would tell.
        contender = trials.protocol.contender(job.contender)
        client.policy_state = None
        client.reconfigure(POLICY_NODE, node_parameters(contender), READY)
        client.policy_ready(READY)
        state: Any = client.policy_state
        if state.phase == "failed":
            raise CosmosPolicyError(f"no contender could be loaded: {self._told(state.message)}")
        hands.lay_out(job.state)
        try:
            client.arm_when_ready(READY)
            self._go_to_start()
            started = _accepted(client.start_episode(**trials.episode_fields(job, hands.name)))
            result = self._run(job)
            stopped = _accepted(client.stop_episode(reason=result.outcome))
        except BaseException:  # arms and recorder are left as they were found
            client.stop()
            client.stop_episode(reason="interrupted")
            raise
        client.arm(False)
        if result.outcome in UNCOUNTED and not result.refused:
            self._faults += 1
            why = self._told(result.message)
            if self._faults >= FAULTS:
                raise CosmosPolicyError(
                    f"{self._faults} trials in a row have ended in a fault, the last: {why}; mend "
                    "it, then the same command goes on"
                )
            print(f"  a fault, which does not count ({why}): once more", flush=True)
            return
        self._faults = 0
        assert stopped.episode_id == started.episode_id
        self._score(Path(stopped.path), just_now=True)

    def _told(self, message: str) -> str:
        protocol = self._trials.protocol
        return telling(protocol).sub("(sealed)", message) if protocol.blind else message

    def _go_to_start(self) -> None:
        client, moved = self._client, False
        _accepted(client.call(Trigger, f"{POLICY_NODE}/go_to_start"))
        # The newest state may still be that of before the motion; a short one may never be seen.
        begins = time.monotonic() + MOTION_BEGINS

        def over() -> bool:
            nonlocal moved
            phase = client.policy_state.phase if client.policy_state is not None else ""
            moved = moved or phase == "moving"
            return phase == "ready" and (moved or time.monotonic() > begins)

        client.wait_until(over, ANSWER, "the arms to reach the start pose")

    def _run(self, job: Job) -> Any:
        """Run the task; Ctrl-C stops the arms and ends the trial, not the evaluation."""
        client = self._client
        handle = client.start_run(**self._trials.goal_fields(job))
        result = handle.get_result_async()
        while not result.done():
            try:
                client.wait_until(lambda: True, 1.0, "")  # raises when a node of ours has ended
                time.sleep(0.05)
            except KeyboardInterrupt:
                client.stop()
        return result.result().result

    def _score(self, episode: Path, *, just_now: bool) -> None:
        score = self._hands.score(episode, just_now=just_now)
        if score is None:
            reason = "the trial is to be made again"
            _accepted(self._client.discard_episode(episode_id=episode.name, reason=reason))
            return
        answer = _accepted(
            self._client.score_episode(
                episode_id=episode.name,
                score=-1.0 if score.score is None else score.score,
                stages=score.stages,
                deductions=score.deductions,
                task_success=score.success,
                operator_name=score.operator_name,
                note=score.note,
            )
        )
        print(f"  {answer.message}", flush=True)


def _accepted(response: Any) -> Any:
    """Return the response, or raise what it says when it refuses."""
    if not response.success:
        raise CosmosPolicyError(response.message)
    return response


# ---------------------------------------------------------------- pictures of the states


def _photograph(options: argparse.Namespace) -> int:
    protocol, output = _protocol(options), options.output.expanduser()
    rig = load_rig(options.rig, config_folder("rigs"))
    states = [s for s in protocol.states() if options.task in (None, s.task)]
    if not states:
        raise ConfigError(f"task '{options.task}' is none of {', '.join(protocol.tasks)}")
    wanted = [
        state
        for state in states
        if state.number in options.retake or not reference_picture(output, state).is_file()
    ]
    if not wanted:
        print(f"{output}: every state has its picture; --retake NUMBER takes one again")
        return 0
    os.environ |= environment()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    client = GraphClient("protocol")
    try:
        camera = _Camera(client, rig, options.camera)
        with Keyboard() as keyboard:
            for number, state in enumerate(wanted, 1):
                print(f"\n{state.title} ({number} of {len(wanted)})")
                for text in filter(None, (state.setup, state.place)):
                    print(f"  {text}")
                if rig.kind == "sim":
                    _accepted(client.reset_rig(state.task, state.number, state.prompt))
                elif keyboard.ask("  laid out? y takes the picture, n leaves it [y/n] ") != "yes":
                    continue
                _save(camera.look(), reference_picture(output, state))
    finally:
        client.close()
        rclpy.try_shutdown()
    return 0


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write an (H, W, 3) RGB image as PNG, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
            file.write_bytes(encoded.tobytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error}") from error
    print(f"  {path}", flush=True)


class _Camera:
    """The newest image of one of the rig's cameras."""

    def __init__(self, client: GraphClient, rig: RigSpec, role: str) -> None:
        cameras = {camera.role: camera for camera in rig.cameras}
        if role not in cameras:
            raise ConfigError(f"rig '{rig.name}' has no camera '{role}', only {', '.join(cameras)}")
        self._client, self._camera = client, cameras[role]
        self._newest: Any = None
        kind = Image if self._camera.transport == "raw" else CompressedImage
        client.node.create_subscription(kind, self._camera.topic, self._keep, QoSProfile(depth=1))

    def look(self) -> NDArray[np.uint8]:
        """Return an (H, W, 3) RGB image that was taken from now on. Raises CosmosPolicyError."""
        topic = self._camera.topic
        for _ in range(ON_THE_WAY + 1):
            self._newest = None
            message = self._client.wait_until(lambda: self._newest, ANSWER, f"an image on {topic}")
        return decode_image(message, topic, grey=self._camera.grey, size=self._camera.size)

    def _keep(self, message: Any) -> None:
        self._newest = message
