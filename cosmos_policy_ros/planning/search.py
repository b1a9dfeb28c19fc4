"""Best-of-N as a list of tasks: propose, imagine what follows, appraise it.

Two checkpoints take part, which may be one: the policy samples actions, the world model predicts
their futures and values (Cosmos Policy paper, planning). Nothing is computed here. Which worker
computes what, and in which order, does not change a result: the batches are fixed by the
configuration, so a seed gives the same bits on one worker and on eight.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.inference.spec import STAGES, Aggregation, SearchConfig, Stage
from cosmos_policy_ros.inference.tasks import (
    Engine,
    PredictFuture,
    PredictValue,
    SampleActions,
    SampledActions,
    SearchInfo,
)
from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.rig.decision import Candidate, Decision, Query

# From many predicted values to one choice: the rules of best-of-N search.
#
# All values are success estimates in [0, 1]. Facts: Cosmos Policy paper, planning; the released
# code does otherwise where a failing majority is concerned.


SUCCESS = 0.05  # a value above it counts as a prediction of success


def aggregate(values: Sequence[float], scheme: Aggregation, numerics: Numerics) -> float:
    """Reduce the values that an ensemble gave one candidate to one.

    - majority_mean: see :func:`majority_mean`.
    - average: their mean.
    - lcb: their mean less one (unbiased) standard deviation, a lower confidence bound.
    - success_vote: the fraction of them that predicts success.

    Returns:
        A value in [0, 1].

    Raises:
        ValueError: no values, or a scheme that there is not; one value has no standard deviation.
    """
    # In float32, as released: 0.05 lies on the other side of itself in float64.
    array = np.asarray(values, dtype=np.float32)
    if len(array) < (2 if scheme == "lcb" else 1):
        raise ValueError(f"{len(array)} values are too few for '{scheme}'")
    if scheme == "majority_mean":
        result = majority_mean(array, numerics)
    elif scheme == "average":
        result = float(array.mean())
    elif scheme == "lcb":
        result = float(array.mean() - array.std(ddof=1))
    elif scheme == "success_vote":
        result = float(_succeeds(array).mean())
    else:
        raise ValueError(f"'{scheme}' is not one of {', '.join(get_args(Aggregation))}")
    return min(max(result, 0.0), 1.0)


def majority_mean(values: NDArray[np.float32], numerics: Numerics) -> float:
    """Return the mean of the larger of two groups: those that predict success and those that don't.

    Half of them count as the majority. "paper": whichever group it is. "released": a majority that
    predicts failure gives 0, however sure or unsure it is of it.
    """
    success = _succeeds(values)
    if success.mean() >= 0.5:
        return float(values[success].mean())
    return 0.0 if numerics == "released" else float(values[~success].mean())


def choose(values: Sequence[float]) -> int:
    """Return the index of the best candidate; the first of several, so a tie keeps the base seed.

    Raises:
        ValueError: no candidates, or a value that is not a number.
    """
    if not values or np.isnan(values).any():
        raise ValueError(f"there is nothing to choose from in {list(values)}")
    return int(np.argmax(values))


def _succeeds(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    above: NDArray[np.bool_] = values > np.float32(SUCCESS)
    return above


class TaskKey(NamedTuple):
    """One task of a search: what a worker is given at a time.

    Attributes:
        batch: which candidates.
        depth: how far ahead.
        stage: what is done.
        part: which of their futures, for appraisal.
    """

    batch: int
    depth: int
    stage: Stage
    part: int = 0


class Search:
    """The tasks of one decision, and the decision itself once enough of them are done."""

    def __init__(self, query: Query, config: SearchConfig, info: SearchInfo, requested: int = 0):
        """Begin.

        Args:
            query: what is seen.
            config: how to search; ``candidates`` of it are tried.
            info: of the engine.
            requested: candidates that were asked for, if there was no time for all.
        """
        self.config = config
        self._query, self._info = query, info
        self._requested = max(requested, config.candidates)
        seeds = tuple(query.seed + i for i in range(config.candidates))
        self._batches = [
            seeds[i : i + config.candidate_batch]
            for i in range(0, len(seeds), config.candidate_batch)
        ]
        self._answers: dict[TaskKey, Any] = {}
        self._open: dict[TaskKey, SampleActions | PredictFuture | PredictValue] = {}
        for batch, members in enumerate(self._batches):
            self._open[TaskKey(batch, 0, "sample_actions")] = SampleActions(query, members)

    @property
    def units(self) -> list[TaskKey]:
        """What can be computed now, the most advanced first: a candidate begun is soon finished."""
        return sorted(self._open, key=lambda u: (-u.depth, -STAGES.index(u.stage), u.batch, u.part))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self._open

    @property
    def finished(self) -> list[int]:
        """The candidates, by index, that have all their values."""
        return [
            i
            for i in range(self.config.candidates)
            if self._is_finished(i // self.config.candidate_batch)
        ]

    def task(self, unit: TaskKey) -> SampleActions | PredictFuture | PredictValue:
        """Return what is to be computed."""
        return self._open[unit]

    def take(self, unit: TaskKey, answer: Any) -> None:
        """Take an answer; a second one to the same unit says the same and is dropped."""
        if self._open.pop(unit, None) is None:
            return
        self._answers[unit] = answer
        config, batch, depth = self.config, unit.batch, unit.depth
        prompt, seeds = self._query.prompt, self._batches[batch]
        if unit.stage == "sample_actions":
            if config.value == "value_q":
                self._predict_value(batch, depth, 0, answer.latents)
            else:
                self._open[TaskKey(batch, depth, "predict_future")] = PredictFuture(
                    prompt, answer.latents, seeds, config.futures, config.future_steps
                )
        elif unit.stage == "predict_future":
            for part in range(config.futures):
                self._predict_value(batch, depth, part, answer[:, part])
            if depth + 1 < config.depth:
                # From the last member of the ensemble: it took all the steps.
                ahead = SampleActions(self._query, seeds, answer[:, -1])
                self._open[TaskKey(batch, depth + 1, "sample_actions")] = ahead

    def decide(
        self, phases: dict[str, float], late: str = "", among: Sequence[int] | None = None
    ) -> Decision:
        """Choose among the finished candidates.

        Args:
            phases: wall seconds by stage.
            among: those of them that may be chosen; None for all.
            late: the time that not all have finished within.

        Raises:
            ValueError: none has.
        """
        finished = self.finished if among is None else list(among)
        candidates = [self._candidate(i, i in finished) for i in range(self._requested)]
        best = finished[choose([candidates[i].value for i in finished])]
        return Decision(
            positions=self._proposed(best).chunks[best % self.config.candidate_batch],
            dt=self._info.dt,
            candidates=tuple(candidates),
            chosen=best,
            reason=self._reason(candidates, best, late),
            engine="cosmos",
            checkpoint_digest=self._info.digest,
            planner_digest=self._info.planner_digest,
            denoising_steps=self._info.evaluations,
            numerics=self._info.numerics,
            search=self.config.text(),
            phases=phases,
            imagined=self._imagined(best),
        )

    def _predict_value(self, batch: int, depth: int, part: int, latents: Any) -> None:
        config = self.config
        self._open[TaskKey(batch, depth, "predict_value", part)] = PredictValue(
            self._query.prompt,
            latents,
            self._batches[batch],
            config.values,
            config.value_steps,
            config.value,
        )

    def _is_finished(self, batch: int) -> bool:
        return all(
            TaskKey(batch, depth, "predict_value", part) in self._answers
            for depth in range(self.config.depth)
            for part in range(self.config.members)
        )

    def _proposed(self, index: int) -> Any:
        return self._answers[TaskKey(index // self.config.candidate_batch, 0, "sample_actions")]

    def _imagined(self, index: int) -> Any:
        if self.config.value == "value_q":
            return None
        batch, row = divmod(index, self.config.candidate_batch)
        futures = self._answers[TaskKey(batch, 0, "predict_future")][row]
        return futures if self.config.shown == "average" else futures[-1:]

    def _candidate(self, index: int, finished: bool) -> Candidate:
        seed = self._query.seed + index
        if not finished:
            return Candidate(seed, finished=False)
        by_depth = [self._values(index, depth) for depth in range(self.config.depth)]
        found = [
            aggregate(values, self.config.aggregation, self._info.numerics) for values in by_depth
        ]
        last = self.config.combination == "last"
        return Candidate(
            seed=seed,
            values=by_depth[0],
            value=found[-1] if last else math.fsum(found) / len(found),
            spread=float(np.std(by_depth[0])) if len(by_depth[0]) > 1 else math.nan,
        )

    def _values(self, index: int, depth: int) -> tuple[float, ...]:
        """Return all values of a candidate, future by future."""
        batch, row = divmod(index, self.config.candidate_batch)
        parts = range(self.config.members)
        return tuple(
            value
            for part in parts
            for value in self._answers[TaskKey(batch, depth, "predict_value", part)][row]
        )

    def _reason(self, candidates: Sequence[Candidate], best: int, late: str) -> str:
        chosen, base = candidates[best], candidates[0]
        count = sum(c.finished for c in candidates)
        if best == 0:
            why = f"the base seed {base.seed} is kept: none is valued above its {base.value:.3f}"
        else:
            over = f"has {base.value:.3f}" if base.finished else "did not finish"
            why = (
                f"candidate {best}, seed {chosen.seed}, is valued highest: {chosen.value:.3f}; "
                f"the base seed {over}"
            )
        if count < len(candidates):
            why += f"; {count} of {len(candidates)} candidates finished within {late}"
        return self._info.note + why


def run_search(
    engine: Engine, query: Query, config: SearchConfig, among: Sequence[int] | None = None
) -> Decision:
    """Do a whole search in this process, one task after the other.

    Args:
        engine: does the tasks.
        query: what is seen.
        config: how to search.
        among: the candidates, by index, that may be chosen; None for all.

    Raises:
        CosmosPolicyError: the engine refused a task.
    """
    info = engine.info
    assert isinstance(info, SearchInfo)
    search = Search(query, config, info)
    while not search.complete:
        unit = search.units[0]
        search.take(unit, engine.answer(search.task(unit)))
    return search.decide({}, among=among)


# How much of a search fits into a deadline, by what its tasks have taken so far.


DEPICT = "decode_images"  # beside the stages of a search
REMEMBERED = 100  # tasks per stage
SURE = 0.95  # fraction of the tasks that are expected to keep to the time planned for them
# Answers of no size, for a search that is only gone through to see how long it takes.
_NOTHING = SampledActions(np.empty((0,), np.float32), np.empty((0,), np.float64))


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
        self, stage: str, steps: int, fraction: float, rehearsed: Mapping[str, float]
    ) -> float:
        """Return the seconds within which ``share`` of such tasks were done; inf if none was."""
        if not self._measured[stage]:
            return rehearsed.get(stage, math.inf) * steps
        return float(np.quantile(self._measured[stage], fraction)) * steps

    def summary(self) -> dict[str, str]:
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
                stage, config.steps(stage, info.denoising_steps), fraction, info.pace
            )
            for stage in STAGES
        }
        for fraction in (0.5, SURE)
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
    running: list[tuple[float, int, TaskKey]] = []
    while not search.complete:
        under_way = {unit for *_, unit in running}
        waiting = [unit for unit in search.units if unit not in under_way]
        for unit in waiting[: workers - len(running)]:
            heapq.heappush(running, (now + seconds[unit.stage], next(order), unit))
        now, _, done = heapq.heappop(running)
        imagined = np.empty((1, search.config.futures, 0), np.float32)
        search.take(done, imagined if done.stage == "predict_future" else _NOTHING)
    return now
