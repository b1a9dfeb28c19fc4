"""One trial on the simulated rig in one process: what the nodes do together, without a wall clock.

Rig, observation gates, run, safety gate and chunks are the nodes' own; only the messages between
them are left out. The rig waits while the policy thinks, as in stepped mode; or the answer comes as
late on the rig's clock as one says, whatever the policy really took.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from rosbags.typesys.store import Typestore

from cosmos_policy_ros import __version__
from cosmos_policy_ros.bags.messages import EpisodeMetadata, RigMessages
from cosmos_policy_ros.core.errors import CosmosPolicyError, RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import Task
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.quality import QualityMonitor, load_limits, sensors_of
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.topics import absolute, rig_topics
from cosmos_policy_ros.model.images import reduce
from cosmos_policy_ros.rig.chunk import ChunkTransition, TimedChunk
from cosmos_policy_ros.rig.decision import Decision, Policy, Query
from cosmos_policy_ros.rig.execution import (
    SYNCHRONOUS,
    Execution,
    InferenceScheduler,
    LatencyTracker,
)
from cosmos_policy_ros.rig.observation import SensorBuffer
from cosmos_policy_ros.rig.run import Goal, Outcome, Run, RunLimits
from cosmos_policy_ros.rig.safety_gate import SafetyGate
from cosmos_policy_ros.rig.spec import Output, Rates, RigSpec
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryPoint
from cosmos_policy_ros.sim.render import Image, Renderer
from cosmos_policy_ros.sim.rig import JointSample, SimRig
from cosmos_policy_ros.sim.tasks import USUAL

CAMERA_SIZE = (240, 320)  # px, the simulated rig node's default
SETTLE = 0.2  # s in which the objects fall onto the table
LIMITS = RunLimits(observation_timeout=10.0, brake_seconds=0.4)  # the policy node's defaults


class RolloutObserver(Protocol):
    """Who is told what happens in a trial, in order of the rig's time."""

    def joints(self, side: str, sample: JointSample) -> None:
        """Take a joint state."""

    def images(self, stamp_ns: int, images: dict[str, Image]) -> None:
        """Take what the cameras see, at the model's size."""

    def sent(self, chunk: TimedChunk) -> None:
        """Take a chunk that the arms were told."""


@dataclass(frozen=True)
class Trial:
    """How a trial ended.

    Attributes:
        seed: placed the objects.
        outcome: of the run; "done" when the last stage was reached before its limits.
        reached, stages: how far it got, of how many.
        chunks, refused, late: executed, refused by the gate, and dropped as too late.
        seconds: of the rig's time.
        idle: seconds of them that the arms stood still between their first motion and their last.
        transitions: one per chunk that was judged.
    """

    seed: int
    outcome: Outcome
    reached: int
    stages: int
    chunks: int
    refused: int
    late: int
    seconds: float
    idle: float
    transitions: tuple[ChunkTransition, ...]

    @property
    def success(self) -> bool:
        """Whether every stage was reached."""
        return self.reached == self.stages

    @property
    def score(self) -> float:
        """0 to 100, as the simulated tasks' rubrics say."""
        return 100.0 * self.reached / self.stages

    @property
    def crashed(self) -> bool:
        """Whether something other than the policy's skill ended it: it must not be counted.

        A policy whose chunks the gate refuses has failed.
        """
        return self.outcome.outcome == "fault" and not self.refused


@dataclass(frozen=True)
class Timing:
    """How a trial's chunks follow each other, and how long the policy seems to think.

    Attributes:
        execution: synchronous, or in motion.
        latency: seconds on the rig's clock until an answer comes, asked anew for each; None for
            none at all, the rig waiting.
        make_scheduler: of the run.
    """

    execution: Execution = SYNCHRONOUS
    latency: Callable[[], float] | None = None
    make_scheduler: Callable[[Execution, Rates, LatencyTracker], InferenceScheduler] = (
        InferenceScheduler
    )


class _Thinking(NamedTuple):
    """An answer, what it is about, and when it comes on the rig's clock."""

    decision: Decision
    stamp_ns: int
    due_ns: int


class _RawImage(NamedTuple):
    """What is read of a sensor_msgs/Image."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: NDArray[np.uint8]


def trajectories(
    spec: RigSpec, chunk: TimedChunk
) -> Iterator[tuple[Output, list[TrajectoryPoint]]]:
    """Yield (output, points) of a chunk as the policy node sends it to each controller."""
    positions = spec.command(chunk.positions)
    velocities = spec.command_speed(chunk.velocities)
    for output in spec.outputs:
        rows = zip(
            positions[:, output.columns].tolist(),
            velocities[:, output.columns].tolist(),
            chunk.times_ns(),
            strict=True,
        )
        points = [TrajectoryPoint(tuple(q), tuple(v), due_ns) for q, v, due_ns in rows]
        yield output, points


class SimEnv:
    """A simulated rig, its cameras and the gate, for one trial after another."""

    def __init__(self, rig: RigSpec, task: str, size: int) -> None:
        """Load the scene.

        Args:
            rig: description of the simulated rig.
            task: of the scene.
            size: the model's images' [px]. Witnesses are shown what the model makes of what the
                cameras see, so that bags are small and a training from them misses nothing.

        Raises:
            RigError: unknown task, or EGL is missing.
        """
        self._size = size
        self._spec, self._gate, self._sides = rig, SafetyGate(rig), rig.arms.keys()
        # While a chunk is executed nothing is drawn, and no camera is lost.
        self._seldom_seen = replace(rig, observation=replace(rig.observation, image_timeout=0.0))
        self._renderer = Renderer(task, *CAMERA_SIZE)
        self._rig = SimRig(task, spec=rig)
        self._tick_ns = round(1e9 / rig.rates.joint_states)
        self._image_ns = round(1e9 / rig.rates.cameras)

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()

    @property
    def time_ns(self) -> int:
        """The rig's clock."""
        return self._rig.time_ns

    def run(
        self,
        goal: Goal,
        scene_seed: int,
        policy: Policy,
        witnesses: Sequence[RolloutObserver] = (),
        *,
        condition: str = USUAL,
        timing: Timing | None = None,
    ) -> Trial:
        """Place the objects and let a policy try.

        Images are drawn when a query needs them, and at the cameras' rate if anybody watches.

        Args:
            goal: what is asked of the policy.
            scene_seed: places the objects.
            policy: decides.
            witnesses: are told.
            condition: of the scene, see :mod:`~cosmos_policy_ros.sim.tasks`.
            timing: by default at rest, in no time.
        """
        timing, latency = timing or Timing(), LatencyTracker()
        scheduler = timing.make_scheduler(timing.execution, self._spec.rates, latency)
        rig, began_ns = self._rig, self._rig.time_ns
        rig.reset(goal.task, scene_seed, condition)
        rig.advance(SETTLE)
        sources = SensorBuffer(self._seldom_seen)
        run = Run(goal, self._spec, sources, self._gate, LIMITS, None, scheduler=scheduler)
        self._seen_ns = -1
        self._transitions: list[ChunkTransition] = []
        self._thinking: _Thinking | None = None
        self._think, self._latencies, self._first_wait_ns = timing.latency, latency, 0
        self._hurried = scheduler.asks_in_motion  # it may never come to rest
        try:
            self._play(run, sources, policy, witnesses)
        except RigError as error:  # the physics became unstable
            run.stop(rig.time_ns, "fault", str(error))
        assert run.outcome is not None
        return Trial(
            seed=scene_seed,
            outcome=run.outcome,
            reached=rig.reached,
            stages=len(rig.stages),
            chunks=run.chunks,
            refused=run.refused,
            late=run.late,
            seconds=(rig.time_ns - began_ns) / 1e9,
            idle=(run.idle_ns - self._first_wait_ns) / 1e9,
            transitions=tuple(self._transitions),
        )

    def _play(
        self, run: Run, sources: SensorBuffer, policy: Policy, witnesses: Sequence[RolloutObserver]
    ) -> None:
        rig, began_ns = self._rig, self._rig.time_ns
        self._feel(sources, witnesses)
        while True:
            moving = run.chunk is not None and rig.time_ns < run.chunk.end_ns
            watched = witnesses and (rig.time_ns - began_ns) % self._image_ns == 0
            if watched or run.needs_observation(rig.time_ns):
                self._look(sources, witnesses)
            if (not moving or self._hurried) and rig.reached == len(rig.stages):
                run.stop(rig.time_ns, "done", "reached the last stage")
            phase = run.phase
            effect = run.poll(rig.time_ns, rig.time_ns / 1e9)
            if isinstance(effect, TimedChunk):
                self._send(effect, witnesses)
            elif effect is not None:
                self._ask(run, effect, policy)
            elif run.outcome is not None:
                return
            elif run.phase is phase and not self._answer(run, witnesses):
                rig.advance(self._tick_ns / 1e9)
                self._feel(sources, witnesses)

    def _ask(self, run: Run, query: Query, policy: Policy) -> None:
        try:
            decision = policy.decide(query)
        except CosmosPolicyError as error:
            run.query_failed(error, recoverable=False)
            return
        latency_ns = 0 if self._think is None else round(self._think() * 1e9)
        stamp_ns = query.observation.stamp_ns
        self._thinking = _Thinking(decision, stamp_ns, self._rig.time_ns + latency_ns)

    def _answer(self, run: Run, witnesses: Sequence[RolloutObserver]) -> bool:
        """Act on the answer, if it is due; return whether it was."""
        thinking, now_ns = self._thinking, self._rig.time_ns
        if thinking is None or now_ns < thinking.due_ns:
            return False
        self._thinking = None
        _, chunk = run.answer(thinking.decision, now_ns)
        self._latencies.add((now_ns - thinking.stamp_ns) / 1e9, {})
        if run.transition is not None:
            self._transitions.append(run.transition)
        if chunk is not None:
            if run.chunks == 1:
                self._first_wait_ns = run.idle_ns
            self._send(chunk, witnesses)
        return True

    def _send(self, chunk: TimedChunk, witnesses: Sequence[RolloutObserver]) -> None:
        for output, points in trajectories(self._spec, chunk):
            with suppress(RigError):  # the arm stays where it is, as on a real rig
                self._rig.command(output.name, output.joints, points, 0)
        for observer in witnesses:
            observer.sent(chunk)

    def _feel(self, sources: SensorBuffer, witnesses: Sequence[RolloutObserver]) -> None:
        for side in self._sides:
            sample = self._rig.joint_states(side)
            sources.add_joint_state(side, sample.names, sample.positions, sample.stamp_ns)
            for observer in witnesses:
                observer.joints(side, sample)

    def _look(self, sources: SensorBuffer, witnesses: Sequence[RolloutObserver]) -> None:
        now_ns = self._rig.time_ns
        if now_ns == self._seen_ns:
            return
        self._seen_ns = now_ns
        images = self._renderer.render(self._rig.snapshot())
        for role, pixels in images.items():
            height, width, _ = pixels.shape
            image = _RawImage(height, width, "rgb8", 0, 3 * width, pixels.ravel())
            sources.add_image(role, image, now_ns)
        if witnesses:
            images = {role: reduce(seen, self._size, role) for role, seen in images.items()}
        for observer in witnesses:
            observer.images(now_ns, images)


# A trial as a bag like any other: what the recorder node would have written of it.


JUDGE = "the simulated rig's judge"


class TrialBag:
    """Records one trial; a :class:`~cosmos_policy_ros.evaluation.trial.RolloutObserver`."""

    def __init__(
        self,
        store: EpisodeStore,
        types: Typestore,
        rig: RigSpec,
        task: Task,
        *,
        seed: int,
        engine: str,
        checkpoint: str = "",
        checkpoint_digest: str = "",
    ) -> None:
        """Begin an episode.

        Args:
            store: takes it.
            types: the store's.
            rig: description of the simulated rig.
            task: whose file goes along.
            seed: the policy's.
            engine: "cosmos" or "demonstrator".
            checkpoint: the policy's folder.
            checkpoint_digest: the sha256 over its files.

        Raises:
            RolloutError: the store cannot take it.
        """
        self._store, self._rig, self._messages = store, rig, RigMessages(types)
        monitor = QualityMonitor(
            sensors_of(rig, absolute), rig.observation.camera_skew, load_limits()
        )
        metadata = EpisodeMetadata(
            task=task.name,
            prompt=task.prompts[0],
            rig=rig.name,
            engine=engine,
            checkpoint=checkpoint,
            checkpoint_digest=checkpoint_digest,
            operator_name=JUDGE,
            package_version=__version__,
            seed=seed,
            rig_yaml=(config_folder("rigs") / f"{rig.name}.yaml").read_text(encoding="utf-8"),
            task_yaml=(config_folder("tasks") / f"{task.name}.yaml").read_text(encoding="utf-8"),
        )
        self._recording = store.begin(metadata, rig_topics(rig), monitor)

    def joints(self, side: str, sample: JointSample) -> None:
        """Record a joint state."""
        arm = self._rig.arms[side]
        position, velocity = np.array(sample.positions), np.array(sample.velocities)
        cdr = self._messages.joints(sample.names, sample.stamp_ns, position, velocity)
        self._recording.write(absolute(arm.joint_states), sample.stamp_ns, cdr)

    def images(self, stamp_ns: int, images: dict[str, Image]) -> None:
        """Record what the cameras see."""
        for camera in self._rig.cameras:
            cdr = self._messages.image(images[camera.role], stamp_ns)
            self._recording.write(absolute(camera.topic), stamp_ns, cdr)

    def sent(self, chunk: TimedChunk) -> None:
        """Record what the arms are told, unstamped as the policy node sends it."""
        sent = self._messages.trajectories(
            self._rig,
            chunk.chunk_id,
            0,
            chunk.step_ns,
            chunk.positions,
            chunk.velocities,
            chunk.sent_after_ns,
        )
        for topic, cdr in sent:
            self._recording.write(absolute(topic), chunk.sent_ns, cdr)

    def finish(self, outcome: str, points: float) -> Path:
        """Score the episode and close its bag; return its folder.

        Raises:
            RolloutError: the disk refused.
        """
        operator_score = OperatorScore(points, success=points == 100.0, operator_name=JUDGE)
        self._store.score(operator_score)
        return self._recording.finish(outcome)

    def discard(self, reason: str) -> None:
        """Close the bag of a trial that must not be counted.

        Raises:
            RolloutError: the disk refused.
        """
        self._store.discard(reason, operator_name=JUDGE)
