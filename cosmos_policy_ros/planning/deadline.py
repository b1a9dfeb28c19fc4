"""How much of a search fits into a deadline, by what its tasks have taken so far."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from cosmos_policy_ros.inference.spec import (
    STAGES,
    PerturbActions,
    PredictFuture,
    SampleActions,
    SampledActions,
    SearchConfig,
    SearchInfo,
    SearchTask,
    Stage,
)
from cosmos_policy_ros.planning.search import Search, Spent, TaskKey
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.rig.observation import Observation

DECODE_IMAGES = "decode_images"  # beside the stages of a search
REMEMBERED = 100  # tasks per stage
SURE = 0.95  # fraction of the tasks that are expected to keep to the time planned for them


class Durations:
    """Wall seconds per denoising step that tasks have taken lately, from dispatch to answer.

    Until something was measured it goes by the engine's rehearsal.
    """

    def __init__(self) -> None:
        kinds = (*STAGES, DECODE_IMAGES)
        self._measured: dict[str, deque[float]] = {k: deque(maxlen=REMEMBERED) for k in kinds}

    def add(self, stage: str, steps: float, seconds: float) -> None:
        """Note what one task has taken."""
        self._measured[stage].append(seconds / steps)

    def seconds(
        self, stage: str, steps: float, fraction: float, rehearsed: Mapping[str, float]
    ) -> float:
        """Return the seconds within which ``fraction`` of such tasks were done; inf if none was."""
        if not self._measured[stage]:
            return rehearsed.get(stage, math.inf) * steps
        return float(np.quantile(self._measured[stage], fraction)) * steps

    def summary(self) -> dict[str, str]:
        """Return p50 and p95 of each stage for people."""
        return {
            stage: "p50 {:.4g} s, p95 {:.4g} s".format(*np.quantile(found, (0.5, 0.95)))
            + ("" if stage == DECODE_IMAGES else " per step")
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
    for steps in range(max(config.future_steps, config.value_steps), 0, -1):
        cheaper = replace(
            config,
            future_steps=min(config.future_steps, steps),
            value_steps=min(config.value_steps, steps),
        )
        most = _most_candidates(query, cheaper, info, durations, workers)
        if most >= min(2, config.candidates):
            return cheaper.with_candidates(most)
    return cheaper.with_candidates(1)


def _most_candidates(
    query: Query, config: SearchConfig, info: SearchInfo, durations: Durations, workers: int
) -> int:
    """Return how many candidates fit, 0 for none; more of them never take less time."""

    def a_step(fraction: float) -> dict[Stage, float]:
        return {stage: durations.seconds(stage, 1, fraction, info.pace) for stage in STAGES}

    usual, slow = a_step(0.5), a_step(SURE)
    steps = {stage: config.steps(stage, info.denoising_steps) for stage in STAGES}
    # Of many tasks some are slow and some are fast, but the last candidate's may all be slow.
    slack = config.depth * sum((slow[stage] - usual[stage]) * steps[stage] for stage in STAGES)

    def too_many(candidates: int) -> bool:
        search = Search(query, config.with_candidates(candidates), info)
        return not makespan(search, usual, workers) + slack <= query.deadline

    return bisect_left(range(1, config.candidates + 1), True, key=too_many)


def makespan(search: Search, a_step: Mapping[Stage, float], workers: int) -> float:
    """Return how long a fresh search takes; it is gone through and cannot be used any more.

    Args:
        search: is searched to its end, whatever it may be allowed to leave out.
        a_step: seconds per denoising step, by stage.
        workers: that share its tasks.
    """
    now, order = 0.0, count()
    running: list[tuple[float, int, TaskKey]] = []
    while not search.complete:
        under_way = {key for *_, key in running}
        waiting = [key for key in search.open if key not in under_way]
        for key in waiting[: workers - len(running)]:
            seconds = a_step[key.stage] * search.steps(key)
            heapq.heappush(running, (now + seconds, next(order), key))
        now, _, done = heapq.heappop(running)
        search.take(done, _nothing(search.task(done)))
    return now


def price(config: SearchConfig, info: SearchInfo) -> dict[Stage, Spent]:
    """Return what a search asks of the networks if it is searched to its end, all candidates."""
    search = Search(Query("", "", 0, 0, Observation(0, {}, np.empty(0), {})), config, info)
    makespan(search, dict.fromkeys(STAGES, 1.0), 1)
    return search.spent


def _nothing(task: SearchTask) -> Any:
    """Return an answer of the task's shape and of no size; NaN asks for a search."""
    size = len(task.seeds)
    if isinstance(task, SampleActions | PerturbActions):
        unknown = (math.nan,) * size
        latents = np.empty((size, 0), np.float32)
        return SampledActions(latents, np.empty((size, 0)), unknown, unknown)
    if isinstance(task, PredictFuture):
        return np.empty((size, len(task.members), 0), np.float32)
    return [[0.0] * len(task.members)] * size
