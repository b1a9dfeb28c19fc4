"""Tests that need a benchmark's own environment: ``scripts/setup_benchmark libero --test``.

Nothing here is collected without one, in continuous integration neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cosmos_policy_ros.environments.benchmark import Benchmark, load_benchmark, open_process
from cosmos_policy_ros.environments.environment import EnvironmentProcess

BENCHMARK = os.environ.get("COSMOS_BENCHMARK", "")
ENVIRONMENT = os.environ.get("COSMOS_BENCHMARK_ENVIRONMENT")
collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("test_*.py")
    if not BENCHMARK or not path.stem.startswith(f"test_{BENCHMARK}")
]
FULL = """
import gc

import {module}


class Full({module}.{name}):
    def execute(self, rows, draw):
        gc.collect()
        return super().execute(rows, draw)


def make(settings):
    return Full(settings, lazy=False)
"""
"""An adapter that draws at every step, as the released evaluation does.

Python finds what is gone at the worst moment: a simulation that was replaced took the next one's
buffers with it, and the wrist camera's picture came from the other camera as well.
"""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., EnvironmentProcess]]:
    """Open a benchmark's environment; ``full`` is the class that is to draw at every step."""
    processes = []

    def open_one(benchmark: Benchmark, full: str = "") -> EnvironmentProcess:
        process = open_process(benchmark, ENVIRONMENT)
        if full:
            module = Path(benchmark.adapter).stem
            process._adapter = tmp_path / "full.py"
            process._adapter.write_text(FULL.format(module=module, name=full))
        processes.append(process)
        return process

    yield open_one
    for process in processes:
        process.close()


@pytest.fixture
def libero() -> Benchmark:
    return load_benchmark("libero")
