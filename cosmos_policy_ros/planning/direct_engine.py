"""A policy asked directly, as an engine."""

from __future__ import annotations

from cosmos_policy_ros.planning.tasks import Decide, Depict
from cosmos_policy_ros.rig.decision import EngineInfo, Policy


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
