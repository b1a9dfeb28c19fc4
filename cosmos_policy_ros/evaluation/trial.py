"""One trial on the simulated rig in one process: what the nodes do together, without a wall clock.

Rig, observation gates, run, safety gate and chunks are the nodes' own; only the messages between
them are left out. The rig waits while the policy thinks, as in stepped mode; or an answer comes
after a latency on the rig's clock: a given one, or what the policy really took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, Protocol

import numpy as np
from rosbags.typesys.store import Typestore

from cosmos_policy_ros import __version__
from cosmos_policy_ros.bags.messages import EpisodeMetadata, RigMessages
from cosmos_policy_ros.core.errors import CosmosPolicyError, RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import Task
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.quality import QualityMonitor, load_limits, sensors_of
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.topics import POLICY_NODE, absolute, rig_topics
from cosmos_policy_ros.episodes.trial_info import TrialInfo
from cosmos_policy_ros.evaluation.correction import TRIES, Person
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
    """Receives what happens in a trial, in order of the rig's time."""

    def joints(self, side: str, sample: JointSample) -> None:
        """Take a joint state."""

    def images(self, stamp_ns: int, images: dict[str, Image]) -> None:
        """Take what the cameras see, at the model's size."""

    def decided(self, decision: Decision, query: Query, chunk_id: str, seconds: float) -> None:
        """Take what the policy has answered, after so many wall seconds."""

    def sent(self, chunk: TimedChunk) -> None:
        """Take a chunk that was sent to the arms."""


@dataclass(frozen=True)
class Trial:
    """How a trial ended.

    Attributes:
        seed: placed the objects.
        outcome: of the run; "done" when the last stage was reached before its limits.
        reached, stages: how far it got, of how many, with the object that the prompt names.
        reached_with_any: how far with any object that would do if the prompt named none.
        chunks, refused, late: executed, refused by the gate, and dropped as too late.
        seconds: of the rig's time.
        idle: seconds of them that the arms stood still between their first motion and their last.
        thinking: wall seconds of each decision.
        evaluations: of the networks, for all decisions.
        transitions: one per chunk that was judged.
        corrected: how many stages were reached in the end of a trial that a person took over; None
            without a takeover. All other numbers are of the policy alone.
    """

    seed: int
    outcome: Outcome
    reached: int
    reached_with_any: int
    stages: int
    chunks: int
    refused: int
    late: int
    seconds: float
    idle: float
    thinking: tuple[float, ...]
    evaluations: int
    transitions: tuple[ChunkTransition, ...]
    corrected: int | None = None

    @property
    def success(self) -> bool:
        """Whether every stage was reached."""
        return self.reached == self.stages

    @property
    def success_with_any(self) -> bool:
        """Whether every stage was reached with any object, named or not."""
        return self.reached_with_any == self.stages

    @property
    def score(self) -> float:
        """0 to 100, as the simulated tasks' rubrics say."""
        return 100.0 * self.reached / self.stages

    @property
    def episode_score(self) -> float:
        """0 to 100, of what policy and person have reached together."""
        reached = self.reached if self.corrected is None else self.corrected
        return 100.0 * reached / self.stages

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
        latency: returns the seconds on the rig's clock until an answer comes; None for none at
            all, the rig waiting.
        make_scheduler: makes the run's.
        charged: whether the wall seconds that each decision took pass on the rig's clock, too, on
            top of ``latency``.
    """

    execution: Execution = SYNCHRONOUS
    latency: Callable[[], float] | None = None
    make_scheduler: Callable[[Execution, Rates, LatencyTracker], InferenceScheduler] = (
        InferenceScheduler
    )
    charged: bool = False


class _Answer(NamedTuple):
    """A decision, when it was asked for, and when it comes on the rig's clock."""

    decision: Decision
    stamp_ns: int
    due_ns: int


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
            task: whose scene.
            size: of the model's images [px]. Observers get what the model makes of what the
                cameras see, so that bags are small and a training from them misses nothing.

        Raises:
            RigError: unknown task, or EGL is missing.
        """
        self._size = size
        self._spec, self._gate, self._sides = rig, SafetyGate(rig), rig.arms.keys()
        # While a chunk is executed nothing is drawn, and no camera is lost. What is recorded is
        # what the model makes of an image, and no JPEG of the camera's.
        patient = replace(rig.observation, image_timeout=0.0)
        self._rarely_seen = replace(rig, observation=patient).with_images("raw")
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
        observers: Sequence[RolloutObserver] = (),
        *,
        condition: str = USUAL,
        timing: Timing | None = None,
        rig: RigSpec | None = None,
        person: Person | None = None,
    ) -> Trial:
        """Place the objects and let a policy try.

        Images are drawn when a query needs them, and at the cameras' rate if there are observers.

        Args:
            goal: what is asked of the policy.
            scene_seed: places the objects.
            policy: decides.
            observers: hear of all that happens.
            condition: of the scene, see :mod:`~cosmos_policy_ros.sim.tasks`.
            timing: by default at rest, with answers in no time.
            rig: as it executes this policy's chunks, where that is not as its file says.
            person: takes over, with the arms at rest, where no stage is reached any more or a chunk
                is refused; None: there is no takeover.
        """
        spec = rig or self._spec
        gate = self._gate if spec is self._spec else SafetyGate(spec)
        timing, self._latencies = timing or Timing(), LatencyTracker()
        scheduler = timing.make_scheduler(timing.execution, spec.rates, self._latencies)
        sim = self._rig
        self._person = person
        self._alone: tuple[int, int] | None = None  # what was reached when a person took over
        sim.reset(goal.task, scene_seed, condition, goal.prompt)
        sim.advance(SETTLE)
        sensors = SensorBuffer(self._rarely_seen)
        run = Run(goal, spec, sensors, gate, LIMITS, None, scheduler=scheduler)
        self._observers, self._latency, self._charged = observers, timing.latency, timing.charged
        self._in_motion = scheduler.asks_in_motion
        self._seen_ns, self._first_wait_ns = -1, 0
        self._transitions: list[ChunkTransition] = []
        self._thinking: list[float] = []
        self._evaluations = 0
        self._pending: _Answer | None = None
        try:
            self._play(run, sensors, policy)
        except RigError as error:  # the physics became unstable
            run.stop(sim.time_ns, "fault", str(error))
        assert run.outcome is not None
        reached = self._alone or (sim.reached, sim.reached_with_any)
        return Trial(
            seed=scene_seed,
            outcome=run.outcome,
            reached=reached[0],
            reached_with_any=reached[1],
            stages=len(sim.stages),
            chunks=run.chunks,
            refused=run.refused,
            late=run.late,
            seconds=sim.since_reset_ns / 1e9,
            idle=(run.idle_ns - self._first_wait_ns) / 1e9,
            thinking=tuple(self._thinking),
            evaluations=self._evaluations,
            transitions=tuple(self._transitions),
            corrected=None if self._alone is None else sim.reached,
        )

    def _play(self, run: Run, sensors: SensorBuffer, policy: Policy) -> None:
        rig = self._rig
        self._read_joints(sensors)
        while True:
            moving = run.chunk is not None and rig.time_ns < run.chunk.end_ns
            if self._watched or run.needs_observation(rig.time_ns):
                self._read_cameras(sensors)
            # A run in motion may never come to rest.
            if (not moving or self._in_motion) and rig.reached == len(rig.stages):
                run.stop(rig.time_ns, "done", "reached the last stage")
            phase = run.phase
            effect = run.poll(rig.time_ns, rig.time_ns / 1e9)
            if isinstance(effect, TimedChunk):
                self._send(effect)
            elif effect is not None and self._takes_over(run, effect):
                self._correct(run, sensors, effect)
                return
            elif effect is not None:
                self._ask(run, effect, policy)
            elif run.outcome is not None:
                return
            elif run.phase is not phase:
                continue
            elif self._pending is not None and rig.time_ns >= self._pending.due_ns:
                self._take(run, self._pending)
            else:
                self._advance(sensors)

    def _takes_over(self, run: Run, query: Query) -> bool:
        """Return whether a person has seen enough of it; not while the arms move."""
        rig, person = self._rig, self._person
        if person is None or query.committed is not None:
            return False
        return person.takes_over(rig.reached, rig.time_ns) or run.refused > 0

    def _correct(self, run: Run, sensors: SensorBuffer, query: Query) -> None:
        """Let a person do the rest."""
        rig, person = self._rig, self._person
        assert person is not None
        self._alone = rig.reached, rig.reached_with_any
        run.pause(rig.time_ns)
        followers = run.commanded(rig.time_ns)
        for _ in range(TRIES):
            followers = query.observation.state if followers is None else followers
            person.lead(query, followers, rig.time_ns)
            while person.leads(rig.time_ns):
                target = person.tick(rig.time_ns, sensors.measured())
                if target is not None:
                    followers = target.positions[-1]
                    self._send(target)
                for _ in range(person.period_ns // self._tick_ns):
                    if self._watched:
                        self._read_cameras(sensors)
                    self._advance(sensors)
            if rig.reached == len(rig.stages) or not person.follows:
                break
            self._read_cameras(sensors)
            query = replace(query, observation=sensors.observe(rig.time_ns, rig.time_ns))
        reached = f"a person took over after {self._alone[0]} of {len(rig.stages)} stages"
        run.stop(rig.time_ns, "taken_over", f"{reached}, and reached {rig.reached}")

    @property
    def _watched(self) -> bool:
        """Whether observers see an image now."""
        return bool(self._observers) and self._rig.since_reset_ns % self._image_ns == 0

    def _advance(self, sensors: SensorBuffer) -> None:
        self._rig.advance(self._tick_ns / 1e9)
        self._read_joints(sensors)

    def _ask(self, run: Run, query: Query, policy: Policy) -> None:
        began = time.perf_counter()
        try:
            decision = policy.decide(query)
        except CosmosPolicyError as error:
            run.query_failed(error, recoverable=False)
            return
        finally:
            self._thinking.append(time.perf_counter() - began)
        self._evaluations += decision.evaluations
        chunk_id = f"{run.goal.run_id}/{run.chunks}"
        for observer in self._observers:
            observer.decided(decision, query, chunk_id, self._thinking[-1])
        latency = 0.0 if self._latency is None else self._latency()
        if self._charged:
            latency += self._thinking[-1]
        due_ns = self._rig.time_ns + round(latency * 1e9)
        self._pending = _Answer(decision, query.observation.stamp_ns, due_ns)

    def _take(self, run: Run, answer: _Answer) -> None:
        self._pending, now_ns = None, self._rig.time_ns
        _, chunk = run.answer(answer.decision, now_ns)
        self._latencies.add((now_ns - answer.stamp_ns) / 1e9, {})
        if run.transition is not None:
            self._transitions.append(run.transition)
        if chunk is not None:
            if run.chunks == 1:
                self._first_wait_ns = run.idle_ns
            self._send(chunk)

    def _send(self, chunk: TimedChunk) -> None:
        for output, points in trajectories(self._spec, chunk):
            with suppress(RigError):  # the arm stays where it is, as on a real rig
                self._rig.command(output.name, output.joints, points, 0)
        for observer in self._observers:
            observer.sent(chunk)

    def _read_joints(self, sensors: SensorBuffer) -> None:
        for side in self._sides:
            sample = self._rig.joint_states(side)
            sensors.add_joint_state(side, sample.names, sample.positions, sample.stamp_ns)
            for observer in self._observers:
                observer.joints(side, sample)

    def _read_cameras(self, sensors: SensorBuffer) -> None:
        now_ns = self._rig.time_ns
        if now_ns == self._seen_ns:
            return
        self._seen_ns = now_ns
        images = self._renderer.render(self._rig.snapshot())
        for role, pixels in images.items():
            height, width, _ = pixels.shape
            message = SimpleNamespace(
                height=height,
                width=width,
                encoding="rgb8",
                is_bigendian=0,
                step=3 * width,
                data=pixels.ravel(),
            )
            sensors.add_image(role, message, now_ns)
        if self._observers:
            images = {role: reduce(seen, self._size).numpy() for role, seen in images.items()}
        for observer in self._observers:
            observer.images(now_ns, images)


JUDGE = "the simulated rig's judge"


class TrialBag:
    """A :class:`RolloutObserver` that writes the bag that the recorder node would have written."""

    def __init__(
        self,
        store: EpisodeStore,
        types: Typestore,
        rig: RigSpec,
        task: Task,
        *,
        image_size: int,
        prompt: str,
        seed: int,
        engine: str,
        checkpoint: str = "",
        checkpoint_digest: str = "",
        trial: TrialInfo | None = None,
    ) -> None:
        """Begin an episode of images of a size [px], of the policy that the rest describes."""
        self._store, self._rig, self._messages = store, rig, RigMessages(types)
        monitor = QualityMonitor(
            sensors_of(rig, absolute), rig.observation.camera_skew, load_limits()
        )
        metadata = EpisodeMetadata(
            task=task.name,
            prompt=prompt,
            rig=rig.name,
            engine=engine,
            checkpoint=checkpoint,
            checkpoint_digest=checkpoint_digest,
            operator_name=JUDGE,
            package_version=__version__,
            seed=seed,
            rig_yaml=(config_folder("rigs") / f"{rig.name}.yaml").read_text(encoding="utf-8"),
            task_yaml=(config_folder("tasks") / f"{task.name}.yaml").read_text(encoding="utf-8"),
            trial=trial.text() if trial is not None else "",
        )
        self._recording = store.begin(metadata, rig_topics(rig, decisions=True), monitor)
        self._image_size = image_size

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

    def decided(self, decision: Decision, query: Query, chunk_id: str, seconds: float) -> None:
        """Record a decision, on the images as this bag has them."""
        seen = query.observation
        images = {
            role: reduce(image, self._image_size).numpy() for role, image in seen.images.items()
        }
        query = replace(query, observation=replace(seen, images=images))
        cdr = self._messages.decision(decision, query, chunk_id, seconds)
        self._recording.write(absolute(f"{POLICY_NODE}/decision"), seen.stamp_ns, cdr)

    def sent(self, chunk: TimedChunk) -> None:
        """Record what the arms are sent, unstamped as the policy node sends it."""
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
        """Score the episode and close its bag; return its folder."""
        operator_score = OperatorScore(points, success=points == 100.0, operator_name=JUDGE)
        self._store.score(operator_score)
        return self._recording.finish(outcome)

    def discard(self, reason: str) -> None:
        """Close the bag of a trial that must not be counted."""
        self._store.discard(reason, operator_name=JUDGE)
