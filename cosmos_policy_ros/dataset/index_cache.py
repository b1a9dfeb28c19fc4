"""The index of an episode and its report, kept on disk so that a data set is looked through once.

To index an episode is to read some bytes of each of its messages, and every trajectory: a fifth of
a second, minutes for a data set; to judge it takes a state per step and some images besides. What
was found is kept under a digest of the episode's files and of the code that reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cosmos_policy_ros
from cosmos_policy_ros.bags.index import IndexedTopic, MessageLocation
from cosmos_policy_ros.bags.messages import EpisodeMetadata, Label
from cosmos_policy_ros.core.disk_cache import DiskCache, cache_folder
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import read_text, reading
from cosmos_policy_ros.dataset.checks import (
    CheckLimits,
    EpisodeReport,
    Expected,
    judge_episode,
    prompt_fault,
)
from cosmos_policy_ros.dataset.motion import read_motion
from cosmos_policy_ros.dataset.windows import EpisodeWindows, Sent
from cosmos_policy_ros.episodes.episode import Episode, TopicSummary, read_episode
from cosmos_policy_ros.episodes.quality import QualityReport

LIMIT = 2 << 30  # bytes; an episode of a minute has one million
WHOLE = 1 << 20  # bytes up to which a file is known by its content, beyond by size and change
ROOMS = ("core", "rig", "model", "bags", "episodes", "dataset")  # whose code decides what is found


def users_cache() -> DiskCache:
    """Return the cache of the person who runs this; ``make_room`` is its users' to call."""
    return DiskCache(cache_folder("episodes"), LIMIT)


class Found(NamedTuple):
    """What is kept of an episode."""

    episode: Episode
    topics: Mapping[str, IndexedTopic]
    sent: tuple[Sent, ...]


class IndexedEpisode:
    """A finished episode, from the cache or from its bag.

    Attributes:
        episode: its summary.
        digest: sha256 (hex) of its files, as far as their names, sizes and times of change tell,
            and of the code that reads them.
    """

    def __init__(self, path: Path, cache: DiskCache | None = None) -> None:
        """Read the summary.

        Args:
            path: the bag's folder.
            cache: by default the user's.

        Raises:
            RolloutError: the bag is unfinished, unreadable, or not an episode of this package.
        """
        self._cache = cache or users_cache()
        with reading(path, "an episode", RolloutError):
            self.digest = digest_of_files(path)
        self._found = self._read(path)
        self.episode = read_episode(path) if self._found is None else self._found.episode

    def windows(self, dt: float | None = None) -> EpisodeWindows:
        """Return random access to its windows; see :class:`EpisodeWindows` for errors."""
        if self._found is not None:
            return EpisodeWindows(self.episode, dt, self._found.topics, self._found.sent)
        windows = EpisodeWindows(self.episode, dt)
        with suppress(OSError):
            self._write(Found(self.episode, windows.indexed, windows.sent))
        return windows

    def report(
        self, windows: EpisodeWindows, dt: float, limits: CheckLimits, expected: Expected
    ) -> EpisodeReport:
        """Judge the episode, or return what was found by the same measures before.

        Args:
            windows: of this episode.
            dt: seconds per step that they were made with.
            limits: of ``checks.yaml``.
            expected: of the checkpoint that is to learn from it.

        Raises:
            RolloutError: the bag is damaged.
        """
        # Of the prompts only what they say of this episode: a checkpoint that learns new ones is
        # the same to all others.
        prompt = prompt_fault(self.episode.metadata.prompt, expected)
        measures = [dt, asdict(limits), prompt, expected.chunk_steps]
        measures += [expected.camera_size, expected.image_size]
        key = hashlib.sha256(json.dumps([self.digest, measures]).encode()).hexdigest()
        with suppress(OSError, ValueError):  # whatever became of the file, the bag has it all
            if file := self._cache.find(key):
                return EpisodeReport.from_json(read_text(file))
        report = judge_episode(windows, read_motion(windows, dt), limits, expected=expected)
        with suppress(OSError), self._cache.making(key) as draft:
            draft.write_text(report.to_json(), encoding="utf-8")
        return report

    def _read(self, path: Path) -> Found | None:
        file = self._cache.find(self.digest)
        if file is None:
            return None
        try:
            return _load(file, path)
        except Exception:  # whatever became of the file, the bag has it all
            with suppress(OSError):
                file.unlink()
            return None

    def _write(self, found: Found) -> None:
        with self._cache.making(self.digest) as draft, draft.open("wb") as file:
            np.savez(file, **_as_arrays(found))


def digest_of_files(folder: Path) -> str:
    """Return the digest of an episode's files and of the code that reads them.

    Raises:
        OSError: the folder cannot be read.
    """
    sha = hashlib.sha256(digest_of_code().encode())
    sha.update(folder.name.encode(errors="surrogateescape"))
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        status = path.stat()
        sha.update(path.name.encode(errors="surrogateescape") + b"\0")
        known = path.read_bytes() if status.st_size <= WHOLE else str(status.st_mtime_ns).encode()
        sha.update(f"{status.st_size} ".encode() + hashlib.sha256(known).digest())
    return sha.hexdigest()


@lru_cache
def digest_of_code(*others: str) -> str:
    """Return the digest of the code that reads episodes, and of ``others``, rooms as well."""
    package = Path(cosmos_policy_ros.__file__).parent
    sha = hashlib.sha256()
    for room in (*ROOMS, *others):
        for path in sorted((package / room).glob("*.py")):
            sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()


# ---------------------------------------------------------------- one file
#
# Numbers of all topics one below the other, and of all trajectories; the rest as JSON.


def _as_arrays(found: Found) -> dict[str, Any]:
    episode = found.episode
    about = {
        "files": [file.name for file in episode.files],
        "metadata": asdict(episode.metadata),
        "labels": [asdict(label) for label in episode.labels],
        "quality": episode.quality.to_json(),
        "summaries": {name: asdict(summary) for name, summary in episode.topics.items()},
        **{name: getattr(episode, name) for name in _PLAIN},
        "topics": [
            [name, topic.msgtype, topic.definition, len(topic)]
            for name, topic in found.topics.items()
        ],
        "sent": [[each.chunk_id, each.start_ns, len(each.offsets_ns)] for each in found.sent],
    }
    tables = [
        np.column_stack([topic.stamps_ns, topic.received_ns, topic.places])
        for topic in found.topics.values()
    ]
    return {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "messages": _joined(tables, (0, 2 + len(MessageLocation._fields)), np.int64),
        "offsets_ns": _joined([each.offsets_ns for each in found.sent], (0,), np.int64),
        "positions": _joined([each.positions for each in found.sent], (0, 0), np.float64),
    }


_PLAIN = (
    *("id", "outcome", "discarded", "discard_reason", "recovered"),
    *("start_ns", "duration_ns", "source_notes"),
)


def _joined(parts: Sequence[Any], empty: tuple[int, ...], dtype: Any) -> Any:
    return np.concatenate(parts) if parts else np.zeros(empty, dtype)


def _load(file: Path, folder: Path) -> Found:
    with np.load(file, allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        table, offsets_ns, positions = (
            arrays[name] for name in ("messages", "offsets_ns", "positions")
        )
    episode = Episode(
        path=folder,
        files=tuple(folder / name for name in about["files"]),
        metadata=EpisodeMetadata(**about["metadata"]),
        topics={name: TopicSummary(**each) for name, each in about["summaries"].items()},
        labels=tuple(Label(**each) for each in about["labels"]),
        quality=QualityReport.from_json(about["quality"]),
        **{name: about[name] for name in _PLAIN},
    )
    topics, end = {}, 0
    for name, msgtype, definition, count in about["topics"]:
        begin, end = end, end + count
        rows = table[begin:end]
        topics[name] = IndexedTopic(
            msgtype, definition, episode.files, rows[:, 0], rows[:, 1], rows[:, 2:]
        )
    sent, end = [], 0
    for chunk_id, start_ns, count in about["sent"]:
        begin, end = end, end + count
        sent.append(Sent(chunk_id, start_ns, offsets_ns[begin:end], positions[begin:end]))
    return Found(episode, topics, tuple(sent))
