"""A search over real worker processes: same answers, kept deadlines, whatever dies or hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from helpers import search_stub
from helpers.forked import CONTEXT
from helpers.search import TINY, query_of
from helpers.waiting import is_running, wait_for

from cosmos_policy_ros.core.errors import ConfigError, ObservationError, WorkerError
from cosmos_policy_ros.inference import worker
from cosmos_policy_ros.inference.cosmos_engine import load_cosmos
from cosmos_policy_ros.inference.engines import load_engine
from cosmos_policy_ros.inference.spec import (
    Decide,
    DecodeImages,
    EngineLoader,
    EngineSpec,
    SearchConfig,
)
from cosmos_policy_ros.inference.worker import WorkerLimits
from cosmos_policy_ros.model.files import digest
from cosmos_policy_ros.planning.scheduler import (
    HUNG_LEAST,
    SearchScheduler,
    parse_devices,
    start_inference,
)
from cosmos_policy_ros.planning.search import run_search
from cosmos_policy_ros.rig.decision import Decision

SMALL = SearchConfig(candidates=4, futures=2, future_steps=2, values=2, value_steps=2)
TINY_SPEC = EngineSpec("cosmos", str(TINY), denoising_steps=2, search=SMALL)
STUB_SPEC = EngineSpec("cosmos", "stub", search=SearchConfig(candidates=8))
LIMITS = WorkerLimits(start_timeout=60.0, query_timeout=60.0, restarts=5, backoff=0.05)
# What a decision may come after its deadline, and what the machine may add when others use it too.
LATE, BUSY = 0.1, 1.0
Make = Callable[..., SearchScheduler]


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    """Spawn no workers, as test_worker and the nodes' tests do: each would import torch first."""
    with patch.object(worker, "mp", SimpleNamespace(get_context=lambda _: CONTEXT)):
        yield


@pytest.fixture
def make() -> Iterator[Make]:
    """Return a maker of planners, all of them ready, and closed at the end."""
    made: list[SearchScheduler] = []

    def planner(
        workers: int,
        spec: EngineSpec = STUB_SPEC,
        load: EngineLoader = search_stub.load,
        limits: WorkerLimits = LIMITS,
    ) -> SearchScheduler:
        found = start_inference(spec, ["cpu"] * workers, limits, load=load)
        assert isinstance(found, SearchScheduler)
        made.append(found)
        wait_for(lambda: found.status != "starting", "the workers to load")
        return found

    yield planner
    for each in made:
        each.close()


def ask(planner: SearchScheduler, **options: Any) -> Any:
    return planner.submit(Decide(query_of(**options)))


def error_of(future: Any) -> str:
    error = future.exception(timeout=60)
    assert isinstance(error, WorkerError)
    return str(error)


def same(one: Decision, other: Decision) -> None:
    """Hold two decisions against each other, to the last bit, but for how long they took."""
    np.testing.assert_array_equal(one.positions, other.positions)
    assert one.imagined is not None
    assert other.imagined is not None
    np.testing.assert_array_equal(one.imagined, other.imagined)
    names = ("candidates", "chosen", "reason", "search", "checkpoint_digest", "planner_digest")
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]


def pids(planner: SearchScheduler) -> list[int]:
    found = [worker.pid for worker in planner.workers]
    assert None not in found
    return [pid for pid in found if pid is not None]


# ---------------------------------------------------------------- real networks


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_it_decides_alike_on_any_number_of_workers(make: Make, workers: int) -> None:
    serial = run_search(load_cosmos(TINY_SPEC, lambda _: None), query_of(), SMALL)  # type: ignore[arg-type]
    planner = make(workers, TINY_SPEC, load_engine)
    for _ in range(2):
        decision = ask(planner).result(timeout=60)
        same(decision, serial)
    assert set(decision.phases) == {"sample_actions", "predict_future", "predict_value"}
    assert all(seconds > 0 for seconds in decision.phases.values())


def test_more_workers_than_candidates_share_their_values(make: Make) -> None:
    spec = replace(TINY_SPEC, search=replace(SMALL, candidates=1))
    one, two = make(1, spec, load_engine), make(2, spec, load_engine)
    same(ask(one).result(timeout=60), ask(two).result(timeout=60))


def test_a_future_is_depicted_by_whoever_is_idle(make: Make) -> None:
    planner, query = make(1, TINY_SPEC, load_engine), query_of()
    decision = planner.submit(Decide(query)).result(timeout=60)
    images = planner.submit(DecodeImages(query, decision.imagined)).result(timeout=60)
    assert {role: p.shape for role, p in images.items()}["primary"] == (64, 64, 3)


def test_two_checkpoints_take_part(make: Make, planning_checkpoint: Path) -> None:
    spec = replace(TINY_SPEC, world_model=str(planning_checkpoint))
    decision = ask(make(1, spec, load_engine)).result(timeout=60)
    assert decision.checkpoint_digest == digest(TINY)
    assert decision.planner_digest == digest(planning_checkpoint)


def test_an_unknown_prompt_is_refused_once(make: Make) -> None:
    planner = make(1, TINY_SPEC, load_engine)
    error = planner.submit(Decide(replace(query_of(), prompt="dance"))).exception(timeout=60)
    assert "'dance'" in str(error)
    assert not isinstance(error, WorkerError)
    assert planner.restarts == 0


def test_what_does_not_fit_is_refused_before_it_is_loaded(make: Make) -> None:
    planner = make(2, TINY_SPEC, search_stub.load_huge)
    assert planner.status == "failed"
    assert "cpu: an inference process needs 9000.0 GB (policy 9000.0)" in planner.message
    assert "GB are free; name fewer or other devices" in planner.message
    assert planner.restarts == 0


def test_two_that_fit_one_at_a_time_are_refused_together(make: Make) -> None:
    planner = make(2, TINY_SPEC, search_stub.load_most_of_it)
    assert planner.status == "failed"
    assert "for 1 more, but" in planner.message


# ---------------------------------------------------------------- deadlines


def test_without_time_for_all_the_best_of_fewer_is_taken(make: Make) -> None:
    planner = make(2)
    for _ in range(2):
        full = ask(planner).result(timeout=60)
    assert [c.finished for c in full.candidates] == [True] * 8
    took = search_stub.SECONDS * search_stub.TASKS * 8 / 2
    started = time.monotonic()
    decision = ask(planner, deadline=took / 2).result(timeout=60)
    assert time.monotonic() - started < took / 2 + LATE + BUSY
    finished = [c.finished for c in decision.candidates]
    assert 2 <= sum(finished) < 8
    assert len(finished) == 8
    assert decision.candidates[decision.chosen].value == max(
        c.value for c in decision.candidates if c.finished
    )
    count = sum(finished)
    assert f"{count} of 8 candidates finished within the deadline of" in decision.reason


def test_with_no_time_at_all_the_arms_hold(make: Make) -> None:
    planner = make(1)
    started = time.monotonic()
    message = error_of(ask(planner, deadline=search_stub.SECONDS / 2))
    assert time.monotonic() - started < search_stub.SECONDS / 2 + LATE + BUSY
    assert "no candidate finished within the deadline of 0.01 s; give a longer" in message
    assert ask(planner, deadline=30).result(timeout=60).chosen >= 0


# ---------------------------------------------------------------- death


def test_a_kill_in_mid_search_costs_nothing_but_time(make: Make) -> None:
    planner = make(2)
    whole = ask(planner).result(timeout=60)
    victim = pids(planner)[0]
    future = ask(planner, deadline=30)
    time.sleep(4 * search_stub.SECONDS)
    os.kill(victim, signal.SIGKILL)
    same(future.result(timeout=60), whole)
    assert not is_running(victim)
    wait_for(lambda: all(w.status == "ready" for w in planner.workers), "the worker to be back")
    assert planner.restarts == 1
    same(ask(planner).result(timeout=60), whole)


def test_a_hang_in_mid_search_is_worked_around_and_ended(make: Make) -> None:
    planner = make(2)
    whole = ask(planner).result(timeout=60)
    victim = pids(planner)[1]
    started = time.monotonic()
    future = ask(planner, deadline=30)
    time.sleep(4 * search_stub.SECONDS)
    os.kill(victim, signal.SIGSTOP)
    same(future.result(timeout=60), whole)
    # Its task was overdue soon, and done by the other; it was not waited for until it was ended.
    assert time.monotonic() - started < HUNG_LEAST
    wait_for(lambda: not is_running(victim), "the hung worker to be ended")
    wait_for(lambda: all(w.status == "ready" for w in planner.workers), "the worker to be back")
    assert planner.restarts == 1
    same(ask(planner).result(timeout=60), whole)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_when_all_are_gone_the_deadline_holds_with_what_there_is(
    make: Make, blow: signal.Signals
) -> None:
    planner = make(2, limits=replace(LIMITS, backoff=1.5))
    ask(planner).result(timeout=60)
    deadline, started = 1.2, time.monotonic()
    future = ask(planner, deadline=deadline)
    # Long enough for a candidate or two.
    time.sleep(3 * search_stub.TASKS * search_stub.SECONDS)
    for pid in pids(planner):
        os.kill(pid, blow)
    decision = future.result(timeout=60)
    assert time.monotonic() - started < deadline + LATE + BUSY
    finished = sum(c.finished for c in decision.candidates)
    assert 1 <= finished < 8
    assert f"{finished} of 8 candidates finished within the deadline of 1.2 s" in decision.reason
    wait_for(lambda: all(w.status == "ready" for w in planner.workers), "all workers to be back")
    assert [c.finished for c in ask(planner).result(timeout=60).candidates] == [True] * 8


def test_when_all_are_gone_before_anything_is_finished_there_is_no_answer(make: Make) -> None:
    planner = make(2, limits=replace(LIMITS, backoff=1.5))
    ask(planner).result(timeout=60)
    for pid in pids(planner):
        os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    message = error_of(ask(planner, deadline=0.5))
    assert time.monotonic() - started < 0.5 + LATE + BUSY
    assert "no candidate finished within the deadline of 0.5 s" in message
    wait_for(lambda: planner.status == "ready", "the workers to be back")
    ask(planner).result(timeout=60)


def test_workers_that_cannot_be_brought_back_end_it(make: Make) -> None:
    planner = make(1, limits=replace(LIMITS, restarts=0))
    os.kill(pids(planner)[0], signal.SIGKILL)
    assert "gave up after 0 restarts" in error_of(ask(planner))
    assert planner.status == "failed"


# ---------------------------------------------------------------- manners


def test_a_newer_query_takes_the_place_of_an_older_one(make: Make) -> None:
    planner = make(1)
    older, newer = ask(planner), ask(planner, seed=70)
    assert "a newer query took its place" in error_of(older)
    assert newer.result(timeout=60).candidates[0].seed == 70


def test_what_is_asked_while_loading_is_answered_when_loaded() -> None:
    planner = start_inference(STUB_SPEC, ["cpu"], LIMITS, load=search_stub.load)
    try:
        assert planner.status == "starting"
        assert planner.message == "loading: 0 of 1 workers are ready"
        assert planner.submit(Decide(query_of())).result(timeout=60).chosen >= 0
    finally:
        planner.close()


def test_closing_in_mid_search_fails_it_and_ends_the_processes(make: Make) -> None:
    planner = make(2)
    processes = pids(planner)
    future = ask(planner)
    planner.close()
    assert "being closed" in error_of(future)
    assert not any(is_running(pid) for pid in processes)
    assert (planner.status, planner.message) == ("closed", "the workers have ended")
    assert "ended" in error_of(ask(planner))


def test_workers_with_different_checkpoints_are_refused(make: Make) -> None:
    planner = make(2, STUB_SPEC, search_stub.load_another)
    assert planner.status == "failed"
    assert "has another checkpoint than worker 0" in planner.message


def test_a_refusal_is_not_tried_again(make: Make) -> None:
    planner = make(2)
    error = ask(planner, seed=search_stub.REFUSED).exception(timeout=60)
    assert isinstance(error, ObservationError)
    assert planner.restarts == 0


@pytest.mark.parametrize("text", ["", "cuda:0,", ",cpu"])
def test_devices_without_a_name_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="has an empty entry; give auto"):
        parse_devices(text)


def test_devices_are_a_list() -> None:
    assert parse_devices("cuda:0, cuda:1") == ("cuda:0", "cuda:1")
