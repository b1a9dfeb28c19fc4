"""How much of a search is begun follows from the time there is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.search import query_of
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_policy_ros.inference.spec import STAGES, SearchConfig, SearchInfo, Stage
from cosmos_policy_ros.planning.deadline import REMEMBERED, Durations, fit, makespan
from cosmos_policy_ros.planning.search import Search

# A step of each stage; a candidate is 10, 5 and three times 5 of them: 4 s.
STEP: dict[Stage, float] = {"sample_actions": 0.1, "predict_future": 0.2, "predict_value": 0.4 / 3}
INFO = SearchInfo(digest="d", denoising_steps=10, pace=STEP)
RELEASED = SearchConfig()


def length(candidates: int, workers: int, **changes: int) -> float:
    config = replace(RELEASED, candidates=candidates, **changes)
    return makespan(Search(query_of(), config, INFO), STEP, workers)


@pytest.mark.parametrize(
    ("candidates", "workers", "expected"),
    [
        (1, 1, 4.0),
        (8, 1, 32.0),
        (8, 8, 4.0),
        (8, 4, 8.0),
        (1, 3, 2.0 + 2.0 / 3),  # the values of three futures, side by side
        (1, 8, 2.0 + 2.0 / 3),
        (2, 3, 2.0 + 2 * 2.0 / 3),
    ],
)
def test_a_search_takes_as_long_as_its_busiest_worker(
    candidates: int, workers: int, expected: float
) -> None:
    assert length(candidates, workers) == pytest.approx(expected)


@given(candidates=st.integers(1, 8), workers=st.integers(1, 8), batch=st.integers(1, 4))
def test_no_work_is_lost_and_none_is_done_twice(candidates: int, workers: int, batch: int) -> None:
    batches = -(-candidates // batch)
    work = batches * (1.0 + 1.0 + 3 * 2.0 / 3)
    took = length(candidates, workers, candidate_batch=batch)
    assert work / workers - 1e-9 <= took <= work + 1e-9
    assert took >= 2.0 + 2.0 / 3 - 1e-9


def fitted(deadline: float, workers: int = 1, config: SearchConfig = RELEASED) -> SearchConfig:
    return fit(query_of(deadline=deadline), config, INFO, Durations(), workers)


@pytest.mark.parametrize(
    ("deadline", "workers", "candidates", "steps"),
    [
        (0.0, 1, 8, 5),  # no deadline
        (32.1, 1, 8, 5),
        (31.9, 1, 7, 5),
        (8.1, 1, 2, 5),
        (7.9, 1, 2, 4),  # sooner fewer steps than a search of one
        (4.1, 8, 8, 5),
        (3.9, 8, 5, 5),  # fifteen futures to value, in two turns of eight
        (0.01, 1, 1, 1),
    ],
)
def test_candidates_go_first_and_then_the_steps(
    deadline: float, workers: int, candidates: int, steps: int
) -> None:
    found = fitted(deadline, workers)
    assert (found.candidates, found.future_steps, found.value_steps) == (candidates, steps, steps)
    assert (found.futures, found.values) == (3, 5)


@settings(max_examples=30)
@given(short=st.floats(0.01, 40), longer=st.floats(0, 40), workers=st.integers(1, 8))
def test_more_time_or_workers_never_make_less_of_it(
    short: float, longer: float, workers: int
) -> None:
    def size(config: SearchConfig) -> tuple[int, int]:
        return config.future_steps, config.candidates

    assert size(fitted(short, workers)) <= size(fitted(short + longer, workers))
    assert size(fitted(short, workers)) <= size(fitted(short, workers + 1))


def test_a_search_of_one_stays_one() -> None:
    assert fitted(100.0, config=replace(RELEASED, candidates=1)).candidates == 1


def test_what_was_measured_counts_and_is_forgotten() -> None:
    durations = Durations()
    assert durations.seconds("sample_actions", 10, 0.95, STEP) == pytest.approx(1.0)
    assert durations.seconds("sample_actions", 10, 0.95, {}) == float("inf")
    for _ in range(REMEMBERED):
        durations.add("sample_actions", 10, 30.0)
    assert durations.seconds("sample_actions", 10, 0.5, STEP) == pytest.approx(30.0)
    assert durations.summary() == {"sample_actions": "p50 3 s, p95 3 s per step"}
    for _ in range(REMEMBERED):
        durations.add("sample_actions", 5, 0.5)
    assert durations.seconds("sample_actions", 10, 0.95, STEP) == pytest.approx(1.0)


def test_a_slow_tail_is_reckoned_with_once() -> None:
    """A machine that hiccups now and then is not taken for one that is slow all the time."""
    durations = Durations()
    for stage in STAGES:
        for index in range(20):
            durations.add(stage, 1, STEP[stage] * (3 if index < 2 else 1))
    # All candidates at their usual pace, one of them three times slower: 32 + 2 x (2 + 2/3) s.
    most = fit(query_of(deadline=37.4), RELEASED, INFO, durations, 1).candidates
    less = fit(query_of(deadline=37.2), RELEASED, INFO, durations, 1).candidates
    assert (most, less) == (8, 7)
