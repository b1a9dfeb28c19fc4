"""The LIBERO checkpoint that ships is whole, and asked for another task it moves otherwise."""

from __future__ import annotations

import json

import numpy as np

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.draws import SampleSpec
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.rig.observation import Observation

FOLDER = config_folder("models") / "libero_small"
MOST_BYTES = 10e6


def test_it_is_small_whole_and_tells_where_it_comes_from() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MOST_BYTES
    assert "## Closed loop" in (FOLDER / "README.md").read_text()
    provenance = json.loads((FOLDER / files.PROVENANCE).read_text())
    assert provenance["digest"] == files.digest(FOLDER)
    assert provenance["held_out"]["action_l1"] < provenance["held_out"]["pose_l1"] * 0.6


def test_the_prompt_decides_where_it_goes() -> None:
    policy = CosmosPolicy.load(FOLDER, device="cpu", threads=1)
    assert not policy.checkpoint.random_weights
    grey = np.full((256, 256, 3), 128, np.uint8)
    ranges = policy.checkpoint.statistics.proprio
    seen = Observation(0, {"wrist": grey, "primary": grey}, (ranges.low + ranges.high) / 2, {})
    chunks = []
    for prompt in policy.checkpoint.text.embeddings:
        scene = policy.encode_observation(prompt, seen)
        (chunk,) = policy.chunks(policy.sample_actions(scene, [SampleSpec(0, 5)]))
        assert chunk.shape == (16, 7)
        chunks.append(chunk[:, :3])
    assert len(chunks) == 4
    apart = [np.abs(a - b).mean() for i, a in enumerate(chunks) for b in chunks[:i]]
    assert min(apart) > 0.02  # of actions from -1 to 1
