"""Hands on the leaders move the followers: demonstrations, a takeover in mid-run, faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.realtime import RealTimeGraph, wrongly_sent
from helpers.teleoperation import PROMPT, TASK, at_rest, clutch, lead, phase, teleoperate
from helpers.waiting import PATIENCE

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.model.checkpoint import load_checkpoint
from cosmos_policy_ros.rig.teleoperation import led_tick
from cosmos_policy_ros.training.config import DataConfig
from cosmos_policy_ros.training.dataset_index import index_episodes

BUSY = "kept waiting"  # what a node says that other programs kept from its work


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTimeGraph]:
    folder = tmp_path_factory.mktemp("graph")
    root = str(folder / "rollouts")
    with RealTimeGraph(folder, patient=True, record=True, root=root, task=TASK) as graph:
        yield graph


@pytest.fixture
def graph(running: RealTimeGraph) -> RealTimeGraph:
    """The running graph, disarmed and at rest, hands on the leaders."""
    at_rest(running)
    running.sent.clear()
    return running


def follow(graph: RealTimeGraph) -> None:
    """Have the followers track leaders that are led; begun again where the machine was busy."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        at_rest(graph)
        if not teleoperate(graph, True).success or not lead(graph, seed=3, prompt=PROMPT).success:
            continue
        graph.wait(lambda: graph.moving() or phase(graph) != "following", "the followers to move")
        if phase(graph) == "following":
            return
    raise AssertionError(f"they did not follow: {graph.watchdog.teleoperation_reason}")


def test_followers_stay_where_leaders_are_far_off(graph: RealTimeGraph) -> None:
    graph.faults("leader_jump:right=-0.6")
    graph.wait(lambda: not teleoperate(graph, True).success, "the leader to be off")
    answer = teleoperate(graph, True)
    assert "refused: leaders are off their followers: right/waist by -0.60 rad" in answer.message
    assert phase(graph) == "off" and not graph.sent


def test_what_a_person_shows_is_a_demonstration(graph: RealTimeGraph) -> None:
    while True:
        follow(graph)
        begun = graph.client.start_episode(task=TASK, prompt=PROMPT, demonstration=True)
        assert begun.success, begun.message
        time.sleep(4.0)
        assert clutch(graph, True).success or phase(graph) == "held"
        ended = graph.client.stop_episode(reason="shown")
        if BUSY not in graph.watchdog.teleoperation_reason:
            break
    graph.wait(lambda: phase(graph) == "clutched" and not graph.moving(), "the followers to rest")
    episode = read_episode(Path(ended.path))
    assert episode.quality.go, episode.quality.text
    checkpoint = load_checkpoint(config_folder("models") / "tiny")
    data = DataConfig(demonstrations=(str(Path(ended.path).parent),), held_out=0.0)
    (entry,) = index_episodes(data, checkpoint.config, checkpoint.text).entries
    assert entry.pool == "demonstration" and len(entry.starts) > 20
    assert entry.led is not None and entry.led.all()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("leader_silent:left", "leader_left/joint_states: last good state is"),
        ("leader_nan:left", "joint 'waist' is nan"),
        ("leader_minus_pi:right", "failed read of the servo bus"),
        ("leader_jump:right=0.9", "leader right/waist jumped by"),
    ],
)
def test_a_leader_in_doubt_holds_the_followers(
    graph: RealTimeGraph, fault: str, words: str
) -> None:
    while True:
        follow(graph)
        graph.faults(fault)
        graph.wait(lambda: phase(graph) == "held", "the followers to be held")
        if BUSY not in graph.watchdog.teleoperation_reason:
            break
    assert words in graph.watchdog.teleoperation_reason
    graph.wait(lambda: not graph.moving(), "the followers to rest")
    assert not wrongly_sent(graph)


def test_a_run_is_taken_over_and_handed_back(graph: RealTimeGraph) -> None:
    while True:
        handle = graph.start(chunk_limit=20, prompt=PROMPT)
        result = handle.get_result_async()
        assert teleoperate(graph, True).success
        graph.wait(
            lambda result=result: phase(graph) == "following" or result.done(), "the takeover"
        )
        if not result.done():
            break
        at_rest(graph)
    assert graph.client.policy_state is not None
    assert graph.client.policy_state.phase == "paused"
    refused = graph.client.pause(False)
    assert not refused.success and "a person leads the arms" in refused.message
    assert lead(graph, seed=3, prompt=PROMPT).success
    graph.wait(graph.moving, "the followers to move")
    time.sleep(1.0)
    assert teleoperate(graph, False).success
    graph.wait(lambda: phase(graph) == "off", "teleoperation to end")
    led = [each for _, _, each in graph.sent if led_tick(each.header.frame_id) is not None]
    assert len(led) > 20
    count = len(graph.sent)
    graph.wait(lambda: graph.client.pause(False).success, "the policy to go on")
    graph.wait(lambda: len(graph.sent) > count and graph.moving(), "the policy to move the arms")
    run = graph.client.policy_state.run_id
    assert graph.sent[-1][2].header.frame_id.startswith(f"{run}/")
    assert not wrongly_sent(graph)
