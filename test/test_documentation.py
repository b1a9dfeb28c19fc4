"""Pins the documentation: its site builds without a warning, and what it prints exists and runs.

A link to a page that had moved, and a command that took other arguments by then, went unseen.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cosmos_policy_ros.cli.cosmos import HELP
from cosmos_policy_ros.nodes.options import POLICY
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.rig.observation import Observation

ROOT = Path(__file__).parents[1]
DOC = ROOT / "doc"
PAGES = sorted([*DOC.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as HTML; every link between pages and to headings is checked, a warning fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", DOC, folder]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_reference_has_what_the_code_has(site: Path) -> None:
    nodes = (site / "reference/nodes.html").read_text()
    assert all(f">{parameter.name}<" in nodes for parameter in POLICY)
    for name in ("~/arm", "~/start_episode", "~/prepare_arms", "~/step", "~/run_task"):
        assert name in nodes
    messages = (site / "reference/messages.html").read_text()
    files = [path for kind in ("msg", "srv", "action") for path in (ROOT / kind).glob(f"*.{kind}")]
    assert files and all(f'id="{path.stem.lower()}"' in messages for path in files)
    config = (site / "reference/config.html").read_text()
    blocks = "arms.left gate rubric optimiser contenders[] images[] aggregation"
    for name in blocks.split():
        assert f">{name}<" in config


def test_every_page_is_reached(site: Path) -> None:
    index = (site / "index.html").read_text()
    for page in DOC.rglob("*.md"):
        link = page.relative_to(DOC).with_suffix(".html").as_posix()
        assert link == "index.html" or f'href="{link}"' in index


def test_the_safety_page_names_the_emergency_stop_first() -> None:
    headings = re.findall(r"^## (.*)$", (DOC / "safety.md").read_text(), re.MULTILINE)
    assert headings[0] == "The emergency stop"
    assert "(doc/safety.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_and_commands_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (page.parent / link).exists(), link
    for script in re.findall(r"scripts/([\w/.]*\w)", text):
        assert (ROOT / "scripts" / script).exists() or script == "NAME", script
    for command in re.findall(r"ros2 run cosmos_policy_ros (\w+)", text):
        assert (ROOT / "scripts" / command).exists() or command == "NAME", command
    for command in re.findall(
        r"(?:[\n`]|ros2 run cosmos_policy_ros )cosmos ([a-z][a-z0-9-]*)", text
    ):
        assert command in HELP, command
    for path in re.findall(r"\b((?:benchmark|test|config)/[\w/.]+\.\w+)", text):
        assert (ROOT / path).exists(), path


def code_of(page: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (DOC / page).read_text(), re.DOTALL)
    return str(code)


def test_the_models_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(ROOT)
    exec(code_of("explanation/model.md"), {})  # noqa: S102
    assert "(2, 50, 14) 3 (64, 64, 3)" in capsys.readouterr().out


def test_the_engine_of_the_how_to() -> None:
    made: dict = {}
    exec(code_of("how-to/add-an-engine.md"), made)  # noqa: S102
    seen = Observation(stamp_ns=0, images={}, state=np.arange(14.0), ages={})
    decision = made["StandStill"]().decide(Query("a_task", "a prompt", 1, 0, seen))
    assert decision.positions.shape == (50, 14)
    assert np.array_equal(decision.positions[-1], seen.state)


def test_the_tasks_and_evaluations_of_the_how_tos(tmp_path: Path) -> None:
    from cosmos_policy_ros.core.config import load_config
    from cosmos_policy_ros.core.task import Task
    from cosmos_policy_ros.evaluation.sim_room import EvaluationConfig
    from cosmos_policy_ros.inference.remote_config import RemoteConfig
    from cosmos_policy_ros.training.config import TrainingConfig

    for page, kinds in (
        ("how-to/add-a-task.md", [Task]),
        ("how-to/evaluate.md", [EvaluationConfig, EvaluationConfig]),
        (
            "how-to/compare-with-another-policy.md",
            [RemoteConfig, EvaluationConfig, EvaluationConfig, RemoteConfig, EvaluationConfig],
        ),
        ("tutorials/first-checkpoint.md", [TrainingConfig, EvaluationConfig]),
    ):
        blocks = re.findall(r"```yaml\n(.*?)```", (DOC / page).read_text(), re.DOTALL)
        for kind, text in zip(kinds, blocks, strict=True):
            file = tmp_path / "it.yaml"
            file.write_text(text)
            load_config(kind, file)
