"""What a policy meets in a trial: scenes as in the demonstrations, and scenes that are harder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cosmos_policy_ros.errors import RigError
from cosmos_policy_ros.rig.config import did_you_mean

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
