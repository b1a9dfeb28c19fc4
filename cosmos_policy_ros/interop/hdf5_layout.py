"""One episode in an HDF5 file, in whichever of the known layouts.

ALOHA and ACT files, and the released demonstrations and rollouts, share ``/observations/qpos`` and
``/action``; they differ in where the images are, in how they are stored, and in what tells a rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import UnreadableError, check_file, reading, shown
from cosmos_policy_ros.interop.hdf5_cameras import (
    COMPRESS_LEN,
    IMAGES,
    JPEG_SETS,
    VIDEO_PATHS,
    Colours,
    find_cameras,
)
from cosmos_policy_ros.interop.hdf5_checks import (
    attribute,
    find,
    listed,
    names_in,
    reach,
    try_apart,
)
from cosmos_policy_ros.interop.hdf5_frames import Frames, VideoFrames
from cosmos_policy_ros.interop.hdf5_pace import RATE_SETS, RELEASED, STAMP_SETS, pace_of
from cosmos_policy_ros.interop.source_rate import Grid, Pace, control_grid
from cosmos_policy_ros.rig.arms import STATE_DIM

SUFFIXES = (".hdf5", ".h5", ".he5")
QPOS, QVEL, EFFORT = "observations/qpos", "observations/qvel", "observations/effort"
ACTION, RELATIVE_ACTION = "action", "relative_action"
ARGS_JSON = "args_json"
"""Data set of the released client, which runs at 25 Hz."""
FPS = "fps"
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
"""The attributes of the file's root that are read, beside those that tell a rate."""
DATE_FORMAT = "%Y_%m_%d--%H_%M_%S"
"""As the released ALOHA client writes :data:`DATE_TIME`."""

LEAST_STEPS = 2
_TAKEN = (ACTION, QPOS, QVEL, EFFORT, IMAGES, VIDEO_PATHS, COMPRESS_LEN, *JPEG_SETS.values())
_KNOWN = (*_TAKEN, RELATIVE_ACTION, ARGS_JSON, *STAMP_SETS, *RATE_SETS)
_MOST_OTHERS = 64  # objects that are not taken, and looked at all the same
_MOST_OTHER_BYTES = 8 << 20
_STANDS = 1e-3  # what moves by less stands still, in any unit of a robot's
_SPEED_NAMES = ("base", "vel", "twist")  # of things whose numbers are speeds: those but 0 move


@dataclass(frozen=True)
class SourceEpisode:
    """An open file; its images are read when they are asked for.

    Attributes:
        path: of the file.
        qpos, action: (T, 14) float64: left arm, right arm, six joints [rad] and the gripper
            (0 closed, 1 open) each.
        qvel, effort: (T, 14), or None where the file has none, holds zeros for them, or has
            something in them that is no number.
        frames: T images per role.
        pace: what the file tells of its rate.
        attributes: those of :data:`ATTRIBUTES` that the file has.
        notes: what was done to images, and what is not taken, for a report.
    """

    path: Path
    qpos: NDArray[np.float64]
    action: NDArray[np.float64]
    qvel: NDArray[np.float64] | None
    effort: NDArray[np.float64] | None
    frames: Mapping[str, Frames]
    pace: Pace
    attributes: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())

    def digest(self) -> str:
        """Return the sha256 (hex) over the file and its videos."""
        sha = hashlib.sha256()
        videos = [f.path for f in self.frames.values() if isinstance(f, VideoFrames)]
        for path in (self.path, *videos):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    sha.update(block)
        return sha.hexdigest()

    def grid(self, rate: float | None, control: float) -> Grid:
        """Return the control steps, see :func:`source_rate.control_grid`, which also raises."""
        try:
            return control_grid(self.pace, len(self.action), rate, control)
        except RolloutError as error:
            raise RolloutError(f"{self.path}: {error}") from error


@contextmanager
def open_hdf5(
    path: Path, cameras: Mapping[str, str] | None = None, colours: Colours | None = None
) -> Iterator[SourceEpisode]:
    """Open an episode and check all of it but the images' content.

    Args:
        path: of the file.
        cameras: the file's names of cameras by their roles; the others are recognised.
        colours: "rgb" where a viewer shows the images in their colours, "bgr" where it shows them
            with red and blue exchanged; None for what the layout tells.

    Raises:
        RolloutError: no such file, not HDF5, not one of the known layouts, a wrong shape, a value
            that is not finite, other numbers of images than of actions, or an order of colours that
            is not known; names file and key.
    """
    with reading(path, "HDF5", RolloutError):
        size = check_file(path)
        try_apart(path, size, _KNOWN, ATTRIBUTES)
        file = _open(path)
    with file:
        with reading(path, "HDF5", RolloutError, "the file may be damaged"):
            try:
                episode = _read(path, file, size, cameras or {}, colours)
            except UnreadableError as error:  # says what is wrong; no damage to be guessed
                raise RolloutError(f"{path}: {error}") from error
        yield episode


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except BlockingIOError as error:
        raise UnreadableError(
            "is locked: another program has it open for writing; close that, and import again"
        ) from error
    except OSError as error:
        if "unable to lock" in str(error):
            raise UnreadableError(
                "cannot be locked where it is; copy it to a local disk, or set "
                "HDF5_USE_FILE_LOCKING=FALSE"
            ) from error
        fault = str(error).rpartition("(")[2].rstrip(")") if "truncated" in str(error) else ""
        if fault:
            raise UnreadableError(
                f"cannot be read as HDF5: it was cut off ({shown(fault, 100)}); copy it again"
            ) from error
        raise


def _read(
    path: Path,
    file: h5py.File,
    size: int,
    cameras: Mapping[str, str],
    colours: Colours | None,
) -> SourceEpisode:
    action, qpos = _vectors(file, ACTION), _vectors(file, QPOS)
    if len(action) != len(qpos):
        raise RolloutError(
            f"{path}: /{QPOS} has {len(qpos)} rows and /{ACTION} {len(action)}; they must agree"
        )
    if len(action) < LEAST_STEPS:
        raise RolloutError(
            f"{path}: /{ACTION} has {len(action)} rows, at least {LEAST_STEPS} are an episode"
        )
    notes: list[str] = []
    frames = find_cameras(file, size, cameras, colours, notes)
    for each in frames.values():
        if each.count != len(action):
            raise RolloutError(
                f"{path}: {each.count} images of {each.where.rpartition('/')[2]} and "
                f"{len(action)} rows in /{ACTION}; the released trainer skips such an episode, too"
            )
    rates = {f.rate for f in frames.values() if isinstance(f, VideoFrames)}
    if len(rates) > 1:
        found = ", ".join(f"{rate:g}" for rate in sorted(rates))
        raise RolloutError(f"{path}: its videos have {found} frames per second; they differ")
    told = {"videos": rates.pop()} if rates else {}
    qvel, effort = (_measured(file, key, len(action)) for key in (QVEL, EFFORT))
    released = any(find(file, key) is not None for key in (*JPEG_SETS.values(), ARGS_JSON))
    pace = pace_of(file, qpos, qvel, told, RELEASED if released else {})
    notes += _not_taken(file, len(action))
    return SourceEpisode(
        path=path,
        qpos=qpos,
        action=action,
        qvel=_numbers(qvel, QVEL, notes),
        effort=_numbers(effort, EFFORT, notes),
        frames=frames,
        pace=pace,
        attributes={key: attribute(file, key) for key in ATTRIBUTES if key in file.attrs},
        notes=tuple(notes),
    )


def _vectors(file: h5py.File, key: str, *, finite: bool = True) -> NDArray[np.float64]:
    """Read a (T, 14) data set of numbers, which must be ``finite``."""
    where = f"{file.filename}: /{key}"
    dataset = find(file, key)
    if not isinstance(dataset, h5py.Dataset):
        raise RolloutError(
            f"{where}: is not there, so this is no ALOHA file; it holds {names_in(file)}"
        )
    if dataset.dtype.kind not in "fiu" or dataset.ndim != 2 or dataset.shape[1] != STATE_DIM:
        raise RolloutError(
            f"{where}: is {dataset.dtype} {dataset.shape}, expected numbers (T, {STATE_DIM})"
        )
    with reading(where, "numbers", RolloutError, "the file is damaged"):
        values = np.asarray(dataset[()], np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if finite and len(bad):
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
    values = _vectors(file, key, finite=False)
    if len(values) != rows:
        raise RolloutError(f"{file.filename}: /{key} has {len(values)} rows, /{ACTION} {rows}")
    return values if values.any() else None


def _numbers(
    values: NDArray[np.float64] | None, key: str, notes: list[str]
) -> NDArray[np.float64] | None:
    """Return values if all of them are numbers; no training reads these: a note is enough."""
    if values is None:
        return None
    bad = np.argwhere(~np.isfinite(values))
    if not len(bad):
        return values
    row, column = bad[0]
    notes.append(
        f"left out: /{key}, where {len(bad)} values are no numbers, first row {row}, "
        f"column {column}"
    )
    return None


def _not_taken(file: h5py.File, rows: int) -> list[str]:
    """Tell what else in the file has a row per step, and moves."""
    moving: list[str] = []
    places = [("", file), ("observations", find(file, "observations"))]
    for prefix, group in places:
        for name in listed(group)[:_MOST_OTHERS]:
            key = f"{prefix}/{name}" if prefix else name
            if key not in _KNOWN and _moves(file, key, rows):
                moving.append(f"/{shown(key)}")
    return [f"not taken: {', '.join(moving)}, which move{'' if len(moving) > 1 else 's'}"] * bool(
        moving
    )


def _moves(file: h5py.File, key: str, rows: int) -> bool:
    """Return whether a data set has a row per step and is no constant; unreadable ones have not."""
    try:
        dataset = reach(file, key)
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim not in (1, 2):
            return False
        if dataset.shape[0] != rows or dataset.dtype.kind not in "fiu":
            return False
        if dataset.size * dataset.dtype.itemsize > _MOST_OTHER_BYTES:
            return False
        find(file, key)
        values = np.asarray(dataset[()], np.float64).reshape(rows, -1)
    except (UnreadableError, OSError, ValueError, RuntimeError):
        return False
    values = np.where(np.isfinite(values), values, 0.0)
    if any(word in key.lower() for word in _SPEED_NAMES) and (np.abs(values) > _STANDS).any():
        return True
    return bool((np.ptp(values, axis=0) > _STANDS).any()) if values.size else False
