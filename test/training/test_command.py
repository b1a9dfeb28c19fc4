"""The command line: single keys, wrong keys, dry runs, and output folders that are not for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.cli.train import read_config
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.store import EpisodeStore

from .conftest import record_wave, settings, wave

SHIPPED = sorted(path.stem for path in config_folder("training").glob("*.yaml"))


def main(arguments: list[str]) -> int:
    return cosmos.main(["train", *arguments])


@pytest.fixture
def file(tmp_path: Path, episodes: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings(episodes)))
    return path


def test_shipped_configurations_are_valid() -> None:
    assert SHIPPED == [
        "aloha_base",
        "aloha_planning",
        "libero_base",
        "libero_small",
        "tiny_base",
        "tiny_corrections",
        "tiny_planning",
    ]
    for name in SHIPPED:
        read_config(name)


def test_the_mixtures_are_the_papers() -> None:
    base, planning = (read_config(name) for name in ("aloha_base", "aloha_planning"))
    for config, shares, value in (
        (base, (0.5, 0.25, 0.25), "value_sas"),
        (planning, (0.1, 0.45, 0.45), "value_s"),
    ):
        mixture = config.mixture
        assert (mixture.policy, mixture.world_model, mixture.value) == shares
        assert config.objective.value == value
        assert config.run.batch == 200
    assert base.mixture.demonstrations_as_rollouts
    assert not planning.mixture.demonstrations_as_rollouts
    assert (base.optimiser.warmup_steps, base.optimiser.decay_steps) == (2000, 20_000)
    assert (planning.optimiser.warmup_steps, planning.optimiser.decay_steps) == (1500, 15_000)


def test_single_keys_can_be_changed(file: Path) -> None:
    changes = ["run.steps=7", "optimiser.learning_rate=2e-4", "lora.rank=3", "data.rollouts=[]"]
    config = read_config(str(file), changes)
    assert config.run.steps == 7
    assert config.optimiser.learning_rate == 2e-4
    assert config.lora is not None
    assert config.lora.rank == 3
    assert config.data.rollouts == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.stepps=7", "unknown key 'stepps'; did you mean 'steps'"),
        ("mixtur.policy=1", "unknown key 'mixtur'; did you mean 'mixture'"),
        ("run.steps", "expected KEY=VALUE"),
        ("run.steps.more=1", "'steps' is no section"),
        ("run.steps=many", "steps: expected int, found str"),
        ("run.steps=0", "steps: 0 must be at least 1"),
        ("data.held_out=1", "held_out: 1.0 must be"),
        ("mixture.policy=-1", "must be shares of a batch"),
        ("objective.value=v", "'v' is not a choice"),
        ("data.augmentation=strong", ""),
    ],
)
def test_wrong_keys_and_values_are_named(file: Path, change: str, message: str) -> None:
    if not message:
        with pytest.raises(ConfigError, match="latent_cache_gb: images with 'strong'"):
            read_config(str(file), [change, "data.latent_cache_gb=1"])
        return
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        read_config(str(file), [change])


def test_a_dry_run_counts_and_estimates_and_writes_nothing(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    assert main([str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    for words in (
        "demonstrations      2 episodes       120 windows",
        "failures            2 episodes       120 windows",
        "held out            1 episodes        60 windows",
        "policy 50%, world_model 25%, value 25%",
        "million parameters",
        "memory per process",
        "the run takes",
    ):
        assert words in said
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_odd_about_the_data_is_said_before_a_training(
    tmp_path: Path, types: Typestore, episodes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An arm at rest was trained on without a word."""
    store = EpisodeStore(tmp_path / "demonstrations", types)
    for phase in range(2):
        actions = wave(60, phase)
        actions[:, 7:] = 0.4
        states = actions + np.arange(60)[:, None] % 2 * np.r_[np.zeros(7), np.full(7, 0.0015)]
        record_wave(store, types, phase, positions=actions, states=states)
    data = {"demonstrations": [str(store.root)], "rollouts": []}
    mixture = {"policy": 1.0, "world_model": 0.0, "value": 0.0}
    file = tmp_path / "mine.yaml"
    for statistics, widened in (("demonstrations", True), ("checkpoint", False)):
        start = {"statistics": statistics}
        content = settings(episodes, data=data, mixture=mixture, start=start)
        file.write_text(yaml.safe_dump(content))
        assert main([str(file), "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "warning: in all episodes together hardly moved" in said
        assert "the right arm (at most 2)" in said
        assert ("warning: ranges widened" in said) == widened


def complaint(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main([str(a) for a in arguments]) == 1
    return capsys.readouterr().err


def test_errors_are_a_line_and_no_traceback(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "did you mean 'tiny_base'" in complaint(capsys, "tiny_bass", "--dry-run")
    empty = tmp_path / "empty"
    empty.mkdir()
    change = f"data={{demonstrations: ['{empty}']}}"
    assert "no episode in there" in complaint(capsys, file, "--dry-run", "--set", change)
    output = tmp_path / "taken"
    output.mkdir()
    (output / "thesis.tex").write_text("\\end{document}")
    assert "is no run of this program" in complaint(capsys, file, "--output", output)
    assert [path.name for path in output.iterdir()] == ["thesis.tex"]


def test_a_run_is_gone_on_with_only_when_told_and_only_the_same(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    quick = ["--set", "run.validation_windows=0", "--output", output]
    assert main([str(a) for a in (file, "--set", "run.steps=1", *quick)]) == 0
    capsys.readouterr()
    assert "--resume goes on with it" in complaint(capsys, file, *quick)
    other = complaint(capsys, file, "--resume", "--set", "run.seed=5", *quick)
    assert "was another one: run.seed was 0, is 5" in other
    assert main([str(a) for a in (file, "--resume", "--set", "run.steps=2", *quick)]) == 0
    assert "resumed after step 1" in capsys.readouterr().out
