"""A tiny network learns from what the simulated rig's demonstrator did, and acts better for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.demonstrations import TASK, demonstrate
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.config import from_mapping
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.model import files
from cosmos_policy_ros.sim.render import Renderer
from cosmos_policy_ros.training.config import TrainingConfig
from cosmos_policy_ros.training.parallel import joined
from cosmos_policy_ros.training.reports import read_steps
from cosmos_policy_ros.training.trainer import Trainer

from .conftest import TINY, same_day, settings

TRAINED = config_folder("models") / "tiny"
EPISODES, CHUNKS = 5, 2


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory, types: Typestore) -> Path:
    """Five that differ little, with the cube in one place: what a minute of training grasps."""
    root = tmp_path_factory.mktemp("demonstrated")
    store = EpisodeStore(root / "demonstrations", types)
    with same_day(), Renderer(TASK, 64, 64) as renderer:
        for seed in range(EPISODES):
            demonstrate(
                store, types, renderer, seed, place=3, chunks=CHUNKS, jitter=0.1, scored=False
            )
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped autoencoder, and no network yet: half as deep and two thirds as wide."""
    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    shutil.copytree(TRAINED, folder)
    (folder / files.TRANSFORMER).unlink()
    shutil.copyfile(TINY / files.TEXT, folder / files.TEXT)
    config = yaml.safe_load((folder / files.CONFIG).read_text())
    config["transformer"] |= {"layers": 2, "heads": 4}
    (folder / files.CONFIG).write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.timeout(600)
def test_losses_fall_and_chunks_beat_repeating_the_pose(
    demonstrations: Path, small: Path, tmp_path: Path
) -> None:
    content = settings(
        demonstrations,
        start={"checkpoint": str(small)},
        data={"rollouts": [], "held_out": 0.2, "cache_gb": 0.2, "latent_cache_gb": 0.2},
        # The policy alone, on its own target: what a minute is enough for.
        mixture={"policy": 1.0, "world_model": 0.0, "value": 0.0},
        objective={"auxiliary": False},
        run={
            "steps": 160,
            "batch": 8,
            "micro_batch": 8,
            "save_every": 160,
            "validation_windows": 12,
        },
        optimiser={"learning_rate": 2e-3, "warmup_steps": 20, "decay_steps": 140},
    )
    config = from_mapping(TrainingConfig, content, "test")
    with joined("cpu") as world:
        judged = Trainer(config, tmp_path, world).run()
    assert judged is not None
    losses = [line["loss"] for line in read_steps(tmp_path / "training" / "steps.jsonl")]
    first, last = np.mean(losses[:10]), np.mean(losses[-10:])
    print(
        f"\nloss {first:.3f} -> {last:.3f}; open-loop action L1 on {judged.windows} held-out "
        f"windows {judged.action_l1:.3f}, repeating the pose {judged.pose_l1:.3f}"
    )
    assert last < first / 5
    # Here, with three seeds, 1.8 to 2.2 times better, and the loss falls to a tenth or less.
    assert judged.action_l1 < judged.pose_l1 / 1.5
