"""The two messages this room writes itself: an episode's facts and its scores, to and from CDR."""

from __future__ import annotations

import dataclasses
import math
import struct
from dataclasses import dataclass
from typing import Any

from rosbags.serde import SerdeError
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts.task import FULL_SCORE
from cosmos_policy_ros.rollouts.types import PACKAGE

EPISODE_TYPE = f"{PACKAGE}/msg/Episode"
SCORE_TYPE = f"{PACKAGE}/msg/Score"
_HEADER_TYPE = "std_msgs/msg/Header"
_TIME_TYPE = "builtin_interfaces/msg/Time"

_SECOND = 1_000_000_000  # ns
MAX_STAMP_NS = 2**31 * _SECOND - 1
"""Newest stamp that builtin_interfaces/Time can hold: its seconds are an int32."""


@dataclass(frozen=True)
class EpisodeFacts:
    """What an episode was, known when it begins; the fields of ``Episode.msg`` less its header.

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

    def __post_init__(self) -> None:
        _check_texts(self)
        if not 0 <= self.seed < 2**64:
            raise RolloutError(f"seed: {self.seed} must be from 0 to {2**64 - 1}")

    def custom_data(self) -> dict[str, str]:
        """Return the facts for ``metadata.yaml``, all but the two whole YAML texts.

        ``ros2 bag info`` prints every entry, and two files of a hundred lines would bury the rest.
        """
        values = dataclasses.asdict(self)
        return {k: str(v) for k, v in values.items() if k not in ("rig_yaml", "task_yaml")}


@dataclass(frozen=True)
class Score:
    """One label of one episode; the one with the highest revision counts.

    Attributes:
        episode_id: the episode it is about.
        revision: 1, 2, ... per episode.
        score: 0 to 100 points, rounded to the float32 that the message holds.
        success: whether the task was done.
        operator_name: who says so.
        note: free text.
        stamp_ns: when it was said, nanoseconds of the recorder's clock.

    Raises:
        RolloutError: a score that is not a number from 0 to 100, or a text ROS cannot carry.
    """

    episode_id: str
    revision: int
    score: float
    success: bool
    operator_name: str
    note: str
    stamp_ns: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.score) and 0 <= self.score <= FULL_SCORE):
            raise RolloutError(
                f"score: {self.score} must be a number from 0 to {FULL_SCORE}; nothing was "
                f"written, score episode '{self.episode_id}' again"
            )
        _check_texts(self)
        object.__setattr__(self, "score", struct.unpack("<f", struct.pack("<f", self.score))[0])


def encode_facts(types: Typestore, facts: EpisodeFacts, stamp_ns: int) -> bytes:
    """Serialise the facts as ``Episode.msg``, stamped with the episode's begin."""
    fields = {"header": _header(types, stamp_ns), **dataclasses.asdict(facts)}
    return bytes(types.serialize_cdr(types.types[EPISODE_TYPE](**fields), EPISODE_TYPE))


def decode_facts(types: Typestore, cdr: bytes) -> EpisodeFacts:
    """Read an ``Episode.msg`` back. Raises RolloutError when it is none."""
    message = _decode(types, cdr, EPISODE_TYPE)
    names = [f.name for f in dataclasses.fields(EpisodeFacts)]
    return EpisodeFacts(**{name: getattr(message, name) for name in names})


def encode_score(types: Typestore, score: Score) -> bytes:
    """Serialise a score as ``Score.msg``."""
    fields = dataclasses.asdict(score)
    header = _header(types, fields.pop("stamp_ns"))
    return bytes(types.serialize_cdr(types.types[SCORE_TYPE](header=header, **fields), SCORE_TYPE))


def decode_score(types: Typestore, cdr: bytes) -> Score:
    """Read a ``Score.msg`` back. Raises RolloutError when it is none, or holds no valid score."""
    message = _decode(types, cdr, SCORE_TYPE)
    stamp = message.header.stamp
    names = [f.name for f in dataclasses.fields(Score) if f.name != "stamp_ns"]
    return Score(
        **{name: getattr(message, name) for name in names},
        stamp_ns=stamp.sec * _SECOND + stamp.nanosec,
    )


def check_stamp(stamp_ns: int, what: str) -> None:
    """Refuse a time that a bag or a ROS header cannot hold.

    Raises:
        RolloutError: ``stamp_ns`` is negative or past :data:`MAX_STAMP_NS`.
    """
    if not 0 <= stamp_ns <= MAX_STAMP_NS:
        raise RolloutError(
            f"{what}: stamp {stamp_ns} ns must be from 0 to {MAX_STAMP_NS} ns; check the clock"
        )


def check_text(name: str, value: str) -> None:
    """Refuse what a CDR string cannot carry to a C++ reader.

    Raises:
        RolloutError: ``value`` holds a NUL, or a half of a surrogate pair.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RolloutError(f"{name}: {value!r} is not Unicode text: {error}") from None
    if "\0" in value:
        raise RolloutError(f"{name}: {value!r} holds a NUL character; remove it")


def _header(types: Typestore, stamp_ns: int) -> Any:
    check_stamp(stamp_ns, "header")
    sec, nanosec = divmod(stamp_ns, _SECOND)
    return types.types[_HEADER_TYPE](
        stamp=types.types[_TIME_TYPE](sec=sec, nanosec=nanosec), frame_id=""
    )


def _decode(types: Typestore, cdr: bytes, msgtype: str) -> Any:
    try:
        return types.deserialize_cdr(cdr, msgtype)
    except SerdeError as error:
        raise RolloutError(f"a {msgtype} message cannot be read: {error}") from error


def _check_texts(record: Any) -> None:
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, str):
            check_text(field.name, value)
