"""The control steps of an episode: what the arms were told, row by row, and when.

A step is one row of a trajectory that was sent, so what an episode is made of is what moved the
arms: refused chunks are not in it, nor the pauses in which a policy thinks and the arms hold, nor
the way to the start pose. A braked chunk ends where it was braked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rig.chunk import NS
from cosmos_policy_ros.rig.motion import CHUNK_ID
from cosmos_policy_ros.rig.spec import ARM_DIM, ARM_JOINTS, Arm
from cosmos_policy_ros.rollouts.message_index import IndexedTopic
from cosmos_policy_ros.rollouts.rig_in_bag import RigInBag

BRAKE = "/brake"  # how the id of a braking trajectory ends
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


class _Sent(NamedTuple):
    chunk_id: str
    start_ns: int
    offsets_ns: NDArray[np.int64]
    positions: NDArray[np.float64]


def read_steps(
    rig: RigInBag, trajectories: Sequence[IndexedTopic], starts: Mapping[str, int], dt: float
) -> Steps:
    """Return an episode's steps.

    Args:
        rig: of the bag.
        trajectories: the left and the right arm's.
        starts: when the chunks of these ids began, for rigs whose trajectories bear no stamp; by
            default when they were received.
        dt: seconds per step. Rows that lie closer are thinned out: a 50 Hz source gives every
            second action.

    Raises:
        RolloutError: the trajectories' rows do not fall on whole steps, or a message is damaged.
    """
    sent = _pairs(rig, trajectories, starts)
    step_ns = round(dt * NS)
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
        return Steps(np.zeros(0, np.int64), np.zeros((0, 2 * ARM_DIM)), np.zeros(0, np.int64))
    return Steps(np.concatenate(times), np.concatenate(actions), np.concatenate(stretch))


def _pairs(
    rig: RigInBag, trajectories: Sequence[IndexedTopic], starts: Mapping[str, int]
) -> list[_Sent]:
    """Join the arms' trajectories by the chunk they belong to; one arm alone is no action."""
    arms = list(rig.rig.arms.values())
    left, right = (
        [_read(arm, topic, index, starts) for index in range(len(topic))]
        for arm, topic in zip(arms, trajectories, strict=True)
    )
    others = {each.chunk_id: each for each in right}
    joined = []
    for each in left:
        other = others.get(each.chunk_id)
        if other is not None and np.array_equal(each.offsets_ns, other.offsets_ns):
            positions = np.hstack([each.positions, other.positions])
            joined.append(each._replace(positions=positions))
    return sorted(joined, key=lambda each: each.start_ns)


def _read(arm: Arm, topic: IndexedTopic, index: int, starts: Mapping[str, int]) -> _Sent:
    message = topic.read(index)
    try:
        positions = targets(arm, message)
    except RolloutError as error:
        raise RolloutError(f"{topic.files[0].parent}: {error}") from error
    # Two of an imported episode's may have no id; then they belong together by their order.
    chunk_id = message.header.frame_id or f"#{index}"
    stamp_ns = int(topic.stamps_ns[index])
    start_ns = stamp_ns or starts.get(chunk_id, int(topic.received_ns[index]))
    return _Sent(chunk_id, start_ns, _offsets(message.points), positions)


def targets(arm: Arm, message: Any) -> NDArray[np.float64]:
    """Return a trajectory's rows (K, 7) in policy units.

    Raises:
        RolloutError: it lacks a joint of the arm.
    """
    missing = [name for name in arm.names if name not in message.joint_names]
    if missing:
        raise RolloutError(
            f"a trajectory on {arm.trajectory} lacks the joint {', '.join(missing)} of the rig's "
            f"file; it moves {', '.join(message.joint_names)}"
        )
    columns = [message.joint_names.index(name) for name in arm.names]
    positions = np.array([p.positions for p in message.points], np.float64)
    rows: NDArray[np.float64] = positions.reshape(-1, len(message.joint_names))[:, columns]
    rows[:, ARM_JOINTS] = arm.gripper.commanded(rows[:, ARM_JOINTS])
    return rows


def _offsets(points: Sequence[Any]) -> NDArray[np.int64]:
    times = [p.time_from_start for p in points]
    return np.array([t.sec * NS + t.nanosec for t in times], np.int64)


def _on_grid(sent: _Sent, step_ns: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the rows that are due at whole steps, and when [ns from the start]."""
    steps = np.arange(1, 1 + (int(sent.offsets_ns[-1]) + step_ns // 2) // step_ns)
    due_ns = steps.astype(np.int64) * step_ns
    rows = np.abs(sent.offsets_ns[None] - due_ns[:, None]).argmin(axis=1)
    if not len(due_ns) or np.abs(sent.offsets_ns[rows] - due_ns).max() > DT_TOLERANCE * NS:
        between = np.diff(sent.offsets_ns, prepend=0) / NS
        raise RolloutError(
            f"trajectory '{sent.chunk_id}' has rows {between.min():g} to {between.max():g} s "
            f"apart, which is no whole part of the {step_ns / NS:g} s between two actions"
        )
    return rows, due_ns
