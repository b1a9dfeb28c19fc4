"""Interbotix' driver of one follower, with its known bugs; without ROS and without a bus.

Rebuilt from how interbotix_ros_core (humble, 6da9a7c) and interbotix_xs_driver (c9ce74e) behave.
What the servos do with their goals is the simulated rig's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.rig.arms import angle_from_finger, finger_from_angle
from cosmos_policy_ros.sim.rig import JointSample

ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
GRIPPER = "gripper"
GROUPS = {"arm": ARM, "all": (*ARM, GRIPPER)}
MOTORS = GROUPS["all"]
# In the servos' EEPROM [rad]; the gripper's motor turns all the way round.
LOWEST = (-3.1416, -1.8515, -1.7641, -3.1416, -1.8684, -3.1416, -3.1416)
HIGHEST = (3.1401, 1.2563, 1.6045, 3.1401, 2.2335, 3.1401, 3.1401)
# What the ALOHA motor file gives the driver, though datasets were made with another crank [m].
RADIUS, ROD = 0.0275, 0.035
NANOSECONDS = 2**32  # of the field that waits are computed from, unsigned


class UncaughtError(Exception):
    """An exception that the driver does not catch."""


@dataclass
class XsSdk:
    """One follower's driver.

    Attributes:
        goals: (7,) what the servos were last told [rad].
        modes: operating modes; the gripper's is not the one that ALOHA works in.
        log: what it complained of.
        reads_fail: whether the bus is broken for reading.
    """

    goals: NDArray[np.float64]
    modes: dict[str, str] = field(
        default_factory=lambda: {
            **dict.fromkeys(ARM, "position"),
            GRIPPER: "linear_position",
        }
    )
    log: list[str] = field(default_factory=list)
    _points: Sequence[tuple[Sequence[float], int]] = ()
    _next: int = 0
    _due_ns: int = 0

    def write_group(self, name: str, goals: Sequence[float]) -> None:
        """Write a group's goals at once.

        Raises:
            UncaughtError: there is no such group.
        """
        if name not in GROUPS:
            raise UncaughtError(f"std::out_of_range: group_map::at: {name}")
        if len(goals) != len(GROUPS[name]):
            self.log.append(f"{len(goals)} commands for the {len(GROUPS[name])} of '{name}'")
            return
        for motor, goal in zip(GROUPS[name], goals, strict=True):
            self._write(motor, goal)

    def write_single(self, name: str, goal: float) -> None:
        """Write one motor's goal."""
        if name in MOTORS:
            self._write(name, goal)
        else:
            self.log.append(f"invalid mode while commanding '{name}'")

    def set_mode(self, cmd_type: str, name: str, mode: str) -> None:
        """Change the operating mode of a group or of a motor, if there is one of that name."""
        known = GROUPS.get(name, ()) if cmd_type == "group" else (name,) * (name in MOTORS)
        for motor in known:
            self.modes[motor] = mode

    def play(self, points: Sequence[tuple[Sequence[float], int]], now_ns: int) -> None:
        """Begin a trajectory of the arm: goals, ns from its start; the first is never written."""
        if self._points:
            self.log.append("trajectory rejected since joints are still moving")
        elif len(points) < 2:
            self.log.append("trajectory has fewer than 2 points")
        else:
            self._points, self._next, self._due_ns = points, 1, now_ns

    def advance(self, now_ns: int) -> None:
        """Write what is due of the trajectory.

        The wait for the next point is the difference of the nanoseconds alone: where a second
        begins between two points it is 3 to 4 s.
        """
        while self._points and now_ns >= self._due_ns:
            if self._next == len(self._points):
                self._points = ()
                return
            goals, here = self._points[self._next]
            before = self._points[self._next - 1][1]
            second = 1_000_000_000
            self._due_ns += (here % second - before % second) % NANOSECONDS
            self.write_group("arm", goals)
            self._next += 1

    def joint_states(self, sample: JointSample, *, reads_fail: bool = False) -> JointSample:
        """Return what it publishes of an arm that stands so; a failed read is published too."""
        motors = [-np.pi] * len(MOTORS) if reads_fail else list(sample.positions[: len(MOTORS)])
        finger = finger_from_angle(motors[-1], RADIUS, ROD)
        return replace(sample, positions=(*motors, finger, -finger))

    def _write(self, motor: str, goal: float) -> None:
        if self.modes[motor] == "linear_position":  # metres between the fingers
            half = min(max(goal / 2, ROD - RADIUS + 1e-6), ROD + RADIUS - 1e-6)
            goal = angle_from_finger(half, RADIUS, ROD)
        index = MOTORS.index(motor)
        # The servo keeps what it has, and the driver hears nothing of it.
        if LOWEST[index] <= goal <= HIGHEST[index]:
            self.goals[index] = goal
