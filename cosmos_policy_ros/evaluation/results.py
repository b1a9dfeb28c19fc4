"""What trials add up to: rates with intervals, paired differences, and a table of both."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.config import from_mapping

RESAMPLES = 10_000  # of a bootstrap; its ends are steady to about a tenth of a point
Z = 1.959964  # of a 95 % interval


class Mean(NamedTuple):
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """One line of ``trials.jsonl``.

    Attributes:
        seed: placed the scene's objects.
        noise_seed: the policy's.
        message: why, where it crashed.
        crashed: it ended by a fault, not by the policy's skill, and does not count.
        score: 0 to 100.
        success: whether every stage was reached.
        chunks, refused: executed and refused.
        seconds: of the rig's time.
        thinking: wall seconds per decision, the median.
        episode: the bag's folder; empty where none was kept.
    """

    contender: str
    condition: str
    seed: int
    noise_seed: int
    outcome: str
    message: str
    crashed: bool
    score: float
    success: bool
    chunks: int
    refused: int
    seconds: float
    thinking: float
    episode: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """Contender, condition and scene."""
        return self.contender, self.condition, self.seed


def read_results(path: Path) -> list[Result]:
    """Read ``trials.jsonl`` but for a last line that was cut short; raises ConfigError."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            break
        found.append(from_mapping(Result, content, f"{path}, line {number}"))
    return found


def to_line(result: Result) -> str:
    """Return a line of ``trials.jsonl``."""
    return json.dumps(asdict(result)) + "\n"


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate (Wilson 1927); the whole range without a trial."""
    if not trials:
        return 0.0, 1.0
    rate, square = successes / trials, Z * Z
    middle = (rate + square / (2 * trials)) / (1 + square / trials)
    half = Z / (1 + square / trials)
    half *= math.sqrt(rate * (1 - rate) / trials + square / (4 * trials**2))
    return middle - half, middle + half


def bootstrap(numbers: Sequence[float]) -> Mean:
    """Return a mean with its interval by resampling; NaN without numbers."""
    if not numbers:
        return Mean(math.nan, math.nan, math.nan)
    values: NDArray[np.float64] = np.asarray(numbers, dtype=np.float64)
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return Mean(float(np.mean(numbers)), float(low), float(high))


@dataclass(frozen=True)
class Cell:
    """A contender under a condition: trials that count, and that crashed and do not."""

    trials: int
    crashed: int
    successes: int
    score: Mean


def cell(results: Iterable[Result]) -> Cell:
    """Sum up trials of one contender under one condition."""
    every = list(results)
    counted = [r for r in every if not r.crashed]
    return Cell(
        trials=len(counted),
        crashed=len(every) - len(counted),
        successes=sum(r.success for r in counted),
        score=bootstrap([r.score for r in counted]),
    )


@dataclass(frozen=True)
class Paired:
    """One contender less another on the scenes that count for both."""

    scenes: int
    success: Mean
    score: Mean


def paired(results: Sequence[Result], one: str, other: str) -> Paired:
    """Compare ``one`` with ``other`` scene by scene."""
    found = {r.key: r for r in results if not r.crashed}
    pairs = [
        (result, found[(other, result.condition, result.seed)])
        for result in found.values()
        if result.contender == one and (other, result.condition, result.seed) in found
    ]
    return Paired(
        scenes=len(pairs),
        success=bootstrap([float(a.success) - float(b.success) for a, b in pairs]),
        score=bootstrap([a.score - b.score for a, b in pairs]),
    )


def table(
    results: Sequence[Result], contenders: Sequence[str], conditions: Sequence[str]
) -> list[str]:
    """Return a Markdown table: a row per contender, a column per condition, and the mean.

    In a cell: the mean score with its 95 % bootstrap interval, and the success rate with its 95 %
    Wilson interval, as the paper's Table 3 and its text give them.
    """

    def text(found: Cell) -> str:
        if not found.trials:
            return "no trial"
        low, high = wilson(found.successes, found.trials)
        score = found.score
        return (
            f"**{score.value:.1f}** ({score.low:.1f} to {score.high:.1f}); "
            f"{100 * (found.successes / found.trials):.0f} % of {found.trials} "
            f"({100 * low:.0f} to {100 * high:.0f})"
        )

    several = len(conditions) > 1
    head = ["", *(c.replace("_", " ") for c in conditions), *(["all"] if several else [])]
    rows = [head, ["---"] * len(head)]
    for name in contenders:
        mine = [r for r in results if r.contender == name]
        cells = [cell(r for r in mine if r.condition == each) for each in conditions]
        if several:
            cells.append(cell(mine))
        rows.append([name, *map(text, cells)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    crashed = [r for r in results if r.crashed]
    if crashed:
        lines += ["", f"{len(crashed)} trials crashed and do not count: {crashed[0].message}"]
    return lines


def comparison(results: Sequence[Result], contenders: Sequence[str]) -> list[str]:
    """Return Markdown lines: every contender less the first, per condition and over all."""
    first, *others = contenders
    conditions = list(dict.fromkeys(result.condition for result in results))
    groups: dict[str, Sequence[Result]] = {"": results}
    if len(conditions) > 1:
        groups = {
            f" ({name.replace('_', ' ')})": [r for r in results if r.condition == name]
            for name in conditions
        }
        groups[" (all)"] = results
    lines = []
    for name in others:
        for where, group in groups.items():
            found = paired(group, name, first)
            if not found.scenes:
                continue
            success, score = Mean(*(100 * each for each in found.success)), found.score
            lines.append(
                f"- {name} less {first}, {found.scenes} scenes{where}: success "
                f"{success.value:+.1f} points ({success.low:+.1f} to {success.high:+.1f}), score "
                f"{score.value:+.1f} ({score.low:+.1f} to {score.high:+.1f})"
            )
    return lines
