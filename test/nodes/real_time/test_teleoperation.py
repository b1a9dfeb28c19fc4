"""Hands on the leaders move the followers: demonstrations, a takeover in mid-run, faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cosmos_policy_ros.srv import LeadArms
from helpers.realtime import RealTimeGraph, wrongly_sent
from helpers.waiting import PATIENCE
from std_srvs.srv import SetBool

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.model.checkpoint import load_checkpoint
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES
from cosmos_policy_ros.rig.teleoperation import TELEOPERATION, led_tick
from cosmos_policy_ros.training.config import DataConfig
from cosmos_policy_ros.training.dataset_index import index_episodes


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTimeGraph]:
    folder = tmp_path_factory.mktemp("graph")
    options = {"patient": True, "record": True, "root": str(folder / "rollouts")}
    with RealTimeGraph(folder, **options) as graph:
        yield graph


@pytest.fixture
def graph(running: RealTimeGraph) -> RealTimeGraph:
    """The running graph, disarmed and at rest, hands on the leaders."""
    running.faults()
    running.client.stop()
    assert teleoperate(running, False).success
    running.wait(lambda: running.watchdog.teleoperation == "off", "teleoperation to end")
    assert running.client.reset_rig("transfer_cube", 3).success
    assert lead(running, rest=True).success
    running.wait(lambda: not running.moving(), "the arms to rest")
    running.sent.clear()
    return running


def teleoperate(graph: RealTimeGraph, on: bool) -> Any:
    return graph.client.call(SetBool, "arm_interface_node/teleoperate", data=on)


def lead(graph: RealTimeGraph, **fields: Any) -> Any:
    return graph.client.call(LeadArms, "sim_rig_node/lead", timeout=PATIENCE, **fields)


def phase(graph: RealTimeGraph) -> str:
    return str(graph.watchdog.teleoperation)



def test_what_a_person_shows_is_a_demonstration(graph: RealTimeGraph) -> None:
    assert teleoperate(graph, True).success
    begun = graph.client.start_episode(task="transfer_cube", demonstration=True)
    assert begun.success, begun.message
    assert lead(graph, seed=3).success
    graph.wait(graph.moving, "the followers to move")
    time.sleep(4.0)
    ended = graph.client.stop_episode(reason="shown")
    assert ended.success, ended.message
    episode = read_episode(Path(ended.path))
    assert episode.quality.go, episode.quality.text
    assert episode.metadata.engine == TELEOPERATION
    windows = EpisodeWindows(episode)
    told = [each for _, name, each in graph.sent if name == "left"]
    first = led_tick(told[0].header.frame_id)
    print(len(windows), len(told), first, np.diff(windows.steps.times_ns)[:10])
    checkpoint = load_checkpoint(config_folder("models") / "tiny")
    data = DataConfig(rollouts=(str(Path(ended.path).parent),), held_out=0.0)
    index = index_episodes(data, checkpoint.config, checkpoint.text)
    assert [entry.pool for entry in index.entries] == ["demonstration"]
    assert len(index.entries[0].starts) > 20


def test_a_run_is_taken_over_and_handed_back(graph: RealTimeGraph) -> None:
    handle = graph.start(chunk_limit=20)
    assert teleoperate(graph, True).success
    graph.wait(lambda: phase(graph) == "following", "the leaders to take over")
    assert graph.client.policy_state is not None
    assert graph.client.policy_state.phase == "paused"
    refused = graph.client.pause(False)
    assert not refused.success and "a person leads the arms" in refused.message
    assert lead(graph, seed=3).success
    graph.wait(graph.moving, "the followers to move")
    time.sleep(1.0)
    assert teleoperate(graph, False).success
    graph.wait(lambda: phase(graph) == "off", "teleoperation to end")
    assert not handle.get_result_async().done()
    led = [each for _, _, each in graph.sent if led_tick(each.header.frame_id) is not None]
    assert len(led) > 50
    count = len(graph.sent)
    graph.wait(lambda: graph.client.pause(False).success, "the policy to go on")
    graph.wait(lambda: len(graph.sent) > count and graph.moving(), "the policy to move the arms")
    assert graph.watchdog.reason == ""
    assert not wrongly_sent(graph)
    for side in ("left", "right"):
        path = np.array([seen.positions for seen in graph.poses[side]])
        print(side, np.abs(np.diff(path, axis=0)).max() * 100)
