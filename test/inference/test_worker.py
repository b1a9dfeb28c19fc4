"""A worker that dies, hangs or refuses costs one query, says why, and never outlives its node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import stub_engine
from helpers.forked import forked_workers
from helpers.stub_engine import Seed
from helpers.waiting import is_running, wait_for

from cosmos_policy_ros.core.errors import ObservationError, WorkerError
from cosmos_policy_ros.inference.spec import Decide, EngineSpec
from cosmos_policy_ros.inference.worker import ProcessHost, Worker, WorkerLimits
from cosmos_policy_ros.rig.decision import Decision, Query
from cosmos_policy_ros.rig.observation import Observation

PATIENT = WorkerLimits(start_timeout=60.0, query_timeout=60.0, restarts=3, backoff=0.01)
Make = Callable[..., Worker]


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    with forked_workers():
        yield


@pytest.fixture
def make() -> Iterator[Make]:
    """Return a maker of workers with the stub engine, all of them closed at the end."""
    workers: list[Worker] = []

    def worker(checkpoint: str = "", limits: WorkerLimits = PATIENT) -> Worker:
        spec = EngineSpec("cosmos", checkpoint)
        workers.append(Worker(ProcessHost(spec, stub_engine.load), limits))
        return workers[-1]

    yield worker
    for each in workers:
        each.close()


def query(seed: Seed = Seed.GOOD, index: int = 0, pixels: tuple[int, ...] = (8, 8, 3)) -> Decide:
    images = {"primary": np.zeros(pixels, np.uint8)}
    return Decide(Query("task", "prompt", seed, index, Observation(0, images, np.zeros(14), {})))


def ready(worker: Worker) -> Worker:
    wait_for(lambda: worker.status == "ready", f"a loaded engine: {worker.message}")
    return worker


def answer(future: Future[Decision]) -> Decision:
    return future.result(timeout=60.0)


def error_of(future: Future[Decision]) -> str:
    error = future.exception(timeout=60.0)
    assert isinstance(error, WorkerError)
    return str(error)


def test_it_answers_from_a_process_of_its_own(make: Make) -> None:
    worker = ready(make())
    assert worker.info.digest == "stub-digest"
    assert worker.pid not in (None, os.getpid())
    assert f"process {worker.pid}" in worker.message
    assert worker.message.endswith("this is a stub")
    decisions = [worker.submit(query(index=i)) for i in range(3)]
    assert [answer(d).positions.shape for d in decisions] == [(50, 14)] * 3


@pytest.mark.parametrize("niceness", [0, 19])
def test_its_process_yields_as_far_as_it_is_told(niceness: int) -> None:
    host = ProcessHost(EngineSpec("cosmos", niceness=niceness), stub_engine.load)
    worker = ready(Worker(host, PATIENT))
    try:
        assert worker.pid is not None
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == max(own, niceness)
        os.kill(worker.pid, signal.SIGKILL)
        assert "killed by SIGKILL" in error_of(worker.submit(query()))
        answer(worker.submit(query()))
        assert worker.restarts == 1
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == max(own, niceness)
    finally:
        worker.close()


def test_a_query_asked_while_loading_is_answered_when_loaded(make: Make, tmp_path: Path) -> None:
    worker = make(f"{stub_engine.WAIT}{tmp_path / 'go on'}")
    asked = worker.submit(query())
    assert worker.status == "starting" and not asked.done()
    (tmp_path / "go on").touch()
    assert answer(asked).candidates[0].seed == Seed.GOOD


def test_an_engine_that_refuses_a_query_keeps_its_process(make: Make) -> None:
    worker = ready(make())
    process = worker.pid
    error = worker.submit(query(Seed.REFUSE)).exception(timeout=60.0)
    assert isinstance(error, ObservationError)
    assert str(error) == "the stub sees no cube"
    answer(worker.submit(query()))
    assert worker.pid == process
    assert worker.restarts == 0


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        (Seed.DIE, "died with exit code 3 during a query"),
        (Seed.RAISE, "broke off with ZeroDivisionError: a bug in the engine"),
    ],
)
def test_a_death_in_mid_query_fails_that_query_and_starts_again(
    make: Make, seed: Seed, words: str
) -> None:
    worker = ready(make())
    process = worker.pid
    doomed, next_one = worker.submit(query(seed)), worker.submit(query())
    message = error_of(doomed)
    assert f"process {process}" in message
    assert words in message
    answer(next_one)
    assert worker.pid != process
    assert worker.restarts == 1


def test_a_kill_in_mid_query_is_told_by_the_signals_name(make: Make) -> None:
    worker = ready(make())
    process = worker.pid
    assert process is not None
    doomed = worker.submit(query(Seed.SLEEP_FIRST))
    wait_for(doomed.running, "the query to be taken")
    os.kill(process, signal.SIGKILL)
    assert f"process {process} was killed by SIGKILL" in error_of(doomed)
    answer(worker.submit(query()))


def test_a_kill_between_queries_costs_the_next_one_at_most(make: Make) -> None:
    worker = ready(make())
    assert worker.pid is not None
    process = worker.pid
    os.kill(process, signal.SIGKILL)
    wait_for(lambda: not is_running(process), "the kernel to end it")
    assert "killed by SIGKILL" in error_of(worker.submit(query()))
    answer(worker.submit(query()))


def test_a_hang_ends_at_the_deadline(make: Make) -> None:
    worker = ready(make(limits=WorkerLimits(60.0, 0.3, 3, 0.01)))
    assert worker.pid is not None
    process = worker.pid
    message = error_of(worker.submit(query(Seed.SLEEP_FIRST)))
    assert f"process {process} gave no answer for 0.3 s during a query and was ended" in message
    wait_for(lambda: not is_running(process), "the hung process to be gone")
    wait_for(lambda: worker.status == "ready" and worker.pid != process, "a new process")


def test_a_process_that_does_not_even_read_ends_at_the_deadline(make: Make) -> None:
    worker = ready(make(limits=WorkerLimits(60.0, 0.3, 3, 0.01)))
    assert worker.pid is not None
    process = worker.pid
    os.kill(process, signal.SIGSTOP)
    large = query(pixels=(480, 640, 9))  # more than a pipe holds
    assert f"process {process} gave no answer for 0.3 s" in error_of(worker.submit(large))
    wait_for(lambda: not is_running(process), "the stopped process to be gone")


def test_a_hang_while_loading_ends_at_the_deadline(make: Make) -> None:
    worker = make("hang", WorkerLimits(start_timeout=0.3, query_timeout=60.0, restarts=0))
    wait_for(lambda: worker.status == "failed", "the worker to give up")
    assert "gave no answer for 0.3 s during start-up" in worker.message


def test_restarts_are_counted_and_end(make: Make) -> None:
    worker = make("die", WorkerLimits(60.0, 60.0, restarts=2, backoff=0.01))
    waiting = worker.submit(query())
    assert "killed by SIGKILL during start-up; gave up after 2 restarts" in error_of(waiting)
    assert worker.status == "failed"
    assert worker.restarts == 2
    assert "gave up" in error_of(worker.submit(query()))


def test_a_bug_in_its_thread_leaves_nobody_waiting(make: Make) -> None:
    worker = ready(make())
    unsendable: Any = lambda: None  # noqa: E731
    assert "a bug in the worker, see the log: " in error_of(worker.submit(Decide(unsendable)))
    answer(worker.submit(query()))


def test_restarts_of_long_ago_are_forgotten(make: Make) -> None:
    worker = ready(make(limits=WorkerLimits(60.0, 60.0, restarts=1, backoff=0.01, memory=0.2)))
    for count in (1, 2, 3):
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        error_of(worker.submit(query()))
        answer(worker.submit(query()))
        assert worker.restarts == count
        time.sleep(0.2)


def test_an_engine_that_refuses_to_load_is_not_tried_again(make: Make) -> None:
    worker = make("refuse")
    waiting = worker.submit(query())
    assert error_of(waiting) == "stub/model.safetensors is missing; download it"
    assert worker.status == "failed"
    assert worker.restarts == 0


def test_closing_in_mid_query_fails_the_query_and_ends_the_process(make: Make) -> None:
    worker = ready(make())
    assert worker.pid is not None
    process = worker.pid
    under_way, waiting = worker.submit(query(Seed.SLEEP_FIRST)), worker.submit(query())
    wait_for(under_way.running, "the query to be taken")
    worker.close()
    assert not is_running(process)
    assert "being closed" in error_of(under_way)
    error_of(waiting)
    assert worker.status == "closed"
    assert "ended" in error_of(worker.submit(query()))


def test_closing_while_loading_leaves_no_process(make: Make) -> None:
    worker = make("hang")
    wait_for(lambda: worker.pid is not None, "the process to be started")
    assert worker.pid is not None
    process = worker.pid
    worker.close()
    assert not is_running(process)


def test_it_ends_with_its_parent_even_in_mid_query() -> None:
    script = Path(stub_engine.__file__).with_name("lonely_parent.py")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
        assert is_running(orphan)
        parent.kill()
    wait_for(lambda: not is_running(orphan), "the worker to follow its parent")


def test_neither_the_node_nor_the_demonstrators_process_imports_torch() -> None:
    """It takes seconds and 300 MB in each, and only the cosmos engine needs it."""
    modules = "cosmos_policy_ros.nodes.policy_node, cosmos_policy_ros.sim.demonstrator"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
