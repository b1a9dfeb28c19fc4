"""An MCAP file without its end, finished in place: the torn tail cut off, the index rebuilt.

Only headers and message indexes are read, so an hour of images takes seconds. What is cut is what
was never whole: a chunk, a megabyte at most, that the process died in writing.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mcap.data_stream import RecordBuilder
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
from mcap.writer import MCAP0_MAGIC

from cosmos_policy_ros.bags.bounds import (
    RECORD_HEAD,
    Allowance,
    ExactStream,
    chunk_content,
    content,
    read_chunk,
)
from cosmos_policy_ros.bags.mcap_file import HASH_KEY, QOS_KEY, FileContents
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import UnreadableError, open_file, reading

INDEX_HEAD = struct.Struct("<HI")  # channel, bytes of entries
ENTRY_BYTES = 16  # of a message index: stamp and offset
KNOWN = frozenset(opcode.value for opcode in Opcode)
# A torn chunk is as large as the largest message. Behind more than this, something else is broken.
LARGEST_TEAR = 1 << 26
LARGEST_HEAD = 256  # bytes of a chunk before its data, the name of its compression among them


@dataclass
class ScanResult:
    """What is whole of a file.

    Attributes:
        size: of the file, bytes.
        end: offset behind what is whole.
        finished: the file has its index and its end already.
        schemas, channels: by id.
        chunks: the index's entry of every chunk.
        first: of each channel id the first message in the first chunk.
        counts: messages per channel id.
        unindexed: the last chunk, when the records that say what is in it are missing.
    """

    size: int
    end: int = 0
    finished: bool = False
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    chunks: list[ChunkIndex] = field(default_factory=list)
    first: dict[int, Message] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    unindexed: Chunk | None = None

    @property
    def cut_bytes(self) -> int:
        """Of a torn chunk, or of a torn end."""
        return 0 if self.finished else self.size - self.end


def survey(path: Path) -> ScanResult:
    """Look what of a file is whole; nothing is changed.

    Raises:
        RolloutError: it is no MCAP file, nothing in it is whole, or it is damaged far from its end.
    """
    with reading(path, "an MCAP file", RolloutError, "left as it is"), open_file(path) as file:
        whole = _scan(file, file.seek(0, os.SEEK_END))
    if not whole.chunks:
        raise RolloutError(f"{path}: nothing in it is whole, so nothing can be mended")
    if whole.cut_bytes > LARGEST_TEAR:
        raise RolloutError(
            f"{path}: is damaged {whole.end} bytes from its begin, and {whole.cut_bytes} bytes "
            f"lie behind it; left as it is, copy it before trying anything else"
        )
    return whole


def repair_file(path: Path, whole: ScanResult) -> None:
    """Finish a file that its writer could not finish. A finished one stays as it is.

    Args:
        path: of the file.
        whole: what :func:`survey` made of it.

    Raises:
        RolloutError: its end cannot be made; the file is as before.
        OSError: the disk refused; the file can be mended again.
    """
    if whole.finished:
        return
    with reading(path, "an MCAP file", RolloutError, "left as it is"):
        tail = _tail(whole)
    # Not through a link: it would lead to a file that is no part of the episode.
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "r+b") as file:
        file.truncate(whole.end)
        file.seek(whole.end)
        file.write(tail)
        file.flush()
        os.fsync(file.fileno())


def _scan(file: BinaryIO, size: int) -> ScanResult:
    file.seek(0)
    if file.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
        raise UnreadableError("cannot be mended: it does not begin like an MCAP file")
    whole = ScanResult(size, end=len(MCAP0_MAGIC))
    allowance = Allowance(size)
    while size - whole.end >= RECORD_HEAD.size:
        start = whole.end
        file.seek(start)
        opcode, length = RECORD_HEAD.unpack(file.read(RECORD_HEAD.size))
        after = start + RECORD_HEAD.size + length
        if after > size or opcode not in KNOWN:
            break
        if opcode == Opcode.DATA_END:
            whole.finished = _ends_well(file, size)
            break
        if opcode == Opcode.CHUNK:
            _note_chunk(file, whole, start, length)
            allowance.take(whole.chunks[-1].uncompressed_size)
        elif opcode == Opcode.MESSAGE_INDEX:
            _note_index(file, whole, start, length)
        whole.end = after
    _check_last(file, whole)
    return whole


def _ends_well(file: BinaryIO, size: int) -> bool:
    file.seek(size - len(MCAP0_MAGIC))
    return file.read() == MCAP0_MAGIC


def _note_chunk(file: BinaryIO, whole: ScanResult, start: int, length: int) -> None:
    # All but what is packed in it, which may be large and is read of two chunks alone.
    head = content(file, start, min(length, LARGEST_HEAD))
    first, last, uncompressed = head.read8(), head.read8(), head.read8()
    head.read4()
    compression, compressed = head.read_prefixed_string(), head.read8()
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
        for _, record in chunk_records(read_chunk(file, start, whole.size)):
            if isinstance(record, Schema):
                whole.schemas[record.id] = record
            elif isinstance(record, Channel):
                whole.channels[record.id] = record
            elif isinstance(record, Message):
                whole.first.setdefault(record.channel_id, record)


def _note_index(file: BinaryIO, whole: ScanResult, start: int, length: int) -> None:
    channel, entries = INDEX_HEAD.unpack(content(file, start, INDEX_HEAD.size).read(6))
    if not whole.chunks or channel in whole.chunks[-1].message_index_offsets:
        raise UnreadableError(f"cannot be mended: the index at byte {start} is of no chunk")
    if INDEX_HEAD.size + entries != length:
        raise UnreadableError(f"cannot be mended: the index at byte {start} has another length")
    whole.chunks[-1].message_index_offsets[channel] = start
    whole.chunks[-1].message_index_length += RECORD_HEAD.size + length
    whole.counts[channel] = whole.counts.get(channel, 0) + entries // ENTRY_BYTES


def _check_last(file: BinaryIO, whole: ScanResult) -> None:
    """Find out whether the last chunk is whole and its messages are indexed.

    A chunk of the right length may hold nothing: a power cut leaves zeros where data was to come.
    """
    if whole.finished or not whole.chunks:
        return
    last = whole.chunks[-1]
    try:
        whole.unindexed = read_chunk(file, last.chunk_start_offset, whole.size)
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


def _forget_index(file: BinaryIO, whole: ScanResult) -> None:
    """Undo what was noted of the last chunk's index."""
    last = whole.chunks[-1]
    for channel, offset in last.message_index_offsets.items():
        _, entries = INDEX_HEAD.unpack(content(file, offset, INDEX_HEAD.size).read(6))
        whole.counts[channel] -= entries // ENTRY_BYTES
    last.message_index_offsets, last.message_index_length = {}, 0


def chunk_records(chunk: Chunk) -> Iterator[tuple[int, McapRecord]]:
    """Yield the records of a chunk with their offsets in it; its checksum is tested first.

    Raises:
        UnreadableError: the checksum does not fit, nor does its size; and whatever a parser raises
            that is fed damaged bytes.
    """
    data = chunk_content(chunk)
    at = 0
    while at < len(data):
        opcode, size = RECORD_HEAD.unpack_from(data, at)
        begin = at + RECORD_HEAD.size
        if size > len(data) - begin:
            raise UnreadableError(f"a record of {size} bytes where {len(data) - begin} are left")
        stream = ExactStream(data[begin : begin + size])
        if opcode == Opcode.MESSAGE:
            yield at, Message.read(stream, size)
        elif opcode == Opcode.CHANNEL:
            yield at, Channel.read(stream)
        elif opcode == Opcode.SCHEMA:
            yield at, Schema.read(stream)
        at = begin + size


def _tail(whole: ScanResult) -> bytes:
    """Return what an MCAP file ends with: everything a reader needs to find messages."""
    builder = RecordBuilder()
    # The last messages' index was lost with the tail; they are there.
    if whole.unindexed is not None:
        _index_last(builder, whole, whole.unindexed)
    DataEnd(data_section_crc=0).write(builder)
    data_end = _bytes_of(builder)
    start = whole.end + len(data_end)
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
    return data_end + summary + _bytes_of(builder) + MCAP0_MAGIC


def _index_last(builder: RecordBuilder, whole: ScanResult, chunk: Chunk) -> None:
    entries: dict[int, MessageIndex] = {}
    last = whole.chunks[-1]
    for offset, record in chunk_records(chunk):
        if isinstance(record, Message):
            index = entries.setdefault(record.channel_id, MessageIndex(record.channel_id, []))
            index.records.append((record.log_time, offset))
    for channel, index in entries.items():
        last.message_index_offsets[channel] = whole.end + builder.count
        whole.counts[channel] = whole.counts.get(channel, 0) + len(index.records)
        index.write(builder)
    last.message_index_length = builder.count
    whole.unindexed = None


def _statistics(whole: ScanResult) -> Statistics:
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


def contents_of(name: str, whole: ScanResult) -> FileContents:
    """Return what a file of that name holds.

    Raises:
        KeyError: a topic's type is not there.
    """
    counts = dict(whole.counts)
    if whole.unindexed is not None:
        for _, record in chunk_records(whole.unindexed):
            if isinstance(record, Message):
                counts[record.channel_id] = counts.get(record.channel_id, 0) + 1
    topics = {channel.topic: channel for channel in whole.channels.values()}
    return FileContents(
        name=name,
        topics=tuple(_describe(channel, whole) for channel in topics.values()),
        counts={topic: counts.get(channel.id, 0) for topic, channel in topics.items()},
        start_ns=min(chunk.message_start_time for chunk in whole.chunks),
        end_ns=max(chunk.message_end_time for chunk in whole.chunks),
    )


def _describe(channel: Channel, whole: ScanResult) -> Mapping[str, Any]:
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
