"""The shipped tiny checkpoint and an observation it can answer, shared by the model's tests."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.rig.observation import Observation

TINY = Path(__file__).parents[2] / "config" / "models" / "tiny_random"
START_POSE = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.0998] * 2)

torch.set_num_threads(1)  # a second thread makes networks this small slower, on a busy machine 5x


@pytest.fixture(scope="session")
def tiny_path() -> Path:
    return TINY


@pytest.fixture(scope="session")
def tiny() -> CosmosPolicy:
    return CosmosPolicy.load(TINY)


@pytest.fixture(scope="session")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two layers, the fewest that show what all but the last one do."""
    folder = shutil.copytree(TINY, tmp_path_factory.mktemp("checkpoints") / "shallow")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(re.sub(r"layers: \d+", "layers: 2", config))
    return folder


@pytest.fixture(scope="session")
def observation() -> Observation:
    rng = np.random.default_rng(7)
    roles = ("left_wrist", "right_wrist", "primary")
    images = {role: rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for role in roles}
    return Observation(stamp_ns=1, images=images, state=START_POSE, ages={})


@pytest.fixture(scope="session")
def query(observation: Observation) -> Query:
    return Query("transfer_cube", "transfer the red cube", 195, 0, observation)
