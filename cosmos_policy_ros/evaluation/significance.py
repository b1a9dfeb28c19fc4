"""What trials can say: rates and means with intervals, pairs, and how many trials it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.evaluation.results import Result

RESAMPLES = 10_000  # of a bootstrap; its ends are steady to about a tenth of a point
Z = 1.959964  # of a 95 % interval
Z_POWER = 0.841621  # of a difference that is found in 80 % of all evaluations


class Mean(NamedTuple):
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate (Wilson 1927); the whole range without a trial."""
    if not trials:
        return 0.0, 1.0
    rate, square = successes / trials, Z * Z
    middle = (rate + square / (2 * trials)) / (1 + square / trials)
    half = Z / (1 + square / trials)
    half *= math.sqrt(rate * (1 - rate) / trials + square / (4 * trials**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)  # but for rounding they are within


def average(groups: Sequence[Sequence[float]]) -> Mean:
    """Return the mean of groups' means with its interval; NaN where one of them is empty."""
    if not groups or not all(groups):
        return Mean(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(0)
    drawn: NDArray[np.float64] = np.zeros(RESAMPLES)
    for group in groups:
        values: NDArray[np.float64] = np.asarray(group, dtype=np.float64)
        draws = rng.integers(len(values), size=(RESAMPLES, len(values)))
        drawn += values[draws].mean(axis=1) / len(groups)
    low, high = np.percentile(drawn, [2.5, 97.5])
    mean = np.mean([np.mean(group) for group in groups])
    return Mean(float(mean), float(low), float(high))


def bootstrap(numbers: Sequence[float]) -> Mean:
    """Return a mean with its interval by resampling; NaN without numbers."""
    return average([numbers])


@dataclass(frozen=True)
class Cell:
    """A contender under some conditions: trials that count, and that crashed and do not."""

    trials: int
    crashed: int
    successes: int
    score: Mean


def cell(results: Iterable[Result]) -> Cell:
    """Sum up trials of one contender."""
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
    """One contender less another on the initial states that count for both.

    Attributes:
        states: how many.
        success: difference of the rates, -1 to 1.
        score: difference of the mean scores, in points.
        spread: standard deviation of the states' differences of score; NaN of fewer than two.
    """

    states: int
    success: Mean
    score: Mean
    spread: float


def paired(results: Sequence[Result], one: str, other: str) -> Paired:
    """Compare ``one`` with ``other`` state by state."""
    found: dict[tuple[object, ...], Result] = {r.key: r for r in results if not r.crashed}
    pairs = []
    for (name, *state), result in found.items():
        if name == one and (partner := found.get((other, *state))):
            pairs.append((result, partner))
    differences = [a.score - b.score for a, b in pairs]
    return Paired(
        states=len(pairs),
        success=bootstrap([float(a.success) - float(b.success) for a, b in pairs]),
        score=bootstrap(differences),
        spread=float(np.std(differences, ddof=1)) if len(pairs) > 1 else math.nan,
    )


def detectable(states: int, spread: float) -> float:
    """Return the smallest difference of mean scores that is found in 80 % of such evaluations.

    Found: a paired comparison whose 95 % interval does not contain zero.

    Args:
        states: initial states that both contenders meet.
        spread: standard deviation of the states' differences of score, in points.
    """
    return (Z + Z_POWER) * spread / math.sqrt(states) if states else math.inf


def states_needed(difference: float, spread: float) -> int:
    """Return how many initial states a difference of mean scores takes, as :func:`detectable`."""
    return math.ceil(((Z + Z_POWER) * spread / difference) ** 2)
