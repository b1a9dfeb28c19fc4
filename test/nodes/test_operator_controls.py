"""What an operator calls between arming and the end: pause, and the way to the start pose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers.graph import CHUNK, Graph
from std_srvs.srv import Trigger

BRAKE = 10  # periods
START = [0.0, -0.96, 1.16, 0.0, -0.3, 0.0]  # rad, in the rig's file


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    with Graph(tmp_path_factory.mktemp("controls")) as graph:
        yield graph


@pytest.fixture
def graph(shared: Graph) -> Graph:
    shared.reset()
    return shared


def go_to_start(graph: Graph) -> Any:
    return graph.client.call(Trigger, "policy_node/go_to_start")


def joints(graph: Graph, side: str) -> np.ndarray:
    topic = f"/{graph.rig.arms[side].joint_states}"
    return np.array(graph.wire.newest(topic).position[:6])


def test_a_pause_holds_on_the_path_and_the_run_goes_on(graph: Graph) -> None:
    assert not graph.client.pause().success, "there is no run"
    graph.settle()
    assert graph.client.arm().success
    handle = graph.client.start_run(chunk_limit=2)
    graph.until_executing(1)
    graph.step(20)
    assert graph.client.pause().success
    brakes = graph.until_sent("/0/brake")
    graph.until_phase("paused")
    graph.step(BRAKE + 15)
    held = {side: joints(graph, side) for side in ("left", "right")}
    graph.step(25)
    for side, brake in zip(("left", "right"), brakes, strict=True):
        np.testing.assert_allclose(joints(graph, side), held[side], atol=2e-3)
        np.testing.assert_allclose(held[side], brake.points[-1].positions[:6], atol=0.05)
    assert len(graph.sent()[0]) == 2, "nothing was sent while it was paused"
    assert graph.client.pause(False).success
    graph.step(2)
    graph.until_executing(2)
    graph.step(CHUNK)
    result = graph.client.finish_run(handle, 60.0)
    assert result.outcome == "chunk_limit"
    assert result.chunks == 2


def test_the_way_to_the_start_pose(graph: Graph) -> None:
    graph.settle()
    assert "disarmed" in go_to_start(graph).message
    assert graph.client.arm().success
    graph.run_chunks(1)
    away = max(np.abs(joints(graph, side) - START).max() for side in ("left", "right"))
    assert away > 0.1, "the chunk went nowhere"
    going = go_to_start(graph)
    assert going.success, going.message
    sent = graph.until_sent("go_to_start")
    graph.until_phase("moving")
    busy = graph.client.start_run(chunk_limit=1)
    refusal = graph.client.finish_run(busy, 60.0)
    assert (refusal.outcome, "on their way to the start pose" in refusal.message) == (
        "refused",
        True,
    )
    rows = np.array([point.positions for point in sent[0].points])
    assert np.abs(np.diff(rows[:, :6], axis=0)).max() <= 0.5 * 0.04 * 1.001, "rad/s"
    graph.step(len(rows) + 25)
    graph.until_phase("ready")
    for side in ("left", "right"):
        np.testing.assert_allclose(joints(graph, side), START, atol=0.03)
    graph.run_chunks(1)


def test_a_stop_on_the_way_to_the_start_pose_brakes(graph: Graph) -> None:
    graph.settle()
    assert graph.client.arm().success
    graph.run_chunks(1)
    assert go_to_start(graph).success
    graph.until_sent("go_to_start")
    graph.step(8)
    assert graph.client.stop().message == "stopped and disarmed"
    (left, _) = graph.until_sent("go_to_start/brake")
    assert len(left.points) == BRAKE
    assert "disarmed" in go_to_start(graph).message


def test_a_pause_on_the_way_to_the_start_pose_brakes(graph: Graph) -> None:
    """It was refused, and the arms went on to the start pose."""
    graph.settle()
    assert graph.client.arm().success
    graph.run_chunks(1)
    assert go_to_start(graph).success
    graph.until_sent("go_to_start")
    graph.step(8)
    paused = graph.client.pause()
    assert paused.success, paused.message
    graph.until_sent("go_to_start/brake")
    graph.until_phase("ready")
    graph.step(20)
    assert go_to_start(graph).success, "from where it was braked"


def test_silent_arms_on_the_way_to_the_start_pose_brake(graph: Graph) -> None:
    graph.settle()
    assert graph.client.arm().success
    graph.run_chunks(1)
    assert go_to_start(graph).success
    graph.until_sent("go_to_start")
    graph.set_faults("joints_silent:left")
    graph.client.step(20)
    (left, _) = graph.until_sent("go_to_start/brake")
    assert len(left.points) == 2, "blind, so no further than two control periods"
    graph.set_faults()
    graph.step(20)
    graph.until_phase("ready")
