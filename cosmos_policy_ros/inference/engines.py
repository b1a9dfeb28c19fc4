"""Engines by name: what the launch argument ``engine`` selects. Loads no large library itself."""

from __future__ import annotations

from cosmos_policy_ros.inference.spec import Admit, Decide, Engine, EngineSpec, Task
from cosmos_policy_ros.rig.decision import EngineInfo, Policy


class DirectEngine:
    """A policy that is asked for its one answer."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def info(self) -> EngineInfo:
        """The policy's own."""
        return self._policy.info

    def answer(self, task: Task) -> object:
        """Answer a query. Raises CosmosPolicyError."""
        if isinstance(task, Decide):
            return self._policy.decide(task.query)
        raise TypeError(f"a policy has no task {type(task).__name__}")


def load_engine(spec: EngineSpec, admit: Admit = lambda footprint: None) -> Engine:
    """Build an engine in this process.

    Args:
        spec: which one.
        admit: is asked for the memory before a model is loaded.

    Raises:
        CosmosPolicyError: the checkpoint or the assets are missing or wrong, or do not fit.
    """
    # Imported here: the node does without torch and MuJoCo, and each engine without the other's.
    if spec.engine == "cosmos":
        from cosmos_policy_ros.inference.cosmos_engine import load_cosmos

        return load_cosmos(spec, admit)
    if spec.engine == "remote":
        from cosmos_policy_ros.inference.remote import load_remote_policy

        assert spec.remote is not None
        return DirectEngine(load_remote_policy(spec.remote))
    from cosmos_policy_ros.sim.demonstrator import Demonstrator

    return DirectEngine(Demonstrator(gripper=spec.gripper))
