"""Faults to rehearse: what a real rig does on a bad day, at times chosen beforehand.

Written as ``kind:target@from-until`` with seconds of rig time since the reset, for example
``camera_silent:left_wrist@2.0-5.0``; a delay or an offset has its seconds after the target,
``camera_delay:primary=0.3@2-5``, ``stamps_off:left=-30``. Without ``@...`` a fault lasts for ever.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.arms import ARMS, finger_from_angle
from cosmos_policy_ros.sim.render import Image
from cosmos_policy_ros.sim.rig import CRANK_RADIUS, ROD_LENGTH, JointSample
from cosmos_policy_ros.sim.scene import ARM_JOINTS, CAMERAS

_ROLES = tuple(CAMERAS)
_JOINTS = tuple(f"{arm}/{joint}" for arm in ARMS for joint in ARM_JOINTS)
TARGETS: dict[str, tuple[str, ...]] = {
    # No frames, as when a USB camera drops off the bus.
    "camera_silent": _ROLES,
    # The same frame over and over, with fresh stamps.
    "camera_frozen": _ROLES,
    # Frames arrive this many seconds after their stamp.
    "camera_delay": _ROLES,
    # No joint states, as when an arm's driver has died.
    "joints_silent": ARMS,
    # NaN in every field, a failed bus read in newer drivers.
    "joints_nan": ARMS,
    # -pi on every motor, a failed bus read in older drivers.
    "joints_minus_pi": ARMS,
    # Names with the arm's prefix, as from a foreign driver.
    "joints_renamed": ARMS,
    # Stamps that many seconds ahead, as from a machine whose clock is wrong.
    "stamps_off": (*ARMS, *_ROLES),
    # The same of a leader arm: no joint states, NaN, -pi, the same over and over (of a whole arm or
    # of one joint), all that many seconds late, its waist so many radians off.
    "leader_silent": ARMS,
    "leader_nan": ARMS,
    "leader_minus_pi": ARMS,
    "leader_frozen": (*ARMS, *_JOINTS),
    "leader_delay": ARMS,
    "leader_jump": ARMS,
    # The joint stays where it is, as with an overloaded servo.
    "joint_stuck": _JOINTS,
}
"""Kind of fault -> what it can act on."""

_VALUED = {
    "camera_delay": "camera_delay:left_wrist=0.3@2-5",
    "stamps_off": "stamps_off:left=-30",
    "leader_delay": "leader_delay:left=0.2",
    "leader_jump": "leader_jump:left=0.6@3-4",
}
"""Kinds with a value in seconds or radians -> an example."""

_PATTERN = re.compile(
    r"(?P<kind>[^:@=]*):(?P<target>[^:@=]*)(=(?P<value>[^@]*))?(@(?P<start>[^-]*)-(?P<end>.*))?"
)


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: a key of :data:`TARGETS`.
        target: a camera role, an arm, or an arm's joint such as "left/waist".
        start: first moment [s since the reset] it is active.
        end: first moment [s since the reset] it is over.
        value: seconds, or radians of ``leader_jump``; 0 of kinds without.
    """

    kind: str
    target: str
    start: float = 0.0
    end: float = math.inf
    value: float = 0.0

    @property
    def arm(self) -> str:
        """Whose joint the target is, or the target."""
        return self.target.partition("/")[0]

    @property
    def joint(self) -> str:
        """The target's joint, empty where it is not one."""
        return self.target.partition("/")[2]


@dataclass(frozen=True)
class Faults:
    """All faults of a run; ``now`` is in seconds since the reset."""

    entries: tuple[Fault, ...] = ()

    @staticmethod
    def parse(texts: Iterable[str]) -> Faults:
        """Read a list of texts; empty ones are skipped (ROS cannot send an empty string array).

        Raises:
            ConfigError: see :func:`parse_fault`.
        """
        return Faults(tuple(parse_fault(text) for text in texts if text.strip()))

    def camera_fault(self, role: str, now: float) -> Fault | None:
        """Return the first fault that acts on a camera."""
        return next((f for f in self._active("camera_", now) if f.target == role), None)

    def joint_fault(self, arm: str, now: float) -> Fault | None:
        """Return the first fault that acts on an arm's joint states."""
        return next((f for f in self._active("joints_", now) if f.target == arm), None)

    def leader_faults(self, arm: str, now: float) -> tuple[Fault, ...]:
        """Return the faults that act on a leader arm, or on a joint of it."""
        return tuple(fault for fault in self._active("leader_", now) if fault.arm == arm)

    def stamp_offset(self, source: str, now: float) -> float:
        """Return how far [s] the stamps of a camera role or an arm are ahead."""
        return next((f.value for f in self._active("stamps_", now) if f.target == source), 0.0)

    def stuck_joints(self, now: float) -> tuple[str, ...]:
        """Return the joints, such as "left/waist", that are stuck."""
        return tuple(fault.target for fault in self._active("joint_stuck", now))

    def _active(self, prefix: str, now: float) -> Iterator[Fault]:
        return (f for f in self.entries if f.kind.startswith(prefix) and f.start <= now < f.end)


def parse_fault(text: str) -> Fault:
    """Read one fault.

    Raises:
        ConfigError: wrong form, unknown kind or target, or times that make no interval.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"fault '{text}': expected kind:target@from-until, e.g. "
            "camera_silent:left_wrist@2.0-5.0"
        )
    kind, target = match["kind"].strip(), match["target"].strip()
    if kind not in TARGETS:
        raise ConfigError(f"fault '{text}': unknown kind '{kind}'{did_you_mean(kind, TARGETS)}")
    targets = TARGETS[kind]
    if target not in targets:
        raise ConfigError(
            f"fault '{text}': {kind} acts on one of {', '.join(targets)}, not on '{target}'"
            f"{did_you_mean(target, targets)}"
        )
    if (match["value"] is not None) != (kind in _VALUED):
        raise ConfigError(
            f"fault '{text}': only {', '.join(_VALUED)} have, and need, a value, "
            f"e.g. {', '.join(_VALUED.values())}"
        )

    def seconds(number: str) -> float:
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0.0 <= value < math.inf:
            raise ConfigError(f"fault '{text}': '{number}' is not a number of seconds, 0 or more")
        return value

    start = 0.0 if match["start"] is None else seconds(match["start"])
    end = math.inf if match["end"] is None else seconds(match["end"])
    given = (match["value"] or "0").strip()
    backwards = kind in ("stamps_off", "leader_jump") and given.startswith("-")
    value = -seconds(given.removeprefix("-")) if backwards else seconds(given)
    if end <= start:
        raise ConfigError(f"fault '{text}': ends at {end} s, not after its start at {start} s")
    return Fault(kind, target, start, end, value)


def faulty_joints(sample: JointSample, arm: str, fault: Fault | None) -> JointSample | None:
    """Return ``sample`` as the driver would publish it under a joint fault; None: not at all."""
    if fault is None:
        return sample
    size = len(sample.names)
    if fault.kind == "joints_silent":
        return None
    if fault.kind == "joints_renamed":
        return replace(sample, names=tuple(f"{arm}_{name}" for name in sample.names))
    if fault.kind == "joints_nan":
        return replace(sample, positions=(math.nan,) * size, velocities=(math.nan,) * size)
    finger = finger_from_angle(-math.pi, CRANK_RADIUS, ROD_LENGTH)
    positions = (*(-math.pi,) * (size - 2), finger, -finger)
    return replace(sample, positions=positions, velocities=(0.0,) * size)


class CameraFeed:
    """Turns every frame drawn for a camera into those that leave it now: usually that one."""

    def __init__(self) -> None:
        self._frozen: Image | None = None
        self._late: deque[tuple[Image, int]] = deque()

    def frames(self, image: Image, stamp_ns: int, fault: Fault | None) -> list[tuple[Image, int]]:
        """Return (image, stamp) to publish now, under the camera fault in force."""
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
