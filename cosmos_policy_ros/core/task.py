"""What a trial is about: the prompt, the time it may take, and how it is scored."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from cosmos_policy_ros.core.config import did_you_mean, named_file, parse_config, read_config
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.untrusted import shown

NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
MAX_NAME = 64  # characters; of a file's and a folder's name systems take 255 bytes
TASKS_VARIABLE = "COSMOS_POLICY_TASKS"
"""Environment variable: the folder of the lab's own task files."""
OWN_TASKS = "~/.config/cosmos_policy_ros/tasks"
"""That folder where the variable is not set."""

FULL_SCORE = 100
"""Points of a flawless trial; the paper scores every ALOHA task from 0 to 100."""


@dataclass(frozen=True)
class Stage:
    """One thing the robot has to achieve, and the points for it."""

    name: str
    points: int


@dataclass(frozen=True)
class Deduction:
    """One fault that costs points; ``points`` is the positive number taken off."""

    name: str
    points: int


@dataclass(frozen=True)
class Rubric:
    """How a trial is scored: points per stage reached, less points per fault."""

    stages: tuple[Stage, ...]
    deductions: tuple[Deduction, ...] = ()

    def __post_init__(self) -> None:
        for kind, items in (("stage", self.stages), ("deduction", self.deductions)):
            for item in items:
                if not item.name.strip():
                    raise ValueError(f"rubric: a {kind} has an empty name")
                if item.points <= 0:
                    raise ValueError(
                        f"rubric: {kind} '{item.name}': {item.points} points must be above 0"
                    )
            _check_unique(kind, [item.name for item in items])
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
    rigs: tuple[Literal["real", "sim"], ...]
    rubric: Rubric
    deadline: float = 0.0

    def __post_init__(self) -> None:
        if not _is_name(self.name):
            raise ValueError(
                f"name: '{shown(self.name)}' must be lower-case letters and digits joined by "
                f"underscores, {MAX_NAME} characters at most"
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


class TaskFile(NamedTuple):
    """A task and the text it was read from, of one and the same read."""

    task: Task
    text: str


def choose_prompt(task: Task, prompt: str) -> str:
    """Return the prompt asked for, or the task's first where it is empty.

    Raises:
        ConfigError: it is none of the task's, and a checkpoint knows its prompts letter by letter.
    """
    if prompt and prompt not in task.prompts:
        raise ConfigError(
            f"task '{task.name}' has no prompt '{prompt}'{did_you_mean(prompt, task.prompts)}"
        )
    return prompt or task.prompts[0]


def load_named_task(name: str) -> TaskFile:
    """Load a task for a service or an action: by its name alone, so that no stranger picks a file.

    Raises:
        ConfigError: the name is a path, or no name at all; or as for :func:`read_task`.
    """
    if not _is_name(name):
        raise ConfigError(
            f"task '{shown(name)}' is no task's name: give the name of a file in {_own_tasks()} or "
            f"{config_folder('tasks')}, without folder and ending; a path is taken from the launch "
            f"argument or the parameter 'task' alone"
        )
    return read_task(name, config_folder("tasks"))


def load_task(name_or_path: str, folder: Path) -> Task:
    """Load a task by its name, or by the path of its file; raises as :func:`read_task` does."""
    return read_task(name_or_path, folder).task


def read_task(name_or_path: str, folder: Path) -> TaskFile:
    """Read a task for the operator's own shell: by its name, or by the path of its file.

    Args:
        name_or_path: a name is looked for in the lab's own folder first.
        folder: of the shipped tasks.

    Raises:
        ConfigError: no such task (with the nearest name), no regular file of a bounded size, a
            wrong key or value, or a ``name`` that is not the file's own, which would file episodes
            under another task.
    """
    path = named_file(name_or_path, folder)
    if path.parent == folder and _is_name(name_or_path):
        # Asked of the folder, since a file that cannot be looked at is there all the same.
        own, shipped = _names(_own_tasks()), _names(folder)
        if name_or_path in own:
            path = named_file(name_or_path, _own_tasks())
        elif name_or_path not in shipped:
            raise ConfigError(
                f"there is no task '{name_or_path}' in {_own_tasks()} or {folder}"
                f"{did_you_mean(name_or_path, own | shipped)}"
            )
    text = read_config(path)
    task = parse_config(Task, text, str(path))
    if task.name != path.stem:
        raise ConfigError(f"{path}: name: '{task.name}' must be the file's own, '{path.stem}'")
    return TaskFile(task, text)


def task_names(folder: Path) -> list[str]:
    """Return the names of the lab's own and of the shipped tasks in ``folder``, in order."""
    return sorted(_names(_own_tasks()) | _names(folder))


def _is_name(name: str) -> bool:
    """Return whether a task may be called so; no path is a name."""
    return len(name) <= MAX_NAME and NAME.fullmatch(name) is not None


def _own_tasks() -> Path:
    """Return the folder of the lab's own task files; it need not be there."""
    return Path(os.environ.get(TASKS_VARIABLE) or OWN_TASKS).expanduser()


def _names(folder: Path) -> set[str]:
    try:
        return {path.stem for path in folder.iterdir() if path.suffix == ".yaml"}
    except OSError:
        return set()


def _check_unique(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name.strip():
            raise ValueError(f"a {kind} is empty")
        if name in seen:
            raise ValueError(f"{kind} '{name}' is listed twice; remove one")
        seen.add(name)
