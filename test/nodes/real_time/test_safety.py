"""No clock, stranger or stuck joint moves an arm or stops a stop: real nodes, real time.

Each of these moved the arms by up to thousands of radians, or kept them moving, once.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest
from cosmos_policy_ros.msg import ArmInterfaceState, PolicyState
from helpers.realtime import RealTimeGraph, wrongly_sent
from helpers.stub_engine import Seed
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos_policy_ros.nodes import shell

REST = 2.0  # s in which whatever moves must have come to rest, on a machine that is busy, too


def check_what_was_sent(graph: RealTimeGraph, *strangers: JointTrajectory) -> None:
    assert not wrongly_sent(graph, strangers)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTimeGraph]:
    with RealTimeGraph(tmp_path_factory.mktemp("graph"), stub=True) as graph:
        yield graph


@pytest.fixture
def graph(running: RealTimeGraph) -> RealTimeGraph:
    """The running graph, disarmed and at rest, as if nothing had happened."""
    running.faults()
    running.wall.set(0.0)
    assert running.client.arm(False).success
    running.wait(lambda: not running.watchdog.armed, "the arm interface to let go")
    running.wait(lambda: not running.moving(), "the arms to rest")
    running.sent.clear()
    return running


def in_mid_chunk(graph: RealTimeGraph) -> None:
    """Run and wait until the waists are fast."""
    graph.start(seed=int(Seed.FAST))
    graph.wait(lambda: graph.moving(least=0.05), "the arms to be fast")


def until_held(graph: RealTimeGraph, *words: str) -> None:
    """Wait until the arms are held for a reason with these words, and check how they got there."""
    graph.wait(lambda: all(word in graph.said() for word in words), f"a message with {words}")
    graph.wait(lambda: not graph.moving(window=0.3), "the arms to rest", REST)
    check_what_was_sent(graph)


@pytest.mark.parametrize("seconds", [-3600.0, -1.0, -0.06, 0.06, 0.5, 1.05, 3600.0])
def test_a_clock_that_is_set_in_mid_chunk_holds_the_arms(
    graph: RealTimeGraph, seconds: float
) -> None:
    """A brake began elsewhere on the path, at up to 38 rad/s."""
    in_mid_chunk(graph)
    before = graph.pose()
    graph.wall.set(seconds)
    until_held(graph, "clock was set by")
    assert np.abs(graph.pose() - before).max() < 1.0
    refused = graph.client.finish_run(graph.client.start_run(chunk_limit=1), 60.0)
    assert refused.outcome == "refused"
    assert "clock was set by" in refused.message
    assert "disarm the arms first" in graph.client.arm().message
    assert graph.client.arm(False).success
    graph.start()  # the sensors' stamps have moved along


def test_a_clock_that_is_set_at_rest_holds_the_arms(graph: RealTimeGraph) -> None:
    graph.arm()
    graph.wall.set(-10.0)
    graph.wait(lambda: "clock was set by -10.0" in graph.said(), "the jump to be noticed")
    assert not graph.sent


def test_stamps_ahead_do_not_hide_that_the_arms_are_dead(graph: RealTimeGraph) -> None:
    """The arms were moved on, three decisions long, on what had been seen before they died."""
    ahead = [f"stamps_off:{source}=3600" for source in ("left", "right", "primary")]
    graph.faults(*ahead)
    time.sleep(0.3)
    refusal = graph.client.arm().message
    # Less what it was under way for: on a busy machine some hundredths of a second.
    assert re.search(r"stamped 3(600\.0|599\.\d)\d* s ahead of this machine's clock", refusal)
    graph.faults()
    in_mid_chunk(graph)
    graph.faults(*ahead)
    graph.wait(lambda: "ahead of this machine's clock" in graph.said(), "the stamps to be named")
    graph.faults(*ahead, "joints_silent:left", "joints_silent:right")
    assert graph.client.policy_state is not None
    assert graph.client.policy_state.phase == "paused"
    graph.faults()
    graph.wait(lambda: not graph.moving(window=0.3), "the arms to rest", REST)


def test_a_joint_that_is_stuck_is_named_and_driven_no_further(graph: RealTimeGraph) -> None:
    """A waist 0.8 rad off its path was driven for three chunks."""
    in_mid_chunk(graph)
    graph.faults("joint_stuck:left/waist")
    until_held(graph, "left/waist has been", "off its path")
    last = [m for _, name, m in graph.sent if name == "left"][-1]
    assert abs(last.points[-1].positions[0] - graph.pose()[0]) < 0.1, "held where it is"


def test_a_stranger_is_named_and_the_arms_are_held(graph: RealTimeGraph) -> None:
    """It was only looked for when arming; the run went on."""
    in_mid_chunk(graph)
    output = graph.rig.outputs[0]
    stranger = graph.client.node.create_publisher(JointTrajectory, output.topic, 10)
    try:
        graph.wait(lambda: "on follower_left/arm_controller" in graph.said(), "it to be named")
        assert "operator" in graph.said()
        graph.wait(lambda: not graph.moving(window=0.3), "the arms to rest", REST)
        assert not graph.client.arm().success
    finally:
        graph.client.node.destroy_publisher(stranger)


def test_a_strangers_trajectory_is_ended_by_the_guard(graph: RealTimeGraph) -> None:
    graph.arm()
    output, pose = graph.rig.outputs[0], graph.pose().tolist()
    stranger = graph.client.node.create_publisher(JointTrajectory, output.topic, 10)
    try:
        graph.wait(lambda: stranger.get_subscription_count() >= 2, "rig and guard to be found")
        message = JointTrajectory(joint_names=list(output.joints))
        message.header.frame_id = "stranger"
        point = JointTrajectoryPoint(positions=[pose[0] + 1.5, *pose[1:], 0.0])
        point.time_from_start.sec = 4
        message.points = [point]
        stranger.publish(message)
        graph.wait(
            lambda: "'stranger' came on" in graph.watchdog.reason, "the arm interface to name it"
        )
        assert graph.watchdog.holding
        graph.wait(lambda: not graph.moving(window=0.3), "the arms to rest", REST)
        assert abs(graph.pose()[0] - pose[0]) < 0.75, "it went to its end"
        check_what_was_sent(graph, message)
    finally:
        graph.client.node.destroy_publisher(stranger)


def test_stop_acts_whatever_a_keepers_state_says(graph: RealTimeGraph) -> None:
    """One stray ArmInterfaceState, and stop answered success and sent nothing."""
    node = graph.client.node
    stray = node.create_publisher(
        ArmInterfaceState, "arm_interface_node/state", shell.LATCHED_PUBLISHER
    )
    try:
        in_mid_chunk(graph)
        assert graph.client.policy_state is not None
        owner = graph.client.policy_state.identity
        for _ in range(3):
            stray.publish(ArmInterfaceState(armed=True, owner=owner, holding=True, reason="stray"))
        assert graph.client.stop().success
        graph.wait(lambda: not graph.moving(window=0.3), "the arms to rest", REST)
    finally:
        node.destroy_publisher(stray)


def test_a_guard_that_is_deactivated_stops_the_run(graph: RealTimeGraph) -> None:
    """Its brake was withheld, and the arms played on."""
    in_mid_chunk(graph)

    def change(transition: int) -> bool:
        asked = Transition(id=transition)
        name = "arm_interface_node/change_state"
        return bool(graph.client.call(ChangeState, name, transition=asked).success)

    assert change(Transition.TRANSITION_DEACTIVATE)
    try:
        until_held(graph, "the arm interface node was deactivated")
    finally:
        assert change(Transition.TRANSITION_ACTIVATE)


def test_another_policy_nodes_states_change_nothing(graph: RealTimeGraph) -> None:
    """A colleague's disarmed node made the arm interface let go."""
    node = graph.client.node
    other = node.create_publisher(PolicyState, "policy_node/state", shell.LATCHED_PUBLISHER)
    try:
        in_mid_chunk(graph)
        assert graph.client.policy_state is not None
        for identity in ("", "other"):
            for armed in (False, True):
                other.publish(PolicyState(identity=identity, armed=armed, phase="ready"))
        time.sleep(0.3)
        assert graph.watchdog.armed
        assert graph.moving(window=1.0)
    finally:
        node.destroy_publisher(other)


@pytest.mark.parametrize("seconds", [-10.0, 0.0, 0.5])
def test_a_policy_node_killed_under_any_clock_leaves_arms_at_rest(
    running: RealTimeGraph, graph: RealTimeGraph, seconds: float
) -> None:
    """The arm interface published a waist of -31,439 rad."""
    in_mid_chunk(graph)
    before = graph.pose()
    if seconds:
        graph.wall.set(seconds)
    os.kill(graph.pid("policy_node"), signal.SIGKILL)
    try:
        graph.wait(lambda: graph.watchdog.reason, "the arm interface to hold")
        graph.wait(lambda: not graph.moving(window=0.3), "the arms to rest", REST)
        check_what_was_sent(graph)
        assert np.abs(graph.pose() - before).max() < 1.5
    finally:
        running.restart_policy_node()
    graph.wall.set(0.0)
    graph.start()  # arming is what releases the arm interface of a policy node that is gone
