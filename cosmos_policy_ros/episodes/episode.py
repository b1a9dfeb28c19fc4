"""A finished episode, read back from its bag alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.bags.messages import EpisodeMetadata, Label, decode_label
from cosmos_policy_ros.bags.types import types_of_definition
from cosmos_policy_ros.bags.writer import LABEL_TOPIC
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.episodes.folders import DISCARD_REASON, EpisodeFolder, State, look
from cosmos_policy_ros.episodes.labels import read_log
from cosmos_policy_ros.episodes.quality import QualityReport

# Entries of ``custom_data``.
OUTCOME = "outcome"
RECOVERED = "recovered"
QUALITY = "integrity"
SOURCE_NOTES = "source_notes"

NOT_JUDGED = "it was not judged; 'cosmos episodes verify --write' with its id does so"


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


def read_episode(path: Path, found: EpisodeFolder | None = None) -> Episode:
    """Read the summary of a finished or discarded episode.

    Args:
        path: the bag's folder.
        found: what it is, by ``look``, where the caller knows already.

    Raises:
        RolloutError: it cannot be read as an episode, and what to do.
    """
    with _open(path, found) as (files, found):
        metadata, information = found.metadata, found.information
        assert metadata is not None and information is not None, "it is whole"
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
        quality = QualityReport(False, (NOT_JUDGED,))
    return Episode(
        id=found.id,
        path=path,
        files=found.files,
        metadata=metadata,
        topics=dict(sorted(topics.items())),
        labels=tuple(labels[revision] for revision in sorted(labels)),
        outcome=notes.get(OUTCOME, ""),
        discarded=found.state is State.DISCARDED,
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
    path: Path, found: EpisodeFolder | None = None
) -> Iterator[tuple[list[Reader], EpisodeFolder]]:
    """Open the files of a finished bag, whose metadata and indexes are within bounds; yields both.

    The files, not the folder, for which ``Reader`` would parse the metadata once more.
    """
    found = found or look(path)
    if found.trouble:
        raise RolloutError(f"{path}: {found.trouble}")
    with reading(path, "a bag", RolloutError, VERIFY), ExitStack() as opened:
        try:
            yield [opened.enter_context(Reader(file)) for file in found.files], found
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
