"""Engines by name: what the launch argument ``engine`` selects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cosmos_policy_ros.rig.decision import Policy
from cosmos_policy_ros.rig.spec import Gripper

EngineName = Literal["cosmos", "demonstrator"]
ENGINES: tuple[EngineName, ...] = ("cosmos", "demonstrator")


@dataclass(frozen=True)
class EngineSpec:
    """What a worker process needs to build its engine; plain data, so that it can be sent there.

    Attributes:
        engine: which one.
        checkpoint: folder of the cosmos engine's checkpoint; unused by the demonstrator.
        device: torch device of the cosmos engine.
        threads: torch threads. One by default on a CPU: a second thread is several times slower
            as soon as anything else uses the cores, and delays the node's own timers.
        gripper: the rig's gripper constants, for the demonstrator, whose kinematics are in metres.
    """

    engine: EngineName
    checkpoint: str = ""
    device: str = "cpu"
    threads: int = 1
    gripper: Gripper | None = None


# Builds an engine in the process that calls it; a module's function, so that it can be sent there.
EngineLoader = Callable[[EngineSpec], Policy]


def load_engine(spec: EngineSpec) -> Policy:
    """Build an engine in this process.

    The imports are here because each pulls in a large library (torch, MuJoCo) that the other
    engine and the node's own process do without.

    Raises:
        CosmosPolicyError: the checkpoint or the assets are missing or wrong.
    """
    if spec.engine == "demonstrator":
        from cosmos_policy_ros.sim.demonstrator import Demonstrator, GripperConstants

        g = spec.gripper
        assert g is not None
        return Demonstrator(
            grippers=GripperConstants(
                g.state_closed, g.state_open, g.command_closed, g.command_open
            )
        )
    from cosmos_policy_ros.model.policy import CosmosPolicy

    return CosmosPolicy.load(spec.checkpoint, threads=spec.threads, device=spec.device)
