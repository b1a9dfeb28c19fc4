"""A bag of another recorder as an episode, ROS 2 or ROS 1, with the rig file of the rig it is of.

Images and joint states go in as they were recorded, byte for byte, with their own stamps; where a
header bears none, its receipt stands for it. Actions come from what the arms were told, see
:mod:`ros_bag_commands`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import RigMessages, header_stamp
from cosmos_policy_ros.bags.writer import EPISODE_TOPIC
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.core.untrusted import reading, shown
from cosmos_policy_ros.episodes.topics import absolute, rig_topics
from cosmos_policy_ros.interop.foreign_episode import (
    EpisodeContent,
    ImportContext,
    SourceMetadata,
    check_prompt,
)
from cosmos_policy_ros.interop.ros_bag_clock import (
    Clock,
    StampLog,
    find_clock,
    stamp_of,
    with_stamp,
)
from cosmos_policy_ros.interop.ros_bag_commands import (
    Actions,
    Commands,
    Trajectories,
    kinds_of,
    read_joints,
    sample,
)
from cosmos_policy_ros.interop.ros_bag_files import BagTopic, ForeignBag, Recorded, open_bag
from cosmos_policy_ros.interop.ros_bag_topics import (
    TRAJECTORY,
    RigTopics,
    check_image,
    find_leftovers,
    find_topics,
)
from cosmos_policy_ros.rig.arms import ARM_JOINTS
from cosmos_policy_ros.rig.chunk import BRAKE
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.unit_check import check_units

MOST_STEPS = 100_000
"""Of an episode; more than an hour at 25 Hz."""
_LEAST_STEPS = 2


@dataclass(frozen=True)
class RosBagSource:
    """A bag: its folder or only file, its files in their order, and what is said of their list."""

    path: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's or file's."""
        return self.path.name

    @contextmanager
    def open(self, context: ImportContext) -> Iterator[OpenRosBag]:
        """Open it; raises as :func:`ros_bag_files.open_bag` does."""
        with open_bag(self.files) as bag:
            yield OpenRosBag(self, bag, context)


@dataclass
class _Reading:
    """What one way through a bag has found.

    Attributes:
        stamps: by topic of a sensor.
        states, commands: messages, in the order of their receipt.
        not_taken: notes on what else is there.
    """

    stamps: dict[str, StampLog]
    states: list[Recorded] = field(default_factory=list)
    commands: list[Recorded] = field(default_factory=list)
    not_taken: Sequence[str] = ()


@dataclass(frozen=True)
class OpenRosBag:
    """The open files of a bag, and the operator's options."""

    source: RosBagSource
    bag: ForeignBag
    context: ImportContext

    def digest(self) -> str:
        """Return the sha256 (hex) over its files."""
        return self.bag.digest()

    def content(self) -> EpisodeContent:
        """Read all but the images, see :class:`foreign_episode.OpenEpisode`."""
        path = str(self.source.path)
        try:
            # A bag defines its messages itself, and may have put anything into them.
            with reading(path, "a bag of this rig", RolloutError):
                return self._content()
        except (RolloutError, ObservationError) as error:
            raise RolloutError(str(error) if path in str(error) else f"{path}: {error}") from error

    def _content(self) -> EpisodeContent:
        topics = self.bag.topics
        if (
            EPISODE_TOPIC.name in topics
            and topics[EPISODE_TOPIC.name].msgtype == EPISODE_TOPIC.msgtype
        ):
            raise RolloutError(
                "is an episode of this package already: copy its folder into the store, or run "
                "'cosmos recover' where it is unfinished"
            )
        prompt = self.context.given_prompt()
        if not prompt:
            raise RolloutError("a bag tells no prompt; give --prompt, or --task")
        check_prompt("the option", prompt)
        found = find_topics(topics, self.context.options.load_rig(), self.context.options.cameras)
        for name in found.written:
            topics[name].check_layout(self.context.types)
        kinds, absent = self._kinds(found)
        read = self._read(found, kinds)
        clock = find_clock(read.stamps)
        states = _States(found, read, topics, clock)
        commands = self._commands(kinds, absent, read, clock)
        actions, as_they_are = self._actions(found.rig, commands, read, states, clock)
        check_units(
            found.rig, {"joint states": states.at(actions.times_ns), "actions": actions.rows}
        )
        start_ns = clock.receipt(min(log.received[0] for log in read.stamps.values()))
        notes = (
            *self.source.notes,
            *_faults(self.bag.faults),
            *_told_of_cameras(self.context.options.load_rig(), found.rig),
            *clock.notes,
            *states.notes,
            *_told_of_commands(commands, actions, found.rig, as_they_are),
            *read.not_taken,
        )
        return EpisodeContent(
            rig=found.rig,
            found=SourceMetadata(prompt, "", "", start_ns, None),
            topics=(*found.written.values(), *_trajectory_topics(found.rig)),
            steps=len(actions),
            notes=notes,
            messages=self._messages(found, clock, actions, commands if as_they_are else None),
        )

    def _kinds(self, found: RigTopics) -> tuple[list[Commands], list[str]]:
        """Return the kinds of commands of which the bag has all topics, and why not the others."""
        kinds, absent = [], []
        for kind in kinds_of(found.rig, found.namespace, self.source.path):
            topics = self.bag.topics
            missing = [
                t for t in kind.topics if t not in topics or topics[t].msgtype not in kind.msgtypes
            ]
            if missing:
                absent.append(f"no {kind.what}: {', '.join(missing)} is not in it")
            else:
                kinds.append(kind)
        return kinds, absent

    def _read(self, found: RigTopics, kinds: Sequence[Commands]) -> _Reading:
        """Go through the bag once."""
        topics = self.bag.topics
        commands = {name for kind in kinds for name in (*kind.topics, *kind.also)}
        others = find_leftovers(topics, found, commands)
        read = _Reading({name: StampLog() for name in (*found.cameras, *found.arms)})
        wanted = {*read.stamps, *commands, *others.topics}
        for each in self.bag.messages(wanted):
            name, topic = each.topic, topics[each.topic]
            if name in found.cameras and not read.stamps[name].stamps:
                check_image(topic, each.data, found.cameras[name])
            if (log := read.stamps.get(name)) is not None:
                log.add(stamp_of(topic, each.data), each.received_ns)
            if name in found.arms:
                read.states.append(each)
            elif name in commands:
                read.commands.append(each)
            elif name in others.topics:
                others.watch(topic, each)
        for name, log in read.stamps.items():
            if not log.stamps:
                raise RolloutError(f"{shown(name)} holds no message")
        read.not_taken = others.notes
        return read

    def _commands(
        self, kinds: Sequence[Commands], absent: Sequence[str], read: _Reading, clock: Clock
    ) -> Commands:
        """Return the first kind of commands that is complete."""
        for kind in kinds:
            for each in read.commands:
                if each.topic in (*kind.topics, *kind.also):
                    message = self.bag.topics[each.topic].read(each.data)
                    kind.add(each.topic, clock.receipt(each.received_ns), message)
            if not kind.missing:
                return kind
        empty = [f"no {kind.what}: none on {', '.join(kind.missing)}" for kind in kinds]
        raise RolloutError(
            f"holds no commands of rig '{self.context.options.load_rig().name}': "
            f"{'; '.join([*empty, *absent])}; name the topics of yours in a rig file (--rig)"
        )

    def _actions(
        self,
        rig: RigSpec,
        commands: Commands,
        read: _Reading,
        states: _States,
        clock: Clock,
    ) -> tuple[Actions, bool]:
        """Return the actions, and whether they are trajectories that stay as they are."""
        spans = [clock.span(log) for log in read.stamps.values()] + states.spans
        first, last = max(span[0] for span in spans), min(span[1] for span in spans)
        # A step begins up to one image's time behind the newest one.
        last += max(log.period_ns for log in read.stamps.values())
        kept = commands.as_they_are() if isinstance(commands, Trajectories) else None
        begin, end = commands.span_ns
        seconds = (min(last, end) - max(first, begin)) / NS_PER_S
        if seconds * rig.rates.control > MOST_STEPS:
            raise RolloutError(
                f"goes on for {seconds:.0f} s; an episode has at most "
                f"{MOST_STEPS / rig.rates.control:.0f}"
            )
        actions = kept or sample(commands, rig.rates.dt, first, last)
        actions = actions.between(first, last)
        for name in commands.topics if kept is not None else ():
            self.bag.topics[name].check_layout(self.context.types)
        if len(actions) < _LEAST_STEPS:
            raise RolloutError(
                f"has {len(actions)} control steps with a command while all sensors were being "
                f"recorded: commands go on for {(end - begin) / NS_PER_S:.2f} s, sensors for "
                f"{(last - first) / NS_PER_S:.2f} s, both for {max(seconds, 0):.2f} s"
            )
        return actions, kept is not None

    def _messages(
        self, found: RigTopics, clock: Clock, actions: Actions, kept: Commands | None
    ) -> Iterator[tuple[str, int, bytes]]:
        """Yield (topic, receipt [ns], message), trajectories among the others by their start."""
        types, topics = self.context.types, self.bag.topics
        trajectories = kept if isinstance(kept, Trajectories) else None
        outputs = trajectories.outputs if trajectories is not None else {}
        made = iter(()) if kept is not None else _chunks(found.rig, RigMessages(types), actions)
        coming = next(made, None)
        for each in self.bag.messages({*found.written, *outputs}):
            topic, received_ns = topics[each.topic], clock.receipt(each.received_ns)
            while coming is not None and coming[1] <= received_ns:
                yield coming
                coming = next(made, None)
            cdr = topic.to_cdr(each.data, types)
            if trajectories is not None and each.topic in outputs:
                start_ns = trajectories.start_ns(received_ns, topic.read(each.data))
                yield absolute(outputs[each.topic].topic), received_ns, with_stamp(cdr, start_ns)
            else:
                if not header_stamp(cdr):
                    cdr = with_stamp(cdr, received_ns)
                yield found.written[each.topic].name, received_ns, cdr
        while coming is not None:
            yield coming
            coming = next(made, None)


def _trajectory_topics(rig: RigSpec) -> tuple[Topic, ...]:
    """Return the topics of the trajectories that an imported bag has."""
    return tuple(topic for topic in rig_topics(rig) if topic.msgtype == TRAJECTORY)


class _States:
    """The arms' readings by their stamps."""

    def __init__(
        self, found: RigTopics, read: _Reading, topics: Mapping[str, BagTopic], clock: Clock
    ) -> None:
        """Read them; raises RolloutError where an arm has none."""
        arms = found.rig.arms.values()
        times: list[list[int]] = [[] for _ in arms]
        rows: list[list[Array]] = [[] for _ in arms]
        bad, fault = 0, ""
        for each in read.states:
            topic = topics[each.topic]
            message = topic.read(each.data)
            for index in found.arms[each.topic]:
                arm = arms[index]
                if len(found.arms[each.topic]) > 1 and arm.state_names[0] not in message.name:
                    continue  # the other arm's
                try:
                    row = read_joints(arm.state_names, message)
                except ObservationError as error:
                    row, fault = None, fault or f"{shown(each.topic)}: {error}"
                if row is None:
                    bad += 1
                    continue
                row[ARM_JOINTS] = arm.gripper.normalize(arm.gripper.reading(row[ARM_JOINTS]))
                stamp_ns = stamp_of(topic, each.data) or clock.receipt(each.received_ns)
                times[index].append(stamp_ns)
                rows[index].append(row)
        for index, arm in enumerate(arms):
            if not times[index]:
                raise RolloutError(
                    fault or f"{arm.joint_states} has no good reading: the servo bus failed"
                )
        self._times = [np.array(each, np.int64) for each in times]
        self._rows = [np.array(each) for each in rows]
        self.spans = [(int(each.min()), int(each.max())) for each in self._times]
        self.notes = [f"{bad} joint states are no readings of the arms"] * (bad > 0)

    def at(self, times_ns: NDArray[np.int64]) -> Array:
        """Return (K, 14) what was known of the arms at some moments."""
        parts = []
        for times, rows in zip(self._times, self._rows, strict=True):
            order = np.argsort(times, kind="stable")
            newest = np.searchsorted(times[order], times_ns, side="right") - 1
            parts.append(rows[order][np.maximum(newest, 0)])
        return np.hstack(parts)


def _chunks(
    rig: RigSpec, messages: RigMessages, actions: Actions
) -> Iterator[tuple[str, int, bytes]]:
    """Yield (topic, start [ns], JointTrajectory), a chunk of rows each; a pause stops the arms.

    A trajectory without a row is what stops a controller, and what no action chunk runs across.
    """
    step_ns = round(rig.rates.dt * NS_PER_S)
    number = 0
    begins = [0, *(np.flatnonzero(np.diff(actions.run)) + 1).tolist(), len(actions)]
    for begin, end in pairwise(begins):
        if begin:
            stop_ns = int(actions.times_ns[begin - 1]) + step_ns
            chunk_id = f"import/{number}{BRAKE}"
            for topic, cdr in messages.trajectories(
                rig, chunk_id, stop_ns, step_ns, actions.rows[:0]
            ):
                yield absolute(topic), stop_ns, cdr
        for first in range(begin, end, rig.rates.chunk_steps):
            rows = actions.rows[first : min(first + rig.rates.chunk_steps, end)]
            start_ns = int(actions.times_ns[first])
            for topic, cdr in messages.trajectories(
                rig, f"import/{number}", start_ns, step_ns, rows
            ):
                yield absolute(topic), start_ns, cdr
            number += 1


def _faults(faults: Sequence[str]) -> list[str]:
    if not faults:
        return []
    more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
    return [f"{shown(faults[0], 200)}{more}; what is whole was taken"]


def _told_of_cameras(file: RigSpec, rig: RigSpec) -> list[str]:
    changed = [
        f"{now.role} {now.transport}"
        for was, now in zip(file.cameras, rig.cameras, strict=True)
        if was.transport != now.transport
    ]
    return [f"unlike the rig file, cameras are {', '.join(changed)}"] * bool(changed)


def _told_of_commands(
    commands: Commands, actions: Actions, rig: RigSpec, as_they_are: bool
) -> list[str]:
    if as_they_are:
        return ["actions: JointTrajectory messages as they are"]
    notes = [f"actions: {commands.what}, {commands.pace}, taken at {rig.rates.control:g} Hz"]
    if pauses := int(actions.run[-1]):
        between = np.diff(actions.times_ns) / NS_PER_S
        seconds = float((between[between > 1.5 * rig.rates.dt] - rig.rates.dt).sum())
        notes.append(
            f"commands pause {pauses} time{'s' * (pauses > 1)}, {seconds:.2f} s in all: no action "
            f"chunk runs across"
        )
    if commands.left_out:
        notes.append(f"{commands.left_out} messages with commands are none of this rig's joints")
    return notes
