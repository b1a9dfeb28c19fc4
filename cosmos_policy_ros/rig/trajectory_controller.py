"""The arm side of a ``JointTrajectory``: what ros2_control's joint_trajectory_controller does.

Rebuilt from the behaviour of the Humble release (2.54) with ``open_loop_control: true``: a new
trajectory drops the old one at once, and the way to its first point starts at the last commanded
state, not at the measured one.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import RigError


@dataclass(frozen=True)
class TrajectoryPoint:
    """One point of a trajectory, joints in the order of the trajectory's names.

    Attributes:
        positions: one per joint [rad].
        velocities: one per joint [rad/s], or empty.
        time_from_start_ns: nanoseconds after the trajectory's start.
        effort: must be empty; there so that a message that fills it is refused and not misread.
    """

    positions: tuple[float, ...]
    velocities: tuple[float, ...]
    time_from_start_ns: int
    effort: tuple[float, ...] = ()


START_WITHIN = 0.5  # s from now, in either direction, in which a stamped trajectory may start


def check_start(start_ns: int, now_ns: int) -> None:
    """Refuse a trajectory whose start, 0 for now, is far from now.

    Raises:
        RigError: names the distance and the limit.
    """
    ahead = (start_ns - now_ns) / 1e9
    if start_ns and abs(ahead) > START_WITHIN:
        raise RigError(
            f"trajectory starts {ahead:+.3f} s from now (limit {START_WITHIN:g} s either way): do "
            "the clocks agree?"
        )


class TrajectoryController:
    """Turns trajectories into one position target per joint at any moment."""

    def __init__(self, joint_names: Sequence[str], positions: NDArray[np.float64]) -> None:
        self.joint_names = tuple(joint_names)
        self.hold(positions)

    def hold(self, positions: NDArray[np.float64]) -> None:
        """Forget any trajectory and command ``positions`` [rad] from now on."""
        self._times = [0]
        self._segments = np.empty((0, 4, len(self.joint_names)))
        self._last = np.array(positions, dtype=np.float64)

    @property
    def end_ns(self) -> int:
        """When the last point is due; after it that point is held."""
        return self._times[-1]

    def accept(
        self,
        joint_names: Sequence[str],
        points: Sequence[TrajectoryPoint],
        stamp_ns: int,
        now_ns: int,
    ) -> None:
        """Follow a new trajectory; on an error the one under way goes on.

        Args:
            joint_names: the controller's joints, all of them, in any order.
            points: strictly increasing in time; a first point at 0 is a step to it.
            stamp_ns: when the trajectory starts; 0 is now.
            now_ns: the moment of acceptance, same clock as ``stamp_ns``.

        Raises:
            RigError: the controller refuses it. As the real one, except that NaN and infinity,
                which the real one would execute, are refused too.
        """
        self._check_names(joint_names)
        self._check_points(points)
        start_ns = stamp_ns or now_ns
        end_ns = start_ns + points[-1].time_from_start_ns
        if stamp_ns != 0 and end_ns < now_ns:
            raise RigError(
                f"trajectory ended {(now_ns - end_ns) / 1e9:.3f} s ago (stamp {stamp_ns} ns, now "
                f"{now_ns} ns); send stamp 0 to start on arrival, or check that the clocks agree"
            )
        order = [list(joint_names).index(name) for name in self.joint_names]
        times = [start_ns + point.time_from_start_ns for point in points]
        positions = np.array([point.positions for point in points])[:, order]
        velocities = np.array(
            [point.velocities or (np.nan,) * len(order) for point in points], dtype=np.float64
        )[:, order]
        if now_ns < times[0]:
            position, velocity = self.state(now_ns)
            times.insert(0, now_ns)
            positions = np.vstack([position, positions])
            velocities = np.vstack([velocity, velocities])
        self._times = times
        self._segments = _segments(np.array(times), positions, velocities)
        self._last = positions[-1]

    def sample(self, now_ns: int) -> NDArray[np.float64]:
        """Return the commanded positions [rad] at ``now_ns``, in the controller's joint order."""
        return self.state(now_ns)[0]

    def state(self, now_ns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the commanded positions [rad] and velocities [rad/s] at ``now_ns``."""
        if now_ns >= self._times[-1]:
            return self._last.copy(), np.zeros(len(self._last))
        # Before its first point a cubic is no path: it leaves every limit within seconds.
        now_ns = max(now_ns, self._times[0])
        segment = bisect.bisect_right(self._times, now_ns) - 1
        a, b, c, d = self._segments[segment]
        t = (now_ns - self._times[segment]) / 1e9
        return a + t * (b + t * (c + t * d)), b + t * (2.0 * c + t * 3.0 * d)

    def _check_names(self, joint_names: Sequence[str]) -> None:
        for name in joint_names:
            if name not in self.joint_names:
                raise RigError(
                    f"trajectory names unknown joint '{name}'{did_you_mean(name, self.joint_names)}"
                )
        missing = [name for name in self.joint_names if name not in joint_names]
        if missing:
            raise RigError(
                f"trajectory lacks joint(s) {', '.join(missing)}; all {len(self.joint_names)} of "
                f"the controller's joints are needed: {', '.join(self.joint_names)}"
            )
        if len(joint_names) != len(self.joint_names):
            raise RigError(
                f"trajectory names a joint twice: {', '.join(joint_names)}; each of the "
                f"controller's {len(self.joint_names)} is needed once"
            )

    def _check_points(self, points: Sequence[TrajectoryPoint]) -> None:
        if not points:
            raise RigError("trajectory has no points; at least one is needed")
        previous = None
        for index, point in enumerate(points):
            self._check_point(index, point)
            if previous is not None and point.time_from_start_ns <= previous:
                raise RigError(
                    f"trajectory point {index} is at {point.time_from_start_ns / 1e9:.3f} s, not "
                    f"after point {index - 1} at {previous / 1e9:.3f} s; time_from_start must grow "
                    "strictly"
                )
            previous = point.time_from_start_ns

    def _check_point(self, index: int, point: TrajectoryPoint) -> None:
        expected = len(self.joint_names)
        if len(point.positions) != expected:
            raise RigError(
                f"trajectory point {index} has {len(point.positions)} positions, {expected} needed"
            )
        if len(point.velocities) not in (0, expected):
            raise RigError(
                f"trajectory point {index} has {len(point.velocities)} velocities, 0 or {expected} "
                "needed"
            )
        if point.effort:
            raise RigError(
                f"trajectory point {index} has {len(point.effort)} efforts; this position "
                "controller needs that field empty"
            )
        if not np.isfinite([*point.positions, *point.velocities]).all():
            raise RigError(
                f"trajectory point {index} holds NaN or infinity: positions {point.positions}, "
                f"velocities {point.velocities}"
            )


def _segments(
    times_ns: NDArray[np.int64], positions: NDArray[np.float64], velocities: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (segments, 4, joints) polynomial coefficients in seconds, constant term first.

    Cubic where both ends have velocities, linear where one (NaN) has none.
    """
    duration = (np.diff(times_ns) / 1e9)[:, None]
    start, step = positions[:-1], np.diff(positions, axis=0)
    v0, v1 = velocities[:-1], velocities[1:]
    cubic = np.stack(
        [
            start,
            v0,
            (3.0 * step / duration - 2.0 * v0 - v1) / duration,
            (v0 + v1 - 2.0 * step / duration) / duration**2,
        ],
        axis=1,
    )
    linear = np.stack([start, step / duration, 0.0 * step, 0.0 * step], axis=1)
    both_ends = np.asarray(np.isfinite(v0 + v1).all(axis=1))
    return np.where(both_ends[:, None, None], cubic, linear)
