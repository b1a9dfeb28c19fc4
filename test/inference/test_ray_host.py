"""The same search on a Ray cluster, which this test starts on this machine alone."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import search_stub
from helpers.search import TINY, query_of
from helpers.waiting import wait_for

from cosmos_policy_ros.core.errors import CheckpointError, ConfigError, WorkerError
from cosmos_policy_ros.inference.cosmos_engine import load_cosmos
from cosmos_policy_ros.inference.engines import load_engine
from cosmos_policy_ros.inference.ray_host import RayHost, connect
from cosmos_policy_ros.inference.spec import Decide, EngineSpec, SearchConfig
from cosmos_policy_ros.inference.worker import Worker, WorkerLimits
from cosmos_policy_ros.planning.scheduler import start_inference
from cosmos_policy_ros.planning.search import run_search

SMALL = SearchConfig(candidates=4, futures=2, future_steps=2, values=2, value_steps=2)
SPEC = EngineSpec("cosmos", str(TINY), device="cpu", denoising_steps=3, search=SMALL)
# Four processes import torch before one of them is ready.
PATIENCE = 200.0  # s
LIMITS = WorkerLimits(start_timeout=PATIENCE, query_timeout=60.0, restarts=3, backoff=0.05)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    before = os.environ.get("PYTHONPATH", "")
    # Actors import what this process does.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), before])
    cluster = connect("local")
    yield cluster
    cluster.shutdown()
    os.environ["PYTHONPATH"] = before


# First: once connected, there is no other cluster to look for.
def test_a_cluster_that_is_not_there_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match="no Ray cluster at"):
        connect(f"127.0.0.1:{port}")


def actor(name: str) -> int:
    """Return the process id in "actor 123 on host"."""
    return int(name.split("actor ")[1].split()[0].rstrip(")"))


def test_it_decides_as_a_local_engine(ray: Any) -> None:
    serial = run_search(load_cosmos(SPEC, lambda _: None), query_of(), SMALL)
    scheduler = start_inference(SPEC, ["cpu"], LIMITS, load=load_engine, ray="local")
    try:
        decision = scheduler.submit(Decide(query_of())).result(timeout=PATIENCE)
        assert decision.candidates == serial.candidates
        process = actor(scheduler.workers[0].message)
        assert os.getpriority(os.PRIO_PROCESS, process) == os.getpriority(os.PRIO_PROCESS, 0)
        np.testing.assert_array_equal(decision.positions, serial.positions)
    finally:
        scheduler.close()


def test_a_kill_costs_nothing_but_time(ray: Any) -> None:
    scheduler = start_inference(SPEC, ["cpu", "cpu"], LIMITS, load=search_stub.load, ray="local")
    try:
        wait_for(lambda: scheduler.status == "ready", lambda: f"the actors: {scheduler.message}")
        whole = scheduler.submit(Decide(query_of())).result(timeout=PATIENCE)
        os.kill(actor(scheduler.workers[0].message), signal.SIGKILL)
        decision = scheduler.submit(Decide(query_of())).result(timeout=PATIENCE)
        assert decision.candidates == whole.candidates
        wait_for(lambda: scheduler.restarts >= 1, "the loss to be noticed")
        wait_for(lambda: all(w.status == "ready" for w in scheduler.workers), "it to be back")
        again = scheduler.submit(Decide(query_of())).result(timeout=PATIENCE)
        assert again.candidates == whole.candidates
    finally:
        scheduler.close()


def test_an_actor_that_refuses_to_load_is_not_tried_again(ray: Any) -> None:
    worker = Worker(RayHost(ray, SPEC, search_stub.load_huge), LIMITS)
    wait_for(lambda: worker.status == "failed", "the refusal")
    assert "needs 9000.0 GB" in worker.message
    assert worker.restarts == 0
    worker.close()


def test_an_actor_that_hangs_is_ended(ray: Any) -> None:
    worker = Worker(RayHost(ray, SPEC, search_stub.load), LIMITS)
    wait_for(lambda: worker.status == "ready", "the actor")
    pid = actor(worker.message)
    os.kill(pid, signal.SIGSTOP)
    task = search_stub.proposals(query_of())
    error = worker.submit(task, 0.3).exception(timeout=60)
    assert isinstance(error, WorkerError)
    assert f"actor {pid}" in str(error)
    assert "gave no answer for 0.3 s during proposals" in str(error)
    wait_for(lambda: worker.status == "ready", "another actor")
    worker.close()


@pytest.mark.parametrize("device", ["cuda:1", "auto"])
def test_which_gpu_it_will_be_is_rays_to_choose(ray: Any, device: str) -> None:
    with pytest.raises(ConfigError, match="give cuda or cpu once per worker"):
        RayHost(ray, EngineSpec("cosmos", device=device), load_engine)


def test_the_error_keeps_its_class(ray: Any) -> None:
    worker = Worker(RayHost(ray, SPEC, search_stub.load), LIMITS)
    wait_for(lambda: worker.status == "ready", "the actor")
    error = worker.submit(search_stub.proposals(query_of(seed=search_stub.REFUSED))).exception(60)
    assert str(error) == "the stub sees no cube"
    assert not isinstance(error, (WorkerError, CheckpointError))
    worker.close()
