"""The graph on rigs whose controllers are not one per arm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.graph import CHUNK, DECISION, Graph
from helpers.outputs import OUTPUTS, rig_file

from cosmos_policy_ros.dataset.gate_replay import check_episode
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES
from cosmos_policy_ros.rig.observation import read_arm

ARM_ENTRIES = [i for i in range(14) if i not in GRIPPER_INDICES]


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_controller_gets_its_part_and_the_bag_tells_the_whole(
    tmp_path: Path, kind: str
) -> None:
    file = rig_file(tmp_path, OUTPUTS[kind])
    with Graph(tmp_path, rig=str(file)) as graph:
        graph.settle()
        with graph.recorded() as recorded:
            graph.step(5)  # what the first decision is made of
            assert graph.client.arm().success
            result = graph.run_chunks(2)
            assert result.outcome == "chunk_limit", result.message
            assert graph.accepted() == [2] * len(graph.rig.outputs)
            decided = [np.array(d.positions).reshape(CHUNK, 14) for d in graph.wire.read(DECISION)]
            graph.step(5)  # for the servos to reach what they were told last
            states = [graph.wire.newest(f"/{a.joint_states}") for a in graph.rig.arms.values()]
    recorded.check_complete()
    reached = np.concatenate(
        [
            read_arm(arm, state.name, state.position)
            for arm, state in zip(graph.rig.arms.values(), states, strict=True)
        ]
    )
    np.testing.assert_allclose(reached[ARM_ENTRIES], decided[-1][-1][ARM_ENTRIES], atol=0.05)
    windows = EpisodeWindows(read_episode(recorded.path))
    np.testing.assert_allclose(windows.chunk(0, 50), decided[0], atol=1e-9)
    np.testing.assert_allclose(windows.chunk(50, 50), decided[1], atol=1e-9)
    checked = check_episode(recorded.path)
    assert (checked.judged, checked.changed, checked.skipped) == (2, [], 0)
