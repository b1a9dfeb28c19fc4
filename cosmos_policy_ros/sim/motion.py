"""From a list of moves to one row of joint targets per control period, smooth and within speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.sim.kinematics import ArmKinematics, Pose, between
from cosmos_policy_ros.sim.scene import ARMS

_SPEED = 2.0
"""Planned peak joint speed [rad/s]; the motors' limit is 3.14, the rest is margin for the velocity
estimates made between rows."""
_LINE_PIECES = 16
"""Inverse solutions along a straight line; between them joints are interpolated."""
_STRETCH = 1.05
"""Factor by which a move that is too fast is made longer, until it is not."""

_ARM_COLUMNS = {"left": slice(0, 6), "right": slice(7, 13)}
_GRIPPER_COLUMNS = {"left": 6, "right": 13}


@dataclass(frozen=True)
class Move:
    """What one arm does in one phase. None leaves that part as it is.

    Attributes:
        to: where the gripper goes.
        straight: on a line through space; otherwise the shortest way for the joints.
        gripper: motor angle [rad] the gripper goes to.
    """

    to: Pose | None = None
    straight: bool = False
    gripper: float | None = None


@dataclass(frozen=True)
class Phase:
    """Moves of one or both arms that start and end at rest together.

    Attributes:
        moves: by arm.
        seconds: least duration.
    """

    moves: Mapping[str, Move]
    seconds: float = 0.4


class MotionPlanner:
    """Strings phases together.

    Rows are (14,): left arm then right arm, six joints and the gripper's motor angle each [rad].
    """

    def __init__(self, start: NDArray[np.float64], dt: float) -> None:
        self._now = np.array(start, dtype=np.float64)
        self._dt = dt
        self._arms = {arm: ArmKinematics(arm) for arm in ARMS}
        self._rows: list[NDArray[np.float64]] = []

    def add(self, phase: Phase) -> None:
        """Append one phase.

        Raises:
            ObservationError: an arm cannot reach its pose.
        """
        path = self._path(phase)
        seconds = phase.seconds
        while True:
            rows = _timed(path, max(1, round(seconds / self._dt)))
            if np.abs(np.diff(np.vstack([path[:1], rows]), axis=0)).max() <= _SPEED * self._dt:
                break
            seconds *= _STRETCH
        self._rows.extend(rows)
        self._now = path[-1]

    def rows(self) -> NDArray[np.float64]:
        """Return all rows so far, (N, 14), the first one ``dt`` after the start."""
        return np.array(self._rows)

    def _path(self, phase: Phase) -> NDArray[np.float64]:
        """Return (pieces + 1, 14) points equally spaced in the phase's progress."""
        fractions = np.linspace(0.0, 1.0, _LINE_PIECES + 1)
        path = np.repeat(self._now[None], len(fractions), axis=0)
        for arm, move in phase.moves.items():
            columns, gripper = _ARM_COLUMNS[arm], _GRIPPER_COLUMNS[arm]
            if move.to is not None:
                path[:, columns] = self._joints(arm, move.to, move.straight, fractions)
            if move.gripper is not None:
                path[:, gripper] += fractions * (move.gripper - self._now[gripper])
        return path

    def _joints(
        self, arm: str, to: Pose, straight: bool, fractions: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        kinematics, joints = self._arms[arm], self._now[_ARM_COLUMNS[arm]]
        if not straight:
            return joints + fractions[:, None] * (kinematics.reach(to) - joints)
        start = kinematics.forward(joints)
        way = [joints]
        for fraction in fractions[1:]:
            way.append(kinematics.inverse(between(start, to, float(fraction)), way[-1]))
        return np.array(way)


def _timed(path: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return ``count`` rows that follow the start of ``path`` to its end with minimum jerk."""
    t = np.arange(1, count + 1) / count
    progress = t**3 * (10.0 - 15.0 * t + 6.0 * t**2) * (len(path) - 1)
    piece = np.minimum(progress.astype(np.int64), len(path) - 2)
    rest = (progress - piece)[:, None]
    return np.asarray((1.0 - rest) * path[piece] + rest * path[piece + 1])
