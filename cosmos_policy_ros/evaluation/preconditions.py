"""What must be true before a search can help, measured on rollouts that nothing was learned from.

Proposals must differ, or there is nothing to choose from; values must tell good from bad, or the
choice is blind; and futures must be right where it matters, or values are of something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sampler import SampleSpec
from cosmos_policy_ros.rig.arms import ARM_DIM, ARM_JOINTS, ARMS
from cosmos_policy_ros.sim.kinematics import ArmKinematics
from cosmos_policy_ros.training.config import DataConfig
from cosmos_policy_ros.training.dataset_index import DatasetIndex, EpisodeEntry
from cosmos_policy_ros.training.start import dataset_index_for
from cosmos_policy_ros.training.value_evaluation import evaluate_values


def proposal_spread(
    policy: CosmosPolicy, sources: Sequence[EpisodeEntry], *, steps: int, proposals: int = 8
) -> NDArray[np.float64]:
    """Return how far apart proposals put the grippers, per episode's beginning and arm [m].

    The root mean square distance of the pinch points from their mean, a second before the chunk's
    end; (episodes, 2) left and right. Episodes whose beginning is damaged are left out.
    """
    arms = [ArmKinematics(arm) for arm in ARMS]
    found = []
    for source in sources:
        step = int(source.starts[0])
        try:
            seen = source.windows.observe(int(source.windows.steps.times_ns[step]))
        except (ObservationError, RolloutError):
            continue
        scene = policy.encode_observation(source.prompt, seen)
        draws = [SampleSpec(seed, steps) for seed in range(proposals)]
        chunks = policy.chunks(policy.sample_actions(scene, draws))
        found.append(_spread(arms, chunks[:, chunks.shape[1] // 2]))
    return np.array(found).reshape(-1, len(arms))


def _spread(arms: Sequence[ArmKinematics], poses: NDArray[np.float64]) -> list[float]:
    """Return by how much each arm's pinch point differs [m] between poses (N, 14)."""
    spread = []
    for index, arm in enumerate(arms):
        joints = poses[:, index * ARM_DIM : index * ARM_DIM + ARM_JOINTS]
        points = np.stack([arm.forward(each).position for each in joints])
        off = points - points.mean(axis=0)
        spread.append(float(np.sqrt((off**2).sum(axis=1).mean())))
    return spread


def measure_preconditions(
    policy: CosmosPolicy, world_model: CosmosPolicy, data: DataConfig, dataset_index: DatasetIndex
) -> dict[str, Any]:
    """Measure policy and world model on rollouts that neither learned from.

    Args:
        policy: proposes.
        world_model: trained for V(s').
        data: names the rollouts.
        dataset_index: of them.

    Returns:
        What goes into ``preconditions.json``: numbers, and per window the values behind them.
    """
    steps = policy.checkpoint.config.denoising_steps
    spread = proposal_spread(policy, dataset_index.sources, steps=steps)
    before = evaluate_values(policy, data, dataset_index, "value_sas", steps=steps)
    after = evaluate_values(world_model, data, dataset_index, "value_s", steps=steps)
    return {
        "episodes": len(dataset_index.sources),
        "successes": len(dataset_index.pool("success")),
        "windows": len(after.succeeded),
        "spread_mm": [round(1000 * float(x), 1) for x in np.median(spread, axis=0)],
        "policy": {"auc_true": before.auc_true, "world_l1": before.world_l1},
        "world_model": {
            "auc_true": after.auc_true,
            "auc_imagined": after.auc_imagined,
            "world_l1": after.world_l1,
        },
        "succeeded": after.succeeded,
        "value_true": after.true,
        "value_imagined": after.imagined,
    }


def scored(rollouts: Path, policy: CosmosPolicy) -> tuple[DataConfig, DatasetIndex]:
    """Return the scored rollouts in a folder, all of them to measure on.

    Raises:
        CosmosPolicyError: it holds none.
    """
    data = DataConfig(
        demonstrations=(),
        rollouts=(str(rollouts),),
        held_out=0.0,
        augmentation="none",
        workers=0,
    )
    return data, dataset_index_for(data, policy.checkpoint.config, policy.checkpoint.text)
