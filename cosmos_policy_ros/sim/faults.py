"""Faults to rehearse: what a real rig does on a bad day, at times chosen beforehand.

Written as ``kind:target@from-until`` with seconds of rig time since the reset, for example
``camera_silent:left_wrist@2.0-5.0``; a delay or an offset has its seconds after the target,
``camera_delay:primary=0.3@2-5``, ``stamps_off:left=-30``. Without ``@...`` a fault lasts for ever.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.arms import finger_from_angle
from cosmos_policy_ros.sim.render import Image
from cosmos_policy_ros.sim.rig import CRANK_RADIUS, ROD_LENGTH, JointSample
from cosmos_policy_ros.sim.scene import ARM_JOINTS, ARMS, CAMERAS

CAMERA_KINDS = {
    "camera_silent": "no frames, as when a USB camera drops off the bus",
    "camera_frozen": "the same frame over and over, with fresh stamps",
    "camera_delay": "frames arrive this many seconds after their stamp",
}
JOINT_KINDS = {
    "joints_silent": "no joint states, as when an arm's driver has died",
    "joints_nan": "NaN in every field, a failed bus read in newer drivers",
    "joints_minus_pi": "-pi on every motor, a failed bus read in older drivers",
    "joints_renamed": "names with the arm's prefix, as from a foreign driver",
}
CLOCK_KINDS = {
    "stamps_off": "stamps that many seconds ahead, as from a machine whose clock is wrong",
}
SERVO_KINDS = {
    "joint_stuck": "the joint stays where it is, as with an overloaded servo",
}
KINDS = {**CAMERA_KINDS, **JOINT_KINDS, **CLOCK_KINDS, **SERVO_KINDS}
"""Kind of fault -> what happens while it is active."""

VALUED = {"camera_delay": "0.3@2-5", "stamps_off": "-30"}
"""Kinds with a value in seconds -> an example."""

_FORM = "kind:target@from-until, e.g. camera_silent:left_wrist@2.0-5.0"
_PATTERN = re.compile(
    r"(?P<kind>[^:@=]*):(?P<target>[^:@=]*)(=(?P<value>[^@]*))?(@(?P<start>[^-]*)-(?P<end>.*))?"
)


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: a key of :data:`KINDS`.
        target: a camera role, an arm, or an arm's joint such as "left/waist".
        start: first moment [s since the reset] it is active.
        end: first moment [s since the reset] it is over.
        value: seconds of ``camera_delay`` and ``stamps_off``, else 0.
    """

    kind: str
    target: str
    start: float = 0.0
    end: float = math.inf
    value: float = 0.0


@dataclass(frozen=True)
class Faults:
    """All faults of a run."""

    entries: tuple[Fault, ...] = ()

    @staticmethod
    def parse(texts: Iterable[str]) -> Faults:
        """Read a list of texts; empty ones are skipped (ROS cannot send an empty string array).

        Raises:
            ConfigError: see :func:`parse_fault`.
        """
        return Faults(tuple(parse_fault(text) for text in texts if text.strip()))

    def camera_fault(self, role: str, now: float) -> Fault | None:
        """Return the first fault that acts on a camera role ``now`` [s since the reset]."""
        return self._active(CAMERA_KINDS, role, now)

    def joint_fault(self, arm: str, now: float) -> Fault | None:
        """Return the first fault that acts on an arm's joint states ``now`` [s since the reset]."""
        return self._active(JOINT_KINDS, arm, now)

    def stamp_offset(self, source: str, now: float) -> float:
        """Return how far [s] the stamps of a camera role or an arm are ahead ``now``."""
        fault = self._active(CLOCK_KINDS, source, now)
        return 0.0 if fault is None else fault.value

    def stuck_joints(self, now: float) -> tuple[str, ...]:
        """Return the joints, such as "left/waist", that are stuck ``now`` [s since the reset]."""
        return tuple(
            fault.target
            for fault in self.entries
            if fault.kind in SERVO_KINDS and fault.start <= now < fault.end
        )

    def _active(self, kinds: Iterable[str], target: str, now: float) -> Fault | None:
        for fault in self.entries:
            if fault.kind in kinds and fault.target == target and fault.start <= now < fault.end:
                return fault
        return None


def parse_fault(text: str) -> Fault:
    """Read one fault.

    Raises:
        ConfigError: wrong form, unknown kind or target, or times that make no interval.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"fault '{text}': expected {_FORM}")
    kind, target = match["kind"].strip(), match["target"].strip()
    if kind not in KINDS:
        raise ConfigError(f"fault '{text}': unknown kind '{kind}'{did_you_mean(kind, KINDS)}")
    targets = _targets(kind)
    if target not in targets:
        raise ConfigError(
            f"fault '{text}': {kind} acts on one of {', '.join(targets)}, not on '{target}'"
            f"{did_you_mean(target, targets)}"
        )
    if (match["value"] is not None) != (kind in VALUED):
        examples = ", ".join(f"{each}:{_targets(each)[0]}={VALUED[each]}" for each in VALUED)
        raise ConfigError(
            f"fault '{text}': only {', '.join(VALUED)} have, and need, a value in seconds, "
            f"e.g. {examples}"
        )
    start, end = (
        default if match[group] is None else _seconds(text, match[group])
        for group, default in (("start", 0.0), ("end", math.inf))
    )
    given = (match["value"] or "0").strip()
    sign = -1.0 if kind in CLOCK_KINDS and given.startswith("-") else 1.0
    value = sign * _seconds(text, given.removeprefix("-") if sign < 0 else given)
    if end <= start:
        raise ConfigError(f"fault '{text}': ends at {end} s, not after its start at {start} s")
    return Fault(kind, target, start, end, value)


def faulty_joints(sample: JointSample, arm: str, fault: Fault | None) -> JointSample | None:
    """Return ``sample`` as the driver would publish it under ``fault``; None when it would not.

    ``fault`` is a joint fault, or None.
    """
    if fault is None:
        return sample
    if fault.kind == "joints_silent":
        return None
    size = len(sample.names)
    if fault.kind == "joints_renamed":
        return dataclasses.replace(sample, names=tuple(f"{arm}_{name}" for name in sample.names))
    if fault.kind == "joints_nan":
        return dataclasses.replace(
            sample, positions=(math.nan,) * size, velocities=(math.nan,) * size
        )
    finger = finger_from_angle(-math.pi, CRANK_RADIUS, ROD_LENGTH)
    return dataclasses.replace(
        sample, positions=(*(-math.pi,) * (size - 2), finger, -finger), velocities=(0.0,) * size
    )


def _targets(kind: str) -> tuple[str, ...]:
    if kind in CAMERA_KINDS:
        return tuple(CAMERAS)
    if kind in CLOCK_KINDS:
        return (*ARMS, *CAMERAS)
    if kind in SERVO_KINDS:
        return tuple(f"{arm}/{joint}" for arm in ARMS for joint in ARM_JOINTS)
    return ARMS


def _seconds(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise ConfigError(f"fault '{text}': '{number}' is not a number of seconds, 0 or more")
    return value


# One simulated camera's output, faults included.


class CameraFeed:
    """Turns every drawn frame into the frames that leave the camera now: usually that one."""

    def __init__(self) -> None:
        self._frozen: Image | None = None
        self._late: deque[tuple[Image, int]] = deque()

    def frames(self, image: Image, stamp_ns: int, fault: Fault | None) -> list[tuple[Image, int]]:
        """Return (image, stamp) to publish now.

        Args:
            image: the image just drawn.
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
