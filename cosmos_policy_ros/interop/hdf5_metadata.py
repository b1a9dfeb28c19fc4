"""What an HDF5 file's attributes tell of its episode: prompt, score, operator, date."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.task import FULL_SCORE
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import escaped, shown
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.interop.foreign_episode import SourceMetadata, check_prompt

SIM, TASK_DESCRIPTION = "sim", "task_description"
SUCCESS, SUCCESS_SCORE = "success", "success_score"
USER_DESCRIPTION, USER_NAME = "user_description", "user_name"
POLICY_NAME, DATE_TIME = "policy_name", "date_time"
ATTRIBUTES = (
    SIM,
    TASK_DESCRIPTION,
    SUCCESS,
    SUCCESS_SCORE,
    USER_DESCRIPTION,
    USER_NAME,
    POLICY_NAME,
    DATE_TIME,
)
"""The attributes of the file's root that are read, beside those that tell a rate."""
DATE_FORMAT = "%Y_%m_%d--%H_%M_%S"
"""As the released ALOHA client writes :data:`DATE_TIME`."""
_DATE_FORMATS = (
    DATE_FORMAT,
    "%Y_%m_%d-%H_%M_%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
)


@dataclass(frozen=True)
class _Attributes:
    """Attributes of a file's root, of whatever type their recorder wrote."""

    path: Path
    values: Mapping[str, Any]

    def text(self, key: str, *, as_it_is: bool = False) -> str:
        """Return a text, with what cannot be shown escaped, unless ``as_it_is``: one line.

        A note may have several.
        """
        value: Any = self.values.get(key, "")
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if isinstance(value, h5py.Empty):
            return ""
        if not isinstance(value, str):
            raise RolloutError(f"{self.path}: {key}: '{shown(value)}' must be text")
        if "\0" in value:
            raise RolloutError(
                f"{self.path}: {key}: {shown(value)} holds a NUL character; remove it"
            )
        if as_it_is:
            return value.strip("\r\n")
        return escaped(value, "\n\t" if key == USER_DESCRIPTION else "")

    def number(self, key: str) -> float:
        value: Any = self.values[key]
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise RolloutError(f"{self.path}: {key}: '{shown(value)}' must be a number")
        return number


def metadata_of(
    path: Path, given: Mapping[str, Any], prompts: Iterable[str], prompt: str | None = None
) -> SourceMetadata:
    """Return what a file tells.

    Args:
        path: of the file.
        given: those of :data:`ATTRIBUTES` that it has.
        prompts: those of the known tasks, looked for in the folder's name.
        prompt: in place of the file's own.

    Raises:
        RolloutError: an attribute is of a wrong type or outside its range.
    """
    file = _Attributes(path, given)
    operator_score = None
    if SUCCESS in given or SUCCESS_SCORE in given:
        success = file.number(SUCCESS) if SUCCESS in given else None
        key = SUCCESS_SCORE
        score = file.number(key) if key in given else float(bool(success))
        if not 0 <= score <= 1:
            raise RolloutError(f"{path}: {key}: {score:g} must be from 0 to 1")
        operator_score = OperatorScore(
            score=score * FULL_SCORE,
            success=score == 1 if success is None else bool(success),
            operator_name=file.text(USER_NAME),
            note=file.text(USER_DESCRIPTION),
        )
    # Released rollouts have all three, demonstrations none.
    rollout = operator_score is not None or POLICY_NAME in given
    prompt = prompt or file.text(TASK_DESCRIPTION, as_it_is=True)
    prompt = prompt or _prompt_of_folder(path, prompts)
    check_prompt(path, prompt)
    return SourceMetadata(
        prompt=prompt,
        policy=(file.text(POLICY_NAME) or "unknown policy") if rollout else "",
        operator_name=file.text(USER_NAME),
        start_ns=_start_ns(file),
        operator_score=operator_score,
    )


def _prompt_of_folder(path: Path, prompts: Iterable[str]) -> str:
    """Return the prompt that the folder ``<task>``, or ``<task>/{train,val}``, is named after."""
    parents = path.resolve().parents
    name = next((p.name for p in parents if p.name not in ("train", "val")), "")
    for prompt in sorted(prompts, key=len, reverse=True):
        if prompt.replace(" ", "_") in name:
            return prompt
    prompt = re.sub(r"_\d+_steps$", "", name).replace("_", " ").strip()
    if not prompt:
        raise RolloutError(f"{path}: has no attribute {TASK_DESCRIPTION}; give --prompt")
    return prompt


def _start_ns(file: _Attributes) -> int:
    text = file.text(DATE_TIME)
    for form in _DATE_FORMATS:
        try:
            seconds = datetime.strptime(text, form).timestamp()
        except (ValueError, OverflowError):
            continue
        if seconds >= 0:
            return round(seconds) * NS_PER_S
    # The time of the file's last change is the only other trace of when it was recorded.
    return round(file.path.stat().st_mtime) * NS_PER_S
