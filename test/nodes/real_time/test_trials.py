"""A whole blind protocol on the graph, the simulated rig as the rig, interrupted twice.

Two contenders on three states each: everything that the report says must follow from the bags.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import pytest
import yaml
from helpers.waiting import wait_for

from cosmos_policy_ros.bags.messages import DECISION_TYPE
from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.episodes.episode import Episode, read_episode, read_messages
from cosmos_policy_ros.episodes.folders import State, scan
from cosmos_policy_ros.episodes.trial_info import opened_metadata, read_trial
from cosmos_policy_ros.evaluation.protocol import TrialProtocol
from cosmos_policy_ros.evaluation.rig_trials import RigTrials
from cosmos_policy_ros.nodes.graph import NodeProcesses, node_processes

LAST = 600.0  # s; a hundred are enough on an idle machine
PROTOCOL = {
    "name": "rehearsal",
    "time_limit": 2.0,  # one chunk
    "contenders": [
        {"name": "scripted", "engine": "demonstrator"},
        {"name": "learned", "checkpoint": "tiny", "denoising_steps": 1},
    ],
    "groups": [
        {
            "task": "either_cube",
            "condition": condition,
            "states": [{"number": number} for number in numbers],
        }
        for condition, numbers in (("in_distribution", (7, 8)), ("outside", (9,)))
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trials")


def start(folder: Path) -> subprocess.Popen[str]:
    config = folder / "rehearsal.yaml"
    config.write_text(yaml.safe_dump(PROTOCOL))
    command = [sys.executable, "-m", "cosmos_policy_ros.cli.cosmos", "trials", str(config)]
    command += ["--rehearse", "--root", str(folder / "rollouts"), "--output", str(folder / "out")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def episodes(folder: Path) -> list[Episode]:
    """Return all that were finished, in the order in which they were made."""
    found = [
        read_episode(each.path)
        for each in scan(folder / "rollouts")
        if each.state in (State.FINISHED, State.DISCARDED)
    ]
    return sorted(found, key=lambda episode: episode.id.rpartition("_")[2])


def scored(folder: Path) -> int:
    root = folder / "rollouts"
    return sum(1 for _ in root.glob("*/labels.jsonl")) if root.is_dir() else 0


def recording(folder: Path) -> bool:
    return any((folder / "rollouts").glob("*.recording"))


def test_blind_trials_interrupted_twice_are_reproduced_from_the_bags(folder: Path) -> None:
    # The first time it is killed in the middle of a trial, with all that it has started.
    running = start(folder)
    second = "the second trial to be recorded"
    wait_for(lambda: scored(folder) >= 1 and recording(folder), second, LAST)
    running.kill()
    running.communicate(timeout=LAST)
    # The second time an operator ends the day.
    before = scored(folder)
    running = start(folder)
    wait_for(lambda: scored(folder) > before, "one more trial to be scored", LAST)
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=LAST)
    assert running.returncode == 130
    assert "the same command goes on where it was" in said
    running = start(folder)
    table, _ = running.communicate(timeout=LAST)
    assert running.returncode == 0, table
    for told in (said, table.partition("# rehearsal")[0]):
        assert "scripted" not in told
        assert "learned" not in told
    assert "The operator did not know which contender ran." in table

    protocol = load_config(TrialProtocol, folder / "rehearsal.yaml")
    jobs, made = protocol.jobs(), episodes(folder)
    # A busy machine may end a run in a fault, which does not count either.
    counted = [episode for episode in made if not episode.discarded and episode.score is not None]
    assert len(counted) == len(jobs) == 6
    assert len(made) > len(counted)  # what was cut off was made once more
    for job, episode in zip(jobs, counted, strict=True):
        trial = read_trial(opened_metadata(episode.metadata))
        assert trial is not None
        assert (trial.contender, trial.condition, trial.state) == (
            job.contender,
            job.state.condition,
            job.state.number,
        )
        assert (episode.metadata.seed, episode.outcome) == (job.noise_seed, "time_limit")
        (topic,) = (n for n, t in episode.topics.items() if t.msgtype == DECISION_TYPE and t.count)
        engines = {message.engine for _, _, message in read_messages(episode.path, [topic])}
        wanted = {"scripted": "demonstrator", "learned": "cosmos"}[job.contender]
        assert engines == {wanted}

    progress = RigTrials(protocol, folder / "rollouts").progress()
    assert progress.complete
    assert Counter(r.contender for r in progress.results if not r.crashed) == {
        "scripted": 3,
        "learned": 3,
    }
    listed = (folder / "out" / "trials.csv").read_text().splitlines()[1:]
    assert len(listed) == len(progress.results)
    for result, line in zip(progress.results, listed, strict=True):
        cells = line.split(",")
        assert cells[0] == result.contender
        assert cells[1:5] == [
            "either_cube",
            result.condition,
            str(result.state),
            f"{result.score:g}",
        ]
        assert cells[-1] == Path(result.episode).name
    for name in ("table.md", "table.csv", "table.png"):
        assert (folder / "out" / name).stat().st_size


def test_every_state_is_photographed_once_through_the_rigs_camera(tmp_path: Path) -> None:
    config, output = tmp_path / "rehearsal.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(PROTOCOL))

    def shoot(*more: str) -> str:
        command = [sys.executable, "-m", "cosmos_policy_ros.cli.cosmos", "protocol", str(config)]
        command += ["--output", str(output), "--rig", "sim", *more]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    nodes = [node for node in node_processes(rig="sim") if node.executable == "sim_rig_node"]
    with NodeProcesses(nodes, tmp_path / "log"):
        shoot()
        pictures = sorted((output / "states").iterdir())
        assert [path.name for path in pictures] == [f"either_cube_00{n}.png" for n in (7, 8, 9)]
        seen = [cv2.imread(str(path)).astype(int) for path in pictures]
        assert all(image.shape == (240, 320, 3) for image in seen)
        assert abs(seen[0] - seen[1]).max() > 100  # the cubes lie elsewhere
        first = pictures[0].read_bytes()
        pictures[1].unlink()
        assert "(2 of 2)" in shoot("--retake", "9")
        assert sorted((output / "states").iterdir()) == pictures
        assert pictures[0].read_bytes() == first
    assert "every state has its picture" in shoot()
