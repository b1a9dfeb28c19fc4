"""Bags as other recorders leave them: every storage and compression, split, old, cut, of ROS 1."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import lz4.frame
import numpy as np
import yaml
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin
from rosbags.rosbag2 import Writer as Rosbag2Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.writer import OWN_TOPICS
from cosmos_policy_ros.interop.ros_bag_files import INTERBOTIX

FORMATS = (
    "mcap",
    "mcap chunks zstd",
    "mcap chunks lz4",
    "mcap file zstd",
    "mcap file lz4",
    "mcap messages zstd",
    "mcap no chunks",
    "sqlite3",
    "sqlite3 file zstd",
    "sqlite3 messages zstd",
    "sqlite3 without definitions",
    "ros1",
    "ros1 bz2",
    "ros1 lz4",
)
SMALL_CHUNKS = "mcap small chunks"


class Message(NamedTuple):
    """A serialised message and when it came."""

    topic: str
    msgtype: str
    received_ns: int
    cdr: bytes


def foreign_types(types: Typestore) -> Typestore:
    """Return the package's types and Interbotix'."""
    store = get_typestore(Stores.EMPTY)
    store.register(types.fielddefs)
    for name, text in INTERBOTIX.items():
        store.register(get_types_from_msg(text, name))
    return store


def messages_of(bag: Path) -> list[Message]:
    """Return what an episode holds besides what its recorder knows of it."""
    own = {topic.name for topic in OWN_TOPICS}
    with Reader(bag) as reader:
        return [
            Message(connection.topic, connection.msgtype, stamp_ns, bytes(data))
            for connection, stamp_ns, data in reader.messages()
            if connection.topic not in own
        ]


def write_bag(
    path: Path, messages: Iterable[Message], types: Typestore, form: str = "mcap", parts: int = 1
) -> Path:
    """Write a bag.

    Args:
        path: of the folder; of the file for ROS 1, whose name must end with ".bag".
        messages: in any order.
        types: knows them.
        form: one of :data:`FORMATS`.
        parts: number of files that it is split into.
    """
    ordered = sorted(messages, key=lambda m: m.received_ns)
    path.parent.mkdir(parents=True, exist_ok=True)
    if form.startswith("ros1"):
        return _write_ros1(path, ordered, types, form)
    size = -(-len(ordered) // parts)
    pieces = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    names = []
    for number, piece in enumerate(pieces):
        folder = path.with_name(f"{path.name}_{number}")
        if form in ("mcap no chunks", "mcap chunks lz4", SMALL_CHUNKS):
            _write_mcap(folder, piece, types, form)
        else:
            _write_rosbag2(folder, piece, types, form)
        path.mkdir(exist_ok=True)
        for file in folder.iterdir():
            if file.name == "metadata.yaml":
                file.replace(path / "metadata.yaml")
            else:
                names.append(file.name)
                file.replace(path / file.name)
        folder.rmdir()
    metadata = path / "metadata.yaml"
    if metadata.exists():
        content = yaml.safe_load(metadata.read_text())
        content["rosbag2_bagfile_information"]["relative_file_paths"] = names
        metadata.write_text(yaml.safe_dump(content))
    return path


def _write_rosbag2(folder: Path, messages: Sequence[Message], types: Typestore, form: str) -> None:
    storage = StoragePlugin.MCAP if form.startswith("mcap") else StoragePlugin.SQLITE3
    writer = Rosbag2Writer(folder, version=8, storage_plugin=storage)
    for word, mode in (
        ("chunks", CompressionMode.STORAGE),
        ("file zstd", CompressionMode.FILE),
        ("messages", CompressionMode.MESSAGE),
    ):
        if word in form:
            writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for topic, msgtype, received_ns, cdr in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=types)
            if not cdr:
                continue  # of a topic on which nothing is sent
            writer.write(connections[topic], received_ns, cdr)
    if "file lz4" in form:
        (file,) = folder.glob("*.mcap")
        file.with_name(f"{file.name}.lz4").write_bytes(lz4.frame.compress(file.read_bytes()))
        file.unlink()
    if "without definitions" in form:
        (file,) = folder.glob("*.db3")
        with closing(sqlite3.connect(file)) as database:
            for table in ("schema", "message_definitions", "metadata"):
                database.execute(f"DROP TABLE {table}")
            database.execute("ALTER TABLE topics DROP COLUMN type_description_hash")
            database.commit()


def _write_mcap(folder: Path, messages: Sequence[Message], types: Typestore, form: str) -> None:
    """Write what rosbag2's writer makes of its preset "fastwrite", or in small chunks."""
    folder.mkdir()
    with (folder / f"{folder.name}.mcap").open("wb") as stream:
        writer = McapWriter(
            stream,
            chunk_size=1 << 16,
            use_chunking="no chunks" not in form,
            compression=CompressionType.LZ4 if "lz4" in form else CompressionType.NONE,
        )
        writer.start("ros2", "test")
        channels: dict[str, int] = {}
        for topic, msgtype, received_ns, cdr in messages:
            if topic not in channels:
                text, _ = types.generate_msgdef(msgtype, ros_version=2)
                schema = writer.register_schema(msgtype, "ros2msg", text.encode())
                channels[topic] = writer.register_channel(topic, "cdr", schema)
            writer.add_message(channels[topic], received_ns, cdr, received_ns)
        writer.finish()


def _write_ros1(path: Path, messages: Sequence[Message], types: Typestore, form: str) -> Path:
    ros1 = get_typestore(Stores.ROS1_NOETIC)
    for name, text in INTERBOTIX.items():
        ros1.register(get_types_from_msg(text, name))
    writer = Rosbag1Writer(path)
    if form != "ros1":
        kind = Rosbag1Writer.CompressionFormat
        writer.set_compression(kind.BZ2 if "bz2" in form else kind.LZ4)
    with writer:
        connections: dict[str, Any] = {}
        for topic, msgtype, received_ns, cdr in messages:
            if msgtype not in ros1.fielddefs:
                continue  # a ROS 2 package's own
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=ros1)
            writer.write(connections[topic], received_ns, types.cdr_to_ros1(cdr, msgtype))
    return path


def renamed(messages: Iterable[Message], prefix: str) -> list[Message]:
    """Return messages with their topics in a namespace."""
    return [message._replace(topic=f"{prefix}{message.topic}") for message in messages]


def stamped(message: Message, stamp_ns: int) -> Message:
    """Return a message with another stamp in its header."""
    stamp = struct.pack("<iI", *divmod(stamp_ns, 10**9))
    return message._replace(cdr=message.cdr[:4] + stamp + message.cdr[12:])


class Made:
    """Makes messages of any type."""

    def __init__(self, types: Typestore) -> None:
        self.types = types

    def __call__(self, topic: str, msgtype: str, received_ns: int, **fields: Any) -> Message:
        """Return a message; lists of numbers become arrays, ``stamp_ns`` a header."""
        if "stamp_ns" in fields:
            fields = {"header": self.header(fields.pop("stamp_ns")), **fields}
        message = self.types.types[msgtype](**fields)
        cdr = bytes(self.types.serialize_cdr(message, msgtype))
        return Message(topic, msgtype, received_ns, cdr)

    def header(self, stamp_ns: int, frame_id: str = "") -> Any:
        """Return a header."""
        sec, nanosec = divmod(stamp_ns, 10**9)
        stamp = self.types.types["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)
        return self.types.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)

    def joints(
        self, topic: str, stamp_ns: int, names: Sequence[str], position: Sequence[float]
    ) -> Message:
        """Return a joint state."""
        none = np.zeros(0)
        fields = {"name": list(names), "position": np.array(position, np.float64)}
        fields |= {"velocity": none, "effort": none}
        return self(topic, "sensor_msgs/msg/JointState", stamp_ns, stamp_ns=stamp_ns, **fields)

    def group(self, topic: str, received_ns: int, name: str, cmd: Sequence[float]) -> Message:
        """Return goals of a group of joints."""
        kind = "interbotix_xs_msgs/msg/JointGroupCommand"
        return self(topic, kind, received_ns, name=name, cmd=np.array(cmd, np.float32))

    def single(self, topic: str, received_ns: int, name: str, cmd: float) -> Message:
        """Return the goal of one joint."""
        kind = "interbotix_xs_msgs/msg/JointSingleCommand"
        return self(topic, kind, received_ns, name=name, cmd=float(np.float32(cmd)))

    def trajectory(
        self,
        topic: str,
        received_ns: int,
        names: Sequence[str],
        points: Iterable[tuple[float, Sequence[float]]],
        stamp_ns: int = 0,
    ) -> Message:
        """Return a trajectory through positions that are due after some seconds."""
        made = []
        for seconds, positions in points:
            sec, nanosec = divmod(round(seconds * 10**9), 10**9)
            due = self.types.types["builtin_interfaces/msg/Duration"](sec=sec, nanosec=nanosec)
            none = {key: np.zeros(0) for key in ("velocities", "accelerations", "effort")}
            kind = self.types.types["trajectory_msgs/msg/JointTrajectoryPoint"]
            made.append(
                kind(positions=np.array(positions, np.float64), time_from_start=due, **none)
            )
        kind = "trajectory_msgs/msg/JointTrajectory"
        fields = {"joint_names": list(names), "points": made}
        return self(topic, kind, received_ns, stamp_ns=stamp_ns, **fields)
