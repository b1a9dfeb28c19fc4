"""One episode in an HDF5 file, in whichever of the known layouts.

ALOHA and ACT files, and the released demonstrations and rollouts, share ``/observations/qpos`` and
``/action``; they differ in where the pictures are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rig.arms import STATE_DIM
from cosmos_policy_ros.rig.untrusted import check_file, reading, shown
from cosmos_policy_ros.rollouts.exchange.frames import Frames, JpegFrames, RawFrames, VideoFrames
from cosmos_policy_ros.rollouts.exchange.hdf5_checks import (
    attribute,
    find,
    held,
    is_text,
    try_apart,
)

SUFFIXES = (".hdf5", ".h5", ".he5")
CAMERAS = {
    "left_wrist": "cam_left_wrist",
    "right_wrist": "cam_right_wrist",
    "primary": "cam_high",
}
"""ALOHA's name of a camera by its role."""
JPEG_SETS = {
    "left_wrist": "wrist_left_images_jpeg",
    "right_wrist": "wrist_right_images_jpeg",
    "primary": "primary_images_jpeg",
}
"""The released trainer's top-level data set by a camera's role."""
QPOS, QVEL, EFFORT, ACTION = (
    "observations/qpos",
    "observations/qvel",
    "observations/effort",
    "action",
)
IMAGES, VIDEO_PATHS = "observations/images", "observations/video_paths"
SIM, TASK_DESCRIPTION = "sim", "task_description"
SUCCESS, SUCCESS_SCORE = "success", "success_score"
USER_DESCRIPTION, USER_NAME = "user_description", "user_name"
POLICY_NAME, DATE_TIME = "policy_name", "date_time"
ATTRIBUTES = (
    SIM,
    TASK_DESCRIPTION,
    SUCCESS,
    SUCCESS_SCORE,
    USER_DESCRIPTION,
    USER_NAME,
    POLICY_NAME,
    DATE_TIME,
)
"""Of the file's root; whatever else is there is not read."""
_KEYS = (
    *(ACTION, QPOS, QVEL, EFFORT, IMAGES, VIDEO_PATHS, *JPEG_SETS.values()),
    *(f"{group}/{name}" for group in (IMAGES, VIDEO_PATHS) for name in CAMERAS.values()),
)
RELEASED_RATE = 25.0  # Hz; what the released client runs at
LEAST_STEPS = 2

_BLOCK = 1 << 20  # bytes read at a time for the digest


@dataclass(frozen=True)
class SourceEpisode:
    """An open file; its pictures are read when they are asked for.

    Attributes:
        path: of the file.
        qpos, action: (T, 14) float64: left arm, right arm, six joints [rad] and the gripper
            (0 closed, 1 open) each.
        qvel, effort: (T, 14), or None where the file has none or holds zeros for them.
        frames: T pictures per role, all of the same kind.
        rate: steps per second [Hz]; 0 when the file does not tell.
        attributes: those of :data:`ATTRIBUTES` that the file has.
    """

    path: Path
    qpos: NDArray[np.float64]
    action: NDArray[np.float64]
    qvel: NDArray[np.float64] | None
    effort: NDArray[np.float64] | None
    frames: Mapping[str, Frames]
    rate: float
    attributes: Mapping[str, Any]

    @property
    def videos(self) -> tuple[Path, ...]:
        """The files beside this one that hold its pictures."""
        return tuple(f.path for f in self.frames.values() if isinstance(f, VideoFrames))

    def digest(self) -> str:
        """Return the sha256 (hex) over the file and its videos."""
        sha = hashlib.sha256()
        for path in (self.path, *self.videos):
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    sha.update(block)
        return sha.hexdigest()

    def stride(self, rate: float, control: float) -> int:
        """Return every how many-th row is a control step.

        Args:
            rate: of the source [Hz]; 0 for what the file tells.
            control: of the rig [Hz].

        Raises:
            RolloutError: the file does not tell its rate, or it is no multiple of ``control``.
        """
        rate = rate or self.rate
        if not rate:
            raise RolloutError(
                f"{self.path}: does not tell its rate; give --rate {control:g}, or --rate 50 for a "
                f"file recorded with ACT"
            )
        stride = round(rate / control)
        if stride < 1 or not math.isclose(stride * control, rate, rel_tol=1e-3):
            raise RolloutError(
                f"{self.path}: {rate:g} Hz is no multiple of the rig's {control:g} Hz; if the file "
                f"is wrong about it, give --rate"
            )
        return stride


@contextmanager
def open_hdf5(path: Path) -> Iterator[SourceEpisode]:
    """Open an episode and check all of it but the pictures' content.

    Raises:
        RolloutError: no such file, not HDF5, not one of the known layouts, a wrong shape, a value
            that is not finite, or other numbers of pictures than of actions; names file and key.
    """
    with reading(path, "HDF5", RolloutError):
        size = check_file(path)
        try_apart(path, size, _KEYS, ATTRIBUTES)
        file = h5py.File(path, "r")
    with file:
        with reading(path, "HDF5", RolloutError, "the file may be damaged"):
            episode = _read(path, file, size)
        yield episode


def _read(path: Path, file: h5py.File, size: int) -> SourceEpisode:
    action, qpos = _vectors(file, ACTION), _vectors(file, QPOS)
    if len(action) != len(qpos):
        raise RolloutError(
            f"{path}: /{QPOS} has {len(qpos)} rows and /{ACTION} {len(action)}; they must agree"
        )
    if len(action) < LEAST_STEPS:
        raise RolloutError(
            f"{path}: /{ACTION} has {len(action)} rows, at least {LEAST_STEPS} are an episode"
        )
    frames = _frames(file, size)
    for role, each in frames.items():
        if each.count != len(action):
            raise RolloutError(
                f"{path}: {each.count} pictures of {CAMERAS[role]} and {len(action)} rows in "
                f"/{ACTION}; the released trainer skips such an episode, too"
            )
    return SourceEpisode(
        path=path,
        qpos=qpos,
        action=action,
        qvel=_measured(file, QVEL, len(action)),
        effort=_measured(file, EFFORT, len(action)),
        frames=frames,
        rate=_rate(file, frames),
        attributes={key: attribute(file, key) for key in ATTRIBUTES if key in file.attrs},
    )


def _vectors(file: h5py.File, key: str) -> NDArray[np.float64]:
    """Read a (T, 14) data set of finite numbers."""
    where = f"{file.filename}: /{key}"
    dataset = find(file, key)
    if not isinstance(dataset, h5py.Dataset):
        raise RolloutError(
            f"{where}: is not there, so this is no ALOHA file; it holds {held(file)}"
        )
    if dataset.dtype.kind not in "fiu" or dataset.ndim != 2 or dataset.shape[1] != STATE_DIM:
        raise RolloutError(
            f"{where}: is {dataset.dtype} {dataset.shape}, expected numbers (T, {STATE_DIM})"
        )
    with reading(where, "numbers", RolloutError, "the file is damaged"):
        values = np.asarray(dataset[()], np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise RolloutError(
            f"{where}: row {row}, column {column} is {values[row, column]} and {len(bad) - 1} more "
            f"are no numbers either; nothing can be learnt from them"
        )
    return values


def _measured(file: h5py.File, key: str, rows: int) -> NDArray[np.float64] | None:
    """Read what not every rig measures; zeros stand for "not measured"."""
    if find(file, key) is None:
        return None
    values = _vectors(file, key)
    if len(values) != rows:
        raise RolloutError(f"{file.filename}: /{key} has {len(values)} rows, /{ACTION} {rows}")
    return values if values.any() else None


def _frames(file: h5py.File, size: int) -> dict[str, Frames]:
    """Find the pictures where the released trainer looks for them, in its order."""
    if any(find(file, key) is not None for key in JPEG_SETS.values()):
        return {
            role: JpegFrames(dataset, where, size)
            for role, dataset, where in _datasets(file, JPEG_SETS, prefix="")
        }
    if find(file, IMAGES) is not None:
        found = _datasets(file, CAMERAS, prefix=f"{IMAGES}/")
        return {role: RawFrames(dataset, where) for role, dataset, where in found}
    if find(file, VIDEO_PATHS) is not None:
        found = _datasets(file, CAMERAS, prefix=f"{VIDEO_PATHS}/")
        return {
            role: VideoFrames(_beside(file, dataset, where), where)
            for role, dataset, where in found
        }
    raise RolloutError(
        f"{file.filename}: has no pictures: none of /{JPEG_SETS['primary']}, /{IMAGES} and "
        f"/{VIDEO_PATHS} is there"
    )


def _datasets(
    file: h5py.File, names: Mapping[str, str], prefix: str
) -> Iterator[tuple[str, h5py.Dataset, str]]:
    """Yield (role, data set, its name for messages) of each camera."""
    for role, name in names.items():
        where = f"{file.filename}: /{prefix}{name}"
        dataset = find(file, prefix + name)
        if not isinstance(dataset, h5py.Dataset):
            group = find(file, prefix.strip("/")) if prefix else file
            raise RolloutError(f"{where}: is not there; in its place there is {held(group)}")
        yield role, dataset, where


def _beside(file: h5py.File, dataset: h5py.Dataset, where: str) -> Path:
    """Return the path of a video, which the data set names relative to the file."""
    value = dataset[()] if is_text(dataset) else None
    name = value.decode(errors="replace") if isinstance(value, bytes) else value
    if not isinstance(name, str) or not name or "\0" in name:
        raise RolloutError(f"{where}: holds {shown(value)}, expected the name of a video")
    folder = Path(file.filename).resolve().parent
    if not (folder / name).resolve().is_relative_to(folder):
        raise RolloutError(
            f"{where}: names {shown(name)}, which is not in the file's own folder; copy the video "
            f"beside it and name it so"
        )
    return Path(file.filename).parent / name


def _rate(file: h5py.File, frames: Mapping[str, Frames]) -> float:
    """Return the steps per second [Hz] that the file tells, else 0."""
    rates = {f.rate for f in frames.values() if isinstance(f, VideoFrames)}
    if len(rates) > 1:
        told = ", ".join(f"{rate:g}" for rate in sorted(rates))
        raise RolloutError(
            f"{file.filename}: its videos have {told} frames per second; they differ"
        )
    if rates:
        return rates.pop()
    released = TASK_DESCRIPTION in file.attrs or find(file, JPEG_SETS["primary"]) is not None
    return RELEASED_RATE if released else 0.0
