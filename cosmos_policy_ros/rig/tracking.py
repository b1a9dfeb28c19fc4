"""Whether the arms follow, and whether they move: what was commanded against what they report.

An arm lags behind its command by a known time, so a joint follows if it is near any pose that it
was commanded within that time. One that is not, for longer than a bump takes, is stuck, overloaded
or pushed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import ARMS, GRIPPER_INDICES
from cosmos_policy_ros.rig.spec import RigSpec

STILL_FOR = 0.2  # s
STILL = 0.02  # rad; 0.1 rad/s on average, thirteen steps of a servo's encoder


@dataclass(frozen=True)
class Deviation:
    """Joints that do not follow.

    Attributes:
        joints: entries of the 14-vector.
        message: one sentence for the operator, about the worst of them.
    """

    joints: tuple[int, ...]
    message: str


class TrackingMonitor:
    """Remembers what was commanded within the arms' lag, and for how long a joint has been off it.

    Grippers are left out: one that holds an object stands far from its target.
    """

    def __init__(self, rig: RigSpec) -> None:
        """Take the limits from ``rig`` once."""
        self._names, limits = rig.joint_names, rig.tracking
        self._sustained = limits.sustained
        self._error = np.tile([limits.error] * 3 + [limits.wrist_error] * 3 + [np.inf], len(ARMS))
        self._lag_ns = round(rig.tracking.lag * NS_PER_S)
        self._commanded: deque[tuple[int, Array]] = deque()
        self._following_ns: NDArray[np.int64] | None = None

    def clear(self) -> None:
        """Forget everything; the arms are at rest where they are commanded next."""
        self._commanded.clear()
        self._following_ns = None

    @property
    def commanded(self) -> Array | None:
        """(n, 14) poses commanded within the lag, the newest last; None of arms at rest."""
        return np.stack([pose for _, pose in self._commanded]) if self._commanded else None

    def add(self, now_ns: int, commanded: Array) -> None:
        """Note a commanded (14,) pose.

        The last one from before the lag is kept: between two polls the arms were on their way
        from it.
        """
        self._commanded.append((now_ns, commanded))
        while len(self._commanded) > 1 and now_ns - self._commanded[1][0] > self._lag_ns:
            self._commanded.popleft()

    def check(self, now_ns: int, measured: Array) -> Deviation | None:
        """Return which joints have not followed for too long, given where (14,) the arms are.

        Only what is reported now counts: no check is made while the arms are silent.
        """
        commanded = self.commanded
        if commanded is None:
            return None
        off = deviation(measured, commanded)
        if self._following_ns is None:
            self._following_ns = np.full(len(off), now_ns)
        self._following_ns[off <= self._error] = now_ns
        seconds = (now_ns - self._following_ns) / NS_PER_S
        late = np.flatnonzero(seconds > self._sustained)
        if not len(late):
            return None
        worst = int(late[np.argmax(off[late] / self._error[late])])
        return Deviation(
            tuple(map(int, late)),
            f"{self._names[worst]} has been {off[worst]:.2f} rad off its path for "
            f"{seconds[worst]:.2f} s (limits {self._error[worst]:g} rad, {self._sustained:g} s): "
            "free the arm, look at its servo",
        )


class StillnessWatch:
    """Tells by what the arms report whether they move, whatever moves them."""

    def __init__(self) -> None:
        """Know nothing."""
        self._poses: deque[tuple[int, Array]] = deque()

    def clear(self) -> None:
        """Forget everything."""
        self._poses.clear()

    def add(self, now_ns: int, measured: Array) -> None:
        """Note where (14,) the arms are.

        What was before a gap says nothing: a node that was kept waiting missed how they stopped.
        """
        if self._poses and now_ns - self._poses[-1][0] > STILL_FOR * NS_PER_S:
            self._poses.clear()
        self._poses.append((now_ns, np.delete(measured, GRIPPER_INDICES)))
        while len(self._poses) > 2 and now_ns - self._poses[1][0] >= STILL_FOR * NS_PER_S:
            self._poses.popleft()

    @property
    def moving(self) -> bool:
        """Whether an arm joint has moved by more than noise within STILL_FOR."""
        return len(self._poses) > 1 and self._span() > STILL

    @property
    def still(self) -> bool:
        """Whether none has, for STILL_FOR at least."""
        if len(self._poses) < 2:
            return False
        seen_ns = self._poses[-1][0] - self._poses[0][0]
        return seen_ns >= STILL_FOR * NS_PER_S and self._span() <= STILL

    def _span(self) -> float:
        return float(np.ptp([pose for _, pose in self._poses], axis=0).max())


def deviation(measured: Array, commanded: Array) -> Array:
    """Return (14,) how far ``measured`` (14,) is outside of what (n, 14) was commanded."""
    low, high = commanded.min(axis=0), commanded.max(axis=0)
    return np.asarray(np.maximum(np.maximum(low - measured, measured - high), 0.0))
