"""Bags to learn from, a configuration for a network of a minute, and a start that has weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from helpers.episodes import MS, START_NS, Writing, noise
from rosbags.typesys.store import Typestore
from safetensors.torch import save_file

from cosmos_policy_ros.core.config import from_mapping
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.model.statistics import measure, write_statistics
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.training.config import TrainingConfig
from cosmos_policy_ros.training.loss import frame_errors

TINY = config_folder("models") / "tiny_random"
START = "start"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads of one product that wait for each other on a busy machine take minutes."""
    torch.set_num_threads(1)


def wave(rows: int, phase: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return (rows, 14) actions that never rest."""
    at = np.arange(rows)[:, None] / 25 + np.arange(14) / 5 + phase
    return np.sin(at) / 4 + 0.5


def record_wave(
    store: EpisodeStore,
    types: Typestore,
    phase: float,
    score: float | None = None,
    rows: int = 60,
    positions: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    states: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    image_size: tuple[int, int] = (8, 8),
    taken_over: int | None = None,
    **of_metadata: Any,
) -> Path:
    """Record 2.8 s in which the arms follow ``rows`` rows of a wave, or go through ``states``."""
    writing = Writing(store, types, **of_metadata)
    actions = wave(rows, phase) if positions is None else positions
    speeds, begun = np.full(14, 9.0), START_NS + 200 * MS
    sent = actions[:taken_over]
    if len(sent):
        writing.trajectory(TimedChunk("run/0", begun, 0.04, actions[0], sent, speeds))
    led = [] if taken_over is None else np.repeat(actions[taken_over:], 2, axis=0)
    path = actions if states is None else states

    def pose(at: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        return path[np.clip((at - 340) // 40, 0, len(path) - 1)]

    def image(role: str, at: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.resize(noise(role, at), (*image_size, 3))

    for at in range(0, 2800, 10):
        writing.follow_once(at, pose(at), image)
        index, late = divmod(at - 200 - 40 * (taken_over or 0), 20)  # two targets a row
        if not late and 0 <= index < len(led):
            name, at_ns, target = f"teleoperation/{index}", START_NS + at * MS, led[index]
            writing.trajectory(TimedChunk(name, at_ns, 0.04, target, target[None], speeds))
    folder = writing.recording.finish("stopped")
    if score is not None:
        operator_score = OperatorScore(score, success=score == 100)
        store.score(operator_score, episode=folder.name)
    return folder


def same_day() -> AbstractContextManager[Any]:
    """Give episodes the same ids in every run: they decide which ones are held out."""
    now = SimpleNamespace(now=lambda: datetime(2026, 1, 1))
    return patch("cosmos_policy_ros.episodes.store.datetime", now)


def make_start(folder: Path) -> None:
    """Make what trainings begin with: ``TINY``, half as deep and as narrow as its layers allow."""
    folder.mkdir()
    for name in files.REQUIRED:
        (folder / name).write_bytes((TINY / name).read_bytes())
    config = yaml.safe_load((folder / files.CONFIG).read_text())
    config["transformer"] |= {"layers": 2, "heads": 2}
    config["vae"]["base_width"] = 4
    (folder / files.CONFIG).write_text(yaml.safe_dump(config))


@pytest.fixture(scope="session")
def episodes(tmp_path_factory: pytest.TempPathFactory, types: Typestore) -> Path:
    """A folder with demonstrations and one with rollouts, three of each, and one of the start."""
    root = tmp_path_factory.mktemp("episodes")
    make_start(root / START)
    with same_day():
        demonstrations = EpisodeStore(root / "demonstrations", types)
        for phase in range(3):
            record_wave(demonstrations, types, phase)
        rollouts = EpisodeStore(root / "rollouts", types)
        for phase, score in ((3, 100.0), (4, 0.0), (5, 40.0)):
            record_wave(rollouts, types, phase, score)
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that has weights: it has learned what a success is worth, and an action."""
    folder = tmp_path_factory.mktemp("checkpoints") / "trained"
    make_start(folder)
    checkpoint = load_checkpoint(folder)
    extremes = np.stack([np.full(14, -1.0), np.full(14, 1.0)])
    write_statistics(folder / files.STATISTICS, measure(extremes, extremes))
    learn_success(checkpoint)
    save_file(checkpoint.transformer.state_dict(), folder / files.TRANSFORMER)
    save_file(checkpoint.tokenizer.vae.state_dict(), folder / files.VAE)
    return folder


def learn_success(checkpoint: Checkpoint, others: float = 0.0) -> None:
    """Teach a network that values are 0.9, actions 0.5 and all else ``others``; some seconds."""
    network = checkpoint.transformer.requires_grad_(True)
    with torch.no_grad():
        network.final_layer.linear.weight.mul_(0.01)
    layout = checkpoint.layout
    clean = torch.full((4, 16, layout.count, *checkpoint.config.frame_shape[1:]), others)
    clean[:, :, layout.index("value")] = 0.9
    clean[:, :, layout.index("action")] = others or 0.5
    known = torch.tensor([layout.mask("policy")] * 4)
    text = torch.zeros(4, checkpoint.config.text_tokens, checkpoint.config.transformer.text_width)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(60):
        sigma = torch.rand(4, generator=draw) * 80 + 4
        noise = torch.randn(clean.shape, generator=draw)
        losses, _ = frame_errors(
            network, checkpoint.config.preconditioning, clean, known, text, sigma, noise
        )
        optimiser.zero_grad()
        torch.autograd.backward(losses.mean())
        optimiser.step()
    network.requires_grad_(False)


@pytest.fixture
def config(episodes: Path) -> Callable[..., TrainingConfig]:
    """Return a configuration; keyword arguments replace keys of its sections."""

    def make(**sections: dict[str, Any] | None) -> TrainingConfig:
        return from_mapping(TrainingConfig, settings(episodes, **sections), "test")

    return make


def settings(episodes: Path, **sections: dict[str, Any] | None) -> dict[str, Any]:
    """Return the content of a configuration file."""
    content: dict[str, Any] = {
        "start": {
            "checkpoint": str(episodes / START),
            "scratch": True,
            "statistics": "demonstrations",
        },
        "data": {
            "demonstrations": [str(episodes / "demonstrations")],
            "rollouts": [str(episodes / "rollouts")],
            "held_out": 0.3,
            "augmentation": "none",
            "workers": 0,
        },
        "run": {
            "steps": 3,
            "batch": 4,
            "micro_batch": 4,
            "precision": "float32",
            "activation_checkpointing": False,
            "device": "cpu",
            "save_every": 2,
            "validation_windows": 0,  # each save takes four times as long with one
        },
        "optimiser": {"learning_rate": 1e-3, "warmup_steps": 0, "decay_steps": 10},
    }
    for name, changes in sections.items():
        content[name] = {**content.get(name, {}), **changes} if changes is not None else None
    return content
