"""An MCAP file without its end, finished in place: the torn tail cut off, the index rebuilt.

Only headers and message indexes are read, so an hour of pictures takes seconds. What is cut is what
was never whole: a chunk, a megabyte at most, that the process died in writing.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from mcap.data_stream import ReadDataStream, RecordBuilder
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import (
    Channel,
    Chunk,
    ChunkIndex,
    DataEnd,
    Footer,
    McapRecord,
    Message,
    MessageIndex,
    Schema,
    Statistics,
    SummaryOffset,
)
from mcap.stream_reader import get_chunk_data_stream
from mcap.writer import MCAP0_MAGIC

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts.mcap_file import HASH_KEY, QOS_KEY, FileContents

RECORD_HEAD = struct.Struct("<BQ")  # opcode, length
CHUNK_HEAD = struct.Struct("<QQQII")  # first and last stamp, size, checksum, length of compression
INDEX_HEAD = struct.Struct("<HI")  # channel, bytes of entries
ENTRY_BYTES = 16  # of a message index: stamp and offset
KNOWN = frozenset(opcode.value for opcode in Opcode)
# A torn chunk is as large as the largest message. Behind more than this, something else is broken.
LARGEST_TEAR = 1 << 26


@dataclass
class Whole:
    """What is whole of a file.

    Attributes:
        end: offset behind it.
        finished: the file has its index and its end already.
        schemas, channels: by id.
        chunks: the index's entry of every chunk.
        counts: messages per channel id.
        unindexed: the last chunk, when the records that say what is in it are missing.
    """

    end: int = 0
    finished: bool = False
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    chunks: list[ChunkIndex] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    unindexed: Chunk | None = None


@dataclass(frozen=True)
class Mended:
    """A file that is finished now.

    Attributes:
        contents: what it holds.
        cut_bytes: of a torn chunk, or of a torn end.
        finished_before: nothing was to be done.
    """

    contents: FileContents
    cut_bytes: int
    finished_before: bool


def mend(path: Path) -> Mended:
    """Finish a file that its writer could not finish. A finished one stays as it is.

    Raises:
        RolloutError: it is no MCAP file, or nothing in it is whole.
        OSError: the disk refused; the file can be mended again.
    """
    size = path.stat().st_size
    cut = 0
    with path.open("r+b") as file:
        try:
            whole = _scan(file, size)
        except (McapError, struct.error, UnicodeDecodeError, ValueError) as error:
            raise RolloutError(f"{path}: cannot be mended, it is damaged: {error}") from error
        if not whole.chunks:
            raise RolloutError(f"{path}: nothing in it is whole, so nothing can be mended")
        if not whole.finished:
            if size - whole.end > LARGEST_TEAR:
                raise RolloutError(
                    f"{path}: is damaged {whole.end} bytes from its begin, and {size - whole.end} "
                    f"bytes lie behind it; left as it is, copy it before trying anything else"
                )
            cut = size - whole.end
            file.truncate(whole.end)
            file.seek(whole.end)
            # The last messages' index was lost with the tail; they are there.
            if whole.unindexed is not None:
                _index_last(file, whole)
            _finish(file, whole)
            file.flush()
            os.fsync(file.fileno())
    return Mended(_contents(path, whole), cut, whole.finished)


def _scan(file: BinaryIO, size: int) -> Whole:
    if file.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
        raise ValueError("it does not begin like an MCAP file")
    whole = Whole(end=len(MCAP0_MAGIC))
    while size - file.tell() >= RECORD_HEAD.size:
        start = file.tell()
        opcode, length = RECORD_HEAD.unpack(file.read(RECORD_HEAD.size))
        after = start + RECORD_HEAD.size + length
        if after > size or opcode not in KNOWN:
            break
        if opcode == Opcode.DATA_END:
            whole.finished = _ends_well(file, size)
            break
        if opcode == Opcode.CHUNK:
            _note_chunk(file, whole, start, length)
        elif opcode == Opcode.MESSAGE_INDEX:
            _note_index(file, whole, start, RECORD_HEAD.size + length)
        file.seek(after)
        whole.end = after
    _check_last(file, whole)
    return whole


def _ends_well(file: BinaryIO, size: int) -> bool:
    file.seek(size - len(MCAP0_MAGIC))
    return file.read() == MCAP0_MAGIC


def _note_chunk(file: BinaryIO, whole: Whole, start: int, length: int) -> None:
    first, last, uncompressed, _, letters = CHUNK_HEAD.unpack(file.read(CHUNK_HEAD.size))
    compression = file.read(letters).decode()
    (compressed,) = struct.unpack("<Q", file.read(8))
    whole.chunks.append(
        ChunkIndex(
            chunk_length=RECORD_HEAD.size + length,
            chunk_start_offset=start,
            compression=compression,
            compressed_size=compressed,
            message_end_time=last,
            message_index_length=0,
            message_index_offsets={},
            message_start_time=first,
            uncompressed_size=uncompressed,
        )
    )
    if len(whole.chunks) == 1:  # the writer declares everything before the first message
        for _, record in chunk_records(_read_chunk(file, whole.chunks[0])):
            if isinstance(record, Schema):
                whole.schemas[record.id] = record
            elif isinstance(record, Channel):
                whole.channels[record.id] = record


def _note_index(file: BinaryIO, whole: Whole, start: int, length: int) -> None:
    channel, entries = INDEX_HEAD.unpack(file.read(INDEX_HEAD.size))
    whole.chunks[-1].message_index_offsets[channel] = start
    whole.chunks[-1].message_index_length += length
    whole.counts[channel] = whole.counts.get(channel, 0) + entries // ENTRY_BYTES


def _check_last(file: BinaryIO, whole: Whole) -> None:
    """Find out whether the last chunk is whole and its messages are indexed.

    A chunk of the right length may hold nothing: a power cut leaves zeros where data was to come.
    """
    if whole.finished or not whole.chunks:
        return
    last = whole.chunks[-1]
    try:
        whole.unindexed = _read_chunk(file, last)
        records = [record for _, record in chunk_records(whole.unindexed)]
    except Exception:  # a parser fed damaged bytes may raise anything
        _forget_index(file, whole)
        whole.end, whole.unindexed = last.chunk_start_offset, None
        whole.chunks.pop()
        return
    if {r.channel_id for r in records if isinstance(r, Message)} == set(last.message_index_offsets):
        whole.unindexed = None
        return
    _forget_index(file, whole)
    whole.end = last.chunk_start_offset + last.chunk_length


def _forget_index(file: BinaryIO, whole: Whole) -> None:
    """Undo what was noted of the last chunk's index."""
    last = whole.chunks[-1]
    for channel, offset in last.message_index_offsets.items():
        file.seek(offset + RECORD_HEAD.size)
        _, entries = INDEX_HEAD.unpack(file.read(INDEX_HEAD.size))
        whole.counts[channel] -= entries // ENTRY_BYTES
    last.message_index_offsets, last.message_index_length = {}, 0


def _read_chunk(file: BinaryIO, index: ChunkIndex) -> Chunk:
    file.seek(index.chunk_start_offset + RECORD_HEAD.size)
    content = file.read(index.chunk_length - RECORD_HEAD.size)
    chunk: Chunk = Chunk.read(ReadDataStream(BytesIO(content)))
    return chunk


def chunk_records(chunk: Chunk) -> Iterator[tuple[int, McapRecord]]:
    """Yield the records of a chunk with their offsets in it; its checksum is tested first.

    Raises:
        CRCValidationError: the checksum does not fit.
        ValueError: nor does its size; and whatever a parser raises that is fed damaged bytes.
    """
    stream, length = get_chunk_data_stream(chunk, validate_crc=True)
    if length != chunk.uncompressed_size:
        raise ValueError(f"its head says {chunk.uncompressed_size} bytes, it has {length}")
    while (offset := stream.count) < length:
        opcode, size = stream.read1(), stream.read8()
        if opcode == Opcode.MESSAGE:
            yield offset, Message.read(stream, size)
        elif opcode == Opcode.CHANNEL:
            yield offset, Channel.read(stream)
        elif opcode == Opcode.SCHEMA:
            yield offset, Schema.read(stream)
        else:
            stream.read(size)


def _index_last(file: BinaryIO, whole: Whole) -> None:
    assert whole.unindexed is not None
    entries: dict[int, MessageIndex] = {}
    last, start = whole.chunks[-1], whole.end
    for offset, record in chunk_records(whole.unindexed):
        if isinstance(record, Message):
            index = entries.setdefault(record.channel_id, MessageIndex(record.channel_id, []))
            index.records.append((record.log_time, offset))
    builder = RecordBuilder()
    for channel, index in entries.items():
        last.message_index_offsets[channel] = start + builder.count
        whole.counts[channel] = whole.counts.get(channel, 0) + len(index.records)
        index.write(builder)
    last.message_index_length = builder.count
    file.write(_bytes_of(builder))


def _finish(file: BinaryIO, whole: Whole) -> None:
    """Write what an MCAP file ends with: everything a reader needs to find messages."""
    builder = RecordBuilder()
    DataEnd(data_section_crc=0).write(builder)
    file.write(_bytes_of(builder))
    start = file.tell()
    groups = (
        (Opcode.SCHEMA, list(whole.schemas.values())),
        (Opcode.CHANNEL, list(whole.channels.values())),
        (Opcode.STATISTICS, [_statistics(whole)]),
        (Opcode.CHUNK_INDEX, whole.chunks),
    )
    offsets = []
    for opcode, records in groups:
        before = builder.count
        for record in records:
            record.write(builder)
        offsets.append(
            SummaryOffset(
                group_opcode=opcode,
                group_start=start + before,
                group_length=builder.count - before,
            )
        )
    offset_start = start + builder.count
    for offset in offsets:
        offset.write(builder)
    summary = _bytes_of(builder)
    # The checksum covers the footer up to itself.
    footer = struct.pack("<BQQQ", Opcode.FOOTER, 20, start, offset_start)
    Footer(start, offset_start, zlib.crc32(footer, zlib.crc32(summary))).write(builder)
    file.write(summary + _bytes_of(builder) + MCAP0_MAGIC)


def _statistics(whole: Whole) -> Statistics:
    return Statistics(
        attachment_count=0,
        channel_count=len(whole.channels),
        channel_message_counts=whole.counts,
        chunk_count=len(whole.chunks),
        message_count=sum(whole.counts.values()),
        message_end_time=max(chunk.message_end_time for chunk in whole.chunks),
        message_start_time=min(chunk.message_start_time for chunk in whole.chunks),
        metadata_count=0,
        schema_count=len(whole.schemas),
    )


def _contents(path: Path, whole: Whole) -> FileContents:
    topics = {channel.topic: channel for channel in whole.channels.values()}
    return FileContents(
        name=path.name,
        topics=tuple(_describe(channel, whole) for channel in topics.values()),
        counts={name: whole.counts.get(channel.id, 0) for name, channel in topics.items()},
        start_ns=min(chunk.message_start_time for chunk in whole.chunks),
        end_ns=max(chunk.message_end_time for chunk in whole.chunks),
    )


def _describe(channel: Channel, whole: Whole) -> Mapping[str, Any]:
    return {
        "name": channel.topic,
        "type": whole.schemas[channel.schema_id].name,
        "serialization_format": channel.message_encoding,
        "offered_qos_profiles": channel.metadata.get(QOS_KEY, ""),
        "type_description_hash": channel.metadata.get(HASH_KEY, ""),
    }


def _bytes_of(builder: RecordBuilder) -> bytes:
    """Take what was built; the builder is empty then."""
    built: bytes = builder.end()  # type: ignore[no-untyped-call]
    return built
