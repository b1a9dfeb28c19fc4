"""Engines by name: what the launch argument ``engine`` selects."""

from __future__ import annotations

from cosmos_policy_ros.planning.direct_engine import DirectEngine
from cosmos_policy_ros.planning.engine_spec import Admit, EngineSpec
from cosmos_policy_ros.planning.tasks import Engine


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
