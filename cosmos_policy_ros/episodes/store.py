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
from typing import NamedTuple

from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.jpeg import jpeg_topic
from cosmos_policy_ros.bags.mcap_file import Topic, to_yaml
from cosmos_policy_ros.bags.messages import (
    EpisodeMetadata,
    Label,
    check_text,
    decode_metadata,
    encode_label,
)
from cosmos_policy_ros.bags.repair import ScanResult, describe_scan, repair_file, survey
from cosmos_policy_ros.bags.types import types_of_definition
from cosmos_policy_ros.bags.writer import (
    DISCARDED,
    EPISODE_TOPIC,
    LABEL_TOPIC,
    METADATA,
    RECORDING,
    BagWriter,
    add_file,
    add_notes,
    read_metadata,
    write_metadata,
)
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import FolderLock, locked, rename, sync
from cosmos_policy_ros.core.untrusted import UnreadableError, reading
from cosmos_policy_ros.episodes.episode import (
    DISCARD_REASON,
    OUTCOME,
    RECOVERED,
    Episode,
    bare_id,
    episode_id,
    id_number,
    read_episode,
)
from cosmos_policy_ros.episodes.labels import OperatorScore, labels_of, logged, number
from cosmos_policy_ros.episodes.quality import QualityMonitor, load_limits
from cosmos_policy_ros.episodes.recording import FLUSH_PERIOD, Options, Recording

PURGED = ".purged"
"""Suffix of what is being deleted: half an episode must not be taken for one."""
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
        """Return the folder of every episode by id, oldest first, whatever their state."""
        try:
            folders = [path for path in self.root.iterdir() if id_number(path.name)]
        except OSError as error:
            raise RolloutError(f"{self.root}: cannot be listed: {error}") from error
        folders.sort(key=lambda path: (id_number(path.name), path.name))
        return {bare_id(path.name): path for path in folders}

    def find(self, episode: str = "") -> Path:
        """Return the folder of an episode; of the newest when ``episode`` is empty."""
        known = self.episodes()
        if not known:
            raise RolloutError(f"{self.root}: holds no episode yet; start one first")
        newest = next(reversed(known))
        wanted = bare_id(episode) or newest
        if wanted not in known:
            near = difflib.get_close_matches(wanted, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"the newest is '{newest}'"
            raise RolloutError(f"episode '{episode}' is not in {self.root}; {hint}")
        return known[wanted]

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
            name = episode_id(metadata.task, datetime.now(), self.episodes())
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
            name, now_ns = bare_id(folder.name), self._clock()
            label = Label(name, 0, "discard", now_ns, operator_name=operator_name, note=reason)
            if recording is not None:
                return recording.discard(label)
            if folder.name.endswith(DISCARDED):
                before = (read_metadata(folder).get("custom_data") or {}).get(DISCARD_REASON, "")
                raise RolloutError(f"episode '{name}' was discarded before: '{before}'")
            add_labels(folder, lambda _: [label], self._types)
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
            except RecordingInProgressError:
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
    if folder.name.endswith(RECORDING):
        raise RolloutError(
            f"{folder}: is unfinished: its recorder died, or another one has it; recover it first"
        )
    try:
        with locked(folder):
            information = read_metadata(folder)
            episode = read_episode(folder, information)
            numbered = number(labels(episode), episode.labels)
            with logged(folder, numbered):
                messages = [encode_label(types, label) for label in numbered]
                add_file(folder, information, LABEL_TOPIC, messages, types)
    except OSError as error:
        raise RolloutError(
            f"{folder}: cannot be labelled: {error}; the bag is as before, label it again"
        ) from error
    return numbered


class RecordingInProgressError(RolloutError):
    """The episode belongs to a recorder that lives."""


class Recovered(NamedTuple):
    """A recovered episode: its folder, its messages, and what is missing."""

    path: Path
    messages: int
    loss: str


def recover(folder: Path) -> Recovered:
    """Finish ``<episode_id>.recording`` in place and give it its real name. Nothing is deleted.

    Raises:
        RolloutError: it is being recorded, nothing in it can be read, or the disk refused; it is
            unchanged then, and can be recovered again.
    """
    # Whatever a damaged file makes a parser raise, a recorder that starts goes on to the next.
    with reading(folder, "an unfinished episode", RolloutError, "left as it is"):
        if folder.is_symlink() or not folder.is_dir():
            raise UnreadableError("is no folder, so no recorder made it")
        try:
            hold = FolderLock(folder)
        except BlockingIOError:
            raise RecordingInProgressError(
                f"{folder}: is being recorded by a recorder that lives"
            ) from None
        try:
            return _recover(folder)
        except RolloutError as error:
            if str(folder) in str(error):
                raise
            raise RolloutError(f"{folder}: {error}; left as it is") from error
        finally:
            hold.release()


def _recover(folder: Path) -> Recovered:
    """Look at everything first: a folder that cannot be recovered stays as it is."""
    final = folder.with_name(bare_id(folder.name))
    file = folder / f"{final.name}_0.mcap"
    if file.is_symlink() or not file.is_file():
        raise RolloutError(f"{folder}: has no {file.name}, so there is nothing to recover")
    scan = survey(file)
    loss = "nothing: its recorder died after its last message was written"
    if not scan.finished:
        loss = f"up to {FLUSH_PERIOD:g} s before its recorder died were not yet written"
        if scan.cut_bytes:
            loss += f"; {scan.cut_bytes} bytes of a torn chunk were cut off"
    information = None
    if not (folder / METADATA).exists():
        notes = {OUTCOME: "its recorder died", RECOVERED: loss}
        notes = {**_metadata(file, scan).custom_data(), **notes}
        information = describe_scan(file.name, scan, notes)
        to_yaml(information)  # what cannot be written shows here
    else:  # it died between the last write and the folder's real name
        read_metadata(folder)
    try:
        repair_file(file, scan)
        if information is not None:
            write_metadata(folder, information)
        sync(folder)
        rename(folder, final)
    except OSError as error:
        raise RolloutError(
            f"{folder}: cannot be recovered now: {error}; free disk space, or make the folder "
            f"writable, and recover it again"
        ) from error
    return Recovered(final, scan.total.total(), loss)


def _metadata(file: Path, scan: ScanResult) -> EpisodeMetadata:
    for channel in scan.channels.values():
        if channel.topic == EPISODE_TOPIC.name and channel.id in scan.first:
            schema = scan.schemas[channel.schema_id]
            types = types_of_definition(schema.name, schema.data.decode())
            return decode_metadata(types, scan.first[channel.id].data)
    raise RolloutError(f"{file}: has no message on '{EPISODE_TOPIC.name}'; it is no episode")


def discarded(root: Path) -> tuple[Path, ...]:
    """Return the folders of the discarded episodes, and those a purge that died has left."""
    try:
        folders = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError as error:
        raise RolloutError(f"{root}: cannot be listed: {error}") from error
    return tuple(sorted(path for path in folders if _is_discarded(path)))


def delete(folder: Path) -> None:
    """Delete a discarded episode for good; what a disk that refuses leaves of it, the next purge.

    Raises:
        RolloutError: it is not discarded, or the disk refused.
    """
    if not _is_discarded(folder):
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


def _is_discarded(folder: Path) -> bool:
    name = folder.name.removesuffix(PURGED)
    return name.endswith(DISCARDED) and id_number(name) > 0
