"""Pins how an operator's score becomes points, and what is refused with nothing written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.task import Deduction, Rubric, Stage
from cosmos_policy_ros.episodes.labels import OperatorScore, tally

RUBRIC = Rubric(
    stages=(Stage("grasped", 30), Stage("lifted", 30), Stage("placed", 40)),
    deductions=(Deduction("dropped", 10), Deduction("hit the table", 50)),
)


def test_a_total_alone_needs_no_rubric() -> None:
    assert tally(OperatorScore(33.3), None).total == 33.3
    assert tally(OperatorScore(0.0), RUBRIC).total == 0.0


def test_stages_less_deductions() -> None:
    found = tally(OperatorScore(stages=("grasped", "placed"), deductions=("dropped",)), RUBRIC)
    assert (found.total, found.stages) == (60, {"grasped": 30, "placed": 40})
    assert found.deductions == {"dropped": 10}
    assert tally(OperatorScore(60.0, stages=("grasped", "placed"), deductions=("dropped",)), RUBRIC)


@given(
    stages=st.sets(st.sampled_from([s.name for s in RUBRIC.stages])),
    deductions=st.sets(st.sampled_from([d.name for d in RUBRIC.deductions]), min_size=1),
)
def test_a_total_is_never_below_zero(stages: set[str], deductions: set[str]) -> None:
    total = tally(OperatorScore(stages=tuple(stages), deductions=tuple(deductions)), RUBRIC).total
    assert 0 <= total <= 100


@pytest.mark.parametrize(
    ("operator_score", "message"),
    [
        (OperatorScore(), "give a score from 0 to 100, or the stages"),
        (OperatorScore(100.5), "score: 100.5 must be a number from 0 to 100"),
        (OperatorScore(math.nan, stages=("grasped",)), "must be a number"),
        (
            OperatorScore(stages=("grasp",)),
            "stage 'grasp' is not in the rubric; did you mean 'grasped'",
        ),
        (OperatorScore(stages=("lifted", "lifted")), "stage 'lifted' is named twice"),
        (OperatorScore(deductions=("droped",)), "deduction 'droped' .* did you mean 'dropped'"),
        (OperatorScore(50.0, stages=("grasped",)), "50 is not the 30 that the stages"),
    ],
)
def test_what_does_not_add_up_is_refused(operator_score: OperatorScore, message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        tally(operator_score, RUBRIC)


def test_stages_need_a_rubric() -> None:
    with pytest.raises(RolloutError, match="has no rubric; give a score alone"):
        tally(OperatorScore(stages=("grasped",)), None)
