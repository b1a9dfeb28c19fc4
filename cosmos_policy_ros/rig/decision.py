"""The seam between the rig and a policy: one observation in, one decision out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.rig.observation import Observation

NOTHING = np.zeros(0)


@dataclass(frozen=True)
class ActionPrefix:
    """What the arms will do anyway while a query that is sent in motion is answered.

    Attributes:
        positions: (n, 14) the path under way where rows of the answer are due: the first one dt
            after the observation.
        weights: (n,) how firmly the answer's row is held there: 1 exactly, 0 not at all.
        seconds: how long after the observation the path under way ends.
    """

    positions: Array
    weights: Array
    seconds: float

    @property
    def binds(self) -> bool:
        """Whether any row is held."""
        return bool((self.weights > 0).any())

    def first(self, rows: int) -> ActionPrefix:
        """Return its first rows, as many as a chunk of that length has."""
        return replace(self, positions=self.positions[:rows], weights=self.weights[:rows])


@dataclass(frozen=True)
class Query:
    """What a policy decides on.

    Attributes:
        task: name of the task file, e.g. "ziploc".
        prompt: the exact text the checkpoint knows, e.g. "put candy in bag".
        seed: base noise seed; candidate i uses seed + i. Another one after a refusal.
        index: 0 for the first query of a run. A policy that keeps state starts afresh at 0.
        observation: newest one.
        deadline: wall seconds that a search may take; 0 for as long as it takes.
        committed: what the arms do meanwhile; None when they are at rest.
        held: (14,) where arms at rest are held, policy units; None in motion, or where no arms are.
    """

    task: str
    prompt: str
    seed: int
    index: int
    observation: Observation
    deadline: float = 0.0
    committed: ActionPrefix | None = None
    held: Array | None = None


@dataclass(frozen=True)
class Candidate:
    """One sampled chunk and its predicted values, in [0, 1].

    Attributes:
        seed: of its noise.
        values: of all members of the ensembles.
        value: what they come to.
        spread: their standard deviation.
        finished: whether all of them came in time.
        own_value: by the policy itself, which comes with each proposal of a search.
        variance: of the clean estimate of the action over the denoising steps, in units of the
            latents: how unsure the policy was.
        dropped: what left it out before it had all values: "gate", which would refuse it; "sieve",
            "round", "beam" or "adaptive" of the search's settings; "" where nothing did.
    """

    seed: int
    values: tuple[float, ...] = ()
    value: float = math.nan
    spread: float = math.nan
    finished: bool = True
    own_value: float = math.nan
    variance: float = math.nan
    dropped: str = ""


@dataclass(frozen=True)
class Decision:
    """A policy's answer: the chunk, and all that is needed to judge or replay the choice.

    Attributes:
        positions: (K, 14) float64 absolute joint targets, policy units, first row one ``dt``
            after the observation; on a benchmark (K, n) actions as it takes them.
        dt: seconds between rows.
        candidates: all that were considered; ``candidates[chosen]`` made ``positions``.
        reason: why that one.
        phases: wall seconds per named phase of the computation, in order.
        denoising_steps: 0 for an engine that does not denoise.
        evaluations: how often the networks have run, for all candidates together.
        executed_rows: rows that are executed before the policy looks again, from the first on; 0
            for all. A chunk that is decided in motion is executed whole.
        engine: "cosmos", "demonstrator" or "remote".
        checkpoint_digest: sha256 over the checkpoint's files; "" when there is none, or it is a
            server's.
        world_model_digest: the same of the world model's checkpoint; "" for no search.
        numerics: "released" or "paper"; "" for an engine that has none.
        search: its settings, one line of YAML; "" for no search.
        imagined: (n, 16, T, h, w) float32 latents with the chosen chunk's future, several where the
            average of their images is shown; None without one.
    """

    positions: Array
    dt: float
    candidates: tuple[Candidate, ...]
    chosen: int
    reason: str
    engine: str
    checkpoint_digest: str = ""
    denoising_steps: int = 0
    phases: Mapping[str, float] = field(default_factory=dict)
    world_model_digest: str = ""
    numerics: str = ""
    search: str = ""
    imagined: NDArray[np.float32] | None = None
    evaluations: int = 0
    executed_rows: int = 0


def message_fields(
    decision: Decision, query: Query, run_id: str, chunk_id: str, phases: Mapping[str, float]
) -> dict[str, Any]:
    """Return the fields of the message ``Decision`` but for its header, arrays as NumPy's.

    ``candidates`` are mappings of the fields of ``Candidate``; ``phases`` are the whole path's, the
    model's among them.
    """
    committed = query.committed
    return {
        "run_id": run_id,
        "chunk_id": chunk_id,
        "task": query.task,
        "prompt": query.prompt,
        "engine": decision.engine,
        "checkpoint_digest": decision.checkpoint_digest,
        "world_model_digest": decision.world_model_digest,
        "observation_digest": query.observation.digest(),
        "denoising_steps": decision.denoising_steps,
        "evaluations": decision.evaluations,
        "numerics": decision.numerics,
        "search": decision.search,
        "requested": len(decision.candidates),
        "finished": sum(c.finished for c in decision.candidates),
        "candidates": [
            {**vars(each), "values": np.array(each.values, np.float32)}
            for each in decision.candidates
        ],
        "chosen": decision.chosen,
        "reason": decision.reason,
        "phases": list(phases),
        "phase_seconds": np.array(list(phases.values()), np.float32),
        "dt": decision.dt,
        "steps": len(decision.positions),
        "executed_rows": decision.executed_rows,
        "committed": NOTHING if committed is None else _numbers(committed.positions),
        "committed_weights": NOTHING if committed is None else _numbers(committed.weights),
        "committed_seconds": 0.0 if committed is None else committed.seconds,
        "held": NOTHING if query.held is None else _numbers(query.held),
        "positions": _numbers(decision.positions),
    }


def _numbers(values: Array) -> Array:
    """Return them flat and in the message's own precision, whatever a policy answers in."""
    return np.asarray(values, np.float64).ravel()


@dataclass(frozen=True)
class EngineInfo:
    """What is known of an engine once it is loaded.

    Attributes:
        digest: sha256 over the checkpoint's files; "" when there is none.
        warning: what the operator must know before trusting it; "" for nothing.
    """

    digest: str = ""
    warning: str = ""


class Policy(Protocol):
    """An engine; implemented in ``model``, ``sim`` (demonstrator) and ``inference`` (remote)."""

    @property
    def info(self) -> EngineInfo:
        """Digest and warning."""

    def decide(self, query: Query) -> Decision:
        """Answer one query; may take seconds. Raises CosmosPolicyError when it cannot."""
