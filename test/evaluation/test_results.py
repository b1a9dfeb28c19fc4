"""Rates, intervals and pairs against numbers that can be looked up or worked out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.evaluation.results import (
    Result,
    bootstrap,
    cell,
    comparison,
    paired,
    read_results,
    table,
    to_line,
    wilson,
)


def result(contender: str, seed: int, score: float, **changes: object) -> Result:
    made = Result(
        contender=contender,
        condition="usual",
        seed=seed,
        noise_seed=1,
        outcome="done",
        message="",
        crashed=False,
        score=score,
        success=score == 100.0,
        chunks=5,
        refused=0,
        seconds=10.2,
        thinking=0.1,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 100, 0.722, 0.875), (0, 20, 0.0, 0.161), (20, 20, 0.839, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilsons_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=6e-4)


def test_the_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        _, low, high = bootstrap(random.normal(3.0, 2.0, 40).tolist())
        covered += low < 3.0 < high
    assert 180 <= covered <= 199


def test_crashed_trials_are_counted_and_excluded() -> None:
    found = cell([result("a", 0, 100.0), result("a", 1, 50.0), result("a", 2, 0.0, crashed=True)])
    assert (found.trials, found.crashed, found.successes, found.score.value) == (2, 1, 1, 75.0)


def test_pairs_are_scene_by_scene() -> None:
    """The scenes differ much, the contenders on a scene do not: pairing is what finds it out."""
    results = []
    for seed in range(40):
        base = 25.0 * (seed % 4)
        results += [result("a", seed, base), result("b", seed, base + (25.0 if seed % 2 else 0.0))]
    results.append(result("b", 99, 100.0))  # no partner
    found = paired(results, "b", "a")
    assert found.scenes == 40
    assert found.score.value == 12.5
    assert 8.0 < found.score.low < 12.5 < found.score.high < 17.0
    assert found.success.value == 0.25
    (line,) = comparison(results, ["a", "b"])
    assert line.startswith("- b less a, 40 scenes: success +25.0 points (")


def test_a_condition_that_gains_is_not_hidden_by_one_that_does_not() -> None:
    results = []
    for seed in range(20):
        results += [result("a", seed, 75.0), result("b", seed, 75.0)]
        hard = {"condition": "one_outside"}
        results += [result("a", seed, 25.0, **hard), result("b", seed, 100.0, **hard)]
    usual, outside, everything = comparison(results, ["a", "b"])
    assert "20 scenes (usual): success +0.0 points (+0.0 to +0.0)" in usual
    assert "20 scenes (one outside): success +100.0 points" in outside
    assert "40 scenes (all): success +50.0 points" in everything


def test_the_table_names_what_was_tried() -> None:
    results = [result("a", s, 100.0) for s in range(3)]
    results += [result("a", s, 50.0, condition="colours") for s in range(3)]
    results.append(result("b", 0, 0.0, crashed=True, message="the physics became unstable"))
    lines = table(results, ["a", "b"], ["usual", "colours"])
    assert lines[0] == "|  | usual | colours | all |"
    assert "**100.0** (100.0 to 100.0); 100 % of 3 (44 to 100)" in lines[2]
    assert "**75.0**" in lines[2]
    assert lines[3] == "| b | no trial | no trial | no trial |"
    assert lines[-1] == "1 trials crashed and do not count: the physics became unstable"


def test_a_line_that_was_cut_is_left_out_and_a_foreign_one_named(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    assert read_results(path) == []
    whole = [result("a", seed, 25.0) for seed in range(2)]
    path.write_text("".join(map(to_line, whole)) + to_line(whole[0])[:40])
    assert read_results(path) == whole
    path.write_text(to_line(whole[0]) + json.dumps({"seed": 3}) + "\n")
    with pytest.raises(ConfigError, match="line 2: key 'contender' is missing"):
        read_results(path)
