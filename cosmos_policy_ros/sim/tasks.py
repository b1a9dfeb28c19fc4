"""The simulated tasks: where their objects start, and a judge that says how far an episode got.

Two tasks, their object ranges and stages, are the ACT paper's simulated benchmarks, as published in
gym-aloha; the judge asks a little more of "handed over" and "touched" than those rewards do.
``either_cube`` is ours: a cube to hand over and another one, which would do as well, so that there
is something to choose; unless the prompt names one, which alone counts then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mujoco  # type: ignore[import-untyped]
import numpy as np

from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import RigError

Range = tuple[float, float]
Contacts = set[frozenset[str]]  # names of the geoms that touch each other at one moment

USUAL = "usual"
_DROP_HEIGHT = 0.05
"""Height [m] objects start at; they fall onto the table within 0.1 s."""


@dataclass(frozen=True)
class Condition:
    """How scenes differ from the task's own.

    Attributes:
        says: in a sentence, for tables.
        ranges: free joint -> ranges of x and y [m] in place of the task's.
        colours: red, green, blue (0 to 1) by geom.
        blocks: x and y [m] of green blocks fixed to the table.
        covered: the cameras show nothing: what a policy that only pretends to look does as well.
    """

    says: str
    ranges: Mapping[str, tuple[Range, Range]] = field(default_factory=dict)
    colours: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    blocks: tuple[tuple[float, float], ...] = ()
    covered: bool = False


@dataclass(frozen=True)
class SimTask:
    """A simulated task.

    Attributes:
        stages: in order.
        stage: returns which of them the contacts show, 0 for none.
        ranges: free joint of an object -> ranges of its x and y [m] at the start.
        conditions: scenes harder than the task's own.
        named: the same as ``stage`` for prompts that name one of several objects.
    """

    stages: tuple[str, ...]
    stage: Callable[[Contacts], int]
    ranges: Mapping[str, tuple[Range, Range]]
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    named: Mapping[str, Callable[[Contacts], int]] = field(default_factory=dict)


def _touch(contacts: Contacts, ones: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return any(frozenset((a, b)) in contacts for a in ones for b in others)


_LEFT_FINGERS, _RIGHT_FINGERS = (
    tuple(f"vx300s_{arm}/10_{side}_gripper_finger" for side in ("left", "right"))
    for arm in ("left", "right")
)
_SOCKET_WALLS = ("socket-1", "socket-2", "socket-3", "socket-4")


def _transfer_stage(contacts: Contacts, cube: str = "red_box") -> int:
    right = _touch(contacts, (cube,), _RIGHT_FINGERS)
    left = [_touch(contacts, (cube,), (finger,)) for finger in _LEFT_FINGERS]
    lifted = not _touch(contacts, (cube,), ("table",))
    if lifted and not right and all(left):
        return 4
    if lifted and any(left):
        return 3
    if right:
        return 2 if lifted else 1
    return 0


def _either_stage(contacts: Contacts) -> int:
    return max(_transfer_stage(contacts, cube) for cube in ("red_box", "blue_box"))


def _insertion_stage(contacts: Contacts) -> int:
    peg = ("red_peg",)
    if _touch(contacts, peg, ("pin",)):
        return 4
    lifted = not _touch(contacts, (*peg, *_SOCKET_WALLS), ("table",))
    if lifted and _touch(contacts, peg, _SOCKET_WALLS):
        return 3
    if _touch(contacts, peg, _RIGHT_FINGERS) and _touch(contacts, _SOCKET_WALLS, _LEFT_FINGERS):
        return 2 if lifted else 1
    return 0


TASKS = {
    "transfer_cube": SimTask(
        stages=(
            "right gripper touches the cube",
            "right gripper lifts the cube",
            "left gripper touches the lifted cube",
            "left gripper alone holds the cube",
        ),
        stage=_transfer_stage,
        ranges={"red_box_joint": ((0.0, 0.2), (0.4, 0.6))},
    ),
    "insertion": SimTask(
        stages=(
            "both grippers touch their part",
            "both parts are lifted",
            "peg touches socket in the air",
            "peg is inserted",
        ),
        stage=_insertion_stage,
        ranges={
            "red_peg_joint": ((0.1, 0.2), (0.4, 0.6)),
            "blue_socket_joint": ((-0.2, -0.1), (0.4, 0.6)),
        },
    ),
    "either_cube": SimTask(
        stages=(
            "right gripper touches a cube",
            "right gripper lifts a cube",
            "left gripper touches a lifted cube",
            "left gripper alone holds a cube",
        ),
        stage=_either_stage,
        # Open fingers around one cube stay clear of the other.
        ranges={
            "red_box_joint": ((0.0, 0.2), (0.38, 0.44)),
            "blue_box_joint": ((0.0, 0.2), (0.56, 0.62)),
        },
        conditions={
            "one_outside": Condition(
                "the far cube lies where none lay in training",
                ranges={"blue_box_joint": ((0.22, 0.28), (0.62, 0.68))},
            ),
            "both_outside": Condition(
                "both cubes lie where none lay in training",
                ranges={
                    "red_box_joint": ((-0.06, -0.01), (0.38, 0.44)),
                    "blue_box_joint": ((0.21, 0.26), (0.58, 0.64)),
                },
            ),
            "colours": Condition(
                "cubes of colours that training did not show",
                colours={"red_box": (0.9, 0.6, 0.0), "blue_box": (0.0, 0.7, 0.7)},
            ),
            "distractors": Condition(
                "two green blocks lie on the table too",
                blocks=((-0.10, 0.62), (-0.05, 0.36)),
            ),
        },
        named={
            "hand over the red cube": _transfer_stage,
            "hand over the blue cube": partial(_transfer_stage, cube="blue_box"),
        },
    ),
}


def conditions(task: str) -> dict[str, Condition]:
    """Return a task's conditions by name, the usual one first. Raises RigError: unknown task."""
    if task not in TASKS:
        raise RigError(f"no simulated task '{task}'{did_you_mean(task, TASKS)}")
    return {
        USUAL: Condition("as in the demonstrations, other places"),
        **TASKS[task].conditions,
        "covered": Condition("the cameras are covered", covered=True),
    }


def condition(task: str, name: str = USUAL) -> Condition:
    """Return one of a task's conditions. Raises RigError: unknown task or condition."""
    known = conditions(task)
    if name not in known:
        raise RigError(f"task '{task}' has no condition '{name}'{did_you_mean(name, known)}")
    return known[name]


def place_objects(task: str, seed: int, model: Any, data: Any, condition_name: str) -> None:
    """Write the objects' start poses into ``data.qpos``, uniform in the condition's ranges."""
    rng = np.random.default_rng(seed)
    ranges = {**TASKS[task].ranges, **condition(task, condition_name).ranges}
    for joint, (x_range, y_range) in ranges.items():
        address = int(model.joint(joint).qposadr[0])
        pose = [rng.uniform(*x_range), rng.uniform(*y_range), _DROP_HEIGHT, 1.0, 0.0, 0.0, 0.0]
        data.qpos[address : address + 7] = pose


class Judge:
    """Follows one episode; the best stage reached stays reached.

    Attributes:
        stages: the task's stages, in order.
        best: how many of them have been reached so far, with the object that the prompt names.
        best_with_any: the same with any object that would do if the prompt named none.
    """

    def __init__(self, task: str, model: Any, prompt: str = "") -> None:
        self.stages = TASKS[task].stages
        self.best = self.best_with_any = 0
        self._with_any = TASKS[task].stage
        self._stage = TASKS[task].named.get(prompt, self._with_any)
        self._names = [
            mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, i) or "" for i in range(model.ngeom)
        ]

    def reached(self, data: Any) -> int:
        """Look at the contacts in ``data`` and return :attr:`best`."""
        names = self._names
        touching = {
            frozenset((names[a], names[b])) for a, b in data.contact.geom[: data.ncon].tolist()
        }
        self.best = max(self.best, self._stage(touching))
        self.best_with_any = max(self.best_with_any, self._with_any(touching))
        return self.best
