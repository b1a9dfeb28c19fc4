"""What must be true before an episode begins, so that nobody finds out after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rollouts.integrity import GIGABYTE, IntegrityLimits, header_stamp

WINDOW = 2 * NS_PER_S  # ns over which the present rate is taken
# A computer without a battery for its clock wakes up in 1970 or on the day its image was made.
CLOCK_IS_SET = 1_704_067_200 * NS_PER_S  # 2024-01-01


class Traffic:
    """What came lately, recorded or not: bytes, and each topic's newest stamps."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int, int]] = deque()
        self._received: dict[str, int] = {}
        self._offset: dict[str, float] = {}

    def add(self, topic: str, received_ns: int, cdr: bytes, *, stamped: bool) -> None:
        """Note a message; ``stamped`` when it begins with a header."""
        self._received[topic] = received_ns
        if stamped:
            self._offset[topic] = (received_ns - header_stamp(cdr)) / NS_PER_S
        self._recent.append((received_ns, len(cdr)))
        while self._recent[0][0] < received_ns - WINDOW:
            self._recent.popleft()

    def bytes_per_second(self, now_ns: int) -> float:
        """Return the present rate of everything together."""
        return sum(size for at, size in self._recent if at > now_ns - WINDOW) * NS_PER_S / WINDOW

    def silent(self, topics: Iterable[str], now_ns: int, longest: float) -> tuple[str, ...]:
        """Return the topics that brought nothing in the last ``longest`` seconds."""
        since = now_ns - int(longest * NS_PER_S)
        return tuple(topic for topic in topics if self._received.get(topic, since - 1) < since)

    def offsets(self) -> Mapping[str, float]:
        """Return, per stamped topic, how long after its stamp the newest message came, s."""
        return self._offset


def complaints(
    traffic: Traffic,
    sensors: Iterable[str],
    now_ns: int,
    free_bytes: int,
    seconds: float,
    limits: IntegrityLimits,
) -> tuple[str, ...]:
    """Return what speaks against beginning an episode now, each with the limit and what to do.

    Args:
        traffic: what came lately.
        sensors: the topics that an episode lives of.
        now_ns: the recorder's clock, which must be the wall's.
        free_bytes: left on the disk.
        seconds: how long the episode may take.
        limits: what it will be judged by.
    """
    found = []
    if now_ns < CLOCK_IS_SET:
        found.append("the clock is not set (it is before 2024): set it, or start chrony")
    found += [
        f"{topic} has been silent for {limits.longest_gap:g} s: is its driver running?"
        for topic in traffic.silent(sensors, now_ns, limits.longest_gap)
    ]
    for topic, offset in traffic.offsets().items():
        if abs(offset) > limits.clock_offset:
            found.append(
                f"{topic} is stamped {offset:.1f} s away from now (at most "
                f"{limits.clock_offset:g}): set both machines' clocks by the same server"
            )
    rate = traffic.bytes_per_second(now_ns)
    needed = rate * seconds / GIGABYTE + limits.least_free
    if free_bytes / GIGABYTE < needed:
        found.append(
            f"{free_bytes / GIGABYTE:.1f} GB are left on the disk, and {seconds:g} s at "
            f"{rate / 1e6:.0f} MB/s need {needed:.1f}: free some, or record with images:=jpeg"
        )
    return tuple(found)
