"""From what an operator saw to a score: a total, or stages and deductions by the task's rubric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rig.config import did_you_mean
from cosmos_policy_ros.rollouts.task import FULL_SCORE, Rubric

TOLERANCE = 1e-3  # points; a total that came through a float32


@dataclass(frozen=True)
class Judgement:
    """What an operator says of a trial.

    Attributes:
        score: 0 to 100; None to have it computed from stages and deductions.
        success: whether the task was done.
        stages: names of the stages reached.
        deductions: names of the deductions charged.
        operator_name: who says so.
        note: free text.
    """

    score: float | None = None
    success: bool = False
    stages: tuple[str, ...] = ()
    deductions: tuple[str, ...] = ()
    operator_name: str = ""
    note: str = ""


@dataclass(frozen=True)
class Tally:
    """A judgement in points: the total, and those of each stage and deduction named in it."""

    total: float
    stages: Mapping[str, int]
    deductions: Mapping[str, int]


def tally(judgement: Judgement, rubric: Rubric | None) -> Tally:
    """Add a judgement up.

    Raises:
        RolloutError: neither a total nor a stage, a total outside 0 to 100, a stage or deduction
            that the rubric does not have or that is named twice, or a total that is not their sum.
    """
    given = judgement.score
    if given is not None and not (math.isfinite(given) and 0 <= given <= FULL_SCORE):
        raise RolloutError(
            f"score: {given} must be a number from 0 to {FULL_SCORE}; nothing was written"
        )
    if not judgement.stages and not judgement.deductions:
        if given is None:
            raise RolloutError(
                f"give a score from 0 to {FULL_SCORE}, or the stages that were reached"
            )
        return Tally(given, {}, {})
    if rubric is None:
        raise RolloutError("the episode's task has no rubric; give a score alone")
    stages = _points("stage", judgement.stages, {s.name: s.points for s in rubric.stages})
    deductions = _points(
        "deduction", judgement.deductions, {d.name: d.points for d in rubric.deductions}
    )
    total = max(0, sum(stages.values()) - sum(deductions.values()))
    if given is not None and abs(given - total) > TOLERANCE:
        raise RolloutError(
            f"score: {given:g} is not the {total} that the stages less the deductions make; "
            f"correct one of them, or leave the score out; nothing was written"
        )
    return Tally(total, stages, deductions)


def _points(kind: str, names: Sequence[str], known: Mapping[str, int]) -> dict[str, int]:
    points: dict[str, int] = {}
    for name in names:
        if name not in known:
            raise RolloutError(f"{kind} '{name}' is not in the rubric{_hint(name, known)}")
        if name in points:
            raise RolloutError(f"{kind} '{name}' is named twice; name it once")
        points[name] = known[name]
    return points


def _hint(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known) or "; it has none"
