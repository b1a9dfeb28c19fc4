"""Pins how bags that other tools wrote are read: by their files alone, and within bounds."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import zstandard
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags import bounds, storages
from cosmos_policy_ros.bags.storages import StoredFile, first_message, storage_files
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import UnreadableError

STRING = "std_msgs/msg/String"


def text(content: bytes) -> bytes:
    return b"\0\1\0\0" + (len(content) + 1).to_bytes(4, "little") + content + b"\0"


def bag(path: Path, types: Typestore, plugin: StoragePlugin, *messages: bytes) -> Path:
    """Write a bag with messages on /note; return its file."""
    with Writer(path, version=8, storage_plugin=plugin) as writer:
        topic = writer.add_connection("/note", STRING, typestore=types)
        writer.add_connection("/silent", STRING, typestore=types)
        for stamp, message in enumerate(messages, 1):
            writer.write(topic, stamp, message)
    (file,) = (each for each in path.iterdir() if each.suffix != ".yaml")
    return file


BOTH = pytest.mark.parametrize("plugin", StoragePlugin)


@BOTH
@pytest.mark.parametrize("packed", [False, True])
def test_messages_and_topics_come_as_they_were_written(
    tmp_path: Path, types: Typestore, plugin: StoragePlugin, packed: bool
) -> None:
    sent = [text(b"one"), text(b"two")]
    file = bag(tmp_path / "bag", types, plugin, *sent)
    if packed:
        smaller = file.with_name(file.name + ".zstd")
        smaller.write_bytes(zstandard.ZstdCompressor().compress(file.read_bytes()))
        file.unlink()
        file = smaller
    stored = StoredFile(file, types)
    found = list(stored.messages(tmp_path))
    assert [(each.topic.name, each.stamp_ns, each.cdr) for each in found] == [
        ("/note", 1, sent[0]),
        ("/note", 2, sent[1]),
    ]
    assert set(stored.declared) == {"/note", "/silent"} and stored.problems == []
    assert found[0].topic.msgtype == STRING and "string data" in found[0].topic.definition
    assert not [path for path in tmp_path.iterdir() if path.is_file()], "nothing is left behind"


@BOTH
def test_the_first_message_of_a_topic_is_found_or_none(
    tmp_path: Path, types: Typestore, plugin: StoragePlugin
) -> None:
    file = bag(tmp_path / "bag", types, plugin, text(b"one"), text(b"two"))
    found = first_message(file, "/note")
    assert found is not None and (found.msgtype, found.cdr) == (STRING, text(b"one"))
    assert first_message(file, "/silent") is None and first_message(file, "/other") is None


@BOTH
def test_a_message_that_would_fill_the_memory_is_refused(
    tmp_path: Path, types: Typestore, plugin: StoragePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "LARGEST_CHUNK", 1 << 20)
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 21))
    file = bag(tmp_path / "bag", types, plugin, bomb)
    with pytest.raises(UnreadableError, match="more than 1048576 unpacked bytes"):
        first_message(file, "/note")
    with pytest.raises(RolloutError, match="more than 1048576 unpacked bytes"):
        list(StoredFile(file, types).messages(tmp_path))


def test_a_file_that_would_fill_the_disk_is_refused(
    tmp_path: Path, types: Typestore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(bounds, "RATIO", 10)
    bomb = tmp_path / "x.mcap.zstd"
    bomb.write_bytes(zstandard.ZstdCompressor().compress(bytes(1 << 24)))
    with pytest.raises(RolloutError, match="more than 10 times as large unpacked"):
        list(StoredFile(bomb, types).messages(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [bomb.name]


def test_what_a_dead_recorder_left_in_the_journal_is_read(tmp_path: Path, types: Typestore) -> None:
    file = bag(tmp_path / "bag", types, StoragePlugin.SQLITE3, text(b"one"))
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        (topic,) = database.execute("SELECT id FROM topics WHERE name = '/note'").fetchone()
        row = "INSERT INTO messages(topic_id, timestamp, data) VALUES (?, 2, ?)"
        database.execute(row, (topic, text(b"two")))
        database.commit()
        # Closing it would end the journal: as it lies there now, it is a dead recorder's.
        left = tmp_path / "left"
        shutil.copytree(file.parent, left)
    before = {path.name: path.read_bytes() for path in left.iterdir()}
    assert before[f"{file.name}-wal"]
    stored = StoredFile(left / file.name, types)
    assert [each.cdr for each in stored.messages(tmp_path)] == [text(b"one"), text(b"two")]
    assert {path.name: path.read_bytes() for path in left.iterdir()} == before


@BOTH
@pytest.mark.parametrize("keep", [0, 10, 3000])
def test_what_is_cut_off_gives_what_is_whole_or_is_told(
    tmp_path: Path, types: Typestore, plugin: StoragePlugin, keep: int
) -> None:
    file = bag(tmp_path / "bag", types, plugin, *[text(b"x" * 900)] * 20)
    file.write_bytes(file.read_bytes()[:keep])
    stored = StoredFile(file, types)
    try:
        found = list(stored.messages(tmp_path))
    except RolloutError as error:
        assert plugin is StoragePlugin.SQLITE3 and "copy it again" in str(error)
    else:
        assert plugin is StoragePlugin.MCAP and stored.problems and len(found) < 20


def test_files_are_ordered_by_number_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    names = ["b_10.mcap", "b_2.mcap.zstd", "b_0.mcap", "a.db3"]
    for name in (*names, ".b_1.mcap", "metadata.yaml", "b_3.mcap.part", "labels.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "b_4.mcap").mkdir()
    assert [file.name for file in storage_files(tmp_path)] == [
        "a.db3",
        "b_0.mcap",
        "b_2.mcap.zstd",
        "b_10.mcap",
    ]
