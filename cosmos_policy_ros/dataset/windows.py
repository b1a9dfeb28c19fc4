"""An episode by its control steps: what was done at each, and what was seen before and after.

A step is one row of a trajectory that was sent, so what an episode is made of is what moved the
arms: refused chunks are not in it, nor the pauses in which a policy thinks and the arms hold, nor
the way to the start pose. A braked chunk ends where it was braked.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.bags.index import IndexedTopic
from cosmos_policy_ros.bags.jpeg import COMPRESSED, is_jpeg
from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.dataset.playback import RecordedSensors, stamp_ns
from cosmos_policy_ros.episodes.episode import Episode
from cosmos_policy_ros.rig.arms import ARM_DIM, STATE_DIM, Gripper, finger_from_angle
from cosmos_policy_ros.rig.chunk import BRAKE
from cosmos_policy_ros.rig.observation import Observation
from cosmos_policy_ros.rig.safety_gate import CHUNK_ID
from cosmos_policy_ros.rig.spec import Output, RigSpec
from cosmos_policy_ros.rig.teleoperation import REACH, led_tick

Starts = Mapping[str, int]
"""When each chunk was accepted [ns], by its id."""
DT_TOLERANCE = 1e-3  # s between a row's time and a whole number of steps
LED_GAP = 0.3  # s between two targets of a teleoperation that goes on; the longest that it waits
_ANGLE = 1e-6  # rad; half the step of a central difference


@dataclass(frozen=True)
class Steps:
    """The steps of an episode, in order.

    Attributes:
        times_ns: (n,) when each begins: what was seen then led to its action, which is due one
            step later. Nanoseconds of the clock that stamps the sensors' messages.
        actions: (n, 14) joint targets, policy units.
        stretch: (n,) a number that changes where the arms were braked, or someone else took them
            over: an action chunk across it was never decided.
        led: (n,) whether a person led the arms; else a policy commanded them.
    """

    times_ns: NDArray[np.int64]
    actions: NDArray[np.float64]
    stretch: NDArray[np.int64]
    led: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.times_ns)


class Sent(NamedTuple):
    """The trajectories of one chunk, joined over all outputs.

    Attributes:
        chunk_id: the trajectories'.
        start_ns: a step before the first row is due.
        offsets_ns: (n,) when the rows are due, from there on.
        positions: (n, 14), policy units.
    """

    chunk_id: str
    start_ns: int
    offsets_ns: NDArray[np.int64]
    positions: Array


def find_steps(sent: Sequence[Sent], dt: float) -> Steps:
    """Return the steps of an episode's chunks, in order, ``dt`` seconds each.

    Rows that lie closer are thinned out: of a policy's 50 rows a second every second one is kept,
    in motion from one chunk on into the next. What is left of a chunk at its end and is shorter
    than a step is none. What a teleoperation sent target by target is one chunk for as long as it
    goes on.

    Raises:
        RolloutError: the trajectories' rows do not fall on whole steps.
    """
    step_ns = round(dt * NS_PER_S)
    times: list[NDArray[np.int64]] = []
    actions: list[Array] = []
    stretch: list[NDArray[np.int64]] = []
    led: list[NDArray[np.bool_]] = []
    number = 0
    after_ns = None  # when the last step ends, where the next chunk took over in motion
    sent = join_targets(sent)
    for index, each in enumerate(sent):
        if _tick(each) is not None:
            begun_ns, targets = _led_steps(each, step_ns)
            times.append(begun_ns)
            actions.append(targets)
            stretch.append(np.full(len(targets), number + 1, np.int64))
            led.append(np.ones(len(targets), bool))
            number, after_ns = number + 2, None
            continue
        first_ns, after_ns = after_ns, None
        undecided = each.chunk_id.endswith(BRAKE) or each.chunk_id == CHUNK_ID
        # A trajectory without a row stops the controller where it is.
        if undecided or not len(each.offsets_ns):
            number += 1
            continue
        phase_ns = 0 if first_ns is None else _phase(each, first_ns, step_ns)
        rows, due_ns = _on_grid(each, step_ns, phase_ns)
        if index + 1 < len(sent):
            # Replaced before it ended: the rows that were still to come moved nothing.
            half_ns = min(step_ns, _spacing(each)) // 2
            executed = each.start_ns + due_ns <= sent[index + 1].start_ns + half_ns
            if len(rows) and not executed.all():
                after_ns = each.start_ns + int(due_ns[executed][-1]) if executed.any() else first_ns
            rows, due_ns = rows[executed], due_ns[executed]
        times.append(each.start_ns + due_ns - step_ns)
        actions.append(each.positions[rows])
        stretch.append(np.full(len(rows), number, np.int64))
        led.append(np.zeros(len(rows), bool))
    if not times:
        none = np.zeros(0, np.int64)
        return Steps(none, np.zeros((0, STATE_DIM)), none, np.zeros(0, bool))
    return Steps(
        np.concatenate(times), np.concatenate(actions), np.concatenate(stretch), np.concatenate(led)
    )


def before_takeover(steps: Steps, seconds: float) -> NDArray[np.bool_]:
    """Return per step (n,) whether a person takes the arms over within so many seconds from then.

    The first step of what the person then does counts: what was seen there led to it.
    """
    found = np.zeros(len(steps), bool)
    for first in np.flatnonzero(steps.led[1:] & ~steps.led[:-1]) + 1:
        since_ns = steps.times_ns[first] - round(seconds * NS_PER_S)
        stretch = (
            ~steps.led & (steps.times_ns >= since_ns) & (steps.times_ns < steps.times_ns[first])
        )
        stretch[first] = True
        found |= stretch
    return found


def _tick(sent: Sent) -> int | None:
    """Return the number of a teleoperation's target, None for any other trajectory."""
    return led_tick(sent.chunk_id) if len(sent.offsets_ns) else None


def _goes_on(before: Sent, each: Sent) -> bool:
    """Return whether one target of a teleoperation is the next after another."""
    last, next_one = _tick(before), _tick(each)
    if last is None or next_one != last + 1:
        return False
    return each.start_ns - before.start_ns < LED_GAP * NS_PER_S


def join_targets(sent: Sequence[Sent]) -> tuple[Sent, ...]:
    """Return trajectories with what a teleoperation sent target by target as one of many rows.

    It has the id of its first target, and goes on for as long as they follow one another.
    """
    joined: list[list[Sent]] = []
    for each in sent:
        if joined and _goes_on(joined[-1][-1], each):
            joined[-1].append(each)
        else:
            joined.append([each])
    return tuple(parts[0] if len(parts) == 1 else _one_of(parts) for parts in joined)


def _one_of(targets: Sequence[Sent]) -> Sent:
    first = targets[0]
    due_ns = np.array([each.start_ns + each.offsets_ns[-1] for each in targets])
    positions = np.stack([each.positions[-1] for each in targets])
    return Sent(first.chunk_id, first.start_ns, due_ns - first.start_ns, positions)


def _led_steps(led: Sent, step_ns: int) -> tuple[NDArray[np.int64], Array]:
    """Return when the steps of a teleoperation begin [ns], and their (n, 14) targets.

    From its first target on, by their numbers, as many of them apart as make a step; where a step
    is no whole number of them, what lies between two.
    """
    count, targets, due_ns = len(led.positions), led.positions, led.start_ns + led.offsets_ns
    period_ns = led.offsets_ns[0] / REACH
    at = np.arange(0, count - 1 + 1e-9, step_ns / period_ns)
    before = at.astype(np.int64)
    after, part = np.minimum(before + 1, count - 1), (at - before)[:, None]
    actions = (1 - part) * targets[before] + part * targets[after]
    times_ns = np.interp(at, np.arange(count), due_ns - due_ns[0])
    return due_ns[0] + times_ns.astype(np.int64) - step_ns, actions


def _spacing(sent: Sent) -> int:
    """Return the nanoseconds between two rows."""
    return int(np.median(np.diff(sent.offsets_ns, prepend=0)))


def _phase(sent: Sent, first_ns: int, step_ns: int) -> int:
    """Return when within a step a chunk's rows go on from the one before, 0 if none does."""
    phase_ns = (first_ns - sent.start_ns) % step_ns
    there = np.abs(sent.offsets_ns % step_ns - phase_ns) <= DT_TOLERANCE * NS_PER_S
    return phase_ns if there.any() else 0


def _on_grid(sent: Sent, step_ns: int, phase_ns: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the rows that are due at whole steps from ``phase_ns`` on, and when [ns]."""
    offsets_ns, tolerance_ns = sent.offsets_ns - phase_ns, round(DT_TOLERANCE * NS_PER_S)
    steps = (offsets_ns + step_ns // 2) // step_ns
    on_grid = np.flatnonzero(np.abs(offsets_ns - steps * step_ns) <= tolerance_ns)
    found, first = np.unique(steps[on_grid], return_index=True)
    least = 0 if phase_ns > tolerance_ns else 1
    most = int((offsets_ns[-1] + tolerance_ns) // step_ns)
    wanted = (found >= least) & (found <= most)
    # There must be a row for every step; a last one that is due in years makes no list of years.
    count = most - least + 1
    spacing_ns = max(_spacing(sent), 1)
    too_short = count == 0 and step_ns % spacing_ns <= tolerance_ns
    if count < 0 or np.count_nonzero(wanted) != count or (count == 0 and not too_short):
        between = np.diff(sent.offsets_ns, prepend=0) / NS_PER_S
        raise RolloutError(
            f"trajectory '{sent.chunk_id}' has rows {between.min():g} to {between.max():g} s "
            f"apart, which is no whole part of the {step_ns / NS_PER_S:g} s between two actions"
        )
    return on_grid[first[wanted]], found[wanted] * step_ns + phase_ns


def read_sent(
    message: Any, output: Output, where: object, received_ns: int, number: int, starts: Starts
) -> Sent:
    """Read one trajectory, its positions (n, joints) those of the output, in the driver's units.

    Args:
        message: a JointTrajectory.
        output: that it was sent to.
        where: the bag, for messages.
        received_ns: its receive stamp.
        number: of the trajectory on its topic.
        starts: when each chunk was accepted, for trajectories that bear no start.
    """
    missing = [name for name in output.joints if name not in message.joint_names]
    if missing:
        raise RolloutError(
            f"{where}: a trajectory on {output.topic} lacks the joint {', '.join(missing)} of the "
            f"rig's file; it moves {', '.join(message.joint_names)}"
        )
    columns = [message.joint_names.index(name) for name in output.joints]
    rows = np.array([point.positions for point in message.points], np.float64)
    due = [point.time_from_start for point in message.points]
    offsets_ns = np.array([time.sec * NS_PER_S + time.nanosec for time in due], np.int64)
    # Those of an imported episode may have no id; then they belong together by their order.
    chunk_id = message.header.frame_id or f"#{number}"
    # Trajectories without a stamp start when their chunk was accepted, or came.
    start_ns = stamp_ns(message) or starts.get(chunk_id, received_ns)
    if len(offsets_ns) > 1:
        # One that took over in motion was sent between two rows: it starts where the row before
        # its first was due.
        phase_ns = int(offsets_ns[0] - np.median(np.diff(offsets_ns)))
        start_ns, offsets_ns = start_ns + phase_ns, offsets_ns - phase_ns
    positions = rows.reshape(-1, len(message.joint_names))[:, columns]
    return Sent(chunk_id, start_ns, offsets_ns, positions)


def join_outputs(rig: RigSpec, sent: Sequence[Iterable[Sent]]) -> tuple[Sent, ...]:
    """Join the trajectories of each of a rig's outputs by their chunk; one alone is no action."""
    by_output = []
    for parts in sent:
        # By id and number under that id, which ways to the start pose share.
        chunks: dict[tuple[str, int], Sent] = {}
        count: Counter[str] = Counter()
        for part in parts:
            chunks[part.chunk_id, count[part.chunk_id]] = part
            count[part.chunk_id] += 1
        by_output.append(chunks)
    joined = []
    for key, first in by_output[0].items():
        parts = [chunks[key] for chunks in by_output if key in chunks]
        same = [part for part in parts if np.array_equal(part.offsets_ns, first.offsets_ns)]
        if len(same) < len(by_output):
            continue
        positions = np.zeros((len(first.offsets_ns), STATE_DIM))
        for output, part in zip(rig.outputs, same, strict=True):
            positions[:, output.columns] = part.positions
        joined.append(first._replace(positions=rig.commanded(positions)))
    return tuple(sorted(joined, key=lambda each: each.start_ns))


def read_outputs(sensors: RecordedSensors) -> tuple[Sent, ...]:
    """Read every trajectory of an episode and join them by their chunk, in order of their starts.

    Raises:
        RolloutError: a trajectory lacks one of the rig's joints, or the bag is damaged.
    """
    results = sensors.indexed[sensors.gate_results]
    starts = {}
    for index, accepted_ns in enumerate(results.stamps_ns):
        result = results.read(index)
        if result.accepted:
            starts[result.chunk_id] = int(accepted_ns)

    def read(name: str, output: Output) -> Iterator[Sent]:
        topic = sensors.indexed[name]
        for index, received_ns in enumerate(topic.received_ns):
            message = topic.read(index)
            yield read_sent(message, output, sensors.episode.path, int(received_ns), index, starts)

    rig = sensors.rig
    return join_outputs(rig.rig, [read(*each) for each in rig.outputs.items()])


class Windows(Protocol):
    """Random access to the windows (s, a, s') of one episode, whatever it is kept in.

    Widths of states and actions are the episode's own: 14 each of a bag.
    """

    @property
    def id(self) -> str:
        """Its name, unique within a data set."""

    @property
    def path(self) -> Path:
        """Where it is, for messages."""

    @property
    def prompt(self) -> str:
        """The task in words."""

    @property
    def fingerprint(self) -> str:
        """A sha256 (hex) over what was done: that of a copy is the same."""

    @property
    def has_images(self) -> NDArray[np.bool_]:
        """(n,) whether images of a step were kept, as far as is known without reading them."""

    def __len__(self) -> int:
        """Return the number of steps n."""

    def at(self, step: int) -> Observation:
        """Return the observation at a step; ObservationError or RolloutError if it has none."""

    def chunk(self, step: int, chunk_steps: int) -> Array:
        """Return the (K, action) actions from a step on; the last one is repeated past the end."""

    def future(self, step: int, chunk_steps: int) -> int:
        """Return the step of s': K steps later, or the episode's last one."""

    def usable(self, chunk_steps: int) -> NDArray[np.bool_]:
        """Return per step (n,) whether a window may begin there."""


class EpisodeWindows(RecordedSensors):
    """Random access to the windows (s, a, s') of one finished episode.

    A window begins at any step: s is what was seen there, a the K actions from there on, s' what
    was seen K steps later.

    Attributes:
        sent: the chunks that the arms were sent.
        steps: the rows of them that were executed.
    """

    def __init__(
        self,
        episode: Episode,
        dt: float | None = None,
        indexed: Mapping[str, IndexedTopic] | None = None,
        sent: tuple[Sent, ...] | None = None,
    ) -> None:
        """Index the bag.

        Args:
            episode: a finished one.
            dt: seconds per control step; by default the rig's own.
            indexed: that of earlier windows of the same bag, where the caller has it.
            sent: likewise.

        Raises:
            RolloutError: it has no index, lacks its rig's topics or any message of a sensor, or
                its trajectories do not fit ``dt``.
        """
        super().__init__(episode, indexed)
        # The bag defines its messages itself, and may have put anything into them.
        with reading(episode.path, "an episode", RolloutError, VERIFY):
            self.sent = read_outputs(self) if sent is None else sent
            steps = find_steps(self.sent, dt or self.rig.rig.rates.dt)
            self.steps = self._while_recorded(steps)

    def _while_recorded(self, steps: Steps) -> Steps:
        """Keep the steps while every sensor was being recorded."""
        for name, topic in self.topics.items():
            if not len(topic):
                raise RolloutError(f"{name} holds no message; the episode cannot be looked at")
        stamps = [topic.stamps_ns for topic in self.topics.values()]
        # A step begins up to one image's time behind the newest one.
        periods = [int(np.median(np.diff(each))) for each in stamps if len(each) > 1]
        first = max(int(each[0]) for each in stamps)
        last = min(int(each[-1]) for each in stamps) + max(periods, default=0)
        kept = (steps.times_ns >= first) & (steps.times_ns <= last)
        return Steps(
            steps.times_ns[kept], steps.actions[kept], steps.stretch[kept], steps.led[kept]
        )

    @property
    def id(self) -> str:
        """The episode's."""
        return self.episode.id

    @property
    def path(self) -> Path:
        """The bag's folder."""
        return self.episode.path

    @property
    def prompt(self) -> str:
        """The task in words."""
        return self.episode.metadata.prompt

    @property
    def fingerprint(self) -> str:
        """A sha256 (hex) over the steps."""
        steps = self.steps
        return hashlib.sha256(steps.times_ns.tobytes() + steps.actions.tobytes()).hexdigest()

    @property
    def has_images(self) -> NDArray[np.bool_]:
        """(n,) all: which are missing is told by the sensors' stamps, see :meth:`usable`."""
        return np.ones(len(self), bool)

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, step: int) -> Observation:
        """Return the observation at a step; raises as :meth:`observe` does."""
        return self.observe(int(self.steps.times_ns[step]))

    def state(self, step: int) -> Array:
        """Return the (14,) state at a step; raises as :meth:`measured` does."""
        return self.measured(int(self.steps.times_ns[step]))[0]

    def chunk(self, step: int, chunk_steps: int) -> Array:
        """Return the (K, 14) actions from a step on; the last one is repeated past the end."""
        rows = np.minimum(np.arange(step, step + chunk_steps), len(self) - 1)
        return self.steps.actions[rows]

    def future(self, step: int, chunk_steps: int) -> int:
        """Return the step of s': K steps later, or the episode's last one."""
        return min(step + chunk_steps, len(self) - 1)

    def usable(self, chunk_steps: int) -> NDArray[np.bool_]:
        """Return per step (n,) whether a window may begin there, as far as stamps tell.

        Left out are windows whose chunk runs across a brake or a takeover, and those at either end
        of which a sensor had been silent for longer than the rig allows a policy to act on.
        """
        count = len(self)
        last = np.minimum(np.arange(count) + chunk_steps, count - 1)
        whole = self.steps.stretch[np.minimum(last, np.arange(count) + chunk_steps - 1)]
        usable: NDArray[np.bool_] = (whole == self.steps.stretch) & self._fresh & self._fresh[last]
        return usable

    @cached_property
    def _fresh(self) -> NDArray[np.bool_]:
        """Per step, whether no sensor is older than the rig's limits; by stamps alone."""
        limits, times = self.rig.rig.observation, self.steps.times_ns

        def newest(topics: Iterable[str]) -> NDArray[np.int64]:
            """Return (topics, n) the newest stamp by each step, 0 for none."""
            found = []
            for name in topics:
                stamps_ns = self.topics[name].stamps_ns
                index = np.searchsorted(stamps_ns, times, side="right") - 1
                found.append(np.where(index < 0, 0, stamps_ns[np.maximum(index, 0)]))
            return np.stack(found)

        cameras, states = newest(self.rig.cameras), newest(self.rig.arms.values())
        fresh: NDArray[np.bool_] = (
            ((times - cameras) / NS_PER_S <= limits.image_age).all(axis=0)
            & ((times - states) / NS_PER_S <= limits.state_age).all(axis=0)
            & ((cameras.max(axis=0) - cameras.min(axis=0)) / NS_PER_S <= limits.camera_skew)
        )
        return fresh


@dataclass(frozen=True)
class ExecutedStep:
    """One row.

    Attributes:
        state, action: (14,) policy units.
        velocity: (14,) policy units per second; zeros where no driver reported it.
        effort: (14,) in the drivers' units; zeros where no driver reported it.
        images: (H, W, 3) uint8 RGB by role.
        jpegs: by role the very files of the images that were recorded as JPEG.
    """

    state: Array
    action: Array
    velocity: Array
    effort: Array
    images: Mapping[str, NDArray[np.uint8]]
    jpegs: Mapping[str, bytes]


class ExecutedEpisode:
    """Yields an episode's steps in their order.

    Attributes:
        episode: its summary.
        rig: as the bag shows it.
        left_out: why each step without an observation is missing; grows while they are read.
    """

    def __init__(self, episode: Episode) -> None:
        """Index a finished episode; raises RolloutError when nothing was executed in it."""
        self.episode = episode
        self.left_out: list[str] = []
        self._windows = EpisodeWindows(episode)
        self.rig = self._windows.rig.rig
        if not len(self._windows):
            raise RolloutError(f"{episode.path}: holds no executed step: nothing to export")

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[ExecutedStep]:
        """Yield the steps at which the rig's limits allow an observation."""
        self.left_out.clear()
        steps = self._windows.steps
        for time, action in zip(steps.times_ns, steps.actions, strict=True):
            stamp_ns = int(time)
            try:
                seen = self._windows.observe(stamp_ns)
            except ObservationError as error:
                self.left_out.append(str(error))
                continue
            with reading(self.episode.path, "an episode", RolloutError, VERIFY):
                jpegs = {}
                for name, role in self._windows.rig.cameras.items():
                    topic = self._windows.topics[name]
                    if topic.msgtype == COMPRESSED:
                        data = bytes(topic.read(topic.newest(stamp_ns)).data)
                        if is_jpeg(data):
                            jpegs[role] = data
                velocity, effort = self._measured(stamp_ns)
            yield ExecutedStep(seen.state, action, velocity, effort, seen.images, jpegs)

    def _measured(self, stamp_ns: int) -> tuple[Array, Array]:
        """Return the (14,) velocity and effort of the arms' newest joint states."""
        velocity, effort = np.zeros(STATE_DIM), np.zeros(STATE_DIM)
        for index, (side, arm) in enumerate(self.rig.arms.items()):
            names, topic = arm.state_names, self._windows.topics[self._windows.rig.arms[side]]
            # Where both arms report on one topic, the newest message may be the other's.
            read = (topic.read(at) for at in range(topic.newest(stamp_ns), -1, -1))
            state = next(each for each in read if names[-1] in each.name)
            part = slice(index * ARM_DIM, (index + 1) * ARM_DIM)
            velocity[part] = _by_name(state, "velocity", names)
            effort[part] = _by_name(state, "effort", names)
            gripper = part.stop - 1
            if velocity[gripper]:
                position = state.position[state.name.index(names[-1])]
                velocity[gripper] *= opening_per_reading(arm.gripper, position)
        return velocity, effort


def _by_name(state: Any, field: str, names: tuple[str, ...]) -> Array:
    given = dict(zip(state.name, getattr(state, field), strict=False))
    values = np.array([given.get(name, 0.0) for name in names], np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def opening_per_reading(gripper: Gripper, reading: float) -> float:
    """Return by how much the opening (0 to 1) changes with the driver's number."""
    per_unit = 1 / gripper.state_stroke
    if gripper.state_source != "crank":
        return per_unit
    assert gripper.crank is not None
    radius, rod = gripper.crank.radius, gripper.crank.rod
    ends = [finger_from_angle(reading + step, radius, rod) for step in (-_ANGLE, _ANGLE)]
    return per_unit * (ends[1] - ends[0]) / (2 * _ANGLE)
