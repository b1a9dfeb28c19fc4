"""One MCAP file of a bag: what ``ros2 bag record`` would have written, checksums included."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mcap.writer import CompressionType, Writer
from rosbags.interfaces import Qos
from rosbags.rosbag2.metadata import dump_qos_v8
from rosbags.typesys.store import Typestore
from ruamel.yaml import YAML

REBUILD = "'cosmos recover' keeps what is whole of a file that was cut off"
VERIFY = "'cosmos episodes verify' tells what else is damaged"

Compression = Literal["none", "zstd"]

CHUNK_BYTES = 1 << 20  # read whole for every message in it; one raw image has about as much
METADATA_VERSION = 8
"""rosbag2's newest layout that Humble reads too: QoS profiles as text with numbered policies."""
# Metadata of a channel, in rosbag2's own words.
QOS_KEY, HASH_KEY = "offered_qos_profiles", "topic_type_hash"


@dataclass(frozen=True)
class Topic:
    """One recorded topic: its name, its type ("sensor_msgs/msg/Image"), the QoS offered on it."""

    name: str
    msgtype: str
    qos: tuple[Qos, ...] = ()


class Declaration(NamedTuple):
    """A topic as a file declares it: what its messages are, and how they were offered.

    Attributes:
        name: absolute.
        msgtype: such as "sensor_msgs/msg/Image".
        definition: the text of the type and of those it is made of.
        digest: the type's RIHS01 hash; empty where a file does not tell it.
        qos: the profiles offered, rosbag2's YAML; empty for none.
    """

    name: str
    msgtype: str
    definition: str
    digest: str
    qos: str


class McapFile:
    """Takes serialised messages. Every method raises OSError when the disk refuses.

    Attributes:
        path: of the file.
        counts: messages per topic so far.
    """

    def __init__(
        self,
        path: Path,
        topics: Sequence[Topic],
        types: Typestore,
        compression: Compression = "none",
    ) -> None:
        """Create ``path``, which must not exist, for ``topics`` whose types are known."""
        self.path = path
        self.counts = {topic.name: 0 for topic in topics}
        self._stamps: tuple[int, int] | None = None
        self._topics: list[dict[str, Any]] = []
        self._channels: dict[str, int] = {}
        self._stream = path.open("xb")
        kind = CompressionType.ZSTD if compression == "zstd" else CompressionType.NONE
        self._writer = Writer(self._stream, chunk_size=CHUNK_BYTES, compression=kind)
        self._writer.start("ros2", "cosmos_policy_ros")
        self._schemas: dict[tuple[str, str], int] = {}
        for topic in topics:
            definition, _ = types.generate_msgdef(topic.msgtype, ros_version=2)
            digest = types.hash_rihs01(topic.msgtype)
            qos = _qos_text(topic.qos)
            self.declare(Declaration(topic.name, topic.msgtype, definition, digest, qos))

    def declare(self, topic: Declaration) -> None:
        """Take messages of a further topic, whose name is new to the file."""
        name, msgtype, definition, digest, qos = topic
        schema = (msgtype, definition)
        if schema not in self._schemas:
            self._schemas[schema] = self._writer.register_schema(
                msgtype, "ros2msg", definition.encode()
            )
        self._channels[name] = self._writer.register_channel(
            name, "cdr", self._schemas[schema], {QOS_KEY: qos, HASH_KEY: digest}
        )
        self.counts.setdefault(name, 0)
        self._topics.append(describe_topic(name, msgtype, "cdr", qos, digest))

    def describe(self, notes: Mapping[str, str], name: str = "") -> dict[str, Any]:
        """Return the metadata of a bag of this file alone, under its own or another name."""
        stamps = self._stamps or (0, 0)
        return describe_bag(name or self.path.name, self._topics, self.counts, stamps, notes)

    @property
    def descriptor(self) -> int:
        """Of the open file."""
        return self._stream.fileno()

    @property
    def cut(self) -> bool:
        """Whether the file has become shorter than what was written to it."""
        return os.fstat(self.descriptor).st_size < self._stream.raw.tell()

    def write(self, topic: str, stamp_ns: int, cdr: bytes) -> None:
        """Append one message; it may wait in memory until its chunk of a megabyte is full."""
        self._writer.add_message(self._channels[topic], stamp_ns, cdr, stamp_ns)
        self.counts[topic] += 1
        first_ns, last_ns = self._stamps or (stamp_ns, stamp_ns)
        self._stamps = min(first_ns, stamp_ns), max(last_ns, stamp_ns)

    def flush(self) -> None:
        """Hand everything to the operating system: it survives the end of this process."""
        self._writer.flush()  # type: ignore[no-untyped-call]

    def close(self, information: Mapping[str, Any]) -> None:
        """Write the index; ``information`` is the bag's metadata, kept in the file as well."""
        self._writer.add_metadata("rosbag2", {"serialized_metadata": to_yaml(information)})
        self._writer.finish()  # type: ignore[no-untyped-call]
        self._stream.close()

    def abort(self) -> None:
        """Stop without an index; what was flushed stays."""
        with suppress(OSError):
            self._stream.close()


@cache
def _qos_text(profiles: tuple[Qos, ...]) -> str:
    """Return QoS profiles as rosbag2's YAML; dumping it takes milliseconds, and topics share it."""
    return dump_qos_v8(list(profiles)) if profiles else ""


def describe_topic(name: str, msgtype: str, encoding: str, qos: str, digest: str) -> dict[str, Any]:
    """Return rosbag2's ``topic_metadata`` of a topic."""
    return {
        "name": name,
        "type": msgtype,
        "serialization_format": encoding,
        "offered_qos_profiles": qos,
        "type_description_hash": digest,
    }


def describe_bag(
    name: str,
    topics: Sequence[Mapping[str, Any]],
    counts: Mapping[str, int],
    stamps_ns: tuple[int, int],
    notes: Mapping[str, str],
) -> dict[str, Any]:
    """Return the content of ``metadata.yaml`` for a bag of one file.

    Args:
        name: of the file.
        topics: every topic, by :func:`describe_topic`.
        counts: messages per topic.
        stamps_ns: receive stamps of the first and the last message; zeros when there is none.
        notes: the bag's ``custom_data``.
    """
    first_ns, last_ns = stamps_ns
    span = {
        "starting_time": {"nanoseconds_since_epoch": first_ns},
        "duration": {"nanoseconds": last_ns - first_ns},
        "message_count": sum(counts.values()),
    }
    return {
        "version": METADATA_VERSION,
        "storage_identifier": "mcap",
        **span,
        "topics_with_message_count": [
            {"topic_metadata": dict(topic), "message_count": counts[topic["name"]]}
            for topic in topics
        ],
        # Whole files or messages; chunks inside an MCAP file are its own business.
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [name],
        "files": [{"path": name, **span}],
        "custom_data": dict(notes),
        "ros_distro": os.environ.get("ROS_DISTRO", "unknown"),
    }


def to_yaml(value: Any) -> str:
    """Return a value as block-style YAML 1.2."""
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue()
