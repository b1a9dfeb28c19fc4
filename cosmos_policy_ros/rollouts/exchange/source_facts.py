"""What an HDF5 file says of its episode: prompt, score, who, when."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import h5py
import numpy as np

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rig.untrusted import shown
from cosmos_policy_ros.rollouts.exchange.hdf5_layout import (
    DATE_TIME,
    POLICY_NAME,
    SUCCESS,
    SUCCESS_SCORE,
    TASK_DESCRIPTION,
    USER_DESCRIPTION,
    USER_NAME,
    SourceEpisode,
)
from cosmos_policy_ros.rollouts.rubric import Judgement
from cosmos_policy_ros.rollouts.task import FULL_SCORE

DATE_FORMAT = "%Y_%m_%d--%H_%M_%S"
"""As the released ALOHA client writes it."""

UNNAMED_POLICY = "unknown policy"
_DATE_FORMATS = (DATE_FORMAT, "%Y_%m_%d-%H_%M_%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S")
_SPLITS = ("train", "val")
_STEPS_SUFFIX = re.compile(r"_\d+_steps$")


@dataclass(frozen=True)
class SourceFacts:
    """What is known of an episode from its file.

    Attributes:
        prompt: the task's text.
        policy: who drove the arms; "" for a demonstration.
        operator_name: who watched.
        start_ns: when it was recorded, as well as the file tells, nanoseconds since the epoch.
        judgement: of a rollout; None where the file has none.
    """

    prompt: str
    policy: str
    operator_name: str
    start_ns: int
    judgement: Judgement | None


def facts_of(source: SourceEpisode, prompts: Iterable[str], prompt: str = "") -> SourceFacts:
    """Return what the file says.

    Args:
        source: an open file.
        prompts: those of the known tasks, looked for in the folder's name.
        prompt: in place of the file's own.

    Raises:
        RolloutError: an attribute is of a wrong type or outside its range.
    """
    # Released rollouts have all three, demonstrations none.
    rollout = any(key in source.attributes for key in (SUCCESS, SUCCESS_SCORE, POLICY_NAME))
    judgement = _judgement(source)
    return SourceFacts(
        prompt=prompt or _text(source, TASK_DESCRIPTION) or _prompt_of_folder(source, prompts),
        policy=(_text(source, POLICY_NAME) or UNNAMED_POLICY) if rollout else "",
        operator_name=_text(source, USER_NAME),
        start_ns=_start_ns(source),
        judgement=judgement,
    )


def _judgement(source: SourceEpisode) -> Judgement | None:
    given = source.attributes
    if SUCCESS not in given and SUCCESS_SCORE not in given:
        return None
    success = _number(source, SUCCESS) if SUCCESS in given else None
    score = _number(source, SUCCESS_SCORE) if SUCCESS_SCORE in given else float(bool(success))
    if not 0 <= score <= 1:
        raise RolloutError(f"{source.path}: {SUCCESS_SCORE}: {score:g} must be from 0 to 1")
    return Judgement(
        score=score * FULL_SCORE,
        success=score == 1 if success is None else bool(success),
        operator_name=_text(source, USER_NAME),
        note=_text(source, USER_DESCRIPTION),
    )


def _prompt_of_folder(source: SourceEpisode, prompts: Iterable[str]) -> str:
    """Return the prompt that the folder ``<task>``, or ``<task>/{train,val}``, is named after."""
    parents = source.path.resolve().parents
    name = next((p.name for p in parents if p.name not in _SPLITS), "")
    for prompt in sorted(prompts, key=len, reverse=True):
        if prompt.replace(" ", "_") in name:
            return prompt
    prompt = _STEPS_SUFFIX.sub("", name).replace("_", " ").strip()
    if not prompt:
        raise RolloutError(f"{source.path}: has no attribute {TASK_DESCRIPTION}; give --prompt")
    return prompt


def _start_ns(source: SourceEpisode) -> int:
    text = _text(source, DATE_TIME)
    for form in _DATE_FORMATS:
        try:
            seconds = datetime.strptime(text, form).timestamp()
        except (ValueError, OverflowError):
            continue
        if seconds >= 0:
            return round(seconds) * NS_PER_S
    # The time of the file's last change is the only other trace of when it was recorded.
    return round(source.path.stat().st_mtime) * NS_PER_S


def _text(source: SourceEpisode, key: str) -> str:
    value: Any = source.attributes.get(key, "")
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, h5py.Empty):
        return ""
    if not isinstance(value, str):
        raise RolloutError(f"{source.path}: {key}: '{shown(value)}' must be text")
    return value


def _number(source: SourceEpisode, key: str) -> float:
    value: Any = source.attributes[key]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RolloutError(f"{source.path}: {key}: '{shown(value)}' must be a number")
    return number
