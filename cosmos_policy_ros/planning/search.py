"""Best-of-N as a list of tasks: propose, imagine what follows, appraise it.

Two checkpoints take part, which may be one: the policy proposes, the planner imagines and appraises
(Cosmos Policy paper, planning; facts, §7). Nothing is computed here, and it does not matter where
and in which order it is: what belongs into one batch is fixed by the config, never by how many
workers there are, so a seed comes out the same to the last bit on one worker and on eight.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from cosmos_policy_ros.model.layout import ValueMode
from cosmos_policy_ros.planning.tasks import Appraise, Engine, Imagine, Propose, SearchInfo
from cosmos_policy_ros.planning.values import Aggregation, aggregate, choose
from cosmos_policy_ros.rig.config import parse_config
from cosmos_policy_ros.rig.decision import Candidate, Decision, Query

Combination = Literal["last", "average"]
Stage = Literal["propose", "imagine", "appraise"]
STAGES: tuple[Stage, ...] = ("propose", "imagine", "appraise")


@dataclass(frozen=True)
class SearchConfig:
    """How many candidates there are and how they are appraised; as released, but for ``lot``.

    Attributes:
        candidates: N; candidate i has the base seed + i.
        futures: predictions of each candidate's future.
        future_steps: denoising steps of a future.
        values: predictions of each future's value.
        value_steps: denoising steps of a value.
        value: what it is conditioned on, as the planner was trained; Q(s, a) needs no future.
        aggregation: of all values of a candidate.
        depth: chunks ahead; beyond the first the policy goes on from what was imagined.
        combination: of the depths' values: the last one's, or their average.
        lot: candidates that one worker computes together. Larger lots keep few workers busier,
            smaller ones spread over many. Results depend on it by rounding.
    """

    candidates: int = 8
    futures: int = 3
    future_steps: int = 5
    values: int = 5
    value_steps: int = 5
    value: ValueMode = "value_s"
    aggregation: Aggregation = "majority_mean"
    depth: int = 1
    combination: Combination = "average"
    lot: int = 1

    def __post_init__(self) -> None:
        counts = ("candidates", "futures", "future_steps", "values", "value_steps", "depth", "lot")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.value == "value_q" and self.depth > 1:
            raise ValueError("depth: Q(s, a) imagines no future to go on from; take value_s")
        if self.aggregation == "lcb" and self.members * self.values < 2:
            raise ValueError("aggregation: one value has no standard deviation; take average")

    @property
    def members(self) -> int:
        """How many futures of a candidate are appraised; Q(s, a) takes the candidate itself."""
        return 1 if self.value == "value_q" else self.futures

    def steps(self, stage: Stage, denoising_steps: int) -> int:
        """Return the denoising steps of a stage's longest run."""
        return {
            "propose": denoising_steps,
            "imagine": self.future_steps,
            "appraise": self.value_steps,
        }[stage]

    def text(self) -> str:
        """Return it in one line of YAML, as it stands in a decision."""
        flow = yaml.safe_dump(
            dataclasses.asdict(self), default_flow_style=True, sort_keys=False, width=10_000
        )
        return str(flow).strip()


def parse_search(text: str, where: str) -> SearchConfig:
    """Read what :meth:`SearchConfig.text` wrote; raises ConfigError."""
    return parse_config(SearchConfig, text, where)


class Unit(NamedTuple):
    """One task of a search: what a worker is given at a time.

    Attributes:
        lot: which candidates.
        depth: how far ahead.
        stage: what is done.
        part: which of their futures, for appraisal.
    """

    lot: int
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
        self._lots = [seeds[i : i + config.lot] for i in range(0, len(seeds), config.lot)]
        self._answers: dict[Unit, Any] = {}
        self._open: dict[Unit, Propose | Imagine | Appraise] = {}
        for lot, members in enumerate(self._lots):
            self._open[Unit(lot, 0, "propose")] = Propose(query, members)

    @property
    def units(self) -> list[Unit]:
        """What can be computed now, the most advanced first: a candidate begun is soon finished."""
        return sorted(self._open, key=lambda u: (-u.depth, -STAGES.index(u.stage), u.lot, u.part))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self._open

    @property
    def finished(self) -> list[int]:
        """The candidates, by index, that have all their values."""
        return [i for i in range(self.config.candidates) if self._is_finished(i // self.config.lot)]

    def task(self, unit: Unit) -> Propose | Imagine | Appraise:
        """Return what is to be computed."""
        return self._open[unit]

    def take(self, unit: Unit, answer: Any) -> None:
        """Take an answer; a second one to the same unit says the same and is dropped."""
        if self._open.pop(unit, None) is None:
            return
        self._answers[unit] = answer
        config, lot, depth = self.config, unit.lot, unit.depth
        prompt, seeds = self._query.prompt, self._lots[lot]
        if unit.stage == "propose":
            if config.value == "value_q":
                self._appraise(lot, depth, 0, answer.latents)
            else:
                self._open[Unit(lot, depth, "imagine")] = Imagine(
                    prompt, answer.latents, seeds, config.futures, config.future_steps
                )
        elif unit.stage == "imagine":
            for part in range(config.futures):
                self._appraise(lot, depth, part, answer[:, part])
            if depth + 1 < config.depth:
                # From the last member of the ensemble: it took all the steps.
                ahead = Propose(self._query, seeds, answer[:, -1])
                self._open[Unit(lot, depth + 1, "propose")] = ahead

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
            positions=self._proposed(best).chunks[best % self.config.lot],
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

    def _appraise(self, lot: int, depth: int, part: int, latents: Any) -> None:
        config = self.config
        self._open[Unit(lot, depth, "appraise", part)] = Appraise(
            self._query.prompt,
            latents,
            self._lots[lot],
            config.values,
            config.value_steps,
            config.value,
        )

    def _is_finished(self, lot: int) -> bool:
        return all(
            Unit(lot, depth, "appraise", part) in self._answers
            for depth in range(self.config.depth)
            for part in range(self.config.members)
        )

    def _proposed(self, index: int) -> Any:
        return self._answers[Unit(index // self.config.lot, 0, "propose")]

    def _imagined(self, index: int) -> Any:
        if self.config.value == "value_q":
            return None
        lot, row = divmod(index, self.config.lot)
        return self._answers[Unit(lot, 0, "imagine")][row : row + 1, -1]

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
        lot, row = divmod(index, self.config.lot)
        parts = range(self.config.members)
        return tuple(
            value
            for part in parts
            for value in self._answers[Unit(lot, depth, "appraise", part)][row]
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
