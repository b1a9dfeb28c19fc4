"""Chunks that follow each other without a pause, on the running graph in real time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cosmos_policy_ros.msg import Decision, GateResult
from diagnostic_msgs.msg import DiagnosticArray
from helpers.waiting import PATIENCE, wait_for
from trajectory_msgs.msg import JointTrajectory

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.dataset.gate_replay import check_episode
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.topics import POLICY_NODE
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.convert import trajectory_points
from cosmos_policy_ros.nodes.graph import NodeProcesses, node_processes
from cosmos_policy_ros.nodes.shell import stamp_to_ns
from cosmos_policy_ros.rig.spec import load_rig

RIG = load_rig("sim", config_folder("rigs"))
SECONDS = 8.0  # of motion


class Run:
    """One run in real time and what was said meanwhile."""

    def __init__(self, folder: Path) -> None:
        small = {"width": 64, "height": 48, "images": "raw"}  # JPEG leaves no red of so few pixels
        nodes = node_processes(execution="asynchronous", root=str(folder), **small)
        processes = NodeProcesses(nodes, folder / "log")
        client = GraphClient("operator", processes.check)
        self.results: list[Any] = []
        self.decisions: list[Any] = []
        self.trajectories: dict[str, list[Any]] = {output.name: [] for output in RIG.outputs}
        self.pace: dict[str, str] = {}
        node = client.node
        node.create_subscription(GateResult, f"{POLICY_NODE}/gate_result", self.results.append, 100)
        node.create_subscription(Decision, f"{POLICY_NODE}/decision", self.decisions.append, 100)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._keep_pace, 100)
        for output in RIG.outputs:
            kept = self.trajectories[output.name]
            node.create_subscription(JointTrajectory, output.topic, kept.append, 100)
        try:
            client.policy_ready(PATIENCE)
            client.arm_when_ready(PATIENCE)
            wait_for(self._recording(client), "the recorder to find the rig")
            handle = client.start_run(time_limit=SECONDS)
            self.result = client.finish_run(handle, PATIENCE)
            self.path = Path(client.stop_episode().path)
            client.wait_until(lambda: "total" in self.pace, PATIENCE, "the latencies")
        finally:
            client.close()
            processes.close()

    def _recording(self, client: GraphClient) -> Callable[[], bool]:
        return lambda: bool(client.start_episode(operator_name="ann").success)

    def _keep_pace(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f"{POLICY_NODE}: latency":
                self.pace = {pair.key: pair.value for pair in status.values}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    yield Run(tmp_path_factory.mktemp("asynchronous"))


def test_the_arms_never_wait_after_the_first_chunk(run: Run) -> None:
    result = run.result
    assert (result.outcome, result.refused) == ("time_limit", 0), result.message
    first = run.results[0]
    print(f"\n{result.chunks} chunks, idle {result.idle_seconds:.3f} s of {result.seconds:.1f} s")
    print(run.pace)
    # Before the first chunk they wait for its answer; after a late one for the next.
    late = [each.rule == "late" for each in run.results]
    after = itertools.compress(run.results[1:], late)
    waited = [first, *after]
    missed = sum(each.value for each in itertools.compress(run.results, late))
    assert result.idle_seconds <= missed + sum(each.latency + 0.3 for each in waited)
    assert result.chunks > SECONDS / 2.0


def test_every_boundary_is_told(run: Run) -> None:
    sent = [each for each in run.results if each.accepted]
    assert len(sent) == run.result.chunks
    in_motion = [each for each in sent if each.dropped]
    assert len(in_motion) >= 3
    for each in in_motion:
        assert len(each.jump_decided) == len(each.jump_sent) == 3
        assert 0 < each.latency < 2.0
        assert stamp_to_ns(each.asked) < stamp_to_ns(each.header.stamp)
        assert each.jump_sent[0] <= each.jump_decided[0] + 1e-9
    asked = [decision for decision in run.decisions if decision.committed_weights]
    assert len(asked) >= len(in_motion)
    assert len(asked[0].committed) == 14 * len(asked[0].committed_weights)
    assert {"total", "observe", "publish"} <= set(run.pace)


def test_what_was_sent_is_one_path(run: Run) -> None:
    """Times grow strictly, and where two messages speak of the same moment they agree at first."""
    begun = {each.chunk_id: stamp_to_ns(each.header.stamp) for each in run.results}
    for name, messages in run.trajectories.items():
        before: dict[int, np.ndarray] = {}
        for message in messages:
            points = trajectory_points(message)
            times = np.array([point.time_from_start_ns for point in points])
            assert times[0] > 0 and (np.diff(times) > 0).all()
            due = times + begun[message.header.frame_id]
            rows = dict(zip(due.tolist(), (np.array(p.positions) for p in points), strict=True))
            shared = sorted(set(rows) & set(before))
            if len(shared) > 2:
                for at in shared[:2]:
                    np.testing.assert_allclose(rows[at], before[at], atol=1e-9, err_msg=name)
            steps = np.abs(np.diff(np.stack(list(rows.values())), axis=0)).max()
            assert steps < 13.0 / 25.0 * 2, "the gripper's is the widest"
            before = rows


def test_the_bag_holds_one_path_and_the_gate_says_the_same_of_it(run: Run) -> None:
    windows = EpisodeWindows(read_episode(run.path))
    gaps = np.diff(windows.steps.times_ns)
    late = sum(each.rule == "late" for each in run.results)
    assert np.count_nonzero(np.abs(gaps - 40_000_000) > 1_000_000) <= late
    assert len(set(windows.steps.stretch)) == 1
    checked = check_episode(run.path)
    assert checked.judged + late == len(run.results)
    assert not checked.changed and not checked.skipped
