"""Where every message of a finished bag lies, so that one can be read without the others.

An MCAP file ends with an index of its chunks, and every chunk with one of its messages. Chunks that
are not compressed are never read whole: a message is some bytes at a known place of the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.reader import make_reader
from mcap.records import Chunk, ChunkIndex, MessageIndex
from mcap.summary import Summary
from numpy.typing import NDArray

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts.integrity import header_stamp
from cosmos_policy_ros.rollouts.types import types_of_definition

# Opcode and length, channel, sequence, two times: what stands before a message's own bytes.
_RECORD_HEAD = 9
_MESSAGE_HEAD = _RECORD_HEAD + 2 + 4 + 8 + 8
_STAMP_BYTES = 12  # of a serialised message: encapsulation, seconds, nanoseconds
_CHUNKS_KEPT = 16  # decompressed, a megabyte each: neighbours in time lie in the same ones


class Place(NamedTuple):
    """A message's record: its file, its chunk, and its offset in there."""

    file: Path
    chunk: ChunkIndex
    offset: int


@dataclass(frozen=True)
class IndexedTopic:
    """The messages of one topic in the order of their header stamps.

    Attributes:
        msgtype: such as "sensor_msgs/msg/Image".
        definition: the type as the bag itself defines it.
        stamps_ns: (n,) header stamps, ascending.
        received_ns: (n,) receive stamps.
        places: of the same messages.
    """

    msgtype: str
    definition: str
    stamps_ns: NDArray[np.int64]
    received_ns: NDArray[np.int64]
    places: tuple[Place, ...]

    def newest(self, stamp_ns: int) -> int:
        """Return the index of the newest message stamped at ``stamp_ns`` or before; -1: none."""
        return int(np.searchsorted(self.stamps_ns, stamp_ns, side="right")) - 1

    def read(self, index: int) -> Any:
        """Return one message.

        Raises:
            RolloutError: the file has changed or is damaged there.
        """
        place = self.places[index]
        try:
            types = types_of_definition(self.msgtype, self.definition)
            return types.deserialize_cdr(_message(place), self.msgtype)
        except RolloutError:
            raise
        except Exception as error:  # a parser fed damaged bytes may raise anything
            raise RolloutError(
                f"{place.file}: the {self.msgtype} at {self.stamps_ns[index]} ns cannot be read "
                f"({type(error).__name__}: {error}); 'episodes verify' tells what else is damaged"
            ) from error


def index_topics(files: Iterable[Path], topics: Iterable[str]) -> dict[str, IndexedTopic]:
    """Index some topics of a finished bag's files; all their messages begin with a header.

    Reads twelve bytes of each message where chunks are not compressed.

    Raises:
        RolloutError: a file has no index or is damaged.
    """
    wanted = set(topics)
    found: dict[str, list[tuple[int, int, Place]]] = {topic: [] for topic in wanted}
    kinds: dict[str, tuple[str, str]] = {}
    for file in files:
        try:
            _index_file(file, wanted, found, kinds)
        except (OSError, McapError, ValueError, KeyError, EOFError, zstandard.ZstdError) as error:
            raise RolloutError(
                f"{file}: its index cannot be read ({type(error).__name__}: {error}); "
                f"'scripts/recover' rebuilds it"
            ) from error
    return {
        topic: _indexed(*kinds.get(topic, ("", "")), sorted(messages, key=lambda m: m[0]))
        for topic, messages in found.items()
    }


def _indexed(msgtype: str, definition: str, found: list[tuple[int, int, Place]]) -> IndexedTopic:
    return IndexedTopic(
        msgtype,
        definition,
        np.array([stamp for stamp, _, _ in found], np.int64),
        np.array([received for _, received, _ in found], np.int64),
        tuple(place for _, _, place in found),
    )


def _index_file(
    file: Path,
    wanted: set[str],
    found: Mapping[str, list[tuple[int, int, Place]]],
    kinds: dict[str, tuple[str, str]],
) -> None:
    with file.open("rb") as stream:
        summary = make_reader(stream).get_summary()
        if summary is None:
            raise ValueError("there is none")
        channels = {i: c.topic for i, c in summary.channels.items() if c.topic in wanted}
        for i, topic in channels.items():
            kinds[topic] = _kind(summary, i)
        for chunk in summary.chunk_indexes:
            for channel, at in chunk.message_index_offsets.items():
                if channel not in channels:
                    continue
                stream.seek(at + _RECORD_HEAD)
                for received_ns, offset in MessageIndex.read(ReadDataStream(stream)).records:
                    place = Place(file, chunk, offset)
                    stamp_ns = header_stamp(_read(place, _MESSAGE_HEAD, _STAMP_BYTES))
                    found[channels[channel]].append((stamp_ns, received_ns, place))


def _kind(summary: Summary, channel: int) -> tuple[str, str]:
    schema = summary.schemas[summary.channels[channel].schema_id]
    return schema.name, schema.data.decode()


def _message(place: Place) -> bytes:
    head = _read(place, 0, _RECORD_HEAD)
    if head[0] != Opcode.MESSAGE:
        raise RolloutError(f"{place.file}: no message where its index says; was it changed?")
    length = int.from_bytes(head[1:], "little") + _RECORD_HEAD - _MESSAGE_HEAD
    return _read(place, _MESSAGE_HEAD, length)


def _read(place: Place, start: int, length: int) -> bytes:
    """Return ``length`` bytes of a message's record from ``start`` on."""
    at = place.offset + start
    if place.chunk.compression:
        data = _decompressed(place.file, place.chunk.chunk_start_offset)[at : at + length]
    else:
        chunk = place.chunk
        records = chunk.chunk_start_offset + chunk.chunk_length - chunk.compressed_size
        descriptor = os.open(place.file, os.O_RDONLY)
        try:
            data = os.pread(descriptor, length, records + at)
        finally:
            os.close(descriptor)
    if len(data) != length:
        raise EOFError(f"{place.file}: ends in the middle of a message")
    return data


@lru_cache(maxsize=_CHUNKS_KEPT)
def _decompressed(file: Path, chunk_at: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(chunk_at + _RECORD_HEAD)
        chunk = Chunk.read(ReadDataStream(stream))
    if chunk.compression != "zstd":
        raise ValueError(f"chunks compressed with '{chunk.compression}' are not known; use zstd")
    return zstandard.decompress(chunk.data, max_output_size=chunk.uncompressed_size)
