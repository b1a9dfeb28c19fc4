"""Three chunks on the simulated rig over real DDS: what moves, what is recorded, that both agree.

The tests only read what one trial (and its repetition with the same seed) has left behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cosmos_policy_ros.msg import Label
from helpers.graph import (
    CHUNK,
    DECISION,
    GATE_RESULT,
    NOT_FOUND_YET,
    POLICY_STATE,
    RIG_STATE,
    Cdr,
    Graph,
    Recorded,
    read_bag,
)
from mcap.reader import make_reader
from rclpy.serialization import deserialize_message

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.dataset.playback import decisions, observations
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.rig.observation import Observation
from cosmos_policy_ros.rig.spec import RigSpec

CHUNKS = 3
SEED = 195
JOINTS = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]
GRIPPER_CLOSED, GRIPPER_OPEN = -0.6213, 1.4910  # rad, what the simulated rig's file says
SERVO_LAG = 0.1  # rad, behind a target that moved until now
NODES = ("sim_rig_node", "policy_node", "recorder_node")


@dataclass
class Trial:
    """What a trial has left."""

    rig: RigSpec
    episode: Recorded
    types: dict[str, Any]
    result: Any
    labels: list[Any]
    exit_codes: list[int | None]
    logs: str

    def read(self, topic: str) -> list[Any]:
        """Return the messages that came over the wire."""
        return [deserialize_message(cdr, self.types[topic]) for cdr in self.episode.wire[topic]]

    def arms(self) -> list[list[Any]]:
        """Return the trajectories of the left arm and of the right arm."""
        return [self.read(f"/{arm.trajectory}") for arm in self.rig.arms.values()]

    def decided(self) -> list[np.ndarray]:
        """Return the (50, 14) positions of every decision."""
        return [np.reshape(d.positions, (d.steps, 14)) for d in self.read(DECISION)]


def run_trial(root: Path) -> Trial:
    with Graph(root) as graph:
        client = graph.client
        with graph.recorded() as episode:
            graph.settle()
            assert client.arm().success
            result = graph.run_chunks(CHUNKS, seed=SEED)
            labels = [client.score_episode(score=40.0, operator_name="ann", note="still running")]
        labels.append(client.score_episode(score=75.5, task_success=True, operator_name="bob"))
    return Trial(
        graph.rig,
        episode,
        graph.wire.types,
        result,
        labels,
        [graph.processes.exit_code(name) for name in NODES],
        "".join(graph.processes.log(name) for name in NODES),
    )


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return run_trial(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return run_trial(tmp_path_factory.mktemp("again"))


def nanoseconds(time: Any) -> int:
    return int(time.sec) * 10**9 + int(time.nanosec)


# ---------------------------------------------------------------- what moves


def test_the_run_ends_at_its_limit_without_idling(trial: Trial) -> None:
    result = trial.result
    assert (result.success, result.outcome) == (True, "chunk_limit")
    assert (result.chunks, result.refused) == (CHUNKS, 0)
    assert result.seconds == CHUNKS * CHUNK * 0.04
    assert result.idle_seconds == 0.0


def test_each_chunk_is_one_timed_trajectory_per_arm(trial: Trial) -> None:
    ids = [f"{trial.result.run_id}/{k}" for k in range(CHUNKS)]
    assert [d.chunk_id for d in trial.read(DECISION)] == ids
    assert [(v.chunk_id, v.accepted, v.clamped) for v in trial.read(GATE_RESULT)] == [
        (chunk_id, True, 0) for chunk_id in ids
    ]
    for trajectories in trial.arms():
        assert any(any(p.velocities) for t in trajectories for p in t.points)
        assert [t.header.frame_id for t in trajectories] == ids
        for trajectory in trajectories:
            assert nanoseconds(trajectory.header.stamp) == 0
            assert list(trajectory.joint_names) == JOINTS
            times = [nanoseconds(p.time_from_start) for p in trajectory.points]
            assert times == list(range(40_000_000, 2_000_000_001, 40_000_000))
            assert list(trajectory.points[-1].velocities) == [0.0] * 7


def test_the_gate_says_the_same_of_the_bag_and_more_to_stricter_limits(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = str(trial.episode.path)
    assert cosmos.main(["replay-gate", bag]) == 0
    told = capsys.readouterr().out
    assert f"{CHUNKS} decisions, refused: none" in told
    assert "  closest: right fingers and table " in told
    plain = yaml.safe_load((config_folder("rigs") / "sim.yaml").read_text())
    plain["gate"]["velocity_scale"] = 0.05
    strict = tmp_path / "strict.yaml"
    strict.write_text(yaml.safe_dump(plain))
    assert cosmos.main(["replay-gate", bag, "--rig", str(strict)]) == 3
    told = capsys.readouterr().out
    assert "by step_speed" in told
    assert "in one control step: too fast" in told
    plain["gate"]["velocity_scale"], plain["geometry"]["finger_margin"] = 1.0, 0.1
    strict.write_text(yaml.safe_dump(plain))
    assert cosmos.main(["replay-gate", bag, "--rig", str(strict)]) == 3
    assert "by collision" in capsys.readouterr().out


def test_the_arms_are_sent_what_was_decided_in_their_own_units(trial: Trial) -> None:
    for arm, trajectories in enumerate(trial.arms()):
        for trajectory, decided in zip(trajectories, trial.decided(), strict=True):
            sent = np.array([p.positions for p in trajectory.points])
            own = decided[:, 7 * arm : 7 * arm + 7]
            np.testing.assert_array_equal(sent[:, :6], own[:, :6])
            stroke = GRIPPER_OPEN - GRIPPER_CLOSED
            np.testing.assert_allclose(sent[:, 6], GRIPPER_CLOSED + own[:, 6] * stroke, atol=1e-12)


def test_the_commanded_path_is_continuous_across_chunks(trial: Trial) -> None:
    path = np.concatenate(trial.decided())
    steps = np.abs(np.diff(path, axis=0))
    assert (steps <= trial.rig.max_velocity * 0.04 + 1e-9).all()
    # The arms do go somewhere, so a path of zeros would not pass.
    assert np.ptp(path, axis=0)[:6].max() > 0.3
    assert np.ptp(path, axis=0)[7:13].max() > 0.3


def test_the_arms_follow(trial: Trial) -> None:
    last = trial.decided()[-1][-1]
    for arm, (side, spec) in enumerate(trial.rig.arms.items()):
        states = trial.read(f"/{spec.joint_states}")
        assert states[0].name[:7] == JOINTS, side
        measured = np.array(states[-1].position[:6])
        np.testing.assert_allclose(measured, last[7 * arm : 7 * arm + 6], atol=SERVO_LAG)


# ---------------------------------------------------------------- what is recorded


def test_everything_published_while_recording_is_in_the_bag_byte_for_byte(trial: Trial) -> None:
    periods = CHUNKS * CHUNK + 1
    counts = {topic: len(messages) for topic, messages in trial.episode.wire.items()}
    for camera in trial.rig.cameras:
        assert counts[f"/{camera.topic}"] == counts[f"/{camera.info_topic}"] == periods
    for arm in trial.rig.arms.values():
        assert counts[f"/{arm.joint_states}"] == 4 * periods
        assert counts[f"/{arm.trajectory}"] == CHUNKS
    assert counts[DECISION] == counts[GATE_RESULT] == CHUNKS
    assert counts[POLICY_STATE] > 3 * CHUNKS
    assert counts[RIG_STATE] == periods + 2 * CHUNKS
    trial.episode.check_complete()


def test_the_mcap_reader_finds_what_rosbags_finds(trial: Trial) -> None:
    found: Cdr = {}
    types: dict[str, str] = {}
    for file in sorted(trial.episode.path.glob("*.mcap")):
        with file.open("rb") as stream:
            for schema, channel, message in make_reader(stream).iter_messages():
                assert schema is not None
                assert channel.message_encoding == "cdr"
                types[channel.topic] = schema.name
                found.setdefault(channel.topic, []).append(message.data)
    assert found == read_bag(trial.episode.path)
    summary = read_episode(trial.episode.path).topics
    assert types == {name: topic.msgtype for name, topic in summary.items() if topic.count}


def test_training_sees_what_the_node_saw_and_learns_what_it_decided(trial: Trial) -> None:
    windows = EpisodeWindows(read_episode(trial.episode.path), 0.04)
    np.testing.assert_allclose(windows.steps.actions, np.concatenate(trial.decided()), atol=1e-12)
    decided = trial.read(DECISION)
    begins = [nanoseconds(d.header.stamp) for d in decided]
    np.testing.assert_array_equal(windows.steps.times_ns[::CHUNK], begins)
    assert windows.usable(CHUNK).all()
    for begin, decision in zip(begins, decided, strict=True):
        assert windows.observe(begin).digest() == decision.observation_digest


def test_both_scores_are_messages_in_the_bag(trial: Trial) -> None:
    assert [(label.success, label.revision) for label in trial.labels] == [(True, 1), (True, 2)]
    cdr = read_bag(trial.episode.path)["/episode/label"]
    first, second = (deserialize_message(message, Label) for message in cdr)
    assert (first.revision, first.points, first.success) == (1, 40.0, False)
    assert (first.operator_name, first.note) == ("ann", "still running")
    assert (second.revision, second.points, second.success) == (2, 75.5, True)
    assert first.episode_id == second.episode_id == trial.episode.id
    label = read_episode(trial.episode.path).score
    assert label is not None
    assert (label.points, label.operator_name) == (75.5, "bob")


def test_the_facts_are_in_the_bag_and_in_its_metadata(trial: Trial) -> None:
    path = trial.episode.path
    assert path.name == trial.episode.id
    metadata = read_episode(path).metadata
    expected = {
        "episode_id": trial.episode.id,
        "task": "transfer_cube",
        "prompt": "transfer the red cube",
        "rig": "sim",
        "engine": "demonstrator",
        "operator_name": "ann",
    }
    assert {name: getattr(metadata, name) for name in expected} == expected
    assert metadata.seed == 7
    assert yaml.safe_load(metadata.rig_yaml)["name"] == "sim"
    assert yaml.safe_load(metadata.task_yaml)["name"] == "transfer_cube"
    metadata = yaml.safe_load((path / "metadata.yaml").read_text())
    notes = metadata["rosbag2_bagfile_information"]["custom_data"]
    assert notes.items() >= (expected | {"seed": "7", "outcome": "stopped"}).items()


# ---------------------------------------------------------------- live and offline, once and again


def test_the_bag_gives_the_very_observations_that_were_decided_on(trial: Trial) -> None:
    live = [decision.observation_digest for decision in trial.read(DECISION)]
    recorded = [decision.observation_digest for decision in decisions(trial.episode.path)]
    assert recorded == live and len(set(live)) == CHUNKS
    rebuilt = list(observations(trial.episode.path))
    assert [o.digest() for o in rebuilt if isinstance(o, Observation)] == live
    # By the time alone as well: the rig stands still while the policy looks.
    moments = [nanoseconds(decision.header.stamp) for decision in trial.read(DECISION)]
    at_moments = list(observations(trial.episode.path, moments))
    assert [o.digest() for o in at_moments if isinstance(o, Observation)] == live


def test_one_seed_gives_one_path(trial: Trial, again: Trial) -> None:
    for arm in trial.rig.arms.values():
        topic = f"/{arm.joint_states}"
        assert again.episode.wire[topic] == trial.episode.wire[topic]
    for camera in trial.rig.cameras:
        assert again.episode.wire[f"/{camera.topic}"] == trial.episode.wire[f"/{camera.topic}"]
    for trajectories, others in zip(trial.arms(), again.arms(), strict=True):
        for trajectory, other in zip(trajectories, others, strict=True):
            assert trajectory.points == other.points
    assert again.result.run_id != trial.result.run_id


def test_the_nodes_end_without_a_word(trial: Trial) -> None:
    assert trial.exit_codes == [0, 0, 0]
    # On a busy machine an operator may be faster than discovery, and is told so.
    too_early = [f"refused: {words}" for words in ("task: name one", *NOT_FOUND_YET)]
    lines = [x for x in trial.logs.splitlines() if not any(early in x for early in too_early)]
    for sign in ("Traceback", "ERROR", "FATAL", "WARN"):
        assert not [line for line in lines if sign in line]
