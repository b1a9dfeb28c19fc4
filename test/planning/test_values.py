"""Pins how a choice is made: the released rules, the paper's, and ties that keep the base seed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_policy_ros.inference.spec import Aggregation
from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.planning.search import SUCCESS, aggregate, choose

EIGHT_OF_FIFTEEN = [0.8] * 8 + [0.01] * 7
SEVEN_OF_FIFTEEN = [0.8] * 7 + [0.01] * 8


def test_majority_of_successes_counts_alone() -> None:
    for numerics in ("released", "paper"):
        assert aggregate(EIGHT_OF_FIFTEEN, "majority_mean", numerics) == pytest.approx(0.8)
        assert aggregate([0.6, 0.0], "majority_mean", numerics) == pytest.approx(0.6), "half is one"


def test_majority_of_failures_is_zero_as_released_and_their_mean_in_the_paper() -> None:
    assert aggregate(SEVEN_OF_FIFTEEN, "majority_mean", "released") == 0
    assert aggregate(SEVEN_OF_FIFTEEN, "majority_mean", "paper") == pytest.approx(0.01)


def test_a_value_at_the_threshold_predicts_failure() -> None:
    assert aggregate([SUCCESS], "success_vote", "released") == 0
    assert aggregate([SUCCESS + 1e-6], "success_vote", "released") == 1


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("average", 0.4), ("lcb", 0.4 - math.sqrt(0.07)), ("success_vote", 1.0)],
)
def test_other_schemes(scheme: Aggregation, expected: float) -> None:
    assert aggregate([0.1, 0.6, 0.5], scheme, "released") == pytest.approx(expected)


def test_lower_bound_is_cut_at_zero() -> None:
    assert aggregate([0.0, 1.0], "lcb", "released") == 0


@given(
    values=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20),
    scheme=st.sampled_from(["majority_mean", "average", "lcb", "success_vote"]),
    numerics=st.sampled_from(["released", "paper"]),
)
def test_every_aggregate_is_a_value(
    values: list[float], scheme: Aggregation, numerics: Numerics
) -> None:
    assert 0 <= aggregate(values, scheme, numerics) <= 1


@pytest.mark.parametrize(("values", "scheme"), [([], "average"), ([0.5], "lcb")])
def test_too_few_values_are_refused(values: list[float], scheme: Aggregation) -> None:
    with pytest.raises(ValueError, match=f"{len(values)} values are too few for '{scheme}'"):
        aggregate(values, scheme, "released")


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ValueError, match="'median' is not one of majority_mean, average"):
        aggregate([0.5], "median", "released")  # type: ignore[arg-type]


def test_ties_keep_the_base_seed() -> None:
    assert choose([0.5, 0.5, 0.4]) == 0
    assert choose([0.4, 0.7, 0.7]) == 1, "the first of the best"


@pytest.mark.parametrize("values", [[], [0.5, math.nan]])
def test_no_choice_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="nothing to choose from"):
        choose(values)
