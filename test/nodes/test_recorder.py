"""The recorder keeps what was sent before its end, and begins only with a whole rig."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cosmos_policy_ros.srv import EndEpisode, ScoreEpisode, StartEpisode
from helpers.waiting import wait_for
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState

from cosmos_policy_ros.nodes import recorder_node
from cosmos_policy_ros.nodes.recorder_node import RecorderNode
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rollouts.episode import read_episode

MESSAGES = 30


@dataclass
class Bench:
    """A recorder whose turns are taken by hand, and a rig that publishes when it is told to."""

    recorder: RecorderNode
    rig: Node
    publishers: dict[str, Any] = field(default_factory=dict)

    def connect(self, rig: RigSpec) -> None:
        for camera in rig.cameras:
            if f"/{camera.topic}" not in self.publishers:
                publisher = self.rig.create_publisher(Image, camera.topic, 50)
                self.publishers[f"/{camera.topic}"] = publisher
        for arm in rig.arms.values():
            topic = arm.joint_states
            self.publishers[f"/{topic}"] = self.rig.create_publisher(JointState, topic, 50)
        self._until_connected()
        self.publish(1)  # a rig that lives; before the episode, and not in it

    def _until_connected(self) -> None:
        counts = self.publishers.values()
        wait_for(lambda: all(p.get_subscription_count() for p in counts), "the recorder")

    def publish(self, count: int) -> None:
        """Return when all has arrived in the recorder's process, where nobody has looked yet."""
        for publisher in self.publishers.values():
            for _ in range(count):
                message = publisher.msg_type()
                message.header.stamp = self.rig.get_clock().now().to_msg()
                publisher.publish(message)
        for publisher in self.publishers.values():
            assert publisher.wait_for_all_acked(Duration(seconds=60))

    def start(self) -> Any:
        return self.call(StartEpisode, "start_episode", task="transfer_cube")

    def call(self, kind: Any, name: str, **fields: Any) -> Any:
        client = self.rig.create_client(kind, f"recorder_node/{name}")
        assert client.wait_for_service(timeout_sec=60.0)
        executor = SingleThreadedExecutor()
        executor.add_node(self.rig)
        executor.add_node(self.recorder)
        try:
            future = client.call_async(kind.Request(**fields))
            executor.spin_until_future_complete(future, timeout_sec=60.0)
        finally:
            executor.shutdown()
        return future.result()

    def recorded(self, episode: str) -> dict[str, int]:
        topics = read_episode(Path("rollouts") / episode).topics
        return {topic: topics[topic].count for topic in self.publishers}


@pytest.fixture
def parameters() -> dict[str, Any]:
    """What a test sets of the recorder's parameters."""
    return {}


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any]
) -> Iterator[Bench]:
    monkeypatch.chdir(tmp_path)  # the recorder's default folder is relative
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    bench = Bench(RecorderNode(parameter_overrides=overrides), Node("bench_rig"))
    bench.recorder.trigger_configure()
    bench.recorder.trigger_activate()
    yield bench
    bench.recorder.close()
    bench.recorder.destroy_node()
    bench.rig.destroy_node()


def stop(bench: Bench) -> None:
    assert bench.call(EndEpisode, "stop_episode").success


def discard(bench: Bench) -> None:
    assert bench.call(EndEpisode, "discard_episode").success


def interrupt(bench: Bench) -> None:
    bench.recorder.close()


@pytest.mark.parametrize(("end", "suffix"), [(stop, ""), (discard, ".discarded"), (interrupt, "")])
def test_an_end_does_not_overtake_what_was_sent_before_it(
    bench: Bench, rig: RigSpec, end: Callable[[Bench], None], suffix: str
) -> None:
    bench.connect(rig)
    started = bench.start()
    assert started.success, started.message
    bench.publish(MESSAGES)
    end(bench)
    assert bench.recorded(started.episode_id + suffix) == dict.fromkeys(bench.publishers, MESSAGES)


def test_an_interrupt_waits_for_the_last_trajectory(bench: Bench, rig: RigSpec) -> None:
    bench.connect(rig)
    started = bench.start()
    assert started.success, started.message
    farewell = threading.Timer(0.05, bench.publish, [1])
    farewell.start()
    bench.recorder.close()
    farewell.join()
    assert bench.recorded(started.episode_id) == dict.fromkeys(bench.publishers, 1)


def test_an_episode_does_not_begin_without_the_rig(
    bench: Bench, rig: RigSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_node, "DISCOVERY_PATIENCE", 0.1)
    refused = bench.start()
    assert not refused.success
    for topic in (rig.cameras[0].topic, rig.arms.right.joint_states):
        assert topic in refused.message
    assert "nobody publishes" in refused.message
    assert list(Path("rollouts").iterdir()) == []
    bench.connect(rig)
    assert bench.start().success


def test_an_episode_needs_a_task(bench: Bench) -> None:
    refused = bench.call(StartEpisode, "start_episode")
    assert not refused.success
    assert refused.message == "task: name one, since there is no policy node that has one"


def test_a_sensor_that_fell_silent_keeps_an_episode_from_beginning(
    bench: Bench, rig: RigSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_node, "DISCOVERY_PATIENCE", 0.1)
    bench.connect(rig)
    bench.recorder._inputs.take_all_waiting()
    time.sleep(0.6)
    refused = bench.start()
    assert not refused.success
    assert f"/{rig.cameras[0].topic} has been silent for 0.5 s" in refused.message


def test_a_publisher_that_the_recorder_cannot_hear_is_named(
    bench: Bench, rig: RigSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_node, "DISCOVERY_PATIENCE", 0.1)
    topic = rig.cameras[2].topic
    qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    deaf = bench.rig.create_publisher(Image, topic, qos)
    bench.publishers[f"/{topic}"] = bench.rig.create_publisher(Image, topic, 50)
    bench.connect(rig)
    refused = bench.start()
    assert not refused.success
    assert f"/{topic} from bench_rig does not reach the recorder" in refused.message
    assert "set qos_overrides" in refused.message
    bench.rig.destroy_publisher(deaf)


def test_a_disk_without_room_keeps_an_episode_from_beginning(
    bench: Bench, rig: RigSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_node, "DISCOVERY_PATIENCE", 0.1)
    bench.connect(rig)
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=300_000_000))
    refused = bench.start()
    assert not refused.success and "0.3 GB are left on the disk" in refused.message
    assert list(Path("rollouts").iterdir()) == []


def test_an_episode_ends_before_the_disk_is_full(
    bench: Bench, rig: RigSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.connect(rig)
    started = bench.start()
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=100_000_000))
    bench.recorder._report_while_recording()
    episode = read_episode(Path("rollouts") / started.episode_id)
    assert episode.outcome == "less than 0.2 GB were left on the disk"
    assert not episode.verdict.go


def test_a_score_by_the_rubric(bench: Bench, rig: RigSpec) -> None:
    bench.connect(rig)
    started = bench.call(StartEpisode, "start_episode", task="ziploc")
    assert started.success, started.message
    wrong = bench.call(ScoreEpisode, "score_episode", stages=["slider graspd"])
    assert not wrong.success and "did you mean 'slider grasped'" in wrong.message
    unsaid = bench.call(ScoreEpisode, "score_episode")
    assert not unsaid.success and "give a score from 0 to 100" in unsaid.message
    right = bench.call(ScoreEpisode, "score_episode", stages=["slider grasped", "bag opened"])
    assert right.success and (right.score, right.revision) == (40.0, 3)
    stop(bench)
    episode = read_episode(Path("rollouts") / started.episode_id)
    assert [label.kind for label in episode.labels] == ["stage", "stage", "score"]


@pytest.mark.parametrize("parameters", [{"images": "jpeg", "compression": "zstd"}])
def test_pictures_become_jpegs(bench: Bench, rig: RigSpec) -> None:
    bench.connect(rig)
    started = bench.start()
    assert started.success, started.message
    for camera in rig.cameras:
        message = Image(height=48, width=64, encoding="rgb8", step=192, data=bytes(48 * 192))
        message.header.stamp = bench.rig.get_clock().now().to_msg()
        bench.publishers[f"/{camera.topic}"].publish(message)
    for publisher in bench.publishers.values():
        assert publisher.wait_for_all_acked(Duration(seconds=60))
    stop(bench)
    episode = read_episode(Path("rollouts") / started.episode_id)
    counts = {name: topic.count for name, topic in episode.topics.items()}
    for camera in rig.cameras:
        assert counts[f"/{camera.topic}/compressed"] == 1
        assert f"/{camera.topic}" not in counts


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"images": "jpg"}, "did you mean 'jpeg'"), ({"compression": "zst"}, "did you mean 'zstd'")],
)
def test_an_unknown_option_is_named(
    parameters: dict[str, Any], message: str, capfd: pytest.CaptureFixture
) -> None:
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    recorder = RecorderNode(parameter_overrides=overrides)
    assert recorder.trigger_configure() == TransitionCallbackReturn.FAILURE
    recorder.destroy_node()
    assert message in capfd.readouterr().err
