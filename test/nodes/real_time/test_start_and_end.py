"""A wrong start is one clear line; an end, however rude, leaves no process and no torn bag."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import helpers.graph
import pytest
from helpers.graph import STUBS, Graph, start, worker_of
from helpers.waiting import is_running, wait_for

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.graph import NodeProcess

NODES = ("policy_node", "recorder_node", "sim_rig_node")


def node(name: str, **parameters: bool | int | float | str) -> NodeProcess:
    return NodeProcess(name, config_folder("params") / f"{name}.yaml", parameters)


def group_is_gone(leader: int) -> bool:
    """Return whether no process of the group that a node leads is left."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat[2]) == leader and is_running(int(folder.name)):
            members.append(folder.name)
    return not members


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        (
            "policy_node",
            {"task": "transfer_cub"},
            ["transfer_cub", "transfer_cube"],
        ),
        ("policy_node", {"rig": "simm"}, ["simm", "did you mean 'sim'"]),
        ("policy_node", {"engine": "cosmoss"}, ["engine 'cosmoss'", "did you mean 'cosmos'"]),
        ("policy_node", {"engine": "cosmos", "checkpoint": "/nowhere"}, ["/nowhere"]),
        ("policy_node", {"numerics": "papr"}, ["numerics 'papr'", "did you mean 'paper'"]),
        ("policy_node", {"planning": "best_of8"}, ["best_of8", "did you mean 'best_of_8'"]),
        (
            "policy_node",
            {"planning": "best_of_8", "engine": "demonstrator"},
            ["planning best_of_8 needs engine cosmos, not demonstrator"],
        ),
        ("policy_node", {"devices": "cpu,"}, ["devices 'cpu,' has an empty entry"]),
        (
            "policy_node",
            {"planning": "best_of_8", "world_model": "/nowhere"},
            ["/nowhere"],
        ),
        ("policy_node", {"rig": 5}, ["'rig' to '5'", "STRING"]),
        ("policy_node", {"deadline": -3.0}, ["deadline", "-3.0", "Min: 0.0"]),
        ("recorder_node", {"rig": "simm"}, ["simm", "did you mean 'sim'"]),
        ("recorder_node", {"root": "/proc/nowhere"}, ["/proc/nowhere", "folder of episodes"]),
        ("sim_rig_node", {"task": "transfer_cub"}, ["transfer_cub", "transfer_cube"]),
    ],
)
def test_a_wrong_parameter_ends_a_node_with_one_clear_line(
    tmp_path: Path, name: str, parameters: dict[str, Any], words: list[str]
) -> None:
    with start((node(name, **parameters),), tmp_path) as processes:
        wait_for(lambda: processes.exit_code(name) is not None, f"{name} to end")
        assert processes.exit_code(name) == 1
        lines = processes.log(name).strip().splitlines()
    assert len(lines) == 1, lines
    assert "error" in lines[0].lower()
    for word in words:
        assert word in lines[0]


def test_a_node_without_its_key_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROS_SECURITY_ENABLE", "true")
    monkeypatch.setenv("ROS_SECURITY_STRATEGY", "Enforce")
    with start((node("arm_interface_node"),), tmp_path) as processes:
        wait_for(
            lambda: processes.exit_code("arm_interface_node") is not None,
            "the arm interface to end",
        )
        assert processes.exit_code("arm_interface_node") == 1
        said = processes.log("arm_interface_node")
    assert "ROS_SECURITY_ENABLE is true" in said and "ROS_SECURITY_KEYSTORE" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_end_in_mid_chunk_brakes_finishes_the_bag_and_leaves_nothing(
    tmp_path: Path, end: signal.Signals
) -> None:
    with Graph(tmp_path, stub=True) as graph:
        pids = {name: graph.processes.pid(name) for name in NODES}
        graph.settle()
        graph.wire.forget()
        started = graph.start_episode()
        assert graph.client.arm().success
        graph.client.start_run()
        graph.until_executing(1)
        graph.step(10)

        def until_ended(name: str) -> None:
            wait_for(lambda: graph.processes.exit_code(name) is not None, f"{name} to end")
            assert graph.processes.exit_code(name) == 0, graph.processes.log(name)

        os.kill(pids["policy_node"], end)
        until_ended("policy_node")
        wait_for(
            lambda: [arm[-1].header.frame_id[-8:] for arm in graph.sent()] == ["/0/brake"] * 2,
            "a brake for both arms",
        )
        graph.until_recorded()
        os.kill(pids["recorder_node"], end)
        until_ended("recorder_node")
        os.kill(pids["sim_rig_node"], end)
        until_ended("sim_rig_node")
        for name, pid in pids.items():
            wait_for(lambda pid=pid: group_is_gone(pid), f"everything that {name} started to end")
            assert "Traceback" not in graph.processes.log(name)
    assert not Path(started.path).exists()
    episode = read_episode(tmp_path / started.episode_id)
    assert episode.outcome == "the recorder node was shut down"
    for arm in graph.rig.arms.values():
        assert episode.topics[f"/{arm.joint_states}"].count == 40
        assert episode.topics[f"/{arm.trajectory}"].count == 2


def test_a_launch_killed_whole_loses_nothing_older_than_a_second(tmp_path: Path) -> None:
    with Graph(tmp_path, stub=True) as graph:
        pids = [graph.processes.pid(name) for name in NODES]
        graph.settle()
        graph.wire.forget()
        started = graph.start_episode()
        graph.step(20)
        assert graph.client.score_episode(score=30.0, operator_name="ann").success
        graph.until_recorded()
        time.sleep(1.0)  # what the promise grants
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    assert Path(started.path).is_dir(), "unfinished, as the kill left it"

    with start((node("recorder_node", root=str(tmp_path)),), tmp_path / "log2") as processes:
        finished = tmp_path / started.episode_id
        wait_for(finished.is_dir, "the next recorder to recover the episode")
        wait_for(lambda: "recovered" in processes.log("recorder_node"), "a word about it")
    episode = read_episode(finished)
    assert "up to 0.5 s" in episode.recovered
    for arm in graph.rig.arms.values():
        assert episode.topics[f"/{arm.joint_states}"].count == 80
    assert episode.score is not None and episode.score.points == 30.0
    assert not episode.quality.go, "nobody has judged it"


def test_a_killed_policy_node_takes_its_inference_process_along(tmp_path: Path) -> None:
    with start((node("policy_node"),), tmp_path, STUBS) as processes:
        client = GraphClient("operator", processes.check)
        try:
            client.policy_ready(60.0)
        finally:
            client.close()
        pid = processes.pid("policy_node")
        worker = worker_of(pid)
        assert worker is not None
        assert is_running(worker)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: group_is_gone(pid), "the inference process to end")


def test_nodes_end_with_whoever_started_them(tmp_path: Path) -> None:
    script = Path(helpers.graph.__file__).with_name("lonely_starter.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert is_running(pid)
        starter.kill()
    wait_for(lambda: group_is_gone(pid), "the node to follow its starter")
