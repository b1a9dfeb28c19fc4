"""What the policy sees at one moment. The same code makes it live and from a bag."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.rig.arms import Arm
from cosmos_policy_ros.rig.clock import Receipt
from cosmos_policy_ros.rig.images import decode_image, image_size
from cosmos_policy_ros.rig.spec import Camera, RigSpec


@dataclass(frozen=True)
class Observation:
    """One moment of the rig, in policy units.

    Attributes:
        stamp_ns: the newest source's stamp, nanoseconds of the clock that the sources stamp by.
        images: one (H, W, 3) uint8 RGB array per camera role, in the order of the rig file
            (left_wrist, right_wrist, primary).
        state: (14,) float64: left arm then right arm, six joints [rad] and the gripper
            (0 closed, 1 open) each.
        ages: seconds from each source's stamp to the moment of asking, by camera role and by
            "<arm>/joint_states".
        seen_ns: ``stamp_ns`` on the clock that arms move by; 0 where no arms move.
    """

    stamp_ns: int
    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float64]
    ages: Mapping[str, float]
    seen_ns: int = 0

    def digest(self) -> str:
        """Return the sha256 (hex) over stamp, state and pixels: what a decision rests on."""
        sha = hashlib.sha256(self.stamp_ns.to_bytes(8, "little", signed=True))
        sha.update(np.ascontiguousarray(self.state).tobytes())
        for role, image in self.images.items():
            sha.update(role.encode())
            sha.update(np.ascontiguousarray(image).data)
        return sha.hexdigest()


# The newest message of every source, and the gates between them and an observation.
#
# Messages are only kept on arrival; decoding waits until a query needs the image. All ages are
# measured on the clock that arms move by (``rig.clock``); a stamp only says how old a message was
# when it came, and one ahead of this machine's clock says nothing, so its message is not used.


# A failed bus read is published as raw 0, which the driver converts to -pi on every joint.
FAILED_READ = -math.pi
FAILED_READ_TOLERANCE = 1e-3
FAILED_READ_JOINTS = 3
# rad: more than a turn past a limit is no reading of a servo that turns less than once.
IMPOSSIBLE = 2 * math.pi
FINGERPRINT_STRIDE = 997  # prime, so that samples do not line up with image rows


@dataclass
class _Source:
    """What came last of one source; times on the clock that arms move by."""

    topic: str
    stamp_ns: int = 0  # as the source wrote it
    seen_ns: int = 0  # the same moment here
    received: int = 0
    rejected: int = 0
    rejection: str = ""  # of the last message; empty once a good one has come

    def check_ahead(self, receipt: Receipt, limit: float) -> None:
        """Raise ObservationError for a stamp that is ahead of this machine's clock."""
        ahead = (receipt.stamped_ns - receipt.received_ns) / NS_PER_S
        if ahead > limit:
            raise ObservationError(
                f"stamped {ahead:.2f} s ahead of this machine's clock (limit {limit:g} s): "
                "synchronise the clocks of both machines, with chrony"
            )

    def accept(self, stamp_ns: int, receipt: Receipt) -> None:
        """Note when a good message was stamped."""
        self.stamp_ns, self.rejection = stamp_ns, ""
        self.seen_ns = min(receipt.stamped_ns, receipt.received_ns)

    def reject(self, error: ObservationError) -> None:
        """Note what was wrong with a message."""
        self.rejected += 1
        self.rejection = str(error)

    @property
    def rejections(self) -> str:
        """What was wrong with the last messages, as the end of a sentence."""
        if not self.rejection:
            return ""
        return f"; {self.rejected} rejected, the last: {self.rejection}"


@dataclass
class _CameraSource(_Source):
    camera: Camera = field(kw_only=True)
    message: Any = None
    fingerprint: int = 0
    changed_ns: int = 0


@dataclass
class _ArmSource(_Source):
    arm: Arm = field(kw_only=True)
    state: NDArray[np.float64] | None = None


class SensorBuffer:
    """Collects a rig's messages and turns the newest ones into an :class:`Observation`."""

    def __init__(self, rig: RigSpec) -> None:
        """Expect the cameras and arms that ``rig`` names."""
        self._limits = rig.observation
        self._cameras: dict[str, _CameraSource] = {
            camera.role: _CameraSource(camera.topic, camera=camera) for camera in rig.cameras
        }
        self._arms = {side: _ArmSource(arm.joint_states, arm=arm) for side, arm in rig.arms.items()}

    def add_image(
        self, role: str, message: Any, stamp_ns: int, receipt: Receipt | None = None
    ) -> bool:
        """Keep a camera message and return True, or count it as rejected and remember why.

        Its fingerprint tells a frozen camera.

        Args:
            role: of the camera.
            message: Image or CompressedImage.
            stamp_ns: its stamp, nanoseconds.
            receipt: when it came; None where stamps are of the clock that arms move by.
        """
        source = self._cameras[role]
        source.received += 1
        receipt = receipt or Receipt(stamp_ns, stamp_ns)
        try:
            source.check_ahead(receipt, self._limits.stamp_ahead)
        except ObservationError as error:
            source.reject(error)
            return False
        source.accept(stamp_ns, receipt)
        seen = fingerprint(message)
        if seen != source.fingerprint or source.message is None:
            source.fingerprint, source.changed_ns = seen, source.seen_ns
        source.message = message
        return True

    def add_joint_state(
        self,
        side: str,
        names: Sequence[str],
        positions: Sequence[float],
        stamp_ns: int,
        receipt: Receipt | None = None,
    ) -> bool:
        """Keep a joint state and return True, or count it as rejected and remember why.

        Args:
            side: of the arm.
            names: of its joints.
            positions: one for each name.
            stamp_ns: its stamp, nanoseconds.
            receipt: when it came; None where stamps are of the clock that arms move by.
        """
        source = self._arms[side]
        source.received += 1
        receipt = receipt or Receipt(stamp_ns, stamp_ns)
        try:
            source.check_ahead(receipt, self._limits.stamp_ahead)
            source.state = read_arm(source.arm, names, positions)
        except ObservationError as error:
            source.reject(error)
            return False
        source.accept(stamp_ns, receipt)
        return True

    def measured(self) -> NDArray[np.float64] | None:
        """Return the newest (14,) state, or None before both arms have reported."""
        states = [source.state for source in self._arms.values() if source.state is not None]
        return np.concatenate(states) if len(states) == len(self._arms) else None

    def state_age(self, now_ns: int) -> float:
        """Return seconds since the older arm's last good joint state (inf before the first)."""
        return max(
            (now_ns - s.seen_ns) / NS_PER_S if s.state is not None else math.inf
            for s in self._arms.values()
        )

    def counts(self) -> dict[str, int]:
        """Return messages received per source."""
        return {name: source.received for name, source in self._named()}

    def ages(self, now_ns: int) -> dict[str, float]:
        """Return seconds from each source's last good stamp to now; inf for a silent one."""
        return {
            name: (now_ns - source.seen_ns) / NS_PER_S if _has_come(source) else math.inf
            for name, source in self._named()
        }

    def problems(self, now_ns: int, not_before_ns: int = 0) -> list[str]:
        """Return why no observation can be made now, one sentence per source at fault."""
        found = [c for s in self._cameras.values() if (c := self._of_camera(s, now_ns))]
        found += [c for a in self._arms.values() if (c := self._of_arm(a, now_ns))]
        if found:
            return found
        newest = max(self._cameras.values(), key=lambda camera: camera.seen_ns)
        oldest = min(self._cameras.values(), key=lambda camera: camera.seen_ns)
        skew = (newest.seen_ns - oldest.seen_ns) / NS_PER_S
        if skew > self._limits.camera_skew:
            found.append(
                f"{oldest.topic} is {skew:.3f} s behind {newest.topic} "
                f"(limit {self._limits.camera_skew:g} s)"
            )
        found += [
            f"{name} has not reported since the last chunk ended"
            for name, source in self._named()
            if source.seen_ns < not_before_ns
        ]
        return found

    def stale_source(self, now_ns: int, *, cameras: bool = True) -> str:
        """Return which source has been gone for too long to go on moving; empty for none.

        Args:
            now_ns: the clock that arms move by.
            cameras: whether the motion was decided on images; else only the arms count.
        """
        limits = self._limits
        for arm in self._arms.values():
            age = (now_ns - arm.seen_ns) / NS_PER_S
            if age > limits.state_timeout:
                return (
                    f"{arm.topic}: no good joint state for {age:.2f} s "
                    f"(limit {limits.state_timeout:g} s){arm.rejections}"
                )
        for camera in self._cameras.values() if cameras else ():
            # A camera that repeats its image under new stamps shows nothing either.
            newest_ns = camera.changed_ns if limits.frozen_after else camera.seen_ns
            age = (now_ns - newest_ns) / NS_PER_S
            if 0 < limits.image_timeout < age:
                return (
                    f"{camera.topic}: no new image for {age:.2f} s "
                    f"(limit {limits.image_timeout:g} s){camera.rejections}"
                )
        return ""

    def observe(self, now_ns: int, not_before_ns: int = 0) -> Observation:
        """Build the observation of this moment.

        Args:
            now_ns: the clock that arms move by.
            not_before_ns: every source must be stamped at or after this, so that a decision never
                rests on what was seen before the last chunk ended.

        Raises:
            ObservationError: names every source that is missing, stale, frozen, skewed or
                unreadable.
        """
        if problems := self.problems(now_ns, not_before_ns):
            raise ObservationError("; ".join(problems))
        state = self.measured()
        assert state is not None
        images = {
            role: decode_image(
                source.message,
                source.topic,
                grey=source.camera.grey,
                size=source.camera.size,
            )
            for role, source in self._cameras.items()
        }
        sources = [source for _, source in self._named()]
        return Observation(
            stamp_ns=max(source.stamp_ns for source in sources),
            images=images,
            state=state,
            ages=self.ages(now_ns),
            seen_ns=max(source.seen_ns for source in sources),
        )

    def _named(self) -> list[tuple[str, _CameraSource | _ArmSource]]:
        cameras: list[tuple[str, _CameraSource | _ArmSource]] = [*self._cameras.items()]
        return cameras + [(f"{side}/joint_states", arm) for side, arm in self._arms.items()]

    def _of_camera(self, source: _CameraSource, now_ns: int) -> str | None:
        topic, limits = source.topic, self._limits
        if source.message is None:
            tail = source.rejections or ": is the camera running and the topic right?"
            return f"{topic} has sent no image yet{tail}"
        age = (now_ns - source.seen_ns) / NS_PER_S
        if age > limits.image_age:
            return (
                f"{topic}: last image is {age:.2f} s old (limit {limits.image_age:g} s)"
                f"{source.rejections}"
            )
        same_for = (source.seen_ns - source.changed_ns) / NS_PER_S
        if 0 < limits.frozen_after < same_for:
            return (
                f"{topic}: the same image for {same_for:.2f} s under new stamps "
                f"(limit {limits.frozen_after:g} s): the camera is frozen, restart it"
            )
        encoding = getattr(source.message, "encoding", None)
        if encoding is not None and encoding not in source.camera.encodings:
            accepted = ", ".join(source.camera.encodings)
            return f"{topic}: encoding '{shown(encoding)}' is not accepted (rig file: {accepted})"
        return None

    def _of_arm(self, source: _ArmSource, now_ns: int) -> str | None:
        topic, limit = source.topic, self._limits.state_age
        if source.state is None:
            tail = source.rejections or ": is the arm's driver running?"
            return f"{topic} has sent no good joint state yet{tail}"
        age = (now_ns - source.seen_ns) / NS_PER_S
        if age > limit:
            return (
                f"{topic}: last good state is {age:.2f} s old (limit {limit:g} s)"
                f"{source.rejections}"
            )
        return None

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Return rows and columns of each camera's newest image, by role, from its header.

        Raises:
            ObservationError: one is no image that could be used.
        """
        return {
            role: image_size(source.message, source.topic, grey=source.camera.grey)
            for role, source in self._cameras.items()
            if source.message is not None
        }


def _has_come(source: _CameraSource | _ArmSource) -> bool:
    kept = source.message if isinstance(source, _CameraSource) else source.state
    return kept is not None


def fingerprint(message: Any) -> int:
    """Return a checksum of some 500 bytes of an image's data."""
    data = np.frombuffer(message.data, np.uint8) if len(message.data) else np.zeros(0, np.uint8)
    return zlib.crc32(data[::FINGERPRINT_STRIDE].tobytes())


def read_arm(arm: Arm, names: Sequence[str], positions: Sequence[float]) -> NDArray[np.float64]:
    """Return the (7,) state of one arm from a joint state's names and positions.

    Raises:
        ObservationError: a joint is missing or named twice, names and positions differ in number, a
            value is not finite or no such servo's, or the sample is the -pi burst of a failed bus
            read.
    """
    if len(names) != len(positions):
        raise ObservationError(f"{len(names)} joint names with {len(positions)} positions")
    by_name = dict(zip(names, positions, strict=True))
    gripper, wanted = arm.gripper, arm.state_names
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise ObservationError(f"joint '{twice[0]}' is named {names.count(twice[0])} times")
    missing = [name for name in wanted if name not in by_name]
    if missing:
        hint = did_you_mean(missing[0], by_name)
        raise ObservationError(f"joint '{missing[0]}' is not in the message{hint}")
    values = np.array([by_name[name] for name in wanted], np.float64)
    for name, value in zip(wanted, values, strict=True):
        if not math.isfinite(value):
            raise ObservationError(f"joint '{name}' is {value}")
    for name, value, low, high in zip(arm.joints, values, arm.lower, arm.upper, strict=False):
        if not low - IMPOSSIBLE <= value <= high + IMPOSSIBLE:
            raise ObservationError(
                f"joint '{name}' is {value:.2f} rad, its limits are {low:g} to {high:g}: no "
                "reading of this arm"
            )
    failed = np.abs(values[:-1] - FAILED_READ) < FAILED_READ_TOLERANCE
    if np.count_nonzero(failed) >= FAILED_READ_JOINTS:
        raise ObservationError(
            f"{np.count_nonzero(failed)} joints read -pi: a failed read of the servo bus"
        )
    values[-1] = gripper.normalize(gripper.reading(float(values[-1])))
    return values
