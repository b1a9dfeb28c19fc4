"""Rates, intervals and pairs against numbers that can be looked up or worked out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.evaluation.results import Result, read_results, to_line
from cosmos_policy_ros.evaluation.significance import (
    average,
    bootstrap,
    cell,
    detectable,
    paired,
    states_needed,
    wilson,
)
from cosmos_policy_ros.evaluation.tables import (
    as_csv,
    comparison,
    effort,
    picture,
    price_picture,
    price_table,
    sensitivity,
    table_by_condition,
    table_by_task,
)


def result(contender: str, seed: int, score: float, **changes: object) -> Result:
    made = Result(
        contender=contender,
        task="either_cube",
        condition="usual",
        state=seed,
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
    # Nothing of 30 was shown as -0 % at least.
    assert f"{wilson(0, 30)[0]:.0f}" == "0" and wilson(30, 30)[1] == 1.0


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
    assert found.states == 40
    assert found.score.value == 12.5
    assert 8.0 < found.score.low < 12.5 < found.score.high < 17.0
    assert found.success.value == 0.25
    (line,) = comparison(results, ["a", "b"])
    assert line.startswith("- b less a, 40 states: success +25.0 points (")


def test_a_condition_that_gains_is_not_hidden_by_one_that_does_not() -> None:
    results = []
    for seed in range(20):
        results += [result("a", seed, 75.0), result("b", seed, 75.0)]
        hard = {"condition": "one_outside"}
        results += [result("a", seed, 25.0, **hard), result("b", seed, 100.0, **hard)]
    usual, outside, everything = comparison(results, ["a", "b"])
    assert "20 states (usual): success +0.0 points (+0.0 to +0.0)" in usual
    assert "20 states (one outside): success +100.0 points" in outside
    assert "40 states (all): success +50.0 points" in everything


def test_the_table_names_what_was_tried() -> None:
    results = [result("a", s, 100.0) for s in range(3)]
    results += [result("a", s, 50.0, condition="colours") for s in range(3)]
    results.append(result("b", 0, 0.0, crashed=True, message="the physics became unstable"))
    lines = table_by_condition(results, ["a", "b"], ["usual", "colours"])
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
    path.write_text(to_line(whole[0]) + json.dumps({"state": 3}) + "\n")
    with pytest.raises(ConfigError, match="line 2: key 'contender' is missing"):
        read_results(path)


# The paper's Table 3: mean scores by method and condition, and what it gives for all trials.
PAPER = {
    "Diffusion Policy": ((85.0, 23.3, 37.3, 11.0), (20.0, 23.8, 26.0, 26.7)),
    "OpenVLA-OFT+": ((87.5, 99.2, 22.7, 59.0), (30.0, 100.0, 20.0, 56.7)),
    "pi05": ((97.5, 99.2, 98.7, 56.0), (100.0, 100.0, 90.0, 80.0)),
    "Cosmos Policy": ((100.0, 99.2, 100.0, 86.0), (100.0, 100.0, 74.0, 83.3)),
}
FULL = {
    "Diffusion Policy": (63.3, 23.5, 32.8, 14.6, 33.6),
    "OpenVLA-OFT+": (68.3, 99.5, 21.6, 58.5, 62.0),
    "pi05": (98.3, 99.5, 95.2, 61.5, 88.6),
    "Cosmos Policy": (100.0, 99.5, 89.6, 85.4, 93.6),
}
TRIALS = {"plate": (20, 10), "shirt": (12, 8), "candies": (15, 10), "ziploc": (20, 6)}
CONDITIONS = ("in_distribution", "out_of_distribution")


def test_the_papers_full_rows_follow_from_its_other_rows() -> None:
    """Full is weighted by trials within a task, the average is that of the tasks."""
    results = [
        result(name, number, scores[i][j], task=task, condition=condition)
        for name, scores in PAPER.items()
        for j, (task, counts) in enumerate(TRIALS.items())
        for i, condition in enumerate(CONDITIONS)
        for number in range(counts[i])
    ]
    lines = table_by_task(results, list(PAPER), list(TRIALS), CONDITIONS)
    assert lines[0] == "|  | plate | shirt | candies | ziploc | average |"
    full = lines[lines.index("| *full* |  |  |  |  |  |") + 1 :]
    for line, (name, wanted) in zip(full, FULL.items(), strict=True):
        assert line.startswith(f"| {name} |")
        found = [float(cell.split("**")[1]) for cell in line.split("|")[2:7]]
        assert found == pytest.approx(wanted, abs=0.11)
    assert "30 " in full[0].split("|")[2]  # trials


def test_the_average_of_tasks_resamples_within_each() -> None:
    random = np.random.default_rng(1)
    groups = [random.normal(mean, 5.0, 30).tolist() for mean in (20.0, 60.0, 90.0)]
    value, low, high = average(groups)
    assert value == pytest.approx(np.mean([np.mean(group) for group in groups]))
    # Three means of 30 with a deviation of 5: the tasks' own distance does not widen it.
    assert high - low == pytest.approx(2 * 1.96 * 5.0 / np.sqrt(90), rel=0.2)
    assert np.isnan(average([[1.0], []]).value)


def test_how_many_states_a_difference_takes_is_what_a_simulation_finds() -> None:
    states = states_needed(10.0, 30.0)
    assert detectable(states, 30.0) == pytest.approx(10.0, rel=0.01)
    random = np.random.default_rng(2)
    found = 0
    for _ in range(400):
        differences = random.normal(10.0, 30.0, states)
        found += differences.mean() / (differences.std(ddof=1) / np.sqrt(states)) > 1.96
    assert 0.75 < found / 400 < 0.86
    two = [result("a", s, 50.0) for s in range(3)] + [result("b", s, 40.0 + s) for s in range(3)]
    (line,) = sensitivity(two, ["a", "b"])
    assert "scatter by 1 points" in line


def test_a_table_for_other_programs_and_what_trials_took() -> None:
    results = [result("a", s, 100.0, refused=1) for s in range(2)]
    results += [result("a", 2, 0.0, crashed=True, message="the cable came loose")]
    head, row, full = as_csv(results, ["a", "b"]).splitlines()
    cells = dict(zip(head.split(","), row.split(","), strict=True))
    assert cells["condition"] == "usual"
    assert (cells["trials"], cells["crashed"], cells["score_low"]) == ("2", "1", "100.00")
    assert (cells["success_low"], cells["seconds"], cells["refused"]) == ("0.3424", "10.20", "1.00")
    assert full.split(",")[2] == "full"
    (line,) = effort(results, ["a", "b"])
    assert line.endswith("2 of 12 chunks refused, 1 trials repeated after a fault")
    assert picture(results, ["a"], ["usual"])[:4] == b"\x89PNG"


def test_the_price_picture_needs_two_that_have_counted_their_evaluations() -> None:
    uncounted = [result(name, seed, 50) for name in "ab" for seed in range(3)]
    assert price_picture(uncounted, ["a", "b"]) is None
    price = {"a": 5, "b": 160}
    counted = [replace(r, decisions=4, evaluations=4 * price[r.contender]) for r in uncounted]
    assert price_picture(counted, ["a"]) is None
    assert price_table(uncounted, ["a", "b"]) == []
    crashed = replace(counted[0], crashed=True, evaluations=10**6)
    assert price_table([*counted, crashed], ["b", "a"])[2:] == [
        "| b | 160.0 | 640.0 | 4.0 |",
        "| a | 5.0 | 20.0 | 4.0 |",
    ]
    drawn = price_picture(counted, ["a", "b"])
    assert drawn is not None and drawn[:4] == b"\x89PNG"
    dearer = [replace(r, evaluations=10 * r.evaluations) for r in counted if r.contender == "b"]
    assert price_picture([*counted[:3], *dearer], ["a", "b"]) != drawn
