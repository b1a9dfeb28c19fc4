"""Whether an episode is what it says: bytes, counts, labels and verdict, each held against another.

Nothing is changed here but by :func:`store_verdict`.
"""

from __future__ import annotations

import json
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cosmos_policy_ros.bags.check import CheckedFile, Received
from cosmos_policy_ros.bags.messages import Label, decode_label
from cosmos_policy_ros.bags.types import types_of_definition
from cosmos_policy_ros.bags.writer import (
    EPISODE_TOPIC,
    LABEL_TOPIC,
    OWN_TOPICS,
    RECORDING,
    read_metadata,
    with_notes,
    write_metadata,
)
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import locked
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.episodes import label_log
from cosmos_policy_ros.episodes.episode import QUALITY, Episode, bare_id, read_episode
from cosmos_policy_ros.episodes.quality import (
    GIGABYTE,
    QualityLimits,
    QualityMonitor,
    QualityReport,
    sensors_of,
)
from cosmos_policy_ros.episodes.rig_in_bag import find_rig

_OWN = frozenset(topic.name for topic in OWN_TOPICS)


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        path: the episode's folder.
        problems: everything that is not as it should be, one sentence each.
        verdict: what its messages make it; None when they could not be judged.
        stale: the verdict is not the one that is stored, or none is.
        messages: how many were read and are sound.
    """

    path: Path
    problems: tuple[str, ...]
    verdict: QualityReport | None
    stale: bool
    messages: int


def verify(folder: Path, limits: QualityLimits) -> Verification:
    """Read an episode whole and hold its parts against each other.

    Checksums, index and counts of every file; ``metadata.yaml``; the labels in bag and log; the
    verdict, made again from the messages, the rig in the metadata and ``limits``. What the bytes
    cannot tell, losses before the disk and the space left on it, is taken from the stored verdict.
    """
    if folder.name.endswith(RECORDING):
        problem = "is unfinished: it is being recorded, or its recorder died; recover it"
        return Verification(folder, (problem,), None, False, 0)
    return _Check(folder, limits).result()


def store_verdict(found: Verification) -> None:
    """Write the verdict that was found into the episode's metadata.

    Raises:
        RolloutError: there is none, or the disk refused.
    """
    if found.verdict is None:
        raise RolloutError(f"{found.path}: could not be judged, so there is no verdict to store")
    try:
        with locked(found.path):
            notes = {QUALITY: found.verdict.to_json()}
            write_metadata(found.path, with_notes(read_metadata(found.path), notes))
    except OSError as error:
        raise RolloutError(f"{found.path}: the verdict cannot be stored: {error}") from error


class _Check:
    def __init__(self, folder: Path, limits: QualityLimits) -> None:
        self._folder, self._limits = folder, limits
        self._problems: list[str] = []
        self._labels: list[Label] = []
        self._newest_ns = 0
        self._metadata: dict[str, Any] = self._attempt(lambda: read_metadata(folder)) or {}
        self._episode: Episode | None = self._attempt(lambda: read_episode(folder))
        self._quality: QualityMonitor | None = self._attempt(self._begin)

    def result(self) -> Verification:
        files = [CheckedFile(path) for path in self._files()]
        for file in files:
            for message in file.messages():
                self._take(message)
        damage = [problem for file in files for problem in file.problems]
        self._problems += damage
        verdict, stale = None, False
        if not damage and files and (episode := self._episode) is not None:
            self._attempt(lambda: self._compare_metadata(files, episode))
            self._attempt(self._compare_labels)
            verdict, stale = self._attempt(self._compare_verdict) or (None, False)
        messages = sum(file.counts.total() for file in files)
        return Verification(self._folder, tuple(self._problems), verdict, stale, messages)

    def _attempt(self, read: Any) -> Any:
        try:
            with reading(self._folder, "an episode", RolloutError):
                return read()
        except RolloutError as error:
            self._problems.append(str(error))
            return None

    def _begin(self) -> QualityMonitor | None:
        if self._episode is None:
            return None
        found = find_rig(self._episode)
        sensors = sensors_of(found.rig, found.topic)
        return QualityMonitor(sensors, found.rig.observation.camera_skew, self._limits)

    def _files(self) -> Iterator[Path]:
        listed: list[str] = self._metadata.get("relative_file_paths", [])
        for name in listed:
            if (self._folder / name).is_file():
                yield self._folder / name
            else:
                self._problems.append(f"{name} is in metadata.yaml and not in the folder")
        for path in sorted(self._folder.glob("*.mcap")):
            if path.name not in listed:
                self._problems.append(f"{path.name} is in the folder and not in metadata.yaml")
                yield path

    def _take(self, message: Received) -> None:
        if message.topic == LABEL_TOPIC.name:
            label = self._attempt(lambda: _label(message))
            self._labels += [label] if label else []
        elif message.topic not in _OWN:
            self._newest_ns = max(self._newest_ns, message.stamp_ns)
            self._judge(message)

    def _judge(self, message: Received) -> None:
        if self._quality is None:
            return
        try:
            self._quality.add(message.topic, message.stamp_ns, message.cdr)
        except (struct.error, IndexError):
            self._problems.append(f"a message of {message.topic} has no header; it was not judged")
            self._quality = None

    def _compare_metadata(self, files: list[CheckedFile], episode: Episode) -> None:
        found: Counter[str] = Counter()
        for file in files:
            found += file.counts
        stated: Counter[str] = Counter()
        for topic in self._metadata["topics_with_message_count"]:
            stated[topic["topic_metadata"]["name"]] += topic["message_count"]
        for name in sorted(stated | found):
            if stated[name] != found[name]:
                self._problems.append(
                    f"metadata.yaml: says {stated[name]} messages of {name}, {found[name]} found"
                )
        if found[EPISODE_TOPIC.name] != 1:
            self._problems.append(f"{found[EPISODE_TOPIC.name]} messages of metadata, expected 1")
        start_ns = self._metadata["starting_time"]["nanoseconds_since_epoch"]
        stated_span = (start_ns, start_ns + self._metadata["duration"]["nanoseconds"])
        spans = [file.stamps for file in files if file.stamps]
        span = (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else (0, 0)
        if span != stated_span:
            self._problems.append(
                f"metadata.yaml: says it spans {stated_span[0]} to {stated_span[1]} ns, found "
                f"{span[0]} to {span[1]}"
            )
        if episode.metadata.episode_id != bare_id(self._folder.name):
            self._problems.append(
                f"the folder is called {self._folder.name}, its metadata are those of "
                f"{episode.metadata.episode_id}"
            )

    def _compare_labels(self) -> None:
        in_journal, problems = self._attempt(lambda: label_log.read(self._folder)) or ((), ())
        self._problems += problems
        in_bag = _by_revision(self._labels)
        told = _by_revision(in_journal)
        for labels, where in ((self._labels, "the bag"), (in_journal, label_log.LABEL_LOG)):
            for revision, count in Counter(label.revision for label in labels).items():
                if count > 1:
                    self._problems.append(f"label revision {revision} is {count} times in {where}")
        for revision in sorted(in_bag.keys() | told.keys()):
            self._problems += _differences(revision, in_bag.get(revision), told.get(revision))

    def _compare_verdict(self) -> tuple[QualityReport | None, bool]:
        if self._quality is None:
            return None, False
        text = (self._metadata.get("custom_data") or {}).get(QUALITY, "")
        try:
            stored = QualityReport.from_json(text) if text else None
        except ValueError as error:
            self._problems.append(f"metadata.yaml: the verdict cannot be read: {error}")
            stored = None
        verdict = _judge(self._quality, self._newest_ns, stored)
        if stored and (stored.go, stored.reasons) == (verdict.go, verdict.reasons):
            return verdict, False
        before = f"its verdict is {stored.text}" if stored else "it was never judged"
        self._problems.append(f"{before}; its messages make it {verdict.text}")
        return verdict, True


def _judge(quality: QualityMonitor, now_ns: int, stored: QualityReport | None) -> QualityReport:
    if stored is None:
        # 0.0 GB is how a verdict says that nobody looked.
        return replace(quality.verdict(now_ns, sys.maxsize), free_gb=0.0)
    for topic, health in stored.topics.items():
        quality.lost(topic, int(health.get("lost", 0)))
        quality.dropped(topic, int(health.get("dropped", 0)))
    free_bytes = round(stored.free_gb * GIGABYTE) if stored.free_gb else sys.maxsize
    verdict = quality.verdict(now_ns, free_bytes, stored.waited_bytes)
    return replace(verdict, free_gb=stored.free_gb)


def _label(message: Received) -> Label:
    types = types_of_definition(message.schema.name, message.schema.data.decode())
    return decode_label(types, message.cdr)


def _by_revision(labels: Any) -> Mapping[int, Label]:
    return {label.revision: label for label in labels}


def _differences(revision: int, in_bag: Label | None, told: Label | None) -> Iterator[str]:
    if in_bag is None or told is None:
        where, lacking = ("the bag", label_log.LABEL_LOG)[:: 1 if in_bag else -1]
        yield f"label revision {revision} is in {where} and not in {lacking}"
        return
    other = asdict(told)
    for name, value in asdict(in_bag).items():
        if value != other[name]:
            yield (
                f"label revision {revision}: {name} is {json.dumps(value)} in the bag and "
                f"{json.dumps(other[name])} in {label_log.LABEL_LOG}"
            )
