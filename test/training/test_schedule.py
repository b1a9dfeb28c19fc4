"""The learning rate's shape, number by number."""

from __future__ import annotations

import pytest

from cosmos_policy_ros.training.config import OptimiserConfig
from cosmos_policy_ros.training.optimisers import learning_rate


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1e-6),
        (1000, 0.5000005),
        (2000, 1.0),
        (11_000, 0.65),
        (19_999, 0.3 + 0.7 / 18_000),
        (20_000, 0.3),
        (20_001, 0.06),
        (50_000, 0.06),
    ],
)
def test_up_down_and_a_sharp_drop(step: int, factor: float) -> None:
    assert learning_rate(step, OptimiserConfig()) == pytest.approx(1e-4 * factor)


@pytest.mark.parametrize("steps", [0, 5])
def test_without_a_way_down_it_drops_at_once(steps: int) -> None:
    config = OptimiserConfig(warmup_steps=steps, decay_steps=steps)
    assert learning_rate(steps, config) == pytest.approx(1e-4 * config.final_factor)
