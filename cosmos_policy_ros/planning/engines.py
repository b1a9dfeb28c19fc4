"""Engines by name: what the launch argument ``engine`` selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cosmos_policy_ros.rig.decision import Policy

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
        gripper_closed, gripper_open: motor angles [rad] of the rig's grippers, for the
            demonstrator, whose kinematics are in metres.
    """

    engine: EngineName
    checkpoint: str = ""
    device: str = "cpu"
    threads: int = 1
    gripper_closed: float = -0.6213
    gripper_open: float = 1.4910


def load_engine(spec: EngineSpec) -> Policy:
    """Build an engine in this process.

    The imports are here because each pulls in a large library (torch, MuJoCo) that the other
    engine and the node's own process do without.

    Raises:
        CosmosPolicyError: the checkpoint or the assets are missing or wrong.
    """
    if spec.engine == "demonstrator":
        from cosmos_policy_ros.sim.demonstrator import Demonstrator

        return Demonstrator(gripper_closed=spec.gripper_closed, gripper_open=spec.gripper_open)
    from cosmos_policy_ros.model.policy import CosmosPolicy

    return CosmosPolicy.load(spec.checkpoint, threads=spec.threads, device=spec.device)
