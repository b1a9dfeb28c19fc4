"""One episode in an HDF5 file, in whichever of the known layouts.

ALOHA and ACT files, and the released demonstrations and rollouts, share ``/observations/qpos`` and
``/action``; they differ in where the images are, in how they are stored, and in what tells a rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import UnreadableError, check_file, reading, shown
from cosmos_policy_ros.interop.foreign_episode import Colours, ImportContext, SourceMetadata
from cosmos_policy_ros.interop.hdf5_cameras import (
    COMPRESS_LEN,
    IMAGES,
    JPEG_SETS,
    VIDEO_PATHS,
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
from cosmos_policy_ros.interop.hdf5_frames import VideoFrames
from cosmos_policy_ros.interop.hdf5_metadata import ATTRIBUTES, SIM, metadata_of
from cosmos_policy_ros.interop.hdf5_pace import RATE_SETS, RELEASED, STAMP_SETS, pace_of
from cosmos_policy_ros.interop.row_episode import (
    LEAST_ROWS,
    RowEpisode,
    check_finite,
    measured,
    moves,
    not_taken,
)
from cosmos_policy_ros.interop.to_bag import OpenRows
from cosmos_policy_ros.rig.arms import STATE_DIM

SUFFIXES = (".hdf5", ".h5", ".he5")
QPOS, QVEL, EFFORT = "observations/qpos", "observations/qvel", "observations/effort"
ACTION, RELATIVE_ACTION = "action", "relative_action"
ARGS_JSON = "args_json"
"""Data set of the released client, which runs at 25 Hz."""
FPS = "fps"
_TAKEN = (ACTION, QPOS, QVEL, EFFORT, IMAGES, VIDEO_PATHS, COMPRESS_LEN, *JPEG_SETS.values())
_KNOWN = (*_TAKEN, RELATIVE_ACTION, ARGS_JSON, *STAMP_SETS, *RATE_SETS)
_MOST_OTHERS = 64  # objects that are not taken, and looked at all the same
_MOST_OTHER_BYTES = 8 << 20


@dataclass(frozen=True)
class Hdf5Episode(RowEpisode):
    """An open file.

    Attributes:
        path: of the file.
        attributes: those of :data:`hdf5_metadata.ATTRIBUTES` that the file has.
    """

    path: Path
    attributes: Mapping[str, Any]

    def digest(self) -> str:
        """Return the sha256 (hex) over the file and its videos."""
        sha = hashlib.sha256()
        videos = [f.path for f in self.frames.values() if isinstance(f, VideoFrames)]
        for path in (self.path, *videos):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    sha.update(block)
        return sha.hexdigest()

    def metadata(self, prompts: Iterable[str], prompt: str | None = None) -> SourceMetadata:
        """Return what its attributes tell, see :func:`hdf5_metadata.metadata_of`."""
        return metadata_of(self.path, self.attributes, prompts, prompt)


@dataclass(frozen=True)
class Hdf5Source:
    """An HDF5 file: one episode."""

    path: Path

    @property
    def name(self) -> str:
        """The file's."""
        return self.path.name

    @contextmanager
    def open(self, context: ImportContext) -> Iterator[OpenRows]:
        """Open it; raises as :func:`open_hdf5` does."""
        options = context.options
        with open_hdf5(self.path, options.cameras, options.colours) as source:
            yield OpenRows(source, context)


@contextmanager
def open_hdf5(
    path: Path, cameras: Mapping[str, str] | None = None, colours: Colours | None = None
) -> Iterator[Hdf5Episode]:
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
) -> Hdf5Episode:
    action, qpos = _vectors(file, ACTION), _vectors(file, QPOS)
    if len(action) != len(qpos):
        raise RolloutError(
            f"{path}: /{QPOS} has {len(qpos)} rows and /{ACTION} {len(action)}; they must agree"
        )
    if len(action) < LEAST_ROWS:
        raise RolloutError(
            f"{path}: /{ACTION} has {len(action)} rows, at least {LEAST_ROWS} are an episode"
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
    attributes = {key: attribute(file, key) for key in ATTRIBUTES if key in file.attrs}
    qvel, effort = measured(qvel, f"/{QVEL}", notes), measured(effort, f"/{EFFORT}", notes)
    return Hdf5Episode(
        where=str(path),
        keys=(f"/{QPOS}", f"/{ACTION}"),
        qpos=qpos,
        action=action,
        qvel=qvel,
        effort=effort,
        frames=frames,
        pace=pace,
        path=path,
        attributes=attributes,
        simulated=bool(attributes.get(SIM, False)),
        notes=(*notes, *_not_taken(file, len(action))),
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
    if finite:
        check_finite(where, values)
    return values


def _measured(file: h5py.File, key: str, rows: int) -> NDArray[np.float64] | None:
    """Read what not every rig measures."""
    if find(file, key) is None:
        return None
    values = _vectors(file, key, finite=False)
    if len(values) != rows:
        raise RolloutError(f"{file.filename}: /{key} has {len(values)} rows, /{ACTION} {rows}")
    return values


def _not_taken(file: h5py.File, rows: int) -> list[str]:
    """Tell what else in the file has a row per step, and moves."""
    moving: list[str] = []
    places = [("", file), ("observations", find(file, "observations"))]
    for prefix, group in places:
        for name in listed(group)[:_MOST_OTHERS]:
            key = f"{prefix}/{name}" if prefix else name
            if key not in _KNOWN and _moves(file, key, rows):
                moving.append(f"/{shown(key)}")
    return not_taken(moving)


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
    return moves(key, values)
