"""An episode by its control steps: what was seen at any of them, what was done, what followed.

Made for training, which looks at random moments: nothing is converted, and of the bag nothing is
read but what a moment needs. The observations are made by the code that made them live
(:mod:`cosmos_policy_ros.rig.observation`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.bags.index import IndexedTopic, index_topics
from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.episodes.episode import Episode
from cosmos_policy_ros.episodes.topics import POLICY_NODE, RigInBag, find_rig
from cosmos_policy_ros.rig.arms import STATE_DIM
from cosmos_policy_ros.rig.chunk import BRAKE
from cosmos_policy_ros.rig.observation import Observation, SensorBuffer, fingerprint
from cosmos_policy_ros.rig.safety_gate import CHUNK_ID
from cosmos_policy_ros.rig.spec import Output

# The control steps of an episode: what the arms were told, row by row, and when.
#
# A step is one row of a trajectory that was sent, so what an episode is made of is what moved the
# arms: refused chunks are not in it, nor the pauses in which a policy thinks and the arms hold,
# nor the way to the start pose. A braked chunk ends where it was braked.


DT_TOLERANCE = 1e-3  # s between a row's time and a whole number of steps


@dataclass(frozen=True)
class Steps:
    """The steps of an episode, in order.

    Attributes:
        times_ns: (n,) when each begins: what was seen then led to its action, which is due one
            step later. Nanoseconds of the clock that stamps the sensors' messages.
        actions: (n, 14) joint targets, policy units.
        stretch: (n,) a number that changes where the arms were braked: an action chunk across it
            is nothing that anybody decided.
    """

    times_ns: NDArray[np.int64]
    actions: NDArray[np.float64]
    stretch: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.times_ns)


class Sent(NamedTuple):
    """What all outputs were sent of one chunk.

    Attributes:
        chunk_id: the trajectories'.
        start_ns: a step before the first row is due.
        offsets_ns: (n,) when the rows are due, from there on.
        positions: (n, 14), policy units.
    """

    chunk_id: str
    start_ns: int
    offsets_ns: NDArray[np.int64]
    positions: NDArray[np.float64]


def find_steps(sent: Sequence[Sent], dt: float) -> Steps:
    """Return an episode's steps.

    Args:
        sent: in order, as :func:`read_sent` gives it.
        dt: seconds per step. Rows that lie closer are thinned out: a 50 Hz source gives every
            second action.

    Raises:
        RolloutError: the trajectories' rows do not fall on whole steps.
    """
    step_ns = round(dt * NS_PER_S)
    times: list[NDArray[np.int64]] = []
    actions: list[NDArray[np.float64]] = []
    stretch: list[NDArray[np.int64]] = []
    number = 0
    for index, each in enumerate(sent):
        undecided = each.chunk_id.endswith(BRAKE) or each.chunk_id == CHUNK_ID
        # A trajectory without a row stops the controller where it is.
        if undecided or not len(each.offsets_ns):
            number += 1
            continue
        rows, due_ns = _on_grid(each, step_ns)
        if index + 1 < len(sent):
            # Replaced before it ended: the rows that were still to come moved nothing.
            executed = each.start_ns + due_ns <= sent[index + 1].start_ns + step_ns // 2
            rows, due_ns = rows[executed], due_ns[executed]
        times.append(each.start_ns + due_ns - step_ns)
        actions.append(each.positions[rows])
        stretch.append(np.full(len(rows), number, np.int64))
    if not times:
        return Steps(np.zeros(0, np.int64), np.zeros((0, STATE_DIM)), np.zeros(0, np.int64))
    return Steps(np.concatenate(times), np.concatenate(actions), np.concatenate(stretch))


def read_sent(
    rig: RigInBag, trajectories: Mapping[str, IndexedTopic], starts: Mapping[str, int]
) -> list[Sent]:
    """Join the outputs' trajectories by the chunk they belong to; one alone is no action.

    Args:
        rig: of the bag.
        trajectories: what was sent, by the topics of ``rig.spec``.
        starts: when the chunks of these ids were sent, for rigs whose trajectories bear no stamp;
            by default when they were received.

    Raises:
        RolloutError: a message is damaged.
    """
    outputs = rig.outputs
    sent = [
        _by_chunk(
            _read(output, trajectories[name], i, starts) for i in range(len(trajectories[name]))
        )
        for name, output in outputs.items()
    ]
    joined = []
    for key, first in sent[0].items():
        parts = [each[key] for each in sent if key in each]
        same = [part for part in parts if np.array_equal(part.offsets_ns, first.offsets_ns)]
        if len(same) < len(outputs):
            continue
        positions = np.zeros((len(first.offsets_ns), STATE_DIM))
        for output, part in zip(outputs.values(), same, strict=True):
            positions[:, output.columns] = part.positions
        joined.append(first._replace(positions=rig.rig.commanded(positions)))
    return sorted(joined, key=lambda each: each.start_ns)


def _by_chunk(sent: Iterable[Sent]) -> dict[tuple[str, int], Sent]:
    """Key what was sent by its id and its number under that id, which ways to the start share."""
    found: dict[tuple[str, int], Sent] = {}
    seen: Counter[str] = Counter()
    for each in sent:
        found[each.chunk_id, seen[each.chunk_id]] = each
        seen[each.chunk_id] += 1
    return found


def _read(output: Output, topic: IndexedTopic, index: int, starts: Mapping[str, int]) -> Sent:
    message = topic.read(index)
    try:
        positions = targets(output, message)
    except RolloutError as error:
        raise RolloutError(f"{topic.files[0].parent}: {error}") from error
    # Those of an imported episode may have no id; then they belong together by their order.
    chunk_id = message.header.frame_id or f"#{index}"
    stamp_ns = int(topic.stamps_ns[index])
    start_ns = stamp_ns or starts.get(chunk_id, int(topic.received_ns[index]))
    offsets_ns = _offsets(message.points)
    if len(offsets_ns) > 1:
        # One that took over in motion was sent between two rows: it starts where the row before
        # its first was due.
        phase_ns = int(offsets_ns[0] - np.median(np.diff(offsets_ns)))
        start_ns, offsets_ns = start_ns + phase_ns, offsets_ns - phase_ns
    return Sent(chunk_id, start_ns, offsets_ns, positions)


def targets(output: Output, message: Any) -> NDArray[np.float64]:
    """Return a trajectory's rows (K, n) for the output's n joints, as the driver took them.

    Raises:
        RolloutError: it lacks a joint of the output.
    """
    missing = [name for name in output.joints if name not in message.joint_names]
    if missing:
        raise RolloutError(
            f"a trajectory on {output.topic} lacks the joint {', '.join(missing)} of the rig's "
            f"file; it moves {', '.join(message.joint_names)}"
        )
    columns = [message.joint_names.index(name) for name in output.joints]
    positions = np.array([p.positions for p in message.points], np.float64)
    rows: NDArray[np.float64] = positions.reshape(-1, len(message.joint_names))[:, columns]
    return rows


def _offsets(points: Sequence[Any]) -> NDArray[np.int64]:
    times = [p.time_from_start for p in points]
    return np.array([t.sec * NS_PER_S + t.nanosec for t in times], np.int64)


def _on_grid(sent: Sent, step_ns: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the rows that are due at whole steps, and when [ns from the start]."""
    count = (int(sent.offsets_ns[-1]) + step_ns // 2) // step_ns
    # A row for every step there must be; a last one that is due in years makes no list of years.
    due_ns = np.arange(1, 1 + min(count, len(sent.offsets_ns) + 1), dtype=np.int64) * step_ns
    rows = _nearest(sent.offsets_ns, due_ns)
    off_grid = np.abs(sent.offsets_ns[rows] - due_ns) > DT_TOLERANCE * NS_PER_S
    if not 0 < count <= len(sent.offsets_ns) or off_grid.any():
        between = np.diff(sent.offsets_ns, prepend=0) / NS_PER_S
        raise RolloutError(
            f"trajectory '{sent.chunk_id}' has rows {between.min():g} to {between.max():g} s "
            f"apart, which is no whole part of the {step_ns / NS_PER_S:g} s between two actions"
        )
    return rows, due_ns


def _nearest(times: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the index of the time nearest to each one wanted, without comparing all with all."""
    order = np.argsort(times, kind="stable")
    ascending = times[order]
    after = np.searchsorted(ascending, wanted).clip(max=len(times) - 1)
    before = (after - 1).clip(min=0)
    earlier = np.abs(ascending[before] - wanted) <= np.abs(ascending[after] - wanted)
    found: NDArray[np.intp] = order[np.where(earlier, before, after)]
    return found


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

        The same as :func:`cosmos_policy_ros.dataset.playback.observations` for that moment.

        Raises:
            ObservationError: the rig gave no usable observation then.
            RolloutError: the bag is damaged there.
        """
        sources = SensorBuffer(self.rig.rig)
        with reading(self.episode.path, "an episode", RolloutError, VERIFY):
            for topic, role in self.rig.cameras.items():
                for message, at in self._images(self.topics[topic], stamp_ns):
                    sources.add_image(role, message, at)
            self._add_states(sources, stamp_ns)
            return sources.observe(stamp_ns)

    def state(self, step: int) -> NDArray[np.float64]:
        """Return the (14,) state at a step, without looking at an image.

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
        sources = SensorBuffer(self.rig.rig)
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

    def _images(self, topic: IndexedTopic, stamp_ns: int) -> list[tuple[Any, int]]:
        """Return the messages that tell a camera's newest image, and whether it is frozen.

        An image that differs from the one before the rig's limit for frozen cameras is not; only
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

    def _add_states(self, sources: SensorBuffer, stamp_ns: int) -> None:
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
    # A step begins up to one image's time behind the newest one.
    periods = [int(np.median(np.diff(t.stamps_ns))) for t in topics.values() if len(t) > 1]
    slack = max(periods, default=0)
    seen = (steps.times_ns >= first) & (steps.times_ns <= last + slack)
    return Steps(steps.times_ns[seen], steps.actions[seen], steps.stretch[seen])


def _newest_stamps(topic: IndexedTopic, times: NDArray[np.int64]) -> NDArray[np.int64]:
    index = np.searchsorted(topic.stamps_ns, times, side="right") - 1
    return np.where(index < 0, np.int64(0), topic.stamps_ns[np.maximum(index, 0)])
