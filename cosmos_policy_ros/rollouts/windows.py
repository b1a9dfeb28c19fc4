"""An episode by its control steps: what was seen at any of them, what was done, what followed.

Made for training, which looks at random moments: nothing is converted, and of the bag nothing is
read but what a moment needs. The observations are made by the code that made them live
(:mod:`cosmos_policy_ros.rig.sources`).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.errors import ObservationError, RolloutError
from cosmos_policy_ros.rig.observation import Observation
from cosmos_policy_ros.rig.sources import Sources, fingerprint
from cosmos_policy_ros.rig.untrusted import reading
from cosmos_policy_ros.rollouts.episode import VERIFY, Episode
from cosmos_policy_ros.rollouts.message_index import IndexedTopic, index_topics
from cosmos_policy_ros.rollouts.rig_in_bag import find_rig
from cosmos_policy_ros.rollouts.steps import Steps, find_steps, read_sent
from cosmos_policy_ros.rollouts.topics import POLICY_NODE


class EpisodeWindows:
    """Random access to the windows (s, a, s') of one finished episode.

    A window begins at any step: s is what was seen there, a the K actions from there on, s' what
    was seen K steps later.

    Attributes:
        episode: its summary.
        rig: as the bag shows it.
        topics: its cameras' and arms' messages, by the bag's names.
        sent: what the arms were sent, chunk by chunk.
        steps: what they were told of it, and when: without what something else replaced.
    """

    def __init__(self, episode: Episode, dt: float | None = None) -> None:
        """Index the bag.

        Args:
            episode: a finished one.
            dt: seconds per control step; by default the rig's own.

        Raises:
            RolloutError: it has no index, lacks its rig's topics, or its trajectories do not fit
                ``dt``.
        """
        self.episode = episode
        self.rig = rig = find_rig(episode)
        verdicts = rig.topic(f"{POLICY_NODE}/verdict")
        topics = index_topics(episode.files, [*rig.sensors, *rig.outputs, verdicts])
        self.topics = {topic: topics[topic] for topic in rig.sensors}
        # The bag defines its messages itself, and may have put anything into them.
        with reading(episode.path, "an episode", RolloutError, VERIFY):
            starts, sent = _starts(topics[verdicts]), {name: topics[name] for name in rig.outputs}
            self.sent = tuple(read_sent(rig, sent, starts))
            self.steps = _while_seen(find_steps(self.sent, dt or rig.rig.rates.dt), self.topics)

    def __len__(self) -> int:
        return len(self.steps)

    def observe(self, stamp_ns: int) -> Observation:
        """Return what the newest messages stamped by then show.

        The same as :func:`cosmos_policy_ros.rollouts.replay.observations` for that moment.

        Raises:
            ObservationError: the rig gave no usable observation then.
            RolloutError: the bag is damaged there.
        """
        sources = Sources(self.rig.rig)
        with reading(self.episode.path, "an episode", RolloutError, VERIFY):
            for topic, role in self.rig.cameras.items():
                for message, at in self._pictures(self.topics[topic], stamp_ns):
                    sources.add_image(role, message, at)
            self._add_states(sources, stamp_ns)
            return sources.observe(stamp_ns)

    def state(self, step: int) -> NDArray[np.float64]:
        """Return the (14,) state at a step, without looking at a picture.

        Raises:
            ObservationError: an arm had not reported.
            RolloutError: the bag is damaged there.
        """
        return self.measured(int(self.steps.times_ns[step]))[0]

    def measured(self, stamp_ns: int) -> tuple[NDArray[np.float64], float]:
        """Return the (14,) state that was known at a time, and its age [s].

        Raises:
            ObservationError: an arm had not reported.
            RolloutError: the bag is damaged there.
        """
        sources = Sources(self.rig.rig)
        with reading(self.episode.path, "an episode", RolloutError, VERIFY):
            self._add_states(sources, stamp_ns)
        state = sources.measured()
        if state is None:
            raise ObservationError(f"{self.episode.path}: no joint state by {stamp_ns} ns")
        return state, sources.state_age(stamp_ns)

    def chunk(self, step: int, chunk_steps: int) -> NDArray[np.float64]:
        """Return the (K, 14) actions from a step on; the last one is repeated past the end."""
        rows = np.minimum(np.arange(step, step + chunk_steps), len(self) - 1)
        return self.steps.actions[rows]

    def future(self, step: int, chunk_steps: int) -> int:
        """Return the step of s': K steps later, or the episode's last one."""
        return min(step + chunk_steps, len(self) - 1)

    def usable(self, chunk_steps: int) -> NDArray[np.bool_]:
        """Return per step (n,) whether a window may begin there, as far as stamps tell.

        Left out are windows whose chunk runs across a brake, and those at either end of which a
        sensor had been silent for longer than the rig allows a policy to act on.
        """
        count = len(self)
        last = np.minimum(np.arange(count) + chunk_steps, count - 1)
        whole = self.steps.stretch[np.minimum(last, np.arange(count) + chunk_steps - 1)]
        usable: NDArray[np.bool_] = (whole == self.steps.stretch) & self._fresh & self._fresh[last]
        return usable

    @cached_property
    def _fresh(self) -> NDArray[np.bool_]:
        """Per step, whether no sensor is older than the rig's limits; by stamps alone."""
        limits, times = self.rig.rig.observation, self.steps.times_ns
        stamps = {name: _newest_stamps(topic, times) for name, topic in self.topics.items()}
        cameras = np.stack([stamps[name] for name in self.rig.cameras])
        states = np.stack([stamps[name] for name in self.rig.arms.values()])
        fresh: NDArray[np.bool_] = (
            ((times - cameras) / NS_PER_S <= limits.image_age).all(axis=0)
            & ((times - states) / NS_PER_S <= limits.state_age).all(axis=0)
            & ((cameras.max(axis=0) - cameras.min(axis=0)) / NS_PER_S <= limits.camera_skew)
        )
        return fresh

    def _pictures(self, topic: IndexedTopic, stamp_ns: int) -> list[tuple[Any, int]]:
        """Return the messages that tell a camera's newest picture, and whether it is frozen.

        A picture that differs from the one before the rig's limit for frozen cameras is not; only
        if it does not are those in between worth reading.
        """
        newest = topic.newest(stamp_ns)
        if newest < 0:
            return []
        limit_ns = round(self.rig.rig.observation.frozen_after * NS_PER_S)
        before = topic.newest(int(topic.stamps_ns[newest]) - limit_ns - 1) if limit_ns else -1
        wanted = [before, newest] if before >= 0 else [newest]
        read = {index: topic.read(index) for index in wanted}
        if len(wanted) > 1 and len({fingerprint(message) for message in read.values()}) == 1:
            wanted = list(range(wanted[0], newest + 1))
            read |= {index: topic.read(index) for index in wanted if index not in read}
        return [(read[index], int(topic.stamps_ns[index])) for index in wanted]

    def _add_states(self, sources: Sources, stamp_ns: int) -> None:
        """Give each arm's newest good joint state, and what was rejected behind it."""
        oldest_ns = self.rig.rig.observation.state_age * NS_PER_S
        for side, topic in self.rig.arms.items():
            indexed = self.topics[topic]
            newest = indexed.newest(stamp_ns)
            for index in range(newest, -1, -1):
                at = int(indexed.stamps_ns[index])
                if indexed.stamps_ns[newest] - at > oldest_ns:
                    break
                state = indexed.read(index)
                if sources.add_joint_state(side, state.name, state.position, at):
                    break


def _starts(verdicts: IndexedTopic) -> dict[str, int]:
    """Return when each chunk was let go: its trajectories bear no stamp of their own."""
    found = {}
    for index, stamp_ns in enumerate(verdicts.stamps_ns):
        verdict = verdicts.read(index)
        if verdict.accepted:
            found[verdict.chunk_id] = int(stamp_ns)
    return found


def _while_seen(steps: Steps, topics: dict[str, IndexedTopic]) -> Steps:
    """Keep the steps while every sensor was being recorded."""
    for name, topic in topics.items():
        if not len(topic):
            raise RolloutError(f"{name} holds no message; the episode cannot be looked at")
    first = max(int(topic.stamps_ns[0]) for topic in topics.values())
    last = min(int(topic.stamps_ns[-1]) for topic in topics.values())
    # A step begins up to one picture's time behind the newest one.
    periods = [int(np.median(np.diff(t.stamps_ns))) for t in topics.values() if len(t) > 1]
    slack = max(periods, default=0)
    seen = (steps.times_ns >= first) & (steps.times_ns <= last + slack)
    return Steps(steps.times_ns[seen], steps.actions[seen], steps.stretch[seen])


def _newest_stamps(topic: IndexedTopic, times: NDArray[np.int64]) -> NDArray[np.int64]:
    index = np.searchsorted(topic.stamps_ns, times, side="right") - 1
    return np.where(index < 0, np.int64(0), topic.stamps_ns[np.maximum(index, 0)])
