"""A long job goes on where it was, and a command that fails ends it with advice."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmos_policy_ros.cli.stages import Stages
from cosmos_policy_ros.core.errors import ConfigError

EXPECTED = {"one": 1.0, "two": 2.0, "three": 3.0}


def test_what_is_done_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[str] = []

    def stages(fails: str = "") -> dict[str, object]:
        def make(name: str) -> None:
            if name == fails:
                raise ConfigError("the disk is full")
            made.append(name)

        return {name: lambda name=name: make(name) for name in EXPECTED}

    with pytest.raises(ConfigError):
        Stages(tmp_path, {"seed": 0}).run(stages("two"), EXPECTED)  # type: ignore[arg-type]
    assert made == ["one"]
    assert "1/3 one; about 6 minutes are left" in capsys.readouterr().out
    again = Stages(tmp_path, {"seed": 0})
    again.run(stages(), EXPECTED)  # type: ignore[arg-type]
    assert made == ["one", "two", "three"]
    assert set(again.minutes) == set(EXPECTED)
    said = capsys.readouterr().out
    assert "1/3 one: done before" in said
    assert "2/3 two; about 5 minutes are left" in said
    with pytest.raises(ConfigError, match="holds a run with seed 0, not 1"):
        Stages(tmp_path, {"seed": 1})


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    stages = Stages(tmp_path, {})
    with pytest.raises(ConfigError, match=r"'cosmos train tiny_bass' ended with exit code 1"):
        stages.command("train", "tiny_bass", "policy")


def test_a_training_that_ended_early_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C lets it finish its step and save: its exit code says that all went well."""
    (tmp_path / "policy").mkdir()
    stages, done = Stages(tmp_path, {}), tmp_path / "policy/provenance.json"
    monkeypatch.setattr(stages, "command", lambda *_: None)
    done.write_text('{"steps": 3, "planned_steps": 4}')
    with pytest.raises(KeyboardInterrupt):
        stages.train("tiny_base", "policy", [])
    done.write_text('{"steps": 4, "planned_steps": 4}')
    stages.train("tiny_base", "policy", [])
