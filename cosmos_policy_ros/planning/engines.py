"""Engines by name: what the launch argument ``engine`` selects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.rig.decision import Policy
from cosmos_policy_ros.rig.spec import Gripper

EngineName = Literal["cosmos", "demonstrator"]
ENGINES: tuple[EngineName, ...] = ("cosmos", "demonstrator")


@dataclass(frozen=True)
class EngineSpec:
    """What a worker process needs to build its engine; plain data, so that it can be sent there.

    Attributes:
        engine: which one.
        checkpoint: folder of the cosmos engine's checkpoint. This and what follows down to the
            steps is for the cosmos engine alone; see ``CosmosPolicy.load``.
        device: torch device; "auto" is a GPU where there is one.
        threads: torch threads. One by default on a CPU: a second thread is several times slower
            as soon as anything else uses the cores, and delays the node's own timers.
        compiled: whether to compile the transformer.
        numerics: "released" or "paper"; None leaves it to the checkpoint.
        denoising_steps: None leaves them to the checkpoint.
        gripper: the rig's gripper constants, for the demonstrator, whose kinematics are in metres.
    """

    engine: EngineName
    checkpoint: str = ""
    device: str = "auto"
    threads: int = 1
    compiled: bool = False
    numerics: Numerics | None = None
    denoising_steps: int | None = None
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

    return CosmosPolicy.load(
        spec.checkpoint,
        device=spec.device,
        threads=spec.threads,
        compiled=spec.compiled,
        denoising_steps=spec.denoising_steps,
        numerics=spec.numerics,
    )
