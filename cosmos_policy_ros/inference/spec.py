"""What an engine is built from, asked and answers: plain data that can be sent to its process.

Latents travel as float32 arrays (B, 16, T, h, w), so that only the engine needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import yaml
from numpy.typing import NDArray

from cosmos_policy_ros.core.config import parse_config, to_plain
from cosmos_policy_ros.inference.remote_config import Remote
from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.model.layout import ValueFrames, ValueMode
from cosmos_policy_ros.rig.arms import Gripper
from cosmos_policy_ros.rig.decision import EngineInfo, Query

Aggregation = Literal["majority_mean", "average", "lcb", "success_vote"]
Stage = Literal["sample_actions", "predict_future", "predict_value"]
STAGES: tuple[Stage, ...] = ("sample_actions", "predict_future", "predict_value")
EngineName = Literal["cosmos", "demonstrator", "remote"]
ENGINES: tuple[EngineName, ...] = ("cosmos", "demonstrator", "remote")
Latents = NDArray[np.float32]
Images = Mapping[str, NDArray[np.uint8]]  # (S, S, 3) RGB per camera role


@dataclass(frozen=True)
class Round:
    """An early round of a search: part of the ensembles for all, and the best go on.

    Attributes:
        futures, values: of each candidate, the ensembles' first members. With numerics "released"
            these take the fewest denoising steps.
        keep: candidates that go on to the next round, the ones valued highest.
    """

    futures: int
    values: int
    keep: int


@dataclass(frozen=True)
class Adaptive:
    """When a search is worth its price, by its first proposals; each limit alone is enough.

    Attributes:
        proposals: are sampled before it is decided; without a search the first one is taken.
        variance: search if the clean estimate of a proposal's action varied by more over the
            denoising steps, in units of the latents.
        distance: search if two of the chunks are further apart: mean absolute difference over all
            rows and joints, in policy units.
        value: search if the policy's own value of a proposal is lower.
        rows: of a chunk that was searched for, how many are executed before the policy looks again;
            None for all. Only of chunks that are decided at rest.
    """

    proposals: int = 1
    variance: float | None = None
    distance: float | None = None
    value: float | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        for name in ("proposals", "rows"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise ValueError(f"adaptive.{name}: {given} must be at least 1")
        for name in ("variance", "distance", "value"):
            limit = getattr(self, name)
            if limit is not None and not 0 <= limit < math.inf:
                raise ValueError(f"adaptive.{name}: {limit} must be a number from 0 on")
        if self.distance is not None and self.proposals < 2:
            raise ValueError("adaptive.distance: one proposal has no distance; set proposals: 2")
        if self.variance is self.distance is self.value is None:
            raise ValueError("adaptive: has no limit, so that none would ever be searched for")


class Level(NamedTuple):
    """How far a candidate has come: a round of a depth, and what it has then."""

    depth: int
    round: int
    futures: int
    values: int  # of each future
    keep: int  # of all candidates


@dataclass(frozen=True)
class SearchConfig:
    """How many candidates there are and how they are valued.

    The defaults are those of the released planning commands. ``proposals``, ``future``, ``rounds``,
    ``adaptive`` and ``beam``, which these lack, make a search cheaper or deeper; what that does to
    its choice, ``cosmos compare-searches`` tells.

    Attributes:
        candidates: N, whose futures and values are predicted.
        proposals: chunks that are sampled; proposal i has the base seed + i. Of more than there are
            candidates ``sieve`` takes these; of fewer the other candidates are perturbed copies,
            which cost no evaluation. None for as many as there are candidates.
        sieve: takes those with the highest value by the policy itself, which comes with each
            proposal, or those that differ most from each other ("distance", the first included).
        perturbation: how far a copy is from its proposal: mean absolute difference in units of the
            statistics, in which a joint's range is 2. It begins where the proposal begins, and
            leaves the grippers alone.
        future: imagined by the world model, or the one that the policy proposed along with its
            action ("proposed"), which costs no evaluation.
        futures: predictions of each candidate's future.
        future_steps: denoising steps of a future.
        values: predictions of each future's value.
        value_steps: denoising steps of a value.
        value: what it is conditioned on, as the world model was trained; Q(s, a) needs no future.
        value_frames: which of the sequence the network sees for it: all, as it was trained, or only
            those that it is conditioned on ("known"), for V(s') 6 of 11.
        aggregation: of all values of a candidate.
        rounds: before all are predicted: successive halving (Jamieson and Talwalkar, 2016).
        adaptive: search only where it matters; None always.
        depth: chunks ahead; beyond the first the policy goes on from what was imagined.
        combination: of the depths' values: the last one's, as released, or their average.
        beam: candidates that are looked further ahead from, the best; 0 for all of them.
        branches: chunks that each of them is continued with at the next depth.
        shown: of the chosen candidate's futures: the last one's images, whose future took all its
            steps, or the average of all their images, as the released planning command shows.
            Nothing is decided by it.
        candidate_batch: candidates that one worker computes together. Larger ones keep few workers
            busier, smaller ones spread over many. Results depend on it by rounding.
    """

    candidates: int = 8
    proposals: int | None = None
    sieve: Literal["value", "distance"] = "value"
    perturbation: float = 0.0
    future: Literal["predicted", "proposed"] = "predicted"
    futures: int = 3
    future_steps: int = 5
    values: int = 5
    value_steps: int = 5
    value: ValueMode = "value_s"
    value_frames: ValueFrames = "all"
    aggregation: Aggregation = "majority_mean"
    rounds: tuple[Round, ...] = ()
    adaptive: Adaptive | None = None
    depth: int = 1
    combination: Literal["last", "average"] = "last"
    beam: int = 0
    branches: int = 1
    shown: Literal["last", "average"] = "last"
    candidate_batch: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < (name != "beam"):
                raise ValueError(f"{name}: {value} must be at least {int(name != 'beam')}")
        copies = self.sampled < self.candidates
        if not 0 <= self.perturbation < math.inf or copies != (self.perturbation > 0):
            raise ValueError(
                f"perturbation: {self.perturbation} must be above 0 with fewer proposals "
                f"({self.sampled}) than candidates ({self.candidates}), and 0 otherwise"
            )
        if copies and self.future == "proposed":
            raise ValueError("future: of a perturbed copy none was proposed; take predicted")
        if self.adaptive is not None and self.adaptive.proposals > self.sampled:
            raise ValueError(
                f"adaptive.proposals: {self.adaptive.proposals} are more than the {self.sampled} "
                "that there are"
            )
        if self.value == "value_q" and self.depth > 1:
            raise ValueError("depth: Q(s, a) imagines no future to go on from; take value_s")
        if self.depth == 1 and (self.beam or self.branches > 1):
            raise ValueError(
                "depth: 1 looks no further ahead; set depth: 2, or no beam or branches"
            )
        if (
            self.aggregation == "lcb"
            and min(each.futures * each.values for each in self.levels) < 2
        ):
            raise ValueError("aggregation: one value has no standard deviation; take average")
        before = Level(0, 0, 1, 1, self.candidates)
        for level in self.levels[: len(self.rounds) + 1]:
            for name in ("futures", "values"):
                if getattr(level, name) < getattr(before, name):
                    raise ValueError(f"rounds: a later one has fewer {name} than one before")
            if not 0 < level.keep <= before.keep:
                raise ValueError(
                    f"rounds: keep {level.keep} must be at least 1, and at most the {before.keep} "
                    "candidates that there are then"
                )
            before = level

    @property
    def sampled(self) -> int:
        """How many chunks are sampled."""
        return self.candidates if self.proposals is None else self.proposals

    @property
    def considered(self) -> int:
        """How many chunks there are in all: sampled ones, and perturbed copies."""
        return max(self.sampled, self.candidates)

    @property
    def values_all(self) -> bool:
        """Whether every candidate is sampled and gets all values, so that the best is known."""
        return self.sampled == self.candidates and not (self.rounds or self.adaptive or self.beam)

    @property
    def imagines(self) -> bool:
        """Whether the world model predicts futures."""
        return self.future == "predicted" and self.value != "value_q"

    @property
    def reads_proposed_futures(self) -> bool:
        """Whether the futures that the policy proposes along with its actions are used."""
        return self.value != "value_q" and (self.future == "proposed" or self.adaptive is not None)

    @property
    def members(self) -> int:
        """How many futures of a candidate are valued; one is where none is predicted."""
        return self.futures if self.imagines else 1

    @property
    def levels(self) -> tuple[Level, ...]:
        """The rounds of the first depth, the last of which has everything, and deeper depths."""
        most = self.members
        rounds = [
            Level(0, i, min(each.futures, most), each.values, each.keep)
            for i, each in enumerate(self.rounds)
        ]
        keep = self.rounds[-1].keep if self.rounds else self.candidates
        whole = [
            Level(depth, len(self.rounds) if not depth else 0, most, self.values, keep)
            for depth in range(self.depth)
        ]
        return (*rounds, *whole)

    def until(self, level: Level) -> SearchConfig:
        """Return the search that ends with a level of this one."""
        if level.depth:
            return replace(self, depth=level.depth + 1)
        flat = replace(self, depth=1, beam=0, branches=1)
        if level.round == len(self.rounds):
            return flat
        return replace(
            flat, rounds=self.rounds[: level.round], futures=level.futures, values=level.values
        )

    def with_candidates(self, count: int) -> SearchConfig:
        """Return the search of another number of candidates, of proposals in proportion."""
        sampled = max(round(self.sampled * count / self.candidates), 1)
        if self.adaptive is not None:
            sampled = max(sampled, self.adaptive.proposals)
        return replace(
            self,
            candidates=count,
            proposals=None if self.proposals is None and sampled == count else sampled,
            perturbation=self.perturbation if sampled < count else 0.0,
            rounds=tuple(replace(each, keep=min(each.keep, count)) for each in self.rounds),
        )

    def steps(self, stage: Stage, denoising_steps: int) -> int:
        """Return the denoising steps of a stage's longest run."""
        return {
            "sample_actions": denoising_steps,
            "predict_future": self.future_steps,
            "predict_value": self.value_steps,
        }[stage]

    def text(self) -> str:
        """Return one line of YAML, which :func:`parse_search` reads."""
        flow = yaml.safe_dump(
            to_plain(self), default_flow_style=True, sort_keys=False, width=10_000
        )
        return str(flow).strip()


def parse_search(text: str, where: str) -> SearchConfig:
    """Read what :meth:`SearchConfig.text` wrote; raises ConfigError."""
    return parse_config(SearchConfig, text, where)


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built from; what names no other engine is for the cosmos engine."""

    engine: EngineName
    checkpoint: str = ""  # folder
    device: str = "auto"  # torch device; "auto" is a GPU where there is one
    # Of torch. A second one makes a CPU several times slower as soon as anything else uses its
    # cores, and delays the node's own timers.
    threads: int = 1
    niceness: int = 0  # of its process; above 0 where arms are moved on the same cores
    compiled: bool = False  # the transformer
    fp8_weights: bool = False  # of the transformer; less memory and other results
    numerics: Numerics | None = None  # None: as the checkpoint says
    denoising_steps: int | None = None  # None: as the checkpoint says
    search: SearchConfig | None = None  # None: the policy's one proposal
    world_model: str | None = None  # folder of the checkpoint that predicts; None: the policy's
    gripper: Gripper | None = None  # the rig's, for the demonstrator, who works in metres
    remote: Remote | None = None  # the server that the remote engine asks

    @property
    def place(self) -> str:
        """Where the policy is, for people: a device, or a server's URL."""
        return self.device if self.remote is None else self.remote.url


@dataclass(frozen=True)
class Footprint:
    """The memory that one engine needs of its device, in bytes."""

    device: str  # torch's name, with the machine's where there are several
    needs: dict[str, int]  # by what they are for
    free: int  # left on the device now

    @property
    def total(self) -> int:
        """All that is needed."""
        return sum(self.needs.values())


@dataclass(frozen=True)
class Decide:
    """Answer a query; the answer is a ``Decision``."""

    what: ClassVar[str] = "a query"
    query: Query


@dataclass(frozen=True)
class SampleActions:
    """Propose one chunk per seed; the answer is :class:`SampledActions`."""

    what: ClassVar[str] = "proposals"
    query: Query
    seeds: tuple[int, ...]
    after: Latents | None = None  # imagined futures to go on from instead of what is seen
    futures: bool = False  # whether the policy's own futures will be read, too


@dataclass(frozen=True)
class SampledActions:
    """Proposals of B candidates."""

    latents: Latents
    chunks: NDArray[np.float64]  # (B, K, 14), policy units; a benchmark's (B, K, n)
    # B each, NaN for perturbed ones: their values by the policy itself; the variances of the clean
    # estimates over the steps, of which there must be two.
    values: tuple[float, ...]
    variances: tuple[float, ...]


@dataclass(frozen=True)
class PerturbActions:
    """Change one chunk per seed a little; the answer is :class:`SampledActions`."""

    what: ClassVar[str] = "perturbed proposals"
    query: Query
    latents: Latents  # with the chunks
    seeds: tuple[int, ...]
    distance: float  # see SearchConfig.perturbation


@dataclass(frozen=True)
class PredictFuture:
    """Imagine F futures of B candidates; the answer is latents (B, F, 16, T, h, w)."""

    what: ClassVar[str] = "futures"
    prompt: str
    latents: Latents  # with the candidates' actions
    seeds: tuple[int, ...]
    members: tuple[int, ...]  # F, which of the ensemble
    ensemble: int  # how many members it has
    steps: int  # of its longest run


@dataclass(frozen=True)
class PredictValue:
    """Value B candidates; the answer is B tuples of a value in [0, 1] per member."""

    what: ClassVar[str] = "values"
    prompt: str
    latents: Latents  # with what ``mode`` is conditioned on
    seeds: tuple[int, ...]
    members: tuple[int, ...]  # which of the ensemble
    ensemble: int  # how many members it has
    steps: int  # of its longest run
    mode: ValueMode
    frames: ValueFrames = "all"


@dataclass(frozen=True)
class DecodeImages:
    """Decode an imagined future; the answer is :data:`Images`."""

    what: ClassVar[str] = "images"
    query: Query  # what was seen before it
    latents: Latents  # of several futures the average of their images is returned


SearchTask: TypeAlias = SampleActions | PerturbActions | PredictFuture | PredictValue
Task: TypeAlias = Decide | DecodeImages | SearchTask  # ``what`` names it in messages


@dataclass(frozen=True)
class SearchInfo(EngineInfo):
    """What is known of a searching engine once it is loaded."""

    world_model_digest: str = ""  # sha256 over the world model's files
    dt: float = 0.0  # s between the rows of a chunk
    numerics: Numerics = "released"  # of both checkpoints
    denoising_steps: int = 0  # asked for, of one proposal
    evaluations: int = 0  # of the network for one proposal
    note: str = ""  # what every decision's reason begins with
    # Wall seconds per denoising step of one batch's task, by stage, as rehearsed.
    pace: Mapping[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """What runs in an inference process."""

    @property
    def info(self) -> EngineInfo:
        """Its checkpoint's digest and warnings."""
        ...

    def answer(self, task: Task) -> object:
        """Do one task. Raises CosmosPolicyError when it cannot."""
        ...


Admit = Callable[[Footprint], None]  # returns once the memory is granted
# Builds an engine in the process that calls it; a module's function, so that it can be sent there.
EngineLoader = Callable[[EngineSpec, Admit], Engine]
