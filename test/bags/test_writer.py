"""Pins the bag: what comes out is byte for byte what went in, and half a bag never looks whole."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.reader import NonSeekingReader, make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata
from cosmos_policy_ros.bags.writer import BagWriter
from cosmos_policy_ros.core.errors import RolloutError

START_NS = 1_700_000_000_000_000_000
Open = Callable[..., BagWriter]
DiskOf = Callable[[int], AbstractContextManager[None]]
Message = tuple[str, int, bytes]


@pytest.fixture
def open_bag(
    tmp_path: Path, topics: list[Topic], metadata: EpisodeMetadata, types: Typestore
) -> Open:
    def open_bag(folder: Path = tmp_path / "bag", topics: list[Topic] = topics) -> BagWriter:
        return BagWriter(folder, topics, metadata, types=types, start_ns=START_NS)

    return open_bag


def _by_rosbags(folder: Path) -> list[Message]:
    with Reader(folder) as reader:
        return [(c.topic, stamp, bytes(data)) for c, stamp, data in reader.messages()]


def _by_mcap(folder: Path) -> list[Message]:
    found = []
    for path in sorted(folder.glob("*.mcap")):
        with path.open("rb") as file:
            found += [
                (channel.topic, message.log_time, message.data)
                for _, channel, message in make_reader(file).iter_messages()
            ]
    return found


@settings(max_examples=15)
@given(
    messages=st.lists(
        st.tuples(
            st.sampled_from(["/cam", "/joints"]),
            st.integers(0, 2**31 * 10**9 - 1),
            st.binary(max_size=64) | st.integers(0, 1 << 21).map(lambda size: b"\x5a" * size),
        ),
        max_size=12,
    )
)
def test_any_interleaving_and_size_comes_back(messages: list[Message], types: Typestore) -> None:
    metadata = EpisodeMetadata(task="t", prompt="p", rig="sim")
    topics = [Topic(name, "std_msgs/msg/String") for name in ("/cam", "/joints")]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "bag")
        with BagWriter(folder, topics, metadata, types=types, start_ns=START_NS) as bag:
            for topic, stamp, data in messages:
                bag.write(topic, stamp, data)
            first = ("/episode", START_NS, _by_mcap_unfinished(bag.path)[0][2])
        assert Counter(_by_rosbags(folder)) == Counter([first, *messages])
        assert Counter(_by_mcap(folder)) == Counter([first, *messages])
        for name in ("/cam", "/joints"):
            sizes = [len(data) for topic, _, data in messages if topic == name]
            assert bag.sizes[name] == sum(sizes)


def _by_mcap_unfinished(folder: Path) -> list[Message]:
    """Read what is on the disk of a bag without footer, as recovery does."""
    (path,) = folder.glob("*.mcap")
    reader = NonSeekingReader(io.BytesIO(path.read_bytes()))
    found = []
    try:
        for _, channel, message in reader.iter_messages(log_time_order=False):
            found.append((channel.topic, message.log_time, message.data))
    except Exception:  # noqa: S110 - the missing footer is the point
        pass
    return found


def test_ros_decoder_reads_the_types_from_the_file(
    open_bag: Open, types: Typestore, tmp_path: Path
) -> None:
    stamp = types.types["builtin_interfaces/msg/Time"](sec=3, nanosec=4)
    joints = types.types["sensor_msgs/msg/JointState"](
        header=types.types["std_msgs/msg/Header"](stamp=stamp, frame_id="x"),
        name=["waist"],
        position=np.array([0.5]),
        velocity=np.array([]),
        effort=np.array([]),
    )
    with open_bag() as bag:
        bag.write("/joints", START_NS + 1, types.serialize_cdr(joints, joints.__msgtype__))
    with (tmp_path / "bag" / "bag_0.mcap").open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        decoded = {c.topic: message for _, c, _, message in reader.iter_decoded_messages()}
    assert decoded["/joints"].position == [0.5]
    assert decoded["/joints"].header.stamp.sec == 3
    assert decoded["/episode"].seed == 2**64 - 1
    assert decoded["/episode"].task_yaml == "name: transfer_cube\n"


def test_metadata_has_what_ros2_bag_needs(open_bag: Open, types: Typestore, tmp_path: Path) -> None:
    with open_bag() as bag:
        bag.write("/cam", START_NS + 5, b"abc")
        bag.write("/cam", START_NS + 2, b"abc")
        bag.close({"outcome": "stopped"})
    content = yaml.safe_load((tmp_path / "bag" / "metadata.yaml").read_text())
    info = content["rosbag2_bagfile_information"]
    assert info["version"] == 8
    assert info["storage_identifier"] == "mcap"
    assert info["relative_file_paths"] == ["bag_0.mcap"]
    assert [file["path"] for file in info["files"]] == ["bag_0.mcap"]
    assert info["message_count"] == 3
    assert info["starting_time"] == {"nanoseconds_since_epoch": START_NS}
    assert info["duration"] == {"nanoseconds": 5}
    assert info["custom_data"]["prompt"] == "transfer the red cube"
    assert info["custom_data"]["seed"] == str(2**64 - 1)
    assert info["custom_data"]["outcome"] == "stopped"
    listed = {t["topic_metadata"]["name"]: t for t in info["topics_with_message_count"]}
    assert {name: t["message_count"] for name, t in listed.items()} == {
        "/episode": 1,
        "/episode/label": 0,
        "/cam": 2,
        "/joints": 0,
    }
    cam = listed["/cam"]["topic_metadata"]
    assert cam["type"] == "sensor_msgs/msg/Image"
    assert cam["type_description_hash"] == types.hash_rihs01("sensor_msgs/msg/Image")
    assert cam["serialization_format"] == "cdr"
    # Text, and numbers of rmw's enums, all that Humble's reader takes.
    assert isinstance(cam["offered_qos_profiles"], str)
    (qos,) = yaml.safe_load(cam["offered_qos_profiles"])
    assert (qos["reliability"], qos["durability"], qos["depth"]) == (2, 2, 5)
    assert qos["deadline"] == {"sec": 9223372036, "nsec": 854775807}
    assert listed["/joints"]["topic_metadata"]["offered_qos_profiles"] == ""


def test_error_on_the_way_leaves_the_bag_unfinished(open_bag: Open, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_bag() as bag:
        bag.write("/cam", START_NS, b"abc")
        bag.flush()
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["bag.recording"]
    assert [m[0] for m in _by_mcap_unfinished(tmp_path / "bag.recording")] == ["/episode", "/cam"]
    with pytest.raises(RolloutError, match="was broken off"):
        bag.write("/cam", START_NS, b"abc")


def test_flushed_messages_are_on_the_disk(open_bag: Open) -> None:
    bag = open_bag()
    bag.write("/cam", START_NS + 1, b"first")
    assert len(_by_mcap_unfinished(bag.path)) == 1
    bag.flush()
    bag.flush()
    assert [m[2] for m in _by_mcap_unfinished(bag.path)[1:]] == [b"first"]
    bag.abort()


def test_unflushed_loss_is_bounded(open_bag: Open) -> None:
    bag = open_bag()
    sent = 100
    for number in range(sent):
        bag.write("/cam", START_NS + number, bytes(100_000))
    on_disk = len(_by_mcap_unfinished(bag.path)) - 1
    assert (sent - on_disk) * 100_000 <= 2 * 2**20
    bag.abort()


@pytest.mark.parametrize("suffix", ["", ".recording", ".discarded"])
def test_existing_folder_is_never_touched(open_bag: Open, tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"bag{suffix}").mkdir()
    with pytest.raises(RolloutError, match=f"bag{suffix}: exists already"):
        open_bag()
    assert not list((tmp_path / f"bag{suffix}").iterdir())


def test_folder_that_appears_meanwhile_is_not_replaced(open_bag: Open, tmp_path: Path) -> None:
    bag = open_bag()
    (tmp_path / "bag").mkdir()
    with pytest.raises(RolloutError, match="exists already"):
        bag.close()
    assert _by_rosbags(tmp_path / "bag.recording")


def test_file_in_place_of_the_folder_is_named(open_bag: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RolloutError, match="cannot start a bag"):
        open_bag(tmp_path / "file" / "bag")


@pytest.mark.parametrize(
    ("topics", "message"),
    [
        ([Topic("/a", "sensor_msgs/msg/Imgae")], "type 'sensor_msgs/msg/Imgae' is unknown"),
        ([Topic("/a", "my_msgs/msg/Image")], "did you mean 'sensor_msgs/msg/Image'"),
        ([Topic("/a", "sensor_msgs/msg/Image")] * 2, "'/a': is listed twice"),
        ([Topic("/episode", "sensor_msgs/msg/Image")], "'/episode': is listed twice or reserved"),
        ([Topic("cam", "sensor_msgs/msg/Image")], "must be absolute, such as '/cam'"),
    ],
)
def test_wrong_topic_is_named_before_anything_is_made(
    open_bag: Open, tmp_path: Path, topics: list[Topic], message: str
) -> None:
    with pytest.raises(RolloutError) as refused:
        open_bag(topics=topics)
    assert message in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("topic", "stamp", "message"),
    [
        ("/camm", START_NS, "did you mean '/cam'"),
        ("/cam", -1, "stamp -1 ns must be from 0"),
        ("/cam", 2**31 * 10**9, "must be from 0 to 2147483647999999999 ns"),
    ],
)
def test_wrong_message_is_named_and_the_bag_goes_on(
    open_bag: Open, tmp_path: Path, topic: str, stamp: int, message: str
) -> None:
    with open_bag() as bag:
        with pytest.raises(RolloutError) as refused:
            bag.write(topic, stamp, b"abc")
        assert message in str(refused.value)
        bag.write("/cam", START_NS, b"abc")
    assert len(_by_rosbags(tmp_path / "bag")) == 2


def test_closed_bag_has_its_real_name_and_takes_nothing_more(
    open_bag: Open, tmp_path: Path
) -> None:
    bag = open_bag()
    assert [path.name for path in tmp_path.iterdir()] == ["bag.recording"]
    assert bag.close() == tmp_path / "bag"
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]
    for deed in (bag.close, bag.flush, lambda: bag.write("/cam", START_NS, b"")):
        with pytest.raises(RolloutError, match="takes nothing more: it is closed as"):
            deed()
    bag.abort()
    assert _by_rosbags(tmp_path / "bag")


def test_full_disk_ends_the_bag(open_bag: Open, disk_of: DiskOf, tmp_path: Path) -> None:
    bag = open_bag()
    payload = os.urandom(400_000)
    with (
        disk_of(3_000_000),
        pytest.raises(RolloutError, match=r"bag\.recording: cannot write the bag: .*too large"),
    ):
        for number in range(100):
            bag.write("/cam", START_NS + number, payload)
    for deed in (bag.close, lambda: bag.write("/cam", START_NS, b"abc")):
        with pytest.raises(RolloutError, match="takes nothing more: its bag failed"):
            deed()
    assert [path.name for path in tmp_path.iterdir()] == ["bag.recording"]
    left = _by_mcap_unfinished(tmp_path / "bag.recording")[1:]
    assert len(left) >= 3
    assert all(data == payload for _, _, data in left)


def test_full_disk_at_the_end_leaves_the_bag_unfinished(
    open_bag: Open, disk_of: DiskOf, tmp_path: Path
) -> None:
    bag = open_bag()
    bag.write("/cam", START_NS, bytes(200_000))
    with disk_of(100_000), pytest.raises(RolloutError, match="cannot finish the bag"):
        bag.close()
    assert [path.name for path in tmp_path.iterdir()] == ["bag.recording"]
    assert not (tmp_path / "bag.recording" / "metadata.yaml").exists()


def test_threads_share_one_bag(open_bag: Open, tmp_path: Path) -> None:
    def send(topic: str, payload: bytes) -> None:
        for number in range(300):
            bag.write(topic, START_NS + number, payload)

    with open_bag() as bag:
        payloads = {"/cam": b"c" * 9000, "/joints": b"j" * 70}
        threads = [threading.Thread(target=send, args=item) for item in payloads.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = _by_mcap(tmp_path / "bag")
    for topic, payload in payloads.items():
        assert [m[2] for m in found if m[0] == topic] == [payload] * 300
