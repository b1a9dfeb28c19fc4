"""What a search may leave out: sieve, rounds, adaptive, proposed futures; and depth by beam.

Whatever the settings, the order of the answers changes nothing, and a decision that a deadline has
cut short can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan, nan
from typing import Any

import numpy as np
import pytest
from helpers.search import PROMPT, TINY, query_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.inference.cosmos_engine import SearchEngine
from cosmos_policy_ros.inference.spec import (
    Adaptive,
    PerturbActions,
    PredictFuture,
    PredictValue,
    Round,
    SampleActions,
    SampledActions,
    SearchConfig,
    SearchInfo,
    parse_search,
)
from cosmos_policy_ros.model.files import STATISTICS
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.statistics import load_statistics
from cosmos_policy_ros.planning.deadline import Durations, fit, price
from cosmos_policy_ros.planning.search import Foresee, Search, run_search
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES
from cosmos_policy_ros.rig.decision import ActionPrefix, Decision, Query

ROUNDING = 2e-4  # of a value; batches of another size take other kernels
SEED = 195


def mixed(*numbers: float) -> float:
    """Return a number from 0 to 1 that nobody would guess from these."""
    return float(np.random.RandomState(abs(hash(numbers)) % 2**32).random_sample())


class Numbers:
    """A searching engine that makes numbers of numbers: a latent is what it was made from."""

    info = SearchInfo(digest="d", denoising_steps=10, evaluations=10, dt=0.04)

    def __init__(self, own: dict[int, float] | None = None, **variances: float) -> None:
        self._own, self._variances = own or {}, variances
        self.tasks: list[Any] = []

    def answer(self, task: object) -> Any:
        self.tasks.append(task)
        if isinstance(task, SampleActions):
            after = [0.0] * len(task.seeds) if task.after is None else task.after.ravel()
            latents = [mixed(s, float(a)) for s, a in zip(task.seeds, after, strict=True)]
            chunks = np.array([np.full((5, 14), latent) for latent in latents])
            own = tuple(self._own.get(s - SEED, mixed(s, 1.0)) for s in task.seeds)
            unsure = tuple(self._variances.get(f"of_{s - SEED}", 0.01) for s in task.seeds)
            return SampledActions(self._latents(latents), chunks, own, unsure)
        if isinstance(task, PerturbActions):
            given = task.latents.ravel()
            latents = [mixed(s, float(g), 2.0) for s, g in zip(task.seeds, given, strict=True)]
            unknown = (nan,) * len(latents)
            chunks = np.array([np.full((5, 14), latent) for latent in latents])
            return SampledActions(self._latents(latents), chunks, unknown, unknown)
        assert isinstance(task, PredictFuture | PredictValue)
        given = task.latents.reshape(len(task.seeds))
        found = [[mixed(float(g), m, task.steps) for m in task.members] for g in given]
        return found if isinstance(task, PredictValue) else np.float32(found)[..., None]

    def _latents(self, numbers: Sequence[float]) -> Any:
        return np.float32(numbers)[:, None]


def search(config: SearchConfig, engine: Numbers | None = None) -> Decision:
    return run_search(engine or Numbers(), query_of(), config)


FULL = SearchConfig(aggregation="average")


def dropped(decision: Decision) -> dict[int, str]:
    return {i: each.dropped for i, each in enumerate(decision.candidates) if each.dropped}


def test_the_sieve_takes_what_the_policy_itself_values_most() -> None:
    config = replace(FULL, candidates=2, proposals=6)
    own = {0: 0.5, 1: 0.1, 2: 0.9, 3: 0.2, 4: 0.8, 5: 0.3}
    decision = search(config, Numbers(own))
    assert dropped(decision) == dict.fromkeys((0, 1, 3, 5), "sieve")
    assert [each.own_value for each in decision.candidates] == list(own.values())
    assert [len(each.values) for each in decision.candidates] == [0, 0, 15, 0, 15, 0]
    assert decision.chosen == max((2, 4), key=lambda i: decision.candidates[i].value)
    assert decision.evaluations == 6 * 10 + 2 * 51
    assert "the base seed was dropped, with 0.500 by the policy itself" in decision.reason
    # What is searched is valued as if it had been alone.
    whole = search(replace(FULL, candidates=6), Numbers(own))
    assert [decision.candidates[i] for i in (2, 4)] == [whole.candidates[i] for i in (2, 4)]


def test_the_sieve_takes_what_differs_most() -> None:
    engine = Numbers()
    decision = search(replace(FULL, candidates=3, proposals=8, sieve="distance"), engine)
    proposals = engine.answer(SampleActions(query_of(), tuple(range(SEED, SEED + 8))))
    at = proposals.chunks[:, 0, 0]
    second = int(np.argmax(np.abs(at - at[0])))
    third = int(np.argmax(np.minimum(np.abs(at - at[0]), np.abs(at - at[second]))))
    assert set(range(8)) - dropped(decision).keys() == {0, second, third}


def refusing(*indices: int) -> Foresee:
    """Return a gate that would refuse the proposals of some candidates."""
    seeds = tuple(SEED + index for index in indices)
    chunks = Numbers().answer(SampleActions(query_of(), seeds)).chunks if seeds else ()

    def foresee(_: Query, chunk: np.ndarray) -> str:
        return "too fast" if any((chunk == each).all() for each in chunks) else ""

    return foresee


@pytest.mark.parametrize(
    "config",
    [
        FULL,
        replace(FULL, candidate_batch=3),
        replace(FULL, candidates=3, proposals=8),
        replace(FULL, candidates=3, proposals=8, sieve="distance"),
        replace(FULL, candidates=7, proposals=8),  # more than are left
        replace(FULL, rounds=(Round(1, 1, 4), Round(2, 3, 2))),
        replace(FULL, futures=1, values=2, depth=2, beam=2, branches=2),
        replace(FULL, adaptive=Adaptive(2, variance=0.02)),
    ],
)
def test_what_the_gate_would_refuse_is_neither_searched_nor_chosen(config: SearchConfig) -> None:
    free = run_search(Numbers(), query_of(), config)
    best = free.chosen
    engine, out = Numbers(), {0, best}
    decision = run_search(engine, query_of(), config, foresee=refusing(*out))
    assert {i for i, why in dropped(decision).items() if why == "gate"} == out
    assert decision.chosen not in out
    assert f"the gate would refuse {len(out)} of 8 candidates" in decision.reason
    futures = [task for task in engine.tasks if isinstance(task, PredictFuture)]
    assert not {SEED + index for index in out} & {seed for task in futures for seed in task.seeds}


@pytest.mark.parametrize(
    "config",
    [
        replace(FULL, rounds=(Round(1, 1, 4), Round(2, 3, 2))),
        replace(FULL, futures=1, values=2, depth=2, beam=2, branches=2),
    ],
)
def test_what_waits_for_a_proposal_that_is_refused_goes_on_without_it(config: SearchConfig) -> None:
    """It comes last, when all others have their values."""
    decision = run_search(Numbers(), query_of(), config, foresee=refusing(7))
    assert parse_search(decision.search, "it") == config, "no round and no depth is left out"
    assert dropped(decision)[7] == "gate"


def test_where_the_gate_would_refuse_all_nothing_is_searched_and_it_says_why() -> None:
    for config in (FULL, replace(FULL, candidates=3, proposals=8)):
        decision = run_search(Numbers(), query_of(), config, foresee=refusing(*range(8)))
        assert (decision.chosen, decision.evaluations) == (0, 8 * 10)
        assert decision.reason == "the gate would refuse all of 8 candidates: too fast"
        assert dropped(decision) == dict.fromkeys(range(8), "gate")


def test_rounds_give_more_to_those_that_could_still_win() -> None:
    rounds = (Round(1, 1, 4), Round(2, 3, 2))
    engine, whole = Numbers(), search(FULL)
    decision = search(replace(FULL, rounds=rounds), engine)
    first = [each.values[0] for each in whole.candidates]
    kept = sorted(range(8), key=lambda i: -first[i])[:4]
    second = {
        i: np.mean([whole.candidates[i].values[5 * f + v] for f in (0, 1) for v in (0, 1, 2)])
        for i in kept
    }
    last = sorted(kept, key=lambda i: -second[i])[:2]
    assert dropped(decision) == {i: "round" for i in range(8) if i not in last}
    assert [len(each.values) for each in decision.candidates] == [
        15 if i in last else 6 if i in kept else 1 for i in range(8)
    ]
    # The arithmetic of each is unchanged.
    assert [decision.candidates[i] for i in last] == [whole.candidates[i] for i in last]
    assert decision.chosen == max(last, key=lambda i: whole.candidates[i].value)
    # By the released ensembles: a future of 1, 3 and 5 steps; values of 1, 1 (of 2), 3, 4 and 5.
    assert decision.evaluations == 8 * 10 + 8 * (1 + 1) + 4 * (3 + 4 + 5) + 2 * (5 + 2 * 9 + 14)
    asked = [
        (task.members, len(task.seeds)) for task in engine.tasks if isinstance(task, PredictFuture)
    ]
    assert asked == [((0,), 1)] * 8 + [((1,), 1)] * 4 + [((2,), 1)] * 2


@pytest.mark.parametrize(
    ("adaptive", "engine", "searched"),
    [
        (Adaptive(1, variance=0.02), Numbers(), False),
        (Adaptive(1, variance=0.02), Numbers(of_0=0.03), True),
        (Adaptive(1, variance=0.02), Numbers(of_1=0.03), False),
        (Adaptive(2, variance=0.02), Numbers(of_1=0.03), True),
        (Adaptive(1, variance=0.02), Numbers(of_0=nan), True),  # unknown: one denoising step
        (Adaptive(2, variance=0.02), Numbers(of_1=nan), True),
        (Adaptive(2, distance=2.0), Numbers(), False),
        (Adaptive(2, distance=1e-6), Numbers(), True),
        (Adaptive(1, value=0.6), Numbers({0: 0.7}), False),
        (Adaptive(1, value=0.6), Numbers({0: 0.5}), True),
        (Adaptive(2, variance=0.02, value=0.6), Numbers({0: 0.7, 1: 0.5}), True),
    ],
)
def test_it_is_searched_only_where_it_matters(
    adaptive: Adaptive, engine: Numbers, searched: bool
) -> None:
    decision = search(replace(FULL, adaptive=adaptive), engine)
    first = adaptive.proposals
    if searched:
        assert decision.evaluations == 8 * 61
        assert decision.candidates[decision.chosen].value == max(
            each.value for each in decision.candidates
        )
        return
    assert (decision.chosen, decision.evaluations) == (0, 10 * first)
    assert dropped(decision) == dict.fromkeys(range(first, 8), "adaptive")
    assert decision.reason.startswith("not searched: ")
    assert decision.imagined is not None  # the policy's own
    np.testing.assert_array_equal(
        decision.positions, search(FULL).positions * 0 + decision.positions
    )
    assert all(each.finished for each in decision.candidates)


@pytest.mark.parametrize(("variance", "rows"), [(0.03, 25), (0.01, 0)])
def test_what_was_searched_for_is_executed_in_part(variance: float, rows: int) -> None:
    config = replace(FULL, adaptive=Adaptive(1, variance=0.02, rows=25))
    assert search(config, Numbers(of_0=variance)).executed_rows == rows


def test_a_proposed_future_costs_nothing() -> None:
    engine = Numbers()
    decision = search(replace(FULL, candidates=2, future="proposed"), engine)
    assert {type(task) for task in engine.tasks} == {SampleActions, PredictValue}
    assert all(task.futures for task in engine.tasks if isinstance(task, SampleActions))
    assert decision.evaluations == 2 * (10 + 14)
    assert [len(each.values) for each in decision.candidates] == [5, 5]


def test_fewer_proposals_are_filled_up_with_copies_that_cost_nothing() -> None:
    config = replace(FULL, proposals=2, candidates=5, perturbation=0.1)
    engine = Numbers()
    decision = search(config, engine)
    assert len(decision.candidates) == 5
    assert decision.evaluations == 2 * 10 + 5 * 51
    copied = [task for task in engine.tasks if isinstance(task, PerturbActions)]
    assert sorted(seed for task in copied for seed in task.seeds) == [SEED + 2, SEED + 3, SEED + 4]
    sources = {
        seed: float(latent)
        for task in copied
        for seed, latent in zip(task.seeds, task.latents.ravel(), strict=True)
    }
    first, second = (float(np.float32(mixed(SEED + i, 0.0))) for i in (0, 1))
    assert sources == {SEED + 2: first, SEED + 3: second, SEED + 4: first}
    assert [isnan(each.own_value) for each in decision.candidates] == [False] * 2 + [True] * 3


def test_a_beam_looks_ahead_from_the_best_in_several_ways() -> None:
    flat = replace(FULL, candidates=4, futures=1, values=2)
    beam = replace(flat, depth=3, beam=2, branches=3)
    engine, near = Numbers(), search(flat)
    decision = search(beam, engine)
    kept = sorted(range(4), key=lambda i: -near.candidates[i].value)[:2]
    assert dropped(decision).keys() >= set(range(4)) - set(kept)
    assert set(dropped(decision).values()) == {"beam"}
    ahead = [task for task in engine.tasks if isinstance(task, SampleActions)]
    assert sum(task.after is None for task in ahead) == 4
    assert sum(task.after is not None for task in ahead) == 2 * (2 * 3)
    # Branches draw other noise than any proposal, but for the first, which goes on with its own.
    seeds = {seed for task in ahead for seed in task.seeds}
    assert seeds <= set(range(SEED, SEED + 12))
    alive = [each for each in decision.candidates if not each.dropped]
    assert decision.candidates[decision.chosen].value == max(each.value for each in alive)
    one_way = replace(flat, depth=2)
    assert search(replace(one_way, beam=4)).candidates == search(one_way).candidates


def test_the_network_may_see_the_known_frames_alone() -> None:
    engine = Numbers()
    search(replace(FULL, value_frames="known"), engine)
    asked = [task for task in engine.tasks if isinstance(task, PredictValue)]
    assert asked and all(task.frames == "known" for task in asked)


SETTINGS = st.builds(
    dict,
    candidates=st.integers(1, 5),
    extra=st.integers(-2, 3),
    sieve=st.sampled_from(("value", "distance")),
    future=st.sampled_from(("predicted", "proposed")),
    value=st.sampled_from(("value_s", "value_sas", "value_q")),
    rounds=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5)), max_size=2),
    adaptive=st.sampled_from((None, Adaptive(1, variance=0.02), Adaptive(1, value=0.7))),
    depth=st.integers(1, 3),
    beam=st.integers(0, 3),
    branches=st.integers(1, 2),
    combination=st.sampled_from(("last", "average")),
    shown=st.sampled_from(("last", "average")),
    candidate_batch=st.integers(1, 3),
)


def made(drawn: dict[str, Any]) -> SearchConfig:
    """Return a search of these settings that is one."""
    most, rounds = drawn["candidates"], []
    futures = values = 1
    for more_futures, more_values, keep in drawn.pop("rounds"):
        futures, values = max(futures, more_futures), max(values, more_values)
        most = min(most, keep)
        rounds.append(Round(futures, values, most))
    if drawn["value"] == "value_q":
        drawn["depth"] = 1
    if drawn["depth"] == 1:
        drawn["beam"], drawn["branches"] = 0, 1
    proposals = max(drawn["candidates"] + drawn.pop("extra"), 1)
    if proposals < drawn["candidates"]:
        drawn |= {"perturbation": 0.1, "future": "predicted"}
    return SearchConfig(
        proposals=proposals,
        rounds=tuple(rounds),
        futures=2,
        values=3,
        aggregation="average",
        **drawn,
    )


def key_of(decision: Decision) -> tuple[Any, ...]:
    """Return what a decision is, NaN equal to itself."""
    candidates = [
        tuple(None if isinstance(v, float) and isnan(v) else v for v in vars(each).values())
        for each in decision.candidates
    ]
    return candidates, decision.chosen, decision.positions.tolist(), decision.search


@settings(max_examples=100)
@given(drawn=SETTINGS, data=st.data())
def test_no_order_of_answers_changes_a_decision_and_a_deadline_leaves_one_to_make_again(
    drawn: dict[str, Any], data: st.DataObject
) -> None:
    config, engine = made(drawn), Numbers()
    least = data.draw(st.sampled_from((-1.0, 0.2, 0.5, 2.0)), label="what the gate lets pass")

    def foresee(_: Query, chunk: np.ndarray) -> str:
        return f"{chunk[0, 0]} is too little" if chunk[0, 0] < least else ""

    serial = run_search(engine, query_of(), config, foresee=foresee)
    assert parse_search(serial.search, "it") == config
    passing = [each.dropped != "gate" for each in serial.candidates]
    assert passing[serial.chosen] or not any(passing)
    begun = Search(query_of(), config, engine.info, foresee=foresee)
    cut_after = data.draw(st.integers(0, len(engine.tasks)), label="answers before the deadline")
    for _ in range(cut_after):
        key = data.draw(st.sampled_from(begun.open), label="answer")
        answer = engine.answer(begun.task(key))
        begun.take(key, answer)
        begun.take(key, answer)  # a task that was given to two workers
        if begun.complete:
            break
    if begun.complete:
        assert key_of(begun.decide({})) == key_of(serial)
        most = sum(each.evaluations for each in price(config, engine.info).values())
        assert serial.evaluations <= most
        assert sum(each.evaluations for each in begun.spent.values()) == serial.evaluations
        assert all(each.finished for each in serial.candidates)
        return
    assume(begun.finished)
    cut = begun.decide({}, "the deadline")
    finished = [i for i, each in enumerate(cut.candidates) if each.finished]
    assert cut.chosen in finished
    whole = parse_search(cut.search, "it")
    again = run_search(engine, query_of(), whole, finished, foresee)
    assert (again.chosen, again.positions.tolist()) == (cut.chosen, cut.positions.tolist())
    for index in finished:
        assert again.candidates[index].values == cut.candidates[index].values


@settings(max_examples=30)
@given(drawn=SETTINGS, deadline=st.floats(0.1, 100.0))
def test_what_is_fitted_into_a_deadline_is_a_search(drawn: dict[str, Any], deadline: float) -> None:
    config = made(drawn)
    info = replace(
        Numbers.info, pace={"sample_actions": 0.1, "predict_future": 0.1, "predict_value": 0.1}
    )
    fitted = fit(query_of(deadline=deadline), config, info, Durations(), 2)
    assert 1 <= fitted.candidates <= config.candidates
    assert fitted.sampled <= config.sampled and fitted.considered <= config.considered
    assert search(fitted).chosen < fitted.considered


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proposals": 7}, "perturbation: 0.0 must be above 0 with fewer proposals"),
        ({"perturbation": 0.1}, "perturbation: 0.1 must be above 0 .* and 0 otherwise"),
        ({"proposals": 2, "perturbation": -0.1}, "perturbation: -0.1 must be above 0"),
        (
            {"proposals": 2, "perturbation": 0.1, "future": "proposed"},
            "of a perturbed copy none was proposed",
        ),
        ({"rounds": (Round(2, 1, 4), Round(1, 1, 2))}, "a later one has fewer futures"),
        ({"rounds": (Round(1, 6, 4),)}, "a later one has fewer values"),
        ({"rounds": (Round(1, 1, 9),)}, "keep 9 must be at least 1, and at most the 8"),
        ({"rounds": (Round(1, 1, 0),)}, "keep 0 must be at least 1"),
        ({"rounds": (Round(0, 1, 4),)}, "rounds: a later one has fewer futures"),
        ({"rounds": (Round(1, 1, 4),), "aggregation": "lcb"}, "no standard deviation"),
        ({"beam": 2}, "depth: 1 looks no further ahead"),
        ({"branches": 2}, "depth: 1 looks no further ahead"),
        ({"beam": -1, "depth": 2}, "beam: -1 must be at least 0"),
        ({"adaptive": Adaptive(9, variance=1.0)}, "9 are more than the 8 that there are"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FULL, **changes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "has no limit"),
        ({"distance": 0.1}, "one proposal has no distance"),
        ({"proposals": 0, "value": 0.5}, "adaptive.proposals: 0 must be at least 1"),
        ({"rows": 0, "value": 0.5}, "adaptive.rows: 0 must be at least 1"),
        ({"variance": -0.1}, "adaptive.variance: -0.1 must be a number from 0 on"),
        ({"value": nan}, "adaptive.value: nan must be a number from 0 on"),
    ],
)
def test_an_adaptive_search_needs_something_to_go_by(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adaptive(**given)


@pytest.fixture(scope="module")
def engine() -> SearchEngine:
    policy = CosmosPolicy.load(TINY, denoising_steps=3)
    return SearchEngine(policy, policy, SearchConfig())


def test_networks_give_the_same_values_in_rounds_as_at_once(engine: SearchEngine) -> None:
    config = SearchConfig(candidates=3, futures=2, values=2, candidate_batch=2)
    whole = run_search(engine, query_of(), config)
    rounds = run_search(engine, query_of(), replace(config, rounds=(Round(1, 1, 2),)))
    again = run_search(engine, query_of(), replace(config, rounds=(Round(1, 1, 2),)))
    assert key_of(rounds) == key_of(again)
    for one, other in zip(rounds.candidates, whole.candidates, strict=True):
        np.testing.assert_allclose(one.values, other.values[: len(one.values)], atol=ROUNDING)
    assert sorted(len(each.values) for each in rounds.candidates) == [1, 4, 4]


def test_a_perturbed_chunk_begins_where_it_began_and_keeps_its_grippers(
    engine: SearchEngine,
) -> None:
    """To the asked distance, in units of the statistics; rows that are held stay."""
    held = ActionPrefix(np.tile(query_of().observation.state, (4, 1)), np.ones(4), 0.12)
    for committed in (None, held):
        query = replace(query_of(), committed=committed)
        proposed = engine.answer(SampleActions(query, (SEED, SEED)))
        assert isinstance(proposed, SampledActions)
        task = PerturbActions(query, proposed.latents, (SEED + 2, SEED + 3), 0.1)
        perturbed, again = engine.answer(task), engine.answer(task)
        assert isinstance(perturbed, SampledActions) and isinstance(again, SampledActions)
        np.testing.assert_array_equal(perturbed.chunks, again.chunks)
        assert not np.allclose(perturbed.chunks[0], perturbed.chunks[1], atol=1e-3)
        statistics = load_statistics(TINY / STATISTICS, 14, 14).actions
        before, after = map(statistics.normalise, (proposed.chunks, perturbed.chunks))
        off = np.abs(after - before)
        np.testing.assert_allclose(off[:, :, GRIPPER_INDICES], 0.0, atol=1e-5)
        arms = np.delete(off, GRIPPER_INDICES, axis=2)
        np.testing.assert_allclose(arms.mean(axis=(1, 2)), 0.1, rtol=1e-3)
        assert arms[:, 0].max() < 0.01 < arms[:, -1].max()
        assert committed is None or not off[:, :4].max() > 1e-6


def test_a_policy_says_how_unsure_it_was_and_what_it_expects(engine: SearchEngine) -> None:
    query = query_of()
    decision = run_search(engine, query, SearchConfig(candidates=2, futures=1, values=1))
    assert all(0 < each.variance < 10 for each in decision.candidates)
    proposed = engine.answer(SampleActions(query, (SEED, SEED + 1), futures=True))
    assert isinstance(proposed, SampledActions)
    assert [each.own_value for each in decision.candidates] == pytest.approx(proposed.values)
    # Seen from outside: the estimates of 3 evaluations, in the latents of the action.
    values = run_search(engine, query, SearchConfig(candidates=2, future="proposed", values=1))
    expected = engine.answer(
        PredictValue(PROMPT, proposed.latents, (SEED, SEED + 1), (0,), 1, 5, "value_s")
    )
    for each, (value,) in zip(values.candidates, expected, strict=True):  # type: ignore[call-overload]
        assert each.values == pytest.approx((value,), abs=ROUNDING)


def test_every_shipped_search_is_decided_alike_in_any_batch_order() -> None:
    for preset in sorted(config_folder("planning").glob("*.yaml")):
        config = parse_search(preset.read_text(), str(preset))
        assert key_of(search(config)) == key_of(search(config)), preset.stem
