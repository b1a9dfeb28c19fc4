"""The last look at what is about to be sent to an arm, whatever made it.

The safety gate judges what a policy decided. This check stands behind everything that leaves a
node: chunks, brakes, holds, the way to the start pose, streamed goals. It knows nothing of how
they were made, only where the arms are and what they can do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES, STATE_DIM
from cosmos_policy_ros.rig.spec import Output, RigSpec

# A cubic between two rows that both rest is half as fast again in the middle as on average, and a
# path under way is left from any place on it.
CUBIC_PEAK = 1.5
ROUNDING = 1e-6  # of what went through a message and two changes of units
LONGEST = 600.0  # s; the gentlest way to the start pose takes less than three minutes


@dataclass(frozen=True)
class CommandCheck:
    """Limits of what one controller is sent, in its own order and units.

    Attributes:
        names: of the joints, for messages.
        lower, upper: (n,) position limits.
        speed: (n,) per second.
        reach: (n,) how far the arm may be from where it is known to be commanded; infinite for
            grippers, since one that holds an object stands far from its target.
    """

    names: tuple[str, ...]
    lower: Array
    upper: Array
    speed: Array
    reach: Array

    @classmethod
    def of_rig(cls, rig: RigSpec) -> CommandCheck:
        """Return the check of (K, 14) rows in policy units."""
        reach = np.full(STATE_DIM, rig.gate.start_jump)
        reach[list(GRIPPER_INDICES)] = np.inf
        return cls(rig.joint_names, rig.lower, rig.upper, rig.max_velocity, reach)

    @classmethod
    def of_output(cls, rig: RigSpec, output: Output) -> CommandCheck:
        """Return the check of what one controller is sent, in its driver's units."""
        whole, columns = cls.of_rig(rig), list(output.columns)
        ends = rig.command(np.stack([whole.lower, whole.upper]))[:, columns]
        return cls(
            names=tuple(whole.names[i] for i in columns),
            lower=ends.min(axis=0),
            upper=ends.max(axis=0),
            speed=np.abs(rig.command_speed(whole.speed[None])[0, columns]),
            reach=whole.reach[columns],
        )

    def problem(
        self,
        rows: Array,
        seconds: Array,
        commanded: Array,
        *,
        velocities: Array | None = None,
        measured: Array | None = None,
        led_over: bool = False,
    ) -> str:
        """Return why rows must not be sent, empty if nothing is wrong with them.

        Args:
            rows: (K, n) positions.
            seconds: (K,) from now to each of them.
            commanded: (n,) or (m, n) where the controller has been told to be of late; the newest
                last.
            velocities: (K, n) at the rows, where they are sent.
            measured: (n,) where the arm reports to be; None where nothing is heard of it.
            led_over: whether the way to the first row is limited elsewhere.
        """
        newest = np.atleast_2d(commanded)[-1]
        sent = [rows, newest, np.zeros_like(newest) if velocities is None else velocities]
        if not len(rows) or not all(np.isfinite(each).all() for each in (*sent, seconds)):
            return "it holds values that are not finite, or nothing at all"
        steps = np.diff(seconds, prepend=0.0)
        if not (steps > 0).all() or seconds[-1] > LONGEST:
            return f"its rows are due after {seconds[0]:.3f} to {seconds[-1]:.3f} s, out of order"
        return (
            self._past_limits(rows, newest)
            or self._too_fast(np.vstack([rows[0] if led_over else newest, rows]), steps, velocities)
            or self._out_of_reach(commanded, measured)
        )

    def misplaced(self, goal: Array, last: Array) -> str:
        """Return why one goal (n,) must not follow another (n,), empty if nothing is wrong."""
        if not np.isfinite(goal).all():
            return "it holds values that are not finite"
        return self._past_limits(goal[None], last)

    def far(self, commanded: Array, measured: Array) -> NDArray[np.int64]:
        """Return the joints that are not near anything that they were commanded of late."""
        poses = np.atleast_2d(commanded)
        off = np.maximum(poses.min(axis=0) - measured, measured - poses.max(axis=0))
        return np.flatnonzero(off > self.reach)

    def _past_limits(self, rows: Array, newest: Array) -> str:
        # An arm that already is past a limit may be held there, or brought back.
        low, high = np.minimum(self.lower, newest), np.maximum(self.upper, newest)
        over = np.maximum(low - rows, rows - high) - ROUNDING
        if (over <= 0).all():
            return ""
        step, joint = map(int, np.unravel_index(int(np.argmax(over)), over.shape))
        return (
            f"{self.names[joint]} would be told {rows[step, joint]:.3f}, its limits are "
            f"{self.lower[joint]:g} to {self.upper[joint]:g}"
        )

    def _too_fast(self, path: Array, steps: Array, velocities: Array | None) -> str:
        found = np.abs(np.diff(path, axis=0)) / steps[:, None]
        # The first row is due sooner than a step after its path was left.
        steps_allowed = self.speed * CUBIC_PEAK + ROUNDING / steps[:, None]
        over = found / steps_allowed
        if velocities is not None:
            over = np.maximum(over, np.abs(velocities) / (self.speed * (1 + ROUNDING)))
        if (over <= 1.0).all():
            return ""
        step, joint = map(int, np.unravel_index(int(np.argmax(over)), over.shape))
        return (
            f"{self.names[joint]} would be moved at {over[step, joint]:.2f} times its highest "
            f"speed of {self.speed[joint]:g} per second, on the way to row {step}"
        )

    def _out_of_reach(self, commanded: Array, measured: Array | None) -> str:
        if measured is None:
            return ""
        far = self.far(commanded, measured)
        if not len(far):
            return ""
        joint = int(far[0])
        newest = np.atleast_2d(commanded)[-1, joint]
        return (
            f"{self.names[joint]} is at {measured[joint]:.3f} and was told {newest:.3f}; it may be "
            f"{self.reach[joint]:g} off"
        )
