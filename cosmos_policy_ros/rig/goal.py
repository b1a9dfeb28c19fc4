"""What a run is to do, by which limits, where it stands and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(str, Enum):
    """Where a run stands."""

    OBSERVING = "observing"
    QUERYING = "querying"
    EXECUTING = "executing"
    PAUSED = "paused"
    DONE = "done"


@dataclass(frozen=True)
class Goal:
    """What a run is to do.

    Attributes:
        run_id: hex UUID of the action goal.
        task: name of the task file.
        prompt: text for the model.
        time_limit: seconds of executed motion; as in the paper, thinking does not count.
        chunk_limit: chunks to execute at most; 0 for no limit.
        seed: base noise seed.
        deadline: wall seconds for one decision; 0 for as long as it takes.
    """

    run_id: str
    task: str
    prompt: str
    time_limit: float
    chunk_limit: int
    seed: int
    deadline: float = 0.0


@dataclass(frozen=True)
class RunLimits:
    """Patience and braking.

    Attributes:
        observation_timeout: wall seconds to wait for a usable observation before giving up.
        brake_seconds: time in which a chunk under way is brought to rest when somebody asks.
    """

    observation_timeout: float
    brake_seconds: float


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        outcome: time_limit, chunk_limit, stopped, cancelled or fault.
        message: one sentence for the operator.
        latched: whether nothing may move before the arms have been disarmed and armed again.
    """

    outcome: str
    message: str
    latched: bool = False

    @property
    def success(self) -> bool:
        """Whether it ran to one of its limits."""
        return self.outcome in ("time_limit", "chunk_limit")
