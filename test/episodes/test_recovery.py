"""Pins that a dead recorder costs what was not yet flushed, and that nothing else is ever lost.

Nor by a recovery, wherever it is killed or the disk refuses.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.broken_bags import BROKEN, Broken, messages_of, record_scored
from mcap.reader import make_reader
from mcap.stream_reader import StreamReader
from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata
from cosmos_policy_ros.bags.writer import BagWriter
from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import locked
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.folders import State, candidates, look
from cosmos_policy_ros.episodes.recovery import NothingToRecoverError, recover
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.sources import find_sources

START_NS = 1_700_000_000_000_000_000
TOPICS = [Topic("/cam", "std_msgs/msg/String"), Topic("/joints", "std_msgs/msg/String")]
ID = "20261122-105830_t_0001"

Dead = Callable[..., Path]


def sent(count: int, size: int) -> list[tuple[str, int, bytes]]:
    """Return (topic, stamp, content) of messages that tell themselves apart."""
    return [
        (("/cam", "/joints")[i % 2], START_NS + i, i.to_bytes(4, "little") * (size // 4))
        for i in range(1, count + 1)
    ]


@pytest.fixture
def dead(types: Typestore, tmp_path: Path) -> Dead:
    """Return what leaves an episode as a kill would: flushed, and without its end."""

    def die(messages: Sequence[tuple[str, int, bytes]], compression: str = "none") -> Path:
        metadata = EpisodeMetadata(task="t", prompt="p", rig="sim", episode_id=ID)
        bag = BagWriter(
            tmp_path / ID,
            TOPICS,
            metadata,
            types=types,
            start_ns=START_NS,
            compression=compression,  # type: ignore[arg-type]
        )
        for topic, stamp, content in messages:
            bag.write(topic, stamp, content)
        bag.flush()
        bag.abort()
        return bag.path

    return die


def readable(folder: Path) -> list[tuple[str, int, bytes]]:
    """Read a bag by the mcap library's index, and hold it against a scan that checks checksums."""
    (file,) = folder.glob("*.mcap")
    reader = make_reader(io.BytesIO(file.read_bytes()), validate_crcs=True)
    found = [(c.topic, m.log_time, m.data) for _, c, m in reader.iter_messages()]
    scanned = [
        r
        for r in StreamReader(io.BytesIO(file.read_bytes()), validate_crcs=True).records
        if type(r).__name__ == "Message"
    ]
    assert len(scanned) == len(found)
    return [m for m in found if m[0] != "/episode"]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_everything_flushed_is_there_again(dead: Dead, compression: str) -> None:
    messages = sent(200, 40_000)
    recovered = recover(dead(messages, compression))
    assert recovered.path.name == ID and recovered.messages == 201
    assert readable(recovered.path) == messages
    episode = read_episode(recovered.path)
    assert episode.recovered == recovered.loss and "up to 0.5 s" in recovered.loss
    assert episode.metadata.prompt == "p" and episode.outcome == "its recorder died"
    assert {name: t.count for name, t in episode.topics.items()} == {
        "/episode": 1,
        "/episode/label": 0,
        "/cam": 100,
        "/joints": 100,
    }
    assert episode.topics["/cam"].msgtype == "std_msgs/msg/String"


def test_every_length_of_the_file_is_recovered(dead: Dead, tmp_path: Path) -> None:
    """Wherever in the last chunk, its index or its head the writing stopped."""
    messages = sent(40, 60_000)
    folder = dead(messages)
    (file,) = folder.glob("*.mcap")
    whole = file.read_bytes()
    lengths = [*range(len(whole) - 300, len(whole), 23), *range(900_000, len(whole), 300_001)]
    lengths.append(len(whole))
    counts = []
    for length in lengths:
        file.write_bytes(whole[:length])
        recovered = recover(folder)
        found = readable(recovered.path)
        assert found == messages[: len(found)], f"cut at {length} of {len(whole)}"
        with Reader(recovered.path) as reader:
            assert len(list(reader.messages())) == 1 + len(found)
        counts.append(len(found))
        recovered.path.rename(folder)
        (folder / "metadata.yaml").unlink()
    assert min(counts) < 20
    assert counts[-1] == 40, "a whole file loses nothing"


def test_the_index_of_the_last_chunk_is_made_again(dead: Dead) -> None:
    """Its messages were written, and count."""
    messages = sent(10, 400)
    folder = dead(messages)
    (file,) = folder.glob("*.mcap")
    file.write_bytes(file.read_bytes()[:-20])
    assert readable(recover(folder).path) == messages


def test_a_last_chunk_of_zeros_is_cut_off(dead: Dead) -> None:
    """As a power cut leaves it: the file has its length, the data never came."""
    messages = sent(60, 60_000)
    folder = dead(messages)
    (file,) = folder.glob("*.mcap")
    content = bytearray(file.read_bytes())
    content[-400_000:-200] = bytes(399_800)
    file.write_bytes(content)
    found = readable(recover(folder).path)
    assert found == messages[: len(found)] and 30 < len(found) < 60


def test_death_before_the_real_name_costs_nothing(dead: Dead) -> None:
    folder = recover(dead(sent(10, 400))).path
    before = (folder / "metadata.yaml").read_bytes()
    again = folder.rename(folder.with_name(ID + ".recording"))
    recovered = recover(again)
    assert recovered.loss.startswith("nothing")
    assert readable(recovered.path) == sent(10, 400)
    assert (recovered.path / "metadata.yaml").read_bytes() == before


def test_a_living_recorder_is_left_alone(types: Typestore, tmp_path: Path) -> None:
    metadata = EpisodeMetadata(task="t", prompt="p", rig="sim")
    bag = BagWriter(tmp_path / ID, TOPICS, metadata, types=types, start_ns=START_NS)
    with pytest.raises(RolloutError, match="being recorded by a recorder that lives"):
        recover(bag.path)
    bag.close()
    assert not list(tmp_path.glob("*.recording"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin like an MCAP file"),
        (b"\x89MCAP0\r\n", "nothing in it is whole"),
        (b"not a bag at all, but text", "does not begin like an MCAP file"),
    ],
)
def test_hopeless_file_is_told_and_kept(tmp_path: Path, content: bytes, message: str) -> None:
    folder = tmp_path / f"{ID}.recording"
    folder.mkdir()
    (folder / f"{ID}_0.mcap").write_bytes(content)
    with pytest.raises(RolloutError, match=message):
        recover(folder)
    assert (folder / f"{ID}_0.mcap").read_bytes() == content


def test_damage_far_from_the_end_is_not_taken_for_a_tear(
    dead: Dead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cutting there would throw away what is whole behind it."""
    folder = dead(sent(60, 60_000))
    (file,) = folder.glob("*.mcap")
    damaged = bytearray(file.read_bytes())
    at = damaged.index(b"\x06", 200)
    while damaged[at + 5 : at + 9] != bytes(4):  # a chunk's opcode is followed by a small length
        at = damaged.index(b"\x06", at + 1)
    damaged[at] = 0x7F
    file.write_bytes(damaged)
    monkeypatch.setattr("cosmos_policy_ros.bags.repair.LARGEST_TEAR", 1 << 21)
    with pytest.raises(RolloutError, match=r"is damaged .* left as it is"):
        recover(folder)
    assert file.read_bytes() == damaged


def test_disk_that_refuses_can_be_tried_again(dead: Dead, disk_of: Callable[[int], object]) -> None:
    messages = sent(30, 40_000)
    folder = dead(messages)
    with disk_of(1000), pytest.raises(RolloutError, match="cannot be recovered now"):  # type: ignore[attr-defined]
        recover(folder)
    assert readable(recover(folder).path) == messages


# ---------------------------------------------------------------- killed, or refused by the disk


def _write_events(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def recover_until(folder: Path, number: int, kill: bool) -> int:
    """Recover in another process; it is killed before its ``number``-th change of the disk.

    Or the ``number``-th change that takes room fails, as on a disk that is full. Returns the exit
    code: 0 when it came to its end, 9 when it was killed.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if _write_events(event, arguments) and (kill or event not in ("os.remove", "os.rmdir")):
            left -= 1
            if left == 0:
                if kill:
                    os._exit(9)
                raise OSError(28, "No space left on device")

    sys.addaudithook(hook)
    code = 1
    try:
        recover(folder)
        code = 0
    except RolloutError:
        code = 3
    finally:
        os._exit(code)


def content_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize(
    ("kind", "kill"),
    [
        ("metadata lost", True),
        ("label file lost", True),
        ("sqlite3, compressed file", True),
        ("sqlite3, compressed file", False),
    ],
)
def test_a_recovery_that_ends_anywhere_loses_nothing_and_goes_on(
    types: Typestore, tmp_path: Path, kind: str, kill: bool
) -> None:
    broken: Broken = BROKEN[kind]
    source = record_scored(EpisodeStore(tmp_path / "source", types), types, 8)
    broken.do(source)
    known = content_of(source)
    whole = Path(shutil.copytree(source, tmp_path / "whole" / source.name))
    recover(whole)
    expected = messages_of(whole)
    number, code = 0, -1
    while code != 0:
        number += 1
        root = tmp_path / "root"
        folder = Path(shutil.copytree(source, root / source.name))
        code = recover_until(folder, number, kill)
        assert code in (0, 9 if kill else 3), f"at change {number}"
        original = folder.with_name(folder.name + ".original")
        now = look(folder)
        if now.trouble:  # what was there is there, all of it, or under its other name
            kept = content_of(folder if folder.exists() else original)
            assert {name: kept.get(name) for name in known} == known, f"at change {number}"
        if now.trouble or now.remark:
            assert cosmos.main(["recover", str(root)]) == 0, f"at change {number}"
        if kind == "label file lost":  # only reading shows that it is in the log alone
            with suppress(NothingToRecoverError):
                recover(folder)
        assert (look(folder).trouble, look(folder).remark) == ("", "")
        assert messages_of(folder) == expected, f"at change {number}"
        if original.exists():
            assert content_of(original) == known
        assert not [path for path in root.iterdir() if path.name.startswith(".")]
        shutil.rmtree(root)
    assert number >= 3


def test_the_recording_itself_tells_outcome_and_verdict(types: Typestore, tmp_path: Path) -> None:
    folder = record_scored(EpisodeStore(tmp_path, types), types, 8)
    before = read_episode(folder)
    BROKEN["metadata lost"].do(folder)
    after = read_episode(recover(folder).path)
    assert (after.outcome, after.quality, after.labels, after.topics) == (
        before.outcome,
        before.quality,
        before.labels,
        before.topics,
    )
    # What was converted has forgotten them.
    BROKEN["sqlite3"].do(folder)
    after = read_episode(recover(folder).path)
    assert after.outcome == "unknown" and not after.quality.go
    assert after.labels == before.labels and after.metadata == before.metadata
    assert {name: t.count for name, t in after.topics.items()} == {
        name: t.count for name, t in before.topics.items()
    }


def test_the_original_is_kept_until_a_purge(
    types: Typestore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = EpisodeStore(tmp_path, types)
    folder = record_scored(store, types)
    (folder / "contact_sheet.png").write_bytes(b"png")
    BROKEN["cut"].do(folder)
    known = content_of(folder)
    recovered = recover(folder)
    assert recovered.original == folder.with_name(folder.name + ".original")
    assert content_of(recovered.original) == known
    assert look(recovered.original).state is State.ORIGINAL
    assert (folder / "contact_sheet.png").read_bytes() == b"png"
    assert store.find() == folder and len(store.episodes()) == 1
    assert {source.path for source in find_sources(tmp_path)} == {folder}, "nor imported"
    assert candidates(tmp_path) == [folder], "nor learned from"
    BROKEN["cut"].do(folder)
    with pytest.raises(RolloutError, match="is there already, from an earlier recovery"):
        recover(folder)
    # While the episode is not whole again, its original stays.
    assert cosmos.main(["episodes", "purge", "--root", str(tmp_path), "--yes"]) == 0
    assert recovered.original.is_dir()
    recovered.original.rename(tmp_path / "aside")
    assert recover(folder).original == recovered.original
    assert cosmos.main(["episodes", "purge", "--root", str(tmp_path), "--yes"]) == 0
    assert not recovered.original.exists() and look(folder).state is State.FINISHED
    assert "deleted 1 folder" in capsys.readouterr().out


def test_a_renamed_folder_of_a_dead_recorder_is_finished_under_its_name(dead: Dead) -> None:
    folder = dead(sent(10, 400))
    renamed = folder.rename(folder.with_name("mine.recording"))
    recovered = recover(renamed)
    assert recovered.path.name == "mine" and look(recovered.path).id == ID
    assert readable(recovered.path) == sent(10, 400)


def test_two_episodes_in_one_folder_are_not_mixed(types: Typestore, tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path, types)
    first, second = (record_scored(store, types) for _ in range(2))
    shutil.copy(next(second.glob("*_0.mcap")), first)
    (first / "metadata.yaml").unlink()
    before = content_of(first)
    with pytest.raises(RolloutError, match="2 of its files hold an episode's metadata"):
        recover(first)
    assert content_of(first) == before


def test_a_folder_that_is_used_or_a_link_is_left_alone(types: Typestore, tmp_path: Path) -> None:
    folder = record_scored(EpisodeStore(tmp_path / "a", types), types)
    (folder / "metadata.yaml").unlink()
    (tmp_path / "link").symlink_to(folder)
    told = look(tmp_path / "link").trouble
    assert told.endswith(f"cosmos recover {folder}")
    with pytest.raises(RolloutError, match=f"is a link; .*: cosmos recover {folder}$"):
        recover(tmp_path / "link")
    with locked(folder), pytest.raises(RolloutError, match="used by another; left alone"):
        recover(folder)
    assert recover(folder).loss == "nothing: its metadata.yaml was lost"
