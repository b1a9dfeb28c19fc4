"""The folder of all episodes: the one being recorded, late labels, recovery, and deletion."""

from __future__ import annotations

import difflib
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.jpeg import jpeg_topic
from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata, Label, check_text, encode_label
from cosmos_policy_ros.bags.writer import (
    DISCARDED,
    LABEL_TOPIC,
    RECORDING,
    BagWriter,
    add_file,
    add_notes,
    read_metadata,
)
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import locked, rename
from cosmos_policy_ros.core.untrusted import reading, shown
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.episodes.folders import (
    DISCARD_REASON,
    ORIGINAL,
    PURGED,
    WHOLE,
    KnownId,
    bare_id,
    episode_id,
    id_number,
    known_ids,
    look,
)
from cosmos_policy_ros.episodes.labels import OperatorScore, labels_of, logged, number
from cosmos_policy_ros.episodes.quality import QualityMonitor, load_limits
from cosmos_policy_ros.episodes.recording import Options, Recording
from cosmos_policy_ros.episodes.recovery import FolderInUseError, Recovered, recover

DEFAULTS = Options()


class EpisodeStore:
    """Owns one folder of episodes. Safe to share between threads; one recording at a time."""

    def __init__(
        self, root: Path, types: Typestore, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        """Open, or make, the folder; ``clock`` [ns] stamps labels and the begin of an episode."""
        self.root = root
        self._types = types
        self._clock = clock
        self._lock = threading.RLock()
        self._recording: Recording | None = None
        self._known: dict[Path, KnownId] = {}
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RolloutError(f"{root}: cannot be the folder of episodes: {error}") from error

    @property
    def recording(self) -> Recording | None:
        """The episode being recorded, if any."""
        recording = self._recording
        return recording if recording is not None and recording.open else None

    def episodes(self) -> dict[str, Path]:
        """Return the folder of every episode by id, oldest first, whatever their state.

        Of two that have the same id, a copy and its original, the later one is listed by its
        folder's name.
        """
        found: dict[str, Path] = {}
        for path, episode in self._ids():
            name = path.name if episode in found else episode
            found[name] = path
        return found

    def find(self, episode: str = "") -> Path:
        """Return the folder of an episode; of the newest when ``episode`` is empty.

        Args:
            episode: the name of its folder, its id, or its number alone.

        Raises:
            RolloutError: there is none, or there are two.
        """
        known = self._ids()
        if not known:
            raise RolloutError(f"{self.root}: holds no episode yet; start one first")
        newest = known[-1][1]
        wanted = bare_id(episode) or newest
        found = (
            [path for path, _ in known if path.name == episode]
            or [path for path, _ in known if bare_id(path.name) == wanted]
            or [path for path, name in known if name == wanted]
            or [path for path, name in known if wanted.lstrip("0") == f"{id_number(name)}"]
        )
        if len(found) > 1:
            names = " and ".join(shown(path.name) for path in found)
            raise RolloutError(
                f"episode '{shown(episode)}' is in {len(found)} folders of {self.root}, {names}; "
                f"give the name of one of them"
            )
        if not found:
            near = difflib.get_close_matches(wanted, [name for _, name in known], n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"the newest is '{newest}'"
            raise RolloutError(f"episode '{shown(episode)}' is not in {self.root}; {hint}")
        return found[0]

    def _ids(self) -> list[tuple[Path, str]]:
        """Return each episode's folder and id, oldest first."""
        self._known = known_ids(self.root, self._known)
        return [(path, known.id) for path, known in self._known.items()]

    def begin(
        self,
        metadata: EpisodeMetadata,
        topics: Sequence[Topic],
        monitor: QualityMonitor | None = None,
        options: Options = DEFAULTS,
    ) -> Recording:
        """Start an episode.

        Args:
            metadata: its ``episode_id`` is made here, whatever it says.
            topics: the topics that are going to be written, names absolute.
            monitor: judges it; by default nothing but losses and the disk.
            options: how it is written.

        Raises:
            RolloutError: one is being recorded, a topic cannot be recorded, or the disk refused.
        """
        with self._lock:
            if self.recording is not None:
                raise RolloutError(
                    f"episode '{self.recording.id}' is being recorded; stop or discard it first"
                )
            taken = [each for path, known in self._ids() for each in (known, path.name)]
            name = episode_id(metadata.task, datetime.now(), taken)
            metadata = replace(metadata, episode_id=name)
            writer = BagWriter(
                self.root / name,
                [jpeg_topic(topic) if topic in options.jpegs else topic for topic in topics],
                metadata,
                types=self._types,
                start_ns=self._clock(),
                compression=options.compression,
            )
            monitor = monitor or QualityMonitor((), 0.0, load_limits())
            self._recording = Recording(metadata, writer, self._types, self._lock, monitor, options)
            return self._recording

    def score(self, operator_score: OperatorScore, *, episode: str = "") -> tuple[Label, ...]:
        """Label an episode, now or long after; return the labels, the score last.

        Earlier labels stay; the score with the highest revision counts. A discarded episode can be
        labelled too.

        Args:
            operator_score: by the rubric that was in force when it was recorded.
            episode: its id; empty for the one being recorded, else the newest.

        Raises:
            RolloutError: the score does not add up, there is no such episode, it is unfinished, or
                the disk refused; nothing has changed then.
        """
        with self._lock:
            if (recording := self._recorded_now(episode)) is not None:
                return recording.label(labels_of(recording.metadata, operator_score, self._clock()))
            folder = self.find(episode)

            def labels(found: Episode) -> Sequence[Label]:
                metadata = replace(found.metadata, episode_id=found.id)
                return labels_of(metadata, operator_score, self._clock())

            return add_labels(folder, labels, self._types)

    def discard(self, reason: str, *, operator_name: str = "", episode: str = "") -> Path:
        """Mark an episode as not to be used, now or long after; nothing is deleted.

        Args:
            reason: kept as a label and in the bag's metadata.
            operator_name: of that label.
            episode: its id; empty for the one being recorded, else the newest.

        Raises:
            RolloutError: no such episode, discarded before, unfinished, or the disk refused.
        """
        check_text(DISCARD_REASON, reason)
        with self._lock:
            recording = self._recorded_now(episode)
            folder = recording.path if recording is not None else self.find(episode)
            now_ns = self._clock()

            def label(name: str) -> Label:
                return Label(name, 0, "discard", now_ns, operator_name=operator_name, note=reason)

            if recording is not None:
                return recording.discard(label(recording.id))
            if folder.name.endswith(DISCARDED):
                before = (read_metadata(folder).get("custom_data") or {}).get(DISCARD_REASON, "")
                name = bare_id(folder.name)
                raise RolloutError(f"episode '{name}' was discarded before: '{before}'")
            add_labels(folder, lambda found: [label(found.id)], self._types)
            final = folder.with_name(folder.name + DISCARDED)
            try:
                with locked(folder):
                    add_notes(folder, {DISCARD_REASON: reason})
                    rename(folder, final)
            except OSError as error:
                raise RolloutError(f"{folder}: cannot be discarded: {error}") from error
            return final

    def recover(self) -> tuple[Recovered | RolloutError, ...]:
        """Recover what dead recorders left; errors are returned, not raised.

        An episode that cannot be recovered stays unchanged, named in its error. Those of living
        recorders, this one's too, are passed over.
        """
        results: list[Recovered | RolloutError] = []
        try:
            with reading(self.root, "a folder of episodes", RolloutError):
                folders = sorted(p for p in self.root.iterdir() if p.name.endswith(RECORDING))
        except RolloutError as error:
            return (error,)
        for folder in folders:
            try:
                results.append(recover(folder))
            except FolderInUseError:
                continue
            except RolloutError as error:
                results.append(error)
        return tuple(results)

    def _recorded_now(self, episode: str) -> Recording | None:
        recording = self.recording
        mine = recording is not None and bare_id(episode) in ("", recording.id)
        return recording if mine else None


def add_labels(
    folder: Path, labels: Callable[[Episode], Sequence[Label]], types: Typestore
) -> tuple[Label, ...]:
    """Give a finished episode further labels, which may depend on what it is.

    Returns:
        The labels with their revisions.

    Raises:
        RolloutError: the episode is unfinished, or the disk refused; nothing has changed then.
    """
    if trouble := look(folder).trouble:
        raise RolloutError(f"{folder}: {trouble}")
    try:
        with locked(folder):
            found = look(folder)
            episode = read_episode(folder, found)
            numbered = number(labels(episode), episode.labels)
            with logged(folder, numbered):
                messages = [encode_label(types, label) for label in numbered]
                assert found.information is not None, "it is whole"
                add_file(folder, found.information, LABEL_TOPIC, messages, types)
    except OSError as error:
        raise RolloutError(
            f"{folder}: cannot be labelled: {error}; the bag is as before, label it again"
        ) from error
    return numbered


def unwanted(root: Path) -> tuple[Path, ...]:
    """Return what a purge deletes: the folders of discarded episodes, and what was replaced.

    Discarded is what bears the mark in its name, so that renaming a folder keeps it. Of a recovered
    episode it is the original, as soon as the episode is whole; and what an interrupted purge left.

    Raises:
        RolloutError: the folder cannot be listed.
    """
    with reading(root, "a folder of episodes", RolloutError):
        folders = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    # Originals first: whether one is needed shows in the episode that was made of it.
    folders.sort(key=lambda path: (not path.name.endswith(ORIGINAL), path.name))
    return tuple(path for path in folders if _is_unwanted(path))


def delete(folder: Path) -> None:
    """Delete what a purge may; what a disk that refuses leaves of it, the next purge deletes.

    Raises:
        RolloutError: it is not discarded and was not replaced, or the disk refused.
    """
    if not _is_unwanted(folder):
        raise RolloutError(f"{folder}: is not discarded; only discarded episodes are deleted")
    try:
        if not folder.name.endswith(PURGED):
            doomed = folder.with_name(folder.name + PURGED)
            with locked(folder):
                rename(folder, doomed)
            folder = doomed
        shutil.rmtree(folder)
    except OSError as error:
        raise RolloutError(f"{folder}: cannot be deleted: {error}") from error


def _is_unwanted(folder: Path) -> bool:
    name = folder.name
    if name.endswith(PURGED):
        return name.removesuffix(PURGED).endswith((DISCARDED, ORIGINAL))
    if name.endswith(ORIGINAL):
        made = folder.with_name(name.removesuffix(ORIGINAL))
        return any(
            look(made.with_name(made.name + suffix)).state in WHOLE for suffix in ("", DISCARDED)
        )
    return name.endswith(DISCARDED) and bool(look(folder).id)
