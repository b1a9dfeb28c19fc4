"""The order of trials: pairs on the same state, shuffled, task after task."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from cosmos_policy_ros.evaluation.plan import InitialState, Key, plan, remaining

TASKS, CONDITIONS = ("plate", "shirt", "ziploc"), ("in_distribution", "out_of_distribution")
STATES = [
    InitialState(task, condition, number)
    for task in TASKS
    for condition in CONDITIONS
    for number in range(4)
]


@given(
    contenders=st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True),
    states=st.lists(st.sampled_from(STATES), max_size=24, unique=True),
    order_seed=st.integers(0, 99),
)
def test_every_contender_meets_every_state_once_and_in_turn(
    contenders: list[str], states: list[InitialState], order_seed: int
) -> None:
    jobs = plan(contenders, states, 1, order_seed)
    wanted = Counter((name, *s.title.split("/")) for name in contenders for s in states)
    assert Counter((job.contender, *job.state.title.split("/")) for job in jobs) == wanted
    size = len(contenders)
    for begin in range(0, len(jobs), size):
        turn = jobs[begin : begin + size]
        assert len({(job.state, job.noise_seed) for job in turn}) == 1
        assert len({job.contender for job in turn}) == size
    order = [job.state.task for job in jobs]
    assert order == sorted(order, key=list(dict.fromkeys(s.task for s in states)).index)
    assert jobs == plan(contenders, states, 1, order_seed)


def test_states_and_contenders_are_shuffled_and_noise_is_the_states_own() -> None:
    jobs = plan(["a", "b"], STATES, 3, 0)
    assert [job.state for job in jobs[::2]] != STATES
    first = Counter(job.contender for job in jobs[::2])
    assert min(first["a"], first["b"]) > 4
    assert plan(["a", "b"], STATES, 3, 1) != jobs
    seeds = {job.state: job.noise_seed for job in jobs}
    assert seeds[STATES[0]] == 3000
    assert seeds[replace(STATES[0], condition=CONDITIONS[1])] == 3000  # as the condition's first
    assert len({seed for state, seed in seeds.items() if state.condition == CONDITIONS[0]}) == 4


@dataclass(frozen=True)
class Made:
    key: Key
    crashed: bool


def test_what_a_fault_has_ended_is_still_to_be_made() -> None:
    jobs = plan(["a", "b"], STATES[:2], 1, 0)
    results = [Made(jobs[0].key, True), Made(jobs[1].key, False), Made(jobs[1].key, True)]
    assert remaining(jobs, results) == [jobs[0], *jobs[2:]]
    assert remaining(jobs, [*results, Made(jobs[0].key, False)]) == jobs[2:]
