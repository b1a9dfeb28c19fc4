"""Whether a device stays as fast and as right, call after call, and a dead worker comes back."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch._dynamo.utils import counters

from cosmos_policy_ros.core.errors import WorkerError
from cosmos_policy_ros.inference.engines import load_engine
from cosmos_policy_ros.inference.gpu_bench import NEEDS_GPU, Bench, Row
from cosmos_policy_ros.inference.spec import Decide, EngineSpec
from cosmos_policy_ros.inference.worker import ProcessHost, Worker, WorkerLimits
from cosmos_policy_ros.model.checkpoint import Checkpoint
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.random_checkpoint import random_query

SETTLED = 5  # calls after which memory must not grow any more
CLOCKS = "clocks.sm,temperature.gpu,power.draw"


def measure_steadiness(bench: Bench, checkpoint: Checkpoint, calls: int) -> Iterator[Row]:
    """Ask for ``calls`` decisions in a row; the last asks what the first did."""
    policy = CosmosPolicy(checkpoint)
    policy.rehearse()
    seconds, settled, clocks = [], 0, [_clocks(bench)]
    compiled = counters["stats"]["unique_graphs"]
    first = policy.decide(random_query())
    for index in range(calls):
        query = random_query(index % 7)
        start = time.perf_counter()
        policy.decide(query)
        seconds.append(time.perf_counter() - start)
        if index == min(SETTLED, calls - 1):
            settled = _memory(bench)
    grown = (_memory(bench) - settled) / 1e6
    clocks.append(_clocks(bench))
    drift = float(np.abs(policy.decide(random_query()).positions - first.positions).max())
    low, middle, high = np.percentile(seconds, (50, 99, 100))
    figures = {"p50": float(low), "p99": float(middle), "longest": float(high)}
    yield Row("steady", f"a decision, median of {calls}", figures["p50"], "s", figures=figures)
    yield Row("steady", "99 % within", figures["p99"], "s")
    yield Row("steady", "longest", figures["longest"], "s")
    yield Row("steady", "memory grown", grown, "MB", aim=1.0 if bench.is_gpu else None)
    waited = float(counters["stats"]["unique_graphs"] - compiled)
    yield Row("steady", "queries that waited for the compiler", waited, limit=0.0)
    yield Row(
        "steady", "the first answer again, at the end", drift, "rad", 0.0, remark="bit for bit"
    )
    if all(clocks):
        yield Row("steady", "clock, temperature, power", None, remark=" → ".join(clocks))
    else:
        yield Row("steady", "clock, temperature, power", None, remark=NEEDS_GPU)


def measure_restart(bench: Bench, folder: Path) -> Iterator[Row]:
    """Kill a worker's process in the middle of a call and wait until another one answers."""
    spec = EngineSpec("cosmos", str(folder), str(bench.device))
    begun = time.perf_counter()
    worker = Worker(ProcessHost(spec, load_engine), WorkerLimits(backoff=0.1))
    try:
        expected = worker.submit(Decide(random_query())).result()
        yield Row("steady", "worker's start and first answer", time.perf_counter() - begun, "s")
        lost = worker.submit(Decide(random_query()))
        while not (lost.running() or lost.done()):
            time.sleep(0.001)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        killed = time.perf_counter()
        try:
            lost.result()
            remark = "the call was over before the kill"
        except WorkerError as error:
            remark = str(error)
        found = worker.submit(Decide(random_query())).result()
        seconds = time.perf_counter() - killed
        yield Row("steady", "killed in a call, and back", seconds, "s", remark=remark)
        differs = float(np.abs(found.positions - expected.positions).max())
        yield Row("steady", "the new worker's answer", differs, "rad", 0.0, remark="bit for bit")
    finally:
        worker.close()


def _memory(bench: Bench) -> int:
    """Return the bytes in use: the device's, or the process's peak on a CPU."""
    if bench.is_gpu:
        return int(torch.cuda.memory_allocated(bench.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _clocks(bench: Bench) -> str:
    """Return what the driver says of clock, temperature and power; "" where it cannot."""
    program = shutil.which("nvidia-smi")
    if not bench.is_gpu or program is None:
        return ""
    uuid = getattr(torch.cuda.get_device_properties(bench.device), "uuid", None)
    card = f"GPU-{uuid}" if uuid is not None else str(bench.device.index)
    command = [program, f"--query-gpu={CLOCKS}", "--format=csv,noheader", f"--id={card}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return done.stdout.strip() if done.returncode == 0 else ""
