"""A query that the smallest checkpoint understands."""

from __future__ import annotations

import numpy as np

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model.files import STATISTICS
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.statistics import load_statistics
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.rig.observation import Observation

PROMPT = "transfer the red cube"
TINY = config_folder("models") / "tiny_random"


def query_of(policy: CosmosPolicy | None = None, *, seed: int = 195, deadline: float = 0) -> Query:
    """Return a query about noise, in the middle of what the checkpoint knows of joints."""
    random = np.random.default_rng(0)
    images = {
        role: random.integers(0, 256, (64, 64, 3), np.uint8)
        for role in ("left_wrist", "right_wrist", "primary")
    }
    if policy is not None:
        proprio = policy.checkpoint.statistics.proprio
    else:
        proprio = load_statistics(TINY / STATISTICS, 14, 14).proprio
    observation = Observation(1, images, (proprio.low + proprio.high) / 2, {})
    return Query("transfer_cube", PROMPT, seed, 0, observation, deadline)
