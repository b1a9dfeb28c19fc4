"""Which engine, with what: plain data, so that it can be sent to the process that builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.planning.memory import Footprint
from cosmos_policy_ros.planning.search import SearchConfig
from cosmos_policy_ros.planning.tasks import Engine
from cosmos_policy_ros.rig.arms import Gripper

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
        planner: folder of the checkpoint that imagines and appraises; "" for the policy's own.
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
    planner: str = ""
    gripper: Gripper | None = None


# Builds an engine in the process that calls it; a module's function, so that it can be sent there.
EngineLoader = Callable[[EngineSpec, Admit], Engine]
