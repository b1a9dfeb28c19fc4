"""The episode being recorded: a queue that never blocks its caller, and a thread that writes.

The queue is bounded in bytes. What does not fit, while the disk hesitates, is dropped, counted and
told; nothing is lost without a word.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rosbags.typesys.store import Typestore

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts import journal
from cosmos_policy_ros.rollouts.bag_writer import LABEL_TOPIC, BagWriter
from cosmos_policy_ros.rollouts.episode import DISCARD_REASON, OUTCOME
from cosmos_policy_ros.rollouts.labelling import encode, number
from cosmos_policy_ros.rollouts.messages import EpisodeFacts, Label, check_text

FLUSH_PERIOD = 0.5  # s; what was received longer ago survives this process
QUEUE_BYTES = 256 << 20  # three seconds of three raw 640x480 cameras at 30 Hz


class _Received(NamedTuple):
    topic: str
    stamp_ns: int
    cdr: bytes


class Recording:
    """Ends once, by :meth:`finish` or :meth:`discard`. Safe to share between threads."""

    def __init__(
        self,
        facts: EpisodeFacts,
        writer: BagWriter,
        types: Typestore,
        lock: threading.RLock,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        """Take over an open bag; ``lock`` is the store's, which keeps labels and the end apart."""
        self.facts = facts
        self._writer = writer
        self._types = types
        self._lock = lock
        self._labels: tuple[Label, ...] = ()
        self._queue: queue.SimpleQueue[_Received | None] = queue.SimpleQueue()
        self._queue_bytes, self._waiting = queue_bytes, 0
        self._counting = threading.Lock()
        self.dropped: dict[str, int] = {}
        self.most_waiting = 0
        self._thread = threading.Thread(target=self._write_all, name="bag writer", daemon=True)
        self._thread.start()

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
    def failure(self) -> str:
        """Why it ended, or failed; empty while it takes messages."""
        return self._writer.ended

    @property
    def counts(self) -> Mapping[str, int]:
        """Messages written so far, per topic."""
        return dict(self._writer.counts)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Message bytes written so far, per topic."""
        return dict(self._writer.sizes)

    def write(self, topic: str, stamp_ns: int, cdr: bytes) -> None:
        """Take one message, byte for byte, and return at once.

        Args:
            topic: one of the topics that the recording began with.
            stamp_ns: when it was received, nanoseconds of the recorder's clock.
            cdr: the serialised message.
        """
        with self._counting:
            if self._waiting + len(cdr) > self._queue_bytes:
                self.dropped[topic] = self.dropped.get(topic, 0) + 1
                return
            self._waiting += len(cdr)
            self.most_waiting = max(self.most_waiting, self._waiting)
        self._queue.put(_Received(topic, stamp_ns, cdr))

    def label(self, labels: Sequence[Label]) -> tuple[Label, ...]:
        """Write labels into journal and bag; return them with their revisions.

        Raises:
            RolloutError: the recording has ended, or the disk refused; nothing was taken then.
        """
        with self._lock:
            if not self.open:
                raise RolloutError(f"episode '{self.id}' takes nothing more: {self.failure}")
            numbered = number(labels, self._labels)
            try:
                length = journal.append(self.path, numbered)
            except OSError as error:
                raise RolloutError(f"{self.path}: cannot be labelled: {error}") from error
            try:
                for each, cdr in zip(numbered, encode(numbered, self._types), strict=True):
                    self._writer.write(LABEL_TOPIC.name, each.stamp_ns, cdr)
                self._writer.flush()
            except RolloutError:
                journal.undo(self.path, length)
                raise
            self._labels += numbered
        return numbered

    def finish(self, outcome: str) -> Path:
        """Write what waits and close the bag; return its folder.

        Args:
            outcome: why the trial ended, such as "time_limit" or "stopped"; kept in the metadata.

        Raises:
            RolloutError: it has ended before, or the disk refused; the ``.recording`` folder stays.
        """
        check_text(OUTCOME, outcome)
        return self._end({OUTCOME: outcome}, discarded=False)

    def discard(self, labels: Sequence[Label]) -> Path:
        """Label it as discarded, close the bag as ``<episode_id>.discarded``; return its folder.

        Raises:
            RolloutError: as for :meth:`finish`.
        """
        with self._lock:
            (label,) = self.label(labels)
            return self._end({DISCARD_REASON: label.note}, discarded=True)

    def _end(self, notes: Mapping[str, str], *, discarded: bool) -> Path:
        with self._lock:
            self._queue.put(None)
            self._thread.join()
            return self._writer.close(notes, discarded=discarded)

    def _write_all(self) -> None:
        flushed = time.monotonic()
        while True:
            left = flushed + FLUSH_PERIOD - time.monotonic()
            try:
                received = self._queue.get(timeout=max(left, 0.0))
            except queue.Empty:
                received = _Received("", 0, b"")
            if received is None:
                return
            try:
                if received.topic:
                    self._writer.write(*received)
                if time.monotonic() - flushed >= FLUSH_PERIOD:
                    self._writer.flush()
                    flushed = time.monotonic()
            except RolloutError:
                return  # ``failure`` says why; the queue's bound holds the rest
            finally:
                with self._counting:
                    self._waiting -= len(received.cdr)
