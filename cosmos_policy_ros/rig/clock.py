"""The clock that arms move by, and how it relates to the clock of the stamps.

A path, a heartbeat and an age are measured on a clock that is never set: a machine's monotonic
clock, or the simulated time of a rig that is simulated. Wall and ROS time only label. If they jump
against it, stamps no longer say how old something is, and the arms are held.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple

from cosmos_policy_ros.core.units import NS_PER_S

# Seconds: two samples of a 50 Hz driver. A slewed clock takes the monotonic one along with it, so
# whatever comes between the two was a step.
JUMP_LIMIT = 0.05
# Two readings further apart than this were interrupted, and say nothing of the clocks.
_PAIR_NS, _PAIR_TRIES = 200_000, 5


class Receipt(NamedTuple):
    """When a message came and when it was stamped, nanoseconds of the :class:`MotionClock`."""

    received_ns: int
    stamped_ns: int


class MotionClock(ABC):
    """The clock that arms move by."""

    @abstractmethod
    def now_ns(self) -> int:
        """Return the time [ns]; it never goes back and never jumps."""

    @abstractmethod
    def trust(self) -> None:
        """Take the relation of both clocks for right from now on."""

    @abstractmethod
    def jump(self) -> str:
        """Return how ROS time has jumped since :meth:`trust`, empty if it has not."""

    @abstractmethod
    def _offset_ns(self) -> int:
        """Return ROS time less this clock's."""

    def receipt(self, stamp_ns: int) -> Receipt:
        """Return where a message that has just come with this ROS stamp belongs."""
        offset_ns = self._offset_ns()
        return Receipt(self.now_ns(), stamp_ns - offset_ns)

    def to_ros(self, motion_ns: int) -> int:
        """Return a time of this clock as ROS nanoseconds, for labels."""
        return max(motion_ns + self._offset_ns(), 0)


class SteadyClock(MotionClock):
    """A machine's monotonic clock ``steady_ns``; ROS time is the wall's, which can be set."""

    def __init__(
        self, ros_ns: Callable[[], int], steady_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """Trust the relation that both clocks have now."""
        self._ros_ns, self._steady_ns = ros_ns, steady_ns
        self._last_offset_ns = ros_ns() - steady_ns()
        self.trust()

    def now_ns(self) -> int:
        """Return the monotonic clock's time [ns]."""
        return self._steady_ns()

    def trust(self) -> None:
        """Take the relation of both clocks for right from now on."""
        self._trusted_ns, self._jump = self._offset_ns(), ""

    def jump(self) -> str:
        """Return how the wall clock was set since :meth:`trust`, empty if it was not."""
        jumped = (self._offset_ns() - self._trusted_ns) / NS_PER_S
        if not self._jump and abs(jumped) > JUMP_LIMIT:
            self._jump = (
                f"this machine's clock was set by {jumped:+.3f} s (limit {JUMP_LIMIT:g} s): let "
                "chrony slew it instead of stepping it"
            )
        return self._jump

    def _offset_ns(self) -> int:
        # While readings are interrupted, the last known one.
        for _ in range(_PAIR_TRIES):
            before = self._steady_ns()
            ros = self._ros_ns()
            after = self._steady_ns()
            if after - before <= _PAIR_NS:
                self._last_offset_ns = ros - (before + after) // 2
                break
        return self._last_offset_ns


class SimulatedClock(MotionClock):
    """Simulated time: the sum of the steps of ``/clock`` that can have been the simulator's.

    A second publisher or a simulator that is set back makes steps that are none of time; the arms'
    clock does not follow those.
    """

    def __init__(self, waiting: Callable[[], Iterable[int]]) -> None:
        """``waiting`` returns what came on ``/clock`` since its last call [ns]."""
        self._waiting = waiting
        self._motion_ns: int | None = None
        self._ros_ns = 0
        self._jump = ""

    def now_ns(self) -> int:
        """Return the time [ns] up to the newest message; 0 before the first."""
        for ros_ns in self._waiting():
            step_ns = ros_ns - self._ros_ns
            if self._motion_ns is None:
                self._motion_ns = ros_ns
            elif 0 <= step_ns <= JUMP_LIMIT * NS_PER_S:
                self._motion_ns += step_ns
            else:
                self._jump = self._jump or (
                    f"/clock jumped by {step_ns / NS_PER_S:+.3f} s (limit 0 to {JUMP_LIMIT:g} s): "
                    "does something else publish it, too?"
                )
            self._ros_ns = ros_ns
        return self._motion_ns or 0

    def trust(self) -> None:
        """Forget the jumps of ``/clock`` so far."""
        self.now_ns()
        self._jump = ""

    def jump(self) -> str:
        """Return how ``/clock`` has jumped since :meth:`trust`, empty if it has not."""
        self.now_ns()
        return self._jump

    def _offset_ns(self) -> int:
        now_ns = self.now_ns()
        return self._ros_ns - now_ns
