"""Images that a video can show: smooth, moving, each told from the next by its brightness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers.episodes import CAMERA_PERIOD, JOINT_PERIOD, RIG, Writing
from numpy.typing import NDArray

from cosmos_policy_ros.rig.spec import RigSpec

SIZE = (48, 64)  # px, rows and columns


def scene(role: str, number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Return the (H, W, 3) RGB that a camera shows as its image of a number."""
    y, x = np.mgrid[: size[0], : size[1]]
    wave = 40 * np.sin((x + 3 * number) / 9) + 30 * np.cos(y / 7)
    tone = np.array([60, 100, 140]) + 20 * (ord(role[0]) % 3)
    pixels = wave[..., None] * [1.0, 0.6, 0.3] + tone + number % 40
    return np.asarray(pixels.clip(0, 255), np.uint8)


def record_scenes(
    writing: Writing, frames: int, *, size: tuple[int, int] = SIZE, rig: RigSpec = RIG
) -> Path:
    """Record so many images of each camera, and joint states between them; return the folder."""
    for at in range(0, frames * CAMERA_PERIOD, JOINT_PERIOD):
        for side in ("left", "right"):
            writing.state(side, at)
        if at % CAMERA_PERIOD == 0:
            for camera in rig.cameras:
                writing.image(camera.role, at, scene(camera.role, at // CAMERA_PERIOD, size))
    return writing.recording.finish("time_limit")
