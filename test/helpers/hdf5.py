"""HDF5 episodes in every layout that can be imported: small images, made-up motion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
JPEG_KEYS = {
    "cam_high": "primary_images_jpeg",
    "cam_left_wrist": "wrist_left_images_jpeg",
    "cam_right_wrist": "wrist_right_images_jpeg",
}
ROLLOUT: Mapping[str, Any] = {
    "sim": False,
    "task_description": "put candy in bag",
    "success": False,
    "success_score": 0.6,
    "user_description": "the slider slipped",
    "policy_name": "cosmos--chkpt50000",
    "user_name": "ann",
    "date_time": "2025_09_05--14_07_01",
}
Change = Callable[[h5py.File], None]


def motion(rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Return (rows, 14) of smooth motion; the grippers go a little past their ends."""
    rng = np.random.default_rng(seed)
    t = np.arange(rows)[:, None] / 25
    values = 0.5 * np.sin(t * rng.uniform(0.5, 2, 14) + rng.uniform(0, 6, 14))
    values[:, [6, 13]] = 0.5 + 1.1 * values[:, [6, 13]]
    return values.astype(np.float32)


def random_images(rows: int, camera: str) -> NDArray[np.uint8]:
    """Return (rows, 24, 32, 3) RGB: smooth colours, different in every row and camera."""
    y, x = np.mgrid[0:24, 0:32]
    shift = 40 * CAMERAS.index(camera)
    frames = [
        np.stack([x * 5 + t, y * 7 + shift, np.full_like(x, (3 * t + shift) % 200)], axis=-1)
        for t in range(rows)
    ]
    return np.asarray(frames).clip(0, 255).astype(np.uint8)


def jpegs(frames: NDArray[np.uint8]) -> list[bytes]:
    """Return each image as a JPEG file."""
    return [cv2.imencode(".jpg", cv2.cvtColor(f, cv2.COLOR_RGB2BGR))[1].tobytes() for f in frames]


def write_video(path: Path, frames: NDArray[np.uint8], rate: float = 25) -> None:
    """Write an MP4 file as the released tools do."""
    height, width = frames.shape[1:3]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
    for frame in frames:
        video.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    video.release()


def write_hdf5(
    path: Path,
    images: str = "raw",
    *,
    rows: int = 24,
    attributes: Mapping[str, Any] | None = None,
    rate: float = 25,
    measured: bool = False,
    change: Change | None = None,
) -> Path:
    """Write one episode.

    Args:
        path: of the file.
        images: "raw", "jpeg" or "video".
        rows: steps.
        attributes: of the root, by default a demonstration's.
        rate: of the videos.
        measured: with velocities and efforts; else zeros, as released rollouts have.
        change: spoils it at the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    zeros = np.zeros((rows, 14), np.float32)
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes if attributes is not None else {"sim": False})
        file["observations/qpos"] = motion(rows)
        file["observations/qvel"] = motion(rows, 2) if measured else zeros
        file["observations/effort"] = motion(rows, 3) if measured else zeros
        file["action"] = motion(rows, 1)
        for camera in CAMERAS:
            frames = random_images(rows, camera)
            if images == "raw":
                file[f"observations/images/{camera}"] = frames
            elif images == "jpeg":
                kind = h5py.vlen_dtype(np.uint8)
                dataset = file.create_dataset(JPEG_KEYS[camera], (rows,), dtype=kind)
                for index, jpeg in enumerate(jpegs(frames)):
                    dataset[index] = np.frombuffer(jpeg, np.uint8)
            else:
                name = f"{path.stem}_{camera}.mp4"
                write_video(path.with_name(name), frames, rate)
                file[f"observations/video_paths/{camera}"] = name.encode()
        if change is not None:
            change(file)
    return path
