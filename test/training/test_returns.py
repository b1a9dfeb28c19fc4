"""Pins the value targets: partial scores cancel out as released, and count in the paper."""

from __future__ import annotations

import pytest

from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.training.samples import value_target

ALOHA = 0.998


@pytest.mark.parametrize("steps_left", [0, 1, 700])
def test_partial_scores(steps_left: int) -> None:
    targets = {
        (numerics, score): value_target(score, steps_left, ALOHA, numerics)
        for numerics in ("released", "paper")
        for score in (0.0, 0.2, 1.0)
    }
    discounted = ALOHA**steps_left
    full, partial, failure = 2 * discounted - 1, 2 * 0.2 * discounted - 1, -1
    assert [targets["released", s] for s in (0.0, 0.2, 1.0)] == [failure, full, full]
    assert [targets["paper", s] for s in (0.0, 0.2, 1.0)] == pytest.approx([failure, partial, full])


def test_success_is_worth_one_at_its_end() -> None:
    assert value_target(1.0, 0, ALOHA, "released") == value_target(1.0, 0, ALOHA, "paper") == 1


@pytest.mark.parametrize(
    ("score", "steps_left", "discount", "message"),
    [
        (80, 3, 0.9, "score 80 lies outside"),
        (0.5, -1, 0.9, "-1 steps left"),
        (0.5, 3, 0.0, "discount 0.0 lies"),
        (0.5, 3, 1.1, "discount 1.1 lies"),
    ],
)
@pytest.mark.parametrize("numerics", ["released", "paper"])
def test_arguments_outside_their_range(
    score: float, steps_left: int, discount: float, message: str, numerics: Numerics
) -> None:
    with pytest.raises(ValueError, match=message):
        value_target(score, steps_left, discount, numerics)
