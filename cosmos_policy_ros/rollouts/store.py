"""The folder of all episodes and the one being recorded; the recorder node is a shell over it."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from rosbags.typesys.store import Typestore

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts.bag_metadata import read_metadata, with_notes, write_metadata
from cosmos_policy_ros.rollouts.bag_writer import (
    DISCARDED,
    RECORDING,
    SCORE_TOPIC,
    BagWriter,
)
from cosmos_policy_ros.rollouts.durable import locked, rename
from cosmos_policy_ros.rollouts.episode import (
    DISCARD_REASON,
    OUTCOME,
    bare_id,
    episode_id,
    id_number,
    scores,
)
from cosmos_policy_ros.rollouts.late_labels import append_late
from cosmos_policy_ros.rollouts.mcap_file import Topic
from cosmos_policy_ros.rollouts.messages import EpisodeFacts, Score, check_text, encode_score


class Recording:
    """The episode being recorded. Ends once, by :meth:`finish` or :meth:`discard`."""

    def __init__(
        self, facts: EpisodeFacts, writer: BagWriter, types: Typestore, lock: threading.RLock
    ) -> None:
        """Take over an open bag; ``lock`` is the store's, which keeps labels and the end apart."""
        self.facts = facts
        self._writer = writer
        self._types = types
        self._lock = lock
        self._revision = 0

    @property
    def id(self) -> str:
        """The episode's id."""
        return self.facts.episode_id

    @property
    def path(self) -> Path:
        """The folder that is being written."""
        return self._writer.path

    @property
    def open(self) -> bool:
        """Whether it takes messages: it has not ended, and its bag has not failed."""
        return not self._writer.ended

    @property
    def counts(self) -> Mapping[str, int]:
        """Messages written so far, per topic."""
        return dict(self._writer.counts)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Message bytes written so far, per topic."""
        return dict(self._writer.sizes)

    def write(self, topic: str, stamp_ns: int, cdr: bytes) -> None:
        """Append one message; see :meth:`BagWriter.write`."""
        self._writer.write(topic, stamp_ns, cdr)

    def score(
        self, score: float, *, success: bool, operator_name: str, note: str, stamp_ns: int
    ) -> Score:
        """Write a label into the open bag and flush it; return it with its revision.

        Raises:
            RolloutError: not a score, the recording has ended, or the disk refused.
        """
        with self._lock:
            label = Score(
                self.id, self._revision + 1, score, success, operator_name, note, stamp_ns
            )
            self._writer.write(SCORE_TOPIC.name, stamp_ns, encode_score(self._types, label))
            self._writer.flush()
            self._revision = label.revision
        return label

    def finish(self, outcome: str) -> Path:
        """Close the bag; return its folder.

        Args:
            outcome: why the trial ended, such as "time_limit" or "stopped"; kept in the metadata.

        Raises:
            RolloutError: it has ended before, or the disk refused; the ``.recording`` folder stays.
        """
        check_text(OUTCOME, outcome)
        return self._end({OUTCOME: outcome}, discarded=False)

    def discard(self, reason: str) -> Path:
        """Close the bag as ``<episode_id>.discarded``, nothing deleted; return its folder.

        Raises:
            RolloutError: as for :meth:`finish`.
        """
        check_text(DISCARD_REASON, reason)
        return self._end({DISCARD_REASON: reason}, discarded=True)

    def _end(self, notes: Mapping[str, str], *, discarded: bool) -> Path:
        with self._lock:
            return self._writer.close(notes, discarded=discarded)


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

    def begin(self, facts: EpisodeFacts, topics: Sequence[Topic]) -> Recording:
        """Start an episode; its id is made here, whatever ``facts`` says.

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
                self.root / name, topics, facts, types=self._types, start_ns=self._clock()
            )
            self._recording = Recording(facts, writer, self._types, self._lock)
            return self._recording

    def score(
        self,
        score: float,
        *,
        success: bool,
        operator_name: str = "",
        note: str = "",
        episode: str = "",
    ) -> Score:
        """Label an episode, now or long after; return the label with its revision.

        Earlier labels stay; the last revision counts. A discarded episode can be labelled too.

        Args:
            score: 0 to 100.
            success: whether the task was done.
            operator_name: who says so.
            note: free text.
            episode: its id; empty for the one being recorded, else the newest.

        Raises:
            RolloutError: not a score, no such episode, its bag is unfinished, or the disk refused;
                nothing has changed then.
        """
        with self._lock:
            recording = self._recorded_now(episode)
            if recording is not None:
                return recording.score(
                    score,
                    success=success,
                    operator_name=operator_name,
                    note=note,
                    stamp_ns=self._clock(),
                )
            folder = self.find(episode)
            _refuse_unfinished(folder)
            label = Score(
                bare_id(folder.name), 1, score, success, operator_name, note, self._clock()
            )
            return self._append(folder, label)

    def discard(self, reason: str, *, episode: str = "") -> Path:
        """Mark an episode as not to be used, now or long after; nothing is deleted.

        Args:
            reason: kept in the bag's metadata.
            episode: its id; empty for the one being recorded, else the newest.

        Raises:
            RolloutError: no such episode, discarded before, unfinished, or the disk refused.
        """
        with self._lock:
            recording = self._recorded_now(episode)
            if recording is not None:
                return recording.discard(reason)
            check_text(DISCARD_REASON, reason)
            return _discard(self.find(episode), reason)

    def _recorded_now(self, episode: str) -> Recording | None:
        recording = self.recording
        return (
            recording if recording is not None and bare_id(episode) in ("", recording.id) else None
        )

    def _append(self, folder: Path, label: Score) -> Score:
        try:
            with locked(folder):
                revision = 1 + max((s.revision for s in scores(folder)), default=0)
                label = replace(label, revision=revision)
                append_late(
                    folder, SCORE_TOPIC, encode_score(self._types, label), types=self._types
                )
        except OSError as error:
            raise RolloutError(f"{folder}: cannot be labelled: {error}; label it again") from error
        return label


def _discard(folder: Path, reason: str) -> Path:
    if folder.name.endswith(DISCARDED):
        before = (read_metadata(folder).get("custom_data") or {}).get(DISCARD_REASON, "")
        raise RolloutError(f"episode '{bare_id(folder.name)}' was discarded before: '{before}'")
    _refuse_unfinished(folder)
    final = folder.with_name(folder.name + DISCARDED)
    try:
        with locked(folder):
            write_metadata(folder, with_notes(read_metadata(folder), {DISCARD_REASON: reason}))
            rename(folder, final)
    except OSError as error:
        raise RolloutError(f"{folder}: cannot be discarded: {error}") from error
    return final


def _refuse_unfinished(folder: Path) -> None:
    if folder.name.endswith(RECORDING):
        raise RolloutError(f"{folder}: is unfinished: its recorder died, or another one has it")
