"""A poll rides on joint states, so that no timer costs; without any, it must come all the same."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from helpers.waiting import wait_for
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from cosmos_policy_ros.nodes import policy_topics
from cosmos_policy_ros.nodes.policy_topics import POLL_PERIOD, PollScheduler

ARMS = ("left", "right")


@pytest.fixture
def executor() -> Iterator[SingleThreadedExecutor]:
    executor = SingleThreadedExecutor()
    node = Node("paced")
    executor.add_node(node)
    yield executor
    executor.shutdown()
    node.destroy_node()


def test_without_joint_states_it_polls_by_itself(
    executor: SingleThreadedExecutor,
) -> None:
    (node,) = executor.get_nodes()
    polls: list[int] = []
    pace = PollScheduler(node, ARMS, lambda: polls.append(1))

    def polled_thrice() -> bool:
        executor.spin_once(timeout_sec=0.01)
        return len(polls) >= 3

    wait_for(polled_thrice, "three polls of the watchdog")
    for arm in ARMS:
        pace.on_joint_state(arm)
    polls.clear()
    wait_for(polled_thrice, "three more after a joint state")


def test_joint_states_poll_at_most_every_period_and_wind_up_the_watchdog(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(policy_topics.time, "monotonic", lambda: now)
    node, polls = Mock(), []
    pace = PollScheduler(node, ARMS, lambda: polls.append(round(now - 100.0, 6)))
    for tick in range(8):
        now = 100.0 + tick * POLL_PERIOD * 0.375
        for arm in ARMS:
            pace.on_joint_state(arm)
    assert polls == [0.0, POLL_PERIOD * 1.125, POLL_PERIOD * 2.25]
    assert node.create_timer.return_value.reset.call_count == len(polls)


def test_it_waits_for_the_other_arms_joint_state() -> None:
    """Polling between the two, a node behind its own queue braked for an arm that was alive."""
    polls: list[int] = []
    pace = PollScheduler(Mock(), ARMS, lambda: polls.append(1))
    for arm, polled in (("left", 0), ("left", 0), ("right", 1), ("right", 1)):
        pace.on_joint_state(arm)
        assert len(polls) == polled
