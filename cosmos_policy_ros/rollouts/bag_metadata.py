"""``metadata.yaml`` of a finished bag: read, extended, written back whole."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rig.untrusted import UnreadableError, check_yaml, read_text, reading, shown
from cosmos_policy_ros.rollouts.durable import replace_text
from cosmos_policy_ros.rollouts.mcap_file import FileContents, to_yaml

METADATA = "metadata.yaml"
METADATA_VERSION = 8
"""rosbag2's newest layout that Humble reads too: QoS profiles as text with numbered policies."""
MAX_METADATA_BYTES = 4 << 20  # a hundred topics make 40 kB
MAX_TOPICS = 2048  # readers compare each with each
MAX_STAMP_NS = 2**63 - 1  # what rosbag2's own fields hold
_ROOT = "rosbag2_bagfile_information"


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the content under ``rosbag2_bagfile_information``.

    Read as YAML 1.2, as it was written: YAML 1.1 would turn the prompt "yes" into a boolean.

    Raises:
        RolloutError: the file is missing or is not the metadata of a bag as they are recorded here.
    """
    path = folder / METADATA
    with reading(path, "a bag's metadata", RolloutError, "is this a finished bag?"):
        text = read_text(path, MAX_METADATA_BYTES)
        check_yaml(text)
        content = YAML(typ="safe").load(text)
        if not isinstance(content, dict) or not isinstance(content.get(_ROOT), dict):
            raise UnreadableError(f"has no mapping '{_ROOT}'")
        information = cast("dict[str, Any]", content[_ROOT])
        _check(information)
    return information


def _check(information: Mapping[str, Any]) -> None:
    """Refuse what would lead a reader out of the folder, or keep it busy for too long."""
    storage, mode = information["storage_identifier"], information.get("compression_mode") or "none"
    if storage != "mcap" or str(mode).lower() != "none":
        raise UnreadableError(
            f"is of a bag stored as '{shown(storage)}' with compression mode '{shown(mode)}', but "
            f"only mcap with mode 'none' is read here; make one with 'ros2 bag convert'"
        )
    names = information["relative_file_paths"]
    plain = isinstance(names, list) and all(
        isinstance(n, str) and n == Path(n).name and "\0" not in n for n in names
    )
    if not plain or len(set(names)) < max(len(names), 1):
        raise UnreadableError("its relative_file_paths are not names of files beside it, each once")
    topics = information["topics_with_message_count"]
    if len(topics) > MAX_TOPICS:
        raise UnreadableError(f"has {len(topics)} topics, at most {MAX_TOPICS} are read")
    for topic in topics:
        _check_number(topic, "message_count")
        for key in ("name", "type"):
            if not isinstance(topic["topic_metadata"][key], str):
                raise UnreadableError(f"a topic's {key} is no text")
        profiles = topic["topic_metadata"].get("offered_qos_profiles")
        if isinstance(profiles, str):
            check_yaml(profiles)
    _check_number(information, "message_count")
    _check_number(information["duration"], "nanoseconds")
    _check_number(information["starting_time"], "nanoseconds_since_epoch")
    if not isinstance(information.get("custom_data") or {}, dict):
        raise UnreadableError("its custom_data is no mapping")


def _check_number(where: Mapping[str, Any], key: str) -> None:
    value = where[key]
    if type(value) is not int or not 0 <= value <= MAX_STAMP_NS:
        raise UnreadableError(f"its {key} {shown(value)} is no whole number of 64 bits")


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
