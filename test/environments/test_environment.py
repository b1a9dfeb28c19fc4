"""An environment's process: what it sees and does, and every way in which it can end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.benchmark_stand_in import write_benchmark

from cosmos_policy_ros.core.errors import BenchmarkError, ConfigError, WorkerError
from cosmos_policy_ros.environments.benchmark import (
    Anchor,
    examine,
    grid_means,
    judge,
    load_benchmark,
    open_process,
)
from cosmos_policy_ros.environments.environment import (
    EnvironmentProcess,
    Progress,
    Scene,
    check_cameras,
)
from cosmos_policy_ros.rig.observation import Observation

Opening = Callable[..., EnvironmentProcess]
STILL = np.zeros((16, 7))
TASKS = ["dies", "hangs", "garbage", "prints", "raises", "black", "frozen", "not_finite", "a"]
TASKS += ["slow_to_close"]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opening]:
    processes = []

    def open_one(**changes: object) -> EnvironmentProcess:
        suites = {"all": {"title": "All", "tasks": TASKS, "limit": 40}}
        published: list[object] = []
        path, folder = write_benchmark(
            tmp_path, **{"suites": suites, "published": published, **changes}
        )
        processes.append(open_process(load_benchmark(str(path)), str(folder)))
        return processes[-1]

    yield open_one
    for process in processes:
        process.close()


def forward(rows: int) -> np.ndarray:
    return np.tile([1.0, 0, 0, 0, 0, 0, -1], (rows, 1))


def test_a_trial_up_to_its_limit_and_to_success(opened: Opening) -> None:
    environment = opened()
    assert environment.reset(Scene("all", "a", 3), 195) == "reach place a"
    assert environment.about["stand-in"] == "1.0"
    assert environment.limit == 40
    first = environment.observe()
    assert list(first.images) == ["wrist", "primary"]
    assert first.images["primary"].shape == (32, 32, 3)
    assert first.state.shape == (9,)
    # 16, 16 and the 8 that are left, without an observation after the last.
    assert [environment.execute(STILL) for _ in range(3)] == [
        Progress(16, False),
        Progress(16, False),
        Progress(8, False),
    ]
    with pytest.raises(AssertionError):
        environment.observe()
    environment.reset(Scene("all", "a", 3), 195)
    assert np.array_equal(environment.observe().state, first.state)
    assert environment.execute(forward(16)) == Progress(6, True)  # mid-chunk
    assert environment.cpu > 0


def test_what_a_library_prints_is_no_answer(opened: Opening) -> None:
    environment = opened()
    environment.reset(Scene("all", "prints", 0), 195)
    environment.execute(STILL)
    assert environment.execute(STILL) == Progress(16, False)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("dies", "died with exit code 3 during execute; its last words: .*no more memory"),
        ("garbage", "sent what is no answer to execute .begins with b'%%%%'"),
        ("raises", "broke off during execute with ValueError: the physics became unstable"),
        ("hangs", "gave no answer for 1 s during execute"),
    ],
)
def test_a_process_that_fails_costs_the_trial_and_another_one_is_started(
    opened: Opening, task: str, words: str
) -> None:
    environment = opened(deadlines={"execute": 1.0 if task == "hangs" else 120.0})
    environment.reset(Scene("all", task, 0), 195)
    if task != "hangs":
        environment.execute(STILL)
    else:  # a busy machine may take longer than a second for the chunk that is well
        with pytest.raises(WorkerError, match=words):
            environment.execute(STILL)
            environment.execute(STILL)
    with pytest.raises(WorkerError, match="ended" if task == "hangs" else words):
        environment.execute(STILL)
    with pytest.raises(WorkerError, match="has ended, and the trial with it"):
        environment.execute(STILL)
    assert environment.reset(Scene("all", "a", 0), 195) == "reach place a"


def test_a_kill_is_named(opened: Opening) -> None:
    environment = opened()
    environment.reset(Scene("all", "a", 0), 195)
    process = environment._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="was killed by SIGKILL during execute"):
        environment.execute(STILL)


@pytest.mark.parametrize(
    ("task", "words"),
    [("black", "cameras wrist and primary show the same"), ("frozen", "to the last bit")],
)
def test_cameras_that_show_nothing_end_more_than_the_trial(
    opened: Opening, task: str, words: str
) -> None:
    environment = opened()
    with pytest.raises(BenchmarkError, match=words):
        environment.reset(Scene("all", task, 0), 195)
        environment.execute(forward(2))


def test_a_robot_that_stands_still_may_see_the_same() -> None:
    images = {"wrist": np.full((8, 8, 3), 9, np.uint8), "primary": np.full((8, 8, 3), 90, np.uint8)}
    before = Observation(1, images, np.zeros(9), {})
    check_cameras(Observation(2, images, np.full(9, 0.001), {}), before)
    with pytest.raises(BenchmarkError, match=r"changed by 0.300 \(limit 0.02\)"):
        check_cameras(Observation(2, images, np.full(9, 0.1), {}), before)


def test_a_state_that_is_no_number_costs_the_trial(opened: Opening) -> None:
    environment = opened()
    environment.reset(Scene("all", "not_finite", 0), 195)
    with pytest.raises(WorkerError, match="not finite"):
        environment.execute(STILL)


def test_a_benchmark_that_is_not_there_is_named(opened: Opening, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"not installed in .*nowhere.*setup_benchmark"):
        open_process(load_benchmark("libero"), str(tmp_path / "nowhere"))
    missing = opened(settings={"split": "missing"})
    with pytest.raises(BenchmarkError, match=r"cannot be opened: .*No module named 'libero'"):
        missing.reset(Scene("all", "a", 0), 195)


def test_closing_kills_what_does_not_end(opened: Opening) -> None:
    environment = opened()
    environment.reset(Scene("all", "slow_to_close", 0), 195)
    process = environment._process
    assert process is not None
    environment.close()
    assert process.returncode is not None


def seen_of(state: list[float], brightness: int) -> Observation:
    images = {"primary": np.full((32, 32, 3), brightness, np.uint8)}
    return Observation(1, images, np.array(state), {})


def test_the_anchor_tells_rounding_and_renderers_from_other_versions() -> None:
    seen = seen_of([1.0, 2.0], 100)
    means = tuple(grid_means(seen.images["primary"]).ravel().tolist())
    anchor = Anchor("a sample", "all", "a", 0, 0, (1.0, 2.0), {"primary": means})
    assert str(judge(anchor, seen)) == "anchor met to the last bit, pictures within 0.0 of 255"
    rounded = judge(anchor, seen_of([1.0, 2.0 + 1e-12], 103))
    assert str(rounded) == "anchor met within 1e-12, pictures within 3.0 of 255"
    with pytest.raises(BenchmarkError, match=r"state is 0\.01 off the anchor"):
        judge(anchor, seen_of([1.0, 2.01], 100))
    with pytest.raises(BenchmarkError, match=r"pictures are 30\.0 of 255 off"):
        judge(anchor, seen_of([1.0, 2.0], 130))
    with pytest.raises(BenchmarkError, match="has 1 numbers, the anchor 2"):
        judge(anchor, seen_of([1.0], 100))


def test_examining_says_versions(opened: Opening) -> None:
    environment = opened()
    path = Path(environment._python).parents[2] / "benchmark.yaml"
    told = examine(load_benchmark(str(path)), environment)
    assert told == f"stand-in 1.0, numpy {np.__version__}; no anchor is published"


def test_the_released_numbers() -> None:
    """The paper's and the released code's; whoever changes one must mean it."""
    libero, robocasa = load_benchmark("libero"), load_benchmark("robocasa")
    assert {name: suite.limit for name, suite in libero.suites.items()} == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
    }
    assert len(libero.step_limits) == 40
    assert (libero.executed, robocasa.executed) == (16, 16)
    assert libero.settings.wait_action == (0, 0, 0, 0, 0, 0, -1)
    assert libero.settings.wait_steps == robocasa.settings.wait_steps == 10
    assert robocasa.settings.wait_action == (0,) * 12
    assert robocasa.settings.padding == (0, 0, 0, 0, -1)
    assert len(robocasa.step_limits) == 24
    assert robocasa.step_limits["robocasa", "CoffeePressButton"] == 300
    # The last column is the mean of the others, as the paper has it.
    ours = libero.published[-1].rates
    assert ours == (98.1, 100.0, 98.2, 97.6, 98.5)
    assert np.mean([rate for rate in ours[:4] if rate]) == pytest.approx(98.5, abs=0.05)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    suites = {"all": {"title": "All", "tasks": ["a"], "limit": 1, "limits": {"b": 2}}}
    path, _ = write_benchmark(tmp_path, suites=suites, published=[])
    with pytest.raises(ConfigError, match="'b' is no task"):
        load_benchmark(str(path))
