"""The released algorithm drives the arms through the whole graph, and admits what it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cosmos_policy_ros.msg import Decision
from helpers.graph import DECISION, Graph
from rclpy.serialization import deserialize_message

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model.files import digest


def test_random_weights_tremble_and_are_announced(tmp_path: Path) -> None:
    checkpoint = config_folder("models") / "tiny_random"
    # As released, two steps would be one.
    options = {"numerics": "paper", "denoising_steps": 2}
    with Graph(tmp_path, engine="cosmos", **options) as graph:
        state = graph.client.policy_state
        assert state is not None
        assert state.checkpoint_digest == digest(checkpoint)
        assert "RANDOM WEIGHTS" in state.message
        with graph.recorded() as episode:
            graph.step(2)
            assert graph.client.arm().success
            result = graph.run_chunks(2)
            graph.settle()
    assert (result.outcome, result.chunks, result.refused) == ("chunk_limit", 2, 0)
    decisions = [deserialize_message(cdr, Decision) for cdr in episode.wire[DECISION]]
    assert [d.denoising_steps for d in decisions] == [2, 2]
    assert {"preprocess", "encode", "denoise", "extract"} <= set(decisions[0].phases)
    for decision in decisions:
        assert 0.0 <= decision.candidates[0].value <= 1.0
        start = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0])
        chunk = np.reshape(decision.positions, (50, 14))
        assert np.abs(chunk[:, :6] - start).max() < 0.05
