"""An MCAP file without its end, finished in place: the torn tail cut off, the index rebuilt.

Only headers and message indexes are read, so an hour of images takes seconds. What is cut is what
was never whole: a chunk, a megabyte at most, that the process died in writing.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.records import (
    Channel,
    ChunkIndex,
    DataEnd,
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
    chunk_records,
    read_content,
    read_record,
    read_summary,
)
from cosmos_policy_ros.bags.mcap_file import HASH_KEY, QOS_KEY, describe_bag, describe_topic
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
        first: of each channel id the first message in the first chunk.
        chunks: the index's entry of every chunk.
        counts: messages per channel id, chunk by chunk.
        lost_index: the message index of the last chunk, where the file lacks it.
    """

    size: int
    end: int = len(MCAP0_MAGIC)
    finished: bool = False
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    first: dict[int, Message] = field(default_factory=dict)
    chunks: list[ChunkIndex] = field(default_factory=list)
    counts: list[Counter[int]] = field(default_factory=list)
    lost_index: tuple[MessageIndex, ...] = ()

    @property
    def cut_bytes(self) -> int:
        """Of a torn chunk, or of a torn end."""
        return 0 if self.finished else self.size - self.end

    @property
    def total(self) -> Counter[int]:
        """Messages per channel id."""
        return sum(self.counts, Counter[int]())

    @property
    def span(self) -> tuple[int, int]:
        """Receive stamps [ns] of the first and the last message."""
        first = min(chunk.message_start_time for chunk in self.chunks)
        return first, max(chunk.message_end_time for chunk in self.chunks)


def survey(path: Path) -> ScanResult:
    """Find what of a file is whole; nothing is changed.

    Raises:
        RolloutError: it is no MCAP file, nothing in it is whole, or it is damaged far from its end.
    """
    with reading(path, "an MCAP file", RolloutError, "left as it is"), open_file(path) as file:
        whole = ScanResult(file.seek(0, os.SEEK_END))
        _scan(file, whole)
        if whole.chunks and not whole.finished:
            _check_last(file, whole)
    if not whole.chunks:
        raise RolloutError(f"{path}: nothing in it is whole, so nothing can be mended")
    if whole.cut_bytes > LARGEST_TEAR:
        raise RolloutError(
            f"{path}: is damaged {whole.end} bytes from its begin, and {whole.cut_bytes} bytes "
            f"lie behind it; left as it is, copy it before trying anything else"
        )
    return whole


def _scan(file: BinaryIO, whole: ScanResult) -> None:
    """Go from record to record up to the first that is not whole, reading only what indexes need.

    The last chunk may still be damaged.
    """
    file.seek(0)
    if file.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
        raise UnreadableError("cannot be mended: it does not begin like an MCAP file")
    allowance = Allowance(whole.size)
    while whole.size - whole.end >= RECORD_HEAD.size:
        start = whole.end
        file.seek(start)
        opcode, length = RECORD_HEAD.unpack(file.read(RECORD_HEAD.size))
        after = start + RECORD_HEAD.size + length
        if after > whole.size or opcode not in KNOWN:
            break
        if opcode == Opcode.DATA_END:
            file.seek(whole.size - len(MCAP0_MAGIC))
            whole.finished = file.read() == MCAP0_MAGIC
            break
        if opcode == Opcode.CHUNK:
            # All but what is packed in it, which may be large and is read of two chunks alone.
            head = ExactStream(read_content(file, start, min(length, LARGEST_HEAD)))
            first_ns, last_ns, uncompressed = head.read8(), head.read8(), head.read8()
            head.read4()
            whole.chunks.append(
                ChunkIndex(
                    chunk_length=RECORD_HEAD.size + length,
                    chunk_start_offset=start,
                    compression=head.read_prefixed_string(),
                    compressed_size=head.read8(),
                    message_end_time=last_ns,
                    message_index_length=0,
                    message_index_offsets={},
                    message_start_time=first_ns,
                    uncompressed_size=uncompressed,
                )
            )
            whole.counts.append(Counter())
            allowance.take(uncompressed)
            if len(whole.chunks) == 1:  # the writer declares everything before the first message
                chunk = read_record(file, start, whole.size, Opcode.CHUNK)
                for _, record in chunk_records(chunk):
                    if isinstance(record, Schema):
                        whole.schemas[record.id] = record
                    elif isinstance(record, Channel):
                        whole.channels[record.id] = record
                    elif isinstance(record, Message):
                        whole.first.setdefault(record.channel_id, record)
        elif opcode == Opcode.MESSAGE_INDEX:
            channel, size = INDEX_HEAD.unpack(read_content(file, start, INDEX_HEAD.size))
            if not whole.chunks or channel in whole.chunks[-1].message_index_offsets:
                raise UnreadableError(f"cannot be mended: the index at byte {start} is of no chunk")
            if INDEX_HEAD.size + size != length:
                raise UnreadableError(
                    f"cannot be mended: the index at byte {start} has another length"
                )
            whole.chunks[-1].message_index_offsets[channel] = start
            whole.chunks[-1].message_index_length += RECORD_HEAD.size + length
            whole.counts[-1][channel] = size // ENTRY_BYTES
        whole.end = after


def _check_last(file: BinaryIO, whole: ScanResult) -> None:
    """Find out whether the last chunk is whole and its messages are indexed.

    A chunk of the right length may hold nothing: a power cut leaves zeros where data was to come.
    """
    last = whole.chunks[-1]
    found: dict[int, MessageIndex] = {}
    try:
        chunk = read_record(file, last.chunk_start_offset, whole.size, Opcode.CHUNK)
        for offset, record in chunk_records(chunk):
            if isinstance(record, Message):
                index = found.setdefault(record.channel_id, MessageIndex(record.channel_id, []))
                index.records.append((record.log_time, offset))
    except Exception:  # a parser fed damaged bytes may raise anything
        whole.end = last.chunk_start_offset
        whole.chunks.pop()
        whole.counts.pop()
        return
    if found.keys() != last.message_index_offsets.keys():
        last.message_index_offsets, last.message_index_length = {}, 0
        whole.end = last.chunk_start_offset + last.chunk_length
        whole.lost_index = tuple(found.values())
        whole.counts[-1] = Counter({channel: len(each.records) for channel, each in found.items()})


def repair_file(path: Path, whole: ScanResult) -> None:
    """Finish a file by the result of :func:`survey`; a finished one stays as it is.

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


def _tail(whole: ScanResult) -> bytes:
    """Return what an MCAP file ends with: everything a reader needs to find messages."""
    builder = RecordBuilder()
    last = whole.chunks[-1]
    for index in whole.lost_index:
        last.message_index_offsets[index.channel_id] = whole.end + builder.count
        index.write(builder)
        last.message_index_length = builder.count
    DataEnd(data_section_crc=0).write(builder)
    begin = builder.count  # of the summary, which the footer's checksum covers
    first_ns, last_ns = whole.span
    statistics = Statistics(
        attachment_count=0,
        channel_count=len(whole.channels),
        channel_message_counts=dict(whole.total),
        chunk_count=len(whole.chunks),
        message_count=whole.total.total(),
        message_end_time=last_ns,
        message_start_time=first_ns,
        metadata_count=0,
        schema_count=len(whole.schemas),
    )
    offsets = []
    for opcode, records in (
        (Opcode.SCHEMA, whole.schemas.values()),
        (Opcode.CHANNEL, whole.channels.values()),
        (Opcode.STATISTICS, [statistics]),
        (Opcode.CHUNK_INDEX, whole.chunks),
    ):
        start = builder.count
        for record in records:
            record.write(builder)
        offsets.append(SummaryOffset(opcode, whole.end + start, builder.count - start))
    offset_start = whole.end + builder.count
    for offset in offsets:
        offset.write(builder)
    tail: bytes = builder.end()  # type: ignore[no-untyped-call]
    # The checksum covers the footer up to itself.
    head = struct.pack("<BQQQ", Opcode.FOOTER, 20, whole.end + begin, offset_start)
    checksum = zlib.crc32(head, zlib.crc32(tail[begin:]))
    return tail + head + struct.pack("<I", checksum) + MCAP0_MAGIC


def describe_scan(name: str, whole: ScanResult, notes: Mapping[str, str]) -> dict[str, Any]:
    """Return the metadata of a bag of this file alone; KeyError where a topic's type is lost."""
    channels = {channel.topic: channel for channel in whole.channels.values()}
    topics = [
        describe_topic(
            topic,
            whole.schemas[channel.schema_id].name,
            channel.message_encoding,
            channel.metadata.get(QOS_KEY, ""),
            channel.metadata.get(HASH_KEY, ""),
        )
        for topic, channel in channels.items()
    ]
    total = whole.total
    counts = {topic: total[channel.id] for topic, channel in channels.items()}
    return describe_bag(name, topics, counts, whole.span, notes)


def describe_finished(path: Path) -> dict[str, Any]:
    """Return the metadata of a bag of one finished file alone, by the file's own index.

    Raises:
        RolloutError: it has no index, or one that does not tell its counts.
    """
    with reading(path, "an MCAP file", RolloutError):
        summary = read_summary(path)
        if (statistics := summary.statistics) is None:
            raise UnreadableError("its index lacks its counts")
        topics = [
            describe_topic(
                channel.topic,
                summary.schemas[channel.schema_id].name,
                channel.message_encoding,
                channel.metadata.get(QOS_KEY, ""),
                channel.metadata.get(HASH_KEY, ""),
            )
            for channel in summary.channels.values()
        ]
        counts = {
            channel.topic: statistics.channel_message_counts.get(channel.id, 0)
            for channel in summary.channels.values()
        }
        span = (statistics.message_start_time, statistics.message_end_time)
        return describe_bag(path.name, topics, counts, span, {})
