"""The simulated tasks: where their objects start, and a judge that says how far an episode got.

Two tasks, their object ranges and stages, are the ACT paper's simulated benchmarks, as published in
gym-aloha; the judge asks a little more of "handed over" and "touched" than those rewards do.
``either_cube`` is ours: a cube to hand over and another one, which would do as well, so that there
is something to choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mujoco  # type: ignore[import-untyped]
import numpy as np

from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import RigError

# What a policy meets in a trial: scenes as in the demonstrations, and scenes that are harder.


Range = tuple[float, float]
Colour = tuple[float, float, float]  # red, green, blue, 0 to 1
USUAL = "usual"


@dataclass(frozen=True)
class Condition:
    """How scenes differ from the task's own.

    Attributes:
        name: as it is asked for.
        says: in a sentence, for tables.
        ranges: free joint -> ranges of x and y [m] in place of the task's.
        colours: by geom.
        blocks: x and y [m] of green blocks fixed to the table.
        covered: the cameras show nothing: what a policy that only pretends to look does as well.
    """

    name: str
    says: str
    ranges: Mapping[str, tuple[Range, Range]] = field(default_factory=dict)
    colours: Mapping[str, Colour] = field(default_factory=dict)
    blocks: tuple[tuple[float, float], ...] = ()
    covered: bool = False


_LIST: dict[str, tuple[Condition, ...]] = {
    "either_cube": (
        Condition(
            "one_outside",
            "the far cube lies where none lay in training",
            ranges={"blue_box_joint": ((0.22, 0.28), (0.62, 0.68))},
        ),
        Condition(
            "both_outside",
            "both cubes lie where none lay in training",
            ranges={
                "red_box_joint": ((-0.06, -0.01), (0.38, 0.44)),
                "blue_box_joint": ((0.21, 0.26), (0.58, 0.64)),
            },
        ),
        Condition(
            "colours",
            "cubes of colours that training did not show",
            colours={"red_box": (0.9, 0.6, 0.0), "blue_box": (0.0, 0.7, 0.7)},
        ),
        Condition(
            "distractors",
            "two green blocks lie on the table too",
            blocks=((-0.10, 0.62), (-0.05, 0.36)),
        ),
    ),
}


def conditions(task: str) -> tuple[Condition, ...]:
    """Return a task's conditions, the usual one first."""
    usual = Condition(USUAL, "as in the demonstrations, other places")
    covered = Condition("covered", "the cameras are covered", covered=True)
    return (usual, *_LIST.get(task, ()), covered)


def condition(task: str, name: str = USUAL) -> Condition:
    """Return one of a task's conditions.

    Raises:
        RigError: the task has none of this name.
    """
    known = {each.name: each for each in conditions(task)}
    if name not in known:
        raise RigError(f"task '{task}' has no condition '{name}'{did_you_mean(name, known)}")
    return known[name]


Box = tuple[tuple[float, float], tuple[float, float]]

STAGES = {
    "transfer_cube": (
        "right gripper touches the cube",
        "right gripper lifts the cube",
        "left gripper touches the lifted cube",
        "left gripper alone holds the cube",
    ),
    "either_cube": (
        "right gripper touches a cube",
        "right gripper lifts a cube",
        "left gripper touches a lifted cube",
        "left gripper alone holds a cube",
    ),
    "insertion": (
        "both grippers touch their part",
        "both parts are lifted",
        "peg touches socket in the air",
        "peg is inserted",
    ),
}

OBJECT_RANGES: dict[str, dict[str, Box]] = {
    "transfer_cube": {"red_box_joint": ((0.0, 0.2), (0.4, 0.6))},
    "insertion": {
        "red_peg_joint": ((0.1, 0.2), (0.4, 0.6)),
        "blue_socket_joint": ((-0.2, -0.1), (0.4, 0.6)),
    },
    # Open fingers around one cube stay clear of the other.
    "either_cube": {
        "red_box_joint": ((0.0, 0.2), (0.38, 0.44)),
        "blue_box_joint": ((0.0, 0.2), (0.56, 0.62)),
    },
}
"""Task -> free joint of an object -> ranges of its x and y [m]."""

_DROP_HEIGHT = 0.05
"""Height [m] objects start at; they fall onto the table within 0.1 s."""

_SOCKET_WALLS = ("socket-1", "socket-2", "socket-3", "socket-4")


def place_objects(task: str, seed: int, model: Any, data: Any, condition_name: str = USUAL) -> None:
    """Write the objects' start poses into ``data.qpos``.

    They are uniform in the condition's ranges, in :data:`OBJECT_RANGES` where it has none.
    """
    rng = np.random.default_rng(seed)
    ranges = {**OBJECT_RANGES[task], **condition(task, condition_name).ranges}
    for joint, (x_range, y_range) in ranges.items():
        address = int(model.joint(joint).qposadr[0])
        pose = [rng.uniform(*x_range), rng.uniform(*y_range), _DROP_HEIGHT, 1.0, 0.0, 0.0, 0.0]
        data.qpos[address : address + 7] = pose


class Judge:
    """Follows one episode; the best stage reached stays reached.

    Attributes:
        stages: the task's stages, in order.
        best: how many of them have been reached so far.
    """

    def __init__(self, task: str, model: Any) -> None:
        self.stages = STAGES[task]
        self.best = 0
        self._stage = _STAGE_OF[task]
        self._names = [
            mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, i) or "" for i in range(model.ngeom)
        ]

    def reached(self, model: Any, data: Any) -> int:
        """Look at the contacts in ``data`` and return :attr:`best`."""
        names = self._names
        touching = {
            frozenset((names[a], names[b])) for a, b in data.contact.geom[: data.ncon].tolist()
        }
        self.best = max(self.best, self._stage(_Contacts(touching)))
        return self.best


class _Contacts:
    """Which named geoms touch each other at one moment."""

    def __init__(self, pairs: set[frozenset[str]]) -> None:
        self._pairs = pairs

    def any(self, one: tuple[str, ...], other: tuple[str, ...]) -> bool:
        return any(frozenset((a, b)) in self._pairs for a in one for b in other)

    def all(self, one: str, others: tuple[str, ...]) -> bool:
        return all(frozenset((one, b)) in self._pairs for b in others)


def _fingers(arm: str) -> tuple[str, str]:
    return (f"vx300s_{arm}/10_left_gripper_finger", f"vx300s_{arm}/10_right_gripper_finger")


def _transfer_stage(contacts: _Contacts, name: str = "red_box") -> int:
    cube = (name,)
    right = contacts.any(cube, _fingers("right"))
    left = contacts.any(cube, _fingers("left"))
    lifted = not contacts.any(cube, ("table",))
    if lifted and not right and contacts.all(name, _fingers("left")):
        return 4
    if left and lifted:
        return 3
    if right:
        return 2 if lifted else 1
    return 0


def _either_stage(contacts: _Contacts) -> int:
    return max(_transfer_stage(contacts, name) for name in ("red_box", "blue_box"))


def _insertion_stage(contacts: _Contacts) -> int:
    peg = ("red_peg",)
    if contacts.any(peg, ("pin",)):
        return 4
    touched = contacts.any(peg, _fingers("right")) and contacts.any(_SOCKET_WALLS, _fingers("left"))
    lifted = not contacts.any((*peg, *_SOCKET_WALLS), ("table",))
    if lifted and contacts.any(peg, _SOCKET_WALLS):
        return 3
    if touched:
        return 2 if lifted else 1
    return 0


_STAGE_OF = {
    "transfer_cube": _transfer_stage,
    "insertion": _insertion_stage,
    "either_cube": _either_stage,
}
