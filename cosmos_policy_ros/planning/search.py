"""Best-of-N as a list of tasks: sample actions, predict futures, predict their values.

Two checkpoints take part, which may be one: the policy samples actions, the world model predicts
their futures and values (Cosmos Policy paper, planning). Nothing is computed here. Which worker
computes what, and in which order, does not change a result: the batches are fixed by the
configuration, so a seed gives the same bits on one worker and on eight.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple, get_args

import numpy as np

from cosmos_policy_ros.inference.spec import (
    STAGES,
    Aggregation,
    Engine,
    Latents,
    PredictFuture,
    PredictValue,
    SampleActions,
    SampledActions,
    SearchConfig,
    SearchInfo,
    SearchTask,
    Stage,
)
from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.rig.decision import Candidate, Decision, Query

SUCCESS = 0.05  # a value above it counts as a prediction of success


def aggregate(values: Sequence[float], scheme: Aggregation, numerics: Numerics) -> float:
    """Reduce the values that an ensemble gave one candidate to one (Cosmos Policy paper, planning).

    - majority_mean: the mean of the larger of two groups, those that predict success and those that
      don't; half of them count as the majority. "paper": whichever group it is. "released": a
      majority that predicts failure gives 0, however sure or unsure it is of it.
    - average: their mean.
    - lcb: their mean less one (unbiased) standard deviation, a lower confidence bound.
    - success_vote: the fraction of them that predicts success.

    Returns a value in [0, 1]; raises ValueError for too few values or an unknown scheme.
    """
    # In float32, as released: 0.05 lies on the other side of itself in float64.
    array = np.asarray(values, dtype=np.float32)
    success = array > np.float32(SUCCESS)
    if len(array) < (2 if scheme == "lcb" else 1):
        raise ValueError(f"{len(array)} values are too few for '{scheme}'")
    if scheme == "majority_mean":
        if success.mean() >= 0.5:
            result = float(array[success].mean())
        else:
            result = 0.0 if numerics == "released" else float(array[~success].mean())
    elif scheme == "average":
        result = float(array.mean())
    elif scheme == "lcb":
        result = float(array.mean() - array.std(ddof=1))
    elif scheme == "success_vote":
        result = float(success.mean())
    else:
        raise ValueError(f"'{scheme}' is not one of {', '.join(get_args(Aggregation))}")
    return min(max(result, 0.0), 1.0)


def choose(values: Sequence[float]) -> int:
    """Return the index of the best candidate; of several the first, so ties keep the base seed."""
    if not values or np.isnan(values).any():
        raise ValueError(f"there is nothing to choose from in {list(values)}")
    return int(np.argmax(values))


class TaskKey(NamedTuple):
    """One task of a search: what a worker is given at a time."""

    batch: int  # of candidates
    depth: int  # how far ahead
    stage: Stage
    part: int = 0  # which of the candidates' futures, whose value is predicted


class Search:
    """The tasks of one decision, and the decision itself once enough of them are done."""

    def __init__(
        self, query: Query, config: SearchConfig, info: SearchInfo, requested: int = 0
    ) -> None:
        """Begin with the proposals; ``requested`` candidates were asked for, if not all fit."""
        self.config, self.info = config, info
        self._query, self._requested = query, max(requested, config.candidates)
        self._proposed: dict[int, SampledActions] = {}  # by batch
        self._imagined: dict[int, Latents] = {}  # by batch, of depth 0
        # Of each candidate by depth and future.
        self._values: list[dict[tuple[int, int], tuple[float, ...]]]
        self._values = [{} for _ in range(config.candidates)]
        self._open: dict[TaskKey, SearchTask] = {}
        for first in range(0, config.candidates, config.candidate_batch):
            last = min(first + config.candidate_batch, config.candidates)
            seeds = tuple(query.seed + i for i in range(first, last))
            key = TaskKey(first // config.candidate_batch, 0, "sample_actions")
            self._open[key] = SampleActions(query, seeds)

    @property
    def open(self) -> list[TaskKey]:
        """What can be computed now, the most advanced first: a candidate begun is soon finished."""
        return sorted(self._open, key=lambda k: (-k.depth, -STAGES.index(k.stage), k.batch, k.part))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self._open

    @property
    def finished(self) -> list[int]:
        """The candidates, by index, that have all their values."""
        needed = self.config.depth * self.config.members
        return [i for i, values in enumerate(self._values) if len(values) == needed]

    def task(self, key: TaskKey) -> SearchTask:
        """Return what is to be computed."""
        return self._open[key]

    def steps(self, key: TaskKey) -> int:
        """Return a task's denoising steps."""
        return self.config.steps(key.stage, self.info.denoising_steps)

    def take(self, key: TaskKey, answer: Any) -> None:
        """Take an answer; a second one to the same task says the same and is dropped."""
        task = self._open.pop(key, None)
        if task is None:
            return
        config, prompt, valued = self.config, self._query.prompt, []
        if key.stage == "predict_value":
            for index, values in enumerate(answer, start=key.batch * config.candidate_batch):
                self._values[index][key.depth, key.part] = values
        elif key.stage == "predict_future":
            if key.depth == 0:
                self._imagined[key.batch] = answer
            valued = [answer[:, part] for part in range(config.futures)]
            if key.depth + 1 < config.depth:
                # From the last member of the ensemble: it took all the steps.
                ahead = SampleActions(self._query, task.seeds, answer[:, -1])
                self._open[TaskKey(key.batch, key.depth + 1, "sample_actions")] = ahead
        else:
            if key.depth == 0:
                self._proposed[key.batch] = answer
            if config.value == "value_q":
                valued = [answer.latents]
            else:
                self._open[key._replace(stage="predict_future")] = PredictFuture(
                    prompt, answer.latents, task.seeds, config.futures, config.future_steps
                )
        for part, latents in enumerate(valued):
            self._open[key._replace(stage="predict_value", part=part)] = PredictValue(
                prompt, latents, task.seeds, config.values, config.value_steps, config.value
            )

    def decide(
        self, phases: dict[str, float], late: str = "", among: Sequence[int] | None = None
    ) -> Decision:
        """Choose among the finished candidates, or those of them that are given by index.

        ``phases`` are wall seconds by stage, ``late`` names the time that some did not finish in.
        Raises ValueError when none has finished.
        """
        config, info = self.config, self.info
        finished = self.finished if among is None else list(among)
        candidates = [
            self._candidate(i) if i in finished else Candidate(self._query.seed + i, finished=False)
            for i in range(self._requested)
        ]
        best = finished[choose([candidates[i].value for i in finished])]
        batch, row = divmod(best, config.candidate_batch)
        imagined = None
        if config.value != "value_q":
            futures = self._imagined[batch][row]
            imagined = futures if config.shown == "average" else futures[-1:]
        return Decision(
            positions=self._proposed[batch].chunks[row],
            dt=info.dt,
            candidates=tuple(candidates),
            chosen=best,
            reason=info.note + _reason(candidates, best, late),
            engine="cosmos",
            checkpoint_digest=info.digest,
            world_model_digest=info.world_model_digest,
            denoising_steps=info.evaluations,
            numerics=info.numerics,
            search=config.text(),
            phases=phases,
            imagined=imagined,
        )

    def _candidate(self, index: int) -> Candidate:
        config, values = self.config, self._values[index]
        by_depth = [
            tuple(value for part in range(config.members) for value in values[depth, part])
            for depth in range(config.depth)
        ]
        found = [aggregate(values, config.aggregation, self.info.numerics) for values in by_depth]
        last = config.combination == "last"
        return Candidate(
            seed=self._query.seed + index,
            values=by_depth[0],
            value=found[-1] if last else math.fsum(found) / len(found),
            spread=float(np.std(by_depth[0])) if len(by_depth[0]) > 1 else math.nan,
        )


def _reason(candidates: Sequence[Candidate], best: int, late: str) -> str:
    chosen, base = candidates[best], candidates[0]
    if best == 0:
        why = f"the base seed {base.seed} is kept: none is valued above its {base.value:.3f}"
    else:
        over = f"has {base.value:.3f}" if base.finished else "did not finish"
        why = (
            f"candidate {best}, seed {chosen.seed}, is valued highest: {chosen.value:.3f}; "
            f"the base seed {over}"
        )
    finished = sum(c.finished for c in candidates)
    if finished < len(candidates):
        why += f"; {finished} of {len(candidates)} candidates finished within {late}"
    return why


def run_search(
    engine: Engine, query: Query, config: SearchConfig, among: Sequence[int] | None = None
) -> Decision:
    """Do a whole search in this process, one task after the other.

    ``among`` are the candidates, by index, that may be chosen; None for all. Raises
    CosmosPolicyError when the engine refuses a task.
    """
    info = engine.info
    assert isinstance(info, SearchInfo)
    search = Search(query, config, info)
    while not search.complete:
        key = search.open[0]
        search.take(key, engine.answer(search.task(key)))
    return search.decide({}, among=among)


# How much of a search fits into a deadline, by what its tasks have taken so far.

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

    def add(self, stage: str, steps: int, seconds: float) -> None:
        """Note what one task has taken."""
        self._measured[stage].append(seconds / steps)

    def seconds(
        self, stage: str, steps: int, fraction: float, rehearsed: Mapping[str, float]
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
            return replace(cheaper, candidates=most)
    return replace(cheaper, candidates=1)


def _most_candidates(
    query: Query, config: SearchConfig, info: SearchInfo, durations: Durations, workers: int
) -> int:
    """Return how many candidates fit, 0 for none; more of them never take less time."""

    def seconds(fraction: float) -> dict[Stage, float]:
        return {
            stage: durations.seconds(
                stage, config.steps(stage, info.denoising_steps), fraction, info.pace
            )
            for stage in STAGES
        }

    usual, slow = seconds(0.5), seconds(SURE)
    # Of many tasks some are slow and some are fast, but the last candidate's may all be slow.
    slack = config.depth * sum(slow[stage] - usual[stage] for stage in STAGES)

    def too_many(candidates: int) -> bool:
        search = Search(query, replace(config, candidates=candidates), info)
        return not makespan(search, usual, workers) + slack <= query.deadline

    return bisect_left(range(1, config.candidates + 1), True, key=too_many)


def makespan(search: Search, seconds: Mapping[Stage, float], workers: int) -> float:
    """Return how long a fresh search would take; it is gone through and cannot be used any more."""
    answers = {  # of no size
        "sample_actions": SampledActions(np.empty(0, np.float32), np.empty(0, np.float64)),
        "predict_future": np.empty((1, search.config.futures, 0), np.float32),
        "predict_value": (),
    }
    now, order = 0.0, count()
    running: list[tuple[float, int, TaskKey]] = []
    while not search.complete:
        under_way = {key for *_, key in running}
        waiting = [key for key in search.open if key not in under_way]
        for key in waiting[: workers - len(running)]:
            heapq.heappush(running, (now + seconds[key.stage], next(order), key))
        now, _, done = heapq.heappop(running)
        search.take(done, answers[done.stage])
    return now
