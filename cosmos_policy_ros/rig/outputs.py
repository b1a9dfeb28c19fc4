"""Which topics trajectories go to: one per arm, one for all 14 joints, grippers beside or apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Output:
    """One controller: its topic, and what of the 14-vector it moves.

    Attributes:
        name: "left", "right" or "arms"; of grippers alone "left_gripper", "right_gripper" or
            "grippers".
        topic: relative to the node's namespace.
        joints: names in its trajectories, in their order.
        columns: the entries of the 14-vector behind them.
    """

    name: str
    topic: str
    joints: tuple[str, ...]
    columns: tuple[int, ...]


def find_outputs(
    topics: Sequence[str], joints: Sequence[str], grippers: Sequence[int]
) -> tuple[Output, ...]:
    """Return the controllers behind the entries of the 14-vector, in its order.

    Args:
        topics: (14,) where each entry is sent.
        joints: (14,) what it is called there.
        grippers: the entries of the left and of the right gripper.

    Raises:
        ValueError: two joints of one topic have the same name.
    """
    found = []
    for topic in dict.fromkeys(topics):
        columns = tuple(i for i, each in enumerate(topics) if each == topic)
        names = tuple(joints[i] for i in columns)
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"two joints on '{topic}' are called '{twice[0]}'; give each a name of its own, "
                f"such as 'left_{twice[0]}', or each arm a topic"
            )
        found.append(Output(_name(columns, len(topics) // 2, grippers), topic, names, columns))
    return tuple(found)


def _name(columns: Sequence[int], per_arm: int, grippers: Sequence[int]) -> str:
    joints = [i for i in columns if i not in grippers]
    sides = {("left", "right")[i // per_arm] for i in joints or columns}
    if joints:
        return sides.pop() if len(sides) == 1 else "arms"
    return f"{sides.pop()}_gripper" if len(sides) == 1 else "grippers"
