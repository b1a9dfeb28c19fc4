"""The plan of an evaluation: who meets which initial state, in which order, and what is left.

The same plan drives trials in the simulator and on a real rig. What differs is who lays a state out
(a seed or a person) and who scores (the simulator's judge or an operator).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SEEDS_PER_STATE = 1000  # a search's candidates take seeds in a row


@dataclass(frozen=True)
class InitialState:
    """Where a trial begins.

    Attributes:
        task: a name in ``config/tasks``.
        condition: in_distribution, out_of_distribution, or a condition of the simulator's scenes.
        number: unique within the task and condition; in the simulator the seed that places the
            objects.
        prompt: empty for the task's first.
        setup: what to lay out, for a person; the same for all states of a condition.
        place: what is special about this one.
        noise_seed: of the policy; None to have :func:`plan` give one out.
    """

    task: str
    condition: str
    number: int
    prompt: str = ""
    setup: str = ""
    place: str = ""
    noise_seed: int | None = None

    @property
    def title(self) -> str:
        """What it is called in a file name and for people."""
        return f"{self.task}/{self.condition}/{self.number}"


Key = tuple[str, str, str, int, int]
"""Of a trial: contender, task, condition, number of the initial state, seed of the noise."""


@dataclass(frozen=True)
class Job:
    """One trial to be made.

    Attributes:
        contender: its name.
        state: where it begins.
        noise_seed: of the policy; the same for all contenders on a state.
    """

    contender: str
    state: InitialState
    noise_seed: int

    @property
    def key(self) -> Key:
        """As of the trial's result."""
        state = self.state
        return self.contender, state.task, state.condition, state.number, self.noise_seed


class Keyed(Protocol):
    """A result: of which trial, and whether it counts."""

    @property
    def key(self) -> Key:
        """Of the trial."""
        ...

    @property
    def crashed(self) -> bool:
        """Whether it ended by a fault, does not count, and is to be repeated."""
        ...


def plan(
    contenders: Sequence[str], states: Sequence[InitialState], noise_seed: int, order_seed: int
) -> list[Job]:
    """Return all trials in the order in which they are made.

    Task after task in the order given, since changing the objects on a table takes time. Within a
    task the states come shuffled, and on each of them all contenders in turn, shuffled anew: the
    state is laid out alike for all, and drift of light, rig and machine hits all alike.

    Args:
        contenders: names.
        states: noise seeds are given out in this order, anew in every condition.
        noise_seed: of a condition's first state.
        order_seed: shuffles.
    """
    rng = np.random.default_rng(order_seed)
    given: Counter[tuple[str, str]] = Counter()
    by_task: dict[str, list[tuple[InitialState, int]]] = {}
    for state in states:
        seed = state.noise_seed
        if seed is None:
            seed = (noise_seed + given[state.task, state.condition]) * SEEDS_PER_STATE
            given[state.task, state.condition] += 1
        by_task.setdefault(state.task, []).append((state, seed))
    jobs = []
    for numbered in by_task.values():
        for index in rng.permutation(len(numbered)):
            state, seed = numbered[index]
            jobs += [Job(contenders[i], state, seed) for i in rng.permutation(len(contenders))]
    return jobs


def remaining(jobs: Iterable[Job], results: Iterable[Keyed]) -> list[Job]:
    """Return the trials without a result that counts, in order."""
    done = {result.key for result in results if not result.crashed}
    return [job for job in jobs if job.key not in done]
