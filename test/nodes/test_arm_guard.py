"""Controllers play out what they were sent; the arm guard ends it when the policy node is gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.realtime import RealTimeGraph
from helpers.waiting import PATIENCE

from cosmos_policy_ros.rig.guard import HOLD


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[RealTimeGraph]:
    with RealTimeGraph(tmp_path) as graph:
        yield graph


def held(graph: RealTimeGraph) -> set[str]:
    """Return which outputs the guard has sent a hold."""
    return {name for _, name, each in list(graph.sent) if each.header.frame_id.endswith(HOLD)}


def test_a_policy_node_that_is_stopped_and_wakes_again_moves_nothing(graph: RealTimeGraph) -> None:
    handle = graph.start()
    policy, outputs = graph.pid("policy_node"), {output.name for output in graph.rig.outputs}
    graph.sent.clear()
    os.kill(policy, signal.SIGSTOP)
    try:
        graph.wait(lambda: graph.keeper.reason, "the guard to hold")
        graph.wait(lambda: held(graph) == outputs, "a hold for every controller")
        graph.wait(lambda: not graph.moving(), "the arms to rest")
        sent = len(graph.sent)
        time.sleep(2.5)  # longer than what was left of the chunk: it would ask for the next
    finally:
        os.kill(policy, signal.SIGCONT)
    result = graph.client.finish_run(handle, PATIENCE)
    assert result.outcome == "fault"
    assert "the arm guard holds the arms" in result.message
    refused = graph.client.finish_run(graph.client.start_run(chunk_limit=1), PATIENCE)
    assert refused.outcome == "refused"
    assert len(graph.sent) == sent, f"{graph.sent[-1]} was sent"
    assert not graph.moving()
    assert graph.client.arm(False).success
    graph.wait(lambda: not graph.keeper.reason, "the latch to be released")
    graph.start()


def test_without_the_guard_a_run_ends_and_none_begins(graph: RealTimeGraph) -> None:
    handle = graph.start()
    os.kill(graph.pid("arm_guard_node"), signal.SIGKILL)
    result = graph.client.finish_run(handle, PATIENCE)
    assert result.outcome == "fault"
    assert "the arm guard was last heard of" in result.message
    graph.wait(lambda: not graph.moving(), "the arms to rest")
    assert "refused: keeper: the arm guard was last heard of" in graph.client.arm().message
