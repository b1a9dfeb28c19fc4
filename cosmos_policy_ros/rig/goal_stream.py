"""Goals for drivers that take no trajectories, a stream per arm, and everything that holds them.

A stock ALOHA's driver writes a goal to its servos the moment it arrives and interpolates nothing:
all smoothness comes from the stream, always from the last commanded pose, never faster than the
joints' limits. If the policy node or an arm falls silent, or something else than the policy node
commands an arm, both arms brake, and what comes after is refused until an operator disarms.

A state machine without ROS or threads. Its clock is one that is never set.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cosmos_policy_ros.core.errors import ObservationError, RigError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import ARM_DIM, ARM_JOINTS, Arm
from cosmos_policy_ros.rig.chunk import BRAKE
from cosmos_policy_ros.rig.command_check import CommandCheck
from cosmos_policy_ros.rig.observation import read_arm
from cosmos_policy_ros.rig.ownership import OVERTAKEN, Ownership, describe_stranger
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.trajectory_controller import (
    TrajectoryController,
    TrajectoryPoint,
    check_start,
)

LATE = 1.5  # periods between two ticks; what is more is counted
# Periods of its path that an arm may be moved on in one tick. A stream that was kept waiting for
# longer goes on where it was, later than planned, rather than cut the corner to where it should be.
CATCH_UP = 2


@dataclass
class StreamCounts:
    """How steady a stream has been.

    Attributes:
        ticks: goals sent.
        late: ticks that came more than LATE periods after the one before, while the arm moved.
        latest: the longest such wait [s].
        slipped: by how much paths were followed later than planned, in all [s].
        limited: goals that were held back to the joints' speed limits.
    """

    ticks: int = 0
    late: int = 0
    latest: float = 0.0
    slipped: float = 0.0
    limited: int = 0


class ArmStream:
    """One arm's goals, in the driver's units.

    Attributes:
        counts: how steady it has been.
        wrong: why the arm rests where it is though its path goes on; empty if it does not.
    """

    def __init__(self, arm: Arm, rate: float, check: CommandCheck) -> None:
        """Begin silent.

        Args:
            arm: names and speed limits.
            rate: ticks per second.
            check: of every goal, in the driver's units.
        """
        self.counts, self.wrong, self._check = StreamCounts(), "", check
        self._names = arm.names
        gripper_speed = arm.gripper.max_velocity * abs(arm.gripper.command_stroke)
        self._step = np.array([*arm.max_velocity, gripper_speed]) / rate
        self._period_ns = round(NS_PER_S / rate)
        self._path: TrajectoryController | None = None
        self._sent = np.zeros(ARM_DIM)
        self._ticked_ns = 0
        self._path_ns = 0  # where on the path's clock the last goal was
        self._braking = (0, 0)  # ns left and ns in all of a brake; no time in all: no brake

    @property
    def silent(self) -> bool:
        """Whether nothing is sent: something else may be moving the arm."""
        return self._path is None

    @property
    def goal(self) -> Array:
        """The last (7,) goal."""
        return self._sent

    @property
    def resting(self) -> bool:
        """Whether every further goal is the last one."""
        path = self._path
        if path is None:
            return True
        return self._path_ns >= path.end_ns and bool(
            (path.sample(self._path_ns) == self._sent).all()
        )

    def accept(
        self,
        joint_names: Sequence[str],
        points: Sequence[TrajectoryPoint],
        stamp_ns: int,
        now_ns: int,
        measured: Array,
    ) -> None:
        """Follow a new trajectory from the last goal on; on an error the one under way goes on.

        A silent stream begins at ``measured`` (7,), where the arm stands. Everything else is as in
        :meth:`TrajectoryController.accept`, on the ticks' clock; so is what it raises.
        """
        self.wrong = ""
        if self._path is not None:
            planned_ns = stamp_ns - now_ns + self._path_ns if stamp_ns else 0
            self._path.accept(joint_names, points, planned_ns, self._path_ns)
            self._braking = (0, 0)
            return
        path = TrajectoryController(self._names, measured)
        path.accept(joint_names, points, stamp_ns, now_ns)
        self._path, self._sent = path, measured.copy()
        self._ticked_ns = self._path_ns = now_ns

    def brake(self, seconds: float) -> None:
        """Slow down along the path to rest within ``seconds``; at 0 rest at the last goal."""
        if self._path is None:
            return
        total = round(seconds * NS_PER_S)
        if total:
            self._braking = (total, total)
        else:
            self._rest()

    def release(self) -> None:
        """Fall silent; the servos hold their last goal, and anything else may move the arm."""
        self._path = None

    def tick(self, now_ns: int) -> Array | None:
        """Return the (7,) goal of this moment, None while silent."""
        if self._path is None:
            return None
        self._advance(now_ns, self.resting)
        target = self._path.sample(self._path_ns)
        off = np.abs(target - self._sent) / self._step
        # An arm's joints are held back alike, so that it stays on the straight way; its gripper,
        # whose targets lead the fingers by far, does not hold them back.
        held_back = np.array([off[:ARM_JOINTS].max()] * ARM_JOINTS + [off[ARM_JOINTS]])
        if (held_back > 1.0).any():
            self.counts.limited += 1
            target = self._sent + (target - self._sent) / np.maximum(held_back, 1.0)
        if wrong := self._check.misplaced(target, self._sent):
            self.wrong, target = wrong, self._sent
            self._rest()
        self._sent = target
        self.counts.ticks += 1
        left, total = self._braking
        if total and not left:
            self._rest()
        return target

    def _rest(self) -> None:
        assert self._path is not None
        self._path.hold(self._sent)
        self._braking = (0, 0)

    def _advance(self, now_ns: int, resting: bool) -> None:
        waited_ns = max(now_ns - self._ticked_ns, 0)
        moved_on_ns = min(waited_ns, CATCH_UP * self._period_ns)
        self._ticked_ns = now_ns
        self._path_ns += self._slowed(moved_on_ns)
        if resting:
            return
        self.counts.slipped += (waited_ns - moved_on_ns) / NS_PER_S
        if waited_ns > LATE * self._period_ns:
            self.counts.late += 1
            self.counts.latest = max(self.counts.latest, waited_ns / NS_PER_S)

    def _slowed(self, passed_ns: int) -> int:
        """Return how far a brake lets the arm move on along its path meanwhile."""
        left, total = self._braking
        if not total:
            return passed_ns
        then = max(left - passed_ns, 0)
        self._braking = (then, total)
        # The pace falls linearly from 1 to 0: the way is the area under it.
        return round((left**2 - then**2) / (2 * total))


class _Trajectory(NamedTuple):
    chunk_id: str
    names: Sequence[str]
    points: Sequence[TrajectoryPoint]
    start_ns: int
    received_ns: int


@dataclass
class StreamedArm:
    """One arm: what it was told and what it said.

    Attributes:
        stream: its goals.
        check: of what it is sent, in the driver's units.
        pending: trajectories that have not been announced yet.
        chunk_id: of the trajectory that it was given last.
        accepted, refused: trajectories.
        measured: (7,) where it stands, in the driver's units; None before its first joint state.
        heard_ns: when that was.
        problem: what was wrong with its last joint state; empty if nothing was.
    """

    stream: ArmStream
    check: CommandCheck
    pending: list[_Trajectory] = field(default_factory=list)
    chunk_id: str = ""
    accepted: int = 0
    refused: int = 0
    measured: Array | None = None
    heard_ns: int = 0
    problem: str = ""


class GoalStreamer:
    """Decides tick by tick what the arms are told.

    Attributes:
        arms: by side.
        ownership: whose trajectories are taken.
        reason: why the arms are held and trajectories refused; empty while all is well.
        unready: why no trajectory is taken though nothing is held, set by the owner of the
            drivers; empty when they are ready.
        refusal: why the last trajectory was refused; empty if none was.
    """

    def __init__(self, rig: RigSpec) -> None:
        """Begin silent and disarmed."""
        self._rig, self._limits = rig, rig.stream
        self.arms = {}
        for (side, arm), output in zip(rig.arms.items(), rig.outputs, strict=True):
            check = CommandCheck.of_output(rig, output)
            self.arms[side] = StreamedArm(ArmStream(arm, rig.stream.rate, check), check)
        self.ownership = Ownership(rig.stream.heartbeat_timeout)
        self.reason = self.unready = self.refusal = ""

    @property
    def resting(self) -> bool:
        """Whether neither arm is being moved."""
        return all(arm.stream.resting for arm in self.arms.values())

    @property
    def braking(self) -> bool:
        """Whether what is under way ends at rest as soon as the policy node wants it to."""
        return all(a.stream.resting or a.chunk_id.endswith(BRAKE) for a in self.arms.values())

    @property
    def armed(self) -> bool:
        """Whether a policy node has armed the arms."""
        return self.ownership.armed

    def on_policy_state(
        self, identity: str, armed: bool, run_id: str, announced: tuple[int, str], now_ns: int
    ) -> None:
        """Note a policy node's state; see :meth:`Ownership.on_state`."""
        if self.ownership.on_state(identity, armed, run_id, announced, now_ns):
            self.reason = ""
            if not self.armed and not self.braking:
                self._brake()
        for side, arm in self.arms.items():
            for each in [t for t in arm.pending if self.ownership.take(side, t.chunk_id)]:
                arm.pending.remove(each)
                with suppress(RigError):  # it is in ``refusal``; the others are followed
                    self._follow(side, each)

    def on_joint_state(
        self, side: str, names: Sequence[str], positions: Sequence[float], now_ns: int
    ) -> None:
        """Note a joint state; one that is not to be trusted counts as silence."""
        arm, spec = self.arms[side], self._rig.arms[side]
        try:
            state = read_arm(spec, names, positions)
        except ObservationError as error:
            arm.problem = str(error)
            return
        arm.measured, arm.heard_ns, arm.problem = spec.command(state[None])[0], now_ns, ""

    def on_trajectory(
        self,
        side: str,
        chunk_id: str,
        names: Sequence[str],
        points: Sequence[TrajectoryPoint],
        start_ns: int,
        now_ns: int,
    ) -> None:
        """Follow a trajectory of the owner's instead of the one under way, if there is one.

        Args:
            side: left or right.
            chunk_id: of the trajectory.
            names: of the arm's joints, in any order.
            points: in the driver's units, as :meth:`TrajectoryController.accept` takes them.
            start_ns: when it starts; 0 is now.
            now_ns: now.

        Raises:
            RigError: refused; nothing changes, or if it is a stranger's, the arms are held.
        """
        trajectory = _Trajectory(chunk_id, names, points, start_ns, now_ns)
        if self.ownership.take(side, chunk_id):
            self._follow(side, trajectory)
        elif self.ownership.armed and not self.ownership.may_come(chunk_id):
            why = self._turn_away(side, trajectory)
            self._refuse(side, why)
            raise RigError(why)
        else:
            self.arms[side].pending.append(trajectory)

    def hold(self, reason: str) -> None:
        """Brake both arms, and refuse what comes until the policy node is disarmed."""
        self.reason = reason
        self._brake()

    def _brake(self) -> None:
        for arm in self.arms.values():
            arm.stream.brake(self._limits.brake_seconds)

    def tick(self, now_ns: int) -> dict[str, Array]:
        """Return the (7,) goals of this moment, of the arms that are not left alone."""
        self._refuse_unannounced(now_ns)
        if self.armed and not self.reason and (silence := self._silence(now_ns)):
            self.hold(silence)
        if not self.armed and self.resting:
            for arm in self.arms.values():
                arm.stream.release()
        goals = {side: arm.stream.tick(now_ns) for side, arm in self.arms.items()}
        for side, arm in self.arms.items():
            if arm.stream.wrong and not self.reason:
                self.hold(f"the {side} arm's next goal was wrong: {arm.stream.wrong}")
        return {side: goal for side, goal in goals.items() if goal is not None}

    def _refuse_unannounced(self, now_ns: int) -> None:
        for side, arm in self.arms.items():
            late = [t for t in arm.pending if now_ns - t.received_ns > OVERTAKEN * NS_PER_S]
            arm.pending = arm.pending[len(late) :]
            for each in late:
                self._refuse(side, self._turn_away(side, each))

    def _turn_away(self, side: str, stranger: _Trajectory) -> str:
        """Hold armed arms against a trajectory that is not the owner's; return why it is refused.

        Disarmed arms may be someone else's; then it is only refused.
        """
        if not self.armed:
            return "the policy node is disarmed, or has not been heard of"
        reason = describe_stranger(stranger.chunk_id, self._rig.arms[side].trajectory)
        if not self.reason:
            self.hold(reason)
        return reason

    def _refuse(self, side: str, why: str) -> None:
        self.arms[side].refused += 1
        self.refusal = f"{side}: {why}"

    def _follow(self, side: str, trajectory: _Trajectory) -> None:
        _, names, points, start_ns, now_ns = trajectory
        arm = self.arms[side]
        try:
            self._check_ready(side, arm, trajectory.chunk_id)
            assert arm.measured is not None
            check_start(start_ns, now_ns)
            self._check_path(side, arm, trajectory)
            arm.stream.accept(names, points, start_ns, now_ns, arm.measured)
        except RigError as error:
            self._refuse(side, str(error))
            raise
        arm.accepted, arm.chunk_id = arm.accepted + 1, trajectory.chunk_id

    def _check_path(self, side: str, arm: StreamedArm, trajectory: _Trajectory) -> None:
        """Refuse a path that leaves the limits, or that an arm at rest cannot follow from there.

        A moving arm is led over to its new path at the joints' speed, however late it is.
        """
        assert arm.measured is not None
        wanted = self._rig.arms[side].names
        TrajectoryController(wanted, np.zeros(len(wanted))).accept(
            trajectory.names, trajectory.points, 0, 0
        )
        order = [list(trajectory.names).index(name) for name in wanted]
        rows = np.array([point.positions for point in trajectory.points])[:, order]
        velocities = [point.velocities or (0.0,) * len(order) for point in trajectory.points]
        seconds = np.array([point.time_from_start_ns for point in trajectory.points]) / NS_PER_S
        wrong = arm.check.problem(
            rows,
            seconds,
            arm.measured if arm.stream.silent else arm.stream.goal,
            velocities=np.array(velocities)[:, order],
            measured=arm.measured if arm.stream.resting else None,
            led_over=not arm.stream.resting,
        )
        if wrong:
            raise RigError(wrong)

    def _check_ready(self, side: str, arm: StreamedArm, chunk_id: str) -> None:
        if self.reason:
            raise RigError(f"the arms are held: {self.reason}; disarm the policy node, then arm it")
        if self.unready:
            raise RigError(self.unready)
        # Disarming sends a brake first, which may come last.
        if not self.armed and not (chunk_id.endswith(BRAKE) and not arm.stream.silent):
            raise RigError("the policy node is disarmed, or has not been heard of")
        if arm.measured is None:
            tail = arm.problem or "is its driver running?"
            raise RigError(f"{self._rig.arms[side].joint_states} is silent: {tail}")

    def _silence(self, now_ns: int) -> str:
        """Return who should have been heard of and was not."""
        limits = self._limits
        age = self.ownership.age(now_ns)
        if age > limits.heartbeat_timeout:
            return f"the policy node was last heard of {age:.2f} s ago"
        for side, arm in self.arms.items():
            age = (now_ns - arm.heard_ns) / NS_PER_S
            if not arm.stream.resting and age > limits.arm_silence:
                topic = self._rig.arms[side].joint_states
                tail = f": {arm.problem}" if arm.problem else ""
                return f"{topic}: last good state is {age:.2f} s old{tail}"
        return ""
