"""Evaluations: paired, shuffled, resumable, and what they refuse."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers.forked import forked_evaluations
from helpers.policy_servers import PolicyServer, openpi, swing
from helpers.waiting import family, is_running, wait_for

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.evaluation.contenders import Contender
from cosmos_policy_ros.evaluation.evaluate import TRIALS, evaluate
from cosmos_policy_ros.evaluation.results import read_results, to_line
from cosmos_policy_ros.evaluation.sim_room import ROLLOUTS, EvaluationConfig

TASK = "either_cube"
DEMONSTRATOR = Contender("demonstrator", engine="demonstrator")


def main(arguments: list[str]) -> int:
    return cosmos.main(["evaluate", *arguments])


def write(folder: Path, **changes: object) -> Path:
    path = folder / "evaluation.yaml"
    content = {
        "task": TASK,
        "contenders": [{"name": "demonstrator", "engine": "demonstrator"}],
        "trials": 2,
        "processes": 0,
    }
    path.write_text(yaml.safe_dump(content | changes))
    return path


def test_contenders_meet_the_same_scenes_with_the_same_noise_in_shuffled_order() -> None:
    two = (DEMONSTRATOR, Contender("other", engine="demonstrator"))
    config = EvaluationConfig(TASK, two, ("usual", "colours"), trials=20)
    jobs = config.jobs()
    assert len({job.key for job in jobs}) == len(jobs) == 80
    faced = [
        sorted((*j.key[1:], j.noise_seed) for j in jobs if j.contender == contender.name)
        for contender in two
    ]
    assert faced[0] == faced[1]
    assert len({job.noise_seed for job in jobs}) == 20
    first_half = Counter(job.contender for job in jobs[:40])
    assert min(first_half.values()) > 10
    assert config.jobs() == jobs


def test_a_prompt_that_the_task_does_not_have_is_refused_before_any_trial(tmp_path: Path) -> None:
    config = EvaluationConfig(TASK, (replace(DEMONSTRATOR, prompt="hand over the red cub"),))
    with pytest.raises(ConfigError, match="did you mean 'hand over the red cube'"):
        config.jobs()


def test_a_cube_that_the_prompt_does_not_name_is_no_success(tmp_path: Path) -> None:
    """The replay knows no prompt: it repeats what was shown for the other one."""
    demonstrator = {"engine": "demonstrator"}
    shown = {"name": "shown", "prompt": "hand over the red cube", **demonstrator}
    arguments = ["--output", str(tmp_path / "shown")]
    assert main([str(write(tmp_path, contenders=[shown], trials=1, keep="all")), *arguments]) == 0
    (made,) = read_results(tmp_path / "shown" / TRIALS)
    assert (made.success, made.success_with_any) == (True, True)
    assert read_episode(Path(made.episode)).metadata.prompt == "hand over the red cube"
    replay = {"engine": "replay", "checkpoint": str(tmp_path / "shown" / ROLLOUTS)}
    asked = {"name": "replay", "prompt": "hand over the blue cube", **replay}
    arguments = ["--output", str(tmp_path / "asked")]
    assert main([str(write(tmp_path, contenders=[asked], trials=1, chunks=7)), *arguments]) == 0
    (made,) = read_results(tmp_path / "asked" / TRIALS)
    assert (made.success, made.success_with_any) == (False, True)
    table = (tmp_path / "asked" / "table.md").read_text()
    assert "with any object in 1 of 1, with the one that the prompt names in 0" in table


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    """No contender here looks at the images."""
    with forked_evaluations():
        yield


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials, made in two processes that number their episodes in one folder."""
    folder = tmp_path_factory.mktemp("evaluated")
    arguments = [str(write(folder, keep="all")), "--output", str(folder), "--set", "processes=2"]
    assert main(arguments) == 0
    return folder


def test_a_disk_that_is_full_when_it_goes_on_takes_no_finished_trial(
    evaluated: Path,
    tmp_path: Path,
    disk_of: Callable[[int], AbstractContextManager[None]],
) -> None:
    """The finished trials were written anew in place: a full disk or a kill left none of them."""
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(evaluated / TRIALS, folder / TRIALS)
    before = (folder / TRIALS).read_bytes()
    config = EvaluationConfig(TASK, (DEMONSTRATOR,), trials=2, processes=0)
    with disk_of(len(before) // 2), pytest.raises(OSError):
        evaluate(config, folder)
    assert (folder / TRIALS).read_bytes() == before
    assert not list(folder.glob(".*"))


def test_a_killed_evaluation_goes_on_and_its_bags_are_scored(
    evaluated: Path, tmp_path: Path
) -> None:
    results = read_results(evaluated / TRIALS)
    assert sorted(r.state for r in results) == [100_000, 100_001]
    for each in results:
        episode = read_episode(Path(each.episode))
        assert episode.score is not None
        assert episode.score.points == each.score
    assert len(list((evaluated / ROLLOUTS / "demonstrator").iterdir())) == 2
    assert "| demonstrator | **100.0**" in (evaluated / "table.md").read_text()
    # As if it had been killed while it wrote its second line; it goes on in this process.
    output = tmp_path / "out"
    shutil.copytree(evaluated, output)
    (output / TRIALS).write_text(to_line(results[0]) + to_line(results[1])[:30])
    assert main([str(write(tmp_path, keep="all")), "--output", str(output)]) == 0
    again = read_results(output / TRIALS)
    assert again[0] == results[0]
    assert [(r.key, r.score, r.seconds) for r in again] == [
        (r.key, r.score, r.seconds) for r in results
    ]


def test_a_killed_evaluation_leaves_no_process_behind(tmp_path: Path) -> None:
    """Its processes waited for ever for the next trial."""
    command = [sys.executable, "-m", "cosmos_policy_ros.cli.cosmos", "evaluate", "demonstrations"]
    command += ["--output", str(tmp_path), "--set", "processes=1"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: read_results(tmp_path / TRIALS), "the first trial", 200.0)  # loads a simulator
    started = family(running.pid)
    assert len(started) > 2  # one that makes trials, and multiprocessing's own
    running.kill()
    running.wait()
    wait_for(lambda: not any(map(is_running, started)), "its processes to end")


def test_the_floor_replays_other_scenes(evaluated: Path, tmp_path: Path) -> None:
    floor = Contender("floor", engine="replay", checkpoint=str(evaluated / ROLLOUTS))
    found = evaluate(
        EvaluationConfig(TASK, (floor,), trials=1, first_seed=7, processes=0), tmp_path
    )
    assert [(r.crashed, r.success) for r in found] == [(False, False)]


def test_demonstrations_are_those_that_succeed(tmp_path: Path) -> None:
    contenders = [
        {"name": "good", "engine": "demonstrator"},
        {"name": "sloppy", "engine": "demonstrator", "jitter": 30.0},  # it misses
    ]
    path = write(tmp_path, contenders=contenders, keep="successes")
    assert main([str(path), "--output", str(tmp_path / "out"), "--set", "trials=1"]) == 0
    (good,) = (tmp_path / "out" / ROLLOUTS / "good").iterdir()
    (sloppy,) = (tmp_path / "out" / ROLLOUTS / "sloppy").iterdir()
    assert read_episode(good).outcome == "done"
    assert sloppy.name.endswith(".discarded")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "either_cub"}, "did you mean 'either_cube'?"),
        ({"conditions": ["coulours"]}, "did you mean 'colours'?"),
        ({"trials": 0}, "trials: 0 must be at least 1"),
        ({"contenders": [{"name": "a"}]}, "contender 'a': engine cosmos needs a checkpoint"),
        ({"contenders": [{"name": "a", "checkpoint": "/nowhere"}]}, "/nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], words: str
) -> None:
    assert main([str(write(tmp_path, **changes)), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_servers_chunks_are_executed_as_they_are_and_its_latency_may_be_charged(
    tmp_path: Path,
) -> None:
    """Its 25 rows at 50 Hz were refused, since the rig takes 50 at 25 Hz."""
    with PolicyServer(openpi(swing)) as server:
        remote = f"openpi://127.0.0.1:{server.port}"
        free = Contender("free", "remote", remote=remote)
        config = EvaluationConfig(
            TASK, (free, replace(free, name="charged", charge_latency=True)), trials=1, processes=0
        )
        found = {result.contender: result for result in evaluate(config, tmp_path)}
    for result in found.values():
        assert (result.outcome, result.refused) == ("time_limit", 0)
        assert result.chunks == 40  # of half a second, in the task's 20 s
    assert found["charged"].seconds > found["free"].seconds


def test_a_protocol_for_a_rig_is_sent_to_its_own_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["aloha_paper", "--output", str(tmp_path)]) == 1
    assert "give it to 'cosmos trials'" in capsys.readouterr().err
    assert cosmos.main(["trials", "tiny", "--output", str(tmp_path)]) == 1
    assert "'cosmos evaluate' may take it" in capsys.readouterr().err


def test_another_evaluation_in_the_same_folder_is_refused(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, keep="all", noise_seed=5)
    assert main([str(path), "--output", str(evaluated)]) == 1
    assert "holds an evaluation with noise_seed 1, this one has 5" in capsys.readouterr().err
