"""Pins the judge: which contacts make which stage, and that a stage once reached stays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import load_task
from cosmos_policy_ros.sim.scene import load_physics_model
from cosmos_policy_ros.sim.tasks import TASKS, Judge

CUBE, TABLE, PEG, PIN, WALL = "red_box", "table", "red_peg", "pin", "socket-3"
LEFT = ("vx300s_left/10_left_gripper_finger", "vx300s_left/10_right_gripper_finger")
RIGHT = ("vx300s_right/10_left_gripper_finger", "vx300s_right/10_right_gripper_finger")


def contacts(model: Any, *pairs: tuple[str, str]) -> Any:
    geoms = [[model.geom(a).id, model.geom(b).id] for a, b in pairs]
    # MuJoCo's array is longer than what is in contact now; the rest is stale.
    stale = [[model.geom(TABLE).id, model.geom(TABLE).id]]
    return SimpleNamespace(
        ncon=len(geoms), contact=SimpleNamespace(geom=np.array(geoms + stale, dtype=np.int32))
    )


TRANSFER = [
    (0, [(CUBE, TABLE)]),
    (1, [(CUBE, TABLE), (CUBE, RIGHT[0])]),
    (2, [(RIGHT[1], CUBE), (RIGHT[0], CUBE)]),
    (1, [(CUBE, TABLE), (CUBE, RIGHT[0]), (CUBE, LEFT[0])]),
    (0, [(CUBE, TABLE), (CUBE, LEFT[0])]),
    (3, [(CUBE, RIGHT[0]), (CUBE, LEFT[0]), (CUBE, LEFT[1])]),
    (3, [(CUBE, LEFT[0])]),
    (4, [(LEFT[0], CUBE), (CUBE, LEFT[1])]),
    (0, [(CUBE, TABLE), (CUBE, LEFT[0]), (CUBE, LEFT[1])]),
]

BLUE = "blue_box"
EITHER = [
    (2, [(CUBE, TABLE), (BLUE, RIGHT[0])]),
    (4, [(CUBE, TABLE), (BLUE, LEFT[0]), (BLUE, LEFT[1])]),
    (2, [(CUBE, RIGHT[0]), (BLUE, TABLE), (BLUE, LEFT[0])]),
]

INSERTION = [
    (0, [(PEG, TABLE), (WALL, TABLE)]),
    (0, [(PEG, RIGHT[0]), (WALL, TABLE)]),
    (1, [(PEG, RIGHT[0]), (WALL, LEFT[1]), (PEG, TABLE)]),
    (2, [(PEG, RIGHT[0]), (WALL, LEFT[1])]),
    (3, [(PEG, RIGHT[0]), (WALL, LEFT[1]), (PEG, WALL)]),
    (0, [(PEG, WALL), (PEG, TABLE)]),
    (4, [(PEG, PIN), (PEG, RIGHT[0]), (WALL, LEFT[0])]),
]


@pytest.mark.parametrize(
    ("task", "stage", "pairs"),
    [("transfer_cube", *row) for row in TRANSFER]
    + [("insertion", *row) for row in INSERTION]
    + [("either_cube", *row) for row in TRANSFER + EITHER],
)
def test_stage_of_contacts(task: str, stage: int, pairs: list[tuple[str, str]]) -> None:
    model = load_physics_model(task)
    assert Judge(task, model).reached(contacts(model, *pairs)) == stage


def test_only_the_cube_that_the_prompt_names_counts() -> None:
    model = load_physics_model("either_cube")
    blue_in_the_air = contacts(model, (CUBE, TABLE), (BLUE, RIGHT[0]))

    def judge(prompt: str) -> tuple[int, int]:
        judge = Judge("either_cube", model, prompt)
        return judge.reached(blue_in_the_air), judge.best_with_any

    assert judge("hand over the blue cube") == (2, 2)
    assert judge("hand over the red cube") == (0, 2)
    assert judge("hand over a cube") == judge("") == (2, 2)


def test_prompts_that_name_an_object_are_the_tasks_own() -> None:
    for name, task in TASKS.items():
        assert set(task.named) <= set(load_task(name, config_folder("tasks")).prompts)


def test_a_stage_once_reached_stays() -> None:
    model = load_physics_model("transfer_cube")
    judge = Judge("transfer_cube", model)
    assert judge.reached(contacts(model, (CUBE, RIGHT[0]))) == 2
    assert judge.reached(contacts(model, (CUBE, TABLE))) == 2
    assert judge.best == 2


def test_every_task_has_four_named_stages() -> None:
    assert {len(task.stages) for task in TASKS.values()} == {4}
