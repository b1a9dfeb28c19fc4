"""The checkpoint that ships for LIBERO does its tasks, from states that it was not trained on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.evaluation.benchmark_room import BenchmarkConfig
from cosmos_policy_ros.evaluation.evaluate import evaluate

# Of eighty it does 59. Fewer than two of eight would be chance once in two thousand.
TRIALS, FLOOR = 2, 2


def test_it_succeeds_in_scenes_it_has_not_seen(tmp_path: Path) -> None:
    config = load_config(
        BenchmarkConfig, config_folder("evaluations") / "libero_spatial_small.yaml"
    )
    config = replace(
        config,
        trials=TRIALS,
        processes=0,
        environment=os.environ["COSMOS_BENCHMARK_ENVIRONMENT"],
    )
    results = evaluate(config, tmp_path)
    assert len(results) == TRIALS * 4
    assert not any(result.crashed for result in results)
    assert sum(result.success for result in results) >= FLOOR
