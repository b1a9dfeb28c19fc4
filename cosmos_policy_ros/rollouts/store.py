"""The folder of all episodes and the one being recorded; the recorder node is a shell over it."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from rosbags.typesys.store import Typestore

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rig.share import share_folder
from cosmos_policy_ros.rollouts.bag_metadata import read_metadata, with_notes, write_metadata
from cosmos_policy_ros.rollouts.bag_writer import DISCARDED, RECORDING, BagWriter
from cosmos_policy_ros.rollouts.durable import locked, rename
from cosmos_policy_ros.rollouts.episode import (
    DISCARD_REASON,
    bare_id,
    episode_id,
    id_number,
    read_episode,
)
from cosmos_policy_ros.rollouts.integrity import Integrity, load_limits
from cosmos_policy_ros.rollouts.labelling import add_labels, labels_of
from cosmos_policy_ros.rollouts.mcap_file import Topic
from cosmos_policy_ros.rollouts.messages import EpisodeFacts, Label, check_text
from cosmos_policy_ros.rollouts.pictures import jpeg_topic
from cosmos_policy_ros.rollouts.recording import Options, Recording
from cosmos_policy_ros.rollouts.rubric import Judgement
from cosmos_policy_ros.rollouts.salvage import (
    RecordingInProgressError,
    Recovered,
    recover,
    unfinished,
)

DEFAULTS = Options()


class EpisodeStore:
    """Owns one folder of episodes. Safe to share between threads; one recording at a time."""

    def __init__(
        self, root: Path, types: Typestore, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        """Open, or make, the folder ``root``.

        Args:
            root: one folder per episode is kept in it.
            types: knows the type of every topic to be recorded (``types.load_types``).
            clock: nanoseconds now, by the clock that stamps the recorded messages.

        Raises:
            RolloutError: the folder cannot be made.
        """
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
        """Return the folder of every episode by id, oldest first, whatever their state.

        Raises:
            RolloutError: the root folder cannot be listed.
        """
        try:
            folders = [path for path in self.root.iterdir() if id_number(path.name)]
        except OSError as error:
            raise RolloutError(f"{self.root}: cannot be listed: {error}") from error
        folders.sort(key=lambda path: (id_number(path.name), path.name))
        return {bare_id(path.name): path for path in folders}

    def find(self, episode: str = "") -> Path:
        """Return the folder of an episode; of the newest when ``episode`` is empty.

        Raises:
            RolloutError: no such episode, with the nearest id.
        """
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
        facts: EpisodeFacts,
        topics: Sequence[Topic],
        integrity: Integrity | None = None,
        options: Options = DEFAULTS,
    ) -> Recording:
        """Start an episode; its id is made here, whatever ``facts`` says.

        Args:
            facts: what is known now.
            topics: what will be written, as it comes in.
            integrity: judges it; by default nothing but losses and the disk.
            options: how it is written.

        Raises:
            RolloutError: one is being recorded, a topic cannot be recorded, or the disk refused.
        """
        with self._lock:
            if self.recording is not None:
                raise RolloutError(
                    f"episode '{self.recording.id}' is being recorded; stop or discard it first"
                )
            name = episode_id(facts.task, datetime.now(), self.episodes())
            facts = replace(facts, episode_id=name)
            writer = BagWriter(
                self.root / name,
                [jpeg_topic(topic) if topic in options.jpegs else topic for topic in topics],
                facts,
                types=self._types,
                start_ns=self._clock(),
                compression=options.compression,
            )
            watch = integrity or Integrity((), 0.0, load_limits(share_folder() / "config"))
            self._recording = Recording(facts, writer, self._types, self._lock, watch, options)
            return self._recording

    def score(self, judgement: Judgement, *, episode: str = "") -> tuple[Label, ...]:
        """Label an episode, now or long after; return the labels, the score last.

        Earlier labels stay; the score with the highest revision counts. A discarded episode can be
        labelled too.

        Args:
            judgement: a total, or stages and deductions of the rubric that was in force.
            episode: its id; empty for the one being recorded, else the newest.

        Raises:
            RolloutError: not a score, no such episode, its bag is unfinished, or the disk refused;
                nothing has changed then.
        """
        with self._lock:
            recording = self._recorded_now(episode)
            if recording is not None:
                return recording.label(labels_of(recording.facts, judgement, self._clock()))
            folder = self.find(episode)
            _refuse_unfinished(folder)
            facts = replace(read_episode(folder).facts, episode_id=bare_id(folder.name))
            return add_labels(folder, labels_of(facts, judgement, self._clock()), self._types)

    def discard(self, reason: str, *, operator_name: str = "", episode: str = "") -> Path:
        """Mark an episode as not to be used, now or long after; nothing is deleted.

        Args:
            reason: kept as a label and in the bag's metadata.
            operator_name: who says so.
            episode: its id; empty for the one being recorded, else the newest.

        Raises:
            RolloutError: no such episode, discarded before, unfinished, or the disk refused.
        """
        check_text(DISCARD_REASON, reason)
        with self._lock:
            recording = self._recorded_now(episode)
            folder = recording.path if recording is not None else self.find(episode)
            label = Label(
                bare_id(folder.name),
                0,
                "discard",
                self._clock(),
                operator_name=operator_name,
                note=reason,
            )
            if recording is not None:
                return recording.discard([label])
            return _discard(folder, label, self._types)

    def recover(self) -> tuple[Recovered | RolloutError, ...]:
        """Make whole what dead recorders left; an error for each that cannot be, never raised.

        What cannot be recovered stays as it is, named in its error. What a living recorder holds,
        this one's too, is passed over.
        """
        results: list[Recovered | RolloutError] = []
        try:
            folders = unfinished(self.root)
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
        return (
            recording if recording is not None and bare_id(episode) in ("", recording.id) else None
        )


def _discard(folder: Path, label: Label, types: Typestore) -> Path:
    if folder.name.endswith(DISCARDED):
        before = (read_metadata(folder).get("custom_data") or {}).get(DISCARD_REASON, "")
        raise RolloutError(f"episode '{bare_id(folder.name)}' was discarded before: '{before}'")
    _refuse_unfinished(folder)
    final = folder.with_name(folder.name + DISCARDED)
    add_labels(folder, [label], types)
    try:
        with locked(folder):
            notes = {DISCARD_REASON: label.note}
            write_metadata(folder, with_notes(read_metadata(folder), notes))
            rename(folder, final)
    except OSError as error:
        raise RolloutError(f"{folder}: cannot be discarded: {error}") from error
    return final


def _refuse_unfinished(folder: Path) -> None:
    if folder.name.endswith(RECORDING):
        raise RolloutError(f"{folder}: is unfinished: its recorder died, or another one has it")
