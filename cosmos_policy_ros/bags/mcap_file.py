"""One MCAP file of a bag: what ``ros2 bag record`` would have written, checksums included."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from mcap.writer import CompressionType, Writer
from rosbags.interfaces import Qos
from rosbags.rosbag2.metadata import dump_qos_v8
from rosbags.typesys.store import Typestore
from ruamel.yaml import YAML

REBUILD = "'cosmos recover' rebuilds the index of one whose recorder died"


VERIFY = "'cosmos episodes verify' tells what else is damaged"


Compression = Literal["none", "zstd"]

CHUNK_BYTES = 1 << 20  # read whole for every message in it; one raw image has about as much
PROFILE, LIBRARY = "ros2", "cosmos_policy_ros"
# Metadata of a channel, and of the file, in rosbag2's own words.
QOS_KEY, HASH_KEY = "offered_qos_profiles", "topic_type_hash"
FILE_KEY, FILE_METADATA = "rosbag2", "serialized_metadata"


@dataclass(frozen=True)
class Topic:
    """One recorded topic: its name, its type ("sensor_msgs/msg/Image"), the QoS offered on it."""

    name: str
    msgtype: str
    qos: tuple[Qos, ...] = ()


@dataclass(frozen=True)
class FileContents:
    """What a file holds.

    Attributes:
        name: of the file, without its folder.
        topics: rosbag2's description of every topic, as ``metadata.yaml`` lists it.
        counts: messages per topic name.
        start_ns, end_ns: receive stamps of the first and the last message; 0 when there is none.
    """

    name: str
    topics: tuple[Mapping[str, Any], ...]
    counts: Mapping[str, int]
    start_ns: int
    end_ns: int


class McapFile:
    """Takes serialised messages. Every method raises OSError when the disk refuses."""

    def __init__(
        self,
        path: Path,
        topics: Sequence[Topic],
        types: Typestore,
        compression: Compression = "none",
    ) -> None:
        """Create ``path``, which must not exist, for ``topics`` whose types are known."""
        self.path = path
        self._topics = tuple(describe_topic(topic, types) for topic in topics)
        self._counts = {topic.name: 0 for topic in topics}
        self._start_ns, self._end_ns = math.inf, 0
        self._stream = path.open("xb")
        kind = CompressionType.ZSTD if compression == "zstd" else CompressionType.NONE
        self._writer = Writer(self._stream, chunk_size=CHUNK_BYTES, compression=kind)
        self._writer.start(PROFILE, LIBRARY)
        self._channels = self._register(topics, types)

    @property
    def contents(self) -> FileContents:
        """What was written so far."""
        start_ns = 0 if self._start_ns is math.inf else int(self._start_ns)
        return FileContents(
            self.path.name, self._topics, dict(self._counts), start_ns, self._end_ns
        )

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
        self._counts[topic] += 1
        self._start_ns = min(self._start_ns, stamp_ns)
        self._end_ns = max(self._end_ns, stamp_ns)

    def flush(self) -> None:
        """Hand everything to the operating system: it survives the end of this process."""
        self._writer.flush()  # type: ignore[no-untyped-call]

    def close(self, information: Mapping[str, Any]) -> None:
        """Write the index; ``information`` is the bag's metadata, kept in the file as well."""
        self._writer.add_metadata(FILE_KEY, {FILE_METADATA: to_yaml(information)})
        self._writer.finish()  # type: ignore[no-untyped-call]
        self._stream.close()

    def abort(self) -> None:
        """Stop without an index; what was flushed stays."""
        with suppress(OSError):
            self._stream.close()

    def _register(self, topics: Sequence[Topic], types: Typestore) -> dict[str, int]:
        schemas: dict[str, int] = {}
        channels = {}
        for topic, described in zip(topics, self._topics, strict=True):
            if topic.msgtype not in schemas:
                definition, _ = types.generate_msgdef(topic.msgtype, ros_version=2)
                schemas[topic.msgtype] = self._writer.register_schema(
                    topic.msgtype, "ros2msg", definition.encode()
                )
            metadata = {
                QOS_KEY: described["offered_qos_profiles"],
                HASH_KEY: described["type_description_hash"],
            }
            channels[topic.name] = self._writer.register_channel(
                topic.name, described["serialization_format"], schemas[topic.msgtype], metadata
            )
        return channels


def describe_topic(topic: Topic, types: Typestore) -> dict[str, Any]:
    """Return rosbag2's ``topic_metadata`` of a topic."""
    return {
        "name": topic.name,
        "type": topic.msgtype,
        "serialization_format": "cdr",
        "offered_qos_profiles": dump_qos_v8(list(topic.qos)) if topic.qos else "",
        "type_description_hash": types.hash_rihs01(topic.msgtype),
    }


def to_yaml(value: Any) -> str:
    """Return a value as block-style YAML 1.2."""
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue()
