"""Whether an MCAP file is as it was written: every checksum, every index, every count.

A reader that goes by the index sees only what the index says; this reads the file from its first
byte to its last and holds the index against it.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mcap.opcode import Opcode
from mcap.records import (
    Attachment,
    AttachmentIndex,
    Channel,
    Chunk,
    ChunkIndex,
    DataEnd,
    Footer,
    Header,
    McapRecord,
    Message,
    MessageIndex,
    Metadata,
    MetadataIndex,
    Schema,
    Statistics,
    SummaryOffset,
)
from mcap.writer import MCAP0_MAGIC

from cosmos_policy_ros.bags.bounds import LARGEST_CHUNK, RECORD_HEAD, Allowance, ExactStream
from cosmos_policy_ros.bags.repair import chunk_records
from cosmos_policy_ros.core.untrusted import UnreadableError, open_file

_READERS: dict[int, Callable[[ExactStream], Any]] = {
    Opcode.HEADER: Header.read,
    Opcode.FOOTER: Footer.read,
    Opcode.SCHEMA: Schema.read,
    Opcode.CHANNEL: Channel.read,
    Opcode.CHUNK: Chunk.read,
    Opcode.MESSAGE_INDEX: MessageIndex.read,
    Opcode.CHUNK_INDEX: ChunkIndex.read,
    Opcode.ATTACHMENT: Attachment.read,
    Opcode.ATTACHMENT_INDEX: AttachmentIndex.read,
    Opcode.STATISTICS: Statistics.read,
    Opcode.METADATA: Metadata.read,
    Opcode.METADATA_INDEX: MetadataIndex.read,
    Opcode.SUMMARY_OFFSET: SummaryOffset.read,
    Opcode.DATA_END: DataEnd.read,
}
CHECKSUM_BYTES = 4  # the footer's last field


class Received(NamedTuple):
    """A message of a file: its topic, its type and definition, its receive stamp, its bytes."""

    topic: str
    schema: Schema
    stamp_ns: int
    cdr: bytes


@dataclass
class _Seen:
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    chunks: list[int] = field(default_factory=list)
    listed_chunks: list[int] = field(default_factory=list)
    # Of the chunk last read: (stamp, offset) of every message, by channel.
    entries: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    listed: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    statistics: Statistics | None = None
    footer: Footer | None = None


class CheckedFile:
    """Reads a file whole.

    Attributes:
        path: of the file.
        problems: what is wrong with it, one sentence each; complete once all messages were taken.
        counts: messages by topic, so far.
        stamps: receive stamps [ns] of the earliest and the latest message, so far.
    """

    def __init__(self, path: Path) -> None:
        """Prepare to read ``path``."""
        self.path = path
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        self.stamps: tuple[int, int] | None = None
        self._seen = _Seen()

    def messages(self) -> Iterator[Received]:
        """Yield what can be read, in the order it was written."""
        try:
            with open_file(self.path) as file:
                yield from self._messages(file, os.fstat(file.fileno()).st_size)
        except (OSError, UnreadableError) as error:
            self._complain(f"cannot be read: {getattr(error, 'strerror', None) or error}")

    def _messages(self, file: BinaryIO, size: int) -> Iterator[Received]:
        allowance = Allowance(size)
        records = self._records(file, size)
        while True:
            at = max(file.tell(), len(MCAP0_MAGIC))
            try:
                record = next(records, None)
                if isinstance(record, Chunk):
                    allowance.take(record.uncompressed_size)
            except OSError:
                raise
            except Exception as error:  # a parser fed damaged bytes may raise anything
                self._complain(f"is damaged or cut off at byte {at} of {size}: {_name(error)}")
                return
            if record is None:
                break
            if isinstance(record, Chunk):
                self._check_index()
                yield from self._open(record, at)
            else:
                self._note(record)
        self._check_index()
        self._check_end(file, size)

    def _records(self, file: BinaryIO, size: int) -> Iterator[McapRecord]:
        """Yield what the file holds, up to and with its footer."""
        magic = file.read(len(MCAP0_MAGIC))
        if magic != MCAP0_MAGIC:
            raise UnreadableError("it does not begin like an MCAP file")
        checksum = zlib.crc32(magic)
        footer = False
        while not footer:
            head = file.read(RECORD_HEAD.size)
            if len(head) < RECORD_HEAD.size:
                raise UnreadableError("it has no end")
            opcode, length = RECORD_HEAD.unpack(head)
            if length > min(LARGEST_CHUNK, size - file.tell()):
                raise UnreadableError(f"a record of {length} bytes, {size - file.tell()} are left")
            data = file.read(length)
            stream = ExactStream(data)
            if opcode == Opcode.MESSAGE:
                yield Message.read(stream, length)
            elif opcode in _READERS:
                record = _READERS[opcode](stream)
                if isinstance(record, DataEnd) and record.data_section_crc not in (0, checksum):
                    raise UnreadableError("the checksum of its data does not fit")
                yield record
            checksum = zlib.crc32(data, zlib.crc32(head, checksum))
            footer = opcode == Opcode.FOOTER
        if file.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
            raise UnreadableError("it does not end like an MCAP file")

    def _open(self, chunk: Chunk, at: int) -> Iterator[Received]:
        self._seen.chunks.append(at)
        try:
            records = list(chunk_records(chunk))
        except Exception as error:  # as above
            self._complain(f"the chunk at byte {at} is damaged: {_name(error)}")
            return
        stamps = [record.log_time for _, record in records if isinstance(record, Message)]
        if stamps and (min(stamps), max(stamps)) != (
            chunk.message_start_time,
            chunk.message_end_time,
        ):
            self._complain(f"the chunk at byte {at} spans another time than its head says")
        for offset, record in records:
            if not isinstance(record, Message):
                self._note(record)
                continue
            entry = (record.log_time, offset)
            self._seen.entries.setdefault(record.channel_id, []).append(entry)
            channel = self._seen.channels.get(record.channel_id)
            schema = self._seen.schemas.get(channel.schema_id) if channel else None
            if channel is None or schema is None:
                self._complain(f"the chunk at byte {at} has a message without topic or type")
                continue
            self._count(channel.topic, record.log_time)
            yield Received(channel.topic, schema, record.log_time, record.data)

    def _count(self, topic: str, stamp_ns: int) -> None:
        self.counts[topic] += 1
        first, last = self.stamps or (stamp_ns, stamp_ns)
        self.stamps = min(first, stamp_ns), max(last, stamp_ns)

    def _note(self, record: McapRecord) -> None:
        seen = self._seen
        if isinstance(record, Schema):
            seen.schemas[record.id] = record
        elif isinstance(record, Channel):
            seen.channels[record.id] = record
        elif isinstance(record, MessageIndex):
            seen.listed[record.channel_id] = list(record.records)
        elif isinstance(record, ChunkIndex):
            seen.listed_chunks.append(record.chunk_start_offset)
        elif isinstance(record, Statistics):
            seen.statistics = record
        elif isinstance(record, Footer):
            seen.footer = record

    def _check_index(self) -> None:
        """Hold the message index behind a chunk against the chunk."""
        seen = self._seen
        listed = {channel: sorted(entries) for channel, entries in seen.listed.items() if entries}
        found = {channel: sorted(entries) for channel, entries in seen.entries.items()}
        if found and listed != found:
            self._complain(f"the index of the chunk at byte {seen.chunks[-1]} is not its messages'")
        seen.entries, seen.listed = {}, {}

    def _check_end(self, file: BinaryIO, size: int) -> None:
        seen = self._seen
        if extra := size - file.tell():
            self._complain(f"{extra} bytes lie behind its end")
        if seen.footer is None or not seen.footer.summary_start:
            self._complain("has no index")
            return
        summary_end = size - extra - len(MCAP0_MAGIC) - CHECKSUM_BYTES
        if seen.footer.summary_start > summary_end:
            self._complain("the index at its end is damaged: it would begin behind its end")
            return
        file.seek(seen.footer.summary_start)
        summary = file.read(summary_end - seen.footer.summary_start)
        if seen.footer.summary_crc and zlib.crc32(summary) != seen.footer.summary_crc:
            self._complain("the index at its end is damaged: its checksum does not fit")
        if sorted(seen.listed_chunks) != seen.chunks:
            self._complain(
                f"the index at its end lists {len(seen.listed_chunks)} chunks, of which not all "
                f"are where the {len(seen.chunks)} found are"
            )
        stated = seen.statistics.message_count if seen.statistics else 0
        if stated != self.counts.total():
            self._complain(f"says that it holds {stated} messages, {self.counts.total()} are sound")

    def _complain(self, problem: str) -> None:
        self.problems.append(f"{self.path.name}: {problem}")


def _name(error: Exception) -> str:
    """Tell an error; one of a library may quote the file."""
    return str(error) if isinstance(error, UnreadableError) else type(error).__name__
