"""The long commands, rehearsed: every stage with real data, as small as it can be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import cv2
import pytest
from helpers.forked import run_stage
from safetensors.torch import load_file

from cosmos_policy_ros.cli import ablate, improve, reproduce_tiny, stages
from cosmos_policy_ros.dataset.contact_sheet import MARGIN, TILE
from cosmos_policy_ros.evaluation.evaluate import ROLLOUTS, TRIALS
from cosmos_policy_ros.evaluation.results import read_results
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


PROGRAM = stages._run


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    """Let one training be a program that ``torchrun`` starts twice, and fork everything else."""

    def run(arguments: Sequence[str], folder: Path) -> int:
        return (PROGRAM if "policy" in arguments else run_stage)(arguments, folder)

    with patch.object(stages, "_run", run):
        yield


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reproduced")
    assert reproduce_tiny.main(["--output", str(output), "--rehearsal"]) == 0
    return output


def test_a_checkpoint_is_made_from_nothing_and_only_once(
    reproduced: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = reproduced / reproduce_tiny.CHECKPOINT
    policy = CosmosPolicy.load(folder)
    assert not policy.checkpoint.random_weights
    half = load_file(folder / files.TRANSFORMER)
    assert {str(t.dtype) for t in half.values()} == {"torch.float16"}
    card = (folder / "README.md").read_text()
    for words in ("cosmos reproduce-tiny --seed 0", "## Closed loop", "| the demonstrator |"):
        assert words in card
    results = read_results(reproduced / "evaluation" / TRIALS)
    assert len({r.contender for r in results}) == len(results) == 5
    assert not any(r.crashed for r in results)
    arguments = ["--output", str(reproduced), "--rehearsal"]
    assert reproduce_tiny.main(arguments) == 0
    assert capfd.readouterr().out.count("done before") == 5
    assert reproduce_tiny.main([*arguments, "--seed", "1"]) == 1
    assert "holds a run with seed 0, not 1" in capfd.readouterr().err


def test_a_turn_of_the_loop_ends_in_a_report_and_only_once(
    reproduced: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = ["--output", str(tmp_path), "--rehearsal"]
    demonstrations = reproduced / "demonstrations" / ROLLOUTS
    folders = [str(demonstrations / name) for name in ("red", "blue")]
    arguments = [*alone, "--demonstrations", *folders]
    assert improve.main(arguments) == 0
    found = json.loads((tmp_path / improve.PRECONDITIONS).read_text())
    assert found["episodes"] == 1
    for key in ("succeeded", "value_true", "value_imagined"):
        assert len(found[key]) == found["windows"] > 0
    assert 0 < found["world_model"]["world_l1"] < 1
    rows, columns, _ = cv2.imread(str(tmp_path / improve.IMAGINATION)).shape
    assert rows == MARGIN + 12 * TILE[0], "three cameras: seen, came, imagined before and after"
    assert columns == min(found["windows"], 6) * TILE[1]
    results = read_results(tmp_path / improve.COMPARISON / TRIALS)
    assert {r.contender for r in results} == {"direct", "best of 8"}
    assert not any(r.crashed for r in results)
    assert f"]({improve.IMAGINATION})" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64") == 3
    capfd.readouterr()
    assert improve.main(arguments) == 0
    assert capfd.readouterr().out.count("done before") == 6
    assert improve.main(alone) == 1
    assert "holds a run with demonstrations" in capfd.readouterr().err


def test_ablations_end_in_one_table(
    reproduced: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = ["--output", str(tmp_path), "--rehearsal"]
    assert ablate.main([*alone, "--reproduced", str(tmp_path)]) == 1
    assert "autoencoder: is missing; run reproduce_tiny first" in capfd.readouterr().err
    assert ablate.main([*alone, "--reproduced", str(reproduced)]) == 0
    printed = capfd.readouterr().out
    for name in ablate.VARIANTS:
        told = json.loads((tmp_path / name / files.PROVENANCE).read_text())
        assert f"| {name.replace('_', ' ')} | 16 | {told['held_out']['action_l1']:.4f} |" in printed
        assert set(told["mixture"]) == ROLES[name]
    assert "| policy samples only |" in printed.split("# either_cube")[1]
