"""What an arm is told tick by tick, when its driver knows no trajectories.

A stock ALOHA's driver writes a goal to its servos the moment it arrives and interpolates nothing:
all smoothness comes from the stream of goals (facts: aloha-rig.md, section 3.2). Here trajectories
become such a stream, always from the last commanded pose, never faster than the joints' limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import ARM_DIM, ARM_JOINTS, Arm
from cosmos_policy_ros.rig.command_check import CommandCheck
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryController, TrajectoryPoint

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
        """Whether nothing is sent: somebody else may be moving the arm."""
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
        """Fall silent; the servos hold their last goal, and whoever wants may move the arm."""
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
