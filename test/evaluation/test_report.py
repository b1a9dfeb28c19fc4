"""What a turn of the loop reports."""

from __future__ import annotations

from cosmos_policy_ros.evaluation.report import report_lines

from .test_results import result

FOUND = {
    "episodes": 40,
    "successes": 30,
    "windows": 200,
    "spread_mm": [1.5, 60.0],
    "policy": {"auc_true": 0.7, "world_l1": 0.2},
    "world_model": {"auc_true": 0.95, "auc_imagined": 0.9, "world_l1": 0.15},
}


def test_the_report_says_first_what_must_be_true() -> None:
    results = []
    for seed in range(10):
        results.append(result("direct", seed, 50.0))
        results.append(result("best of 8", seed, 100.0 if seed < 6 else 50.0))
    lines = report_lines(results, FOUND, "image.png")
    text = "\n".join(lines)
    assert text.index("AUC of 0.950 from what came and 0.900") < text.index("| direct |")
    assert text.index("| direct |") < text.index("| best of 8 |")
    assert "- best of 8 less direct, 10 states: success +60.0 points (" in text
    assert "0.200 off before fine-tuning on rollouts and 0.150 after it" in text
    alike = FOUND | {"policy": {"auc_true": None, "world_l1": 0.2}}
    assert "before the rollouts: none (all ended alike))" in "\n".join(
        report_lines(results, alike, "image.png")
    )
