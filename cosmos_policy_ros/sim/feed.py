"""One simulated camera's output, faults included."""

from __future__ import annotations

from collections import deque

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.sim.faults import Fault
from cosmos_policy_ros.sim.render import Image


class CameraFeed:
    """Turns every drawn frame into the frames that leave the camera now: usually that one."""

    def __init__(self) -> None:
        self._frozen: Image | None = None
        self._late: deque[tuple[Image, int]] = deque()

    def frames(self, image: Image, stamp_ns: int, fault: Fault | None) -> list[tuple[Image, int]]:
        """Return (picture, stamp) to publish now.

        Args:
            image: the picture just drawn.
            stamp_ns: when its state was copied.
            fault: the camera fault in force, if any.
        """
        kind = fault.kind if fault is not None else ""
        if kind != "camera_frozen":
            self._frozen = None
        if kind == "camera_silent":
            return []
        if kind == "camera_frozen":
            self._frozen = image if self._frozen is None else self._frozen
            return [(self._frozen, stamp_ns)]
        self._late.append((image, stamp_ns))
        delay_ns = int(fault.value * NS_PER_S) if fault is not None else 0
        due = []
        while self._late and self._late[0][1] + delay_ns <= stamp_ns:
            due.append(self._late.popleft())
        return due
