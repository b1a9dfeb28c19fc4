"""Pins the task files: a rubric that does not add up, or a task misread, spoils every score."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.task import TASKS_VARIABLE, load_named_task, load_task

TASKS = Path(__file__).parents[2] / "config" / "tasks"

GOOD: dict[str, Any] = {
    "name": "stack",
    "description": "Stack two blocks.",
    "prompts": ["stack the blocks"],
    "time_limit": 10,
    "rigs": ["sim", "real"],
    "rubric": {
        "stages": [{"name": "lifted", "points": 40}, {"name": "stacked", "points": 60}],
        "deductions": [{"name": "dropped", "points": 10}],
    },
}


def _write(folder: Path, content: dict[str, Any], name: str = "stack") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


# Steps at 25 Hz, and prompts.
SHIPPED = {
    "ziploc": (1100, ("put candy in bag",)),
    "candies": (1100, ("put candies in bowl",)),
    "shirt": (1600, ("fold shirt",)),
    "plate": (350, ("put purple eggplant on plate", "put brown chicken wing on plate")),
    "transfer_cube": (500, ("transfer the red cube",)),
    "insertion": (500, ("insert the peg into the socket",)),
    "either_cube": (
        500,
        ("hand over a cube", "hand over the red cube", "hand over the blue cube"),
    ),
}


def test_shipped_tasks_have_the_papers_prompts_and_times() -> None:
    tasks = [load_task(path.stem, TASKS) for path in TASKS.glob("*.yaml")]
    assert {task.name: (task.time_limit * 25, task.prompts) for task in tasks} == SHIPPED


def test_reads_by_name_and_by_path(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD)
    task = load_task("stack", tmp_path)
    assert task == load_task(str(path), TASKS)
    assert task.rigs == ("sim", "real")
    assert [(d.name, d.points) for d in task.rubric.deductions] == [("dropped", 10)]


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'ziploc'\?"):
        load_task("ziplock", TASKS)


def test_name_other_than_the_files_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, GOOD, name="tower")
    with pytest.raises(ConfigError, match=r"'stack' must be the file's own, 'tower'"):
        load_task("tower", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_limit": 0}, "time_limit: 0.0 s must be finite and above 0"),
        ({"time_limit": float("inf")}, "time_limit: inf s"),
        ({"time_limit": float("nan")}, "time_limit: nan s"),
        ({"name": "../stack"}, "name: '../stack' must be lower-case"),
        ({"prompts": []}, "prompts: the list is empty"),
        ({"prompts": ["a", "a"]}, "prompt 'a' is listed twice"),
        ({"prompts": [" "]}, "a prompt is empty"),
        ({"rigs": []}, "rigs: the list is empty"),
        ({"rigs": ["simulated"]}, "'simulated' is not a choice"),
        ({"promt": "x"}, "did you mean 'prompts'"),
    ],
)
def test_wrong_task_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _write(tmp_path, {**GOOD, **change})
    with pytest.raises(ConfigError) as refused:
        load_task("stack", tmp_path)
    assert message in str(refused.value)
    assert str(tmp_path / "stack.yaml") in str(refused.value)


@pytest.mark.parametrize(
    ("rubric", "message"),
    [
        ({"stages": [{"name": "a", "points": 99}]}, "sum to 99, expected 100"),
        ({"stages": []}, "sum to 0, expected 100"),
        ({"stages": [{"name": "a", "points": 50}] * 2}, "stage 'a' is listed twice"),
        (
            {"stages": [{"name": "a", "points": 150}, {"name": "b", "points": -50}]},
            "stage 'b': -50 points must be above 0",
        ),
        ({"stages": [{"name": "", "points": 100}]}, "a stage has an empty name"),
        (
            {"stages": GOOD["rubric"]["stages"], "deductions": [{"name": "x", "points": 1}] * 2},
            "deduction 'x' is listed twice",
        ),
        (
            {"stages": GOOD["rubric"]["stages"], "deductions": [{"name": "x", "points": 0}]},
            "deduction 'x': 0 points must be above 0",
        ),
    ],
)
def test_wrong_rubric_is_named(tmp_path: Path, rubric: dict[str, Any], message: str) -> None:
    _write(tmp_path, {**GOOD, "rubric": rubric})
    with pytest.raises(ConfigError) as refused:
        load_task("stack", tmp_path)
    assert message in str(refused.value)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the lab's own tasks."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    monkeypatch.setenv(TASKS_VARIABLE, str(folder))
    return folder


def test_a_service_finds_shipped_and_own_tasks_by_name(own: Path) -> None:
    path = _write(own, GOOD)
    found = load_named_task("stack")
    assert found.task.name == "stack" and found.text == path.read_text()
    shipped = load_named_task("ziploc")
    assert shipped.text == (TASKS / "ziploc.yaml").read_text()
    assert load_task("stack", TASKS) == found.task, "a launch argument finds it as well"


def test_the_labs_own_task_comes_first(own: Path) -> None:
    _write(own, {**GOOD, "name": "ziploc"}, "ziploc")
    assert load_named_task("ziploc").task.description == "Stack two blocks."


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "/dev/zero",
        "./ziploc",
        "../tasks/ziploc",
        "ziploc.yaml",
        "~/stack",
        "..",
        ".",
        "",
        "ziploc\n",
        "ziploc\0",
        "Ziploc",
        "z" * 65,
        "z" * 10_000_000,
        "\u0661",
    ],
)
def test_a_service_takes_no_path(own: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no task's name: give the name of") as caught:
        load_named_task(name)
    assert len(str(caught.value)) < 500


def test_a_near_name_of_either_folder_is_offered(own: Path) -> None:
    _write(own, GOOD)
    with pytest.raises(ConfigError, match=r"did you mean 'stack'\?"):
        load_named_task("stak")
    with pytest.raises(ConfigError, match=r"did you mean 'ziploc'\?"):
        load_named_task("zyploc")


def test_a_pipe_among_the_labs_tasks_hangs_nothing(own: Path) -> None:
    os.mkfifo(own / "stack.yaml")
    with pytest.raises(ConfigError, match=r"stack\.yaml: is a pipe"):
        load_named_task("stack")
