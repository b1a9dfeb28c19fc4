"""A dry run is a run whose trajectories nobody follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers.graph import CHUNK, POLICY_STATE, Graph
from trajectory_msgs.msg import JointTrajectory


def test_a_dry_run_goes_through_everything_but_the_arms(tmp_path: Path) -> None:
    with Graph(tmp_path, dry_run=True) as graph:
        seen: list[JointTrajectory] = []
        node = graph.client.node
        node.create_subscription(JointTrajectory, "policy_node/preview/left", seen.append, 10)
        graph.wait(lambda: node.count_publishers("policy_node/preview/left"), "the preview")
        graph.settle()
        assert graph.client.arm().success
        handle = graph.client.start_run(chunk_limit=2)
        for chunk in (1, 2):
            graph.wait(lambda n=chunk: len(seen) == n, f"preview {chunk}")  # type: ignore[misc]
            graph.step(CHUNK)
        result = graph.client.finish_run(handle, 60.0)
        assert result.outcome == "chunk_limit", result.message
        assert graph.accepted() == [0, 0]
        assert graph.sent() == [[], []]
        standing = graph.wire.newest(f"/{graph.rig.arms.left.joint_states}").position[:6]
        np.testing.assert_allclose(standing, graph.rig.arms.left.start, atol=0.03)
        assert any(state.phase == "executing" for state in graph.wire.read(POLICY_STATE))
