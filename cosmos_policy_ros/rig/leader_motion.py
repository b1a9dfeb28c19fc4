"""Leaders that are moved by their own torque, to where their followers are.

Slowly, along one smooth path, and stopped where a hand holds them back. They then stay under
torque, until a person has them in hand and says so. A state machine without ROS or threads.
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES
from cosmos_policy_ros.rig.chunk import MINIMUM_JERK_PEAK, minimum_jerk
from cosmos_policy_ros.rig.spec import RigSpec

LONGEST_STEP = 0.04  # s of the path in one tick; two ticks at the usual rate
HELD_BACK = 0.25  # rad between a leader's joint and its goal; at these speeds a servo lags a tenth
SUSTAINED = 0.3  # s of that


class Torque(Enum):
    """What the leaders' servos do."""

    OFF = "off"
    CHANGING = "changing"  # the drivers have been asked
    MOVING = "moving"
    HOLDING = "holding"


class LeaderMotion:
    """One motion of both leaders; poses are (14,), in the followers' policy units.

    Attributes:
        torque: see :class:`Torque`.
        problem: why they were stopped before they were there; empty otherwise.
    """

    def __init__(self, rig: RigSpec) -> None:
        """Begin without torque."""
        self.torque, self.problem = Torque.OFF, ""
        self._names, self._speed = rig.joint_names, rig.teleoperation.leader_speed
        self._start = self._goal = self._sent = np.zeros(0)
        self._ticked_ns = self._near_ns = 0
        self._seconds = self._elapsed = 0.0  # of the whole path, and of it so far

    def begin(self, leaders: Array, followers: Array, now_ns: int) -> None:
        """Move the leaders to their followers, but for the grippers, which fingers are in."""
        self.torque, self.problem = Torque.MOVING, ""
        self._start = self._sent = leaders.copy()
        self._goal = followers.copy()
        self._goal[GRIPPER_INDICES] = leaders[GRIPPER_INDICES]
        self._seconds = MINIMUM_JERK_PEAK * float(np.abs(self._goal - leaders).max()) / self._speed
        self._ticked_ns = self._near_ns = now_ns
        self._elapsed = 0.0

    def tick(self, leaders: Array | None, now_ns: int) -> Array | None:
        """Return where they are told to be at this moment, None while they are not moved.

        Args:
            leaders: where they are, None where that is not known.
            now_ns: now.
        """
        # A loop that was kept waiting goes on where it was: servos would make up for it at once.
        waited, self._ticked_ns = (now_ns - self._ticked_ns) / NS_PER_S, now_ns
        if self.torque is not Torque.MOVING:
            return None
        if leaders is None:
            self.stop("a leader is silent")
            return self._sent
        behind = np.abs(leaders - self._sent)
        behind[GRIPPER_INDICES] = 0.0
        joint = int(np.argmax(behind))
        if behind[joint] <= HELD_BACK:
            self._near_ns = now_ns
        elif now_ns - self._near_ns > SUSTAINED * NS_PER_S:
            self.stop(f"leader {self._names[joint]} is {behind[joint]:.2f} rad behind: is it held?")
            self._sent = leaders.copy()  # it gives way
            return self._sent
        self._elapsed += min(waited, LONGEST_STEP)
        share = min(self._elapsed / self._seconds, 1.0) if self._seconds > 0 else 1.0
        way = minimum_jerk(share)
        self._sent = self._start + way * (self._goal - self._start)
        if share == 1.0:
            self.torque = Torque.HOLDING
        return self._sent

    def stop(self, problem: str) -> None:
        """Stay where they were told to be, under torque."""
        if self.torque is Torque.MOVING:
            self.torque, self.problem = Torque.HOLDING, problem
