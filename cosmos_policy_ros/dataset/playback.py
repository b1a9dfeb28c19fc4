"""What the policy saw in a finished episode: its observations at any time, and its decisions.

Nothing is converted, and of the bag nothing is read but what a moment needs. Observations are made
by the code that made them live, ``rig.observation``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_policy_ros.bags.index import IndexedTopic, index_topics
from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.bags.messages import DECISION_TYPE
from cosmos_policy_ros.bags.video import image_reader
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.episodes.episode import Episode, read_episode, read_messages
from cosmos_policy_ros.episodes.topics import POLICY_NODE, find_rig
from cosmos_policy_ros.rig.observation import Observation, SensorBuffer, fingerprint

# What was under way while the policy looked is stamped before the look and recorded after it. The
# likeliest of the messages that the rig's limits allow are tried: some milliseconds each.
MOST_TRIES = 2000
_Choice = tuple[int, str, int]  # a message's stamp [ns], its topic, its index there


def decisions(path: Path) -> Iterator[Any]:
    """Yield every ``Decision`` message of a finished episode, in order of receipt."""
    topics = read_episode(path).topics
    wanted = [name for name, topic in topics.items() if topic.msgtype == DECISION_TYPE]
    for _, _, message in read_messages(path, wanted):
        yield message


def observations(
    path: Path, moments: Iterable[int] | None = None
) -> Iterator[Observation | ObservationError]:
    """Yield the observation of each moment, or the error that says why there was none.

    Of a message's arrival at the policy a bag knows nothing: at a moment of your own you get the
    newest stamped by then. At a decision you get what the decision was made of, byte for byte,
    found by its digest; were it not in the bag, you would get an error and not something like it.
    A compacted episode has lost the bytes that the digest is of: there it is the newest stamped by
    then, too.

    Args:
        path: a finished episode.
        moments: nanoseconds of the clock that stamps the sensors' messages; by default the
            episode's decisions, in their order.

    Raises:
        RolloutError: the bag is unfinished, unreadable, no episode, or lacks its rig's topics.
    """
    sensors = RecordedSensors(read_episode(path))
    if moments is not None:
        return (sensors.seen(int(moment)) for moment in moments)
    with reading(path, "an episode", RolloutError, VERIFY):
        decided = [(stamp_ns(d), d.observation_digest) for d in decisions(path)]
    return (sensors.seen(moment, digest) for moment, digest in decided)


def stamp_ns(message: Any) -> int:
    """Return a message's header stamp in nanoseconds."""
    stamp = message.header.stamp
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


class RecordedSensors:
    """The cameras and arms of one finished episode, at any time.

    Attributes:
        episode: its summary.
        rig: as the bag shows it.
        indexed: the messages of cameras, arms, outputs and the safety gate, by the bag's names.
        topics: those of cameras and arms.
        gate_results: the bag's name of the safety gate's topic.
    """

    def __init__(self, episode: Episode, indexed: Mapping[str, IndexedTopic] | None = None) -> None:
        """Index the bag, unless the caller has its index from an earlier time."""
        self.episode = episode
        self.rig = rig = find_rig(episode)
        self.gate_results = rig.topic(f"{POLICY_NODE}/gate_result")
        if indexed is None:
            wanted = [*rig.sensors, *rig.outputs, self.gate_results]
            indexed = index_topics(episode.files, wanted)
        self.indexed = indexed
        self.topics = {topic: indexed[topic] for topic in rig.sensors}
        self._image_readers = {name: image_reader(self.topics[name]) for name in rig.cameras}

    def observe(self, stamp_ns: int) -> Observation:
        """Return what the newest messages stamped by then show.

        Raises:
            ObservationError: the rig gave no usable observation then.
            RolloutError: the bag is damaged there.
        """
        buffer = SensorBuffer(self.rig.rig)
        with reading(self.episode.path, "an episode", RolloutError, VERIFY):
            for topic, role in self.rig.cameras.items():
                for message, at in self._images(topic, stamp_ns):
                    buffer.add_image(role, message, at)
            self._add_states(buffer, stamp_ns)
            return buffer.observe(stamp_ns)

    def measured(self, stamp_ns: int) -> tuple[Array, float]:
        """Return the (14,) state that was known at a time, and its age [s].

        Raises:
            ObservationError: an arm had not reported.
        """
        buffer = SensorBuffer(self.rig.rig)
        with reading(self.episode.path, "an episode", RolloutError, VERIFY):
            self._add_states(buffer, stamp_ns)
        state = buffer.measured()
        if state is None:
            raise ObservationError(f"{self.episode.path}: no joint state by {stamp_ns} ns")
        return state, buffer.state_age(stamp_ns)

    def image(self, name: str, index: int) -> Any:
        """Return an image of a camera's topic, as ``rig.images`` decodes it."""
        return self._image_readers[name](index)

    def _images(self, name: str, stamp_ns: int) -> list[tuple[Any, int]]:
        """Return the messages that tell a camera's newest image, and whether it is frozen.

        An image that differs from the one before the rig's limit for frozen cameras is not; only
        if it does not are those in between worth reading.
        """
        topic = self.topics[name]
        newest = topic.newest(stamp_ns)
        if newest < 0:
            return []
        limit_ns = round(self.rig.rig.observation.frozen_after * NS_PER_S)
        before = topic.newest(int(topic.stamps_ns[newest]) - limit_ns - 1) if limit_ns else -1
        wanted = [before, newest] if before >= 0 else [newest]
        read = {index: self.image(name, index) for index in wanted}
        if len(wanted) > 1 and len({fingerprint(message) for message in read.values()}) == 1:
            wanted = list(range(wanted[0], newest + 1))
            read |= {index: self.image(name, index) for index in wanted if index not in read}
        return [(read[index], int(topic.stamps_ns[index])) for index in wanted]

    def _add_states(self, buffer: SensorBuffer, stamp_ns: int) -> None:
        """Give each arm's newest good joint state, and what was rejected behind it."""
        oldest_ns = self.rig.rig.observation.state_age * NS_PER_S
        for side, name in self.rig.arms.items():
            topic = self.topics[name]
            newest = topic.newest(stamp_ns)
            for index in range(newest, -1, -1):
                at = int(topic.stamps_ns[index])
                if topic.stamps_ns[newest] - at > oldest_ns:
                    break
                state = topic.read(index)
                if buffer.add_joint_state(side, state.name, state.position, at):
                    break

    def seen(self, stamp_ns: int, digest: str = "") -> Observation | ObservationError:
        """Return the observation of that digest, or without one the newest stamped by then."""
        try:
            newest: Observation | ObservationError = self.observe(stamp_ns)
        except ObservationError as error:
            newest = error
        if not digest or not self.rig.as_seen or _is(newest, digest):
            return newest
        read = cache(lambda topic, index: self.topics[topic].read(index))
        for messages in self._likeliest(stamp_ns)[:MOST_TRIES]:
            buffer = SensorBuffer(self.rig.rig)
            for at, topic, index in messages:
                message = read(topic, index)
                if topic in self.rig.cameras:
                    buffer.add_image(self.rig.cameras[topic], message, at)
                for side, name in self.rig.arms.items():
                    if name == topic:
                        buffer.add_joint_state(side, message.name, message.position, at)
            try:
                earlier = buffer.observe(stamp_ns)
            except ObservationError:
                continue
            if _is(earlier, digest):
                return earlier
        return ObservationError(
            f"what was decided on at {stamp_ns} ns is not in the bag: nothing in it has the "
            f"digest {digest[:12]}…; a message came before the recording began or was lost "
            f"on its way to the recorder, or the bag was changed: leave this decision out"
        )

    def _likeliest(self, stamp_ns: int) -> list[tuple[_Choice, ...]]:
        """Return what the policy may have had, one message per topic, the likeliest first.

        An observation bears its newest source's stamp, so one of them is at ``stamp_ns``. Cameras
        are late together, and so are arms: the less the latest of either lags, the likelier.
        """
        limits, cameras = self.rig.rig.observation, self.rig.cameras
        skew_ns = round(limits.camera_skew * NS_PER_S)

        def choices(topics: Iterable[str], age: float) -> list[tuple[_Choice, ...]]:
            found = []
            for name in topics:
                topic = self.topics[name]
                first = int(np.searchsorted(topic.stamps_ns, stamp_ns - round(age * NS_PER_S)))
                indices = range(first, topic.newest(stamp_ns) + 1)
                found.append([(int(topic.stamps_ns[i]), name, i) for i in indices])
            return list(product(*found))

        images = [
            each
            for each in choices(cameras, limits.image_age)
            if max(each)[0] - min(each)[0] <= skew_ns
        ]
        states = choices(dict.fromkeys(self.rig.arms.values()), limits.state_age)
        together = [(*image, *state) for image, state in product(images, states)]
        possible = [each for each in together if max(each)[0] == stamp_ns]
        count = len(cameras)
        return sorted(possible, key=lambda m: -min(m[:count])[0] - min(m[count:])[0])


def _is(seen: Observation | ObservationError, digest: str) -> bool:
    return isinstance(seen, Observation) and seen.digest() == digest
