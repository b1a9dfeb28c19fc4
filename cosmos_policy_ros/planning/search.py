"""Best-of-N as a list of tasks: sample actions, predict futures, predict their values.

Two checkpoints take part, which may be one: the policy samples actions, the world model predicts
their futures and values (Cosmos Policy paper, planning). Nothing is computed here. Which worker
computes what, and in which order, does not change a result: the batches are fixed by the
configuration, so a seed gives the same bits on one worker and on eight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np

from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.inference.spec import (
    STAGES,
    Adaptive,
    Aggregation,
    Engine,
    Latents,
    PerturbActions,
    PredictFuture,
    PredictValue,
    SampleActions,
    SearchConfig,
    SearchInfo,
    SearchTask,
    Stage,
)
from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.model.draws import count_evaluations, ensemble
from cosmos_policy_ros.rig.decision import Candidate, Decision, Query

SUCCESS = 0.05  # a value above it counts as a prediction of success

# Why a (K, n) chunk would not be executed in answer to a query; "" if it would.
Foresee: TypeAlias = Callable[[Query, Array], str]


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

    first: int  # number of the batch's first candidate
    depth: int  # how far ahead
    round: int
    stage: Stage
    part: int = 0  # which of the candidates' futures, whose value is predicted


class Spent(NamedTuple):
    """What a search has asked of the networks."""

    runs: int  # of the sampler
    evaluations: int  # of the network; the last one of each run leaves out what is not read


@dataclass(eq=False)
class _Node:
    """A candidate, or at a greater depth what may follow it."""

    number: int  # among those of its depth
    index: int  # of the candidate
    seed: int
    depth: int = 0
    parent: _Node | None = None
    latents: Latents | None = None  # (16, T, h, w), proposed
    chunk: Array | None = None  # (K, n)
    own_value: float = math.nan  # by the policy
    variance: float = math.nan
    futures: list[Latents] = field(default_factory=list)  # (16, T, h, w) each
    values: list[list[float]] = field(default_factory=list)  # by future
    level: int = -1  # the last one of which it has everything
    dropped: str = ""  # by what, before it had all its values
    refusal: str = ""  # of the gate, foreseen


@dataclass(frozen=True)
class _Part:
    """A task, the candidates that are in it, and its cost."""

    task: SearchTask
    nodes: tuple[_Node, ...]
    level: int
    runs: int  # of the sampler, for each of the nodes
    evaluations: int  # of the network in them
    whole: int  # as many as the whole stage takes

    @property
    def fraction(self) -> float:
        """Of the whole stage's price."""
        return self.evaluations / self.whole if self.whole else 1.0


class Search:
    """The tasks of one decision, and the decision itself once enough of them are done.

    Attributes:
        spent: runs of the sampler, and evaluations of the network in them, by stage, in the tasks
            that are done.
    """

    def __init__(
        self,
        query: Query,
        config: SearchConfig,
        info: SearchInfo,
        requested: int = 0,
        foresee: Foresee | None = None,
    ) -> None:
        """Begin with the proposals.

        Args:
            query: what is to be decided.
            config: the search.
            info: of the engine.
            requested: candidates that were asked for, if not all fit.
            foresee: which proposals would be refused; those are not searched.
        """
        self.config, self.info = config, info
        self.spent = {stage: Spent(0, 0) for stage in STAGES}
        self._query, self._requested = query, max(requested, config.considered)
        self._levels = config.levels
        self._candidates = [_Node(i, i, query.seed + i) for i in range(config.considered)]
        self._nodes = list(self._candidates)
        self._tasks: dict[TaskKey, _Part] = {}
        self._open: set[TaskKey] = set()  # those of them that are not done
        self._foresee = foresee
        self._unsearched = ""  # why the first proposal is taken as it is
        self._adaptive = config.adaptive  # until it is decided whether to search
        first = config.sampled if self._adaptive is None else self._adaptive.proposals
        self._sample(self._candidates[:first])

    @property
    def open(self) -> list[TaskKey]:
        """What can be computed now, the most advanced first: a candidate begun is soon finished."""

        def order(key: TaskKey) -> tuple[int, ...]:
            return -key.depth, -key.round, -STAGES.index(key.stage), key.first, key.part

        return sorted(self._open, key=order)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self._open

    @property
    def finished(self) -> list[int]:
        """The candidates, by index, that can be chosen: those that have come furthest."""
        return [0] if self._unsearched else sorted({node.index for node in self._furthest()})

    def task(self, key: TaskKey) -> SearchTask:
        """Return what is to be computed."""
        return self._tasks[key].task

    def steps(self, key: TaskKey) -> float:
        """Return a task's denoising steps: its stage's, or of a part of the stage so many."""
        whole = self.config.steps(key.stage, self.info.denoising_steps)
        return whole * self._tasks[key].fraction

    def take(self, key: TaskKey, answer: Any) -> None:
        """Take an answer; a second one to the same task says the same and is dropped."""
        if key not in self._open:
            return
        self._open.remove(key)
        done = self._tasks[key]
        nodes, level = done.nodes, done.level
        before, count = self.spent[key.stage], len(nodes)
        self.spent[key.stage] = Spent(
            before.runs + count * done.runs, before.evaluations + count * done.evaluations
        )
        if key.stage == "sample_actions":
            for row, node in enumerate(nodes):
                node.latents, node.chunk = answer.latents[row], answer.chunks[row]
                node.own_value, node.variance = answer.values[row], answer.variances[row]
            if not key.depth:
                self._drop_refused(nodes)
            self._proposed(nodes, key.depth)
            self._go_on()
        elif key.stage == "predict_future":
            known = len(nodes[0].futures)
            for row, node in enumerate(nodes):
                node.futures += [answer[row, member] for member in range(answer.shape[1])]
                node.values += [[] for _ in range(answer.shape[1])]
            for part in range(known, len(nodes[0].futures)):
                self._predict_value(nodes, level, part)
        else:
            for row, node in enumerate(nodes):
                node.values[key.part] += answer[row]
            futures, values = self._levels[level].futures, self._levels[level].values
            of_first = nodes[0].values
            if len(of_first) == futures and all(len(each) == values for each in of_first):
                for node in nodes:
                    node.level = level
                self._valued(nodes, level)

    def decide(
        self, phases: dict[str, float], late: str = "", among: Sequence[int] | None = None
    ) -> Decision:
        """Choose among the candidates that have come furthest, or those that are given by index.

        ``phases`` are wall seconds by stage, ``late`` names the time that some did not finish in.
        Raises ValueError when there is none.
        """
        config, info = self.config, self.info
        if self._unsearched:
            best, why = self._candidates[0], self._unsearched
            candidates = [self._unvalued(i) for i in range(self._requested)]
        else:
            nodes = self._furthest()
            allowed = [node for node in nodes if among is None or node.index in among]
            best = allowed[choose([self._value(node, node.level) for node in allowed])]
            config = config.until(self._levels[best.level])
            candidates = [self._candidate(i, nodes) for i in range(self._requested)]
            why = _reason(candidates, best.index, late)
        rows = None
        if config.adaptive is not None and not self._unsearched:
            rows = config.adaptive.rows
        root = best
        while root.parent is not None:
            root = root.parent
        assert root.chunk is not None and root.latents is not None
        imagined = None
        if config.imagines and not self._unsearched:
            futures = np.stack(root.futures[: config.futures])
            imagined = futures if config.shown == "average" else futures[-1:]
        elif config.reads_proposed_futures:
            imagined = root.latents[None]
        return Decision(
            positions=root.chunk,
            dt=info.dt,
            candidates=tuple(candidates),
            chosen=root.index,
            reason=info.note + why,
            engine="cosmos",
            checkpoint_digest=info.digest,
            world_model_digest=info.world_model_digest,
            denoising_steps=info.evaluations,
            executed_rows=rows or 0,
            evaluations=sum(spent.evaluations for spent in self.spent.values()),
            numerics=info.numerics,
            search=config.text(),
            phases=phases,
            imagined=imagined,
        )

    # ---- what follows what

    def _groups(self, nodes: Sequence[_Node]) -> Iterator[tuple[_Node, ...]]:
        size = self.config.candidate_batch
        yield from (tuple(nodes[i : i + size]) for i in range(0, len(nodes), size))

    def _add(
        self,
        nodes: tuple[_Node, ...],
        key: TaskKey,
        task: SearchTask,
        level: int,
        members: tuple[int, ...] = (0,),
    ) -> None:
        """Open a task of some members of the stage's ensemble."""
        config, numerics = self.config, self.info.numerics
        if key.stage == "sample_actions":
            each = [self.info.evaluations]
        else:
            size = config.futures if key.stage == "predict_future" else config.values
            steps = config.steps(key.stage, 0)
            draws = ensemble(0, size, steps, numerics)
            each = [count_evaluations(draw.steps, numerics) for draw in draws]
        some = sum(each[member] for member in members)
        self._tasks[key] = _Part(task, nodes, level, len(members), some, sum(each))
        self._open.add(key)

    def _sample(self, nodes: Sequence[_Node]) -> None:
        """Sample the actions of nodes of one depth, behind what their parents imagined."""
        for group in self._groups(nodes):
            depth, seeds = group[0].depth, tuple(node.seed for node in group)
            after = None
            if depth:
                after = np.stack([_last_future(node.parent) for node in group if node.parent])
            reads = self.config.reads_proposed_futures
            task = SampleActions(self._query, seeds, after, reads)
            self._add(group, TaskKey(group[0].number, depth, 0, "sample_actions"), task, -1)

    def _drop_refused(self, nodes: Sequence[_Node]) -> None:
        """Leave out the proposals that would not be executed anyway."""
        for node in nodes:
            assert node.chunk is not None
            if self._foresee is not None:
                node.refusal = self._foresee(self._query, node.chunk)
            node.dropped = "gate" if node.refusal else ""

    def _go_on(self) -> None:
        """Do without the refused proposals, where all else waited for the last of them alone."""
        if self._open or self._unsearched:
            return
        if all(node.dropped == "gate" for node in self._candidates):
            count, first = len(self._candidates), self._candidates[0].refusal
            self._unsearched = f"the gate would refuse all of {count} candidates: {first}"
            return
        level = max(node.level for node in self._nodes)
        if level >= 0:
            self._valued([node for node in self._nodes if node.level == level], level)

    def _proposed(self, nodes: tuple[_Node, ...], depth: int) -> None:
        """Go on from proposals: to all that are worth it, if that is to be found out first."""
        config = self.config
        sieves, first = config.sampled > config.candidates, nodes
        if depth:
            self._predict(nodes, len(config.rounds) + depth)
            return
        if self._adaptive is not None:
            if self._open:
                return
            first = tuple(self._candidates[: self._adaptive.proposals])
            self._unsearched = "" if first[0].dropped else _agreement(first, self._adaptive)
            self._adaptive = None
            if self._unsearched:
                return
            self._sample(self._candidates[len(first) : config.sampled])
        if not sieves:
            self._copy(first)
            self._predict_all([node for node in first if not node.dropped], 0)
        elif not self._open:
            left = [node for node in self._candidates if not node.dropped]
            kept = _sieve(left, config)
            for node in left:
                node.dropped = "" if node in kept else "sieve"
            self._predict_all(kept, 0)

    def _copy(self, proposals: Sequence[_Node]) -> None:
        """Have the copies made of some proposals, if there are fewer of these than candidates."""
        config, sources = self.config, {node.index: node for node in proposals}
        pairs = [
            (copy, sources[source])
            for copy in self._candidates[config.sampled :]
            if (source := (copy.index - config.sampled) % config.sampled) in sources
        ]
        for group in self._groups([copy for copy, _ in pairs]):
            latents = [source.latents for copy, source in pairs if copy in group]
            task = PerturbActions(
                self._query,
                np.stack([each for each in latents if each is not None]),
                tuple(node.seed for node in group),
                config.perturbation,
            )
            self._add(group, TaskKey(group[0].number, 0, 0, "sample_actions"), task, -1, ())

    def _predict_all(self, nodes: Sequence[_Node], level: int) -> None:
        for group in self._groups(nodes):
            self._predict(group, level)

    def _predict(self, nodes: tuple[_Node, ...], level: int) -> None:
        """Open what nodes that were together so far still lack for a level."""
        config, wanted = self.config, self._levels[level]
        if not config.imagines and not nodes[0].values:
            for node in nodes:
                node.values.append([])
        known = len(nodes[0].values)
        for part in range(known):
            self._predict_value(nodes, level, part)
        if known < wanted.futures:
            task = PredictFuture(
                self._query.prompt,
                np.stack([node.latents for node in nodes if node.latents is not None]),
                tuple(node.seed for node in nodes),
                tuple(range(known, wanted.futures)),
                config.futures,
                config.future_steps,
            )
            key = TaskKey(nodes[0].number, wanted.depth, wanted.round, "predict_future")
            self._add(nodes, key, task, level, task.members)

    def _predict_value(self, nodes: tuple[_Node, ...], level: int, part: int) -> None:
        """Open what lacks of the values of one of the futures."""
        config, wanted = self.config, self._levels[level]
        members = tuple(range(len(nodes[0].values[part]), wanted.values))
        if not members:
            return
        own = [node.futures[part] if config.imagines else node.latents for node in nodes]
        task = PredictValue(
            self._query.prompt,
            np.stack([each for each in own if each is not None]),
            tuple(node.seed for node in nodes),
            members,
            config.values,
            config.value_steps,
            config.value,
            config.value_frames,
        )
        key = TaskKey(nodes[0].number, wanted.depth, wanted.round, "predict_value", part)
        self._add(nodes, key, task, level, members)

    def _valued(self, nodes: Sequence[_Node], level: int) -> None:
        """Go on from nodes that have all values of a level: to the next round, or further ahead."""
        config, depth = self.config, self._levels[level].depth
        if level + 1 == len(self._levels):
            return
        ahead = self._levels[level + 1].depth > depth
        if ahead and not config.beam:
            self._continue(nodes)
            return
        if self._open:  # the others' values are not known yet
            return
        reached = [node for node in self._nodes if node.level == level]
        keep = config.beam if ahead else self._levels[level].keep
        best = sorted(reached, key=lambda node: -self._value(node, level))[:keep]
        kept = [node for node in reached if node in best]  # in their order
        stay = {node.index for node in kept}
        for node in reached:
            if node.index not in stay:
                self._candidates[node.index].dropped = "beam" if ahead else "round"
        before, after = self._levels[level : level + 2]
        if ahead:
            self._continue(kept)
        elif (after.futures, after.values) != (before.futures, before.values):
            self._predict_all(kept, level + 1)
        else:  # a round that only leaves some out
            for node in kept:
                node.level = level + 1
            self._valued(kept, level + 1)

    def _continue(self, nodes: Sequence[_Node]) -> None:
        """Look a chunk further ahead from nodes, in several ways."""
        config = self.config
        children = [
            _Node(
                node.number * config.branches + branch,
                node.index,
                self._candidates[node.index].seed + branch * config.considered,
                node.depth + 1,
                node,
            )
            for node in nodes
            for branch in range(config.branches)
        ]
        self._nodes += children
        self._sample(children)

    # ---- what it comes to

    def _furthest(self) -> list[_Node]:
        """Return the nodes of the furthest level that any candidate has reached with all of its."""
        branches, beam = self.config.branches, self.config.beam
        for level, wanted in reversed(list(enumerate(self._levels))):
            found: list[_Node] = []
            for candidate in self._candidates:
                index, depth = candidate.index, wanted.depth
                nodes = [n for n in self._nodes if (n.index, n.depth) == (index, depth)]
                every = nodes and (beam or len(nodes) == branches**depth)
                if every and all(node.level >= level for node in nodes):
                    found += nodes
            if found:
                return found
        return []

    def _values(self, node: _Node, level: int) -> list[float]:
        """Return a node's values as they were at a level, or at its own if it came less far."""
        wanted = self._levels[min(level, node.level)]
        return [value for part in node.values[: wanted.futures] for value in part[: wanted.values]]

    def _value(self, node: _Node, level: int) -> float:
        """Return what a node is worth at a level, by what is ahead of its candidate."""
        found, at = [], level
        while True:
            values = self._values(node, at)
            found.append(aggregate(values, self.config.aggregation, self.info.numerics))
            if node.parent is None:
                break
            node = node.parent
            at = node.level
        return found[0] if self.config.combination == "last" else math.fsum(found) / len(found)

    def _candidate(self, index: int, furthest: Sequence[_Node]) -> Candidate:
        own = self._candidates[index] if index < len(self._candidates) else None
        if own is None:
            return Candidate(self._query.seed + index, finished=False)
        level = furthest[0].level
        ahead = [node for node in furthest if node.index == index]
        best = max((self._value(node, level) for node in ahead), default=math.nan)
        values = self._values(own, level) if own.level >= 0 else []
        if not ahead and own.dropped and values:
            best = self._value(own, own.level)
        finished = bool(ahead or own.dropped)
        if not finished:
            values = []
        return Candidate(
            seed=own.seed,
            values=tuple(values),
            value=best,
            spread=float(np.std(values)) if len(values) > 1 else math.nan,
            finished=finished,
            own_value=own.own_value,
            variance=own.variance,
            dropped=own.dropped,
        )

    def _unvalued(self, index: int) -> Candidate:
        """Return a proposal of which nothing was predicted."""
        if index >= len(self._candidates):
            return Candidate(self._query.seed + index, finished=False)
        own = self._candidates[index]
        values = () if own.chunk is None else (own.own_value,)
        return Candidate(
            seed=own.seed,
            values=values,
            value=own.own_value,
            own_value=own.own_value,
            variance=own.variance,
            dropped=own.dropped if own.chunk is not None else "adaptive",
        )


def _last_future(node: _Node) -> Latents:
    """Return what was imagined to follow: the last member's future took all the steps."""
    found = node.futures[-1] if node.futures else node.latents
    assert found is not None
    return found


def _distance(one: _Node, other: _Node) -> float:
    """Return the mean absolute difference of two chunks, in policy units."""
    assert one.chunk is not None and other.chunk is not None
    return float(np.abs(one.chunk - other.chunk).mean()) if one.chunk.size else math.nan


def _agreement(nodes: Sequence[_Node], adaptive: Adaptive) -> str:
    """Return why these proposals need no search, or "" if they do; what is unknown asks for one."""
    apart = [_distance(a, b) for i, a in enumerate(nodes) for b in nodes[:i]]
    told = []
    for name, found, limit, unit in (
        ("variance", [node.variance for node in nodes], adaptive.variance, ""),
        ("distance", apart, adaptive.distance, " rad"),
        ("own value", [node.own_value for node in nodes], adaptive.value, ""),
    ):
        if limit is None:
            continue
        least = name == "own value"
        # Each by itself: NaN is neither, and gets lost in a minimum.
        if not all(each >= limit if least else each <= limit for each in found):
            return ""
        worst = min(found) if least else max(found)
        told.append(f"{name} {worst:.3g}{unit}, limit {limit:g}")
    return f"not searched: {'; '.join(told)}"


def _sieve(nodes: Sequence[_Node], config: SearchConfig) -> list[_Node]:
    """Return the proposals that become candidates, in their order."""
    count = min(config.candidates, len(nodes))
    if config.sieve == "value":
        kept = sorted(nodes, key=lambda node: -np.nan_to_num(node.own_value))[:count]
    else:
        kept = [*nodes[:1]]
        while len(kept) < count:
            rest = [node for node in nodes if node not in kept]
            nearest = [min(_distance(node, other) for other in kept) for node in rest]
            kept.append(rest[int(np.argmax(np.nan_to_num(nearest)))])
    return [node for node in nodes if node in kept]


def _reason(candidates: Sequence[Candidate], best: int, late: str) -> str:
    chosen, base = candidates[best], candidates[0]
    if best == 0:
        why = f"the base seed {base.seed} is kept: none is valued above its {base.value:.3f}"
    else:
        if not base.finished:
            over = "did not finish"
        elif base.dropped == "gate":
            over = "would be refused by the gate"
        elif math.isnan(base.value):
            over = f"was dropped, with {base.own_value:.3f} by the policy itself"
        else:
            over = f"has {base.value:.3f}"
        why = (
            f"candidate {best}, seed {chosen.seed}, is valued highest: {chosen.value:.3f}; "
            f"the base seed {over}"
        )
    if refused := sum(c.dropped == "gate" for c in candidates):
        why += f"; the gate would refuse {refused} of {len(candidates)} candidates"
    finished = sum(c.finished for c in candidates)
    if finished < len(candidates):
        why += f"; {finished} of {len(candidates)} candidates finished within {late}"
    return why


def run_search(
    engine: Engine,
    query: Query,
    config: SearchConfig,
    among: Sequence[int] | None = None,
    foresee: Foresee | None = None,
) -> Decision:
    """Do a whole search in this process, one task after the other.

    ``among`` are the candidates, by index, that may be chosen; None for all. ``foresee`` is
    :class:`Search`'s. Raises CosmosPolicyError when the engine refuses a task.
    """
    info = engine.info
    assert isinstance(info, SearchInfo)
    search = Search(query, config, info, foresee=foresee)
    while not search.complete:
        key = search.open[0]
        search.take(key, engine.answer(search.task(key)))
    return search.decide({}, among=among)
