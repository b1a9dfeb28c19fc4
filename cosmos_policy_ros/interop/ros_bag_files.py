"""The messages of a bag that another recorder wrote, however it is stored, compressed and split.

Files are known by their first bytes, and packed messages by theirs, so that nothing depends on a
``metadata.yaml`` that may be lost. MCAP files are read from their first byte to their last, which
finds what is whole of one that was cut; SQLite and ROS 1 files are read by rosbags. No file of the
source is ever written to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from rosbags.interfaces import Connection, MessageDefinitionFormat, Nodetype
from rosbags.rosbag1 import Reader as Rosbag1Reader
from rosbags.rosbag1 import ReaderError as Rosbag1ReaderError
from rosbags.rosbag2 import Reader as Rosbag2Reader
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.msg import normalize_msgtype
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.bounds import read_summary
from cosmos_policy_ros.bags.check import CheckedFile
from cosmos_policy_ros.bags.messages import check_stamp
from cosmos_policy_ros.bags.storages import (
    is_packed,
    unpack_file,
    unpack_message,
    whole_database,
)
from cosmos_policy_ros.bags.types import types_of_definition
from cosmos_policy_ros.bags.writer import METADATA
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import (
    UnreadableError,
    check_file,
    open_file,
    parse_yaml,
    read_text,
    reading,
    shown,
)

SUFFIXES = (".mcap", ".db3", ".bag", ".bag.active")
"""How the names of bags' files end, but for what a packed one has behind it."""
PACKED = (".zstd", ".zst", ".lz4")
_MCAP, _SQLITE, _ROS1 = b"\x89MCAP0\r\n", b"SQLite format 3\0", b"#ROSBAG V"
_BLOCK = 1 << 20
_PART = re.compile(r"(?P<stem>.+)_(?P<number>\d+)")  # of a split bag, as rosbag2 names them
_SHOWN = 3
INTERBOTIX = {
    "interbotix_xs_msgs/msg/JointGroupCommand": "string name\nfloat32[] cmd",
    "interbotix_xs_msgs/msg/JointSingleCommand": "string name\nfloat32 cmd",
}
"""Types of messages whose definition older bags lack and no store of rosbags has."""


class BagFiles(NamedTuple):
    """The files of one bag, in their order; ``notes`` tell what is wrong with the list of them."""

    path: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


class Recorded(NamedTuple):
    """One message as it was recorded; ``received_ns`` by the recorder's clock."""

    topic: str
    received_ns: int
    data: bytes


@dataclass(frozen=True)
class BagTopic:
    """A topic of a bag and how to read it.

    Attributes:
        name: of the topic.
        msgtype: such as "sensor_msgs/msg/Image", of a ROS 1 bag too.
        encoding: of the definition: "ros2msg", "ros2idl" or "ros1msg"; "" where the bag has none.
        definition: the bag's own.
    """

    name: str
    msgtype: str
    encoding: str
    definition: str

    @property
    def ros1(self) -> bool:
        """Whether its messages are serialised as ROS 1 did."""
        return self.encoding == "ros1msg"

    @cached_property
    def own_types(self) -> Typestore:
        """The types in the bag's definition, else what is known of a bag that has none.

        Raises:
            RolloutError: the definition cannot be read, or there is none and the type is unknown.
        """
        if self.encoding in ("ros2msg", "ros1msg"):
            return types_of_definition(self.msgtype, self.definition)
        with reading(f"the definition of {shown(self.msgtype)}", "one", RolloutError):
            store = get_typestore(Stores.EMPTY)
            if self.encoding == "ros2idl":
                for text in _idl_parts(self.definition):
                    store.register(get_types_from_idl(text))
                return store
            if self.encoding:
                raise UnreadableError(f"is '{shown(self.encoding)}', and no ROS message")
            known = get_typestore(Stores.ROS2_KILTED)
            if self.msgtype in INTERBOTIX:
                known.register(get_types_from_msg(INTERBOTIX[self.msgtype], self.msgtype))
            if self.msgtype not in known.fielddefs:
                raise UnreadableError("is not in the bag, and the type is unknown here")
            return known

    def read(self, data: bytes) -> Any:
        """Return a message. Raises RolloutError where the bytes are none."""
        with reading(f"a message on {shown(self.name)}", self.msgtype, RolloutError):
            if self.ros1:
                return self.own_types.deserialize_ros1(data, self.msgtype)
            return self.own_types.deserialize_cdr(data, self.msgtype)

    def to_cdr(self, data: bytes, types: Typestore) -> bytes:
        """Return a message as ROS 2 serialises it: of a ROS 2 bag the very bytes."""
        if not self.ros1:
            return data
        with reading(f"a message on {shown(self.name)}", self.msgtype, RolloutError):
            return bytes(types.ros1_to_cdr(data, self.msgtype))

    def check_layout(self, types: Typestore) -> None:
        """Refuse a definition by which the bytes would be read otherwise than by ``types``.

        Raises:
            RolloutError: names topic and type.
        """
        if not _same_layout(self.own_types, types, self.msgtype):
            raise RolloutError(
                f"{shown(self.name)}: this bag defines {self.msgtype} otherwise than ROS 2 does; "
                f"convert the bag with the tools of what recorded it"
            )


def _idl_parts(definition: str) -> list[str]:
    """Return the IDL texts in a definition, which rosbag2 joins by lines that name the types."""
    separator = "=" * 80 + "\n"
    if not definition.startswith(f"{separator}IDL: "):
        return [definition]
    return [part.partition("\n")[2] for part in definition.split(separator)[1:]]


def _same_layout(found: Typestore, wanted: Typestore, msgtype: str) -> bool:
    """Return whether two definitions of a type have the same fields, whatever they are called."""
    if msgtype == "std_msgs/msg/Header":  # ROS 1's has a number more, which is left out
        return True
    with reading(f"the definition of {shown(msgtype)}", "one", RolloutError):
        fields, others = (store.fielddefs[msgtype][1] for store in (found, wanted))
        for (_, field), (_, other) in zip(fields, others, strict=False):
            if field != other:
                return False
            inner: Any = field[1][0] if field[0] in (Nodetype.SEQUENCE, Nodetype.ARRAY) else field
            if inner[0] == Nodetype.NAME and not _same_layout(found, wanted, inner[1]):
                return False
    return len(fields) == len(others)


def is_storage(path: Path) -> bool:
    """Return whether a file's name is that of a bag's file."""
    name = path.name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return name.endswith(SUFFIXES) and not name.startswith(".")


def bags_in(folder: Path) -> list[BagFiles]:
    """Return the bags whose files lie in a folder; none where there are none.

    ``metadata.yaml`` tells which files are one bag, in which order. Without it those are that
    rosbag2 has numbered, ``<name>_0``, ``<name>_1``, …; each other file is a bag of its own, as
    are those of ROS 1.
    """
    files = {p.name: p for p in sorted(folder.iterdir(), key=_natural) if is_storage(p)}
    ros1 = [BagFiles(p, (p,)) for p in files.values() if ".bag" in p.name.lower()]
    rest = {name: p for name, p in files.items() if ".bag" not in name.lower()}
    found: list[BagFiles] = []
    listed, fault = _listed(folder)
    if there := [rest.pop(name) for name in listed if name in rest]:
        lost = [name for name in listed if name not in files]
        told = [f"of the files in its metadata.yaml {_some(lost)} is missing"] * bool(lost)
        found.append(BagFiles(folder, tuple(there), tuple(told)))
    parts: dict[str, list[tuple[int, Path]]] = {}
    for path in rest.values():
        stem = _bare(path.name)
        match = _PART.fullmatch(stem)
        name, number = (match["stem"], int(match["number"])) if match else (stem, 0)
        parts.setdefault(f"{name}/{path.name[len(stem) :]}", []).append((number, path))
    for group in parts.values():
        group.sort(key=lambda part: part[0])
        told = [] if found else [fault]
        if lost := sorted({*range(group[-1][0])} - {number for number, _ in group}):
            told.append(f"of its files number {_some(lost)} is missing")
        only = len(parts) == 1 and not found
        where = folder if only else group[0][1]
        found.append(BagFiles(where, tuple(path for _, path in group), tuple(told)))
    return [*found, *ros1]


def _listed(folder: Path) -> tuple[list[str], str]:
    """Return the names of a bag's files by its metadata, and why there are none."""
    path = folder / METADATA
    try:
        if not path.is_file():
            return [], "it has no metadata.yaml"
        with reading(path.name, "a bag's metadata", RolloutError):
            content = parse_yaml(read_text(path))
            names = content["rosbag2_bagfile_information"]["relative_file_paths"]
            return [PurePath(name).name for name in names], "its metadata.yaml lists other files"
    except (RolloutError, OSError) as error:
        return [], f"its {error}"


def _bare(name: str) -> str:
    """Return a file's name without what it ends with."""
    lower = name.lower()
    for endings in (PACKED, SUFFIXES):
        for ending in endings:
            if lower.endswith(ending):
                lower = lower.removesuffix(ending)
                break
    return name[: len(lower)]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort bag_2 before bag_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _some(things: Sequence[object]) -> str:
    texts = [shown(str(thing)) for thing in things[:_SHOWN]]
    return ", ".join(texts) + (f" and {len(things) - _SHOWN} more" * (len(things) > _SHOWN))


class ForeignBag:
    """The open files of a bag.

    Attributes:
        topics: those that have messages, by name.
    """

    def __init__(self, files: Sequence[Path], storages: Sequence[_Storage]) -> None:
        """Take open files in their order."""
        self._files, self._storages = files, storages
        self.topics: dict[str, BagTopic] = {}
        for storage in storages:
            self.topics |= {n: t for n, t in storage.topics.items() if n not in self.topics}

    @property
    def faults(self) -> tuple[str, ...]:
        """What is damaged or cut off, as far as the files have been read."""
        return tuple(fault for storage in self._storages for fault in storage.faults)

    def messages(self, topics: Collection[str]) -> Iterator[Recorded]:
        """Yield the messages of some topics, file by file, in the order of their receipt.

        Raises:
            RolloutError: a file is damaged.
        """
        for file, storage in zip(self._files, self._storages, strict=True):
            with reading(file, "a bag", RolloutError, "copy it again"):
                for topic, received_ns, data in storage.messages(topics):
                    check_stamp(received_ns, shown(topic))
                    yield Recorded(topic, received_ns, unpack_message(data))

    def digest(self) -> str:
        """Return the sha256 (hex) over the files, in their order."""
        sha = hashlib.sha256()
        for file in self._files:
            with reading(file, "a bag", RolloutError), open_file(file) as stream:
                while block := stream.read(_BLOCK):
                    sha.update(block)
        return sha.hexdigest()


@contextmanager
def open_bag(files: Sequence[Path]) -> Iterator[ForeignBag]:
    """Open the files of a bag; packed ones are unpacked into the folder for temporary files.

    Raises:
        RolloutError: a file is none of a bag, cut off where no reader finds anything whole, or of a
            kind that is not read.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="cosmos_import_")))
        storages = []
        for number, file in enumerate(files):
            with reading(file, "a bag", RolloutError, "was it copied whole?"):
                check_file(file)
                place = folder / str(number)
                place.mkdir()
                storages.append(_open_storage(file, place, stack))
        yield ForeignBag(files, storages)


def _open_storage(file: Path, place: Path, stack: ExitStack) -> _Storage:
    """Open a file of any kind; ``place`` is a folder for what may have to be made of it."""
    head = _head(file)
    if is_packed(head):
        unpacked = place / file.stem
        try:
            wrong = unpack_file(file, unpacked)
        except OSError as error:
            raise UnreadableError(
                f"cannot be unpacked into {place}: {error.strerror}; set TMPDIR to a folder with "
                f"room"
            ) from error
        if wrong:
            raise UnreadableError(wrong)
        file, head = unpacked, _head(unpacked)
    if head.startswith(_MCAP):
        return _Mcap(file)
    if head.startswith(_ROS1):
        try:
            return _Rosbags(stack.enter_context(Rosbag1Reader(file)))
        except Rosbag1ReaderError as error:
            raise UnreadableError(
                f"its index cannot be read ({shown(str(error), 100)}); 'rosbag reindex' makes one "
                f"for what is whole"
            ) from error
    if head.startswith(_SQLITE):
        return _Rosbags(stack.enter_context(Rosbag2Reader(whole_database(file, place))))
    if not head:
        raise UnreadableError("is empty")
    raise UnreadableError("begins like no bag: neither MCAP, SQLite nor ROS 1")


def _head(file: Path) -> bytes:
    with open_file(file) as stream:
        return stream.read(len(_SQLITE))


class _Mcap:
    """An MCAP file, whole or cut, indexed or not, in chunks or without."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.faults: Sequence[str] = ()
        self.topics: Mapping[str, BagTopic] = self._find_topics()

    def _find_topics(self) -> dict[str, BagTopic]:
        try:
            summary = read_summary(self._path)
            schemas = summary.schemas
            # A topic may be there without a message; some writers leave the index of those out.
            used = {i for chunk in summary.chunk_indexes for i in chunk.message_index_offsets}
            pairs = [
                (channel.topic, schemas[channel.schema_id])
                for channel in summary.channels.values()
                if channel.id in used or not used
            ]
        except Exception:  # no index, or a damaged one: the file itself tells
            file = CheckedFile(self._path)
            pairs = list({each.topic: each.schema for each in file.messages()}.items())
            if not pairs:
                faults = [each.removeprefix(f"{self._path.name}: ") for each in file.problems]
                raise UnreadableError("; ".join([*faults, "holds no message"])) from None
        return {
            topic: BagTopic(
                topic,
                normalize_msgtype(schema.name) if schema.encoding == "ros1msg" else schema.name,
                schema.encoding,
                schema.data.decode(errors="replace"),
            )
            for topic, schema in pairs
        }

    def messages(self, topics: Collection[str]) -> Iterator[Recorded]:
        file = CheckedFile(self._path)
        for topic, _, received_ns, data in file.messages():
            if topic in topics:
                yield Recorded(topic, received_ns, data)
        self.faults = file.problems


class _Rosbags:
    """A file that rosbags reads."""

    faults: Sequence[str] = ()

    def __init__(self, reader: Rosbag1Reader | Rosbag2Reader) -> None:
        self._reader = reader
        self.topics: Mapping[str, BagTopic] = {
            connection.topic: BagTopic(
                connection.topic,
                connection.msgtype,
                self._encoding(connection),
                connection.msgdef.data,
            )
            for connection in reader.connections
            if connection.msgcount
        }

    def _encoding(self, connection: Connection) -> str:
        if connection.msgdef.format == MessageDefinitionFormat.IDL:
            return "ros2idl"
        if connection.msgdef.format == MessageDefinitionFormat.NONE:
            return ""
        return "ros1msg" if isinstance(self._reader, Rosbag1Reader) else "ros2msg"

    def messages(self, topics: Collection[str]) -> Iterator[Recorded]:
        wanted = [each for each in self._reader.connections if each.topic in topics]
        if wanted:  # none would stand for all
            for connection, received_ns, data in self._reader.messages(wanted):
                yield Recorded(connection.topic, received_ns, bytes(data))


_Storage = _Mcap | _Rosbags
