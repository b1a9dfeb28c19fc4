"""One finished episode over time, as a page draws it: plain values in seconds since its begin.

Everything is read from the bag when it is asked for, and bounded: a page draws a minute and an hour
with as many points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from cosmos_policy_ros.bags.index import IndexedTopic, index_topics
from cosmos_policy_ros.bags.jpeg import COMPRESSED, is_jpeg
from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.bags.messages import DECISION_TYPE
from cosmos_policy_ros.bags.video import image_reader
from cosmos_policy_ros.core.errors import CosmosPolicyError, ObservationError, RolloutError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.dataset.playback import RecordedSensors
from cosmos_policy_ros.dataset.windows import Sent, join_targets, read_outputs
from cosmos_policy_ros.episodes.episode import Episode
from cosmos_policy_ros.episodes.topics import POLICY_NODE, SIM_RIG_NODE, find_rig, future_topic
from cosmos_policy_ros.panel.status import number
from cosmos_policy_ros.rig.chunk import BRAKE
from cosmos_policy_ros.rig.images import decode_image, image_size
from cosmos_policy_ros.rig.jpeg import to_jpeg
from cosmos_policy_ros.rig.observation import read_arm
from cosmos_policy_ros.rig.safety_gate import CHUNK_ID

MOST_POINTS = 2000
"""Of a curve: two for each pixel of a wide plot, so that more would not be seen."""
MOST_CHUNKS = 1000
"""Chunks, decisions and gate results each: half an hour of chunks of two seconds."""
MOST_CANDIDATES = 64
"""Of a decision, and values of a candidate: eight times the candidates of the shipped searches."""
MOST_FRAMES = 20_000
"""Moments to step through: eleven minutes of a camera at 30 Hz; a longer one is stepped coarser."""
MOST_TEXT = 10_000
"""Characters of a text from the bag; those of a label's note."""
REACHED_WITHIN = 0.5
"""Seconds from a chunk's end within which an image shows what was reached there."""


def text(value: Any) -> str:
    """Return a text from a bag, cut to :data:`MOST_TEXT` characters."""
    return str(value)[:MOST_TEXT]


def decision_topic(episode: Episode) -> str:
    """Return the bag's topic of decisions; empty when it holds none."""
    found = (n for n, t in episode.topics.items() if t.msgtype == DECISION_TYPE and t.count)
    return next(found, "")


def read_decisions(episode: Episode, most: int = MOST_CHUNKS) -> Iterator[tuple[float, Any]]:
    """Yield the first decisions of an episode: seconds since its begin, and the message.

    Raises:
        RolloutError: the bag is damaged.
    """
    name = decision_topic(episode)
    if not name:
        return
    topic = index_topics(episode.files, [name])[name]
    for index in range(min(len(topic), most)):
        seconds = (int(topic.stamps_ns[index]) - episode.start_ns) / NS_PER_S
        yield round(seconds, 6), topic.read(index)


class EpisodeTimeline:
    """What happened in one finished episode, by the second.

    Attributes:
        episode: its summary.
    """

    def __init__(self, episode: Episode) -> None:
        """Index the bag: some bytes of each of its messages are read.

        Raises:
            RolloutError: it has no index, or lacks its rig's topics.
        """
        self.episode = episode
        self._rig = rig = find_rig(episode)
        self._decision = decision_topic(episode)
        self._stages = rig.topic(f"{SIM_RIG_NODE}/state")
        self._futures = {role: rig.topic(future_topic(role)) for role in rig.cameras.values()}
        self._gate = rig.topic(f"{POLICY_NODE}/gate_result")
        own = [self._gate, self._stages, *self._futures.values(), self._decision]
        wanted = [*rig.sensors, *rig.outputs, *filter(None, own)]
        with self._reading():
            self._topics = index_topics(episode.files, wanted)
        self._readers: dict[str, Callable[[int], Any]] = {}

    def all(self) -> dict[str, Any]:
        """Return everything but the images; of what is damaged, a sentence under "troubles".

        Returns:
            A mapping of plain values: "cameras" (roles), "frame_times" (of the first camera's
            images), "joints" (14 names), "limits" (14 of low and high), "states" per arm,
            "chunks", "decisions", "values", "gate", "stages" (None where none are judged),
            "left_out" (how much of a long episode is not among them) and "troubles".
        """
        troubles: list[str] = []

        def tried(read: Callable[[], Any], empty: Any) -> Any:
            try:
                with self._reading():
                    return read()
            except CosmosPolicyError as error:
                troubles.append(text(error))
                return empty

        rig = self._rig.rig
        decisions = tried(lambda: list(self._decisions()), [])
        return {
            "cameras": list(self._futures),
            "frame_times": self._frame_times(),
            "joints": list(rig.joint_names),
            "limits": [
                [number(low), number(high)] for low, high in zip(rig.lower, rig.upper, strict=True)
            ],
            "states": tried(lambda: [self._states(side) for side, _ in rig.arms.items()], []),
            "chunks": tried(lambda: list(self._chunks()), []),
            "decisions": decisions,
            "values": [
                {"t": each["t"], "value": each["value"], "spread": each["spread"]}
                for each in decisions
                if each["value"] is not None
            ],
            "gate": tried(lambda: list(self._gate_results()), []),
            "stages": tried(self._reached, None),
            "left_out": self._left_out(),
            "troubles": troubles,
        }

    def frames(self, seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        """Return what the cameras showed at a time, and what was imagined of the chunk under way.

        Args:
            seconds: since the episode's first message.

        Returns:
            A header, and a JPEG file for each entry of its "images", in their order: kind "seen"
            is a camera's newest image; "imagined" what was predicted of the end of the chunk under
            way, or the last one; "reached" the image nearest to that end. JPEGs are those of the
            bag, byte for byte. What cannot be read is a sentence under "troubles".

        Raises:
            RolloutError: ``seconds`` is no finite number.
        """
        if not math.isfinite(seconds):
            raise RolloutError(f"time {seconds} s must be a finite number; choose a time again")
        at_ns = self.episode.start_ns + round(seconds * NS_PER_S)
        cameras = {role: name for name, role in self._rig.cameras.items()}
        wanted = [
            (role, "seen", name, self._topics[name].newest(at_ns)) for role, name in cameras.items()
        ]
        header: dict[str, Any] = {"seconds": number(seconds), "chunk": None}
        troubles: list[str] = []
        try:
            with self._reading():
                under_way = self._under_way(at_ns)
        except CosmosPolicyError as error:
            troubles.append(text(error))
            under_way = None
        if under_way is not None:
            chunk_id, decided_ns, end_ns = under_way
            header["chunk"] = {
                "id": text(chunk_id),
                "decided": self._seconds(decided_ns),
                "end": self._seconds(end_ns),
            }
            wanted += [
                (role, "imagined", name, _index_at(self._topics[name], decided_ns))
                for role, name in self._futures.items()
            ]
            wanted += [
                (role, "reached", name, _nearest(self._topics[name], end_ns))
                for role, name in cameras.items()
            ]
        images: list[dict[str, Any]] = []
        files: list[bytes] = []
        for role, kind, name, index in wanted:
            if index < 0:
                continue
            try:
                with self._reading():
                    entry, jpeg = self._image(name, index)
            except CosmosPolicyError as error:
                troubles.append(f"{role}, {kind}: {text(error)}")
                continue
            images.append({"role": role, "kind": kind, **entry})
            files.append(jpeg)
        return {**header, "images": images, "troubles": troubles}, files

    def _reading(self) -> Any:
        # The bag defines its messages itself, and may have put anything into them.
        return reading(self.episode.path, "an episode", RolloutError, VERIFY)

    def _seconds(self, stamp_ns: int) -> float:
        return round((int(stamp_ns) - self.episode.start_ns) / NS_PER_S, 6)

    def _messages(self, name: str, indices: Sequence[int]) -> Iterator[tuple[float, Any]]:
        topic = self._topics[name]
        for index in indices:
            yield self._seconds(topic.stamps_ns[index]), topic.read(index)

    def _frame_times(self) -> list[float]:
        stamps_ns = self._topics[next(iter(self._rig.cameras))].stamps_ns
        return [self._seconds(stamps_ns[i]) for i in _evenly(len(stamps_ns), MOST_FRAMES)]

    def _states(self, side: str) -> dict[str, Any]:
        """Return an arm's measured positions: "t" (n), "positions" (7 lists of n)."""
        arm, name = self._rig.rig.arms[side], self._rig.arms[side]
        times, rows = [], []
        for seconds, message in self._messages(name, _evenly(len(self._topics[name]), MOST_POINTS)):
            try:
                row = read_arm(arm, message.name, message.position)
            except ObservationError:  # a failed read of the bus, or the other arm's message
                continue
            times.append(seconds)
            rows.append(row)
        return {"side": side, "t": times, "positions": _columns(rows, len(arm.names))}

    @cached_property
    def _sent(self) -> list[tuple[Sent, int]]:
        """What the arms were sent, each with its end [ns]: its last row's, or the next one's start.

        A trajectory without a row stops the arms, and ends as it begins.
        """
        sent = join_targets(read_outputs(RecordedSensors(self.episode, self._topics)))
        starts = [each.start_ns for each in sent[1:]]
        ends = [
            each.start_ns + (int(each.offsets_ns[-1]) if len(each.offsets_ns) else 0)
            for each in sent
        ]
        ends = [min(pair) for pair in zip(ends, [*starts, *ends[-1:]], strict=True)]
        return list(zip(sent, ends, strict=True))

    def _chunks(self) -> Iterator[dict[str, Any]]:
        """Yield what the arms were sent: "id", "kind", "start", "end", "t", "positions" (14, n)."""
        sent = self._sent[:MOST_CHUNKS]
        every = max(1, math.ceil(sum(len(each.offsets_ns) for each, _ in sent) / MOST_POINTS))
        for each, end_ns in sent:
            # Rows that were still to come when the next trajectory took over moved nothing.
            count = int((each.start_ns + each.offsets_ns <= end_ns).sum())
            rows = sorted({*range(0, count, every), *([count - 1] if count else [])})
            yield {
                "id": text(each.chunk_id),
                "kind": _kind(each.chunk_id),
                "start": self._seconds(each.start_ns),
                "end": self._seconds(end_ns),
                "t": [self._seconds(each.start_ns + int(each.offsets_ns[row])) for row in rows],
                "positions": _columns([each.positions[row] for row in rows], 14),
            }

    def _decisions(self) -> Iterator[dict[str, Any]]:
        if not self._decision:
            return
        count = min(len(self._topics[self._decision]), MOST_CHUNKS)
        for seconds, decision in self._messages(self._decision, range(count)):
            candidates = [_candidate(each) for each in decision.candidates[:MOST_CANDIDATES]]
            chosen = int(decision.chosen)
            known = candidates[chosen] if 0 <= chosen < len(candidates) else {}
            yield {
                "t": seconds,
                "chunk": text(decision.chunk_id),
                "chosen": chosen,
                "reason": text(decision.reason),
                "requested": int(decision.requested),
                "finished": int(decision.finished),
                "candidates": candidates,
                "value": known.get("value"),
                "spread": known.get("spread"),
                "phases": [
                    [text(name), number(took)]
                    for name, took in zip(decision.phases, decision.phase_seconds, strict=False)
                ],
                "search": text(getattr(decision, "search", "")),
                "denoising_steps": int(decision.denoising_steps),
                "evaluations": int(getattr(decision, "evaluations", 0)),
            }

    def _gate_results(self) -> Iterator[dict[str, Any]]:
        count = min(len(self._topics[self._gate]), MOST_CHUNKS)
        for seconds, result in self._messages(self._gate, range(count)):
            yield {
                "t": seconds,
                "chunk": text(result.chunk_id),
                "accepted": bool(result.accepted),
                "rule": text(result.rule),
                "message": text(result.message),
                "joint": text(result.joint_name),
                "step": int(result.step),
                "value": number(result.value),
                "limit": number(result.limit),
                "clamped": int(result.clamped),
            }

    def _reached(self) -> dict[str, Any] | None:
        """Return the simulated task's stages, and when each was first reached; None without."""
        topic = self._topics[self._stages]
        if not len(topic):
            return None
        names: list[str] = []
        reached: list[dict[str, Any]] = []
        for index in _evenly(len(topic), MOST_POINTS):
            state = topic.read(index)
            # By its receipt: the header has simulated time, which begins at 0.
            seconds = self._seconds(topic.received_ns[index])
            names = [text(name) for name in state.stages][:MOST_CANDIDATES]
            new = names[len(reached) : int(state.reached)]
            reached += [{"t": seconds, "name": name} for name in new]
        return {"names": names, "reached": reached}

    def _left_out(self) -> dict[str, int]:
        """Return how many there are beyond :data:`MOST_CHUNKS`, of each kind that has more."""
        counts = {"gate results": len(self._topics[self._gate])}
        if self._decision:
            counts["decisions"] = len(self._topics[self._decision])
        with suppress(RolloutError), self._reading():  # it is told where they are shown
            counts["chunks"] = len(self._sent)
        return {name: n - MOST_CHUNKS for name, n in counts.items() if n > MOST_CHUNKS}

    @cached_property
    def _decided(self) -> dict[str, int]:
        """Stamp of the observation that each chunk was decided on [ns], by its id."""
        if not self._decision:
            return {}
        topic = self._topics[self._decision]
        return {
            topic.read(index).chunk_id: int(topic.stamps_ns[index])
            for index in range(min(len(topic), MOST_CHUNKS))
        }

    def _under_way(self, at_ns: int) -> tuple[str, int, int] | None:
        """Return id, observation and end [ns] of the decided chunk that began last by a time."""
        begun = (
            (each.chunk_id, self._decided[each.chunk_id], end_ns)
            for each, end_ns in reversed(self._sent)
            if each.start_ns <= at_ns and each.chunk_id in self._decided
        )
        return next(begun, None)

    def _image(self, name: str, index: int) -> tuple[dict[str, Any], bytes]:
        """Return size and time of an image, and its JPEG file."""
        topic = self._topics[name]
        read = self._readers.setdefault(name, image_reader(topic))
        message = read(index)
        height, width = image_size(message, name, grey=True)
        data = bytes(message.data) if topic.msgtype == COMPRESSED else b""
        jpeg = data if is_jpeg(data) else to_jpeg(decode_image(message, name, grey=True))
        seconds = self._seconds(topic.stamps_ns[index])
        return {"width": width, "height": height, "stamp": seconds}, jpeg


def _candidate(candidate: Any) -> dict[str, Any]:
    return {
        "seed": str(int(candidate.seed)),  # 64 bits: more than a number of JavaScript holds
        "finished": bool(candidate.finished),
        "dropped": text(getattr(candidate, "dropped", "")),
        "value": number(candidate.value),
        "spread": number(candidate.spread),
        "values": [number(value) for value in candidate.values[:MOST_CANDIDATES]],
    }


def _kind(chunk_id: str) -> str:
    if chunk_id.endswith(BRAKE):
        return "brake"
    return "start" if chunk_id == CHUNK_ID else "chunk"


def _evenly(count: int, most: int) -> list[int]:
    """Return at most so many indices below ``count``, evenly spread, both ends among them."""
    if count <= most:
        return list(range(count))
    return [int(index) for index in np.linspace(0, count - 1, most).round()]


def _columns(rows: Sequence[Any], width: int) -> list[list[float | None]]:
    """Return rows (n, width) as lists of the columns; JSON has no array of floats shorter."""
    return [[number(row[column], 4) for row in rows] for column in range(width)]


def _index_at(topic: IndexedTopic, stamp_ns: int) -> int:
    """Return the index of the message of this very stamp; -1 for none."""
    index = topic.newest(stamp_ns)
    return index if index >= 0 and int(topic.stamps_ns[index]) == stamp_ns else -1


def _nearest(topic: IndexedTopic, time_ns: int) -> int:
    """Return the index of the message nearest to a time; -1 for none that shows it."""
    if not len(topic):
        return -1
    apart = np.abs(topic.stamps_ns - time_ns)
    index = int(apart.argmin())
    return index if apart[index] <= REACHED_WITHIN * NS_PER_S else -1
