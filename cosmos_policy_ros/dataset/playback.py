"""A finished episode as the policy saw it: its decisions, and the observations behind them.

The observations are made by the code that made them live, ``rig.observation``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.episodes.episode import read_episode, read_messages
from cosmos_policy_ros.episodes.topics import RigInBag, find_rig
from cosmos_policy_ros.rig.observation import Observation, SensorBuffer

DECISION_TYPE = "cosmos_policy_ros/msg/Decision"
# The recorder may take a topic's messages later than another's; a sensor silent for longer than
# this is not waited for, so that memory stays bounded.
PATIENCE_NS = 2 * NS_PER_S
# What was under way while the policy looked is stamped before the look and recorded after it. The
# likeliest of the messages that the rig's limits allow are tried: some milliseconds each.
MOST_TRIES = 2000


class _Message(NamedTuple):
    topic: str
    stamp_ns: int
    received_ns: int
    content: Any


class ObservationTime(NamedTuple):
    """A time to look at, ns of the rig's clock, and what is known of what was seen then.

    Attributes:
        stamp_ns: nanoseconds of the clock that stamps the sensors' messages.
        digest: of the observation (``Observation.digest``); "" when it is not known.
    """

    stamp_ns: int
    digest: str = ""


def decisions(path: Path) -> Iterator[Any]:
    """Yield every ``Decision`` message of a finished episode, in order of receipt.

    Raises:
        RolloutError: the bag is unfinished, unreadable, or no episode.
    """
    topics = read_episode(path).topics
    wanted = [name for name, topic in topics.items() if topic.msgtype == DECISION_TYPE]
    for _, _, message in read_messages(path, wanted):
        yield message


def observations(
    path: Path, moments: Iterable[int] | None = None
) -> Iterator[Observation | ObservationError]:
    """Yield the observation of each moment, in one pass over the bag's sensor messages.

    A moment at which the rig gave no usable observation yields the error that says why, so that
    one bad moment does not end the pass. Of a message's arrival at the policy a bag knows nothing:
    at a moment of your own you get the newest stamped by then. At a decision you get what the
    decision was made of, byte for byte, found by its digest; were it not in the bag, you would get
    an error and not something like it. Images recorded as JPEG have lost the bytes that the
    digest is of: there it is the newest stamped by then, too.

    Args:
        path: a finished episode.
        moments: nanoseconds of the clock that stamps the sensors' messages, ascending; by default
            the episode's decisions, in their order.

    Raises:
        RolloutError: the bag is unfinished, unreadable, or no episode, lacks its rig's topics, or
            the moments do not ascend.
    """
    if moments is None:
        with reading(path, "an episode", RolloutError, VERIFY):
            wanted = [ObservationTime(stamp_ns(d), d.observation_digest) for d in decisions(path)]
    else:
        wanted = [ObservationTime(int(stamp_ns)) for stamp_ns in moments]
    for before, after in pairwise(wanted):
        if after.stamp_ns < before.stamp_ns:
            raise RolloutError(
                f"{path}: moment {after.stamp_ns} ns comes after {before.stamp_ns} ns; sort them"
            )
    return _observations(path, find_rig(read_episode(path)), wanted)


def _observations(
    path: Path, rig: RigInBag, moments: list[ObservationTime]
) -> Iterator[Observation | ObservationError]:
    topics = rig.sensors
    history = _History(rig)
    left = deque(moments)
    with reading(path, "an episode", RolloutError, VERIFY):
        for message in _by_stamp(_received(path, topics), topics):
            while left and left[0].stamp_ns < message.stamp_ns:
                yield history.at(left.popleft())
            if not left:
                return
            history.add(message)
        for moment in left:
            yield history.at(moment)


def _received(path: Path, topics: Iterable[str]) -> Iterator[_Message]:
    for topic, received_ns, content in read_messages(path, topics):
        yield _Message(topic, stamp_ns(content), received_ns, content)


def _by_stamp(messages: Iterable[_Message], topics: Iterable[str]) -> Iterator[_Message]:
    """Put the topics' messages, each topic's in its own order, into the order of their stamps."""
    waiting: dict[str, deque[_Message]] = {topic: deque() for topic in topics}
    for message in messages:
        waiting[message.topic].append(message)
        overdue_ns = message.received_ns - PATIENCE_NS
        while heads := _heads(waiting):
            if len(heads) < len(waiting) and all(m.received_ns >= overdue_ns for m in heads):
                break
            yield waiting[_earliest(heads)].popleft()
    while heads := _heads(waiting):
        yield waiting[_earliest(heads)].popleft()


def _heads(waiting: Mapping[str, deque[_Message]]) -> list[_Message]:
    return [queue[0] for queue in waiting.values() if queue]


def _earliest(heads: Iterable[_Message]) -> str:
    return min(heads, key=lambda message: message.stamp_ns).topic


class _History:
    """The rig's sources at the newest message given, and what the policy may have had instead."""

    def __init__(self, rig: RigInBag) -> None:
        self._rig = rig
        self._sources = SensorBuffer(rig.rig)
        limits = rig.rig.observation
        # No older than this may a source be when the policy looks.
        self._oldest_ns = dict.fromkeys(rig.cameras, round(limits.image_age * NS_PER_S))
        self._oldest_ns |= dict.fromkeys(rig.arms.values(), round(limits.state_age * NS_PER_S))
        self._recent: dict[str, deque[_Message]] = {topic: deque() for topic in self._oldest_ns}

    def add(self, message: _Message) -> None:
        """Take a message, as the policy node does."""
        self._feed(self._sources, message)
        recent = self._recent[message.topic]
        recent.append(message)
        while recent[0].stamp_ns < message.stamp_ns - self._oldest_ns[message.topic]:
            recent.popleft()

    def at(self, moment: ObservationTime) -> Observation | ObservationError:
        """Return what was seen at a moment that is not before any message given."""
        newest = _observe(self._sources, moment)
        if not moment.digest or not self._rig.as_received or _is(newest, moment.digest):
            return newest
        for messages in self._likeliest(moment.stamp_ns)[:MOST_TRIES]:
            sources = SensorBuffer(self._rig.rig)
            for message in messages:
                self._feed(sources, message)
            if _is(earlier := _observe(sources, moment), moment.digest):
                return earlier
        return ObservationError(
            f"what was decided on at {moment.stamp_ns} ns is not in the bag: nothing in it has the "
            f"digest {moment.digest[:12]}…; a message came before the recording began or was lost "
            f"on its way to the recorder, or the bag was changed: leave this decision out"
        )

    def _likeliest(self, stamp_ns: int) -> list[tuple[_Message, ...]]:
        """Return what the policy may have had, one message per topic, the likeliest first.

        An observation bears its newest source's stamp, so one of them is at ``stamp_ns``. Cameras
        are late together, and so are arms: the less the latest of either lags, the likelier.
        """
        skew_ns = round(self._rig.rig.observation.camera_skew * NS_PER_S)
        cameras = [c for c in self._choices(self._rig.cameras, stamp_ns) if _skew(c) <= skew_ns]
        arms = self._choices(dict.fromkeys(self._rig.arms.values()), stamp_ns)
        possible = [
            (*images, *states)
            for images, states in product(cameras, arms)
            if _newest(images + states) == stamp_ns
        ]
        count = len(self._rig.cameras)
        return sorted(possible, key=lambda m: -_oldest(m[:count]) - _oldest(m[count:]))

    def _choices(self, topics: Iterable[str], stamp_ns: int) -> list[tuple[_Message, ...]]:
        return list(
            product(
                *(
                    [m for m in self._recent[t] if m.stamp_ns >= stamp_ns - self._oldest_ns[t]]
                    for t in topics
                )
            )
        )

    def _feed(self, sources: SensorBuffer, message: _Message) -> None:
        if (role := self._rig.cameras.get(message.topic)) is not None:
            sources.add_image(role, message.content, message.stamp_ns)
            return
        state = message.content
        for side, topic in self._rig.arms.items():
            if topic == message.topic:
                sources.add_joint_state(side, state.name, state.position, message.stamp_ns)


def _observe(sources: SensorBuffer, moment: ObservationTime) -> Observation | ObservationError:
    try:
        return sources.observe(moment.stamp_ns)
    except ObservationError as error:
        return error


def _newest(messages: Iterable[_Message]) -> int:
    return max(message.stamp_ns for message in messages)


def _oldest(messages: Iterable[_Message]) -> int:
    return min(message.stamp_ns for message in messages)


def _skew(messages: tuple[_Message, ...]) -> int:
    return _newest(messages) - _oldest(messages)


def _is(seen: Observation | ObservationError, digest: str) -> bool:
    return isinstance(seen, Observation) and seen.digest() == digest


def stamp_ns(message: Any) -> int:
    """Return a message's stamp in nanoseconds."""
    stamp = message.header.stamp
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)
