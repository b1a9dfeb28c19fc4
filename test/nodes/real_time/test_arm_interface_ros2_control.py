"""Controllers play out what they were sent; a brake ends it when the policy node is gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from helpers.realtime import RealTimeGraph
from helpers.waiting import PATIENCE

from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.rig.controller_brakes import HOLD


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTimeGraph]:
    with RealTimeGraph(tmp_path_factory.mktemp("graph")) as graph:
        yield graph


@pytest.fixture
def graph(running: RealTimeGraph) -> RealTimeGraph:
    """The running graph, disarmed and at rest; the last test ends its arm interface."""
    assert running.client.arm(False).success
    running.wait(lambda: not running.watchdog.armed, "the arm interface to let go")
    running.wait(lambda: not running.moving(), "the arms to rest")
    running.sent.clear()
    return running


def held(graph: RealTimeGraph) -> set[str]:
    """Return which outputs the arm interface has sent a hold."""
    return {name for _, name, each in list(graph.sent) if each.header.frame_id.endswith(HOLD)}


def stop_in_mid_chunk(graph: RealTimeGraph, policy: int) -> Any:
    """Stop the policy node's process while the arms move; return the run's handle.

    A busy machine may be too late: the arm interface has nothing to hold once the chunk is over.
    """
    outputs = {output.name for output in graph.rig.outputs}
    for _ in range(3):
        handle = graph.start()
        graph.sent.clear()
        os.kill(policy, signal.SIGSTOP)
        graph.wait(lambda: graph.watchdog.reason, "the arm interface to hold")
        with suppress(CosmosPolicyError):
            graph.wait(lambda: held(graph) == outputs, "a hold for every controller", 5.0)
            return handle
        assert not held(graph) and not graph.moving(), "some were held, or none although they move"
        os.kill(policy, signal.SIGCONT)
        graph.client.finish_run(handle, PATIENCE)
        graph.client.arm(False)
    raise AssertionError("nothing was held in three runs")


def test_a_policy_node_that_is_stopped_and_wakes_again_moves_nothing(graph: RealTimeGraph) -> None:
    policy = graph.pid("policy_node")
    try:
        handle = stop_in_mid_chunk(graph, policy)
        graph.wait(lambda: not graph.moving(), "the arms to rest")
        sent = len(graph.sent)
        time.sleep(2.5)  # longer than what was left of the chunk: it would ask for the next
    finally:
        os.kill(policy, signal.SIGCONT)
    result = graph.client.finish_run(handle, PATIENCE)
    assert result.outcome == "fault"
    assert "the arm interface holds the arms" in result.message
    refused = graph.client.finish_run(graph.client.start_run(chunk_limit=1), PATIENCE)
    assert refused.outcome == "refused"
    assert len(graph.sent) == sent, f"{graph.sent[-1]} was sent"
    assert not graph.moving()
    assert graph.client.arm(False).success
    graph.wait(lambda: not graph.watchdog.reason, "the latch to be released")
    graph.start()


def test_without_the_guard_a_run_ends_and_none_begins(graph: RealTimeGraph) -> None:
    handle = graph.start()
    os.kill(graph.pid("arm_interface_node"), signal.SIGKILL)
    result = graph.client.finish_run(handle, PATIENCE)
    assert result.outcome == "fault"
    assert "the arm interface was last heard of" in result.message
    graph.wait(lambda: not graph.moving(), "the arms to rest")
    assert "refused: watchdog: the arm interface was last heard of" in graph.client.arm().message
