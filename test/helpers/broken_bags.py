"""Episodes as other tools and bad days leave them: converted, compressed, cut off, parts lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zstandard
from helpers.episodes import Writing
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from rosbags.interfaces import ConnectionExtRosbag2
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.episodes.folders import State
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore

Message = tuple[str, int, bytes]


def record_scored(store: EpisodeStore, types: Typestore, size: int = 224) -> Path:
    """Record an episode with a late score; return its folder.

    One camera has ``size`` pixels each way: with the default, the recording has some chunks.
    """
    writing = Writing(store, types)
    writing.seconds(0.6, without="primary")
    for at in range(0, 600, 40):
        pixels = np.random.default_rng(at).integers(0, 256, (size, size, 3), np.uint8)
        writing.image("primary", at, pixels)
    path = writing.recording.finish("time_limit")
    store.score(OperatorScore(75.0, True, note="late"), episode=path.name)
    return path


def messages_of(folder: Path) -> list[Message]:
    """Return (topic, stamp, bytes) of all messages of a bag, sorted."""
    with Reader(folder) as reader:
        return sorted((c.topic, stamp, bytes(cdr)) for c, stamp, cdr in reader.messages())


def convert(
    folder: Path, storage: StoragePlugin, mode: CompressionMode = CompressionMode.NONE
) -> None:
    """Replace a bag by what ``rosbags-convert`` makes of it: messages alone, in another storage."""
    source = folder.rename(folder.with_name("source"))
    with Reader(source) as reader:
        writer = Writer(folder, version=9, storage_plugin=storage)
        if mode is not CompressionMode.NONE:
            writer.set_compression(mode, CompressionFormat.ZSTD)
        with writer:
            made = {}
            for each in reader.connections:
                assert isinstance(each.ext, ConnectionExtRosbag2)
                made[each.topic] = writer.add_connection(
                    each.topic,
                    each.msgtype,
                    msgdef=each.msgdef.data,
                    rihs01=each.digest,
                    offered_qos_profiles=each.ext.offered_qos_profiles,
                )
            for connection, stamp, cdr in reader.messages():
                writer.write(made[connection.topic], stamp, cdr)
    shutil.rmtree(source)


def _recording(folder: Path) -> Path:
    (file,) = folder.glob("*_0.mcap")
    return file


def cut(folder: Path, part: float = 0.6) -> None:
    """Cut the recording off, as a copy that was interrupted."""
    file = _recording(folder)
    content = file.read_bytes()
    file.write_bytes(content[: round(part * len(content))])


def zeroed(folder: Path) -> None:
    """Leave the recording its length, and nothing in its last part."""
    file = _recording(folder)
    content = file.read_bytes()
    kept = round(0.6 * len(content))
    file.write_bytes(content[:kept] + bytes(len(content) - kept))


def bit_lost(folder: Path) -> None:
    """Change a byte in the middle of the recording: its index is whole."""
    file = _recording(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_metadata(folder: Path) -> None:
    """Delete ``metadata.yaml``."""
    (folder / "metadata.yaml").unlink()


def without_chunks(folder: Path) -> None:
    """Write the recording anew as the storage preset 'fastwrite' does, and cut its index off."""
    file = _recording(folder)
    with Reader(folder) as reader, file.with_suffix(".new").open("xb") as stream:
        writer = McapWriter(stream, use_chunking=False, compression=CompressionType.NONE)
        writer.start("ros2", "test")
        channels = {}
        for each in reader.connections:
            schema = writer.register_schema(each.msgtype, "ros2msg", each.msgdef.data.encode())
            channels[each.topic] = writer.register_channel(each.topic, "cdr", schema)
        for connection, stamp, cdr in reader.messages():
            if connection.topic != "/episode/label":
                writer.add_message(channels[connection.topic], stamp, bytes(cdr), stamp)
        writer.finish()  # type: ignore[no-untyped-call]
    file.with_suffix(".new").replace(file)


def pack_file(folder: Path) -> None:
    """Compress the recording by hand, and tell ``metadata.yaml`` nothing."""
    file = _recording(folder)
    packed = zstandard.ZstdCompressor().compress(file.read_bytes())
    file.with_name(file.name + ".zstd").write_bytes(packed)
    file.unlink()


class Broken(NamedTuple):
    """A way to break an episode: what does it, the state it is in then, whether messages go."""

    do: Callable[[Path], object]
    state: State
    loses: bool = False


def _both(*deeds: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [deed(folder) for deed in deeds]


MCAP, SQLITE = StoragePlugin.MCAP, StoragePlugin.SQLITE3
FILE, MESSAGE = CompressionMode.FILE, CompressionMode.MESSAGE
BROKEN = {
    "metadata lost": Broken(lose_metadata, State.METADATA_LOST),
    "metadata empty": Broken(lambda f: (f / "metadata.yaml").write_bytes(b""), State.DAMAGED),
    "cut": Broken(cut, State.DAMAGED, True),
    "end cut": Broken(lambda f: cut(f, 0.99999), State.DAMAGED),
    "cut, metadata lost": Broken(_both(cut, lose_metadata), State.METADATA_LOST, True),
    "zeros": Broken(zeroed, State.DAMAGED, True),
    "label file lost": Broken(lambda f: next(f.glob("*_1.mcap")).unlink(), State.DAMAGED),
    "label file and log lost": Broken(
        _both(lambda f: next(f.glob("*_1.mcap")).unlink(), lambda f: (f / "labels.jsonl").unlink()),
        State.DAMAGED,
        True,
    ),
    "sqlite3": Broken(lambda f: convert(f, SQLITE), State.OTHER_STORAGE),
    "sqlite3, metadata lost": Broken(
        _both(lambda f: convert(f, SQLITE), lose_metadata), State.METADATA_LOST
    ),
    "sqlite3, compressed file": Broken(lambda f: convert(f, SQLITE, FILE), State.OTHER_STORAGE),
    "sqlite3, compressed messages": Broken(
        lambda f: convert(f, SQLITE, MESSAGE), State.OTHER_STORAGE
    ),
    "mcap, compressed file": Broken(lambda f: convert(f, MCAP, FILE), State.OTHER_STORAGE),
    "mcap, compressed file, metadata lost": Broken(
        _both(lambda f: convert(f, MCAP, FILE), lose_metadata), State.METADATA_LOST
    ),
    "mcap, compressed messages": Broken(lambda f: convert(f, MCAP, MESSAGE), State.OTHER_STORAGE),
    "mcap, compressed messages, metadata lost": Broken(
        _both(lambda f: convert(f, MCAP, MESSAGE), lose_metadata), State.METADATA_LOST
    ),
    "no chunks": Broken(without_chunks, State.DAMAGED),
    "packed by hand": Broken(pack_file, State.DAMAGED),
}
