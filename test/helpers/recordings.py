"""HDF5 episodes as public recorders write them: a motion, its true speeds, images in many ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from helpers.hdf5 import CAMERAS, Change, random_images
from numpy.typing import NDArray

GRIPPERS = (6, 13)


def moves(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (T, 14) positions at these seconds: arms [rad], grippers from 0.05 to 0.95."""
    phases = np.arange(14) * 0.7
    values = 0.4 * np.sin(2 * times[:, None] + phases)
    values[:, GRIPPERS] = 0.5 + 0.45 * np.sin(3 * times[:, None] + [0.0, 1.0])
    return values


def speeds(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (T, 14) the speeds of :func:`moves` [rad/s]; fingers have none, as drivers do it."""
    values = 0.8 * np.cos(2 * times[:, None] + np.arange(14) * 0.7)
    values[:, GRIPPERS] = 0
    return values


def as_recorded(frames: NDArray[np.uint8], quality: int = 95) -> list[bytes]:
    """Return RGB images as ALOHA's recorders pack them: by an encoder that takes them for BGR."""
    option = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return [cv2.imencode(".jpg", frame, option)[1].tobytes() for frame in frames]


def padded(jpegs: Sequence[bytes], length: int, filling: int = 0) -> NDArray[np.uint8]:
    """Return JPEG files as rows of one length."""
    rows = np.full((len(jpegs), length), filling, np.uint8)
    for row, jpeg in zip(rows, jpegs, strict=True):
        row[: len(jpeg)] = np.frombuffer(jpeg, np.uint8)
    return rows


def write_recording(
    path: Path,
    images: str = "raw",
    *,
    rows: int = 60,
    rate: float = 50,
    cameras: Mapping[str, str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    jpegs: Mapping[str, Sequence[bytes]] | None = None,
    change: Change | None = None,
) -> Path:
    """Write one episode.

    Args:
        path: of the file.
        images: "raw", "padded", "strings" (of one length) or "scattered" (of any).
        rows: steps.
        rate: of the recording [Hz].
        cameras: names in the file by the names of :func:`helpers.hdf5.random_images`.
        attributes: of the root.
        jpegs: files by camera, in place of :func:`as_recorded`.
        change: done at the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(rows) / rate
    with h5py.File(path, "w") as file:
        file.attrs.update({"sim": False} if attributes is None else attributes)
        file["observations/qpos"] = moves(times)
        file["observations/qvel"] = speeds(times)
        file["observations/effort"] = np.full((rows, 14), 100.0)
        file["action"] = moves(times + 1 / rate)
        shown = {camera: random_images(rows, camera) for camera in CAMERAS}
        packed = jpegs or {camera: as_recorded(shown[camera]) for camera in CAMERAS}
        longest = max(len(jpeg) for files in packed.values() for jpeg in files)
        for camera, name in (cameras or {camera: camera for camera in CAMERAS}).items():
            key = f"observations/images/{name}"
            if images == "raw":
                file[key] = shown[camera]
            elif images == "padded":
                content = padded(packed[camera], longest)
                file.create_dataset(key, data=content, chunks=(1, longest))
            elif images == "strings":
                file[key] = np.array(packed[camera], f"S{longest}")
            else:
                made = file.create_dataset(key, (rows,), h5py.vlen_dtype(np.uint8))
                for index, jpeg in enumerate(packed[camera]):
                    made[index] = np.frombuffer(jpeg, np.uint8)
        if change is not None:
            change(file)
    return path
