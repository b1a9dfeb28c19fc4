"""Smoothing keeps what arms do and takes away what they cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.policy import smooth

AT = np.arange(50)[:, None] / 25


def test_parabolas_pass_unchanged_to_the_last_row() -> None:
    chunk = np.concatenate([AT**0, AT, AT**2 - 3 * AT], axis=1)
    np.testing.assert_allclose(smooth(chunk, 11), chunk, atol=1e-12)


def test_a_minimum_jerk_move_hardly_changes() -> None:
    t = np.clip(AT / 0.8, 0, 1)
    move = t**3 * (10 - 15 * t + 6 * t**2)
    assert np.abs(smooth(move, 11) - move).max() < 0.03


def test_tremble_is_taken_away() -> None:
    tremble = np.random.default_rng(0).normal(size=(20, 50, 14))
    smoothed = smooth(tremble, 11)
    assert smoothed.shape == tremble.shape
    assert smoothed.std() < 0.55 * tremble.std()
    assert np.diff(smoothed, axis=1)[:, 6:-6].std() < 0.2 * np.diff(tremble, axis=1).std()


def test_as_released_nothing_is_smoothed() -> None:
    chunk = np.random.default_rng(0).normal(size=(50, 14))
    assert smooth(chunk, 0) is chunk


@pytest.mark.parametrize("rows", [1, 2, 10, -3])
def test_impossible_windows_are_named(rows: int) -> None:
    config = load_config(CheckpointConfig, config_folder("models") / "tiny_random" / "config.yaml")
    with pytest.raises(ValueError, match=f"smoothing is {rows} rows"):
        replace(config, smoothing=rows)
