"""The recorder keeps what was sent before its end, and begins only with a whole rig.

Pins, too, that none of its services holds up its executor (a start slept in it for up to 10 s),
that a task is a name and no file of a stranger's choice (``/dev/zero`` filled the memory, a FIFO
hung the node), and that a folder deleted under it is told at once (it read GO until the end).
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from cosmos_policy_ros.msg import PolicyState, RecorderState
from cosmos_policy_ros.srv import EndEpisode, ScoreEpisode, StartEpisode
from helpers.episodes import Writing
from helpers.scenes import record_scenes
from helpers.waiting import wait_for
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore
from sensor_msgs.msg import CompressedImage, Image, JointState

from cosmos_policy_ros.bags.jpeg import SUFFIX
from cosmos_policy_ros.bags.mcap_file import to_yaml
from cosmos_policy_ros.bags.writer import BagWriter
from cosmos_policy_ros.core.config import load_yaml, parse_config
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.compact import is_compacted
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.topics import find_rig
from cosmos_policy_ros.nodes import compaction, recorder_node, shell
from cosmos_policy_ros.nodes.recorder_node import RecorderNode
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

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
                kind = Image if camera.transport == "raw" else CompressedImage
                publisher = self.rig.create_publisher(kind, camera.topic, 50)
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
                kind = publisher.msg_type
                message = small_image() if kind is Image else kind()
                message.header.stamp = self.rig.get_clock().now().to_msg()
                publisher.publish(message)
        for publisher in self.publishers.values():
            assert publisher.wait_for_all_acked(Duration(seconds=60))

    def start(self) -> Any:
        return self.call(StartEpisode, "start_episode", task="transfer_cube")

    def call(self, kind: Any, name: str, **fields: Any) -> Any:
        future = self.ask(kind, name, **fields)
        self.spin_until(future.done, f"the answer of {name}")
        return future.result()

    def spin_until(self, condition: Callable[[], object], what: str) -> None:
        """Let both nodes take turns until a condition holds."""

        def turn() -> bool:
            self._executor.spin_once(timeout_sec=0.05)
            return bool(condition())

        wait_for(turn, what)

    def ask(self, kind: Any, name: str, **fields: Any) -> Any:
        """Return the future answer of a service; it comes while the nodes take turns."""
        client = self.rig.create_client(kind, f"recorder_node/{name}")
        assert client.wait_for_service(timeout_sec=60.0)
        return client.call_async(kind.Request(**fields))

    @cached_property
    def _executor(self) -> SingleThreadedExecutor:
        executor = SingleThreadedExecutor()
        executor.add_node(self.rig)
        executor.add_node(self.recorder)
        return executor

    def recorded(self, episode: str) -> dict[str, int]:
        topics = read_episode(Path("rollouts") / episode).topics
        return {topic: topics[self.name_in_bag(topic)].count for topic in self.publishers}

    def name_in_bag(self, topic: str) -> str:
        return topic + SUFFIX if self.publishers[topic].msg_type is Image else topic


def small_image() -> Image:
    return Image(height=4, width=8, encoding="rgb8", step=24, data=bytes(range(96)))


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
    bench._executor.shutdown()
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
    bench.spin_until(lambda: bench.recorder._phase == "idle", "the end")
    episode = read_episode(Path("rollouts") / started.episode_id)
    assert episode.outcome == "less than 0.2 GB were left on the disk"
    assert not episode.quality.go


def test_a_score_by_the_rubric(bench: Bench, rig: RigSpec) -> None:
    bench.connect(rig)
    started = bench.call(StartEpisode, "start_episode", task="ziploc")
    assert started.success, started.message
    wrong = bench.call(ScoreEpisode, "score_episode", stages=["slider grasped by right am"])
    assert not wrong.success and "did you mean 'slider grasped by right arm'" in wrong.message
    unsaid = bench.call(ScoreEpisode, "score_episode")
    assert not unsaid.success and "give a score from 0 to 100" in unsaid.message
    right = bench.call(
        ScoreEpisode,
        "score_episode",
        stages=["slider grasped by right arm", "bag opened at least halfway"],
    )
    assert right.success and (right.score, right.revision) == (40.0, 3)
    stop(bench)
    episode = read_episode(Path("rollouts") / started.episode_id)
    assert [label.kind for label in episode.labels] == ["stage", "stage", "score"]


@pytest.mark.parametrize(
    ("parameters", "jpeg"),
    [
        ({}, True),
        ({"images": "jpeg", "compression": "zstd"}, True),
        ({"images": "raw"}, False),
    ],
)
def test_images_are_recorded_as_they_are_asked_for(bench: Bench, rig: RigSpec, jpeg: bool) -> None:
    bench.connect(rig)
    started = bench.start()
    assert started.success, started.message
    bench.publish(1)
    stop(bench)
    episode = read_episode(Path("rollouts") / started.episode_id)
    counts = {name: topic.count for name, topic in episode.topics.items()}
    for camera in rig.cameras:
        raw, compressed = f"/{camera.topic}", f"/{camera.topic}{SUFFIX}"
        assert counts.get(compressed if jpeg else raw) == 1
        assert (raw if jpeg else compressed) not in counts
    in_force = parse_config(RigSpec, episode.metadata.rig_yaml, "the bag's rig")
    assert in_force == rig.with_images("jpeg" if jpeg else "raw")
    assert find_rig(episode).rig.recording.images == "raw"  # no JPEG is to be made of a JPEG


@pytest.fixture
def compressed_rig(tmp_path: Path, parameters: dict[str, Any]) -> RigSpec:
    """The simulated rig with cameras whose drivers send JPEG, in the recorder's parameters."""
    content = load_yaml(config_folder("rigs") / "sim.yaml")
    for camera in content["cameras"]:
        camera |= {"topic": camera["topic"] + SUFFIX, "transport": "compressed"}
    file = tmp_path / "compressed.yaml"
    file.write_text(to_yaml(content))
    parameters["rig"] = str(file)
    return load_rig(str(file), tmp_path)


def test_what_a_driver_compressed_is_recorded_untouched(
    compressed_rig: RigSpec, bench: Bench
) -> None:
    """With images:=jpeg it was taken for a raw image, and the first one ended the episode."""
    bench.connect(compressed_rig)
    started = bench.start()
    assert started.success, started.message
    sent = {}
    for camera in compressed_rig.cameras:
        message = CompressedImage(format="jpg", data=array("B", f"not {camera.role}".encode()))
        message.header.stamp = bench.rig.get_clock().now().to_msg()
        message.header.frame_id = "cam"  # no text needs padding, which is of any bytes
        sent[f"/{camera.topic}"] = serialize_message(message)
        bench.publishers[f"/{camera.topic}"].publish(message)
    for publisher in bench.publishers.values():
        assert publisher.wait_for_all_acked(Duration(seconds=60))
    stop(bench)
    with Reader(Path("rollouts") / started.episode_id) as reader:
        found = {c.topic: bytes(cdr) for c, _, cdr in reader.messages() if c.topic in sent}
    assert found == sent


def test_a_policy_node_that_sees_other_images_keeps_an_episode_from_beginning(
    bench: Bench, rig: RigSpec
) -> None:
    """No decision of it would be found again by its digest."""
    bench.connect(rig)
    states = bench.rig.create_publisher(PolicyState, "policy_node/state", shell.LATCHED_PUBLISHER)
    states.publish(PolicyState(images="raw"))
    bench.spin_until(lambda: bench.recorder._policy.images, "the policy node's state")
    refused = bench.start()
    assert not refused.success
    recorded = rig.recording.text
    assert f"sees images as 'raw', this recorder would write '{recorded}'" in refused.message
    states.publish(PolicyState(images=recorded))
    bench.spin_until(lambda: bench.recorder._policy.images != "raw", "the policy node's state")
    assert bench.start().success


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


# ---------------------------------------------------------------- nothing holds up the executor


def test_a_start_that_waits_holds_up_nothing(bench: Bench, rig: RigSpec) -> None:
    """Nor is there room for a second one; and it begins as soon as the rig is whole."""
    start = bench.ask(StartEpisode, "start_episode", task="transfer_cube")
    bench.spin_until(lambda: bench.recorder._starting, "the start to wait")
    second = bench.start()
    assert not second.success and "being started by another call" in second.message
    unknown = bench.call(EndEpisode, "discard_episode", episode_id="none")
    assert not unknown.success and "holds no episode yet" in unknown.message
    assert not start.done()
    bench.connect(rig)
    bench.spin_until(start.done, "the start")
    assert start.result().success, start.result().message


def test_a_start_that_waits_ends_with_the_activity(bench: Bench) -> None:
    start = bench.ask(StartEpisode, "start_episode", task="transfer_cube")
    bench.spin_until(lambda: bench.recorder._starting, "the start to wait")
    bench.recorder.trigger_deactivate()
    bench.spin_until(start.done, "the answer")
    assert "the recorder is not active" in start.result().message
    bench.recorder.trigger_activate()


def test_a_cleanup_waits_for_the_answers(bench: Bench) -> None:
    """A service that is gone cannot answer, and its node would end with a traceback."""
    start = bench.ask(StartEpisode, "start_episode", task="transfer_cube")
    bench.spin_until(lambda: bench.recorder._starting, "the start to wait")
    bench.recorder.trigger_deactivate()
    assert bench.recorder.trigger_cleanup() == TransitionCallbackReturn.FAILURE
    bench.spin_until(start.done, "the answer")
    assert bench.recorder.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    bench.recorder.trigger_configure()
    bench.recorder.trigger_activate()
    assert "no episode" in bench.call(EndEpisode, "stop_episode").message


def test_a_start_that_waits_is_answered_before_the_recorder_ends(bench: Bench) -> None:
    start = bench.ask(StartEpisode, "start_episode", task="transfer_cube")
    bench.spin_until(lambda: bench.recorder._starting, "the start to wait")
    bench.recorder.close()
    assert bench.recorder._unanswered == 0
    bench.spin_until(start.done, "the answer")
    assert not start.result().success


def test_a_deactivation_takes_back_a_start_that_has_come_too_far(
    bench: Bench, rig: RigSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = EpisodeStore.begin
    begun, going_on = threading.Event(), threading.Event()

    def hesitate(*arguments: Any) -> Any:
        begun.set()
        going_on.wait(60.0)
        return begin(*arguments)

    monkeypatch.setattr(EpisodeStore, "begin", hesitate)
    bench.connect(rig)
    start = bench.ask(StartEpisode, "start_episode", task="transfer_cube")
    bench.spin_until(begun.is_set, "the start")
    bench.recorder.trigger_deactivate()
    going_on.set()
    bench.spin_until(start.done, "the answer")
    assert "the recorder is not active" in start.result().message
    (episode,) = Path("rollouts").iterdir()
    assert read_episode(episode).outcome == "the recorder node was deactivated"
    bench.recorder.trigger_activate()


def test_messages_are_taken_while_a_disk_hesitates_over_a_score(
    bench: Bench, rig: RigSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.connect(rig)
    started = bench.start()
    going_on = threading.Event()
    score = EpisodeStore.score

    def hesitate(*arguments: Any, **options: Any) -> Any:
        going_on.wait(60.0)
        return score(*arguments, **options)

    monkeypatch.setattr(EpisodeStore, "score", hesitate)
    scored = bench.ask(ScoreEpisode, "score_episode", score=80.0)
    bench.spin_until(lambda: bench.recorder._unanswered, "the score")
    bench.publish(MESSAGES)
    recording = bench.recorder._last
    assert recording is not None

    def taken() -> bool:
        counts = recording.quality().topics
        names = map(bench.name_in_bag, bench.publishers)
        return all(counts[name]["count"] == MESSAGES for name in names)

    bench.spin_until(taken, "the messages")
    assert not scored.done()
    going_on.set()
    bench.spin_until(scored.done, "the score")
    assert scored.result().success
    stop(bench)
    assert bench.recorded(started.episode_id) == dict.fromkeys(bench.publishers, MESSAGES)


def test_an_end_that_waits_for_the_disk_holds_up_nothing(
    bench: Bench, rig: RigSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.connect(rig)
    started = bench.start()
    going_on = threading.Event()
    close = BagWriter.close

    def hesitate(*arguments: Any, **options: Any) -> Any:
        going_on.wait(60.0)
        return close(*arguments, **options)

    monkeypatch.setattr(BagWriter, "close", hesitate)
    first = bench.ask(EndEpisode, "stop_episode", reason="success")
    bench.spin_until(lambda: bench.recorder._ending, "the end")
    for name in ("stop_episode", "discard_episode"):
        again = bench.call(EndEpisode, name)
        assert not again.success and "being ended by another call" in again.message
    another = bench.start()
    assert not another.success and "is being recorded" in another.message
    assert not first.done()
    going_on.set()
    bench.spin_until(first.done, "the first end")
    assert first.result().success, first.result().message
    assert read_episode(Path("rollouts") / started.episode_id).outcome == "success"


def test_a_bug_in_a_service_does_not_end_the_recorder(
    bench: Bench, rig: RigSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.connect(rig)
    assert bench.start().success

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OverflowError("date value out of range")

    monkeypatch.setattr(EpisodeStore, "score", fail)
    answer = bench.call(ScoreEpisode, "score_episode", score=80.0)
    assert not answer.success
    assert "OverflowError: date value out of range" in answer.message
    stop(bench)


# ---------------------------------------------------------------- tasks by name


@pytest.mark.parametrize(
    "task",
    [
        "/dev/zero",
        "./task.yaml",
        "task.yaml",
        "../tasks/transfer_cube",
        "~/transfer_cube",
        "transfer_cube\n",
        "transfer cube",
        "x" * 65,
    ],
)
def test_a_task_is_a_name_and_no_file(bench: Bench, rig: RigSpec, task: str) -> None:
    os.mkfifo("task.yaml")  # opening it would wait for ever
    refused = bench.call(StartEpisode, "start_episode", task=task)
    assert not refused.success and "is no task's name" in refused.message
    assert len(refused.message) < 300
    unknown = bench.call(StartEpisode, "start_episode", task="transfer_cub")
    assert not unknown.success and "did you mean 'transfer_cube'" in unknown.message


# ---------------------------------------------------------------- its state


def test_an_idle_recorders_path_is_an_episode(bench: Bench, rig: RigSpec) -> None:
    """It named the folder that the bag had been in while it was written."""
    bench.connect(rig)
    states: list[RecorderState] = []
    bench.rig.create_subscription(RecorderState, "recorder_node/state", states.append, 10)
    started = bench.start()
    assert bench.call(EndEpisode, "stop_episode").success
    bench.spin_until(lambda: states and states[-1].phase == "idle", "the end of the episode")
    assert read_episode(Path(states[-1].path)).id == states[-1].episode_id == started.episode_id


# ---------------------------------------------------------------- files that go away


def test_a_folder_deleted_under_the_recorder_is_told_at_once(bench: Bench, rig: RigSpec) -> None:
    bench.connect(rig)
    started = bench.start()
    states: list[RecorderState] = []
    bench.rig.create_subscription(RecorderState, "recorder_node/state", states.append, 10)
    shutil.rmtree(started.path)
    bench.spin_until(lambda: states and states[-1].phase == "idle", "the end of the episode")
    assert not states[-1].go
    assert f"{started.path} was deleted while it was recorded" in states[-1].reasons[0].replace(
        str(Path.cwd()) + "/", ""
    )
    assert f"episode {started.episode_id} ended too early" in states[-1].message
    stopped = bench.call(EndEpisode, "stop_episode")
    assert not stopped.success and "was deleted while it was recorded" in stopped.message
    bench.publish(1)
    assert bench.start().success, "the next episode must begin"


def test_a_root_deleted_under_the_recorder_does_not_end_it(bench: Bench, rig: RigSpec) -> None:
    bench.connect(rig)
    assert bench.start().success
    shutil.rmtree("rollouts")
    bench.spin_until(lambda: bench.recorder._phase == "idle", "the end of the episode")
    bench.publish(1)
    started = bench.start()
    assert started.success, started.message
    stop(bench)
    assert read_episode(Path("rollouts") / started.episode_id)


def test_a_root_that_cannot_be_used_is_named(bench: Bench, rig: RigSpec) -> None:
    bench.connect(rig)
    shutil.rmtree("rollouts")
    Path("rollouts").write_text("a file")
    refused = bench.start()
    assert not refused.success and "rollouts: cannot be the folder of episodes" in refused.message


def test_what_cannot_be_recovered_keeps_no_recorder_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)

    def fail(store: EpisodeStore) -> Any:
        raise OverflowError("cannot fit 'int' into an index-sized integer")

    monkeypatch.setattr(EpisodeStore, "recover", fail)
    recorder = RecorderNode()
    assert recorder.trigger_configure() == TransitionCallbackReturn.SUCCESS
    recorder.close()
    recorder.destroy_node()
    told = capfd.readouterr().err
    assert "rollouts: what an earlier recorder left is not recovered" in told
    assert "OverflowError" in told


def test_a_message_without_a_header_ends_nothing(bench: Bench, rig: RigSpec) -> None:
    """Bytes come as they were sent, and anyone may send them."""
    bench.connect(rig)
    started = bench.start()
    camera, arm = f"/{rig.cameras[0].topic}", f"/{rig.arms.left.joint_states}"
    for topic in (camera, arm):
        for cut in (b"", b"\0", b"\0\1\0\0", bytes(11)):
            bench.recorder._inputs._receive(topic, cut)
    stop(bench)
    verdict = read_episode(Path("rollouts") / started.episode_id).quality
    assert f"{arm} is stamped" in verdict.text
    assert f"4 messages of {camera}{SUFFIX} were no readable images" in verdict.text


@pytest.mark.parametrize("parameters", [{"compact_after_score": True}])
def test_a_scored_episode_is_compacted(
    bench: Bench, types: Typestore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At the lowest priority it waits for as long as anything else computes.
    assert compaction.COMMAND[:3] == ("nice", "-n", "19")
    monkeypatch.setattr(compaction, "COMMAND", compaction.COMMAND[3:])
    path = record_scenes(Writing(bench.recorder._open_store, types), 3)
    assert bench.call(ScoreEpisode, "score_episode", score=80.0, episode_id=path.name).success
    going_on = bench.recorder._compaction
    bench.spin_until(lambda: not going_on._waiting, "the compaction")
    episode = read_episode(path)
    assert is_compacted(episode)
    assert episode.score is not None and episode.score.points == 80


@pytest.mark.parametrize("parameters", [{"compact_after_score": True}])
def test_a_compaction_makes_way_for_an_episode(
    bench: Bench, rig: RigSpec, types: Typestore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "COMMAND", ("sh", "-c", "exec sleep 600"))
    bench.connect(rig)
    path = record_scenes(Writing(bench.recorder._open_store, types), 3)
    assert bench.call(ScoreEpisode, "score_episode", score=80.0, episode_id=path.name).success
    background = bench.recorder._compaction
    bench.spin_until(lambda: background._process, "the compaction")
    sleeping = background._process
    bench.publish(1)
    assert bench.start().success
    assert sleeping is not None and sleeping.returncode == -signal.SIGKILL
    looked = time.monotonic()
    bench.spin_until(lambda: time.monotonic() > looked + 2.5, "two looks")
    assert background._process is None
    stop(bench)
    bench.spin_until(lambda: background._process, "the compaction that was killed")


def test_no_episode_is_compacted_that_need_not(bench: Bench, types: Typestore) -> None:
    path = record_scenes(Writing(bench.recorder._open_store, types), 3)
    assert bench.call(ScoreEpisode, "score_episode", score=80.0, episode_id=path.name).success
    assert not bench.recorder._compaction._waiting
