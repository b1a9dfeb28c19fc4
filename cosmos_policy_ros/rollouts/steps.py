"""The control steps of an episode: what the arms were told, row by row, and when.

A step is one row of a trajectory that was sent, so what an episode is made of is what moved the
arms: refused chunks are not in it, nor the pauses in which a policy thinks and the arms hold, nor
the way to the start pose. A braked chunk ends where it was braked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rig.arms import STATE_DIM
from cosmos_policy_ros.rig.chunk import BRAKE
from cosmos_policy_ros.rig.motion import CHUNK_ID
from cosmos_policy_ros.rig.outputs import Output
from cosmos_policy_ros.rollouts.message_index import IndexedTopic
from cosmos_policy_ros.rollouts.rig_in_bag import RigInBag

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
        trajectories: what was sent, by the topics of ``rig.outputs``.
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
