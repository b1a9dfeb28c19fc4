"""What the policy sees at one moment; the same code makes it live and from a bag."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.rig.arms import ARM_JOINTS, Arm
from cosmos_policy_ros.rig.clock import Receipt
from cosmos_policy_ros.rig.images import as_jpeg, decode_image, image_size
from cosmos_policy_ros.rig.spec import Camera, ObservationLimits, RigSpec


@dataclass(frozen=True)
class Observation:
    """One moment of the rig, in policy units.

    Attributes:
        stamp_ns: the newest source's stamp, nanoseconds of the clock that the sources stamp by.
        images: one (H, W, 3) uint8 RGB array per camera role, in the order of the rig file
            (left_wrist, right_wrist, primary) or of the benchmark's.
        state: (14,) float64: left arm then right arm, six joints [rad] and the gripper
            (0 closed, 1 open) each. Of a benchmark's robot as wide as its checkpoints take it.
        ages: seconds from each source's stamp to the moment of asking, by camera role and by
            "<arm>/joint_states".
        seen_ns: ``stamp_ns`` on the clock that arms move by; 0 where no arms move.
        stored: the images are of a data set that stored them as a model takes them: upright, and
            through JPEG if at all. A camera's are not.
    """

    stamp_ns: int
    images: Mapping[str, NDArray[np.uint8]]
    state: Array
    ages: Mapping[str, float]
    seen_ns: int = 0
    stored: bool = False

    def digest(self) -> str:
        """Return the sha256 (hex) over stamp, state and pixels: what a decision rests on."""
        sha = hashlib.sha256(self.stamp_ns.to_bytes(8, "little", signed=True))
        sha.update(np.ascontiguousarray(self.state).tobytes())
        for role, image in self.images.items():
            sha.update(role.encode())
            sha.update(np.ascontiguousarray(image).data)
        return sha.hexdigest()


# A failed bus read is published as raw 0, which the driver converts to -pi on every joint.
FAILED_READ = -math.pi
FAILED_READ_TOLERANCE = 1e-3
FAILED_READ_JOINTS = 3
# rad: more than a turn past a limit is no reading of a servo that turns less than once.
IMPOSSIBLE = 2 * math.pi
FINGERPRINT_STRIDE = 997  # prime, so that samples do not line up with image rows


@dataclass
class _Source:
    """The newest message of one source; times on the clock that arms move by."""

    topic: str
    newest: Any = None  # a camera's message or an arm's (7,) state
    stamp_ns: int = 0  # as the source wrote it
    seen_ns: int = 0  # the same moment here
    received: int = 0
    rejected: int = 0
    rejection: str = ""  # of the last message; empty once a good one has come

    def accept(
        self, stamp_ns: int, receipt: Receipt | None, ahead: float, read: Callable[[], Any]
    ) -> bool:
        """Keep what ``read`` returns, or count the message as rejected and remember why."""
        self.received += 1
        received_ns, stamped_ns = receipt or (stamp_ns, stamp_ns)
        early = (stamped_ns - received_ns) / NS_PER_S
        try:
            if early > ahead:
                raise ObservationError(
                    f"stamped {early:.2f} s ahead of this machine's clock (limit {ahead:g} s): "
                    "synchronise the clocks of both machines, with chrony"
                )
            self.newest = read()
        except ObservationError as error:
            self.rejected += 1
            self.rejection = str(error)
            return False
        self.stamp_ns, self.rejection = stamp_ns, ""
        self.seen_ns = min(stamped_ns, received_ns)
        return True

    def age(self, now_ns: int) -> float:
        """Return seconds since the last good stamp; inf for a silent source."""
        return math.inf if self.newest is None else (now_ns - self.seen_ns) / NS_PER_S

    @property
    def rejections(self) -> str:
        """What was wrong with the last messages, as the end of a sentence."""
        if not self.rejection:
            return ""
        return f"; {self.rejected} rejected, the last: {self.rejection}"


@dataclass
class _CameraSource(_Source):
    camera: Camera = field(kw_only=True)
    fingerprint: int | None = None
    changed_ns: int = 0

    def problem(self, now_ns: int, limits: ObservationLimits) -> str:
        """Return why its image cannot be used now, empty if it can."""
        if self.newest is None:
            tail = self.rejections or ": is the camera running and the topic right?"
            return f"{self.topic} has sent no image yet{tail}"
        age, same_for = self.age(now_ns), (self.seen_ns - self.changed_ns) / NS_PER_S
        if age > limits.image_age:
            return (
                f"{self.topic}: last image is {age:.2f} s old (limit {limits.image_age:g} s)"
                f"{self.rejections}"
            )
        if 0 < limits.frozen_after < same_for:
            return (
                f"{self.topic}: the same image for {same_for:.2f} s under new stamps "
                f"(limit {limits.frozen_after:g} s): the camera is frozen, restart it"
            )
        encoding, accepted = getattr(self.newest, "encoding", None), self.camera.encodings
        if encoding is not None and encoding not in accepted:
            return (
                f"{self.topic}: encoding '{shown(encoding)}' is not accepted "
                f"(rig file: {', '.join(accepted)})"
            )
        return ""


@dataclass
class _ArmSource(_Source):
    arm: Arm = field(kw_only=True)

    def problem(self, now_ns: int, limits: ObservationLimits) -> str:
        """Return why its state cannot be used now, empty if it can."""
        if self.newest is None:
            tail = self.rejections or ": is the arm's driver running?"
            return f"{self.topic} has sent no good joint state yet{tail}"
        if (age := self.age(now_ns)) > limits.state_age:
            return (
                f"{self.topic}: last good state is {age:.2f} s old (limit {limits.state_age:g} s)"
                f"{self.rejections}"
            )
        return ""


class SensorBuffer:
    """The newest message of every source, and the checks between them and an observation.

    Messages are only kept on arrival; decoding waits until a query needs the image, which a raw
    camera's goes through the very JPEG that is recorded of it. All ages are
    measured on the clock that arms move by (``rig.clock``); a stamp only says how old a message was
    when it came, and one ahead of this machine's clock says nothing, so its message is not used.
    """

    def __init__(self, rig: RigSpec) -> None:
        """Expect the cameras and arms that ``rig`` names."""
        self._limits, self._recording = rig.observation, rig.recording
        self._cameras: dict[str, _CameraSource] = {
            camera.role: _CameraSource(camera.topic, camera=camera) for camera in rig.cameras
        }
        self._arms = {side: _ArmSource(arm.joint_states, arm=arm) for side, arm in rig.arms.items()}
        self._sources: dict[str, _CameraSource | _ArmSource] = {
            **self._cameras,
            **{f"{side}/joint_states": arm for side, arm in self._arms.items()},
        }

    def add_image(
        self, role: str, message: Any, stamp_ns: int, receipt: Receipt | None = None
    ) -> bool:
        """Keep an Image or CompressedImage and return True, or count it as rejected and why.

        ``receipt`` is None where stamps are of the clock that arms move by.
        """
        source = self._cameras[role]
        if not source.accept(stamp_ns, receipt, self._limits.stamp_ahead, lambda: message):
            return False
        seen = fingerprint(message)
        if seen != source.fingerprint:  # else the camera may be frozen
            source.fingerprint, source.changed_ns = seen, source.seen_ns
        return True

    def add_joint_state(
        self,
        side: str,
        names: Sequence[str],
        positions: Sequence[float],
        stamp_ns: int,
        receipt: Receipt | None = None,
    ) -> bool:
        """Keep a joint state and return True, or count it as rejected and why.

        ``receipt`` is None where stamps are of the clock that arms move by.
        """
        source = self._arms[side]
        return source.accept(
            stamp_ns,
            receipt,
            self._limits.stamp_ahead,
            lambda: read_arm(source.arm, names, positions),
        )

    def measured(self) -> Array | None:
        """Return the newest (14,) state, or None before both arms have reported."""
        states = [arm.newest for arm in self._arms.values() if arm.newest is not None]
        return np.concatenate(states) if len(states) == len(self._arms) else None

    def state_age(self, now_ns: int) -> float:
        """Return seconds since the older arm's last good joint state (inf before the first)."""
        return max(arm.age(now_ns) for arm in self._arms.values())

    def counts(self) -> dict[str, int]:
        """Return messages received per source."""
        return {name: source.received for name, source in self._sources.items()}

    def ages(self, now_ns: int) -> dict[str, float]:
        """Return seconds from each source's last good stamp to now; inf for a silent one."""
        return {name: source.age(now_ns) for name, source in self._sources.items()}

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Return rows and columns of each camera's newest image, by role, from its header.

        Raises:
            ObservationError: one is no image that could be used.
        """
        return {
            role: image_size(source.newest, source.topic, grey=source.camera.grey)
            for role, source in self._cameras.items()
            if source.newest is not None
        }

    def stale_source(self, now_ns: int, *, cameras: bool = True) -> str:
        """Return which source has been gone for too long to go on moving; empty for none.

        Without ``cameras``, for a motion that no image decided, only the arms count.
        """
        limits = self._limits
        for arm in self._arms.values():
            age = arm.age(now_ns)
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

    def problems(self, now_ns: int, not_before_ns: int = 0) -> list[str]:
        """Return why no observation can be made now, one sentence per source at fault."""
        limits = self._limits
        each = [source.problem(now_ns, limits) for source in self._sources.values()]
        if found := [problem for problem in each if problem]:
            return found
        newest = max(self._cameras.values(), key=lambda camera: camera.seen_ns)
        oldest = min(self._cameras.values(), key=lambda camera: camera.seen_ns)
        skew = (newest.seen_ns - oldest.seen_ns) / NS_PER_S
        if skew > limits.camera_skew:
            found.append(
                f"{oldest.topic} is {skew:.3f} s behind {newest.topic} "
                f"(limit {limits.camera_skew:g} s)"
            )
        found += [
            f"{name} has not reported since the last chunk ended"
            for name, source in self._sources.items()
            if source.seen_ns < not_before_ns
        ]
        return found

    def observe(self, now_ns: int, not_before_ns: int = 0) -> Observation:
        """Build the observation of this moment.

        Every source must be stamped at or after ``not_before_ns``, so that a decision never rests
        on what was seen before the last chunk ended.

        Raises:
            ObservationError: names every source that is missing, stale, frozen, skewed or
                unreadable.
        """
        if problems := self.problems(now_ns, not_before_ns):
            raise ObservationError("; ".join(problems))
        state = self.measured()
        assert state is not None
        return Observation(
            stamp_ns=max(source.stamp_ns for source in self._sources.values()),
            images={role: self._image(source) for role, source in self._cameras.items()},
            state=state,
            ages=self.ages(now_ns),
            seen_ns=max(source.seen_ns for source in self._sources.values()),
        )

    def _image(self, source: _CameraSource) -> NDArray[np.uint8]:
        """Return a camera's newest image as its recording shows it."""
        message, camera = source.newest, source.camera
        if camera.transport == "raw" and self._recording.images == "jpeg":
            message = as_jpeg(message, source.topic, self._recording.jpeg_quality)
        return decode_image(message, source.topic, grey=camera.grey, size=camera.size)


def fingerprint(message: Any) -> int:
    """Return a checksum of some 500 bytes of an image's data, which tells a frozen camera.

    A video's image comes with that of the message it was made from.
    """
    if hasattr(message, "pixels"):
        return int(message.fingerprint)
    data = np.frombuffer(message.data, np.uint8) if len(message.data) else np.zeros(0, np.uint8)
    return zlib.crc32(data[::FINGERPRINT_STRIDE].tobytes())


def joint_positions(
    wanted: Sequence[str], names: Sequence[str], positions: Sequence[float]
) -> Array:
    """Return the (n,) positions of the wanted joints, six of an arm first, from a joint state.

    Raises:
        ObservationError: joints are missing or doubled, a value is not finite, or the bus read
            failed.
    """
    if len(names) != len(positions):
        raise ObservationError(f"{len(names)} joint names with {len(positions)} positions")
    by_name = dict(zip(names, positions, strict=True))
    for name in wanted:
        if (count := names.count(name)) > 1:
            raise ObservationError(f"joint '{name}' is named {count} times")
        if name not in by_name:
            hint = did_you_mean(name, by_name)
            raise ObservationError(f"joint '{name}' is not in the message{hint}")
        if not math.isfinite(by_name[name]):
            raise ObservationError(f"joint '{name}' is {by_name[name]}")
    values = np.array([by_name[name] for name in wanted], np.float64)
    failed = np.count_nonzero(np.abs(values[:ARM_JOINTS] - FAILED_READ) < FAILED_READ_TOLERANCE)
    if failed >= FAILED_READ_JOINTS:
        raise ObservationError(f"{failed} joints read -pi: a failed read of the servo bus")
    return values


def read_arm(arm: Arm, names: Sequence[str], positions: Sequence[float]) -> Array:
    """Return the (7,) state of one arm from a joint state's names and positions.

    Raises:
        ObservationError: as for :func:`joint_positions`, or a value is impossible.
    """
    values = joint_positions(arm.state_names, names, positions)
    for name, value, low, high in zip(arm.joints, values, arm.lower, arm.upper, strict=False):
        if not low - IMPOSSIBLE <= value <= high + IMPOSSIBLE:
            raise ObservationError(
                f"joint '{name}' is {value:.2f} rad, its limits are {low:g} to {high:g}: no "
                "reading of this arm"
            )
    values[-1] = arm.gripper.normalize(arm.gripper.reading(float(values[-1])))
    return values
