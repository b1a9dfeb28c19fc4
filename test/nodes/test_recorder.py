"""The recorder keeps what was sent before its end, and begins only with a whole rig."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cosmos_policy_ros.srv import EndEpisode, StartEpisode
from helpers.waiting import wait_for
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
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
            self.publishers[f"/{camera.topic}"] = self.rig.create_publisher(Image, camera.topic, 50)
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
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.chdir(tmp_path)  # the recorder's default folder is relative
    bench = Bench(RecorderNode(), Node("bench_rig"))
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
