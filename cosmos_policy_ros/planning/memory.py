"""Whether the engines fit, before anything is loaded."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from cosmos_policy_ros.errors import CheckpointError

GB = 1e9


@dataclass(frozen=True)
class Footprint:
    """What one engine needs of its device.

    Attributes:
        device: torch's name, with the machine's where there are several.
        needs: bytes by what they are for.
        free: bytes that the device has left now.
    """

    device: str
    needs: dict[str, int]
    free: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.needs.values())


class Ledger:
    """Grants memory to engines that load at the same time, and see it free until they have."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first_seen: dict[str, int] = {}
        self._granted: dict[object, Footprint] = {}

    def admit(self, who: object, footprint: Footprint) -> None:
        """Grant it.

        Raises:
            CheckpointError: there is no room; with the sums.
        """
        with self._lock:
            device = footprint.device
            others = [f for f in self._granted.values() if f.device == device]
            if not others:
                self._first_seen[device] = footprint.free
            free, taken = self._first_seen[device], sum(f.total for f in others)
            if taken + footprint.total > free:
                raise CheckpointError(_refusal(footprint, len(others), taken, free))
            self._granted[who] = footprint

    def release(self, who: object) -> None:
        """Take back what an engine had, if it had any."""
        with self._lock:
            self._granted.pop(who, None)


def _refusal(footprint: Footprint, others: int, taken: int, free: int) -> str:
    parts = ", ".join(f"{what} {size / GB:.1f}" for what, size in footprint.needs.items())
    before = f" beside {taken / GB:.1f} GB for {others} more" if others else ""
    return (
        f"{footprint.device}: an inference process needs {footprint.total / GB:.1f} GB ({parts})"
        f"{before}, but {free / GB:.1f} GB are free; name fewer or other devices, use one "
        "checkpoint for both roles, or end what else uses the device"
    )
