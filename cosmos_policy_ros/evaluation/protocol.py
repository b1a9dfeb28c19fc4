"""A protocol of trials at a rig: numbered initial states, laid out by a person, and who meets them.

``config/evaluations/aloha_paper.yaml`` is the paper's (A.3.2).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cosmos_policy_ros.core.config import load_changed, load_yaml, named_file
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import choose_prompt, load_task
from cosmos_policy_ros.evaluation.contenders import (
    Contender,
    check_names,
    check_not_simulated,
    check_numbers,
)
from cosmos_policy_ros.evaluation.plan import InitialState, Job, plan

NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")  # part of a file's name


@dataclass(frozen=True)
class Place:
    """One initial state of a group.

    Attributes:
        number: unique within its task.
        place: what is special about it, for a person.
        prompt: empty for the task's first.
    """

    number: int
    place: str = ""
    prompt: str = ""


@dataclass(frozen=True)
class StateGroup:
    """Initial states of one task under one condition.

    Attributes:
        task: a name in ``config/tasks``.
        condition: in_distribution or out_of_distribution, as a rule.
        setup: what to lay out, the same for all of them.
        states: at least one.
    """

    task: str
    condition: str
    states: tuple[Place, ...]
    setup: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.condition):
            raise ValueError(f"condition: '{self.condition}' must be letters, digits, underscores")
        if not self.states:
            raise ValueError(f"states of {self.task}, {self.condition}: give at least one")
        if (least := min(each.number for each in self.states)) < 0:
            raise ValueError(f"states of {self.task}: number {least} must not be negative")


@dataclass(frozen=True)
class TrialProtocol:
    """A file of ``config/evaluations`` for trials at a rig.

    Attributes:
        name: of the evaluation; its episodes carry it.
        contenders: all are compared with the first.
        groups: of initial states; tasks are done in this order.
        noise_seed: of the policies. The noise of a state is the same for all.
        order_seed: shuffles states and contenders.
        blind: whether who takes part is sealed until the end.
        time_limit: seconds of motion that a trial may take; 0 for the task's own.
    """

    name: str
    contenders: tuple[Contender, ...]
    groups: tuple[StateGroup, ...]
    noise_seed: int = 1
    order_seed: int = 0
    blind: bool = True
    time_limit: float = 0.0

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name: '{self.name}' must be letters, digits and underscores")
        if not (math.isfinite(self.time_limit) and self.time_limit >= 0):
            raise ValueError(f"time_limit: {self.time_limit} s must be finite, 0 or more")
        check_numbers(self, (), ("noise_seed", "order_seed"))
        check_names(self.contenders)
        check_not_simulated(self.contenders)
        for each in self.contenders:
            if each.engine == "replay":
                raise ValueError(f"contender '{each.name}': a rig has no engine replay")
        steps = [each.denoising_steps for each in self.contenders if each.engine == "cosmos"]
        if None in steps and len(set(steps)) > 1:
            raise ValueError(
                "denoising_steps: give them for every contender of engine cosmos or for none: a "
                "node's parameter, once set, cannot be unset"
            )
        count = Counter((state.task, state.number) for state in self.states())
        for (task, number), times in count.items():
            if times > 1:
                raise ValueError(f"states of {task}: number {number} is given {times} times")

    def states(self) -> list[InitialState]:
        """Return all initial states, as the file lists them."""
        return [
            InitialState(
                group.task, group.condition, each.number, each.prompt, group.setup, each.place
            )
            for group in self.groups
            for each in group.states
        ]

    def jobs(self) -> list[Job]:
        """Return all trials in their order."""
        names = [contender.name for contender in self.contenders]
        return plan(names, self.states(), self.noise_seed, self.order_seed)

    def contender(self, name: str) -> Contender:
        """Return a contender by its name."""
        return next(each for each in self.contenders if each.name == name)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(dict.fromkeys(group.task for group in self.groups))

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions, in order."""
        return tuple(dict.fromkeys(group.condition for group in self.groups))


def load_protocol(name: str, changes: Sequence[str] = ()) -> TrialProtocol:
    """Read a protocol whose tasks are all there.

    Args:
        name: a name in ``config/evaluations``, or a file.
        changes: ``key=value`` in place of what the file says.

    Raises:
        ConfigError: it is missing or wrong, or no protocol of trials at a rig.
    """
    file = named_file(name, config_folder("evaluations"))
    if "groups" not in load_yaml(file):
        raise ConfigError(
            f"{file}: is no protocol of trials at a rig; 'cosmos evaluate' may take it"
        )
    protocol = load_changed(TrialProtocol, file, changes)
    check_tasks(protocol)
    return protocol


def check_tasks(protocol: TrialProtocol) -> None:
    """Make sure that every task is there and has the prompts. Raises ConfigError."""
    for state in protocol.states():
        choose_prompt(load_task(state.task, config_folder("tasks")), state.prompt)


def reference_picture(output: Path, state: InitialState) -> Path:
    """Return where the picture of a state lies, in the folder of an evaluation."""
    return output / "states" / f"{state.task}_{state.number:03d}.png"
