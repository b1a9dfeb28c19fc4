"""Engines by name: what the launch argument ``engine`` selects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.planning.memory import Footprint
from cosmos_policy_ros.planning.search import SearchConfig
from cosmos_policy_ros.planning.tasks import Decide, Depict, Engine
from cosmos_policy_ros.rig.decision import EngineInfo, Policy
from cosmos_policy_ros.rig.spec import Gripper

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


class DirectEngine:
    """A policy asked for its one answer."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def info(self) -> EngineInfo:
        """The policy's own."""
        return self._policy.info

    def answer(self, task: object) -> object:
        """Decide, or depict what a decision imagined. Raises CosmosPolicyError: it cannot."""
        if isinstance(task, Decide):
            return self._policy.decide(task.query)
        if isinstance(task, Depict):
            from cosmos_policy_ros.model.policy import CosmosPolicy
            from cosmos_policy_ros.planning.search_engine import depict

            assert isinstance(self._policy, CosmosPolicy), "nobody else imagines"
            return depict(self._policy, task)
        raise TypeError(f"a policy has no task {type(task).__name__}")


def load_engine(spec: EngineSpec, admit: Admit = lambda footprint: None) -> Engine:
    """Build an engine in this process.

    The imports are here because each pulls in a large library (torch, MuJoCo) that the other
    engine and the node's own process do without.

    Args:
        spec: which one.
        admit: asked for the memory before a model is loaded.

    Raises:
        CosmosPolicyError: the checkpoint or the assets are missing or wrong, or do not fit.
    """
    if spec.engine == "demonstrator":
        from cosmos_policy_ros.sim.demonstrator import Demonstrator, GripperConstants

        g = spec.gripper
        assert g is not None
        return DirectEngine(
            Demonstrator(
                grippers=GripperConstants(
                    g.state_closed, g.state_open, g.command_closed, g.command_open
                )
            )
        )
    from cosmos_policy_ros.planning.cosmos_engine import load_cosmos

    return load_cosmos(spec, admit)
