"""A search over real worker processes: same answers, kept deadlines, whatever dies or hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import search_stub
from helpers.forked import forked_workers
from helpers.search import TINY, query_of
from helpers.waiting import is_running, wait_for

from cosmos_policy_ros.core.errors import ConfigError, ObservationError, WorkerError
from cosmos_policy_ros.inference.cosmos_engine import load_cosmos
from cosmos_policy_ros.inference.engines import load_engine
from cosmos_policy_ros.inference.spec import (
    STAGES,
    Adaptive,
    Decide,
    DecodeImages,
    Engine,
    EngineLoader,
    EngineSpec,
    Round,
    SearchConfig,
)
from cosmos_policy_ros.inference.worker import WorkerLimits
from cosmos_policy_ros.model.files import digest
from cosmos_policy_ros.planning.scheduler import SearchScheduler, parse_devices, start_inference
from cosmos_policy_ros.planning.search import run_search
from cosmos_policy_ros.rig.decision import Decision

SMALL = SearchConfig(candidates=4, futures=2, future_steps=2, values=2, value_steps=2)
TINY_SPEC = EngineSpec("cosmos", str(TINY), denoising_steps=3, search=SMALL)
LIMITS = WorkerLimits(start_timeout=60.0, query_timeout=60.0, restarts=5, backoff=0.05)
SEED = 195  # of query_of; the stub's candidates have this one to SEED + 7
Make = Callable[..., SearchScheduler]


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    with forked_workers():
        yield


def start(spec: EngineSpec, workers: int, load: EngineLoader, **limits: Any) -> SearchScheduler:
    found = start_inference(spec, ["cpu"] * workers, replace(LIMITS, **limits), load=load)
    assert isinstance(found, SearchScheduler)
    wait_for(lambda: found.status != "starting", "the workers to load")
    return found


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a maker of schedulers with stubs that :class:`Gate` holds, closed at the end."""
    made: list[SearchScheduler] = []

    def scheduler(
        workers: int, load: EngineLoader = search_stub.load, **limits: Any
    ) -> SearchScheduler:
        spec = EngineSpec("cosmos", str(tmp_path), search=SearchConfig(candidates=8))
        made.append(start(spec, workers, load, **limits))
        return made[-1]

    yield scheduler
    for each in made:
        each.close()


class Gate:
    """Lets stubs answer for the seeds below one, and knows which processes it holds up."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def close(self, seed: int = 0) -> None:
        whole = self._folder / "new"
        whole.write_text(str(seed))
        whole.rename(self._folder / search_stub.HOLD)

    def holds(self, processes: list[int]) -> None:
        held = [self._folder / f"held_{pid}" for pid in processes]
        wait_for(lambda: all(file.exists() for file in held), "the workers to come to the gate")

    def open(self) -> None:
        (self._folder / search_stub.HOLD).unlink()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The networks of the real workers, in this process."""
    return load_cosmos(TINY_SPEC, lambda _: None)


@pytest.fixture(scope="module")
def tiny() -> Iterator[SearchScheduler]:
    """One real worker."""
    scheduler = start(TINY_SPEC, 1, load_engine)
    yield scheduler
    scheduler.close()


def ask(scheduler: SearchScheduler, **options: Any) -> Any:
    return scheduler.submit(Decide(query_of(**options)))


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
    names = ("candidates", "chosen", "reason", "search", "checkpoint_digest", "world_model_digest")
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]


def pids(scheduler: SearchScheduler) -> list[int]:
    return [worker.pid for worker in scheduler.workers if worker.pid is not None]


def finished(decision: Decision) -> list[int]:
    return [index for index, c in enumerate(decision.candidates) if c.finished]


def all_ready(scheduler: SearchScheduler) -> None:
    wait_for(lambda: all(w.status == "ready" for w in scheduler.workers), "all workers to be back")


# ---------------------------------------------------------------- real networks


def test_one_worker_decides_as_the_serial_search(tiny: SearchScheduler, engine: Engine) -> None:
    serial = run_search(engine, query_of(), SMALL)
    for _ in range(2):
        decision = ask(tiny).result(timeout=60)
        same(decision, serial)
    assert set(decision.phases) == set(STAGES)
    assert all(seconds > 0 for seconds in decision.phases.values())


CHEAP: dict[str, Any] = {
    "proposals": 6,
    "candidates": 4,
    "rounds": (Round(1, 1, 2),),
    "adaptive": Adaptive(2, variance=0.0),
    "depth": 2,
    "beam": 1,
    "branches": 2,
}


@pytest.mark.parametrize(
    "settings", [{"candidates": 1}, {}, CHEAP], ids=["one candidate", "four", "all that is cheap"]
)
def test_three_workers_decide_as_the_serial_search(
    engine: Engine, settings: dict[str, Any]
) -> None:
    """Of one candidate they share the values."""
    search = replace(SMALL, **settings)
    scheduler = start(replace(TINY_SPEC, search=search), 3, load_engine)
    try:
        same(ask(scheduler).result(timeout=60), run_search(engine, query_of(), search))
    finally:
        scheduler.close()


def test_an_idle_worker_decodes_a_future(tiny: SearchScheduler) -> None:
    query = query_of()
    decision = tiny.submit(Decide(query)).result(timeout=60)
    images = tiny.submit(DecodeImages(query, decision.imagined)).result(timeout=60)
    assert {role: p.shape for role, p in images.items()}["primary"] == (64, 64, 3)


def test_an_unknown_prompt_is_refused_once(tiny: SearchScheduler) -> None:
    error = tiny.submit(Decide(replace(query_of(), prompt="dance"))).exception(timeout=60)
    assert "'dance'" in str(error)
    assert not isinstance(error, WorkerError)
    assert tiny.restarts == 0


def test_two_checkpoints_take_part(planning_checkpoint: Path) -> None:
    spec = replace(TINY_SPEC, world_model=str(planning_checkpoint))
    scheduler = start(spec, 1, load_engine)
    try:
        assert scheduler.info.digest == digest(TINY)
        decision = ask(scheduler).result(timeout=60)
        assert decision.checkpoint_digest == digest(TINY)
        assert decision.world_model_digest == digest(planning_checkpoint)
    finally:
        scheduler.close()


def test_what_does_not_fit_is_refused_before_it_is_loaded(make: Make) -> None:
    scheduler = make(2, search_stub.load_huge)
    assert scheduler.status == "failed"
    assert "cpu: an inference process needs 9000.0 GB (policy 9000.0)" in scheduler.message
    assert "GB are free; name fewer or other devices" in scheduler.message
    assert scheduler.restarts == 0


def test_two_that_fit_one_at_a_time_are_refused_together(make: Make) -> None:
    scheduler = make(2, search_stub.load_most_of_it)
    assert scheduler.status == "failed"
    assert "for 1 more, but" in scheduler.message


# ---------------------------------------------------------------- deadlines


def test_without_time_for_all_the_best_of_fewer_is_taken(make: Make) -> None:
    scheduler = make(2)
    assert finished(ask(scheduler).result(timeout=60)) == list(range(8))
    for stage in STAGES:  # as on a slow machine: 21 s of one worker per candidate
        for _ in range(100):
            scheduler.durations.add(stage, 1, 1.0)
    decision = ask(scheduler, deadline=60).result(timeout=60)
    count = len(finished(decision))
    assert 2 <= count < 8
    assert len(decision.candidates) == 8
    assert decision.candidates[decision.chosen].value == max(
        c.value for c in decision.candidates if c.finished
    )
    assert f"{count} of 8 candidates finished within the deadline of 60 s" in decision.reason


def test_at_the_deadline_what_has_finished_is_enough(make: Make, gate: Gate) -> None:
    """Neither worker answers any more when it comes."""
    scheduler = make(2)
    gate.close(SEED + 3)
    decision = ask(scheduler, deadline=2).result(timeout=60)
    assert finished(decision) == [0, 1, 2]
    assert "3 of 8 candidates finished within the deadline of 2 s" in decision.reason


def test_with_no_time_at_all_the_arms_hold(make: Make, gate: Gate) -> None:
    scheduler = make(1)
    gate.close()
    message = error_of(ask(scheduler, deadline=0.01))
    assert "no candidate finished within the deadline of 0.01 s; give a longer" in message
    gate.open()
    assert ask(scheduler, deadline=60).result(timeout=60).chosen >= 0


# ---------------------------------------------------------------- death


def test_a_kill_in_mid_search_costs_nothing_but_time(make: Make, gate: Gate) -> None:
    scheduler = make(2)
    whole = ask(scheduler).result(timeout=60)
    gate.close(SEED + 3)
    future = ask(scheduler, deadline=60)
    gate.holds(pids(scheduler))
    victim = pids(scheduler)[0]
    os.kill(victim, signal.SIGKILL)
    gate.open()
    same(future.result(timeout=60), whole)
    assert not is_running(victim)
    all_ready(scheduler)
    assert scheduler.restarts == 1
    same(ask(scheduler).result(timeout=60), whole)


def test_a_hang_in_mid_search_is_worked_around_and_ended(make: Make, gate: Gate) -> None:
    scheduler = make(2)
    whole = ask(scheduler).result(timeout=60)
    gate.close(SEED + 3)
    future = ask(scheduler, deadline=60)
    gate.holds(pids(scheduler))
    victim = pids(scheduler)[1]
    os.kill(victim, signal.SIGSTOP)
    gate.open()
    same(future.result(timeout=60), whole)
    # Its task was overdue soon, and done by the other, before it counted as hung.
    assert scheduler.workers[1].status == "ready"
    wait_for(lambda: not is_running(victim), "the hung worker to be ended")
    all_ready(scheduler)
    assert scheduler.restarts == 1
    same(ask(scheduler).result(timeout=60), whole)


def test_when_all_die_the_deadline_holds_with_what_there_is(make: Make, gate: Gate) -> None:
    scheduler = make(2)
    gate.close(SEED + 3)
    future = ask(scheduler, deadline=2)
    victims = pids(scheduler)
    gate.holds(victims)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    decision = future.result(timeout=60)
    assert finished(decision) == [0, 1, 2]
    assert "3 of 8 candidates finished within the deadline of 2 s" in decision.reason
    assert decision.reason.count("was killed by SIGKILL during proposals") == 2
    gate.open()
    all_ready(scheduler)
    assert finished(ask(scheduler).result(timeout=60)) == list(range(8))


def test_when_all_are_gone_before_anything_is_finished_there_is_no_answer(
    make: Make, gate: Gate
) -> None:
    scheduler = make(2)
    gate.close()
    for pid in pids(scheduler):
        os.kill(pid, signal.SIGKILL)
    message = error_of(ask(scheduler, deadline=0.5))
    assert "no candidate finished within the deadline of 0.5 s" in message
    gate.open()
    ask(scheduler).result(timeout=60)


def test_workers_that_cannot_be_brought_back_end_it(make: Make) -> None:
    scheduler = make(1, restarts=0)
    os.kill(pids(scheduler)[0], signal.SIGKILL)
    assert "gave up after 0 restarts" in error_of(ask(scheduler))
    assert scheduler.status == "failed"


# ---------------------------------------------------------------- manners


def test_a_newer_query_takes_the_place_of_an_older_one(make: Make, gate: Gate) -> None:
    scheduler = make(1)
    gate.close(SEED)
    older, newer = ask(scheduler), ask(scheduler, seed=70)
    assert "a newer query took its place" in error_of(older)
    gate.open()
    assert newer.result(timeout=60).candidates[0].seed == 70


def test_what_is_asked_while_loading_is_answered_when_loaded(tmp_path: Path) -> None:
    spec = EngineSpec("cosmos", str(tmp_path), search=SearchConfig(candidates=8))
    (tmp_path / search_stub.LOADING).touch()
    scheduler = start_inference(spec, ["cpu"], LIMITS, load=search_stub.load)
    try:
        asked = scheduler.submit(Decide(query_of()))
        assert scheduler.status == "starting" and not asked.done()
        assert scheduler.message == "loading: 0 of 1 workers are ready"
        (tmp_path / search_stub.LOADING).unlink()
        assert asked.result(timeout=60).chosen >= 0
    finally:
        scheduler.close()


def test_closing_in_mid_search_fails_it_and_ends_the_processes(make: Make, gate: Gate) -> None:
    scheduler = make(2)
    gate.close()
    processes, future = pids(scheduler), ask(scheduler)
    gate.holds(processes)
    scheduler.close()
    assert "being closed" in error_of(future)
    assert not any(is_running(pid) for pid in processes)
    assert (scheduler.status, scheduler.message) == ("closed", "the workers have ended")
    assert "ended" in error_of(ask(scheduler))


def test_workers_with_different_checkpoints_are_refused(make: Make) -> None:
    scheduler = make(2, search_stub.load_another)
    assert scheduler.status == "failed"
    assert "has another checkpoint than worker 0" in scheduler.message


def test_a_refusal_is_not_tried_again(make: Make) -> None:
    scheduler = make(2)
    error = ask(scheduler, seed=search_stub.REFUSED).exception(timeout=60)
    assert isinstance(error, ObservationError)
    assert scheduler.restarts == 0


@pytest.mark.parametrize("text", ["", "cuda:0,", ",cpu"])
def test_devices_without_a_name_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="has an empty entry; give auto"):
        parse_devices(text)


def test_devices_are_a_list() -> None:
    assert parse_devices("cuda:0, cuda:1") == ("cuda:0", "cuda:1")
