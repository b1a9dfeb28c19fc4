"""Pins the late label: every reader sees it, and nothing that was recorded is touched for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata, Label, encode_label
from cosmos_policy_ros.bags.writer import LABEL_TOPIC, BagWriter, read_metadata
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.labels import append_late

START_NS = 1_700_000_000_000_000_000
DAY_NS = 86_400 * 10**9
DiskOf = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def bag(tmp_path: Path, topics: list[Topic], metadata: EpisodeMetadata, types: Typestore) -> Path:
    with BagWriter(tmp_path / "bag", topics, metadata, types=types, start_ns=START_NS) as writer:
        writer.write("/cam", START_NS + 40, b"abc")
    return tmp_path / "bag"


def _label(types: Typestore, revision: int) -> bytes:
    label = Label(
        "bag", revision, "score", START_NS + DAY_NS, points=40.0 * revision, operator_name="ann"
    )
    return encode_label(types, label)


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_both_readers_see_every_revision(bag: Path, types: Typestore) -> None:
    labels = [_label(types, 1), _label(types, 2)]
    added = [append_late(bag, LABEL_TOPIC, [label], types=types) for label in labels]
    assert [path.name for path in added] == ["bag_1.mcap", "bag_2.mcap"]
    with Reader(bag) as reader:
        assert reader.message_count == 4
        found = [bytes(d) for c, _, d in reader.messages() if c.topic == "/episode/label"]
    assert found == labels
    for path, label in zip(added, labels, strict=True):
        with path.open("rb") as file:
            decoder = make_reader(file, decoder_factories=[DecoderFactory()])
            ((_, channel, message, decoded),) = decoder.iter_decoded_messages()
        assert (channel.topic, message.data) == ("/episode/label", label)
        assert decoded.header.stamp.sec == (START_NS + DAY_NS) // 10**9


def test_recorded_file_is_untouched_and_metadata_adds_up(bag: Path, types: Typestore) -> None:
    before = _digests(bag)
    append_late(bag, LABEL_TOPIC, [_label(types, 1)], types=types)
    after = _digests(bag)
    assert after["bag_0.mcap"] == before["bag_0.mcap"]
    assert set(after) == {"bag_0.mcap", "bag_1.mcap", "metadata.yaml"}
    info = read_metadata(bag)
    assert info["relative_file_paths"] == ["bag_0.mcap", "bag_1.mcap"]
    assert [(f["path"], f["message_count"]) for f in info["files"]] == [
        ("bag_0.mcap", 2),
        ("bag_1.mcap", 1),
    ]
    assert info["message_count"] == 3
    counts = {
        t["topic_metadata"]["name"]: t["message_count"] for t in info["topics_with_message_count"]
    }
    assert counts == {"/episode": 1, "/episode/label": 1, "/cam": 1, "/joints": 0}


def test_bag_still_spans_its_trial(bag: Path, types: Typestore) -> None:
    append_late(bag, LABEL_TOPIC, [_label(types, 1)], types=types)
    info = read_metadata(bag)
    assert info["duration"] == {"nanoseconds": 40}
    assert info["starting_time"] == {"nanoseconds_since_epoch": START_NS}


def test_topic_that_the_bag_lacks_is_listed(bag: Path, types: Typestore) -> None:
    note = Topic("/note", "std_msgs/msg/String")
    append_late(bag, note, [b"\0\1\0\0\2\0\0\0x\0"], types=types)
    with Reader(bag) as reader:
        assert reader.topics["/note"].msgcount == 1
        assert [c.topic for c, _, _ in reader.messages()][-1] == "/note"


def test_file_left_by_a_crash_is_not_overwritten(bag: Path, types: Typestore) -> None:
    (bag / "bag_1.mcap").write_bytes(b"left behind")
    assert append_late(bag, LABEL_TOPIC, [_label(types, 1)], types=types).name == "bag_2.mcap"
    assert (bag / "bag_1.mcap").read_bytes() == b"left behind"


@pytest.mark.parametrize("size", [0, 1000, 10_000])
def test_full_disk_leaves_the_bag_as_it_was(
    tmp_path: Path, metadata: EpisodeMetadata, types: Typestore, disk_of: DiskOf, size: int
) -> None:
    wordy = replace(
        metadata, prompt="x" * 20_000
    )  # metadata.yaml is the larger file: 10 kB stop it
    with BagWriter(tmp_path / "bag", [], wordy, types=types, start_ns=START_NS) as writer:
        bag = writer.folder
    before = _digests(bag)
    with disk_of(size), pytest.raises(RolloutError, match="the bag is as before, label it again"):
        append_late(bag, LABEL_TOPIC, [_label(types, 1)], types=types)
    assert _digests(bag) == before
    append_late(bag, LABEL_TOPIC, [_label(types, 1)], types=types)


def test_folder_that_is_no_finished_bag_is_named(tmp_path: Path, types: Typestore) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RolloutError, match="is this a finished bag") as refused:
        append_late(tmp_path / "empty", LABEL_TOPIC, [b""], types=types)
    assert str(tmp_path / "empty" / "metadata.yaml") in str(refused.value)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "other: {}"])
def test_damaged_metadata_is_named(bag: Path, types: Typestore, content: str) -> None:
    (bag / "metadata.yaml").write_text(content)
    with pytest.raises(RolloutError, match=r"metadata\.yaml: "):
        append_late(bag, LABEL_TOPIC, [_label(types, 1)], types=types)
    assert (bag / "metadata.yaml").read_text() == content
