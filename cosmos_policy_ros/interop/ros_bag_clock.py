"""Stamps and receipts of a bag of another recorder: when was what seen, on one clock.

Sensors stamp their messages, the recorder notes their receipt, commands bear no stamp. All three go
together only where the clocks do; where they cannot, the bag is refused rather than guessed at.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.bags.messages import HEADER_BYTES, check_stamp, header_stamp
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.episodes.quality import load_limits
from cosmos_policy_ros.interop.ros_bag_files import BagTopic

SET_BACK = 0.25
"""Seconds by which a sensor's stamps may go back, or its clock change against the recorder's."""


def stamp_of(topic: BagTopic, data: bytes) -> int:
    """Return the stamp [ns] of a message that begins with a header."""
    if not topic.ros1:
        return header_stamp(data)
    if len(data) < HEADER_BYTES:
        return 0
    sec, nanosec = struct.unpack_from("<II", data, 4)  # behind a number
    return int(sec) * NS_PER_S + int(nanosec)


def with_stamp(cdr: bytes, stamp_ns: int) -> bytes:
    """Return a message with another stamp in its header. Raises RolloutError."""
    if len(cdr) < HEADER_BYTES:
        raise RolloutError(f"a message of {len(cdr)} bytes has no header; the bag is damaged")
    check_stamp(stamp_ns, "a message that bears none")
    order = "<" if cdr[1] & 1 else ">"
    return cdr[:4] + struct.pack(f"{order}iI", *divmod(stamp_ns, NS_PER_S)) + cdr[HEADER_BYTES:]


@dataclass
class StampLog:
    """Of one topic's messages: header stamps, 0 for none, and receipts [ns]."""

    stamps: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)

    def add(self, stamp_ns: int, received_ns: int) -> None:
        """Note a message."""
        self.stamps.append(stamp_ns)
        self.received.append(received_ns)

    @property
    def period_ns(self) -> int:
        """Between two messages, as a rule."""
        return round(float(np.median(np.diff(self.received)))) if len(self.received) > 1 else 0


@dataclass(frozen=True)
class Clock:
    """What puts receipts onto the clock that stamps the sensors.

    Attributes:
        shift_ns: by which the recorder's clock is ahead.
        notes: what was found of stamps.
    """

    shift_ns: int
    notes: tuple[str, ...]

    def receipt(self, received_ns: int) -> int:
        """Return a receipt by the sensors' clock."""
        return max(received_ns - self.shift_ns, 0)

    def span(self, log: StampLog) -> tuple[int, int]:
        """Return the first and last stamp of a topic."""
        pairs = zip(log.stamps, log.received, strict=True)
        stamps = [stamp or self.receipt(received) for stamp, received in pairs]
        return min(stamps), max(stamps)


def find_clock(logs: Mapping[str, StampLog]) -> Clock:
    """Return how receipts and stamps go together.

    Raises:
        RolloutError: stamps go back, or clocks run apart: what was seen when cannot be told.
    """
    notes: list[str] = []
    behind: dict[str, float] = {}
    for name, log in logs.items():
        stamps, received = np.array(log.stamps, np.int64), np.array(log.received, np.int64)
        stamped = stamps != 0
        if (stamps < 0).any():
            raise RolloutError(f"{shown(name)}: is stamped before 1970; its driver is broken")
        if unstamped := int(np.count_nonzero(~stamped)):
            notes.append(
                f"{unstamped} of {len(stamps)} messages on {shown(name)} bear no stamp and were "
                f"given that of their receipt"
            )
        _check_order(name, stamps[stamped])
        if stamped.any():
            behind[name] = _behind(name, (received - stamps)[stamped] / NS_PER_S)
    limit = load_limits().clock_offset
    if not behind or max(map(abs, behind.values())) <= limit:
        return Clock(0, tuple(notes))
    most, least = max(behind, key=lambda n: behind[n]), min(behind, key=lambda n: behind[n])
    if behind[most] - behind[least] > SET_BACK:
        raise RolloutError(
            f"{shown(most)} is stamped {behind[most]:.4g} s before its receipt and {shown(least)} "
            f"{behind[least]:.4g} s: their clocks do not agree, so that what was seen together "
            f"cannot be told; set the machines' clocks by one server and record again"
        )
    shift = float(np.median(list(behind.values())))
    if notes:
        raise RolloutError(
            f"{notes[0].partition(' and ')[0]}, and the others one {shift:.4g} s before their "
            f"receipt; which of the two clocks is right cannot be told"
        )
    notes.append(
        f"all is stamped {shift:.6g} s before its receipt, as when a bag is played and recorded "
        f"anew: receipts were put back by that"
    )
    return Clock(round(shift * NS_PER_S), tuple(notes))


def _check_order(name: str, stamps: NDArray[np.int64]) -> None:
    back = -float(np.diff(stamps).min(initial=0)) / NS_PER_S
    if back > SET_BACK:
        raise RolloutError(
            f"{shown(name)}: stamps go back by {back:.4g} s (at most {SET_BACK:g}): a clock was "
            f"set while it was recorded, or the bag holds two recordings; cut it in two"
        )


def _behind(name: str, seconds: NDArray[np.float64]) -> float:
    """Return by how much a topic's stamps are behind its receipts [s], which must not change."""
    part = max(len(seconds) // 10, 1)
    begin, end = float(np.median(seconds[:part])), float(np.median(seconds[-part:]))
    if abs(end - begin) > SET_BACK:
        raise RolloutError(
            f"{shown(name)}: is stamped {begin:.4g} s before its receipt at first and {end:.4g} s "
            f"at last: two clocks run apart, or a simulation was slower than the recorder; record "
            f"with the clock that stamps (--use-sim-time)"
        )
    return float(np.median(seconds))
