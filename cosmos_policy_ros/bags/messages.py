"""Messages as CDR, without ROS: an episode's metadata, its labels, a rig's sensors and targets."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.jpeg import COMPRESSED, IMAGE, ImageArray
from cosmos_policy_ros.bags.types import PACKAGE
from cosmos_policy_ros.core.config import from_mapping
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.task import FULL_SCORE
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.core.untrusted import UnreadableError, reading, shown
from cosmos_policy_ros.rig.arms import ARM_JOINTS, Arm
from cosmos_policy_ros.rig.decision import Decision, Query, message_fields
from cosmos_policy_ros.rig.images import JPEG_FORMAT
from cosmos_policy_ros.rig.spec import RigSpec

EPISODE_TYPE = f"{PACKAGE}/msg/Episode"
LABEL_TYPE = f"{PACKAGE}/msg/Label"
DECISION_TYPE = f"{PACKAGE}/msg/Decision"
LabelKind = Literal["score", "stage", "deduction", "discard"]

HEADER_BYTES = 12  # of a message's kind of encoding, and the stamp of its header
MAX_TEXT = 10_000
"""Characters of each text of a label; a page has two thousand."""
MAX_REVISION = 1_000_000
"""Of a label; an operator gives some ten per episode."""
MAX_STAMP_NS = 2**31 * NS_PER_S - 1
"""Newest stamp that builtin_interfaces/Time can hold: its seconds are an int32."""


def header_stamp(cdr: bytes) -> int:
    """Return the stamp [ns] of a serialised message that begins with a header; 0 if it is cut."""
    if len(cdr) < HEADER_BYTES:
        return 0
    little = cdr[1] & 1
    sec, nanosec = struct.unpack_from("<iI" if little else ">iI", cdr, 4)
    return int(sec) * NS_PER_S + int(nanosec)


def check_stamp(stamp_ns: int, what: str) -> None:
    """Refuse a time that a bag or a ROS header cannot hold; raises RolloutError."""
    if not 0 <= stamp_ns <= MAX_STAMP_NS:
        raise RolloutError(
            f"{what}: stamp {stamp_ns} ns must be from 0 to {MAX_STAMP_NS} ns; check the clock"
        )


def check_text(name: str, value: str) -> None:
    """Refuse what a CDR string cannot carry to a C++ reader; raises RolloutError."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RolloutError(
            f"{name}: {shown(value)} is not Unicode text: character {error.start} is half a pair"
        ) from None
    if "\0" in value:
        raise RolloutError(f"{name}: {shown(value)} holds a NUL character; remove it")


@dataclass(frozen=True)
class EpisodeMetadata:
    """What is known of an episode when it begins; the fields of ``Episode.msg`` less its header.

    Raises:
        RolloutError: a text that ROS cannot carry, or a seed outside uint64.
    """

    task: str
    prompt: str
    rig: str
    engine: str = ""
    checkpoint: str = ""
    checkpoint_digest: str = ""
    operator_name: str = ""
    package_version: str = ""
    seed: int = 0
    rig_yaml: str = ""
    task_yaml: str = ""
    episode_id: str = ""
    trial: str = ""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if name != "seed":
                check_text(name, value)
        if not 0 <= self.seed < 2**64:
            raise RolloutError(f"seed: {self.seed} must be from 0 to {2**64 - 1}")

    def custom_data(self) -> dict[str, str]:
        """Return the metadata for ``metadata.yaml``, all but the two whole YAML texts.

        ``ros2 bag info`` prints every entry, and two files of a hundred lines would bury the rest.
        """
        values = dataclasses.asdict(self)
        return {k: str(v) for k, v in values.items() if k not in ("rig_yaml", "task_yaml")}


@dataclass(frozen=True)
class Label:
    """An operator's judgement of an episode, or a part of it; the fields of ``Label.msg``.

    Attributes:
        episode_id: the episode it is about.
        revision: 1, 2, ... per episode, over all its labels; 0 until it is given one.
        kind: "score", "stage", "deduction" or "discard".
        stamp_ns: when it was given, nanoseconds of the recorder's clock.
        item: name of the stage or deduction.
        points: of a score 0 to 100, of a stage or deduction its own; rounded to the float32 that
            the message holds.
        success: of a score, whether the task was done.
        operator_name: who gave it.
        note: free text; of a discard, the reason.

    Raises:
        RolloutError: an unknown kind, points that are not a number from 0 to 100, or a text ROS
            cannot carry.
    """

    episode_id: str
    revision: int
    kind: LabelKind
    stamp_ns: int
    item: str = ""
    points: float = 0.0
    success: bool = False
    operator_name: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(LabelKind):
            known = ", ".join(get_args(LabelKind))
            raise RolloutError(f"a label of kind '{self.kind}' is none of {known}")
        if not (math.isfinite(self.points) and 0 <= self.points <= FULL_SCORE):
            raise RolloutError(
                f"{self.kind}: {self.points} must be a number from 0 to {FULL_SCORE}; nothing was "
                f"written, score episode '{self.episode_id}' again"
            )
        if not 0 <= self.revision <= MAX_REVISION:
            raise RolloutError(
                f"{self.kind}: revision {self.revision} must be from 0 to {MAX_REVISION}"
            )
        for name in ("episode_id", "item", "operator_name", "note"):
            text = getattr(self, name)
            check_text(name, text)
            if len(text) > MAX_TEXT:
                raise RolloutError(
                    f"{self.kind}: a text of {len(text)} characters, at most {MAX_TEXT} are taken; "
                    f"nothing was written, shorten it"
                )
        rounded = struct.unpack("<f", struct.pack("<f", self.points))[0]
        object.__setattr__(self, "points", rounded)


def encode_metadata(types: Typestore, metadata: EpisodeMetadata, stamp_ns: int) -> bytes:
    """Serialise the metadata as ``Episode.msg``, stamped with the episode's begin."""
    fields = dataclasses.asdict(metadata)
    return _serialise(types, EPISODE_TYPE, header=_header(types, stamp_ns), **fields)


def decode_metadata(types: Typestore, cdr: bytes) -> EpisodeMetadata:
    """Read an ``Episode.msg`` back. Raises RolloutError when it is none."""
    # Generated code fed damaged bytes, or the bag's own definition of the type, may raise anything.
    with reading("the metadata of an episode", EPISODE_TYPE, RolloutError):
        message: Any = types.deserialize_cdr(cdr, EPISODE_TYPE)
        values = {
            f.name: getattr(message, f.name)
            for f in dataclasses.fields(EpisodeMetadata)
            # Older bags' own definition of the type has no trial.
            if f.name != "trial" or hasattr(message, f.name)
        }
        for name, value in values.items():
            if type(value) is not (int if name == "seed" else str):
                raise UnreadableError(f"{name} is {type(value).__name__}")
        return EpisodeMetadata(**values)


def encode_label(types: Typestore, label: Label) -> bytes:
    """Serialise a label as ``Label.msg``."""
    fields = dataclasses.asdict(label)
    header = _header(types, fields.pop("stamp_ns"))
    return _serialise(types, LABEL_TYPE, header=header, **fields)


def decode_label(types: Typestore, cdr: bytes) -> Label:
    """Read a ``Label.msg`` back. Raises RolloutError when it is none, or holds no valid label."""
    names = [f.name for f in dataclasses.fields(Label) if f.name != "stamp_ns"]
    with reading("a label", LABEL_TYPE, RolloutError):  # as above
        message: Any = types.deserialize_cdr(cdr, LABEL_TYPE)
        values = {name: getattr(message, name) for name in names}
        stamp = message.header.stamp
        values["stamp_ns"] = stamp.sec * NS_PER_S + stamp.nanosec
        return from_mapping(Label, values, "a label")


def _header(types: Typestore, stamp_ns: int, frame_id: str = "") -> Any:
    check_stamp(stamp_ns, "header")
    sec, nanosec = divmod(stamp_ns, NS_PER_S)
    stamp = types.types["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)
    return types.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)


def _serialise(types: Typestore, msgtype: str, **fields: Any) -> bytes:
    return bytes(types.serialize_cdr(types.types[msgtype](**fields), msgtype))


NO_NUMBERS = np.zeros(0)


class RigMessages:
    """Makes CDR bytes of what a rig's drivers and its policy would have published."""

    def __init__(self, types: Typestore) -> None:
        """Make messages of the types in ``types``."""
        self._types = types

    def image(self, image: ImageArray, stamp_ns: int) -> bytes:
        """Return a CompressedImage with the very bytes of a JPEG, or an Image of RGB pixels."""
        header = _header(self._types, stamp_ns)
        if isinstance(image, bytes):
            data = np.frombuffer(image, np.uint8)
            said = JPEG_FORMAT
            return _serialise(self._types, COMPRESSED, header=header, format=said, data=data)
        height, width, channels = image.shape
        return _serialise(
            self._types,
            IMAGE,
            header=header,
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=width * channels,
            data=np.ascontiguousarray(image).ravel(),
        )

    def joint_state(
        self, arm: Arm, stamp_ns: int, position: Array, velocity: Array | None, effort: Array | None
    ) -> bytes:
        """Return a JointState that ``rig.observation.read_arm`` reads as ``position``.

        Args:
            arm: whose gripper is read from a finger or a motor angle, not through a crank.
            stamp_ns: of the header.
            position: (7,) policy units.
            velocity: (7,) policy units per second, or None: not measured.
            effort: (7,) as the source has it, or None.
        """
        gripper = arm.gripper
        assert gripper.state_source != "crank", "see rig_as_imported"
        stroke = gripper.state_stroke
        position = position.copy()
        position[ARM_JOINTS] = gripper.state_closed + position[ARM_JOINTS] * stroke
        if velocity is not None:
            velocity = velocity.copy()
            velocity[ARM_JOINTS] *= stroke
        return self.joints(arm.state_names, stamp_ns, position, velocity, effort)

    def joints(
        self,
        names: Sequence[str],
        stamp_ns: int,
        position: Array,
        velocity: Array | None = None,
        effort: Array | None = None,
    ) -> bytes:
        """Return a JointState of these joints, in a driver's units."""
        return _serialise(
            self._types,
            "sensor_msgs/msg/JointState",
            header=_header(self._types, stamp_ns),
            name=list(names),
            position=position,
            velocity=NO_NUMBERS if velocity is None else velocity,
            effort=NO_NUMBERS if effort is None else effort.copy(),
        )

    def trajectories(
        self,
        rig: RigSpec,
        chunk_id: str,
        start_ns: int,
        step_ns: int,
        rows: Array,
        velocities: Array | None = None,
        sent_after_ns: int = 0,
    ) -> Iterator[tuple[str, bytes]]:
        """Yield (topic, JointTrajectory) of (K, 14) targets in policy units for each output.

        Row i is due ``(i + 1) * step_ns - sent_after_ns`` after ``start_ns``. Without
        ``velocities``, (K, 14) in policy units per second, a controller interpolates linearly.
        """
        rows = rig.command(rows)
        speeds = None if velocities is None else rig.command_speed(velocities)
        point = self._types.types["trajectory_msgs/msg/JointTrajectoryPoint"]
        duration = self._types.types["builtin_interfaces/msg/Duration"]
        for output in rig.outputs:
            columns = list(output.columns)
            points = []
            for i, row in enumerate(rows):
                sec, nanosec = divmod((i + 1) * step_ns - sent_after_ns, NS_PER_S)
                points.append(
                    point(
                        positions=row[columns],
                        velocities=NO_NUMBERS if speeds is None else speeds[i, columns],
                        accelerations=NO_NUMBERS,
                        effort=NO_NUMBERS,
                        time_from_start=duration(sec=sec, nanosec=nanosec),
                    )
                )
            cdr = _serialise(
                self._types,
                "trajectory_msgs/msg/JointTrajectory",
                header=_header(self._types, start_ns, chunk_id),
                joint_names=list(output.joints),
                points=points,
            )
            yield output.topic, cdr

    def decision(self, decision: Decision, query: Query, chunk_id: str, seconds: float) -> bytes:
        """Return a Decision that took so many wall seconds."""
        run_id = chunk_id.rpartition("/")[0]
        phases = {**decision.phases, "decide": seconds}
        fields = message_fields(decision, query, run_id, chunk_id, phases)
        candidate = self._types.types[f"{PACKAGE}/msg/Candidate"]
        fields["candidates"] = [candidate(**each) for each in fields["candidates"]]
        header = _header(self._types, query.observation.stamp_ns)
        return _serialise(self._types, DECISION_TYPE, header=header, **fields)
