"""What the arms were told in a bag of another recorder: the actions of an imported episode.

Three kinds of messages can tell it, the first that is complete counts: trajectories for the rig's
outputs, goals for its drivers (``driver``), the joint states of its leader arms (``leader``).
Trajectories that are laid out as this package's, one row per control step, stay as they are. All
else is looked at once per control step: what counts is the command in force then, as it was sent;
nothing is interpolated between two goals, and a pause is a pause.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import ObservationError, RigError, RolloutError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.dataset.playback import stamp_ns
from cosmos_policy_ros.dataset.windows import Sent, find_steps, join_outputs, read_sent
from cosmos_policy_ros.episodes.topics import POLICY_NODE, absolute
from cosmos_policy_ros.interop.ros_bag_files import INTERBOTIX
from cosmos_policy_ros.interop.source_rate import LEAST_RATE, MAX_GAP
from cosmos_policy_ros.rig.arms import ARM_DIM, ARM_JOINTS, STATE_DIM, Arm
from cosmos_policy_ros.rig.observation import FAILED_READ, FAILED_READ_JOINTS, FAILED_READ_TOLERANCE
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryController, TrajectoryPoint

Times = NDArray[np.int64]
ALL_JOINTS = "all"
"""What Interbotix' drivers call the six joints and the gripper together."""
_EVEN = 0.9  # of a control step, which steps of trajectories are apart at least
_IN_PACE = 0.5  # resultant of the moments of commands on a clock face of one interval
_JUST_AFTER_NS = 1000


class InForce(NamedTuple):
    """The commands in force at some moments.

    Attributes:
        positions: (K, 14) policy units.
        valid: (K,) False in a pause, and before the first.
    """

    positions: Array
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Actions:
    """Actions by control step.

    Attributes:
        times_ns: (n,) when each was seen for; its action is due one step later.
        rows: (n, 14) policy units.
        run: (n,) a number that changes where an action chunk may not run across.
    """

    times_ns: Times
    rows: Array
    run: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.times_ns)

    def between(self, first_ns: int, last_ns: int) -> Actions:
        """Return those that were seen for between two moments."""
        kept = (self.times_ns >= first_ns) & (self.times_ns <= last_ns)
        return Actions(self.times_ns[kept], self.rows[kept], self.run[kept])


class Commands(ABC):
    """One kind of commands in a bag; messages are added in the order of their receipt.

    Attributes:
        topics: the bag's, all of which must have messages.
        also: topics that tell more of them, where the bag has these.
        what: the kind, for people.
        msgtypes: of its messages.
        counts: messages so far, by topic.
        left_out: messages that were no command of this rig.
    """

    what: str
    msgtypes: tuple[str, ...]
    also: tuple[str, ...] = ()

    def __init__(self, topics: Iterable[str]) -> None:
        """Expect messages on ``topics``."""
        self.topics = tuple(dict.fromkeys(topics))
        self.counts = dict.fromkeys(self.topics, 0)
        self.left_out = 0

    @property
    def missing(self) -> tuple[str, ...]:
        """The topics on which nothing was sent."""
        return tuple(topic for topic, count in self.counts.items() if not count)

    def add(self, topic: str, received_ns: int, message: Any) -> None:
        """Take a message; ``received_ns`` by the clock that stamps the sensors."""
        if not self._take(topic, received_ns, message):
            self.left_out += 1
        elif topic in self.counts:
            self.counts[topic] += 1

    @abstractmethod
    def _take(self, topic: str, received_ns: int, message: Any) -> bool:
        """Take a message, or return that it is no command."""

    @abstractmethod
    def at(self, times_ns: Times) -> InForce:
        """Return what is in force at ascending moments."""

    @property
    @abstractmethod
    def span_ns(self) -> tuple[int, int]:
        """From when on all joints have a command, and until when."""

    def first_look_ns(self, not_before_ns: int) -> int:
        """Return the first moment to look at what is in force."""
        return max(not_before_ns, self.span_ns[0])

    @property
    @abstractmethod
    def pace(self) -> str:
        """How often commands came, for people."""


class Trajectories(Commands):
    """JointTrajectory messages on all of the rig's outputs."""

    what = "JointTrajectory"
    msgtypes = ("trajectory_msgs/msg/JointTrajectory",)

    def __init__(self, rig: RigSpec, namespace: str, where: object) -> None:
        """Expect the outputs of ``rig``; ``where`` names the bag."""
        self._rig, self._where = rig, where
        self.outputs = {absolute(output.topic, namespace): output for output in rig.outputs}
        self.also = (absolute(f"{POLICY_NODE}/gate_result", namespace),)
        self.starts: dict[str, int] = {}  # of chunks, as the policy node accepted them
        self._messages: dict[str, list[tuple[int, Any]]] = {topic: [] for topic in self.outputs}
        super().__init__(self.outputs)

    def _take(self, topic: str, received_ns: int, message: Any) -> bool:
        if topic not in self.also:
            self._messages[topic].append((received_ns, message))
        elif getattr(message, "accepted", False):
            self.starts[message.chunk_id] = stamp_ns(message)
        return True

    def start_ns(self, received_ns: int, message: Any) -> int:
        """Return when a trajectory starts: as it says, when it was accepted, or when it came."""
        return stamp_ns(message) or self.starts.get(message.header.frame_id, received_ns)

    def sent(self) -> tuple[Sent, ...]:
        """Return the trajectories of all outputs, joined.

        Raises:
            RolloutError: one lacks a joint.
        """
        parts = [
            [
                read_sent(message, output, self._where, received_ns, number, self.starts)
                for number, (received_ns, message) in enumerate(self._messages[topic])
            ]
            for topic, output in self.outputs.items()
        ]
        return join_outputs(self._rig, parts)

    def as_they_are(self) -> Actions | None:
        """Return the trajectories' rows if they have one for each control step."""
        try:
            steps = find_steps(self.sent(), self._rig.rates.dt)
        except (RolloutError, ValueError):  # rows of several lengths are no array
            return None
        between = np.diff(steps.times_ns) / NS_PER_S
        if not len(between) or np.median(between) < _EVEN * self._rig.rates.dt:
            return None
        return Actions(steps.times_ns, steps.actions, steps.stretch)

    @property
    def span_ns(self) -> tuple[int, int]:
        """From the latest output's first trajectory to the end of the last."""
        first = max(self.start_ns(*messages[0]) for messages in self._messages.values())
        ends = [
            self.start_ns(*each) + _length_ns(each[1])
            for m in self._messages.values()
            for each in m
        ]
        return int(first), int(max(ends))

    def at(self, times_ns: Times) -> InForce:
        """Follow each output's trajectories as a controller does."""
        sent = np.zeros((len(times_ns), STATE_DIM))
        valid = np.ones(len(times_ns), np.bool_)
        for topic, output in self.outputs.items():
            coming = sorted(
                ((self.start_ns(*each), each[1]) for each in self._messages[topic]),
                key=lambda each: each[0],
            )
            rows, good = _followed(output.joints, coming, times_ns)
            sent[:, output.columns] = rows
            valid &= good
        return InForce(self._rig.commanded(sent), valid)

    @property
    def pace(self) -> str:
        """Their number."""
        return f"{max(self.counts.values())} trajectories"


def _length_ns(message: Any) -> int:
    if not message.points:
        return 0
    due = message.points[-1].time_from_start
    return int(due.sec) * NS_PER_S + int(due.nanosec)


def _until(end_ns: int, next_ns: int | None) -> int:
    """Return how long a command counts that ends then: up to the next, if that is near."""
    near = next_ns is not None and next_ns - end_ns <= MAX_GAP * NS_PER_S
    return next_ns if near and next_ns is not None else end_ns


def _followed(
    joints: tuple[str, ...], coming: Sequence[tuple[int, Any]], times_ns: Times
) -> tuple[Array, NDArray[np.bool_]]:
    """Return (K, joints) positions of a controller, and whether it was following anything."""
    rows, valid = np.zeros((len(times_ns), len(joints))), np.zeros(len(times_ns), np.bool_)
    controller = TrajectoryController(joints, np.zeros(len(joints)))
    following, number = False, 0
    for index, now_ns in enumerate(times_ns.tolist()):
        while number < len(coming) and coming[number][0] <= now_ns:
            start_ns, message = coming[number]
            number += 1
            points = [
                TrajectoryPoint(
                    tuple(point.positions),
                    tuple(point.velocities),
                    int(point.time_from_start.sec) * NS_PER_S + int(point.time_from_start.nanosec),
                )
                for point in message.points
            ]
            try:
                if not points:
                    controller.hold(controller.sample(start_ns))
                    continue
                if not following:  # from where, is not told
                    order = [list(message.joint_names).index(name) for name in joints]
                    controller.hold(np.array(points[0].positions)[order])
                controller.accept(message.joint_names, points, 0, start_ns)
                following = True
            except (RigError, ValueError, IndexError):
                continue  # as a controller does
        rows[index] = controller.sample(now_ns)
        until_ns = _until(controller.end_ns, coming[number][0] if number < len(coming) else None)
        valid[index] = following and now_ns <= until_ns
    return rows, valid


class _Stream:
    """Goals of some entries of the 14-vector, in order."""

    def __init__(self, topic: str, columns: Sequence[int], *, lasting: bool = False) -> None:
        """Collect goals of ``columns``; of ``lasting`` ones the last counts however old it is."""
        self.topic, self.columns, self.lasting = topic, list(columns), lasting
        self._times: list[int] = []
        self._rows: list[Array] = []

    def add(self, time_ns: int, row: Array) -> None:
        """Take the goals of a moment."""
        self._times.append(time_ns)
        self._rows.append(row)

    def __len__(self) -> int:
        return len(self._times)

    def sorted(self) -> tuple[Times, Array]:
        """Return (n,) moments [ns], ascending, and (n, columns) goals."""
        times = np.array(self._times, np.int64)
        order = np.argsort(times, kind="stable")
        return times[order], np.array(self._rows)[order]


class _Streams(Commands):
    """Goals that are sent one by one, at any rate."""

    _rig: RigSpec
    _streams: list[_Stream]

    @property
    def missing(self) -> tuple[str, ...]:
        """The topics on which no goal of the rig's joints was sent."""
        return tuple(dict.fromkeys(s.topic for s in self._streams if not len(s)))

    def _times(self) -> Times:
        """Return the moments of all goals of the arms' joints."""
        return np.concatenate([s.sorted()[0] for s in self._streams if not s.lasting])

    @property
    def _interval_ns(self) -> float:
        """Between two goals, as a rule. Raises RolloutError where they are too far apart."""
        slowest = 0.0
        for stream in self._streams:
            if stream.lasting:
                continue
            times, _ = stream.sorted()
            between = float(np.median(np.diff(times))) if len(times) > 1 else float("inf")
            if not between * LEAST_RATE <= NS_PER_S:
                raise RolloutError(
                    f"{stream.topic} has {len(times)} commands, {between / NS_PER_S:.3g} s apart; "
                    f"actions need {LEAST_RATE:g} or more per second"
                )
            slowest = max(slowest, between)
        return max(slowest, 1.0)

    @property
    def span_ns(self) -> tuple[int, int]:
        """From the latest stream's first goal to the earliest last one."""
        all_times = [(stream.sorted()[0], stream.lasting) for stream in self._streams]
        return (
            max(int(times[0]) for times, _ in all_times),
            min(int(times[-1]) for times, lasting in all_times if not lasting)
            + round(self._interval_ns),
        )

    def at(self, times_ns: Times) -> InForce:
        """Take the newest goals by each moment."""
        positions = np.zeros((len(times_ns), STATE_DIM))
        valid = np.ones(len(times_ns), np.bool_)
        for stream in self._streams:
            sent_ns, rows = stream.sorted()
            newest = np.searchsorted(sent_ns, times_ns, side="right") - 1
            positions[:, stream.columns] = rows[np.maximum(newest, 0)]
            valid &= newest >= 0
            if not stream.lasting:
                # Up to the next, if that is near; before a pause, no longer than others do.
                between = np.append(np.diff(sent_ns), NS_PER_S)
                near = between <= MAX_GAP * NS_PER_S
                until_ns = sent_ns + np.where(near, between, self._interval_ns)
                valid &= times_ns <= until_ns[np.maximum(newest, 0)]
        return InForce(positions, valid)

    def first_look_ns(self, not_before_ns: int) -> int:
        """Return a moment just after a goal was sent, by the latest of them all.

        Where goals come at the rate of the control steps or a multiple of it, none is then missed
        or seen twice because it came a little early or late.
        """
        first_ns = super().first_look_ns(not_before_ns)
        step_ns = self._rig.rates.dt * NS_PER_S
        interval = step_ns / max(round(step_ns / self._interval_ns), 1)
        turns = np.exp(2j * np.pi * ((self._times() - first_ns) / interval))
        mean = turns.mean()
        if abs(mean) < _IN_PACE:
            return first_ns
        late = np.angle(turns / mean).max()
        phase = float((np.angle(mean) + late) / (2 * np.pi)) % 1
        return first_ns + round(phase * interval) + _JUST_AFTER_NS

    @property
    def pace(self) -> str:
        """Their rate."""
        return f"{NS_PER_S / self._interval_ns:.3g} Hz"


class DriverGoals(_Streams):
    """Goals for Interbotix' drivers: JointGroupCommand and JointSingleCommand per arm."""

    what = "JointGroupCommand and JointSingleCommand"
    msgtypes = tuple(INTERBOTIX)

    def __init__(self, rig: RigSpec, namespace: str) -> None:
        """Expect the topics of the drivers of ``rig``, which must have one for each arm."""
        self._rig = rig
        self._arms: dict[str, int] = {}  # index of an arm by topic
        self._goals = [np.full(ARM_DIM, np.nan) for _ in rig.arms.values()]
        self._joints: list[_Stream] = []
        self._grippers: list[_Stream] = []
        for index, arm in enumerate(rig.arms.values()):
            assert arm.driver is not None
            group, single = (
                absolute(topic, namespace)
                for topic in (arm.driver.joint_group, arm.driver.joint_single)
            )
            self._arms |= {group: index, single: index}
            begin = index * ARM_DIM
            self._joints.append(_Stream(group, range(begin, begin + ARM_JOINTS)))
            # Many a node sends a gripper's goal only when it changes.
            self._grippers.append(_Stream(single, [begin + ARM_JOINTS], lasting=True))
        self._streams = [*self._joints, *self._grippers]
        super().__init__(self._arms)

    def _take(self, topic: str, received_ns: int, message: Any) -> bool:
        index = self._arms[topic]
        arm, goal = self._rig.arms.values()[index], self._goals[index]
        assert arm.driver is not None
        if hasattr(message.cmd, "__len__"):
            columns = {arm.driver.group: range(ARM_JOINTS), ALL_JOINTS: range(ARM_DIM)}.get(
                message.name, range(0)
            )
        else:
            columns = range(ARM_DIM)[slice(*_place(arm, message.name))]
        values = np.atleast_1d(np.asarray(message.cmd, np.float64))
        if not len(columns) or len(values) != len(columns) or not np.isfinite(values).all():
            return False
        goal[list(columns)] = values
        if columns[0] < ARM_JOINTS and np.isfinite(goal[:ARM_JOINTS]).all():
            self._joints[index].add(received_ns, goal[:ARM_JOINTS].copy())
        if columns[-1] == ARM_JOINTS:
            gripper = arm.gripper
            opening = (goal[ARM_JOINTS:] - gripper.command_closed) / gripper.command_stroke
            self._grippers[index].add(received_ns, opening)
        return True


def _place(arm: Arm, name: str) -> tuple[int, int]:
    """Return the entries of an arm that a joint is, as a slice; none for another's joint."""
    if name not in arm.names:
        return 0, 0
    index = arm.names.index(name)
    return index, index + 1


class LeaderStates(_Streams):
    """Joint states of the arms that an operator moves."""

    what = "joint states of the leaders"
    msgtypes = ("sensor_msgs/msg/JointState",)

    def __init__(self, rig: RigSpec, namespace: str) -> None:
        """Expect the leaders of ``rig``, which must have one for each arm."""
        self._rig = rig
        self._streams = []
        self._arms: dict[str, int] = {}
        for index, arm in enumerate(rig.arms.values()):
            assert arm.leader is not None
            topic = absolute(arm.leader.joint_states, namespace)
            self._arms[topic] = index
            self._streams.append(_Stream(topic, range(index * ARM_DIM, (index + 1) * ARM_DIM)))
        super().__init__(self._arms)

    def _take(self, topic: str, received_ns: int, message: Any) -> bool:
        index = self._arms[topic]
        arm = self._rig.arms.values()[index]
        leader = arm.leader
        assert leader is not None
        row = read_joints(arm.names, message)
        if row is None:
            return False
        row[ARM_JOINTS] = (row[ARM_JOINTS] - leader.closed) / (leader.open - leader.closed)
        self._streams[index].add(stamp_ns(message) or received_ns, row)
        return True


def read_joints(names: Sequence[str], message: Any) -> Array | None:
    """Return (7,) what a joint state tells of these joints; None where it is no reading.

    Raises:
        ObservationError: a joint is not in it.
    """
    by_name = dict(zip(message.name, message.position, strict=False))
    if missing := [name for name in names if name not in by_name]:
        raise ObservationError(
            f"joint '{missing[0]}' is not in the message; it has {', '.join(message.name)}"
        )
    row = np.array([by_name[name] for name in names], np.float64)
    failed = np.count_nonzero(np.abs(row[:ARM_JOINTS] - FAILED_READ) < FAILED_READ_TOLERANCE)
    return row if np.isfinite(row).all() and failed < FAILED_READ_JOINTS else None


def kinds_of(rig: RigSpec, namespace: str, where: object) -> list[Commands]:
    """Return the kinds of commands that a rig file names, the first of which counts."""
    arms = rig.arms.values()
    kinds: list[Commands] = [Trajectories(rig, namespace, where)]
    if all(arm.driver is not None for arm in arms):
        kinds.append(DriverGoals(rig, namespace))
    if all(arm.leader is not None for arm in arms):
        kinds.append(LeaderStates(rig, namespace))
    return kinds


def sample(commands: Commands, dt: float, first_ns: int, last_ns: int) -> Actions:
    """Return the actions between two moments at which every sensor was being recorded.

    Raises:
        RolloutError: there are none, or commands are too rare.
    """
    step_ns = round(dt * NS_PER_S)
    begin_ns = commands.first_look_ns(first_ns + step_ns)
    end_ns = min(last_ns + step_ns, commands.span_ns[1])
    due_ns = np.arange(begin_ns, end_ns + 1, step_ns, dtype=np.int64)
    positions, valid = commands.at(due_ns)
    kept = np.flatnonzero(valid)
    run = np.cumsum(np.diff(kept, prepend=kept[:1]) > 1, dtype=np.int64)
    return Actions(due_ns[kept] - step_ns, positions[kept], run)
