"""Trials on a benchmark: planned, made, resumed and told as the released evaluation has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from helpers.benchmark_stand_in import write_benchmark
from helpers.forked import forked_evaluations
from helpers.policy_servers import PolicyServer, openpi

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.errors import BenchmarkError, ConfigError, RemoteError
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.evaluation import benchmark_room
from cosmos_policy_ros.evaluation.benchmark_room import BenchmarkConfig, list_prompts
from cosmos_policy_ros.evaluation.contenders import Contender
from cosmos_policy_ros.evaluation.evaluate import TRIALS, evaluate
from cosmos_policy_ros.evaluation.results import Result, read_results, to_line
from cosmos_policy_ros.rig.decision import Candidate, Decision, EngineInfo, Query

ONE = (Contender("one", checkpoint="libero_tiny_random"),)


@dataclass
class Forward:
    """Moves the hand towards the place, and looks where it is."""

    reach: float = 1.0
    rows: int = 16
    dims: int = 7
    asked: list[Query] = field(default_factory=list)
    info: EngineInfo = field(default_factory=EngineInfo)

    def decide(self, query: Query) -> Decision:
        self.asked.append(query)
        rows: Array = np.zeros((self.rows, self.dims))
        rows[:, 0] = self.reach
        return Decision(rows, 0.05, (Candidate(query.seed),), 0, "", "cosmos")


@pytest.fixture
def forward() -> Iterator[Forward]:
    policy = Forward()
    with patch.object(benchmark_room, "load_policy", lambda contender, threads: policy):
        yield policy


def config_of(folder: Path, trials: int = 2, **changes: Any) -> BenchmarkConfig:
    path, environment = write_benchmark(folder, **changes)
    return BenchmarkConfig(str(path), ONE, trials=trials, environment=str(environment), processes=0)


def test_the_released_plan() -> None:
    """Table 1: 6000 trials, one noise seed for all of a run, one task after the other."""
    libero = BenchmarkConfig("libero", ONE, noise_seeds=(195, 196, 197))
    jobs = libero.jobs()
    assert len({job.key for job in jobs}) == len(jobs) == 6000
    assert {job.noise_seed for job in jobs} == {195, 196, 197}
    tasks = [job.state.task for job in jobs]
    changes = sum(before != after for before, after in pairwise(tasks))
    assert changes == 39  # an environment is made once for each task
    assert [job.state.number for job in jobs[:50]] != sorted(job.state.number for job in jobs[:50])
    robocasa = BenchmarkConfig("robocasa", ONE, noise_seeds=(195, 196, 197))
    assert len(robocasa.jobs()) == 3600
    with pytest.raises(ConfigError, match="initial states 0 to 49"):
        replace(libero, trials=51).jobs()
    with pytest.raises(ConfigError, match="did you mean 'libero_goal'"):
        replace(libero, suites=("libero_gaol",)).jobs()


def test_trials_end_at_success_or_at_the_tasks_limit(tmp_path: Path, forward: Forward) -> None:
    config = config_of(tmp_path)
    found = evaluate(config, tmp_path)
    assert {(r.outcome, r.success, r.score, r.steps, r.chunks) for r in found} == {
        ("done", True, 100.0, 6, 1)
    }
    assert {r.condition for r in found} == {"near", "far"}
    assert {query.prompt for query in forward.asked} == {"reach place a", "reach place b"}
    assert {query.seed for query in forward.asked} == {195}
    assert all(r.cpu > 0 and r.wall > 0 and "stand-in 1.0" in r.environment for r in found)
    forward.reach = 0.0
    (tmp_path / TRIALS).unlink()
    found = evaluate(config, tmp_path)
    steps = {(r.task, r.outcome, r.steps, r.chunks) for r in found}
    assert steps == {
        ("near/a", "step_limit", 40, 3),
        ("near/b", "step_limit", 40, 3),
        ("far/a", "step_limit", 60, 4),
    }
    assert {r.seconds for r in found} == {2.0, 3.0}
    assert [query.index for query in forward.asked[-3:]] in ([0, 1, 2], [1, 2, 3])


def test_robocasa_executes_half_a_chunk_beside_a_base_that_rests(
    tmp_path: Path, forward: Forward
) -> None:
    forward.rows, forward.reach = 32, 0.0
    settings = {"padding": [0, 0, 0, 0, -1], "wait_action": [0] * 12, "scenes": [[1, 1]]}
    config = config_of(tmp_path, trials=3, settings=settings, prompts_at_reset=True)
    found = evaluate(replace(config, suites=("near",), tasks=("a",)), tmp_path)
    assert {(r.steps, r.chunks) for r in found} == {(40, 3)}
    prompts = {query.prompt for query in forward.asked}
    assert len(prompts) > 1
    # The dry pass finds the prompts that the trials are asked with.
    listed = list_prompts(replace(config, suites=("near",), tasks=("a",)))
    assert set(listed) == prompts


def test_results_do_not_depend_on_order(tmp_path: Path, forward: Forward) -> None:
    config = replace(config_of(tmp_path, trials=3), suites=("near",))
    orders = []
    for order in (0, 1):
        folder = tmp_path / str(order)
        folder.mkdir()
        forward.asked.clear()
        found = evaluate(replace(config, order_seed=order), folder)
        states = {(q.task, q.prompt, q.observation.state.tobytes()) for q in forward.asked}
        orders.append(([r.key for r in found], states, {(r.key, r.steps) for r in found}))
    assert orders[0][0] != orders[1][0]
    assert orders[0][1:] == orders[1][1:]


def test_what_dies_is_repeated_by_the_same_command_and_counted_both_ways(
    tmp_path: Path, forward: Forward, capsys: pytest.CaptureFixture[str]
) -> None:
    forward.reach = 0.0
    suites = {"all": {"title": "All", "tasks": ["a", "dies"], "limit": 40}}
    path, environment = write_benchmark(tmp_path, suites=suites, published=[])
    written = tmp_path / "evaluation.yaml"
    contender = {"name": "one", "checkpoint": "libero_tiny_random"}
    written.write_text(
        yaml.safe_dump(
            {
                "benchmark": str(path),
                "contenders": [contender],
                "trials": 2,
                "processes": 0,
                "environment": str(environment),
            }
        )
    )
    command = ["evaluate", str(written), "--output", str(tmp_path / "out")]
    assert cosmos.main(command) == 0
    found = read_results(tmp_path / "out" / TRIALS)
    assert sorted((r.task, r.crashed, r.outcome) for r in found) == [
        ("all/a", False, "step_limit"),
        ("all/a", False, "step_limit"),
        ("all/dies", True, "fault"),
        ("all/dies", True, "fault"),
    ]
    assert "no more memory" in next(r.message for r in found if r.crashed)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "2 trials crashed" in table
    assert "All **0.0** (0.0 to 65.8) of 2" not in table
    assert "All **0.0** (0.0 to 49.0) of 4" in table
    # Those that died are made again, and the others are not.
    forward.asked.clear()
    (tmp_path / "out" / TRIALS).write_text("".join(map(to_line, found)))
    assert cosmos.main(command) == 0
    assert {query.task for query in forward.asked} == {"all/dies"}
    assert len(read_results(tmp_path / "out" / TRIALS)) == 6


def test_a_policy_server_that_fails_costs_the_trial(tmp_path: Path, forward: Forward) -> None:
    config = replace(config_of(tmp_path, trials=1), suites=("far",))

    def fail(query: Query) -> Decision:
        raise RemoteError("it fell silent")

    with patch.object(forward, "decide", fail):
        (result,) = evaluate(config, tmp_path)
    assert (result.crashed, result.message) == (True, "it fell silent")


def test_a_policy_server_takes_part(tmp_path: Path) -> None:
    def answer(request: Any) -> dict[str, object]:
        assert request["prompt"] == "reach place a"
        assert request["observation/state"].shape == (8,)
        return {"actions": np.tile([0.4, 0, 0, 0, 0, 0, -1], (10, 1))}

    with PolicyServer(openpi(answer)) as server:
        contender = Contender(
            "server",
            "remote",
            remote=f"openpi://127.0.0.1:{server.port}",
            remote_config="openpi_libero",
        )
        config = replace(config_of(tmp_path, trials=1), contenders=(contender,), suites=("far",))
        (result,) = evaluate(config, tmp_path)
    assert (result.success, result.crashed, result.message) == (True, False, "")
    assert (result.steps, result.chunks) == (14, 3)  # five rows of each, and four


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dims": 14}, r"chunks have shape \(16, 14\), and Stand-in executes rows of 7"),
        ({"rows": 8}, "chunks have 8 rows, and 16 are executed"),
    ],
)
def test_a_checkpoint_of_another_robot_ends_the_evaluation(
    tmp_path: Path, forward: Forward, change: dict[str, int], words: str
) -> None:
    for name, value in change.items():
        setattr(forward, name, value)
    with pytest.raises(ConfigError, match=words):
        evaluate(config_of(tmp_path), tmp_path)


def test_a_chunk_that_is_no_number_is_the_policys_failure(tmp_path: Path, forward: Forward) -> None:
    forward.reach = np.nan
    found = evaluate(config_of(tmp_path, trials=1), tmp_path)
    assert {(r.crashed, r.success, r.outcome) for r in found} == {(False, False, "not_finite")}


def test_cameras_that_show_the_same_end_the_evaluation(tmp_path: Path, forward: Forward) -> None:
    suites = {"all": {"title": "All", "tasks": ["black"], "limit": 40}}
    with pytest.raises(BenchmarkError, match="show the same picture"):
        evaluate(config_of(tmp_path, suites=suites, published=[]), tmp_path)
    assert not read_results(tmp_path / TRIALS)


def result(suite: str, task: str, trial: int, success: bool, seed: int = 195) -> Result:
    return Result(
        contender="one", task=f"{suite}/{task}", condition=suite, state=trial, noise_seed=seed,
        outcome="done", message="", crashed=False, score=100.0 * success, success=success,
        chunks=1, refused=0, seconds=1.0, thinking=0.5, steps=20, wall=30.0, cpu=20.0,
        environment="mujoco 3.3.2; anchor met to the last bit",
    )  # fmt: skip


def test_the_table_is_the_papers(tmp_path: Path) -> None:
    from cosmos_policy_ros.cli.evaluate import report

    config = BenchmarkConfig("libero", ONE, trials=2)
    results = [
        result(suite, str(task), trial, success=suite == "libero_object" or trial == 0)
        for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10")
        for task in range(10)
        for trial in range(2)
    ]
    lines = report(config, results)
    assert "| Cosmos Policy (paper) | 98.1 | 100.0 | 98.2 | 97.6 | 98.5 |" in lines
    assert "| UVA (paper) | — | — | — | 90.0 | — |" in lines
    (ours,) = [line for line in lines if line.startswith("| **one** |")]
    assert "**100.0** (83.9 to 100.0) of 20" in ours
    assert "**50.0** (29.9 to 70.1) of 20" in ours
    assert "**62.5** (51.5 to 72.3) of 80" in ours  # the mean of four suites
    assert "- environment: mujoco 3.3.2; anchor met to the last bit" in lines
    assert any("an episode took 30.0 s, 20.0 s of processor time" in line for line in lines)
    assert "No trial crashed." in lines
    assert "- one: libero_tiny_random, direct" in lines
    # A suite that was left out leaves no average.
    (ours,) = [
        line
        for line in report(replace(config, suites=("libero_10",)), results[-20:])
        if line.startswith("| **one** |")
    ]
    assert ours.endswith("| — |")


def test_the_mean_of_tasks_weighs_each_task_the_same() -> None:
    from cosmos_policy_ros.cli.evaluate import report

    config = BenchmarkConfig("robocasa", ONE, trials=2)
    results = [result("robocasa", "OpenDrawer", trial, True) for trial in range(2)]
    results.append(result("robocasa", "CloseDrawer", 0, False))
    lines = report(config, results)
    (ours,) = [line for line in lines if line.startswith("| **one** |")]
    assert "**50.0**" in ours
    assert "| Cosmos Policy (paper) | 50 | 67.1 |" in lines


def test_processes_make_the_same_trials_and_a_search_takes_part(tmp_path: Path) -> None:
    """With the real, random network of LIBERO's layout, in two processes and in one."""
    search = tmp_path / "search.yaml"
    search.write_text("{candidates: 2, futures: 1, future_steps: 1, values: 1, value_steps: 1}")
    direct = Contender("direct", checkpoint=str(checkpoint(tmp_path)))
    contenders = (direct, replace(direct, name="search", planning=str(search)))
    config = replace(config_of(tmp_path, trials=1), suites=("near",), tasks=("a",))
    config = replace(config, contenders=contenders)
    both = []
    with forked_evaluations():
        for processes in (0, 2):
            folder = tmp_path / str(processes)
            folder.mkdir()
            found = evaluate(replace(config, processes=processes), folder)
            both.append(sorted((r.key, r.steps, r.outcome, r.crashed) for r in found))
    assert both[0] == both[1]
    assert [each[1:] for each in both[0]] == [(40, "step_limit", False)] * 2


def checkpoint(folder: Path) -> Path:
    """Return the random checkpoint, which knows the stand-in's prompts as well."""
    import shutil

    import torch

    from cosmos_policy_ros.core.paths import config_folder
    from cosmos_policy_ros.model import files
    from cosmos_policy_ros.model.text import save_text

    made = folder / "checkpoint"
    shutil.copytree(config_folder("models") / "libero_tiny_random", made)
    save_text(made / files.TEXT, {"reach place a": torch.ones(2, 64)})
    return made


def test_nothing_of_the_simulated_rig_is_asked_for() -> None:
    with pytest.raises(ValueError, match="engine demonstrator and charge_latency"):
        BenchmarkConfig("libero", (Contender("a", engine="demonstrator"),))
    with pytest.raises(ValueError, match="prompt x is for the simulated rig"):
        BenchmarkConfig("libero", (Contender("a", checkpoint="b", prompt="x"),))
    room = BenchmarkConfig("libero", ONE, environment="/nowhere")
    with pytest.raises(BenchmarkError, match="setup_benchmark"):
        room.room(Path(), nullcontext(), "")
