"""HDF5 files in the layouts of the released LIBERO data set: small images, made-up motion."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

TASK = "pick up the black bowl and place it on the plate"
NAME = f"{TASK.replace(' ', '_')}_demo.hdf5"
SIZE = 48
Change = Callable[[h5py.File], None]


def motion(rows: int, width: int, seed: int) -> NDArray[np.float64]:
    """Return (rows, width) numbers in [-1, 1] that no two seeds share."""
    rng = np.random.default_rng(seed)
    return np.sin(np.arange(rows)[:, None] / 9 + rng.uniform(0, 6, width)) * 0.9


def images(rows: int, seed: int) -> NDArray[np.uint8]:
    """Return (rows, SIZE, SIZE, 3): smooth colours, brighter above than below."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    frames = [
        np.stack([230 - 4 * y, (5 * x + 3 * t) % 200, np.full_like(x, 20 * seed % 200)], axis=-1)
        for t in range(rows)
    ]
    return np.asarray(frames).clip(0, 255).astype(np.uint8)


def jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bytes of a JPEG as the released tools write it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return np.frombuffer(file.getvalue(), np.uint8)


def _add_images(
    group: h5py.Group, name: str, frames: NDArray[np.uint8], raw: bool, drawn: Collection[int]
) -> None:
    if raw:
        group[name] = frames
        return
    dataset = group.create_dataset(f"{name}_jpeg", (len(frames),), h5py.vlen_dtype(np.uint8))
    for row, frame in enumerate(frames):
        if row in drawn:
            dataset[row] = jpeg(frame)


def write_demonstrations(
    path: Path,
    rows: Collection[int] = (40, 50),
    *,
    seed: int = 0,
    raw: bool = False,
    every: int = 1,
    change: Change | None = None,
) -> Path:
    """Write a file of one task, an episode per entry of ``rows``.

    Args:
        path: of the file, which is named after its task.
        rows: steps of each episode.
        seed: makes the episodes unlike those of other files.
        raw: pixels, not JPEG.
        every: steps between two images; the others have none.
        change: spoils it at the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for index, count in enumerate(rows):
            demo = file.create_group(f"data/demo_{index}")
            own = seed + index
            demo["actions"] = motion(count, 7, own)
            demo["robot_states"] = motion(count, 9, own + 50)
            drawn = {*range(0, count, every), count - 1}
            obs = demo.create_group("obs")
            _add_images(obs, "agentview_rgb", images(count, own), raw, drawn)
            _add_images(obs, "eye_in_hand_rgb", images(count, own + 5), raw, drawn)
        if change is not None:
            change(file)
    return path


def write_rollout(
    path: Path,
    rows: int = 40,
    *,
    seed: int = 7,
    attributes: Mapping[str, Any] | None = None,
    raw: bool = False,
    change: Change | None = None,
) -> Path:
    """Write a file of one rollout; ``attributes`` are its own, by default those of a failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update(
            {"success": False, "task_description": TASK} if attributes is None else attributes
        )
        file["actions"] = motion(rows, 7, seed)
        file["proprio"] = motion(rows, 9, seed + 50)
        _add_images(file, "primary_images", images(rows, seed), raw, range(rows))
        _add_images(file, "wrist_images", images(rows, seed + 5), raw, range(rows))
        if change is not None:
            change(file)
    return path
