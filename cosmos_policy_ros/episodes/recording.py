"""The episode being recorded: a queue that never blocks its caller, and a thread that writes.

The queue is bounded in bytes. What does not fit, while the disk hesitates, is dropped and counted.
Images become JPEG in threads of their own, and are written in the order in which they came.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.jpeg import jpeg_topic, to_compressed
from cosmos_policy_ros.bags.mcap_file import Compression, Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata, Label, check_text
from cosmos_policy_ros.bags.writer import BagWriter
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.episode import OUTCOME, QUALITY
from cosmos_policy_ros.episodes.folders import DISCARD_REASON
from cosmos_policy_ros.episodes.labels import number, write_labels
from cosmos_policy_ros.episodes.quality import QualityMonitor, QualityReport
from cosmos_policy_ros.rig.spec import JPEG_QUALITY

FLUSH_PERIOD = 0.5  # s; what was received longer ago survives this process
DISK_PATIENCE = 5.0  # s without a word from the disk; a busy one hesitates for a second or two
QUEUE_BYTES = 256 << 20  # three seconds of three raw 640x480 cameras at 30 Hz
ENCODERS = 3  # threads, one per camera of a rig; the encoder leaves the interpreter to others


@dataclass(frozen=True)
class Options:
    """How an episode is written."""

    jpegs: tuple[Topic, ...] = ()  # whose raw images become JPEG
    jpeg_quality: int = JPEG_QUALITY  # 1 to 100
    compression: Compression = "none"  # of the file's chunks
    queue_bytes: int = QUEUE_BYTES  # most that may wait for the disk


class _Waiting(NamedTuple):
    """A message on its way to the disk, of so many bytes when it came; an image may yet be JPEG."""

    topic: str
    stamp_ns: int
    size: int
    content: bytes | Future[bytes]


class Recording:
    """Ends once, by :meth:`finish` or :meth:`discard`. Safe to share between threads.

    Attributes:
        path: the folder that is being written, then the finished one.
        refused: why the last image that could not become a JPEG is not in the bag; else empty.
    """

    def __init__(
        self,
        metadata: EpisodeMetadata,
        writer: BagWriter,
        types: Typestore,
        lock: threading.RLock,
        monitor: QualityMonitor,
        options: Options,
    ) -> None:
        """Take over an open bag; ``lock`` is the store's, which keeps labels and the end apart."""
        self.metadata, self.id, self.path = metadata, metadata.episode_id, writer.path
        self._writer, self._types, self._lock, self._monitor = writer, types, lock, monitor
        self._jpegs = {t.name: jpeg_topic(t).name for t in options.jpegs}
        self._jpeg_quality = options.jpeg_quality
        self.refused = ""
        self._labels: tuple[Label, ...] = ()
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._encoders = ThreadPoolExecutor(ENCODERS, "JPEG encoder")
        self._closed = False  # to messages
        self._limit, self._waiting, self._most_waiting = options.queue_bytes, 0, 0
        self._counting = threading.Lock()
        self._newest_ns = 0
        self._free, self._answered = 0, time.monotonic()
        self._final: QualityReport | None = None
        self._look()
        self._thread = threading.Thread(target=self._write_all, name="bag writer", daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        """Whether it takes messages: it has not ended, and its bag has not failed."""
        return not self.failure

    @property
    def failure(self) -> str:
        """Why it ended, or failed; empty while it takes messages."""
        return self._writer.ended

    @property
    def failed(self) -> bool:
        """Whether it ended without :meth:`finish` or :meth:`discard`, or these failed."""
        return not self.open and self._final is None

    @property
    def sizes(self) -> Mapping[str, int]:
        """Message bytes written so far, per topic."""
        return dict(self._writer.sizes)

    def write(self, topic: str, stamp_ns: int, cdr: bytes) -> None:
        """Take one serialised message, received at ``stamp_ns``, and return at once."""
        with self._counting:
            if self._closed:
                return
            self._newest_ns = max(self._newest_ns, stamp_ns)
            if self._waiting + len(cdr) > self._limit:
                self._monitor.dropped(self._jpegs.get(topic, topic))
                return
            self._waiting += len(cdr)
            self._most_waiting = max(self._most_waiting, self._waiting)
            content: bytes | Future[bytes] = cdr
            if topic in self._jpegs:
                content = self._encoders.submit(to_compressed, self._types, cdr, self._jpeg_quality)
            self._queue.put(_Waiting(topic, stamp_ns, len(cdr), content))

    def lost(self, topic: str, count: int) -> None:
        """Note messages that the middleware lost before they came here."""
        with self._counting:
            self._monitor.lost(self._jpegs.get(topic, topic), count)

    def quality(self) -> QualityReport:
        """Judge what was recorded so far; once it has ended, return what stands in the bag.

        Never waits for the disk, which the thread that writes looks at twice a second.
        """
        if self._final is not None:
            return self._final
        failure, silent = self.failure, time.monotonic() - self._answered
        if not failure and silent >= DISK_PATIENCE:
            failure = (
                f"{self.path}: the disk has not answered for {silent:.0f} s (at most "
                f"{DISK_PATIENCE:g}): is it still connected?"
            )
        return self._judge(failure)

    def _judge(self, failure: str = "") -> QualityReport:
        with self._counting:
            found = self._monitor.report(self._newest_ns, self._free, self._most_waiting)
        return replace(found, go=False, reasons=(failure, *found.reasons)) if failure else found

    def _look(self) -> None:
        """Look at the disk: whether the bag is still where it was begun, and what is left."""
        try:
            if displaced := self._writer.displaced():
                report = self._judge(displaced)
                notes = {OUTCOME: "its folder or file was moved", QUALITY: report.to_json()}
                self._writer.end_displaced(displaced, notes)
            self._free = self._writer.free_bytes()
        except OSError as error:
            self._writer.abort(f"{self.path}: the disk fails: {error}")
        self._answered = time.monotonic()

    def label(self, labels: Sequence[Label]) -> tuple[Label, ...]:
        """Write labels into label log and bag, all or none; return them with their revisions."""
        with self._lock:
            if self.open:
                self._look()
            if not self.open:
                raise RolloutError(f"episode '{self.id}' takes nothing more: {self.failure}")
            numbered = number(labels, self._labels)
            write_labels(self._writer, numbered, self._types)
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

    def discard(self, label: Label) -> Path:
        """Label it as discarded, close the bag as ``<episode_id>.discarded``; return its folder."""
        with self._lock:
            self.label([label])
            return self._end({DISCARD_REASON: label.note}, discarded=True)

    def _end(self, notes: Mapping[str, str], *, discarded: bool) -> Path:
        with self._lock:
            with self._counting:
                self._closed = True
            self._queue.put(None)
            self._thread.join()
            self._look()
            self._final = self._judge()
            try:
                self.path = self._writer.close(
                    {**notes, QUALITY: self._final.to_json()}, discarded=discarded
                )
            except RolloutError:
                self._final = None
                raise
            return self.path

    def _write_all(self) -> None:
        try:
            self._write_until_end()
        # Any error: a thread that ended silently would lose the rest of the episode.
        except Exception as error:
            known = isinstance(error, RolloutError)
            self._writer.abort(str(error) if known else f"{type(error).__name__}: {error}")
        with self._counting:
            self._closed = True
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def _write_until_end(self) -> None:
        flushed = time.monotonic()
        while True:
            left = flushed + FLUSH_PERIOD - time.monotonic()
            try:
                waiting = self._queue.get(timeout=max(left, 0.0))
            except queue.Empty:
                pass
            else:
                if waiting is None:
                    return
                self._write_one(waiting)
            if time.monotonic() - flushed >= FLUSH_PERIOD:
                self._writer.flush()
                self._look()
                flushed = time.monotonic()

    def _write_one(self, waiting: _Waiting) -> None:
        topic, cdr = waiting.topic, waiting.content
        try:
            if isinstance(cdr, Future):
                topic = self._jpegs[topic]
                try:
                    cdr = cdr.result()
                except RolloutError as error:
                    self.refused = f"{topic}: {error}"
                    with self._counting:
                        self._monitor.unreadable(topic)
                    return
            self._writer.write(topic, waiting.stamp_ns, cdr)
            with self._counting:
                self._monitor.add(topic, waiting.stamp_ns, cdr)
        finally:
            with self._counting:
                self._waiting -= waiting.size
