"""The tiny checkpoint's making, rehearsed: every stage with real data, as small as it can be."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from cosmos_policy_ros.evaluation.reproduce import CHECKPOINT, main
from cosmos_policy_ros.evaluation.results import read_results
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.policy import CosmosPolicy


@pytest.mark.timeout(600)
def test_a_rehearsal_makes_a_checkpoint_from_nothing_and_only_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--output", str(tmp_path), "--rehearsal"]
    assert main(arguments) == 0
    folder = tmp_path / CHECKPOINT
    policy = CosmosPolicy.load(folder)
    assert not policy.checkpoint.random_weights
    half = load_file(folder / files.TRANSFORMER)
    assert {str(t.dtype) for t in half.values()} == {"torch.float16"}
    card = (folder / "README.md").read_text()
    for words in ("scripts/reproduce_tiny --seed 0", "## Closed loop", "| the demonstrator |"):
        assert words in card
    results = read_results(tmp_path / "evaluation" / "trials.jsonl")
    assert len({r.contender for r in results}) == len(results) == 5
    assert not any(r.crashed for r in results)
    capfd.readouterr()
    assert main(arguments) == 0
    assert capfd.readouterr().out.count("done before") == 5
    assert main([*arguments, "--seed", "1"]) == 1
    assert "holds a run with seed 0, not 1" in capfd.readouterr().err
