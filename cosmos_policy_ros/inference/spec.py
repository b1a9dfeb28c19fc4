"""Which engine, with what: plain data, so that it can be sent to the process that builds it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import yaml

from cosmos_policy_ros.core.config import parse_config
from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.inference.tasks import Engine
from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.model.layout import ValueMode
from cosmos_policy_ros.rig.arms import Gripper

Combination = Literal["last", "average"]


Shown = Literal["last", "average"]
Stage = Literal["sample_actions", "predict_future", "predict_value"]


STAGES: tuple[Stage, ...] = ("sample_actions", "predict_future", "predict_value")


@dataclass(frozen=True)
class SearchConfig:
    """How many candidates there are and how they are appraised.

    As in the released planning commands, but for ``shown`` and for ``candidate_batch``, which they
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
    combination: Combination = "last"
    shown: Shown = "last"
    candidate_batch: int = 1

    def __post_init__(self) -> None:
        counts = (
            "candidates",
            "futures",
            "future_steps",
            "values",
            "value_steps",
            "depth",
            "candidate_batch",
        )
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
            "sample_actions": denoising_steps,
            "predict_future": self.future_steps,
            "predict_value": self.value_steps,
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


Aggregation = Literal["majority_mean", "average", "lcb", "success_vote"]


# Whether the engines fit, before anything is loaded.


GB = 1e9


@dataclass(frozen=True)
class Footprint:
    """What one engine needs of its device.

    Attributes:
        device: torch's name, with the machine's where there are several.
        needs: bytes by what they are for.
        free: bytes that the device has left now.
    """

    device: str
    needs: dict[str, int]
    free: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.needs.values())


class MemoryBudget:
    """Grants memory to engines that load at the same time, and see it free until they have."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first_seen: dict[str, int] = {}
        self._granted: dict[object, Footprint] = {}

    def admit(self, who: object, footprint: Footprint) -> None:
        """Grant it.

        Raises:
            CheckpointError: there is no room; with the sums.
        """
        with self._lock:
            device = footprint.device
            others = [f for f in self._granted.values() if f.device == device]
            if not others:
                self._first_seen[device] = footprint.free
            free, taken = self._first_seen[device], sum(f.total for f in others)
            if taken + footprint.total > free:
                raise CheckpointError(_refusal(footprint, len(others), taken, free))
            self._granted[who] = footprint

    def release(self, who: object) -> None:
        """Take back what an engine had, if it had any."""
        with self._lock:
            self._granted.pop(who, None)


def _refusal(footprint: Footprint, others: int, taken: int, free: int) -> str:
    parts = ", ".join(f"{what} {size / GB:.1f}" for what, size in footprint.needs.items())
    before = f" beside {taken / GB:.1f} GB for {others} more" if others else ""
    return (
        f"{footprint.device}: an inference process needs {footprint.total / GB:.1f} GB ({parts})"
        f"{before}, but {free / GB:.1f} GB are free; name fewer or other devices, use one "
        "checkpoint for both roles, or end what else uses the device"
    )


EngineName = Literal["cosmos", "demonstrator"]
ENGINES: tuple[EngineName, ...] = ("cosmos", "demonstrator")
Admit = Callable[[Footprint], None]  # returns once the memory is granted


@dataclass(frozen=True)
class EngineSpec:
    """What a worker process needs to build its engine; plain data, so that it can be sent there.

    Attributes:
        engine: which one.
        checkpoint: folder of the cosmos engine's checkpoint. This and what follows down to the
            search is for the cosmos engine alone; see ``CosmosPolicy.load``.
        device: torch device; "auto" is a GPU where there is one.
        threads: torch threads. One by default on a CPU: a second thread is several times slower
            as soon as anything else uses the cores, and delays the node's own timers.
        compiled: whether to compile the transformer.
        numerics: "released" or "paper"; None leaves it to the checkpoint.
        denoising_steps: None leaves them to the checkpoint.
        search: best-of-N instead of the policy's one proposal; None for direct.
        world_model: folder of the checkpoint that imagines and appraises; "" for the policy's own.
        gripper: the rig's gripper constants, for the demonstrator, whose kinematics are in metres.
    """

    engine: EngineName
    checkpoint: str = ""
    device: str = "auto"
    threads: int = 1
    compiled: bool = False
    numerics: Numerics | None = None
    denoising_steps: int | None = None
    search: SearchConfig | None = None
    world_model: str = ""
    gripper: Gripper | None = None


# Builds an engine in the process that calls it; a module's function, so that it can be sent there.
EngineLoader = Callable[[EngineSpec, Admit], Engine]
