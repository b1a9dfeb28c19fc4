"""Whether an MCAP file is as it was written: every checksum, every index, every count.

A reader that goes by the index sees only what the index says; this reads the file from its first
byte to its last and holds the index against it.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mcap.opcode import Opcode
from mcap.records import (
    Channel,
    Chunk,
    ChunkIndex,
    DataEnd,
    Footer,
    Message,
    MessageIndex,
    Schema,
    Statistics,
)
from mcap.writer import MCAP0_MAGIC

from cosmos_policy_ros.bags.bounds import (
    LARGEST_CHUNK,
    RECORD_HEAD,
    Allowance,
    chunk_records,
    parse_record,
)
from cosmos_policy_ros.bags.mcap_file import HASH_KEY, QOS_KEY, Declaration
from cosmos_policy_ros.core.untrusted import UnreadableError, open_file

CHECKSUM_BYTES = 4  # the footer's last field


class Received(NamedTuple):
    """A message of a file: its topic, its type and definition, its receive stamp, its bytes."""

    topic: str
    schema: Schema
    stamp_ns: int
    cdr: bytes


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
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._chunks: list[int] = []  # their offsets, and as the index at the end lists them
        self._listed_chunks: list[int] = []
        # Of the chunk last read: (stamp, offset) of every message by channel, as found and listed.
        self._found: dict[int, list[tuple[int, int]]] = {}
        self._listed: dict[int, list[tuple[int, int]]] = {}
        self._stated = 0  # messages, by the file's own statistics
        self._footer: Footer | None = None

    def messages(self) -> Iterator[Received]:
        """Yield what can be read, in the order it was written."""
        try:
            with open_file(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                for at, record in self._records(file, size):
                    if isinstance(record, Chunk):
                        self._check_message_index()
                        yield from self._open(record, at)
                    elif isinstance(record, Message):  # of a recorder that makes no chunks
                        yield from self._received(record, f"the message at byte {at}")
                    else:
                        self._note(record)
                if self._footer is not None:  # else the damage was told
                    self._check_message_index()
                    self._check_end(file, size, self._footer)
        except (OSError, UnreadableError) as error:
            self._complain(f"cannot be read: {getattr(error, 'strerror', None) or error}")

    def declarations(self) -> dict[str, Declaration]:
        """Return the topics declared so far, by name; those of an unknown type are left out."""
        found = {}
        for channel in self._channels.values():
            if (schema := self._schemas.get(channel.schema_id)) is not None:
                found[channel.topic] = Declaration(
                    channel.topic,
                    schema.name,
                    schema.data.decode(errors="replace"),
                    channel.metadata.get(HASH_KEY, ""),
                    channel.metadata.get(QOS_KEY, ""),
                )
        return found

    def _records(self, file: BinaryIO, size: int) -> Iterator[tuple[int, Any]]:
        """Yield (offset, record) up to and with the footer, or up to the first damage."""
        allowance = Allowance(size)
        at = len(MCAP0_MAGIC)
        try:
            magic = file.read(len(MCAP0_MAGIC))
            if magic != MCAP0_MAGIC:
                raise UnreadableError("it does not begin like an MCAP file")
            checksum = zlib.crc32(magic)
            opcode = 0
            while opcode != Opcode.FOOTER:
                at = file.tell()
                head = file.read(RECORD_HEAD.size)
                if len(head) < RECORD_HEAD.size:
                    raise UnreadableError("it has no end")
                opcode, length = RECORD_HEAD.unpack(head)
                left = size - file.tell()
                if length > min(LARGEST_CHUNK, left):
                    raise UnreadableError(f"a record of {length} bytes, {left} are left")
                data = file.read(length)
                record = parse_record(opcode, data)
                if record is None:  # else a damaged end of the data would be passed over
                    raise UnreadableError(f"a record of the unknown kind {opcode}")
                if isinstance(record, DataEnd) and record.data_section_crc not in (0, checksum):
                    raise UnreadableError("the checksum of its data does not fit")
                if isinstance(record, Chunk):
                    allowance.take(record.uncompressed_size)
                if isinstance(record, Footer) and file.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
                    raise UnreadableError("it does not end like an MCAP file")
                yield at, record
                checksum = zlib.crc32(data, zlib.crc32(head, checksum))
        except OSError:
            raise
        except Exception as error:  # a parser fed damaged bytes may raise anything
            self._complain(f"is damaged or cut off at byte {at} of {size}: {_name(error)}")

    def _open(self, chunk: Chunk, at: int) -> Iterator[Received]:
        self._chunks.append(at)
        try:
            records = list(chunk_records(chunk))
        except Exception as error:  # as above
            self._complain(f"the chunk at byte {at} is damaged: {_name(error)}")
            return
        stamps = [record.log_time for _, record in records if isinstance(record, Message)]
        stated = (chunk.message_start_time, chunk.message_end_time)
        if stamps and (min(stamps), max(stamps)) != stated:
            self._complain(f"the chunk at byte {at} spans another time than its head says")
        for offset, record in records:
            if not isinstance(record, Message):
                self._note(record)
                continue
            self._found.setdefault(record.channel_id, []).append((record.log_time, offset))
            yield from self._received(record, f"a message of the chunk at byte {at}")

    def _received(self, record: Message, where: str) -> Iterator[Received]:
        stamp_ns = record.log_time
        channel = self._channels.get(record.channel_id)
        schema = self._schemas.get(channel.schema_id) if channel else None
        if channel is None or schema is None:
            self._complain(f"{where} has no topic or no type")
            return
        self.counts[channel.topic] += 1
        first, last = self.stamps or (stamp_ns, stamp_ns)
        self.stamps = min(first, stamp_ns), max(last, stamp_ns)
        yield Received(channel.topic, schema, stamp_ns, record.data)

    def _note(self, record: Any) -> None:
        match record:
            case Schema():
                self._schemas[record.id] = record
            case Channel():
                self._channels[record.id] = record
            case MessageIndex():
                self._listed[record.channel_id] = list(record.records)
            case ChunkIndex():
                self._listed_chunks.append(record.chunk_start_offset)
            case Statistics():
                self._stated = record.message_count
            case Footer():
                self._footer = record

    def _check_message_index(self) -> None:
        """Hold the message index behind a chunk against the chunk."""
        listed = {channel: sorted(entries) for channel, entries in self._listed.items() if entries}
        found = {channel: sorted(entries) for channel, entries in self._found.items()}
        if found and listed != found:
            self._complain(
                f"the index of the chunk at byte {self._chunks[-1]} is not its messages'"
            )
        self._found, self._listed = {}, {}

    def _check_end(self, file: BinaryIO, size: int, footer: Footer) -> None:
        """Hold the index at the end against what was found."""
        if extra := size - file.tell():
            self._complain(f"{extra} bytes lie behind its end")
        start, checksum = footer.summary_start, footer.summary_crc
        if not start:
            self._complain("has no index")
            return
        end = size - extra - len(MCAP0_MAGIC) - CHECKSUM_BYTES
        if start > end:
            self._complain("the index at its end is damaged: it would begin behind its end")
            return
        file.seek(start)
        if checksum and zlib.crc32(file.read(end - start)) != checksum:
            self._complain("the index at its end is damaged: its checksum does not fit")
        if sorted(self._listed_chunks) != self._chunks:
            self._complain(
                f"the index at its end lists {len(self._listed_chunks)} chunks, of which not all "
                f"are where the {len(self._chunks)} found are"
            )
        if self._stated != self.counts.total():
            self._complain(
                f"says that it holds {self._stated} messages, {self.counts.total()} are sound"
            )

    def _complain(self, problem: str) -> None:
        self.problems.append(f"{self.path.name}: {problem}")


def _name(error: Exception) -> str:
    """Return an error's text; that of a library may quote the file, so of those the type alone."""
    return str(error) if isinstance(error, UnreadableError) else type(error).__name__
