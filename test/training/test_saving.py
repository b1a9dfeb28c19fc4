"""Pins that a checkpoint says what cameras it was trained on, so that no others arm under it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.training.saving import note_camera_size


def entry(rows: int, columns: int) -> Any:
    """An episode of images of a size; of size 0 none can be read."""

    def observe(step: int) -> Any:
        if not rows:
            raise ObservationError("no image")
        return SimpleNamespace(images={"primary": np.zeros((rows, columns, 3), np.uint8)})

    return SimpleNamespace(observe=observe, starts=[0])


@pytest.mark.parametrize("name", ["tiny", "aloha_2b"])
@pytest.mark.parametrize(
    ("sizes", "noted"),
    [
        ([(720, 1280)], (720, 1280)),
        ([(0, 0), (180, 320)], (180, 320)),
        ([(240, 320)], (480, 640)),  # the same aspect ratio: the file stays as it is
        ([(0, 0)], (480, 640)),
        ([None], (480, 640)),  # squeezed to the model's size: no camera's
    ],
)
def test_the_config_tells_of_other_cameras(
    tmp_path: Path, name: str, sizes: list[tuple[int, int] | None], noted: tuple[int, int]
) -> None:
    file = tmp_path / "config.yaml"
    shutil.copyfile(config_folder("models") / name / "config.yaml", file)
    before = load_config(CheckpointConfig, file)
    text = file.read_text()
    entries = [entry(*(size or (before.image_size,) * 2)) for size in sizes]
    dataset_index: Any = SimpleNamespace(entries=entries, held_out=())
    for _ in range(2):
        note_camera_size(dataset_index, tmp_path)
        after = load_config(CheckpointConfig, file)
        assert after.trained_on == noted
        assert after.transformer == before.transformer
    assert (file.read_text() == text) == (noted == before.trained_on)
