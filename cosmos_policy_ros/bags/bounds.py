"""How much work an MCAP file may make for its reader: in proportion to its bytes on the disk.

Thirty kilobytes of zstd can stand for a gigabyte of records of nine bytes each, an index can list
one chunk a million times, and a length of four gigabytes may stand where three bytes are left. Each
is refused here, before it is unpacked.
"""

from __future__ import annotations

import os
import struct
import zlib
from bz2 import BZ2Decompressor
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import zstandard
from lz4.frame import LZ4FrameDecompressor
from mcap import records as mcap
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.summary import Summary
from mcap.writer import MCAP0_MAGIC
from rosbags.rosbag1 import reader as rosbag1_reader
from rosbags.rosbag2 import storage_mcap

from cosmos_policy_ros.bags.mcap_file import QOS_KEY
from cosmos_policy_ros.core.untrusted import UnreadableError, check_yaml, open_file, shown

RECORD_HEAD = struct.Struct("<BQ")  # opcode, length
FOOTER_LENGTH = 20
LARGEST_CHUNK = 256 << 20
"""Bytes of an unpacked chunk: one of ours has 1 MiB and a message, a raw 4K image 25 MB."""
RATIO = 4000
"""Unpacked bytes for one of the file: a dead camera's black images come to about 1200."""
FREE_BYTES = 64 << 20
"""Unpacked bytes that even the smallest file may have, such as one of two black 4K images."""
FREE_RECORDS = 1000
"""Records that a packed chunk may hold besides one for each of its packed bytes: times and counts
differ from message to message, so that each takes three bytes or more."""
MOST_CHANNELS = 2048
"""Topics of a file; readers compare each with each."""

_READERS: dict[int, Callable[[ReadDataStream], Any]] = {
    Opcode.HEADER: mcap.Header.read,
    Opcode.FOOTER: mcap.Footer.read,
    Opcode.SCHEMA: mcap.Schema.read,
    Opcode.CHANNEL: mcap.Channel.read,
    Opcode.CHUNK: mcap.Chunk.read,
    Opcode.MESSAGE_INDEX: mcap.MessageIndex.read,
    Opcode.CHUNK_INDEX: mcap.ChunkIndex.read,
    Opcode.ATTACHMENT: mcap.Attachment.read,
    Opcode.ATTACHMENT_INDEX: mcap.AttachmentIndex.read,
    Opcode.STATISTICS: mcap.Statistics.read,
    Opcode.METADATA: mcap.Metadata.read,
    Opcode.METADATA_INDEX: mcap.MetadataIndex.read,
    Opcode.SUMMARY_OFFSET: mcap.SummaryOffset.read,
    Opcode.DATA_END: mcap.DataEnd.read,
}
_OF_SUMMARY = (Opcode.CHUNK_INDEX, Opcode.CHANNEL, Opcode.SCHEMA, Opcode.STATISTICS)


class ExactStream(ReadDataStream):
    """Bytes of one record: a length that goes beyond them is refused, not cut short."""

    def __init__(self, content: bytes) -> None:
        """Read ``content``."""
        super().__init__(BytesIO(content))
        self._left = len(content)

    def read(self, length: int) -> bytes:
        """Return so many bytes."""
        if not 0 <= length <= self._left:
            raise UnreadableError(f"a length of {length} where {self._left} bytes are left")
        self._left -= length
        data: bytes = super().read(length)
        return data


def parse_record(opcode: int, content: bytes) -> Any:
    """Return the mcap library's record of an opcode and its content; None of an unknown opcode.

    Damaged bytes may raise anything, here and wherever a record is read.
    """
    stream = ExactStream(content)
    if opcode == Opcode.MESSAGE:
        return mcap.Message.read(stream, len(content))
    return _READERS[opcode](stream) if opcode in _READERS else None


def records(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (offset, opcode, length of the content) of each record between two offsets."""
    at = start
    while at < end:
        file.seek(at)
        head = file.read(RECORD_HEAD.size)
        if len(head) < RECORD_HEAD.size:
            raise UnreadableError(f"is cut off at byte {at}")
        opcode, length = RECORD_HEAD.unpack(head)
        if at + RECORD_HEAD.size + length > end:
            raise UnreadableError(f"the record at byte {at} would end behind byte {end}")
        yield at, opcode, length
        at += RECORD_HEAD.size + length


def read_content(file: BinaryIO, at: int, length: int) -> bytes:
    """Return the content of the record at an offset, whose length is known to be there."""
    file.seek(at + RECORD_HEAD.size)
    return file.read(length)


def read_record(file: BinaryIO, at: int, end: int, kind: Opcode) -> Any:
    """Return the record of a kind at an offset of a file of ``end`` bytes."""
    if 0 <= at < end:
        _, opcode, length = next(records(file, at, end))
        if opcode == kind and length <= LARGEST_CHUNK:
            return parse_record(opcode, read_content(file, at, length))
    raise UnreadableError(f"there is no {kind.name.lower()} at byte {at}")


class Allowance:
    """Bytes that may still be unpacked of one file."""

    def __init__(self, file_bytes: int) -> None:
        """Begin with what a file of this size may have."""
        self._left = FREE_BYTES + RATIO * file_bytes

    def take(self, size: int) -> None:
        """Note a chunk; refuse it when it, or all so far together, are too large."""
        if size > LARGEST_CHUNK:
            raise UnreadableError(
                f"has a chunk of {size} unpacked bytes, at most {LARGEST_CHUNK} are read"
            )
        self._left -= size
        if self._left < 0:
            raise UnreadableError(
                f"its chunks are more than {RATIO} times as large unpacked as the file, which no "
                f"recording is"
            )


def unpack(data: bytes, compression: str, size: int) -> bytes:
    """Return the records of a chunk, unpacked; another size than its head says is refused.

    Refused are also more records than so few bytes can stand for.
    """
    if size > LARGEST_CHUNK:
        raise UnreadableError(
            f"a chunk has {size} unpacked bytes, at most {LARGEST_CHUNK} are read"
        )
    if compression == "":
        content = data
    elif compression == "zstd":
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
            content = stream.read(size + 1)
    elif compression == "lz4":
        content = LZ4FrameDecompressor().decompress(data, max_length=size + 1)
    else:
        raise UnreadableError(f"a chunk is compressed as '{shown(compression)}', which is unknown")
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content)}"
        raise UnreadableError(f"the head of a chunk says {size} bytes, it has {found}")
    if compression:
        most = FREE_RECORDS + len(data)
        at = count = 0
        while at < len(content):
            at += RECORD_HEAD.size + RECORD_HEAD.unpack_from(content, at)[1]
            count += 1
            if count > most:
                raise UnreadableError(
                    f"a chunk has more than the {most} records its bytes can stand for"
                )
    return content


# rosbags unpacks a chunk whatever it comes to; here it is given the size to stop at.
storage_mcap.DECOMPRESSORS["zstd"] = lambda data, size: unpack(data, "zstd", size)
storage_mcap.DECOMPRESSORS["lz4"] = lambda data, size: unpack(data, "lz4", size)


def unpack_ros1(data: bytes, decompressor: Any) -> bytes:
    """Return the records of a ROS 1 bag's chunk, unpacked; one that is too large is refused."""
    content: bytes = decompressor.decompress(data, max_length=LARGEST_CHUNK + 1)
    if len(content) > LARGEST_CHUNK:
        raise UnreadableError(f"a chunk has more than {LARGEST_CHUNK} unpacked bytes")
    return content


rosbag1_reader.decompressors["bz2"] = lambda data: unpack_ros1(data, BZ2Decompressor())
rosbag1_reader.decompressors["lz4"] = lambda data: unpack_ros1(data, LZ4FrameDecompressor())


def chunk_content(chunk: mcap.Chunk) -> bytes:
    """Return a chunk's records, unpacked and their checksum tested."""
    data = unpack(chunk.data, chunk.compression, chunk.uncompressed_size)
    if chunk.uncompressed_crc and zlib.crc32(data) != chunk.uncompressed_crc:
        raise UnreadableError("its checksum does not fit")
    return data


def chunk_records(chunk: mcap.Chunk) -> Iterator[tuple[int, mcap.McapRecord]]:
    """Yield a chunk's schemas, channels and messages with their offsets in it."""
    data = chunk_content(chunk)
    at = 0
    while at < len(data):
        opcode, size = RECORD_HEAD.unpack_from(data, at)
        begin = at + RECORD_HEAD.size
        if size > len(data) - begin:
            raise UnreadableError(f"a record of {size} bytes where {len(data) - begin} are left")
        if opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE):
            yield at, parse_record(opcode, data[begin : begin + size])
        at = begin + size


class NoChunksError(UnreadableError):
    """A finished file without an index of chunks, which are needed to find messages."""


def read_summary(path: Path) -> Summary:
    """Return a finished file's index; one that would keep a reader busy for too long is refused.

    Raises:
        NoChunksError: its messages are in no chunks, so that there is no index of them.
        UnreadableError, OSError: it has no index, or none within bounds.
    """
    summary = Summary()
    with open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        end = size - RECORD_HEAD.size - FOOTER_LENGTH - len(MCAP0_MAGIC)
        if end < len(MCAP0_MAGIC):
            raise UnreadableError("is too short to be a finished MCAP file")
        file.seek(end)
        if RECORD_HEAD.unpack(file.read(RECORD_HEAD.size)) != (Opcode.FOOTER, FOOTER_LENGTH):
            raise UnreadableError("does not end like a finished MCAP file")
        start = parse_record(Opcode.FOOTER, file.read(FOOTER_LENGTH)).summary_start
        if not len(MCAP0_MAGIC) <= start <= end:
            raise UnreadableError("has no index at its end")
        allowance = Allowance(size)
        for at, opcode, length in records(file, start, end):
            if opcode not in _OF_SUMMARY:
                continue
            record = parse_record(opcode, read_content(file, at, length))
            if isinstance(record, mcap.ChunkIndex):
                if not RECORD_HEAD.size + record.compressed_size <= record.chunk_length:
                    raise UnreadableError("its index lists a chunk that is larger than itself")
                allowance.take(record.uncompressed_size)
                summary.chunk_indexes.append(record)
            elif isinstance(record, mcap.Channel):
                if len(summary.channels) == MOST_CHANNELS:
                    raise UnreadableError(f"has more than {MOST_CHANNELS} topics")
                check_yaml(record.metadata.get(QOS_KEY, ""))
                summary.channels[record.id] = record
            elif isinstance(record, mcap.Schema):
                summary.schemas[record.id] = record
            else:
                summary.statistics = record
    if not (summary.chunk_indexes and summary.channels and summary.schemas):
        # Readers would scan the whole file instead.
        raise NoChunksError("its index lacks its chunks, its topics or their types")
    free = len(MCAP0_MAGIC)
    for chunk in sorted(summary.chunk_indexes, key=lambda chunk: chunk.chunk_start_offset):
        at = chunk.chunk_start_offset
        if at < free or at + chunk.chunk_length > start:
            raise UnreadableError(f"its index lists a chunk at byte {at} where there is no room")
        free = at + chunk.chunk_length
    return summary
