"""Which column of a vector is which joint, by the names that public ALOHA data sets give them.

A wrong order moves the wrong arm, so names that contradict themselves, or are of another robot, are
refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.interop.foreign_episode import Arm
from cosmos_policy_ros.rig.arms import ARM_DIM, ARMS, STATE_DIM

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
_FILLERS = {
    *(
        "follower",
        "leader",
        "puppet",
        "master",
        "arm",
        "main",
        "joint",
        "motor",
        "vx300s",
        "wx250s",
    ),
    *("pos", "position", "qpos", "angle", "state", "action", "observation"),
}
_RIGHT_FIRST = (*range(ARM_DIM, STATE_DIM), *range(ARM_DIM))
_SHOWN_NAMES = 8


@dataclass(frozen=True)
class Columns:
    """Which columns the 14-vector is made of, and those that are left, by index and name.

    ``notes`` tell where the order is not the one found, or is not told.
    """

    order: tuple[int, ...]
    others: tuple[tuple[int, str], ...]
    notes: tuple[str, ...]


def columns_of(names: Any, count: int, where: str, first_arm: Arm | None) -> Columns:
    """Return which columns are the left arm's and the right arm's joints.

    Args:
        names: of the columns: a list, a list within a list, or lists by anything; None or a single
            name tell nothing, and neither do numbered ones.
        count: columns.
        where: file and feature, for messages.
        first_arm: the arm whose seven columns come first, by an operator's word; None for what the
            names tell.

    Raises:
        RolloutError: the names are not those of two ALOHA arms, or are known to be written over
            columns of another order; or they tell nothing and there are not 14 columns.
    """
    if first_arm is not None:
        _check_count(count, where)
        if first_arm == "left":
            return Columns(tuple(range(STATE_DIM)), (), ())
        return Columns(_RIGHT_FIRST, (), ("right arm's columns put behind the left's, as given",))
    listed, nested = _flat(names)
    if listed is None or _tells_nothing(listed, count):
        _check_count(count, where)
        told = "joints are not named: the first seven columns are taken for the left arm's"
        return Columns(tuple(range(STATE_DIM)), (), (told,))
    joints = [joint_of(name) for name in listed]
    wanted = [(side, joint) for side in ARMS for joint in JOINTS]
    missing = [f"{side}_{joint}" for side, joint in wanted if joints.count((side, joint)) != 1]
    if len(listed) != count or missing:
        fault = (
            f"has {count} columns and {len(listed)} names"
            if len(listed) != count
            else f"names no {', '.join(missing[:3])}{' …' * (len(missing) > 3)}, or two"
        )
        advice = (
            "if its columns are an ALOHA's all the same, six joints from the waist on and the "
            "gripper of one arm, then of the other, give --first-arm with the arm that comes first"
            if count == STATE_DIM
            else "only two arms of an ALOHA can be taken"
        )
        raise RolloutError(f"{where}: {fault}; its names are {_listed(listed)}; {advice}")
    order = tuple(joints.index(each) for each in wanted)
    others = tuple((i, name) for i, name in enumerate(listed) if i not in order)
    if order == _RIGHT_FIRST and nested:
        # openpi's converter from HDF5 writes these names, in a list within a list, over columns
        # that it copies as they come: the left arm first, where ALOHA's own recorder was used.
        raise RolloutError(
            f"{where}: its names put the right arm first, as a public converter writes them over "
            f"columns that have the left arm first; play an episode in which one arm moves more, "
            f"then give --first-arm left, or --first-arm right where the names are right"
        )
    notes = []
    if order == _RIGHT_FIRST:
        notes.append("right arm's columns put behind the left's, by their names")
    elif order != tuple(range(STATE_DIM)):
        notes.append("columns put in order by their names")
    return Columns(order, others, tuple(notes))


def joint_of(name: str) -> tuple[str, str] | None:
    """Return (arm, joint) that a name tells, such as ("left", "waist"); None for any other."""
    words = re.findall(r"[a-z]+[0-9]*[a-z]*|[0-9]+", name.lower().replace("_", " "))
    sides = [word for word in words if word in ARMS]
    if len(sides) != 1:
        return None
    rest = [word for word in words if word not in ARMS]
    # "angle" is a filler and a part of a joint's name.
    for kept in (rest, [word for word in rest if word not in _FILLERS - {"angle"}]):
        joint = "_".join(kept)
        if joint in JOINTS:
            return sides[0], joint
    joint = "_".join(word for word in rest if word not in _FILLERS)
    return (sides[0], joint) if joint in JOINTS else None


def _flat(names: Any) -> tuple[list[str] | None, bool]:
    """Return names as one list, None where there are none, and whether that was in another list."""
    nested = False
    if isinstance(names, dict):
        values = list(names.values())
        if values and all(isinstance(each, int) for each in values):
            return sorted(map(str, names), key=lambda name: names[name]), False
        names = [name for each in values for name in (each if isinstance(each, list) else [each])]
    elif isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names, nested = names[0], True
    if not isinstance(names, list) or not names:
        return None, nested
    return [name if isinstance(name, str) else shown(name) for name in names], nested


def _tells_nothing(names: Sequence[str], count: int) -> bool:
    """Return whether names are one for all columns, or a word with running numbers."""
    if len(names) == 1 != count:
        return True
    split = [re.fullmatch(r"(.*?)(\d{1,6})", name) for name in names]
    numbers = [int(match[2]) for match in split if match]
    stems = {match[1] for match in split if match}
    return len(numbers) == len(names) == count and (
        len(stems) == 1 and numbers == list(range(numbers[0], numbers[0] + count))
    )


def _check_count(count: int, where: str) -> None:
    if count != STATE_DIM:
        raise RolloutError(
            f"{where}: has {count} columns, expected {STATE_DIM}: six joints and the gripper of "
            f"one arm, then of the other"
        )


def _listed(names: Sequence[str]) -> str:
    texts = [shown(name, 30) for name in names[:_SHOWN_NAMES]]
    return ", ".join([*texts, "…"] if len(names) > _SHOWN_NAMES else texts)
