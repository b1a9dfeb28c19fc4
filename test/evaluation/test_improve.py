"""What the loop measures before it compares, and what it reports."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cosmos_policy_ros.evaluation.preconditions import auc
from cosmos_policy_ros.evaluation.report import report_lines

from .test_results import result

FOUND = {
    "episodes": 40,
    "successes": 30,
    "windows": 200,
    "spread_mm": [1.5, 60.0],
    "policy": {"auc_true": 0.7, "world_l1": 0.2},
    "planner": {"auc_true": 0.95, "auc_imagined": 0.9, "world_l1": 0.15},
}


@pytest.mark.parametrize(
    ("values", "succeeded", "area"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 1.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5], [0, 1, 1], 0.5),
        ([0.1, 0.6, 0.4, 0.9], [0, 0, 1, 1], 0.75),
    ],
)
def test_the_area_under_the_curve(values: list[float], succeeded: list[int], area: float) -> None:
    assert auc(np.array(values), np.array(succeeded, dtype=bool)) == area


def test_all_the_same_end_has_no_area() -> None:
    assert math.isnan(auc(np.array([0.1, 0.9]), np.array([True, True])))


def test_the_report_says_first_what_must_be_true() -> None:
    results = []
    for seed in range(10):
        results.append(result("direct", seed, 50.0))
        results.append(result("best of 8", seed, 100.0 if seed < 6 else 50.0))
    lines = report_lines(results, FOUND)
    text = "\n".join(lines)
    assert text.index("AUC of 0.950 from what came and 0.900") < text.index("| direct |")
    assert text.index("| direct |") < text.index("| best of 8 |")
    assert "- best of 8 less direct, 10 scenes: success +60.0 points (" in text
    assert "0.200 off before fine-tuning on rollouts and 0.150 after it" in text
