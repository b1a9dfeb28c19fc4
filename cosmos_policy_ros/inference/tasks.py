"""What is asked of an inference process and what it answers: plain data, so that it can be sent.

Latents travel as float32 arrays (B, 16, T, h, w): whoever deals the work out needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.model.layout import ValueMode
from cosmos_policy_ros.rig.decision import EngineInfo, Query

Latents = NDArray[np.float32]
Images = Mapping[str, NDArray[np.uint8]]  # (S, S, 3) RGB per camera role


class Task(Protocol):
    """Anything that an engine answers; ``what`` names it in messages."""

    @property
    def what(self) -> str:
        """With its article, e.g. "a query"."""
        ...


@dataclass(frozen=True)
class Decide:
    """Answer a query alone; the answer is a ``Decision``."""

    what: ClassVar[str] = "a query"
    query: Query


@dataclass(frozen=True)
class SampleActions:
    """Propose one chunk per seed; the answer is :class:`SampledActions`.

    Attributes:
        query: what is seen.
        seeds: one per candidate.
        after: the candidates' imagined futures, to go on from these instead; None at first.
    """

    what: ClassVar[str] = "proposals"
    query: Query
    seeds: tuple[int, ...]
    after: Latents | None = None


@dataclass(frozen=True)
class SampledActions:
    """Chunks.

    Attributes:
        latents: of B candidates.
        chunks: (B, K, 14) float64, policy units.
    """

    latents: Latents
    chunks: NDArray[np.float64]


@dataclass(frozen=True)
class PredictFuture:
    """Imagine what follows; the answer is latents (B, F, 16, T, h, w): the futures of each.

    Attributes:
        prompt: the task.
        latents: of B candidates, with their actions.
        seeds: the candidates'.
        futures: F, how many of each.
        steps: denoising steps.
    """

    what: ClassVar[str] = "futures"
    prompt: str
    latents: Latents
    seeds: tuple[int, ...]
    futures: int
    steps: int


@dataclass(frozen=True)
class PredictValue:
    """Appraise; the answer is the values of each, B tuples of V numbers in [0, 1].

    Attributes:
        prompt: the task.
        latents: of B candidates, with what ``mode`` knows.
        seeds: the candidates'.
        values: V, how many of each.
        steps: denoising steps.
        mode: what a value is conditioned on.
    """

    what: ClassVar[str] = "values"
    prompt: str
    latents: Latents
    seeds: tuple[int, ...]
    values: int
    steps: int
    mode: ValueMode


@dataclass(frozen=True)
class DecodeImages:
    """Decode an imagined future; the answer is :data:`Images`.

    Attributes:
        query: what was seen before it.
        latents: (n, ...) with the future; of several, the average of their images.
    """

    what: ClassVar[str] = "images"
    query: Query
    latents: Latents


@dataclass(frozen=True)
class SearchInfo(EngineInfo):
    """What a searching engine says of itself.

    Attributes:
        planner_digest: sha256 over the planning checkpoint's files.
        dt: seconds between the rows of a chunk.
        numerics: of both checkpoints.
        denoising_steps: asked for, of one proposal.
        evaluations: of the network for one proposal.
        note: what every decision's reason begins with; "" for nothing.
        pace: wall seconds per denoising step of one batch's task, by stage, as rehearsed.
    """

    planner_digest: str = ""
    dt: float = 0.0
    numerics: Numerics = "released"
    denoising_steps: int = 0
    evaluations: int = 0
    note: str = ""
    pace: Mapping[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """What runs in an inference process."""

    @property
    def info(self) -> EngineInfo:
        """What it says of itself."""
        ...

    def answer(self, task: object) -> object:
        """Do one task. Raises CosmosPolicyError when it cannot."""
        ...
