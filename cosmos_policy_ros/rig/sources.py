"""The newest message of every source, and the gates between them and an observation.

Messages are only kept on arrival; decoding waits until a query needs the picture.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.errors import ObservationError
from cosmos_policy_ros.rig.arms import Arm
from cosmos_policy_ros.rig.config import did_you_mean
from cosmos_policy_ros.rig.images import decode_image, image_size
from cosmos_policy_ros.rig.observation import Observation
from cosmos_policy_ros.rig.spec import Camera, RigSpec

NS = 1_000_000_000
# A failed bus read is published as raw 0, which the driver converts to -pi on every joint.
FAILED_READ = -math.pi
FAILED_READ_TOLERANCE = 1e-3
FAILED_READ_JOINTS = 3
FINGERPRINT_STRIDE = 997  # prime, so that samples do not line up with image rows


@dataclass
class _CameraSource:
    camera: Camera
    message: Any = None
    stamp_ns: int = 0
    fingerprint: int = 0
    changed_ns: int = 0
    received: int = 0


@dataclass
class _ArmSource:
    side: str
    arm: Arm
    state: NDArray[np.float64] | None = None
    stamp_ns: int = 0
    received: int = 0
    rejected: int = 0
    rejection: str = ""


class Sources:
    """Collects a rig's messages and turns the newest ones into an :class:`Observation`."""

    def __init__(self, rig: RigSpec) -> None:
        """Expect the cameras and arms that ``rig`` names."""
        self._limits = rig.observation
        self._cameras: dict[str, _CameraSource] = {
            camera.role: _CameraSource(camera) for camera in rig.cameras
        }
        self._arms = {side: _ArmSource(side, arm) for side, arm in rig.arms.items()}

    def add_image(self, role: str, message: Any, stamp_ns: int) -> None:
        """Keep a camera message; its fingerprint tells a frozen camera."""
        source = self._cameras[role]
        seen = fingerprint(message)
        if seen != source.fingerprint or source.message is None:
            source.fingerprint, source.changed_ns = seen, stamp_ns
        source.message, source.stamp_ns = message, stamp_ns
        source.received += 1

    def add_joint_state(
        self, side: str, names: Sequence[str], positions: Sequence[float], stamp_ns: int
    ) -> bool:
        """Keep a joint state and return True, or count it as rejected and remember why."""
        source = self._arms[side]
        source.received += 1
        try:
            source.state = read_arm(source.arm, names, positions)
            source.stamp_ns = stamp_ns
        except ObservationError as error:
            source.rejected += 1
            source.rejection = str(error)
            return False
        return True

    def measured(self) -> NDArray[np.float64] | None:
        """Return the newest (14,) state, or None before both arms have reported."""
        states = [source.state for source in self._arms.values() if source.state is not None]
        return np.concatenate(states) if len(states) == len(self._arms) else None

    def state_age(self, now_ns: int) -> float:
        """Return seconds since the older arm's last good joint state (inf before the first)."""
        return max(
            (now_ns - s.stamp_ns) / NS if s.state is not None else math.inf
            for s in self._arms.values()
        )

    def counts(self) -> dict[str, int]:
        """Return messages received per source."""
        cameras = {role: source.received for role, source in self._cameras.items()}
        return cameras | {f"{s}/joint_states": a.received for s, a in self._arms.items()}

    def ages(self, now_ns: int) -> dict[str, float]:
        """Return seconds from each source's last good stamp to now; inf for a silent one."""
        ages = {
            role: (now_ns - s.stamp_ns) / NS if s.message is not None else math.inf
            for role, s in self._cameras.items()
        }
        for side, source in self._arms.items():
            age = (now_ns - source.stamp_ns) / NS if source.state is not None else math.inf
            ages[f"{side}/joint_states"] = age
        return ages

    def complaints(self, now_ns: int, not_before_ns: int = 0) -> list[str]:
        """Return why no observation can be made now, one sentence per source at fault."""
        found = [c for s in self._cameras.values() if (c := self._of_camera(s, now_ns))]
        found += [c for a in self._arms.values() if (c := self._of_arm(a, now_ns))]
        if found:
            return found
        stamps = {role: s.stamp_ns for role, s in self._cameras.items()}
        newest, oldest = max(stamps, key=stamps.__getitem__), min(stamps, key=stamps.__getitem__)
        skew = (stamps[newest] - stamps[oldest]) / NS
        if skew > self._limits.camera_skew:
            found.append(
                f"{self._cameras[oldest].camera.topic} is {skew:.3f} s behind "
                f"{self._cameras[newest].camera.topic} (limit {self._limits.camera_skew:g} s)"
            )
        stamps |= {f"{side}/joint_states": a.stamp_ns for side, a in self._arms.items()}
        found += [
            f"{name} has not reported since the last chunk ended"
            for name, stamp in stamps.items()
            if stamp < not_before_ns
        ]
        return found

    def lost(self, now_ns: int, *, cameras: bool = True) -> str:
        """Return which source has been gone for too long to go on moving; empty for none.

        Args:
            now_ns: the rig's clock.
            cameras: whether the motion was decided on pictures; else only the arms count.
        """
        limits = self._limits
        for arm in self._arms.values():
            age = (now_ns - arm.stamp_ns) / NS
            if age > limits.state_timeout:
                return (
                    f"{arm.arm.joint_states}: no good joint state for {age:.2f} s "
                    f"(limit {limits.state_timeout:g} s)"
                )
        for camera in self._cameras.values() if cameras else ():
            # A camera that repeats its picture under new stamps shows nothing either.
            newest_ns = camera.changed_ns if limits.frozen_after else camera.stamp_ns
            age = (now_ns - newest_ns) / NS
            if 0 < limits.image_timeout < age:
                return (
                    f"{camera.camera.topic}: no new picture for {age:.2f} s "
                    f"(limit {limits.image_timeout:g} s)"
                )
        return ""

    def observe(self, now_ns: int, not_before_ns: int = 0) -> Observation:
        """Build the observation of this moment.

        Args:
            now_ns: the rig's clock.
            not_before_ns: every source must be stamped at or after this, so that a decision never
                rests on what was seen before the last chunk ended.

        Raises:
            ObservationError: names every source that is missing, stale, frozen, skewed or
                unreadable.
        """
        if complaints := self.complaints(now_ns, not_before_ns):
            raise ObservationError("; ".join(complaints))
        state = self.measured()
        assert state is not None
        images = {
            role: decode_image(
                source.message,
                source.camera.topic,
                grey=source.camera.grey,
                size=source.camera.size,
            )
            for role, source in self._cameras.items()
        }
        stamps = [s.stamp_ns for s in self._cameras.values()]
        stamps += [a.stamp_ns for a in self._arms.values()]
        return Observation(max(stamps), images, state, self.ages(now_ns))

    def _of_camera(self, source: _CameraSource, now_ns: int) -> str | None:
        topic, limits = source.camera.topic, self._limits
        if source.message is None:
            return f"{topic} has sent no image yet: is the camera running and the topic right?"
        age = (now_ns - source.stamp_ns) / NS
        if age > limits.image_age:
            return f"{topic}: last image is {age:.2f} s old (limit {limits.image_age:g} s)"
        same_for = (source.stamp_ns - source.changed_ns) / NS
        if 0 < limits.frozen_after < same_for:
            return (
                f"{topic}: the same picture for {same_for:.2f} s under new stamps "
                f"(limit {limits.frozen_after:g} s): the camera is frozen, restart it"
            )
        encoding = getattr(source.message, "encoding", None)
        if encoding is not None and encoding not in source.camera.encodings:
            accepted = ", ".join(source.camera.encodings)
            return f"{topic}: encoding '{encoding}' is not accepted (rig file: {accepted})"
        return None

    def _of_arm(self, source: _ArmSource, now_ns: int) -> str | None:
        topic, limit = source.arm.joint_states, self._limits.state_age
        rejected = f"; {source.rejected} rejected, the last: {source.rejection}"
        if source.state is None:
            tail = rejected if source.rejected else ": is the arm's driver running?"
            return f"{topic} has sent no good joint state yet{tail}"
        age = (now_ns - source.stamp_ns) / NS
        if age > limit:
            tail = rejected if source.rejected else ""
            return f"{topic}: last good state is {age:.2f} s old (limit {limit:g} s){tail}"
        return None

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Return rows and columns of each camera's newest picture, by role, from its header.

        Raises:
            ObservationError: one is no picture that could be used.
        """
        return {
            role: image_size(source.message, source.camera.topic, grey=source.camera.grey)
            for role, source in self._cameras.items()
            if source.message is not None
        }


def fingerprint(message: Any) -> int:
    """Return a checksum of some 500 bytes of a picture's data."""
    data = np.frombuffer(message.data, np.uint8)
    return zlib.crc32(data[::FINGERPRINT_STRIDE].tobytes())


def read_arm(arm: Arm, names: Sequence[str], positions: Sequence[float]) -> NDArray[np.float64]:
    """Return the (7,) state of one arm from a joint state's names and positions.

    Raises:
        ObservationError: a joint is missing, a value is not finite, or the sample is the -pi burst
            of a failed bus read.
    """
    by_name = dict(zip(names, positions, strict=False))
    gripper, wanted = arm.gripper, arm.state_names
    missing = [name for name in wanted if name not in by_name]
    if missing:
        hint = did_you_mean(missing[0], by_name)
        raise ObservationError(f"joint '{missing[0]}' is not in the message{hint}")
    values = np.array([by_name[name] for name in wanted], np.float64)
    for name, value in zip(wanted, values, strict=True):
        if not math.isfinite(value):
            raise ObservationError(f"joint '{name}' is {value}")
    failed = np.abs(values[:-1] - FAILED_READ) < FAILED_READ_TOLERANCE
    if np.count_nonzero(failed) >= FAILED_READ_JOINTS:
        raise ObservationError(
            f"{np.count_nonzero(failed)} joints read -pi: a failed read of the servo bus"
        )
    values[-1] = gripper.normalize(gripper.reading(float(values[-1])))
    return values
