"""Whatever breaks, the arms hold, the operator reads why, and the bag is whole."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest
from action_msgs.msg import GoalStatus
from helpers.graph import CHUNK, GATE_RESULT, Graph, worker_of
from helpers.stub_engine import Seed
from helpers.waiting import PATIENCE, is_running, wait_for
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParametersAtomically
from rclpy.parameter import Parameter

from cosmos_policy_ros.cli.run import Demo
from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import load_task
from cosmos_policy_ros.dataset.gate_replay import check_episode
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.topics import POLICY_NODE, RECORDER_NODE
from cosmos_policy_ros.episodes.trial_info import TrialInfo, opened_metadata, read_trial, seal

QUERY_TIMEOUT = 4.0  # s; long enough to kill an engine in the middle of a query
OBSERVATION_TIMEOUT = 5.0  # s; long enough to fix a camera


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    with Graph(
        tmp_path_factory.mktemp("faults"),
        stub=True,
        query_timeout=QUERY_TIMEOUT,
        observation_timeout=OBSERVATION_TIMEOUT,
        restarts=10,
    ) as graph:
        yield graph


@pytest.fixture
def graph(running: Graph) -> Graph:
    """The graph as after its start: no faults, arms at their start pose, disarmed."""
    running.reset()
    return running


def armed_run(graph: Graph, seed: Seed = Seed.GOOD, **goal: Any) -> Any:
    assert graph.client.arm().success
    return graph.client.start_run(seed=int(seed), **goal)


# ---------------------------------------------------------------- the rig


def test_a_silent_camera_ends_the_run_before_anything_moves(graph: Graph) -> None:
    with graph.recorded() as episode:
        graph.set_faults("camera_silent:left_wrist")
        graph.step(8)
        handle = armed_run(graph)
        graph.until_said("holding: cam_left_wrist/camera/color/image_rect_raw: last image is 0.32")
        result = graph.client.finish_run(handle, PATIENCE)
    assert result.outcome == "fault"
    assert "no usable observation for 5." in result.message
    assert "cam_left_wrist/camera/color/image_rect_raw" in result.message
    assert "limit 0.25 s" in result.message
    assert graph.sent() == [[], []]
    assert graph.accepted() == [0, 0]
    episode.check_complete()


@pytest.mark.parametrize(
    ("fault", "steps", "topic", "words"),
    [
        ("camera_silent:primary", 27, "cam_high/camera/color/image_rect_raw", "no new image for"),
        ("camera_frozen:primary", 28, "cam_high/camera/color/image_rect_raw", "no new image for"),
        ("joints_nan:left", 14, "follower_left/joint_states", "no good joint state for 0."),
        ("joints_minus_pi:right", 14, "follower_right/joint_states", "no good joint state for 0."),
        ("joints_renamed:left", 14, "follower_left/joint_states", "no good joint state for 0."),
    ],
)
def test_a_source_lost_in_mid_chunk_brakes_and_holds_until_somebody_says_go_on(
    graph: Graph, fault: str, steps: int, topic: str, words: str
) -> None:
    with graph.recorded() as episode:
        armed_run(graph)
        graph.until_executing(1)
        graph.step(10)
        graph.set_faults(fault)
        graph.step(steps)
        for brake in graph.until_sent("/0/brake"):
            last = brake.points[-1].time_from_start
            assert (last.sec, last.nanosec) == (0, 80_000_000), "two control periods"
        graph.until_said(topic, words, "braked, the arms hold")
        graph.set_faults()
        graph.step(20)
        assert graph.until_phase("paused").armed
        assert [len(arm) for arm in graph.sent()] == graph.accepted() == [2, 2]
        assert graph.client.pause(False).success
        graph.step(2)
        graph.until_executing(2)
    episode.check_complete()


@pytest.mark.parametrize(
    ("fault", "side", "words"),
    [
        ("joints_nan:left", "left", "the last: joint 'waist' is nan"),
        ("joints_minus_pi:right", "right", "6 joints read -pi: a failed read of the servo bus"),
        ("joints_renamed:left", "left", "the last: joint 'waist' is not in the message"),
    ],
)
def test_an_arm_that_reports_nonsense_between_two_chunks_is_held_until_it_reports_again(
    graph: Graph, fault: str, side: str, words: str
) -> None:
    with graph.recorded() as episode:
        graph.set_faults(fault)
        graph.step(5)
        armed_run(graph)
        graph.until_said(f"holding: follower_{side}/joint_states: last good state", words)
        graph.step(20)
        assert graph.accepted() == [0, 0]
        graph.set_faults()
        graph.step(2)
        graph.until_executing(1)
    episode.check_complete()


def test_arms_that_both_fall_silent_are_braked(graph: Graph) -> None:
    """The policy node polls along with joint states, and must not wait for one."""
    with graph.recorded() as episode:
        handle = armed_run(graph)
        graph.until_executing(1)
        graph.step(10)
        graph.set_faults("joints_silent:left", "joints_silent:right")
        for _ in range(2):
            graph.client.step(7)  # 0.56 s in all, the limit is 0.5 s
        graph.until_sent("/0/brake")
        graph.until_said("no good joint state for 0.", "limit 0.5 s", "braked, the arms hold")
        assert graph.client.stop().message == "stopped and disarmed"
        assert graph.client.finish_run(handle, PATIENCE).outcome == "stopped"
    assert [len(arm) for arm in graph.sent()] == graph.accepted() == [2, 2]
    episode.check_complete()


def test_the_demo_goes_on_when_a_lost_source_is_back(graph: Graph) -> None:
    task = load_task("transfer_cube", config_folder("tasks"))
    handle = armed_run(graph)
    demo = Demo(graph.client, task, task.prompts[0], graph.rig, 2)
    watching = Thread(target=demo.watch, args=(handle, 0))
    watching.start()
    try:
        graph.until_executing(1)
        graph.step(10)
        graph.set_faults("camera_silent:primary")
        graph.step(27)
        graph.until_sent("/0/brake")
        graph.set_faults()
        graph.step(2)
        graph.until_executing(2)
    finally:
        graph.client.stop()
        watching.join(PATIENCE)
    assert not watching.is_alive()


def test_a_short_burst_of_failed_reads_does_not_even_brake(graph: Graph) -> None:
    with graph.recorded() as episode:
        handle = armed_run(graph, chunk_limit=1)
        graph.until_executing(1)
        graph.step(10)
        graph.set_faults("joints_minus_pi:left")
        graph.step(4)
        graph.set_faults()
        graph.step(CHUNK - 14)
        assert graph.client.finish_run(handle, PATIENCE).success
    assert [len(arm) for arm in graph.sent()] == [1, 1]
    episode.check_complete()


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize(
    ("seed", "rule", "joint", "step", "words"),
    [
        (Seed.NAN, "finite", "right/shoulder", 20, "right/shoulder at step 20 is nan"),
        (Seed.JUMP_UP, "start_jump", "", 0, "is 0.5"),
        (Seed.JUMP_DOWN, "start_jump", "", 0, "is 0.5"),
    ],
)
def test_a_chunk_no_arm_may_follow_never_reaches_one(
    graph: Graph, seed: Seed, rule: str, joint: str, step: int, words: str
) -> None:
    with graph.recorded() as episode:
        graph.settle()
        result = graph.client.finish_run(armed_run(graph, seed), PATIENCE)
    assert (result.outcome, result.chunks, result.refused) == ("fault", 0, 3)
    assert "3 chunks refused in a row" in result.message
    assert words in result.message
    graph.until_said("3 chunks refused in a row", words)
    results = graph.wire.read(GATE_RESULT)
    assert [(v.accepted, v.rule, v.step) for v in results] == [(False, rule, step)] * 3
    assert all(v.joint_name == joint for v in results if joint)
    assert all(v.value > 0.4 > v.limit for v in results if rule == "start_jump")
    assert graph.sent() == [[], []]
    assert graph.accepted() == [0, 0]
    episode.check_complete()
    again = check_episode(episode.path)
    assert again.refused == {rule: 3}
    assert not again.changed
    assert words in again.first


def test_an_engine_that_refuses_ends_the_run_with_its_words(graph: Graph) -> None:
    with graph.recorded() as episode:
        result = graph.client.finish_run(armed_run(graph, Seed.REFUSE), PATIENCE)
    assert result.outcome == "fault"
    assert "the stub sees no cube" in result.message
    assert graph.sent() == [[], []]
    episode.check_complete()


def test_a_kill_of_the_inference_process_costs_one_query(graph: Graph) -> None:
    node = graph.processes.pid("policy_node")
    with graph.recorded() as episode:
        armed_run(graph, Seed.SLEEP_FIRST)
        graph.until_phase("querying")
        worker = worker_of(node)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        graph.until_said(f"inference process {worker} was killed by SIGKILL during a query")
        graph.until_executing(1)
        assert worker_of(node) not in (None, worker)
        assert [len(arm) for arm in graph.sent()] == graph.accepted() == [1, 1]
    episode.check_complete()


def test_an_inference_process_that_hangs_is_ended_at_its_deadline(graph: Graph) -> None:
    worker = worker_of(graph.processes.pid("policy_node"))
    assert worker is not None
    with graph.recorded() as episode:
        armed_run(graph, Seed.SLEEP_FIRST)
        graph.until_said(f"inference process {worker} gave no answer for 4 s during a query")
        assert not is_running(worker)
        graph.until_executing(1)
        assert [len(arm) for arm in graph.sent()] == graph.accepted() == [1, 1]
    episode.check_complete()


def test_a_stop_does_not_wait_for_the_engine(graph: Graph) -> None:
    node = graph.processes.pid("policy_node")
    handle = armed_run(graph, Seed.SLEEP_FIRST)
    graph.until_phase("querying")
    worker = worker_of(node)
    assert worker is not None
    assert graph.client.stop().message == "stopped and disarmed"
    assert is_running(worker)
    assert graph.client.finish_run(handle, PATIENCE).outcome == "stopped"
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: worker_of(node) not in (None, worker), "a new inference process")
    graph.until_phase("ready")
    assert graph.accepted() == [0, 0]


# ---------------------------------------------------------------- the operator


def end_by_cancel(graph: Graph, handle: Any) -> None:
    graph.wait(handle.cancel_goal_async().done, "the cancellation to be accepted")


def end_by_disarming(graph: Graph, _: Any) -> None:
    assert graph.client.arm(False).message == "disarmed: nothing is sent"


def end_by_stop(graph: Graph, _: Any) -> None:
    assert graph.client.stop().message == "stopped and disarmed"


@pytest.mark.parametrize(
    ("end", "outcome", "status", "armed"),
    [
        (end_by_cancel, "cancelled", GoalStatus.STATUS_CANCELED, True),
        (end_by_disarming, "stopped", GoalStatus.STATUS_ABORTED, False),
        (end_by_stop, "stopped", GoalStatus.STATUS_ABORTED, False),
    ],
)
def test_an_end_in_mid_chunk_brakes_along_the_path_and_holds(
    graph: Graph, end: Callable[[Graph, Any], None], outcome: str, status: int, armed: bool
) -> None:
    with graph.recorded() as episode:
        handle = armed_run(graph)
        graph.until_executing(1)
        graph.step(15)
        end(graph, handle)
        result = graph.client.finish_run(handle, PATIENCE)
        assert (result.success, result.outcome, result.chunks) == (False, outcome, 1)
        assert handle.status == status
        brakes = graph.until_sent("/0/brake")
        for (chunk, _), brake in zip(graph.sent(), brakes, strict=True):
            row = chunk.points[14].positions[0]  # where the waist was told to be after 15 steps
            assert brake.points[0].positions[0] == pytest.approx(row, abs=0.03)
            assert brake.points[-1].positions[0] > row + 0.01  # it was on its way out
            assert list(brake.points[-1].velocities) == [0.0] * 7
            last = brake.points[-1].time_from_start
            assert (last.sec, last.nanosec) == (0, 400_000_000)
        graph.step(30)
        assert [len(arm) for arm in graph.sent()] == graph.accepted() == [2, 2]
        for arm, brake in zip(graph.rig.arms.values(), brakes, strict=True):
            state = graph.wire.read(f"/{arm.joint_states}")[-1]
            assert max(map(abs, state.velocity[:6])) < 0.01
            assert state.position[0] == pytest.approx(brake.points[-1].positions[0], abs=0.02)
        assert graph.client.policy_state.armed is armed
    episode.check_complete()


def change_state(graph: Graph, node: str, transition: int) -> None:
    answer = graph.client.call(
        ChangeState, f"{node}/change_state", transition=Transition(id=transition)
    )
    assert answer.success


def test_a_lifecycle_manager_brakes_takes_down_and_brings_back_the_policy_node(
    graph: Graph,
) -> None:
    """An attribute of ours named as one of rclpy's hid all services but our own from it."""
    with graph.recorded():
        handle = armed_run(graph)
        graph.until_executing(1)
        graph.step(15)
        change_state(graph, POLICY_NODE, Transition.TRANSITION_DEACTIVATE)
        result = graph.client.finish_run(handle, PATIENCE)
        assert (result.outcome, result.message) == ("stopped", "the policy node was deactivated")
        graph.until_sent("/0/brake")
        assert graph.client.arm().message == "refused: the node is not active; activate it first"
    change_state(graph, POLICY_NODE, Transition.TRANSITION_CLEANUP)
    change_state(graph, POLICY_NODE, Transition.TRANSITION_CONFIGURE)
    change_state(graph, POLICY_NODE, Transition.TRANSITION_ACTIVATE)
    graph.reset()
    handle = armed_run(graph, chunk_limit=1)
    graph.until_executing(1)
    graph.step(CHUNK)
    assert graph.client.finish_run(handle, PATIENCE).success


def test_parameters_change_only_where_they_are_taken_up(graph: Graph) -> None:
    """A contender of an evaluation is the same node with other parameters."""

    def ask(**values: Any) -> Any:
        given = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        kind, name = SetParametersAtomically, f"{POLICY_NODE}/set_parameters_atomically"
        return graph.client.call(kind, name, parameters=given).result

    refused = ask(seed=5)
    assert not refused.successful
    assert "seed is read when policy_node is configured: deactivate it and clean" in refused.reason
    change_state(graph, POLICY_NODE, Transition.TRANSITION_DEACTIVATE)
    change_state(graph, POLICY_NODE, Transition.TRANSITION_CLEANUP)
    assert "did you mean 'demonstrator'?" in ask(engine="demonstrato").reason
    with pytest.raises(CosmosPolicyError, match="could not be configured with its new parameters"):
        graph.client.reconfigure(POLICY_NODE, {"task": "transfer_cub"}, PATIENCE)
    graph.client.reconfigure(POLICY_NODE, {"task": "transfer_cube", "seed": 7}, PATIENCE)
    graph.reset()
    handle = armed_run(graph, chunk_limit=1)
    graph.until_executing(1)
    graph.step(CHUNK)
    assert graph.client.finish_run(handle, PATIENCE).success
    asked = graph.client.call(GetParameters, f"{POLICY_NODE}/get_parameters", names=["seed"])
    assert asked.values[0].integer_value == 7
    graph.client.reconfigure(POLICY_NODE, {"seed": 195}, PATIENCE)


def test_which_trial_it_is_stands_in_the_bag_and_the_contender_is_sealed(graph: Graph) -> None:
    client = graph.client
    refused = client.start_episode(trial="{}")
    assert not refused.success
    assert "trial" in refused.message
    trial = TrialInfo("paper", "out_of_distribution", 3, sealed=seal({"contender": "pi05"}))
    with graph.recorded(trial=trial.text()) as episode:
        graph.step(5)
    metadata = read_episode(episode.path).metadata
    assert (metadata.engine, metadata.checkpoint) == ("", "")
    opened = opened_metadata(metadata)
    assert opened.engine == "demonstrator"
    assert read_trial(opened) == TrialInfo("paper", "out_of_distribution", 3, "pi05")


@pytest.mark.parametrize("node", [POLICY_NODE, RECORDER_NODE])
def test_a_lifecycle_node_tells_its_state_and_its_parameters(graph: Graph, node: str) -> None:
    state = graph.client.call(GetState, f"{node}/get_state").current_state
    assert state.label == "active"
    described = graph.client.call(DescribeParameters, f"{node}/describe_parameters", names=["rig"])
    assert described.descriptors[0].description


def test_a_run_is_refused_while_disarmed(graph: Graph) -> None:
    assert graph.client.stop().message == "nothing was running; disarmed"
    result = graph.client.finish_run(graph.client.start_run(), PATIENCE)
    assert (result.success, result.outcome) == (False, "refused")
    assert result.message == "the arms are disarmed; call ~/arm with data: true first"
    assert graph.accepted() == [0, 0]


def test_a_run_is_refused_while_another_is_under_way(graph: Graph) -> None:
    first = armed_run(graph, chunk_limit=1)
    graph.until_executing(1)
    second = graph.client.finish_run(graph.client.start_run(), PATIENCE)
    assert second.outcome == "refused"
    assert "is under way; cancel it or call ~/stop first" in second.message
    graph.step(CHUNK)
    assert graph.client.finish_run(first, PATIENCE).success
    assert graph.accepted() == [1, 1]


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ({"task": "transfer_cub"}, "did you mean 'transfer_cube'"),
        ({"prompt": "transfer the red cub"}, "did you mean 'transfer the red cube'"),
        ({"time_limit": math.nan}, "time_limit nan s must be finite"),
        ({"time_limit": -1.0}, "time_limit -1.0 s must be finite"),
    ],
)
def test_a_goal_that_makes_no_sense_is_refused_with_the_reason(
    graph: Graph, goal: dict[str, Any], words: str
) -> None:
    result = graph.client.finish_run(armed_run(graph, **goal), PATIENCE)
    assert result.outcome == "refused"
    assert words in result.message
    assert graph.accepted() == [0, 0]


def test_an_episode_is_started_once_and_stopped_once(graph: Graph) -> None:
    client = graph.client
    with graph.recorded() as episode:
        again = client.start_episode()
        assert not again.success
        assert f"episode '{episode.id}' is being recorded; stop or discard it" in again.message
        other = client.stop_episode(episode_id="20000101-000000_other_0001")
        assert not other.success
        assert f"is not being recorded, '{episode.id}' is" in other.message
        graph.step(5)
    before = sorted(file.name for file in episode.path.iterdir())
    again = client.stop_episode()
    assert not again.success
    assert again.message == "no episode is being recorded; start one first"
    assert sorted(file.name for file in episode.path.iterdir()) == before
    episode.check_complete()
