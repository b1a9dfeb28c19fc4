"""The long commands, rehearsed: every stage with real data, as small as it can be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import cv2
import pytest
from helpers.forked import served
from safetensors.torch import load_file

from cosmos_policy_ros.cli import cosmos, experiments
from cosmos_policy_ros.dataset.contact_sheet import MARGIN, TILE
from cosmos_policy_ros.evaluation.evaluate import TRIALS
from cosmos_policy_ros.evaluation.results import read_results
from cosmos_policy_ros.evaluation.sim_room import ROLLOUTS
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.policy import CosmosPolicy

pytestmark = pytest.mark.timeout(900)
ALL_ROLES = {"policy", "world_model", "value"}
ROLES = {
    "full": ALL_ROLES,
    "without_auxiliary_targets": ALL_ROLES,
    "without_value_samples": {"policy", "world_model"},
    "policy_samples_only": {"policy"},
}


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    with served() as program, patch.object(experiments, "PROGRAM", program):
        yield


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reproduced")
    assert cosmos.main(["reproduce-tiny", "--output", str(output), "--rehearsal"]) == 0
    return output


def test_a_checkpoint_is_made_from_nothing(reproduced: Path) -> None:
    folder = reproduced / "tiny"
    policy = CosmosPolicy.load(folder)
    assert not policy.checkpoint.random_weights
    half = load_file(folder / files.TRANSFORMER)
    assert {str(t.dtype) for t in half.values()} == {"torch.float16"}
    told = json.loads((folder / files.PROVENANCE).read_text())
    assert told["digest"] == files.digest(folder)
    card = (folder / "README.md").read_text()
    for words in (
        "# tiny\n",
        told["digest"],
        "cosmos reproduce-tiny --seed 0",
        "## Closed loop\n\n# either_cube",
        "| the demonstrator |",
    ):
        assert words in card
    results = read_results(reproduced / "evaluation" / TRIALS)
    assert len({r.contender for r in results}) == len(results) == 7
    assert not any(r.crashed for r in results)


def test_a_turn_of_the_loop_ends_in_a_report(
    reproduced: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    demonstrations = reproduced / "demonstrations" / ROLLOUTS
    folders = [str(demonstrations / name) for name in ("red", "blue")]
    arguments = ["improve", "--output", str(tmp_path), "--rehearsal", "--demonstrations", *folders]
    assert cosmos.main(arguments) == 0
    assert f"with plots: {tmp_path}/report.html" in capfd.readouterr().out
    found = json.loads((tmp_path / "preconditions.json").read_text())
    assert found["episodes"] == 1
    for key in ("succeeded", "value_true", "value_imagined"):
        assert len(found[key]) == found["windows"] > 0
    assert 0 < found["world_model"]["world_l1"] < 1
    rows, columns, _ = cv2.imread(str(tmp_path / "imagination.png")).shape
    assert rows == MARGIN + 12 * TILE[0], "three cameras: seen, came, imagined before and after"
    assert columns == min(found["windows"], 6) * TILE[1]
    results = read_results(tmp_path / "comparison" / TRIALS)
    assert {r.contender for r in results} == {"direct", "best of 8"}
    assert not any(r.crashed for r in results)
    assert "](imagination.png)" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64") == 3


def test_ablations_end_in_one_table(
    reproduced: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--output", str(tmp_path), "--rehearsal", "--reproduced", str(reproduced)]
    assert cosmos.main(["ablate", *arguments]) == 0
    printed = capfd.readouterr().out
    for name, roles in ROLES.items():
        told = json.loads((tmp_path / name / files.PROVENANCE).read_text())
        assert f"| {name.replace('_', ' ')} | 16 | {told['held_out']['action_l1']:.4f} |" in printed
        assert set(told["mixture"]) == roles
    assert "| policy samples only |" in printed.split("# either_cube")[-1]
