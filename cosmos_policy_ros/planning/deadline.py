"""How much of a search fits into a deadline, by what its tasks have taken so far."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count

import numpy as np

from cosmos_policy_ros.planning.search import STAGES, Search, SearchConfig, Stage, Unit
from cosmos_policy_ros.planning.tasks import Proposed, SearchInfo
from cosmos_policy_ros.rig.decision import Query

DEPICT = "depict"  # beside the stages of a search
REMEMBERED = 100  # tasks per stage
SURE = 0.95  # share of the tasks that are expected to keep to the time planned for them
# Answers of no size, for a search that is only gone through to see how long it takes.
_NOTHING = Proposed(np.empty((0,), np.float32), np.empty((0,), np.float64))


class Durations:
    """Wall seconds per denoising step that tasks have taken lately, from being dealt to the answer.

    Until something was measured it goes by the engine's rehearsal.
    """

    def __init__(self) -> None:
        kinds = (*STAGES, DEPICT)
        self._measured: dict[str, deque[float]] = {k: deque(maxlen=REMEMBERED) for k in kinds}

    def add(self, stage: str, steps: int, seconds: float) -> None:
        """Note what one task has taken."""
        self._measured[stage].append(seconds / steps)

    def seconds(
        self, stage: str, steps: int, share: float, rehearsed: Mapping[str, float]
    ) -> float:
        """Return the seconds within which ``share`` of such tasks were done; inf if none was."""
        if not self._measured[stage]:
            return rehearsed.get(stage, math.inf) * steps
        return float(np.quantile(self._measured[stage], share)) * steps

    def told(self) -> dict[str, str]:
        """Return p50 and p95 of each stage for people."""
        return {
            stage: "p50 {:.4g} s, p95 {:.4g} s".format(*np.quantile(found, (0.5, 0.95)))
            + ("" if stage == DEPICT else " per step")
            for stage, found in self._measured.items()
            if found
        }


def fit(
    query: Query, config: SearchConfig, info: SearchInfo, durations: Durations, workers: int
) -> SearchConfig:
    """Return as much of ``config`` as is expected to be done by the query's deadline.

    Candidates go first, down to two, since a search of one has nothing to choose from; then the
    steps of futures and values. The steps of the proposals, which the arms will follow, stay.
    """
    if not query.deadline:
        return config
    fewest = min(2, config.candidates)
    for cheaper in _ladder(config):
        most = _most_candidates(query, cheaper, info, durations, workers)
        if most >= fewest:
            return replace(cheaper, candidates=most)
    return replace(cheaper, candidates=1)


def _ladder(config: SearchConfig) -> Iterator[SearchConfig]:
    yield config
    for steps in range(max(config.future_steps, config.value_steps) - 1, 0, -1):
        yield replace(
            config,
            future_steps=min(config.future_steps, steps),
            value_steps=min(config.value_steps, steps),
        )


def _most_candidates(
    query: Query, config: SearchConfig, info: SearchInfo, durations: Durations, workers: int
) -> int:
    """Return how many candidates fit, 0 for none; more of them never take less time."""
    usual, slow = (
        {
            stage: durations.seconds(
                stage, config.steps(stage, info.denoising_steps), share, info.pace
            )
            for stage in STAGES
        }
        for share in (0.5, SURE)
    )
    # Of many tasks some are slow and some are fast, but the last candidate's may all be slow.
    slack = config.depth * sum(slow[stage] - usual[stage] for stage in STAGES)
    fitting, beyond = 0, config.candidates + 1
    while beyond - fitting > 1:
        # All of them first: usually there is time.
        middle = beyond - 1 if beyond > config.candidates else (fitting + beyond) // 2
        search = Search(query, replace(config, candidates=middle), info)
        if makespan(search, usual, workers) + slack <= query.deadline:
            fitting = middle
        else:
            beyond = middle
    return fitting


def makespan(search: Search, seconds: Mapping[Stage, float], workers: int) -> float:
    """Return how long a fresh search would take; it is gone through and cannot be used any more."""
    now, order = 0.0, count()
    running: list[tuple[float, int, Unit]] = []
    while not search.complete:
        under_way = {unit for *_, unit in running}
        waiting = [unit for unit in search.units if unit not in under_way]
        for unit in waiting[: workers - len(running)]:
            heapq.heappush(running, (now + seconds[unit.stage], next(order), unit))
        now, _, done = heapq.heappop(running)
        imagined = np.empty((1, search.config.futures, 0), np.float32)
        search.take(done, imagined if done.stage == "imagine" else _NOTHING)
    return now
