"""Whether an episode is still what was recorded: bytes, counts, labels, and the quality report.

Nothing is changed here but by :func:`store_quality`.
"""

from __future__ import annotations

import json
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cosmos_policy_ros.bags.check import CheckedFile, Received
from cosmos_policy_ros.bags.messages import Label, decode_label
from cosmos_policy_ros.bags.storages import storage_files
from cosmos_policy_ros.bags.types import types_of_definition
from cosmos_policy_ros.bags.writer import EPISODE_TOPIC, LABEL_TOPIC, add_notes
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import locked
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.episodes.episode import QUALITY, Episode, read_episode
from cosmos_policy_ros.episodes.folders import State, left_over, look, recover_command
from cosmos_policy_ros.episodes.labels import LABEL_LOG, read_log
from cosmos_policy_ros.episodes.quality import (
    GIGABYTE,
    QualityLimits,
    QualityMonitor,
    QualityReport,
    sensors_of,
)
from cosmos_policy_ros.episodes.topics import find_rig

_T = TypeVar("_T")


@dataclass(frozen=True)
class Verification:
    """The findings on one episode."""

    path: Path
    problems: tuple[str, ...]  # one sentence each
    quality: QualityReport | None  # what its messages make it, if they could be judged
    stale: bool  # the stored quality report is another one, or there is none
    messages: int  # read and sound
    advice: str = ""  # what mends it, where its problems do not say so themselves


def verify(folder: Path, limits: QualityLimits) -> Verification:
    """Read an episode whole and hold its parts against each other.

    Checksums, index and counts of every file; ``metadata.yaml``; the labels in bag and log; the
    quality report, made again from the messages, the rig in the metadata and ``limits``. What the
    bytes cannot tell, losses before the disk and the space left on it, is taken from the stored
    report.
    """
    problems: list[str] = []

    def attempt(read: Callable[[], _T]) -> _T | None:
        try:
            with reading(folder, "an episode", RolloutError):
                return read()
        except RolloutError as error:
            problems.append(str(error))
            return None

    state = look(folder)
    if state.trouble:
        problems.append(state.trouble)
        if state.state is not State.DAMAGED:
            return Verification(folder, tuple(problems), None, False, 0)
    information = state.information or {}
    episode = None if state.trouble else attempt(lambda: read_episode(folder, state))
    monitor = attempt(lambda: _monitor(episode, limits)) if episode else None
    listed: list[str] = information.get("relative_file_paths", [])
    present = {path.name for path in storage_files(folder) if path.suffix == ".mcap"}
    names = [name for name in listed if (folder / name).is_file()]
    problems += [
        f"{name} is in metadata.yaml and not in the folder" for name in listed if name not in names
    ]
    left = {path.name for path in left_over(folder, information)} if information else set()
    problems += [
        f"{name} is left of a compaction that was killed; 'cosmos episodes compact' removes it"
        for name in sorted(left)
    ]
    mendable = bool(present.difference(listed, left))
    for name in sorted(present.difference(listed, left)):
        problems.append(f"{name} is in the folder and not in metadata.yaml")
        names.append(name)
    files = [CheckedFile(folder / name) for name in names]
    labels: list[Label] = []
    newest_ns = 0
    for message in (message for file in files for message in file.messages()):
        if message.topic == LABEL_TOPIC.name:
            if label := attempt(partial(_label, message)):
                labels.append(label)
        elif message.topic != EPISODE_TOPIC.name:
            newest_ns = max(newest_ns, message.stamp_ns)
            try:
                if monitor is not None:
                    monitor.add(message.topic, message.stamp_ns, message.cdr)
            except (struct.error, IndexError):
                problems.append(f"a message of {message.topic} has no header; it was not judged")
                monitor = None
    damage = [problem for file in files for problem in file.problems]
    problems += damage
    mendable = mendable or bool(damage)
    quality, stale = None, False
    if not damage and files and episode is not None:
        misfits = attempt(lambda: list(_compare_metadata(information, files))) or []
        problems += misfits
        if (told := sum(file.counts[EPISODE_TOPIC.name] for file in files)) != 1:
            problems.append(f"{told} messages of metadata, expected 1")
        in_log, unreadable = attempt(lambda: read_log(folder)) or ((), ())
        revisions = [{label.revision for label in where} for where in (labels, in_log)]
        mendable = mendable or bool(misfits) or revisions[0] != revisions[1]
        problems += [*unreadable, *_compare_labels(labels, in_log)]
        if monitor is not None:
            text = (information.get("custom_data") or {}).get(QUALITY, "")
            try:
                stored = QualityReport.from_json(text) if text else None
            except ValueError as error:
                problems.append(f"metadata.yaml: the verdict cannot be read: {error}")
                stored = None
            quality = _report(monitor, newest_ns, stored)
            stale = not stored or (stored.go, stored.reasons) != (quality.go, quality.reasons)
            if stale:
                before = f"its verdict is {stored.text}" if stored else "it was never judged"
                problems.append(f"{before}; its messages make it {quality.text}")
    messages = sum(file.counts.total() for file in files)
    advice = ""
    if mendable and not state.trouble:  # which tells it itself
        advice = f"keep what is whole, and correct the rest: {recover_command(folder)}"
    return Verification(folder, tuple(problems), quality, stale, messages, advice)


def store_quality(found: Verification) -> None:
    """Write the quality report that was made into the episode's metadata."""
    if found.quality is None:
        raise RolloutError(f"{found.path}: could not be judged, so there is no verdict to store")
    try:
        with locked(found.path):
            add_notes(found.path, {QUALITY: found.quality.to_json()})
    except OSError as error:
        raise RolloutError(f"{found.path}: the verdict cannot be stored: {error}") from error


def _monitor(episode: Episode, limits: QualityLimits) -> QualityMonitor:
    found = find_rig(episode)
    sensors = sensors_of(found.rig, found.topic)
    return QualityMonitor(sensors, found.rig.observation.camera_skew, limits)


def _label(message: Received) -> Label:
    types = types_of_definition(message.schema.name, message.schema.data.decode())
    return decode_label(types, message.cdr)


def _compare_metadata(
    information: Mapping[str, Any], files: Sequence[CheckedFile]
) -> Iterator[str]:
    found: Counter[str] = Counter()
    for file in files:
        found += file.counts
    stated: Counter[str] = Counter()
    for topic in information["topics_with_message_count"]:
        stated[topic["topic_metadata"]["name"]] += topic["message_count"]
    for name in sorted(stated | found):
        if stated[name] != found[name]:
            yield f"metadata.yaml: says {stated[name]} messages of {name}, {found[name]} found"
    start_ns = information["starting_time"]["nanoseconds_since_epoch"]
    stated_span = (start_ns, start_ns + information["duration"]["nanoseconds"])
    spans = [file.stamps for file in files if file.stamps]
    span = (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else (0, 0)
    if span != stated_span:
        yield (
            f"metadata.yaml: says it spans {stated_span[0]} to {stated_span[1]} ns, found "
            f"{span[0]} to {span[1]}"
        )


def _compare_labels(in_bag: Sequence[Label], in_log: Sequence[Label]) -> Iterator[str]:
    for labels, where in ((in_bag, "the bag"), (in_log, LABEL_LOG)):
        for revision, count in Counter(label.revision for label in labels).items():
            if count > 1:
                yield f"label revision {revision} is {count} times in {where}"
    bag = {label.revision: asdict(label) for label in in_bag}
    log = {label.revision: asdict(label) for label in in_log}
    for revision in sorted(bag.keys() | log.keys()):
        if revision not in log:
            yield f"label revision {revision} is in the bag and not in {LABEL_LOG}"
        elif revision not in bag:
            yield f"label revision {revision} is in {LABEL_LOG} and not in the bag"
        else:
            for name, value in bag[revision].items():
                if value != (other := log[revision][name]):
                    yield (
                        f"label revision {revision}: {name} is {json.dumps(value)} in the bag and "
                        f"{json.dumps(other)} in {LABEL_LOG}"
                    )


def _report(monitor: QualityMonitor, now_ns: int, stored: QualityReport | None) -> QualityReport:
    if stored is None:
        # 0.0 GB says that the disk was not looked at.
        return replace(monitor.report(now_ns, sys.maxsize), free_gb=0.0)
    for topic, health in stored.topics.items():
        monitor.lost(topic, int(health.get("lost", 0)))
        monitor.dropped(topic, int(health.get("dropped", 0)))
        monitor.unreadable(topic, int(health.get("unreadable", 0)))
    free_bytes = round(stored.free_gb * GIGABYTE) if stored.free_gb else sys.maxsize
    report = monitor.report(now_ns, free_bytes, stored.waited_bytes)
    return replace(report, free_gb=stored.free_gb)
