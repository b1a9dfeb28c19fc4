"""The files of a bag in any storage and compression that rosbag2 writes, read without its metadata.

What is recorded here is plain MCAP. Tools turn that into sqlite3, compress whole files or single
messages, leave chunks away, and cut files off; all of it is read in one way, from a file's first
message to the last that is whole.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, BinaryIO, NamedTuple

import lz4.frame
import zstandard
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, Message, Schema
from mcap.writer import MCAP0_MAGIC
from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinitionFormat
from rosbags.rosbag2.metadata import dump_qos_v8
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader
from rosbags.typesys.store import Typestore
from ruamel.yaml import YAML

from cosmos_policy_ros.bags.bounds import (
    LARGEST_CHUNK,
    Allowance,
    NoChunksError,
    chunk_records,
    parse_record,
    read_content,
    read_record,
    read_summary,
    records,
)
from cosmos_policy_ros.bags.check import CheckedFile
from cosmos_policy_ros.bags.mcap_file import Declaration
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import UnreadableError, check_yaml, open_file, reading, shown

PACKED = ".zstd"
STORAGES = {".mcap": "mcap", ".db3": "sqlite3"}
# What compressed files and messages begin with; no serialised message does: CDR's first byte is 0.
ZSTD_MAGIC, LZ4_MAGIC = b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"
# Bytes of a file, or of its chunks unpacked: where a recorder's first messages are, and how far one
# is searched that has no index to find them by.
AT_BEGIN, SEARCHED = 4 << 20, 32 << 20
MOST_TEXT = 4 << 20  # bytes of embedded metadata; a hundred topics make 40 kB
UNPACKED_HEAD = 4 << 20  # bytes of a compressed file that are unpacked to see what it is
_BLOCK = 1 << 20  # bytes
_NUMBER = re.compile(r"_(\d{1,9})$")


def storage_of(name: str) -> str:
    """Return the storage that a file's name tells; empty when it is no file of a bag."""
    return STORAGES.get(PurePath(name.removesuffix(PACKED)).suffix, "")


def storage_files(folder: Path) -> tuple[Path, ...]:
    """Return a bag's files, in the order of the numbers in their names; raises OSError."""
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if storage_of(entry.name) and not entry.name.startswith(".") and entry.is_file()
        ]

    def order(name: str) -> tuple[int, str]:
        stem = PurePath(name.removesuffix(PACKED)).stem
        number = _NUMBER.search(stem)
        return int(number[1]) if number else -1, name

    return tuple(folder / name for name in sorted(names, key=order))


class FirstMessage(NamedTuple):
    """The first message of a topic: its type, the type's definition, its bytes.

    The definition is empty in a file that holds none; ``packed`` says that messages are compressed.
    """

    msgtype: str
    definition: str
    cdr: bytes
    packed: bool


def first_message(file: Path, topic: str) -> FirstMessage | None:
    """Return the first message of a topic that is written early, without reading the whole file.

    Returns:
        None when it is in no index, nor among the first :data:`SEARCHED` bytes of a file without
        one, or the file is a compressed one of another storage than MCAP.

    Raises:
        UnreadableError, OSError: the file is no bag, or damaged before that message.
    """
    with open_file(file) as stream:
        if file.name.endswith(PACKED):
            if storage_of(file.name) != "mcap":
                return None
            with zstandard.ZstdDecompressor().stream_reader(stream) as unpacked:
                head = unpacked.read(UNPACKED_HEAD)
            found = _first_of_mcap(BytesIO(head), len(head), topic, SEARCHED)
        elif storage_of(file.name) == "mcap":
            size = os.fstat(stream.fileno()).st_size
            found = _first_of_mcap(stream, size, topic, AT_BEGIN)
            try:
                found = found or _first_by_index(file, topic)
            except UnreadableError as error:
                found = _first_of_mcap(stream, size, topic, SEARCHED)
                if found is None and not isinstance(error, NoChunksError):
                    raise
        else:
            found = _first_of_sqlite(stream, topic)
    if found is None or not is_packed(found.cdr):
        return found
    return found._replace(cdr=unpack_message(found.cdr), packed=True)


def _first_of_mcap(file: BinaryIO, size: int, topic: str, most: int) -> FirstMessage | None:
    file.seek(0)
    if file.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
        raise UnreadableError("does not begin like an MCAP file")
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    unpacked = 0
    for at, opcode, length in records(file, len(MCAP0_MAGIC), size):
        if opcode == Opcode.DATA_END or at > most:
            break
        if opcode not in (Opcode.CHUNK, Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE):
            continue
        if length > LARGEST_CHUNK:
            raise UnreadableError(f"a record of {length} bytes at byte {at}")
        record = parse_record(opcode, read_content(file, at, length))
        if isinstance(record, Chunk):
            unpacked += record.uncompressed_size
            if unpacked > most:
                break
            found = [inner for _, inner in chunk_records(record)]
        else:
            found = [record]
        for each in found:
            if isinstance(each, Schema):
                schemas[each.id] = each
            elif isinstance(each, Channel):
                channels[each.id] = each
            elif isinstance(each, Message) and each.channel_id in channels:
                channel = channels[each.channel_id]
                if channel.topic == topic and channel.schema_id in schemas:
                    schema = schemas[channel.schema_id]
                    definition = schema.data.decode(errors="replace")
                    return FirstMessage(schema.name, definition, each.data, packed=False)
    return None


def _first_by_index(path: Path, topic: str) -> FirstMessage | None:
    summary = read_summary(path)
    wanted = {channel.id for channel in summary.channels.values() if channel.topic == topic}
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        for index in summary.chunk_indexes:
            if wanted.isdisjoint(index.message_index_offsets):
                continue
            chunk = read_record(file, index.chunk_start_offset, size, Opcode.CHUNK)
            for _, record in chunk_records(chunk):
                if isinstance(record, Message) and record.channel_id in wanted:
                    schema = summary.schemas[summary.channels[record.channel_id].schema_id]
                    definition = schema.data.decode(errors="replace")
                    return FirstMessage(schema.name, definition, record.data, packed=False)
    return None


def _first_of_sqlite(file: BinaryIO, topic: str) -> FirstMessage | None:
    try:
        with closing(sqlite3.connect(f"file:{_named(file)}?immutable=1", uri=True)) as database:
            known = database.execute("SELECT id, type FROM topics WHERE name = ?", (topic,))
            if (listed := known.fetchone()) is None:
                return None
            row = database.execute(
                "SELECT data FROM messages WHERE topic_id = ? ORDER BY timestamp LIMIT 1",
                listed[:1],
            ).fetchone()
            if row is None:
                return None
            names = database.execute("SELECT name FROM sqlite_master").fetchall()
            definition = None
            if ("message_definitions",) in names:
                definition = database.execute(
                    "SELECT encoded_message_definition FROM message_definitions "
                    "WHERE topic_type = ? AND encoding = 'ros2msg'",
                    listed[1:],
                ).fetchone()
    except sqlite3.Error as error:
        raise UnreadableError(f"cannot be read as sqlite3 ({type(error).__name__})") from error
    msgtype, cdr = listed[1], row[0]
    text = definition[0] if definition else ""
    if not (isinstance(msgtype, str) and isinstance(text, str) and isinstance(cdr, bytes)):
        raise UnreadableError("its tables hold values of other types than rosbag2's")
    return FirstMessage(msgtype, text, cdr, packed=False)


def _named(file: BinaryIO) -> str:
    """Return a name of an open file that needs no quoting in an address, whatever its own is."""
    return f"/proc/self/fd/{file.fileno()}"


def embedded_notes(file: Path) -> dict[str, str]:
    """Return the ``custom_data`` that a finished MCAP file itself holds, as far as it can be read.

    A recorder writes the bag's metadata into the file as well, before those beside it.
    """
    with suppress(Exception), open_file(file) as stream:  # parsers fed damaged bytes raise anything
        size = os.fstat(stream.fileno()).st_size
        for at, opcode, length in records(stream, len(MCAP0_MAGIC), size):
            if opcode != Opcode.METADATA or length > MOST_TEXT:
                continue
            record = parse_record(opcode, read_content(stream, at, length))
            text = record.metadata.get("serialized_metadata", "")
            check_yaml(text)
            told = YAML(typ="safe").load(text).get("custom_data") or {}
            return {str(key): str(value) for key, value in told.items()}
    return {}


def is_packed(head: bytes) -> bool:
    """Return whether a file or message that begins so is compressed."""
    return head.startswith((ZSTD_MAGIC, LZ4_MAGIC))


def unpack_message(data: bytes) -> bytes:
    """Return the content of a message, at most :data:`LARGEST_CHUNK` bytes if it is compressed."""
    if data.startswith(ZSTD_MAGIC):
        with zstandard.ZstdDecompressor().stream_reader(data) as stream:
            content = stream.read(LARGEST_CHUNK + 1)
    elif data.startswith(LZ4_MAGIC):
        content = lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=LARGEST_CHUNK + 1)
    else:
        return data
    if len(content) > LARGEST_CHUNK:
        raise UnreadableError(f"a message of more than {LARGEST_CHUNK} unpacked bytes")
    return bytes(content)


def unpack_file(packed: Path, target: Path) -> str:
    """Write what a compressed file holds; return what is wrong with it, "" for nothing.

    Of one that was cut off, or is damaged, everything before that is written.

    Raises:
        UnreadableError: it is larger than any recording would be.
        OSError: the disk refused.
    """
    with open_file(packed) as file, target.open("wb") as plain:
        allowance = Allowance(os.fstat(file.fileno()).st_size)
        head = file.read(len(ZSTD_MAGIC))
        file.seek(0)
        stream: Any = (
            zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            if head == ZSTD_MAGIC
            else lz4.frame.open(file)
        )
        while True:
            try:
                block = stream.read1(_BLOCK)
            except EOFError:  # cut off: the content shows what is missing
                return ""
            except (zstandard.ZstdError, RuntimeError):  # the latter is lz4's
                return "its compression is damaged"
            if not block:
                return ""
            allowance.take(len(block))
            plain.write(block)


def whole_database(file: Path, place: Path) -> Path:
    """Return where to read an sqlite3 file whose name may be anything, and that may be unfinished.

    Args:
        file: of the bag; nothing is written to it.
        place: a folder for a link to it, or a copy that SQLite finishes with its journal.

    Raises:
        UnreadableError: it was cut off.
        OSError: the disk refused.
    """
    with open_file(file) as stream:
        head, size = stream.read(100), os.fstat(stream.fileno()).st_size
    page, changed, pages, valid_for = struct.unpack(">16xH6xII60xI", head[:96])
    stated = pages * (page if page > 1 else 1 << 16)
    if changed == valid_for and size < stated:
        raise UnreadableError(f"was cut off: {size} of {stated} bytes are there; copy it again")
    target = Path(mkdtemp(dir=place)) / "bag.db3"
    beside = [file.with_name(file.name + ending) for ending in ("-wal", "-journal")]
    if not any(path.is_file() and path.stat().st_size for path in beside):
        target.symlink_to(file.resolve())
        return target
    # Its recorder died: SQLite finishes a copy, journal included.
    for path in (file, *beside):
        if path.is_file():
            shutil.copyfile(path, target.with_name(target.name + path.name[len(file.name) :]))
    with closing(sqlite3.connect(target)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        database.execute("PRAGMA journal_mode=DELETE").fetchall()
    return target


class StoredMessage(NamedTuple):
    """A message of a file: its topic as the file declares it, its receive stamp, its bytes."""

    topic: Declaration
    stamp_ns: int
    cdr: bytes


class StoredFile:
    """Reads one file of a bag whole.

    Attributes:
        path: of the file.
        problems: what is wrong with it, one sentence each; complete once all messages were taken.
        declared: its topics by name, those without a message too; complete likewise.
    """

    def __init__(self, path: Path, types: Typestore) -> None:
        """Prepare to read ``path``; ``types`` are for messages that a file does not define."""
        self.path = path
        self.problems: list[str] = []
        self.declared: Mapping[str, Declaration] = {}
        self._types = types

    def messages(self, scratch: Path) -> Iterator[StoredMessage]:
        """Yield what can be read, in the order of the file; its problems are then known.

        Args:
            scratch: a folder where what has to be made of the file is; removed again.

        Raises:
            RolloutError: nothing of it can be read, or it is a damaged database.
            OSError: the disk refused.
        """
        with TemporaryDirectory(dir=scratch) as folder:
            file = self.path
            if file.name.endswith(PACKED):
                file = Path(folder) / file.name.removesuffix(PACKED)
                with reading(self.path, "a compressed file", RolloutError):
                    if wrong := unpack_file(self.path, file):
                        self.problems.append(f"{self.path.name}: {wrong}")
            left = Allowance(file.stat().st_size)
            mcap = storage_of(file.name) == "mcap"
            for message in self._read_mcap(file) if mcap else self._sqlite(file, Path(folder)):
                if not is_packed(message.cdr):
                    yield message
                    continue
                with reading(self.path, "a compressed message", RolloutError):
                    content = unpack_message(message.cdr)
                    left.take(len(content))
                yield message._replace(cdr=content)

    def _read_mcap(self, file: Path) -> Iterator[StoredMessage]:
        checked = CheckedFile(file)
        declared: dict[str, Declaration] = {}
        schemas: dict[str, Schema] = {}
        for topic, schema, stamp_ns, cdr in checked.messages():
            if schema.encoding not in ("ros2msg", ""):
                raise RolloutError(
                    f"{self.path}: topic '{shown(topic)}' is defined as {shown(schema.encoding)}, "
                    f"only ros2msg is read"
                )
            if topic not in declared:
                declared[topic], schemas[topic] = checked.declarations()[topic], schema
            if schema is not schemas[topic] and schema != schemas[topic]:
                raise RolloutError(f"{self.path}: topic '{shown(topic)}' has two types")
            yield StoredMessage(declared[topic], stamp_ns, cdr)
        self.declared = {**checked.declarations(), **declared}
        self.problems += checked.problems

    def _sqlite(self, file: Path, folder: Path) -> Iterator[StoredMessage]:
        with self._open_sqlite(file, folder) as reader:
            connections = {each.id: self._declaration(each) for each in reader.connections}
            self.declared = {each.name: each for each in connections.values()}
            rows = reader.messages(reader.connections)
            while True:
                with reading(self.path, "a database of messages", RolloutError, "copy it again"):
                    row = next(rows, None)
                if row is None:
                    return
                connection, stamp_ns, cdr = row
                yield StoredMessage(connections[connection.id], stamp_ns, cdr)

    @contextmanager
    def _open_sqlite(self, file: Path, folder: Path) -> Iterator[Sqlite3Reader]:
        with reading(self.path, "a database of messages", RolloutError, "copy it again"):
            reader = Sqlite3Reader(whole_database(file, folder))
            reader.open()
        try:
            yield reader
        finally:
            reader.close()

    def _declaration(self, connection: Connection) -> Declaration:
        msgtype, definition = connection.msgtype, connection.msgdef
        known = msgtype in self._types.fielddefs
        if definition.format == MessageDefinitionFormat.MSG:
            text = definition.data
        elif known:
            text, _ = self._types.generate_msgdef(msgtype, ros_version=2)
        else:
            raise RolloutError(
                f"{self.path}: holds no definition of {shown(msgtype)} that is read here"
            )
        digest = connection.digest or (self._types.hash_rihs01(msgtype) if known else "")
        extension = connection.ext
        assert isinstance(extension, ConnectionExtRosbag2)
        qos = dump_qos_v8(extension.offered_qos_profiles)
        return Declaration(connection.topic, msgtype, text, digest, qos)
