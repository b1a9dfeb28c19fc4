"""The checkpoint that ships does its task through the policy node, the gate and the wire."""

from __future__ import annotations

from pathlib import Path

from helpers.graph import Graph

TASK = "either_cube"
CAMERA_SIZE = (120, 160)  # px; half of what it was trained on, and more than it is given of that
# One of the scenes of the evaluation on the checkpoint's card, and its noise.
SCENE, NOISE = 100_041, 42_000


def test_it_hands_over_a_cube(tmp_path: Path) -> None:
    with Graph(tmp_path, size=CAMERA_SIZE, engine="cosmos", checkpoint="tiny", task=TASK) as graph:
        assert graph.client.reset_rig(TASK, SCENE).success
        graph.step(5)  # the cubes fall onto the table
        assert graph.client.arm().success
        result = graph.run_chunks(6, task=TASK, seed=NOISE)
        assert (result.outcome, result.refused) == ("chunk_limit", 0)
        state = graph.client.rig_state
        assert state is not None
        assert state.reached == len(state.stages)
