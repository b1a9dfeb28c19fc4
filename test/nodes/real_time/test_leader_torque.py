"""Leaders that have torque go to their followers by themselves, and wait there for hands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from helpers.realtime import RealTimeGraph, wrongly_sent
from helpers.teleoperation import PROMPT, TASK, at_rest, clutch, phase, teleoperate
from helpers.waiting import PATIENCE
from interbotix_xs_msgs.msg import JointGroupCommand
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState

DROPPED = 0.6  # rad


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTimeGraph]:
    folder = tmp_path_factory.mktemp("torque")
    with RealTimeGraph(folder, streamed=True, task=TASK) as graph:
        yield graph


def drop(graph: RealTimeGraph, off: float) -> None:
    """Let the leaders lie so far from their followers."""
    parameter = Parameter("dropped", value=off).to_parameter_msg()
    graph.client.call(SetParameters, "sim_rig_node/set_parameters", parameters=[parameter])


def listen(graph: RealTimeGraph) -> dict[str, list[Any]]:
    """Return the leaders' goals, as they come, by side."""
    told: dict[str, list[Any]] = {}
    for side, arm in graph.rig.arms.items():
        assert arm.leader is not None and arm.leader.driver is not None
        told[side] = []
        topic = arm.leader.driver.joint_group
        graph.client.node.create_subscription(JointGroupCommand, topic, told[side].append, 500)
    return told


def read(graph: RealTimeGraph) -> dict[str, list[Any]]:
    """Return where the leaders' six joints are [rad], as it comes, by side."""
    seen: dict[str, list[Any]] = {}

    def keep(rows: list[Any]) -> Callable[[JointState], None]:
        return lambda message: rows.append(message.position[:6])

    for side, arm in graph.rig.arms.items():
        assert arm.leader is not None
        seen[side] = []
        graph.client.node.create_subscription(
            JointState, arm.leader.joint_states, keep(seen[side]), 100
        )
    return seen


def says(graph: RealTimeGraph, words: str) -> bool:
    return words in graph.watchdog.teleoperation_reason


def move_leaders(graph: RealTimeGraph) -> None:
    """Have leaders that lie elsewhere move to their followers."""
    drop(graph, DROPPED)

    def moving() -> bool:
        answer = teleoperate(graph, True)
        if answer.success and "the leaders move to their followers" in answer.message:
            return True
        teleoperate(graph, False)  # it was not known yet where they lie
        return False

    graph.wait(moving, "the leaders to be moved")


def led_again(graph: RealTimeGraph) -> None:
    """Have leaders that lie elsewhere brought to their followers; again where that was stopped."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        move_leaders(graph)
        graph.wait(
            lambda: graph.watchdog.leaders_hold and says(graph, "take both in hand"),
            "the leaders to rest",
        )
        if says(graph, "the leaders are there"):
            return
        assert clutch(graph, True).success
        teleoperate(graph, False)
    raise AssertionError(f"they were never there: {graph.watchdog.teleoperation_reason}")


def test_leaders_go_to_their_followers_by_themselves(running: RealTimeGraph) -> None:
    graph, told = running, listen(running)
    at_rest(graph)
    drop(graph, DROPPED)
    seen = read(graph)
    led_again(graph)
    for rows in seen.values():  # with torque, it stays where it is until it is led
        steps = np.abs(np.diff(np.array(rows[-200:]), axis=0)).max(axis=0)
        assert steps[[0, 3, 4, 5]].max() < 0.1, "no servo goes to an older goal"
    assert phase(graph) == "matching" and not graph.sent, "no follower moves meanwhile"
    for goals in told.values():
        path = np.array([goal.cmd for goal in goals])
        assert np.ptp(path[:, 1:3], axis=0).min() > DROPPED - 0.1
        steps = np.abs(np.diff(path, axis=0))
        # What was sent together after a wait comes together: the path, not the clock, is looked at.
        assert steps.max() < 0.1
    assert teleoperate(graph, True).success
    graph.wait(lambda: not graph.watchdog.leaders_hold, "the leaders to be free")
    graph.wait(lambda: phase(graph) != "matching", "the followers to follow")
    at_rest(graph)


def test_called_off_they_stay_under_torque_until_a_person_has_them(running: RealTimeGraph) -> None:
    graph = running
    at_rest(graph)
    move_leaders(graph)
    graph.wait(lambda: graph.watchdog.leaders_hold, "torque")
    graph.wait(lambda: teleoperate(graph, False).success, "it to be called off")
    graph.wait(lambda: phase(graph) == "off" and says(graph, "under torque"), "the end")
    graph.wait(lambda: clutch(graph, True).success, "the leaders to be freed")
    graph.wait(lambda: not graph.watchdog.leaders_hold, "the leaders to be free")


def test_a_run_is_taken_over_by_leaders_that_were_moved_there(running: RealTimeGraph) -> None:
    graph = running
    while True:
        at_rest(graph)
        drop(graph, DROPPED)
        handle = graph.start(chunk_limit=20, prompt=PROMPT)
        result = handle.get_result_async()
        assert teleoperate(graph, True).success
        graph.wait(
            lambda result=result: result.done() or says(graph, "take both in hand"),
            "the leaders to be there",
        )
        if not result.done() and says(graph, "the leaders are there"):
            break
        if graph.watchdog.leaders_hold:
            assert clutch(graph, True).success
        graph.client.stop()
    assert graph.client.policy_state is not None
    assert graph.client.policy_state.phase == "paused"
    assert teleoperate(graph, True).success
    graph.wait(lambda: phase(graph) == "following", "the takeover")
    assert not wrongly_sent(graph)
    at_rest(graph)


def test_held_followers_stay_ours_while_the_leaders_are_moved_again(running: RealTimeGraph) -> None:
    graph = running
    while True:
        at_rest(graph)
        graph.wait(lambda: teleoperate(graph, True).success, "the followers to follow")
        graph.wait(lambda: phase(graph) == "following", "the followers to follow")
        graph.faults("leader_silent:left")
        graph.wait(lambda: phase(graph) in ("held", "off"), "the followers to be held")
        graph.faults()
        drop(graph, DROPPED)
        graph.wait(
            lambda: "the leaders move" in teleoperate(graph, True).message or phase(graph) == "off",
            "the leaders to be moved",
        )
        graph.wait(
            lambda: says(graph, "take both in hand") or phase(graph) == "off", "the leaders to rest"
        )
        if says(graph, "the leaders are there"):
            break
        clutch(graph, True)
    assert graph.watchdog.armed and not graph.watchdog.reason, "somebody answers for the arms"
    assert teleoperate(graph, True).success
    graph.wait(lambda: phase(graph) == "following", "the followers to follow again")
    at_rest(graph)
