"""What an engine is built from, asked and answers: plain data that can be sent to its process.

Latents travel as float32 arrays (B, 16, T, h, w), so that only the engine needs torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, TypeAlias

import numpy as np
import yaml
from numpy.typing import NDArray

from cosmos_policy_ros.core.config import parse_config
from cosmos_policy_ros.inference.remote_config import Remote
from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.model.layout import ValueMode
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
class SearchConfig:
    """How many candidates there are and how they are valued.

    As in the released planning commands, but for ``shown`` and ``candidate_batch``, which they
    lack.

    Attributes:
        candidates: N; candidate i has the base seed + i.
        futures: predictions of each candidate's future.
        future_steps: denoising steps of a future.
        values: predictions of each future's value.
        value_steps: denoising steps of a value.
        value: what it is conditioned on, as the world model was trained; Q(s, a) needs no future.
        aggregation: of all values of a candidate.
        depth: chunks ahead; beyond the first the policy goes on from what was imagined.
        combination: of the depths' values: the last one's, as released, or their average.
        shown: of the chosen candidate's futures: the last one's images, whose future took all its
            steps, or the average of all their images, as the released planning command shows.
            Nothing is decided by it.
        candidate_batch: candidates that one worker computes together. Larger ones keep few workers
            busier, smaller ones spread over many. Results depend on it by rounding.
    """

    candidates: int = 8
    futures: int = 3
    future_steps: int = 5
    values: int = 5
    value_steps: int = 5
    value: ValueMode = "value_s"
    aggregation: Aggregation = "majority_mean"
    depth: int = 1
    combination: Literal["last", "average"] = "last"
    shown: Literal["last", "average"] = "last"
    candidate_batch: int = 1

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name}: {value} must be at least 1")
        if self.value == "value_q" and self.depth > 1:
            raise ValueError("depth: Q(s, a) imagines no future to go on from; take value_s")
        if self.aggregation == "lcb" and self.members * self.values < 2:
            raise ValueError("aggregation: one value has no standard deviation; take average")

    @property
    def members(self) -> int:
        """How many futures of a candidate are valued; Q(s, a) takes the candidate itself."""
        return 1 if self.value == "value_q" else self.futures

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
            dataclasses.asdict(self), default_flow_style=True, sort_keys=False, width=10_000
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


@dataclass(frozen=True)
class SampledActions:
    """Proposals of B candidates."""

    latents: Latents
    chunks: NDArray[np.float64]  # (B, K, 14), policy units; a benchmark's (B, K, n)


@dataclass(frozen=True)
class PredictFuture:
    """Imagine ``members`` futures of B candidates; the answer is latents (B, F, 16, T, h, w)."""

    what: ClassVar[str] = "futures"
    prompt: str
    latents: Latents  # with the candidates' actions
    seeds: tuple[int, ...]
    members: int
    steps: int


@dataclass(frozen=True)
class PredictValue:
    """Value B candidates; the answer is B tuples of ``members`` values in [0, 1]."""

    what: ClassVar[str] = "values"
    prompt: str
    latents: Latents  # with what ``mode`` is conditioned on
    seeds: tuple[int, ...]
    members: int
    steps: int
    mode: ValueMode


@dataclass(frozen=True)
class DecodeImages:
    """Decode an imagined future; the answer is :data:`Images`."""

    what: ClassVar[str] = "images"
    query: Query  # what was seen before it
    latents: Latents  # of several futures the average of their images is returned


SearchTask: TypeAlias = SampleActions | PredictFuture | PredictValue
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
