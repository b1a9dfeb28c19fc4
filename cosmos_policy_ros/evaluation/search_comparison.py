"""Cheaper searches beside recorded ones: whether they choose as well, before any robot moves.

A recorded decision keeps what its search found every candidate to be worth. Another search is done
from the same observation and seeds, and what it chooses counts as much as the recorded search said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.dataset.playback import decisions, observations
from cosmos_policy_ros.evaluation.significance import RESAMPLES, Mean, wilson
from cosmos_policy_ros.evaluation.tables import markdown_table
from cosmos_policy_ros.inference.spec import (
    Engine,
    SampleActions,
    SampledActions,
    SearchConfig,
    SearchInfo,
    parse_search,
)
from cosmos_policy_ros.planning.deadline import price
from cosmos_policy_ros.planning.replay import recorded_query
from cosmos_policy_ros.planning.search import run_search
from cosmos_policy_ros.rig.observation import Observation

NO_SEARCH = "no search"
SEARCHED = (0.1, 0.25, 0.5, 0.75)  # parts of the decisions


class RecordedSearch(NamedTuple):
    """A decision that a search has made, and what it was made of."""

    path: Path
    message: Any  # Decision, as the bag has it
    seen: Observation

    @property
    def values(self) -> NDArray[np.float64]:
        """(N,) what each candidate was found to be worth."""
        return np.array([candidate.value for candidate in self.message.candidates])


class Choices(NamedTuple):
    """What one search chose in the place of the recorded one.

    Attributes:
        name: of the search.
        evaluations: of the networks per decision, on average.
        chosen: (n,) index of the candidate, per decision.
    """

    name: str
    evaluations: float
    chosen: NDArray[np.int64]


def read_searches(bags: Sequence[Path]) -> list[RecordedSearch]:
    """Return the decisions of episodes that a whole search has made, all by the same settings.

    A decision that had no time for all its candidates, or whose gate would have refused some, is
    left out: it does not know the best.

    Raises:
        RolloutError: an episode cannot be read, there is no such decision, or they were made by
            different checkpoints or settings.
    """
    found: list[RecordedSearch] = []
    for path in bags:
        for message, seen in zip(decisions(path), observations(path), strict=True):
            if not getattr(message, "search", ""):
                continue
            dropped = [getattr(each, "dropped", "") for each in message.candidates]
            if "gate" in dropped or not all(each.finished for each in message.candidates):
                continue
            if not parse_search(str(message.search), f"{path}: search").values_all:
                raise RolloutError(
                    f"{path}: has a decision of a search that leaves something out, and does not "
                    "know what all candidates were worth; record with one that values all"
                )
            if isinstance(seen, ObservationError):
                raise seen
            each = RecordedSearch(path, message, seen)
            if not (0 <= message.chosen < len(each.values) and np.isfinite(each.values).all()):
                raise RolloutError(
                    f"{path}: has a decision that chose candidate {message.chosen} of "
                    f"{len(each.values)}, or whose values are not finite; leave this episode out"
                )
            found.append(each)
    if not found:
        raise RolloutError(
            f"none of {len(bags)} episodes has a decision of a search that came to its end; record "
            "some with planning:=best_of_8"
        )
    first = found[0]
    for each in found:
        for name in ("search", "checkpoint_digest", "world_model_digest", "numerics"):
            mine, others = getattr(each.message, name), getattr(first.message, name)
            if mine != others:
                raise RolloutError(
                    f"{each.path}: has a decision with {name} {mine}, {first.path} one with "
                    f"{others}; compare episodes of one search at a time"
                )
    return found


def choices(
    recorded: Sequence[RecordedSearch], engine: Engine, searches: Mapping[str, SearchConfig]
) -> Iterator[Choices]:
    """Do every search in the place of the recorded ones; yield what each has chosen.

    The first is no search at all: the base seed's proposal.

    Raises:
        CosmosPolicyError: a search proposes what was not recorded, or the engine refuses.
    """
    message = recorded[0].message
    count = len(message.candidates)
    for name, config in searches.items():
        if config.sampled > count:
            raise RolloutError(
                f"search {name}: has {config.sampled} proposals, and what only {count} are worth "
                f"was recorded; record with as many, or compare fewer"
            )
        if config.considered > config.sampled:
            raise RolloutError(
                f"search {name}: has perturbed copies of its proposals, and what these are worth "
                "was not recorded; compare it in closed loop, with 'cosmos evaluate'"
            )
    none = np.zeros(len(recorded), np.int64)
    yield Choices(NO_SEARCH, int(message.denoising_steps), none)
    for name, config in searches.items():
        bar = tqdm(recorded, name, unit="", leave=False, disable=None)
        made = [run_search(engine, recorded_query(each.message, each.seen), config) for each in bar]
        cost = float(np.mean([each.evaluations for each in made]))
        yield Choices(name, cost, np.array([each.chosen for each in made]))


class Signals(NamedTuple):
    """What an adaptive search goes by, of the first two proposals of every recorded decision, (n,).

    In the terms of :class:`~cosmos_policy_ros.inference.spec.Adaptive`: the larger variance, the
    distance, and the lower value.
    """

    variance: NDArray[np.float64]
    distance: NDArray[np.float64]
    value: NDArray[np.float64]


def signals(recorded: Sequence[RecordedSearch], engine: Engine) -> Signals:
    """Sample the first two proposals once more. Raises CosmosPolicyError."""
    found = []
    for each in tqdm(recorded, "signals", unit="", leave=False, disable=None):
        query = recorded_query(each.message, each.seen)
        proposed = engine.answer(SampleActions(query, (query.seed, query.seed + 1)))
        assert isinstance(proposed, SampledActions)
        one, other = proposed.chunks
        apart = float(np.abs(one - other).mean())
        found.append((max(proposed.variances), apart, min(proposed.values)))
    return Signals(*np.array(found).T)


def signal_table(recorded: Sequence[RecordedSearch], found: Signals) -> list[str]:
    """Return what would be kept if only the decisions beyond a limit were searched, as Markdown.

    A signal is worth something where it keeps more of the gain than it searches decisions.
    """
    rows = [["search if", "searched", "of the gain in value"]]
    best = np.array([int(each.message.chosen) for each in recorded])
    for name, numbers in found._asdict().items():
        if not np.isfinite(numbers).all():  # of one denoising step
            continue
        for part in SEARCHED:
            below = name == "value"
            limit = float(np.quantile(numbers, part if below else 1 - part))
            searched = numbers < limit if below else numbers > limit
            kept = gain_kept(recorded, np.where(searched, best, 0))
            rows.append(
                [
                    f"{name} {'below' if below else 'above'} {limit:.3g}",
                    f"{100 * searched.mean():.0f} %",
                    f"{100 * kept.value:.0f} % ({100 * kept.low:.0f} to {100 * kept.high:.0f})",
                ]
            )
    return markdown_table(rows)


def gain_kept(recorded: Sequence[RecordedSearch], chosen: NDArray[np.int64]) -> Mean:
    """Return which part of what the recorded searches gained over the base seed others have kept.

    Both gains by the recorded values, summed over all decisions; NaN where nothing was gained. The
    interval is by resampling decisions.
    """
    best = np.array([each.values[each.message.chosen] - each.values[0] for each in recorded])
    mine = np.array(
        [e.values[index] - e.values[0] for e, index in zip(recorded, chosen, strict=True)]
    )
    if not best.sum() > 0:
        return Mean(np.nan, np.nan, np.nan)
    drawn = np.random.default_rng(0).integers(len(best), size=(RESAMPLES, len(best)))
    totals = best[drawn].sum(axis=1)
    gained = totals > 0
    low, high = np.percentile(mine[drawn].sum(axis=1)[gained] / totals[gained], [2.5, 97.5])
    return Mean(float(mine.sum() / best.sum()), float(low), float(high))


def table(recorded: Sequence[RecordedSearch], found: Sequence[Choices]) -> list[str]:
    """Return what was chosen as a Markdown table, the recorded search last."""
    message = recorded[0].message
    config = parse_search(str(message.search), f"{recorded[0].path}: search")
    info = SearchInfo(numerics=message.numerics, evaluations=int(message.denoising_steps))
    own = sum(spent.evaluations for spent in price(config, info).values())
    best = np.array([int(each.message.chosen) for each in recorded])
    rows = [["search", "evaluations a decision", "chose the same", "of the gain in value"]]
    for name, cost, chosen in (*found, Choices("recorded", own, best)):
        same = int((chosen == best).sum())
        low, high = wilson(same, len(best))
        kept = gain_kept(recorded, chosen)
        rows.append(
            [
                name,
                f"{cost:.0f}",
                f"{same} of {len(best)} ({100 * low:.0f} to {100 * high:.0f} %)",
                f"{100 * kept.value:.0f} % ({100 * kept.low:.0f} to {100 * kept.high:.0f})",
            ]
        )
    return [
        f"{len(best)} decisions of {len({each.path for each in recorded})} episodes, made by",
        f"`{message.search}`",
        "",
        *markdown_table(rows),
    ]
