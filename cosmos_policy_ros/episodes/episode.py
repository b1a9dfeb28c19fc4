"""A finished episode, read back from its bag alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.bounds import read_summary
from cosmos_policy_ros.bags.mcap_file import REBUILD, VERIFY
from cosmos_policy_ros.bags.messages import EpisodeMetadata, Label, decode_label, decode_metadata
from cosmos_policy_ros.bags.types import types_of_definition
from cosmos_policy_ros.bags.writer import (
    DISCARDED,
    EPISODE_TOPIC,
    LABEL_TOPIC,
    METADATA,
    RECORDING,
    read_metadata,
)
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.episodes.labels import read_log
from cosmos_policy_ros.episodes.quality import QualityReport

# Entries of ``custom_data``.
OUTCOME = "outcome"
DISCARD_REASON = "discard_reason"
RECOVERED = "recovered"
QUALITY = "integrity"
SOURCE_NOTES = "source_notes"

_MAX_TASK_CHARACTERS = 40  # a folder name of at most 72 characters, read whole in a file manager
_BAG_FILE = re.compile(r"\.(mcap|db3)(\.zstd)?$")
_ID = re.compile(r"\d{8}-\d{6}_.+_(?P<number>\d{4,})")


@dataclass(frozen=True)
class TopicSummary:
    """A bag's messages on one topic."""

    msgtype: str
    count: int


@dataclass(frozen=True)
class Episode:
    """One recorded trial.

    Attributes:
        id: unique in its store, ordered by its trailing number.
        path: the bag's folder.
        files: the bag's MCAP files, in order.
        metadata: from the bag's first message.
        topics: by name, :data:`OWN_TOPICS` of ``bags.writer`` included.
        labels: all of them, by ascending revision.
        outcome: why it ended, as given to the recorder; empty when it was discarded on the way.
        discarded: the operator does not want it used.
        discard_reason: why.
        recovered: what was lost when its recorder died; empty when it was finished as usual.
        quality: whether it is good enough to learn from.
        start_ns: receive stamp of the first message.
        duration_ns: from the first to the last message.
        source_notes: what an import did to the content on the way, or left out, joined by "; ".
    """

    id: str
    path: Path
    files: tuple[Path, ...]
    metadata: EpisodeMetadata
    topics: Mapping[str, TopicSummary]
    labels: tuple[Label, ...]
    outcome: str
    discarded: bool
    discard_reason: str
    recovered: str
    quality: QualityReport
    start_ns: int
    duration_ns: int
    source_notes: str

    @property
    def score(self) -> Label | None:
        """The score with the highest revision, the one that counts."""
        return next((x for x in reversed(self.labels) if x.kind == "score"), None)


def episode_id(task: str, now: datetime, taken: Iterable[str]) -> str:
    """Return an id such as ``20261122-105830_transfer_cube_0001``.

    The trailing number is one above the highest in ``taken``, ids or folder names, so ids stay
    apart, and in order, even when the clock is set back.
    """
    label = re.sub(r"[^A-Za-z0-9_-]+", "-", task)[:_MAX_TASK_CHARACTERS] or "episode"
    number = 1 + max((id_number(name) for name in taken), default=0)
    return f"{now:%Y%m%d-%H%M%S}_{label}_{number:04d}"


def bare_id(folder_name: str) -> str:
    """Return the episode id in a folder's name, whatever the episode's state."""
    return folder_name.removesuffix(RECORDING).removesuffix(DISCARDED)


def id_number(name: str) -> int:
    """Return the running number of an id or folder name, 0 when it is not an episode's."""
    match = _ID.fullmatch(bare_id(name))
    return int(match["number"]) if match else 0


def has_bag_files(folder: Path) -> bool:
    """Tell whether a folder has anything of a bag, whatever else of one it lacks.

    One that cannot be listed has: reading it says why not.
    """
    try:
        return folder.name.endswith(RECORDING) or any(
            file.name == METADATA or _BAG_FILE.search(file.name) for file in folder.iterdir()
        )
    except OSError:
        return True


def read_episode(path: Path, information: Mapping[str, Any] | None = None) -> Episode:
    """Read the summary of a finished or discarded episode.

    Args:
        path: the bag's folder.
        information: its metadata, by ``read_metadata``, where the caller has them already.

    Raises:
        RolloutError: the bag is unfinished, unreadable, or not an episode of this package.
    """
    with _open(path, information) as (files, information):
        metadata = [
            decode_metadata(types, cdr)
            for _, types, _, cdr in _messages(files, {EPISODE_TOPIC.name})
        ]
        if not metadata:
            raise RolloutError(
                f"{path}: has no message on '{EPISODE_TOPIC.name}'; it is a bag, but no episode"
            )
        in_bag = [
            decode_label(types, cdr) for _, types, _, cdr in _messages(files, {LABEL_TOPIC.name})
        ]
        in_log, _ = read_log(path)
    # Either may miss one, after a kill between the two writes; both say the same of the others.
    labels = {label.revision: label for label in (*in_bag, *in_log)}
    topics: dict[str, TopicSummary] = {}
    for listed in information["topics_with_message_count"]:
        name, msgtype = listed["topic_metadata"]["name"], listed["topic_metadata"]["type"]
        before = topics.get(name, TopicSummary(msgtype, 0))  # listed per definition of its type
        topics[name] = TopicSummary(
            msgtype if msgtype == before.msgtype else "", before.count + listed["message_count"]
        )
    notes = {str(k): str(v) for k, v in (information.get("custom_data") or {}).items()}
    try:
        quality = QualityReport.from_json(notes.get(QUALITY, ""))
    except ValueError:
        quality = QualityReport(False, ("it was not judged: its recorder died",))
    return Episode(
        id=bare_id(path.name),
        path=path,
        files=tuple(path / name for name in information["relative_file_paths"]),
        metadata=metadata[0],
        topics=dict(sorted(topics.items())),
        labels=tuple(labels[revision] for revision in sorted(labels)),
        outcome=notes.get(OUTCOME, ""),
        discarded=path.name.endswith(DISCARDED),
        discard_reason=notes.get(DISCARD_REASON, ""),
        recovered=notes.get(RECOVERED, ""),
        quality=quality,
        start_ns=information["starting_time"]["nanoseconds_since_epoch"],
        duration_ns=information["duration"]["nanoseconds"],
        source_notes=notes.get(SOURCE_NOTES, ""),
    )


def read_messages(path: Path, topics: Iterable[str]) -> Iterator[tuple[str, int, Any]]:
    """Yield (topic, receive stamp in ns, message) of a finished episode, in order of receipt.

    Raises:
        RolloutError: the bag is unfinished or unreadable.
    """
    with _open(path) as (files, _):
        for connection, types, stamp_ns, cdr in _messages(files, frozenset(topics)):
            yield connection.topic, stamp_ns, types.deserialize_cdr(cdr, connection.msgtype)


@contextmanager
def _open(
    path: Path, information: Mapping[str, Any] | None = None
) -> Iterator[tuple[list[Reader], Mapping[str, Any]]]:
    """Open the files of a finished bag, metadata and indexes within bounds; yields both.

    The files, not the folder, for which ``Reader`` would parse the metadata once more.
    """
    if path.name.endswith(RECORDING):
        raise RolloutError(
            f"{path}: is unfinished: it is being recorded, or its recorder died; it cannot be read "
            f"as an episode"
        )
    with reading(path, "a bag", RolloutError, VERIFY), ExitStack() as opened:
        information = information or read_metadata(path)
        files = [path / name for name in information["relative_file_paths"]]
        for file in files:
            where = f"{file}: cannot be read as a bag"
            with reading(where, "an MCAP file", RolloutError, REBUILD):
                read_summary(file)
        try:
            yield [opened.enter_context(Reader(file)) for file in files], information
        except RolloutError as error:  # of a message, which does not know where it is from
            if str(path) in str(error):
                raise
            raise RolloutError(f"{path}: {error}") from error


def _messages(
    files: Iterable[Reader], topics: Collection[str]
) -> Iterator[tuple[Connection, Typestore, int, bytes]]:
    """Yield (connection, types, receive stamp, message); types as the bag itself defines them."""
    for file in files:
        wanted = [connection for connection in file.connections if connection.topic in topics]
        if wanted:  # else all would be read
            for connection, stamp_ns, cdr in file.messages(wanted):
                types = types_of_definition(connection.msgtype, connection.msgdef.data)
                yield connection, types, stamp_ns, cdr
