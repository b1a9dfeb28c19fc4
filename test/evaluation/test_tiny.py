"""The checkpoint that ships with the package does its task, and looks at its images to do it.

The planner that ships beside it is made from it.
"""

from __future__ import annotations

import json
from pathlib import Path

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.evaluation.contenders import Contender
from cosmos_policy_ros.evaluation.evaluate import evaluate
from cosmos_policy_ros.evaluation.results import Result
from cosmos_policy_ros.evaluation.sim_room import EvaluationConfig
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import load_checkpoint

FOLDER = config_folder("models") / "tiny"
PLANNER = config_folder("models") / "tiny_planner"
TASK = "either_cube"
MOST_BYTES = 20e6
# Of a hundred it does 76. Fewer than three of eight would be chance once in three hundred
# checkpoints as good; other processors round otherwise, and miss other scenes.
TRIALS, FLOOR = 8, 3


def trials(output: Path, condition: str, count: int) -> list[Result]:
    output.mkdir()
    contender = Contender("tiny", checkpoint="tiny")
    config = EvaluationConfig(TASK, (contender,), (condition,), trials=count, processes=0)
    return evaluate(config, output)


def test_it_is_small_whole_and_tells_where_it_comes_from() -> None:
    checkpoint = load_checkpoint(FOLDER)
    assert not checkpoint.random_weights
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MOST_BYTES
    card = (FOLDER / "README.md").read_text()
    assert "## Closed loop" in card
    provenance = json.loads((FOLDER / files.PROVENANCE).read_text())
    assert provenance["trainer"].startswith("cosmos_policy_ros")
    assert provenance["held_out"]["action_l1"] < provenance["held_out"]["pose_l1"] / 4


def test_it_succeeds_on_scenes_it_has_not_seen(tmp_path: Path) -> None:
    results = trials(tmp_path / "out", "usual", TRIALS)
    done = sum(result.success for result in results)
    print(f"\n{done} of {TRIALS}, mean score {sum(r.score for r in results) / TRIALS:.1f}")
    assert not any(result.crashed for result in results)
    assert done >= FLOOR


def test_with_covered_cameras_it_fails(tmp_path: Path) -> None:
    """No state leaks around the images."""
    results = trials(tmp_path / "out", "covered", 2)
    assert not any(result.success for result in results)


def test_the_planner_is_made_from_it_and_searches_with_it(tmp_path: Path) -> None:
    planner = load_checkpoint(PLANNER)
    assert sum(path.stat().st_size for path in PLANNER.iterdir()) <= MOST_BYTES
    assert "## In closed loop" in (PLANNER / "README.md").read_text()
    provenance = json.loads((PLANNER / files.PROVENANCE).read_text())
    assert provenance["start_digest"] == load_checkpoint(FOLDER).digest
    assert provenance["value"] == "value_s"
    assert not planner.random_weights
    planned = Contender(
        "planned",
        checkpoint="tiny",
        world_model="tiny_planner",
        planning="best_of_8_quick",
        candidates=2,
    )
    config = EvaluationConfig(TASK, (planned,), trials=1, chunks=1, processes=0)
    (result,) = evaluate(config, tmp_path)
    assert not result.crashed
    assert result.evaluations == 2 * (5 + 5 + 5)
