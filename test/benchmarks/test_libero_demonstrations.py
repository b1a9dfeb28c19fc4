"""A scripted demonstration: LIBERO's own predicate, our reader, and its repetition elsewhere."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cosmos_policy_ros.environments import environment as client
from cosmos_policy_ros.environments.benchmark import Benchmark
from cosmos_policy_ros.environments.environment import EnvironmentProcess, Scene
from cosmos_policy_ros.interop.libero_hdf5 import Hdf5Windows, read_windows

SCRIPT = Path(client.__file__).with_name("libero_demonstrations.py")
EVERY = 16


def demonstrate(output: Path) -> str:
    python = Path(os.environ["COSMOS_BENCHMARK_ENVIRONMENT"]) / "bin/python"
    command = [python, SCRIPT, "--output", output, "--tasks", "2", "--states", "0"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command), "--every", str(EVERY)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    assert "task 2, state 0: success" in demonstrate(folder)
    return folder


def read(output: Path) -> tuple[Path, Hdf5Windows]:
    (path,) = (output / "demonstrations").iterdir()
    ((_, windows),) = read_windows(path, 0.05)
    assert isinstance(windows, Hdf5Windows)
    return path, windows


def test_it_is_read_as_the_published_ones_are(output: Path) -> None:
    path, windows = read(output)
    assert path.name.endswith("_demo.hdf5")
    assert windows.prompt == "pick up the black bowl from table center and place it on the plate"
    assert windows.usable(16).nonzero()[0].tolist() == list(range(0, len(windows), EVERY))
    assert {image.shape for image in windows.at(0).images.values()} == {(256, 256, 3)}
    assert not list((output / "failures").iterdir())


def test_what_is_there_is_not_made_again(output: Path) -> None:
    path, _ = read(output)
    before = path.stat()
    assert "state 0" not in demonstrate(output)
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_its_actions_do_in_an_evaluation_what_they_did_in_it(
    output: Path, opened: Callable[..., EnvironmentProcess], libero: Benchmark
) -> None:
    _, windows = read(output)
    environment = opened(libero)
    assert environment.reset(Scene("libero_spatial", "2", 0), 195) == windows.prompt
    for step in range(0, len(windows), EVERY):
        seen, stored = environment.observe(), windows.at(step)
        np.testing.assert_allclose(seen.state, stored.state, atol=1e-6)
        for role, image in stored.images.items():
            apart = np.abs(seen.images[role][::-1].astype(int) - image).mean()
            assert apart < 3  # what JPEG of quality 95 takes
        progress = environment.execute(windows.actions[step : step + EVERY])
        if progress.success:
            return
    raise AssertionError("the demonstration did not succeed when it was repeated")
