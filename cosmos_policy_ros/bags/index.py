"""Where every message of a finished bag lies, so that one can be read without the others.

An MCAP file ends with an index of its chunks, and every chunk with one of its messages. Of a chunk
that is not compressed a message is some bytes at a known place of the file; the chunk is read whole
once, before the first of them, for its checksum.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from mcap.opcode import Opcode
from numpy.typing import NDArray

from cosmos_policy_ros.bags.bounds import (
    LARGEST_CHUNK,
    RECORD_HEAD,
    chunk_content,
    read_record,
    read_summary,
)
from cosmos_policy_ros.bags.mcap_file import REBUILD, VERIFY
from cosmos_policy_ros.bags.messages import HEADER_BYTES, header_stamp
from cosmos_policy_ros.bags.types import types_of_definition
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import UnreadableError, open_file, reading

# Before a message's own bytes: the record's head, channel, sequence, two times.
_MESSAGE_HEAD = RECORD_HEAD.size + 2 + 4 + 8 + 8
_CHUNKS_KEPT = 16  # decompressed, a megabyte each: neighbours in time lie in the same ones
_CHUNKS_KNOWN = 1 << 16  # whose checksum fits: 64 GB of them; others are read whole again


class MessageLocation(NamedTuple):
    """Where a message's record is.

    Attributes:
        file: index into the topic's files.
        chunk: offset of its chunk's record in the file.
        records: offset of the chunk's records in the file; -1 if they are compressed.
        offset: of the message's record among them.
    """

    file: int
    chunk: int
    records: int
    offset: int


@dataclass(frozen=True)
class IndexedTopic:
    """The messages of one topic in the order of their header stamps.

    Arrays, since a data set has millions of messages and every loading process a copy of them.

    Attributes:
        msgtype: such as "sensor_msgs/msg/Image".
        definition: the type as the bag itself defines it.
        files: of the bag.
        stamps_ns: (n,) header stamps, ascending.
        received_ns: (n,) receive stamps.
        places: (n, 4) the fields of :class:`MessageLocation`.
    """

    msgtype: str
    definition: str
    files: tuple[Path, ...]
    stamps_ns: NDArray[np.int64]
    received_ns: NDArray[np.int64]
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def newest(self, stamp_ns: int) -> int:
        """Return the index of the newest message stamped at ``stamp_ns`` or before; -1: none."""
        return int(np.searchsorted(self.stamps_ns, stamp_ns, side="right")) - 1

    def read(self, index: int) -> Any:
        """Return one message.

        Raises:
            RolloutError: the file has changed or is damaged there.
        """
        place = MessageLocation(*self.places[index].tolist())
        file = self.files[place.file]
        where = f"{file}: the {self.msgtype} at {self.stamps_ns[index]} ns cannot be read"
        with reading(where, self.msgtype, RolloutError, VERIFY):
            types = types_of_definition(self.msgtype, self.definition)
            if place.records >= 0:
                _check_sum(file, place.chunk)
            with file.open("rb", buffering=0) as stream:
                opcode, size = RECORD_HEAD.unpack(_read(file, stream, place, 0, RECORD_HEAD.size))
                if opcode != Opcode.MESSAGE:
                    raise UnreadableError("no message where its index says; was the file changed?")
                length = size + RECORD_HEAD.size - _MESSAGE_HEAD
                if not 0 <= length <= LARGEST_CHUNK:
                    raise UnreadableError(f"a message of {length} bytes")
                cdr = _read(file, stream, place, _MESSAGE_HEAD, length)
            return types.deserialize_cdr(cdr, self.msgtype)


def index_topics(files: Iterable[Path], topics: Iterable[str]) -> dict[str, IndexedTopic]:
    """Index some topics of a finished bag's files; all their messages begin with a header.

    Reads twelve bytes of each message where chunks are not compressed.

    Raises:
        RolloutError: a file has no index or is damaged.
    """
    files = tuple(files)
    schemas = dict.fromkeys(topics, ("", ""))
    rows: dict[str, list[tuple[int, ...]]] = {topic: [] for topic in schemas}
    for number, file in enumerate(files):
        with reading(f"{file}: its index cannot be read", "an index", RolloutError, REBUILD):
            summary = read_summary(file)
            wanted = {i: c.topic for i, c in summary.channels.items() if c.topic in rows}
            for channel, topic in wanted.items():
                schema = summary.schemas[summary.channels[channel].schema_id]
                schemas[topic] = schema.name, schema.data.decode()
            with open_file(file) as stream:
                size = os.fstat(stream.fileno()).st_size
                for chunk in summary.chunk_indexes:
                    at = chunk.chunk_start_offset
                    begin = at + chunk.chunk_length - chunk.compressed_size
                    records = -1 if chunk.compression else begin
                    # One that lists more messages than it has bytes for would be read for ever.
                    left = chunk.uncompressed_size // _MESSAGE_HEAD
                    for channel, index_at in chunk.message_index_offsets.items():
                        if channel not in wanted:
                            continue
                        listed = read_record(stream, index_at, size, Opcode.MESSAGE_INDEX).records
                        left -= len(listed)
                        if left < 0:
                            raise UnreadableError(
                                "a chunk's index lists more messages than it can have"
                            )
                        for received_ns, offset in listed:
                            place = MessageLocation(number, at, records, offset)
                            head = _read(file, stream, place, _MESSAGE_HEAD, HEADER_BYTES)
                            rows[wanted[channel]].append((header_stamp(head), received_ns, *place))
    indexed = {}
    with reading(files[0].parent if files else "a bag", "a bag", RolloutError, VERIFY):
        for topic, found in rows.items():
            table = np.array(found, np.int64).reshape(-1, 2 + len(MessageLocation._fields))
            table = table[np.argsort(table[:, 0], kind="stable")]
            stamps_ns, received_ns, places = table[:, 0], table[:, 1], table[:, 2:]
            indexed[topic] = IndexedTopic(*schemas[topic], files, stamps_ns, received_ns, places)
    return indexed


def _read(file: Path, stream: IO[bytes], place: MessageLocation, start: int, length: int) -> bytes:
    """Return ``length`` bytes of a message's record from ``start`` on, of the open ``file``."""
    at = place.offset + start
    if place.records < 0:
        data = _content(file, place.chunk)[at : at + length]
    else:
        data = os.pread(stream.fileno(), length, place.records + at)
    if len(data) != length:
        raise UnreadableError("it ends in the middle of a message")
    return data


@lru_cache(maxsize=_CHUNKS_KNOWN)
def _check_sum(file: Path, chunk_at: int) -> None:
    _content.__wrapped__(file, chunk_at)  # not kept: messages are read from the file itself


@lru_cache(maxsize=_CHUNKS_KEPT)
def _content(file: Path, chunk_at: int) -> bytes:
    with open_file(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        return chunk_content(read_record(stream, chunk_at, size, Opcode.CHUNK))
