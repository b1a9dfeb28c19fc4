"""Pins that no file among the episodes stops the recorder, or asks for more work than it is."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import pytest
import zstandard
from helpers.episodes import START_NS, record
from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.reader import make_reader
from mcap.records import Chunk, ChunkIndex, Footer, Header, Message, Statistics
from mcap.writer import MCAP0_MAGIC
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags import bounds
from cosmos_policy_ros.bags.bounds import unpack
from cosmos_policy_ros.bags.check import CheckedFile
from cosmos_policy_ros.bags.index import index_topics
from cosmos_policy_ros.bags.messages import EpisodeMetadata, Label
from cosmos_policy_ros.bags.types import types_of_definition
from cosmos_policy_ros.bags.writer import BagWriter, read_metadata
from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.dataset.windows import EpisodeWindows, Sent, find_steps
from cosmos_policy_ros.episodes.episode import read_episode, read_messages
from cosmos_policy_ros.episodes.labels import LABEL_LOG, OperatorScore, read_log
from cosmos_policy_ros.episodes.quality import QualityReport, load_limits
from cosmos_policy_ros.episodes.recovery import Recovered
from cosmos_policy_ros.episodes.store import EpisodeStore, add_labels
from cosmos_policy_ros.episodes.verify import verify

LIMITS = load_limits()
ID = "20261122-105830_t_0001"
JUNK = struct.pack("<BQ", 0x90, 0)  # a record without content
LINE_ENDS = "\u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e \r\n \r \n"


@pytest.fixture(scope="module")
def recorded(types: Typestore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(EpisodeStore(tmp_path_factory.mktemp("recorded"), types), types, 0.1)


@pytest.fixture
def episode(recorded: Path, store: EpisodeStore) -> Path:
    """A healthy episode in the store."""
    return Path(shutil.copytree(recorded, store.root / recorded.name))


@pytest.fixture
def dead(types: Typestore, store: EpisodeStore) -> Path:
    """An episode whose recorder was killed, in the store."""
    metadata = EpisodeMetadata(task="t", prompt="p", rig="sim", episode_id=ID)
    bag = BagWriter(store.root / ID, [], metadata, types=types, start_ns=10**18)
    bag.flush()
    bag.abort()
    return bag.path


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------- recovery


def chunk_at(content: bytes) -> int:
    at = 8
    while content[at] != Opcode.CHUNK:
        at += 9 + struct.unpack_from("<Q", content, at + 1)[0]
    return at


def long_record(content: bytes) -> bytes:
    """Give the first record in the first chunk a length beyond any file: an OverflowError."""
    at = chunk_at(content) + 9
    letters = struct.unpack_from("<I", content, at + 28)[0]
    spoilt = bytearray(content)
    spoilt[at + 24 : at + 28] = bytes(4)  # no checksum
    first = at + 32 + letters + 8
    spoilt[first : first + 9] = struct.pack("<BQ", 0x90, 2**63)
    return bytes(spoilt)


def no_schema(content: bytes) -> bytes:
    at = chunk_at(content) + 9
    spoilt = bytearray(content)
    spoilt[at + 24 : at + 28] = bytes(4)
    for place in range(at, len(spoilt) - 9):
        if spoilt[place] == Opcode.SCHEMA and spoilt[place + 5 : place + 9] == bytes(4):
            spoilt[place] = 0x90
    return bytes(spoilt)


@pytest.mark.parametrize(
    "spoil",
    [
        long_record,
        no_schema,
        lambda content: content[: chunk_at(content) + 30],
        lambda content: content.replace(b"std_msgs", b"\xff\xff\xff_msgs"),
        lambda _: b"",
        lambda _: MCAP0_MAGIC + struct.pack("<BQ", Opcode.MESSAGE_INDEX, 6) + bytes(6),
        lambda _: bytes(5000),
    ],
)
def test_a_damaged_folder_is_set_aside_by_name_and_left_as_it_is(
    store: EpisodeStore, types: Typestore, dead: Path, spoil: Callable[[bytes], bytes]
) -> None:
    sound = dead.with_name("20261122-105831_t_0002.recording")
    shutil.copytree(dead, sound)
    (sound / f"{ID}_0.mcap").rename(sound / "20261122-105831_t_0002_0.mcap")
    (file,) = dead.glob("*.mcap")
    file.write_bytes(spoil(file.read_bytes()))
    before = content_of(dead)
    error, recovered = store.recover()
    assert isinstance(error, RolloutError) and str(dead) in str(error)
    assert content_of(dead) == before
    assert isinstance(recovered, Recovered) and recovered.messages == 1
    assert len(store.recover()) == 1, "it is named again at the next start"


def foreign(kind: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        if kind == "file":
            path.write_text("x")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path)
        elif kind == "dangling":
            path.symlink_to(path.with_name("nowhere"))
        elif kind == "link to a folder":
            target = path.parent.parent / "elsewhere"
            target.mkdir()
            path.symlink_to(target)
        else:
            path.mkdir()
            file = path / f"{path.stem}_0.mcap"
            {"empty": lambda: None, "pipe within": lambda: os.mkfifo(file)}.get(
                kind, lambda: file.symlink_to("/dev/zero")
            )()

    return make


@pytest.mark.parametrize(
    "kind",
    ["file", "pipe", "loop", "dangling", "link to a folder", "empty", "pipe within", "device"],
)
def test_what_no_recorder_made_is_named_and_left(
    store: EpisodeStore, dead: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store.root / "20200101-000000_x_0007.recording"
    foreign(kind)(path)
    error, recovered = store.recover()
    assert isinstance(error, RolloutError) and str(path) in str(error)
    assert isinstance(recovered, Recovered)
    assert os.path.lexists(path)
    assert cosmos.main(["recover", str(store.root)]) == 1
    assert path.name in capsys.readouterr().err


def test_a_link_out_of_the_folder_is_not_mended(store: EpisodeStore, dead: Path) -> None:
    (file,) = dead.glob("*.mcap")
    outside = store.root.parent / "outside.mcap"
    file.rename(outside)
    file.symlink_to(outside)
    before = outside.read_bytes()
    (error,) = store.recover()
    assert isinstance(error, RolloutError) and outside.read_bytes() == before


def test_a_folder_that_cannot_be_looked_at_is_named(
    store: EpisodeStore, dead: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cosmos_policy_ros.episodes.recovery.FolderLock", refuse)
    (error,) = store.recover()
    assert isinstance(error, RolloutError) and "Permission denied" in str(error)


# ------------------------------------------------------------------------------- labels


def test_any_note_is_one_line_of_the_label_log(episode: Path, types: Typestore) -> None:
    """U+2028, U+2029 and U+0085 broke the file for good."""
    texts = [*LINE_ENDS.split(" "), LINE_ENDS, "\U0001f600", '"\\']
    given = [
        Label(episode.name, 0, "score", 10**18, note=f"a{text}b", operator_name=text)
        for text in texts
    ]
    for number in (1, 2):
        added = add_labels(episode, lambda _: given, types)
        assert added[-1].revision == number * len(texts)
    labels, problems = read_log(episode)
    assert problems == () and [x.note for x in labels] == [f"a{text}b" for text in texts] * 2
    assert read_episode(episode).labels == labels
    assert not [problem for problem in verify(episode, LIMITS).problems if "label" in problem]
    assert (episode / LABEL_LOG).read_bytes().isascii()


def line(**changes: Any) -> bytes:
    return json.dumps({**asdict(Label("e", 1, "score", 10**18, points=1.0)), **changes}).encode()


def test_a_label_log_of_before_is_read(tmp_path: Path) -> None:
    """As written until now, unescaped."""
    written = line(note="a?b").replace(b"?", "\u2028".encode())
    (tmp_path / LABEL_LOG).write_bytes(written + b"\n")
    labels, problems = read_log(tmp_path)
    assert [x.note for x in labels] == ["a\u2028b"] and problems == ()


@pytest.mark.parametrize(
    "bad",
    [
        line(revision="1"),
        line(revision=[1]),
        line(revision=2**32),
        line(revision=-1),
        line(points="nan"),
        line(points=1e400),
        line(success=1),
        line(stamp_ns=2**70),
        line(stamp_ns=-1),
        line(note=3),
        line(note="\udc80"),
        line(note="\0"),
        line(note="x" * 20_000),
        line(kind="praise"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 10_000,
        b"\xff\xfe\0",
        b"",
    ],
)
def test_a_line_that_is_no_label_costs_itself_only(tmp_path: Path, bad: bytes) -> None:
    lines = (line(revision=2), bad, line(), b"")
    (tmp_path / LABEL_LOG).write_bytes(b"\n".join(lines))
    labels, (problem,) = read_log(tmp_path)
    assert [x.revision for x in labels] == [2, 1]
    assert "line 2 is no label and is left out" in problem and len(problem) < 500


def test_a_label_log_that_is_a_pipe_or_endless_is_told(episode: Path) -> None:
    os.mkfifo(episode / LABEL_LOG)
    with pytest.raises(RolloutError, match=r"labels\.jsonl: is a pipe"):
        read_episode(episode)
    (episode / LABEL_LOG).unlink()
    (episode / LABEL_LOG).symlink_to("/dev/zero")
    with pytest.raises(RolloutError, match=r"labels\.jsonl: is a device"):
        read_episode(episode)


def test_a_note_too_long_is_refused_before_it_is_written(
    store: EpisodeStore, episode: Path
) -> None:
    with pytest.raises(RolloutError, match="a text of 10001 characters, at most 10000"):
        store.score(OperatorScore(50, note="x" * 10_001))
    assert not (episode / LABEL_LOG).exists()


# ------------------------------------------------------------------------------- bombs


def packed(records: bytes, compression: str, claims: int = 0) -> Chunk:
    data = {
        "zstd": lambda: zstandard.compress(records),
        "lz4": lambda: lz4.frame.compress(records),
        "": lambda: records,
    }[compression]()
    return Chunk(compression, data, 10**18, 10**18, 0, claims or len(records))


def built(*things: Any) -> bytes:
    builder = RecordBuilder()
    for each in things:
        each.write(builder)
    return bytes(builder.end())  # type: ignore[no-untyped-call]


def bomb(episode: Path, chunks: list[Chunk], listed: list[int]) -> Path:
    """Put chunks into an episode's file in place of its own; ``listed`` are those in the index."""
    file = episode / f"{episode.name}_0.mcap"
    summary = make_reader(io.BytesIO(file.read_bytes())).get_summary()
    assert summary is not None
    channel = next(c for c in summary.channels.values() if c.topic == "/episode")
    schema = summary.schemas[channel.schema_id]
    content = MCAP0_MAGIC + built(Header("ros2", "x"))
    entries = []
    for chunk in chunks:
        record_ = built(chunk)
        entries.append(
            ChunkIndex(
                chunk_length=len(record_),
                chunk_start_offset=len(content),
                compression=chunk.compression,
                compressed_size=len(chunk.data),
                message_end_time=10**18,
                message_index_length=0,
                message_index_offsets={channel.id: len(content) + len(record_)},
                message_start_time=10**18,
                uncompressed_size=chunk.uncompressed_size,
            )
        )
        content += record_
    content += struct.pack("<BQI", Opcode.DATA_END, 4, 0)
    statistics = Statistics(0, 1, {channel.id: 1}, len(listed), 1, 10**18, 10**18, 0, 1)
    index = built(schema, channel, statistics, *[entries[i] for i in listed])
    footer = built(Footer(len(content), 0, 0))
    file.write_bytes(content + index + footer + MCAP0_MAGIC)
    return file


def readers(episode: Path, file: Path) -> Iterator[str]:
    """Yield what each reader of bags says of it; it must say something."""
    checked = CheckedFile(file)
    assert sum(1 for _ in checked.messages()) < 10
    yield "; ".join(checked.problems)
    for read in (
        lambda: read_episode(episode),
        lambda: list(read_messages(episode, ["/episode"])),
        lambda: index_topics([file], ["/episode"]),
    ):
        try:
            read()  # type: ignore[no-untyped-call]
            yield ""
        except RolloutError as error:
            yield str(error)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that are unpacked, call by call."""
    sizes: list[int] = []

    def counted(data: bytes, compression: str, size: int) -> bytes:
        found = unpack(data, compression, size)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(bounds, "unpack", counted)
    return sizes


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_chunk_of_countless_records_is_not_gone_through(episode: Path, compression: str) -> None:
    """Thirty kilobytes kept a check busy for minutes."""
    chunk = packed(JUNK * (1 << 20), compression)
    file = bomb(episode, [chunk], [0])
    told = list(readers(episode, file))
    assert "records its bytes can stand for" in told[0]
    assert all("records its bytes can stand for" in each for each in told[1:3])


@pytest.mark.parametrize("compression", ["zstd", "lz4", ""])
@pytest.mark.parametrize("claims", [1, 2**40, 2**63])
def test_a_chunk_of_another_size_than_it_claims_is_refused(
    episode: Path, compression: str, claims: int, work: list[int]
) -> None:
    file = bomb(episode, [packed(bytes(4_000_000), compression, claims)], [0])
    assert all(list(readers(episode, file))[:3])
    assert not work


def test_a_chunk_listed_a_thousand_times_is_refused(episode: Path) -> None:
    file = bomb(episode, [packed(JUNK, "")], [0] * 1000)
    assert all("where there is no room" in told for told in list(readers(episode, file))[1:])


def test_chunks_that_together_grow_beyond_any_recording_are_refused(
    episode: Path, work: list[int]
) -> None:
    black = packed(built(Message(1, 10**18, bytes(20 << 20), 10**18, 1)), "zstd")
    file = bomb(episode, [black] * 20, list(range(20)))
    told = list(readers(episode, file))
    assert "more than 4000 times as large" in told[0] and sum(work) <= 1 << 28
    assert all("more than 4000 times as large" in each for each in told[1:])


def test_black_images_of_a_dead_camera_are_a_recording(tmp_path: Path) -> None:
    frame = built(Message(1, 10**18, bytes(3 * 640 * 480), 10**18, 1))
    for records in (frame, built(Message(1, 10**18, bytes(25_000_000), 10**18, 1))):
        for compression in ("zstd", "lz4"):
            chunk = packed(records, compression)
            assert unpack(chunk.data, compression, chunk.uncompressed_size) == records


@pytest.mark.parametrize("compression", ["xz", "", "zstd", "lz4"])
def test_what_is_no_packed_chunk_is_refused(compression: str) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        unpack(b"no frame at all", compression, 1000)
    assert not isinstance(caught.value, MemoryError)


def test_a_record_of_an_unknown_kind_is_told(dead: Path) -> None:
    """Where it stood in place of the end of the data, nothing was held against the file."""
    (file,) = dead.glob("*.mcap")
    content = bytearray(file.read_bytes())
    at = chunk_at(content)
    file.write_bytes(content[:at] + JUNK + content[at:])
    checked = CheckedFile(file)
    assert not list(checked.messages())
    assert "a record of the unknown kind 144" in checked.problems[0]


# ------------------------------------------------------------------------------- metadata


def rewritten(episode: Path, old: str, new: str) -> Path:
    path = episode / "metadata.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return episode


@pytest.mark.parametrize(
    ("new", "told"),
    [
        ("/etc/hostname", "not names of files beside it"),
        ("../x/a.mcap", "not names of files beside it"),
        ('"a\\0b"', "not names of files beside it"),
    ],
)
def test_metadata_lead_to_no_other_folder(episode: Path, new: str, told: str) -> None:
    rewritten(
        episode,
        f"relative_file_paths:\n  - {episode.name}_0.mcap",
        f"relative_file_paths:\n  - {new}",
    )
    with pytest.raises(RolloutError, match=told):
        read_episode(episode)
    assert verify(episode, LIMITS).problems


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("storage_identifier: mcap", "storage_identifier: sqlite3", "stored as sqlite3"),
        ("compression_mode: ''", "compression_mode: FILE", "stored as mcap with compressed files"),
        ("version: 8", "version: 10", "version 10 is none that is read here, 9 or older"),
        ("version: 8", "version: '8'", "version 8 is none that is read here"),
        ("format: cdr", "format: json", "serialised as 'json', not as cdr"),
        ("version: 8", "version: " + "[" * 500, "nests more than 32"),
        ("version: 8", "version: !!python/name:os.system x", "has a tag"),
        ("duration:", "durations:", "cannot be read as a bag's metadata"),
        ("since_epoch: 1", "since_epoch: 9" + "9" * 30, "no whole number of 64"),
        ("custom_data:", "custom_data: [1]\n  other:", "custom_data is no mapping"),
        ("\n  files:", "\n  files: 1\n  other:", "files is no list"),
    ],
)
def test_metadata_of_another_kind_are_told(episode: Path, old: str, new: str, told: str) -> None:
    episode = rewritten(episode, old, new)
    with pytest.raises(RolloutError, match=told):
        read_episode(episode)


def test_a_bag_that_lists_no_files_one_by_one_takes_a_label(
    episode: Path, types: Typestore
) -> None:
    """Bags before rosbag2's fifth layout do not; a KeyError left the new file behind."""
    rewritten(episode, "\n  files:", "\n  formerly:")
    label = Label(episode.name, 0, "score", 10**18, points=50.0)
    assert add_labels(episode, lambda _: [label], types) == read_episode(episode).labels


def test_metadata_are_parsed_once(episode: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By rosbags a second time, in every read of an episode."""
    monkeypatch.setattr("rosbags.rosbag2.reader.YAML", None)
    assert read_episode(episode).topics and list(read_messages(episode, ["/episode"]))


def test_metadata_that_are_a_pipe_are_told(episode: Path) -> None:
    path = episode / "metadata.yaml"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RolloutError, match="is a pipe"):
        read_metadata(episode)


@pytest.mark.parametrize(
    "text",
    [
        '{"go": true, "reasons": [], "topics": {"/a": {"dropped": 1e18}}}',
        '{"go": true, "reasons": [], "topics": {"/a": {"dropped": NaN}}}',
        '{"go": true, "reasons": [], "topics": []}',
        '{"go": "yes", "reasons": []}',
        '{"go": true, "reasons": 3}',
        '{"go": true, "reasons": [], "free_gb": Infinity}',
        "[" * 100_000,
        "null",
        "",
    ],
)
def test_a_verdict_of_nonsense_is_none(text: str) -> None:
    """A count of 1e18 dropped messages was counted one by one."""
    if "1e18" in text:
        assert QualityReport.from_json(text).topics["/a"]["dropped"] == 1e18
        return
    with pytest.raises(ValueError, match=r"."):
        QualityReport.from_json(text)


def test_a_verdict_with_countless_losses_is_judged_again_at_once(
    store: EpisodeStore, types: Typestore
) -> None:
    episode = rewritten(record(store, types, 3.0), '"dropped": 0', '"dropped": 1e18')
    verdict = verify(episode, LIMITS).quality
    assert verdict is not None and "dropped" in verdict.text


@pytest.mark.parametrize(
    ("definition", "told"),
    [
        ("a/B[] x\n" + "=" * 80 + "\nMSG: a/B\n", "list of messages without content"),
        ("a/B[4000000000] x\n" + "=" * 80 + "\nMSG: a/B\n", "list of messages without content"),
        ("a/A x\n", "within themselves"),
        ("uint8 x\n" * 100_000, "characters, at most"),
        ("a/Missing x\n", "KeyError"),
    ],
)
def test_a_definition_that_makes_a_reader_loop_is_refused(definition: str, told: str) -> None:
    with pytest.raises(RolloutError, match=told):
        types_of_definition("a/msg/A", definition)


# ------------------------------------------------------------------------------- what is in it


def test_a_row_that_is_due_in_years_makes_no_list_of_years() -> None:
    """It asked for 400 GB."""
    offsets = np.array([40_000_000, 2**31 * 10**9], np.int64)
    with pytest.raises(RolloutError, match="rows"):
        find_steps([Sent("a", 0, offsets, np.zeros((2, 14)))], 0.04)
    many = np.arange(1, 60_001, dtype=np.int64) * 40_000_000
    assert len(find_steps([Sent("a", 0, many, np.zeros((60_000, 14)))], 0.04)) == 60_000


def test_a_message_that_defines_itself_otherwise_is_one_error(
    store: EpisodeStore, types: Typestore
) -> None:
    """The bag says what a JointState is; one without positions ended the command."""
    episode = record(store, types, 0.3)
    (file,) = episode.glob("*.mcap")
    content = file.read_bytes()
    assert b"float64[] position" in content
    spoilt = bytearray(content.replace(b"float64[] position", b"float64[] pisotion"))
    at = chunk_at(content) + 9
    spoilt[at + 24 : at + 28] = bytes(4)
    footer = len(spoilt) - 8 - 20
    spoilt[footer + 16 : footer + 20] = bytes(4)
    file.write_bytes(spoilt)
    windows = EpisodeWindows(read_episode(episode))
    with pytest.raises(RolloutError, match=r"cannot be read as an episode \(AttributeError\)"):
        windows.measured(START_NS + 10**8)


def test_a_pipe_among_the_episodes_or_in_one_hangs_nothing(
    store: EpisodeStore, types: Typestore, metadata: EpisodeMetadata
) -> None:
    os.mkfifo(store.root / "20990101-000000_x_9999")
    for deed in (lambda: store.discard("no"), lambda: store.score(OperatorScore(50))):
        with pytest.raises(RolloutError, match="is no folder"):
            deed()  # type: ignore[no-untyped-call]
    recording = store.begin(metadata, [])
    os.mkfifo(recording.path / "pipe")
    assert recording.finish("stopped").is_dir()
