"""Both arms' streams of goals, and everything that must hold them.

A state machine without ROS, threads or clocks of its own, for drivers that know no trajectories.
Whoever falls silent, the policy node or an arm, both arms brake, and what comes after is refused
until the policy node says that it is disarmed: nothing goes on by itself after a fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.errors import ObservationError, RigError
from cosmos_policy_ros.rig.sources import read_arm
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.stream import NS, ArmStream
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryPoint

Array = NDArray[np.float64]


@dataclass
class StreamedArm:
    """One arm: what it was told and what it said.

    Attributes:
        stream: its goals.
        accepted, refused: trajectories.
        measured: (7,) where it stands, in the driver's units; None before its first joint state.
        heard_ns: when that was.
        complaint: what was wrong with its last joint state; empty if nothing was.
    """

    stream: ArmStream
    accepted: int = 0
    refused: int = 0
    measured: Array | None = None
    heard_ns: int = 0
    complaint: str = ""


class Streamer:
    """Decides tick by tick what the arms are told.

    Attributes:
        arms: by side.
        armed: what the policy node last said.
        reason: why the arms are held and trajectories refused; empty while all is well.
        unready: why no trajectory is taken though nothing is held, set by whoever knows the
            drivers; empty when they are ready.
        refusal: why the last trajectory was refused; empty if none was.
    """

    def __init__(self, rig: RigSpec) -> None:
        """Begin silent and disarmed."""
        self._rig, self._limits = rig, rig.stream
        self.arms = {
            side: StreamedArm(ArmStream(arm, rig.stream.rate)) for side, arm in rig.arms.items()
        }
        self.armed = False
        self.reason = self.unready = self.refusal = ""
        self._policy_ns = 0

    @property
    def resting(self) -> bool:
        """Whether neither arm is being moved."""
        return all(arm.stream.resting for arm in self.arms.values())

    def hear_policy(self, armed: bool, now_ns: int) -> None:
        """Note that the policy node is alive; once it is disarmed, what held the arms is over."""
        self.armed, self._policy_ns = armed, now_ns
        if not armed:
            self.reason = ""

    def hear_arm(
        self, side: str, names: Sequence[str], positions: Sequence[float], now_ns: int
    ) -> None:
        """Note a joint state; one that is not to be trusted counts as silence."""
        arm, spec = self.arms[side], self._rig.arms[side]
        try:
            state = read_arm(spec, names, positions)
        except ObservationError as error:
            arm.complaint = str(error)
            return
        arm.measured, arm.heard_ns, arm.complaint = spec.command(state[None])[0], now_ns, ""

    def accept(
        self,
        side: str,
        names: Sequence[str],
        points: Sequence[TrajectoryPoint],
        stamp_ns: int,
        now_ns: int,
    ) -> None:
        """Follow a new trajectory instead of the one under way, if there is one.

        Args:
            side: left or right.
            names: of the arm's joints, in any order.
            points: in the driver's units, as :meth:`TrajectoryController.accept` takes them.
            stamp_ns: when it starts, on the ticks' clock; 0 is now.
            now_ns: the ticks' clock.

        Raises:
            RigError: refused; nothing changes.
        """
        arm = self.arms[side]
        try:
            self._check_ready(side, arm)
            assert arm.measured is not None
            arm.stream.accept(names, points, stamp_ns, now_ns, arm.measured)
        except RigError as error:
            arm.refused += 1
            self.refusal = f"{side}: {error}"
            raise
        arm.accepted += 1

    def hold(self, reason: str) -> None:
        """Brake both arms, and refuse what comes until the policy node is disarmed."""
        self.reason = reason
        for arm in self.arms.values():
            arm.stream.brake(self._limits.brake_seconds)

    def tick(self, now_ns: int) -> dict[str, Array]:
        """Return the (7,) goals of this moment, of the arms that are not left alone."""
        if self.armed and not self.reason and (silence := self._silence(now_ns)):
            self.hold(silence)
        if not self.armed and self.resting:
            for arm in self.arms.values():
                arm.stream.release()
        goals = {side: arm.stream.tick(now_ns) for side, arm in self.arms.items()}
        return {side: goal for side, goal in goals.items() if goal is not None}

    def _check_ready(self, side: str, arm: StreamedArm) -> None:
        if self.reason:
            raise RigError(f"the arms are held: {self.reason}; disarm the policy node, then arm it")
        if self.unready:
            raise RigError(self.unready)
        if not self.armed:
            raise RigError("the policy node is disarmed, or has not been heard of")
        if arm.measured is None:
            tail = arm.complaint or "is its driver running?"
            raise RigError(f"{self._rig.arms[side].joint_states} is silent: {tail}")

    def _silence(self, now_ns: int) -> str:
        """Return who should have been heard of and was not."""
        limits = self._limits
        age = (now_ns - self._policy_ns) / NS
        if age > limits.heartbeat_timeout:
            return f"the policy node was last heard of {age:.2f} s ago"
        for side, arm in self.arms.items():
            age = (now_ns - arm.heard_ns) / NS
            if not arm.stream.resting and age > limits.arm_silence:
                topic = self._rig.arms[side].joint_states
                tail = f": {arm.complaint}" if arm.complaint else ""
                return f"{topic}: last good state is {age:.2f} s old{tail}"
        return ""
