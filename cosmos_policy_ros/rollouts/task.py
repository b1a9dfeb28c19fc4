"""What a trial is about: the prompt, the time it may take, and how it is scored."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cosmos_policy_ros.errors import ConfigError
from cosmos_policy_ros.rig.config import did_you_mean, load_config, named_file

RigKind = Literal["real", "sim"]

FULL_SCORE = 100
"""Points of a flawless trial; the paper scores every ALOHA task from 0 to 100."""


@dataclass(frozen=True)
class Stage:
    """One thing the robot has to achieve, and the points for it."""

    name: str
    points: int

    def __post_init__(self) -> None:
        _check_points("stage", self.name, self.points)


@dataclass(frozen=True)
class Deduction:
    """One fault that costs points; ``points`` is the positive number taken off."""

    name: str
    points: int

    def __post_init__(self) -> None:
        _check_points("deduction", self.name, self.points)


@dataclass(frozen=True)
class Rubric:
    """How a trial is scored: points per stage reached, less points per fault."""

    stages: tuple[Stage, ...]
    deductions: tuple[Deduction, ...] = ()

    def __post_init__(self) -> None:
        _check_unique("stage", [stage.name for stage in self.stages])
        _check_unique("deduction", [deduction.name for deduction in self.deductions])
        total = sum(stage.points for stage in self.stages)
        if total != FULL_SCORE:
            raise ValueError(
                f"rubric: the stages' points sum to {total}, expected {FULL_SCORE}; "
                f"change the points of a stage"
            )


@dataclass(frozen=True)
class Task:
    """One task file.

    Attributes:
        name: the name of its file and of its episodes: lower-case letters, digits, underscores.
        description: one sentence for the operator.
        prompts: the exact texts a checkpoint was trained on, most common first.
        time_limit: seconds of motion a trial may take.
        rigs: the kinds of rig that can do it.
        rubric: how a trial is scored.
        deadline: wall seconds that one decision may take when it is searched for, the arms
            holding; 0 for as long as it takes.
    """

    name: str
    description: str
    prompts: tuple[str, ...]
    time_limit: float
    rigs: tuple[RigKind, ...]
    rubric: Rubric
    deadline: float = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", self.name):
            raise ValueError(
                f"name: '{self.name}' must be lower-case letters and digits joined by underscores"
            )
        if not (math.isfinite(self.time_limit) and self.time_limit > 0):
            raise ValueError(f"time_limit: {self.time_limit} s must be finite and above 0")
        if not (math.isfinite(self.deadline) and self.deadline >= 0):
            raise ValueError(f"deadline: {self.deadline} s must be finite, 0 or more")
        if not self.prompts:
            raise ValueError("prompts: the list is empty; give at least one")
        if not self.rigs:
            raise ValueError("rigs: the list is empty; give real, sim or both")
        _check_unique("prompt", self.prompts)
        _check_unique("rig", self.rigs)


def choose_prompt(task: Task, prompt: str) -> str:
    """Return the prompt asked for, the task's first when none is.

    Raises:
        ConfigError: not one of the task's: a checkpoint knows its prompts by heart, letter by
            letter.
    """
    if prompt and prompt not in task.prompts:
        raise ConfigError(
            f"task '{task.name}' has no prompt '{prompt}'{did_you_mean(prompt, task.prompts)}"
        )
    return prompt or task.prompts[0]


def load_task(name_or_path: str, folder: Path) -> Task:
    """Load a task by its name in ``folder``, or by the path of its file.

    Raises:
        ConfigError: no such task (with the nearest name), a wrong key or value, or a ``name`` that
            is not the file's own, which would file episodes under another task.
    """
    path = named_file(name_or_path, folder)
    task = load_config(Task, path)
    if task.name != path.stem:
        raise ConfigError(f"{path}: name: '{task.name}' must be the file's own, '{path.stem}'")
    return task


def _check_points(kind: str, name: str, points: int) -> None:
    if not name.strip():
        raise ValueError(f"a {kind} has an empty name")
    if points <= 0:
        raise ValueError(f"{kind} '{name}': {points} points must be above 0")


def _check_unique(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name.strip():
            raise ValueError(f"a {kind} is empty")
        if name in seen:
            raise ValueError(f"{kind} '{name}' is listed twice; remove one")
        seen.add(name)
