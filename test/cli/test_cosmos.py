"""Pins that every subcommand exists, says what it takes, and is completed by a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_policy_ros.cli import cosmos

PROGRAM = Path(__file__).parents[2] / "scripts/cosmos"


@pytest.mark.parametrize("name", cosmos.HELP)
def test_every_subcommand_tells_what_it_takes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cosmos.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: cosmos {name} " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_map_names_every_subcommand(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cosmos.main(arguments)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in cosmos.HELP)


def test_a_wrong_subcommand_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cosmos.main(["trian"])
    assert ended.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


def test_without_ros_a_command_that_needs_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError("No module named 'rclpy'", name="rclpy")

    monkeypatch.setattr(cosmos, "import_module", missing)
    assert cosmos.main(["run"]) == 1
    assert "'cosmos run' needs ROS 2 (rclpy is not found)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--deadline", "x", "deadline:=x must be a number"),
        ("--denoising-steps", "0", "denoising_steps 0 must be from 1 to 1000"),
        ("--execution", "asynchron", "'asynchron' is not one; did you mean 'asynchronous'"),
        (
            "--protocol",
            "rehearsal",
            "add --by-hand, or rehearse without a person by `cosmos trials",
        ),
    ],
)
def test_a_wrong_option_of_the_graph_is_one_line_before_anything_starts(
    option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cosmos.main(["run", option, value]) == 1
    told = capsys.readouterr()
    assert words in told.err and len(told.err.splitlines()) == 1
    assert "starting" not in told.out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cosmos tr", {"train", "train-autoencoder", "trials"}),
        ("cosmos train --re", {"--resume"}),
        ("cosmos episodes ver", {"verify"}),
    ],
)
def test_a_shell_completes_commands_and_options(
    line: str, expected: set[str], tmp_path: Path
) -> None:
    answer = tmp_path / "answer"
    subprocess.run(
        [sys.executable, PROGRAM],
        env={
            **os.environ,
            "PYTHONPATH": str(PROGRAM.parents[1]),
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "COMP_TYPE": "9",
        },
        check=True,
    )
    assert set(answer.read_text().replace("\013", " ").split()) == expected
