"""Pins that a dead recorder costs what was not yet flushed, and that nothing else is ever lost."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from mcap.reader import make_reader
from mcap.stream_reader import StreamReader
from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata
from cosmos_policy_ros.bags.writer import BagWriter
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.store import recover

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
