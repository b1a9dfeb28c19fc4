"""A long experiment goes on where it was: after a failure, a Ctrl-C and a training cut short.

The commands of the stages are a stub here that writes down how it was called.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.waiting import wait_for

from cosmos_policy_ros.cli import cosmos, experiments
from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.inference.spec import SearchConfig

STUB = """#!/usr/bin/env bash
echo "$*" >>calls
if [ -e ../fails ] && [ "$1" = "$(cat ../fails)" ]; then exit 3; fi
if [ -e ../hangs ] && [ "$1" = "$(cat ../hangs)" ]; then : >hanging; sleep 60; fi
case $1 in
  train) mkdir -p "$4/training" ;;
  round) mkdir -p "$3"; echo "# $3" >"$3/README.md" ;;
  evaluate) mkdir -p "$4"; echo "the table" >"$4/table.md" ;;
  held-out) echo "the errors" ;;
  report) echo "the report" >"${@: -1}.md" ;;
esac
"""
STAGES = ["demonstrations", "autoencoder", "policy", "checkpoint", "evaluation", "card"]


@pytest.fixture(autouse=True)
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "stub"
    path.write_text(STUB)
    path.chmod(0o755)
    monkeypatch.setattr(experiments, "PROGRAM", str(path))
    return str(path)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out of $HOME"


def calls(output: Path) -> list[str]:
    """Return the subcommands since the last question."""
    lines = (output / "calls").read_text().splitlines()
    (output / "calls").write_text("")
    return lines


def test_what_is_done_is_passed_over(output: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["reproduce-tiny", "--output", str(output), "--seed", "3"]
    (output.parent / "fails").write_text("held-out")  # as after a training that was cut short
    assert cosmos.main(arguments) == 1
    said = capfd.readouterr()
    assert "demonstrations: about 30 minutes" in said.out
    assert f"error: {output}: a stage failed; fix what it says, and the same command" in said.err
    assert [call.split()[0] for call in calls(output)] == [
        "evaluate",
        "train-autoencoder",
        "train",
        "held-out",
    ]
    assert {path.name for path in (output / "done").iterdir()} == set(STAGES[:2])

    (output.parent / "fails").unlink()
    assert cosmos.main(arguments) == 0
    train, *others = calls(output)
    assert train.startswith("train tiny_base --output policy --processes ")
    assert train.split()[6:] == ["--resume", "--set", "run.seed=3"]
    assert others == [
        "held-out policy",
        "round policy tiny --task either_cube",
        f"evaluate tiny --output evaluation --checkpoint {output}/tiny",
    ]
    assert {path.name for path in (output / "done").iterdir()} == set(STAGES)
    card = (output / "tiny/README.md").read_text()
    assert card.startswith("# tiny\n\n## How it was made\n\n`cosmos reproduce-tiny --seed 3`, on ")
    assert (
        "since it went on): demonstrations 0.0, autoencoder 0.0, policy 0.0, checkpoint 0.0, "
        in card
    )
    assert card.endswith("\n\n## Closed loop\n\nthe table\n")

    assert cosmos.main(arguments) == 0
    assert calls(output) == []
    assert cosmos.main([*arguments[:-1], "4"]) == 1
    assert "holds a run with seed 3, not 4; give another --output" in capfd.readouterr().err


def test_a_ctrl_c_leaves_no_half_made_stage(output: Path, stub: str) -> None:
    (output.parent / "hangs").write_text("train")
    program = (
        "from cosmos_policy_ros.cli import cosmos, experiments\n"
        f"experiments.PROGRAM = {stub!r}\n"
        f"raise SystemExit(cosmos.main(['reproduce-tiny', '--output', {str(output)!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has them, and theirs, ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for((output / "hanging").exists, "the training")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: the same command goes on where it was" in said
    assert "Traceback" not in said
    assert {path.name for path in (output / "done").iterdir()} == set(STAGES[:2])


def test_ablations_need_a_reproduction(
    output: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "a reproduction"
    arguments = ["ablate", "--output", str(output), "--reproduced", str(made), "--steps", "7"]
    assert cosmos.main(arguments) == 1
    assert "autoencoder: is missing; run reproduce-tiny first" in capfd.readouterr().err
    for name in ("autoencoder", "demonstrations"):
        (made / name).mkdir(parents=True)
    assert cosmos.main(arguments) == 0
    assert capfd.readouterr().out.endswith("the errors\n\nthe table\n")
    trainings = [call for call in calls(output) if call.startswith("train ")]
    assert [call.split()[3] for call in trainings] == [
        "full",
        "without_auxiliary_targets",
        "without_value_samples",
        "policy_samples_only",
    ]
    rollouts = f"[{made}/demonstrations/rollouts/red, {made}/demonstrations/rollouts/blue]"
    assert f"--set data.demonstrations={rollouts} --set run.seed=0" in trainings[0]
    assert f"--set start.checkpoint={made}/autoencoder" in trainings[0]
    assert trainings[3].endswith(
        "--set run.steps=7 --set optimiser.decay_steps=7 --set mixture.value=0 "
        "--set mixture.world_model=0"
    )


def test_improving_makes_the_demonstrations_that_it_is_not_given(
    output: Path, tmp_path: Path
) -> None:
    arguments = ["improve", "--output", str(output), "--rollouts", "20", "--trials", "9"]
    assert cosmos.main(arguments) == 0
    made = calls(output)
    assert made[0] == "evaluate demonstrations --output demonstrations --set trials=30"
    assert "round world_model planner --task either_cube" in made
    assert made[-1].startswith("report comparison --policy ")
    assert "--world-model planner " in made[-1]
    card = (output / "planner" / "README.md").read_text()
    assert card == "# planner\n\n## In closed loop\n\nthe table\n"
    assert any("first_seed=300000 --set trials=4" in call for call in made)
    assert any(call.startswith("evaluate planning") and "trials=9" in call for call in made)
    other = tmp_path / "other"
    assert cosmos.main(["improve", "--output", str(other), "--demonstrations", "/a b", "/c"]) == 0
    made = calls(other)
    assert not any(call.startswith("evaluate demonstrations") for call in made)
    assert any('data.demonstrations=["/a b", "/c"]' in call for call in made)


def test_planners_learn_from_as_many_rollouts_as_they_are_named_for(
    output: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    improved = tmp_path / "an improvement"
    arguments = ["compare-planners", "--improved", str(improved), "--output", str(output)]
    assert cosmos.main(arguments) == 1
    assert "settings.json: is missing; run improve first" in capfd.readouterr().err
    assert cosmos.main(["improve", "--output", str(improved)]) == 0
    bags = improved / "rollouts" / "rollouts" / "direct"
    for number in range(120):
        (bags / f"{number:03}").mkdir(parents=True)
    assert cosmos.main([*arguments, "--steps", "5"]) == 0
    assert capfd.readouterr().out.endswith("the table\n")
    made = [call for call in calls(output) if call.startswith("train ")]
    learned = {call.split()[3]: call for call in made}
    assert len(learned) == len(made) == 6
    demonstrations = [f"{improved}/demonstrations/rollouts/{name}" for name in ("red", "blue")]
    for name, call in learned.items():
        assert f"data.demonstrations={json.dumps(demonstrations)} " in call
        assert f"data.rollouts=[data/{name}] --set run.steps=5 " in call
        count = next((int(word) for word in name.split("_") if word.isdigit()), 120)
        found = sorted(path.name for path in (output / "data" / name).iterdir())
        assert found == [f"{number:03}" for number in range(count)]
    assert learned["value_q"].endswith("--set objective.value=value_q")
    for value in ("value_q", "value_sas"):
        search = load_config(SearchConfig, output / f"{value}.yaml")
        quick = load_config(SearchConfig, config_folder("planning") / "best_of_8_quick.yaml")
        assert search == replace(quick, value=value)  # type: ignore[arg-type]
    assert (output / "all_rollouts").resolve() == improved / "planner"


def test_without_make_it_says_so(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(output))
    assert cosmos.main(["reproduce-tiny", "--output", str(output)]) == 1
    assert "'make' is not found; install it: sudo apt-get install make" in capsys.readouterr().err


def test_a_training_that_ended_early_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C lets it finish its step and save: its exit code says that all went well."""
    told = {"steps": 3, "planned_steps": 4, "samples": 24, "held_out": {"action_l1": 0.25}}
    for name, steps in (("full", 4), ("cut_short", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "provenance.json").write_text(json.dumps({**told, "steps": steps}))
    assert cosmos.main(["held-out", str(tmp_path / "full")]) == 0
    assert capsys.readouterr().out.endswith("| full | 24 | 0.2500 |\n")
    assert cosmos.main(["held-out", str(tmp_path / "cut_short")]) == 1
    assert "ended after 3 of 4 steps; train --resume goes on" in capsys.readouterr().err
