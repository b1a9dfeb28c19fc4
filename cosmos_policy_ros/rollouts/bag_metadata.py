"""``metadata.yaml`` of a finished bag: read, extended, written back whole."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts.durable import replace_text
from cosmos_policy_ros.rollouts.mcap_file import FileContents, to_yaml

METADATA = "metadata.yaml"
METADATA_VERSION = 8
"""rosbag2's newest layout that Humble reads too: QoS profiles as text with numbered policies."""
_ROOT = "rosbag2_bagfile_information"


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the content under ``rosbag2_bagfile_information``.

    Read as YAML 1.2, as it was written: YAML 1.1 would turn the prompt "yes" into a boolean.

    Raises:
        RolloutError: the file is missing or is not a bag's metadata.
    """
    path = folder / METADATA
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise RolloutError(f"{path}: cannot be read: {error}; is this a finished bag?") from error
    if not isinstance(content, dict) or not isinstance(content.get(_ROOT), dict):
        raise RolloutError(f"{path}: has no mapping '{_ROOT}'; is this a rosbag2 bag?")
    return cast("dict[str, Any]", content[_ROOT])


def write_metadata(folder: Path, information: Mapping[str, Any]) -> None:
    """Replace a bag's metadata atomically. Raises OSError when the disk refuses."""
    replace_text(folder / METADATA, to_yaml({_ROOT: information}))


def describe_bag(contents: FileContents, notes: Mapping[str, str]) -> dict[str, Any]:
    """Return the metadata of a bag of one file, with ``notes`` as its ``custom_data``."""
    span = {
        "starting_time": {"nanoseconds_since_epoch": contents.start_ns},
        "duration": {"nanoseconds": contents.end_ns - contents.start_ns},
        "message_count": sum(contents.counts.values()),
    }
    return {
        "version": METADATA_VERSION,
        "storage_identifier": "mcap",
        **span,
        "topics_with_message_count": [
            {"topic_metadata": dict(topic), "message_count": contents.counts[topic["name"]]}
            for topic in contents.topics
        ],
        # Whole files or messages; chunks inside an MCAP file are its own business.
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [contents.name],
        "files": [{"path": contents.name, **span}],
        "custom_data": dict(notes),
        "ros_distro": os.environ.get("ROS_DISTRO", "unknown"),
    }


def with_notes(information: dict[str, Any], notes: Mapping[str, str]) -> dict[str, Any]:
    """Return the metadata with further ``custom_data`` entries."""
    return {**information, "custom_data": {**(information.get("custom_data") or {}), **notes}}


def with_file(information: dict[str, Any], addition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a bag to which the files of the bag ``addition`` were added."""
    merged = copy.deepcopy(information)
    merged["relative_file_paths"] += addition["relative_file_paths"]
    merged["files"] += addition["files"]
    merged["message_count"] += addition["message_count"]
    start = min(_start(information), _start(addition))
    end = max(end_ns(information), end_ns(addition))
    merged["starting_time"] = {"nanoseconds_since_epoch": start}
    merged["duration"] = {"nanoseconds": end - start}
    topics = merged["topics_with_message_count"]
    known = {_identity(topic): topic for topic in topics}
    for topic in addition["topics_with_message_count"]:
        if _identity(topic) in known:
            known[_identity(topic)]["message_count"] += topic["message_count"]
        else:
            topics.append(copy.deepcopy(topic))
    return merged


def end_ns(information: Mapping[str, Any]) -> int:
    """Return the receive stamp of the newest message, nanoseconds."""
    return _start(information) + int(information["duration"]["nanoseconds"])


def _start(information: Mapping[str, Any]) -> int:
    return int(information["starting_time"]["nanoseconds_since_epoch"])


def _identity(topic: dict[str, Any]) -> tuple[str, str, str]:
    metadata = topic["topic_metadata"]
    return metadata["name"], metadata["type"], metadata.get("type_description_hash", "")
