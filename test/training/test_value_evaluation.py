"""How well futures and values of rollouts are told, and that what is damaged is left out."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.training.batch import Sample, WindowRef
from cosmos_policy_ros.training.config import DataConfig
from cosmos_policy_ros.training.dataset_index import DatasetIndex, index_episodes
from cosmos_policy_ros.training.samples import SampleMaker
from cosmos_policy_ros.training.value_evaluation import (
    auc,
    evaluate_values,
    read_batches,
    windows_of,
)


@pytest.fixture(scope="module")
def policy(trained: Path) -> CosmosPolicy:
    return CosmosPolicy.load(trained, denoising_steps=1)


@pytest.fixture(scope="module")
def data(episodes: Path) -> DataConfig:
    rollouts = (str(episodes / "rollouts"),)
    return DataConfig(
        demonstrations=(), rollouts=rollouts, held_out=0.0, augmentation="none", workers=0
    )


@pytest.fixture(scope="module")
def dataset_index(data: DataConfig, policy: CosmosPolicy) -> DatasetIndex:
    return index_episodes(data, policy.checkpoint.config, policy.checkpoint.text)


def test_what_imagines_what_came_is_not_off(
    policy: CosmosPolicy, data: DataConfig, dataset_index: DatasetIndex
) -> None:
    plain = evaluate_values(policy, data, dataset_index, "value_s", steps=1)
    assert plain.world_l1 > 0.1
    with patch.object(policy, "predict_future", side_effect=lambda prompt, latents, draws: latents):
        knowing = evaluate_values(policy, data, dataset_index, "value_s", steps=1)
    assert knowing.world_l1 == 0
    np.testing.assert_array_equal(knowing.imagined, knowing.true)
    np.testing.assert_array_equal(knowing.true, plain.true)
    # Three rollouts of 60 steps: one window a chunk apart from the next, one success.
    assert knowing.succeeded.tolist().count(True) == len(windows_of(dataset_index, policy)) // 3 > 0


def test_damaged_windows_are_left_out(
    policy: CosmosPolicy, data: DataConfig, dataset_index: DatasetIndex
) -> None:
    windows, make = windows_of(dataset_index, policy), SampleMaker.make

    def damaged(self: SampleMaker, pick: WindowRef) -> Sample:
        if pick == windows[0]:
            raise RolloutError("a hole")
        return make(self, pick)

    with patch.object(SampleMaker, "make", damaged):
        read = [
            pick
            for batch in read_batches(policy, data, dataset_index, windows, 1)
            for pick in batch.batch.windows
        ]
    assert read == windows[1:]


@pytest.mark.parametrize(
    ("values", "succeeded", "area"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 1.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5], [0, 1, 1], 0.5),
        ([0.1, 0.6, 0.4, 0.9], [0, 0, 1, 1], 0.75),
    ],
)
def test_the_area_under_the_curve(values: list[float], succeeded: list[int], area: float) -> None:
    assert auc(np.array(values), np.array(succeeded, dtype=bool)) == area


def test_all_the_same_end_has_no_area() -> None:
    assert auc(np.array([0.1, 0.9]), np.array([True, True])) is None
