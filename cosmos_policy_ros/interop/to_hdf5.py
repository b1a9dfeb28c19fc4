"""Bags become HDF5 files in the layout of the released rollouts, for the released trainer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.bags.jpeg import to_jpeg
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.task import FULL_SCORE
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.dataset.executed import ExecutedEpisode, ExecutedStep
from cosmos_policy_ros.episodes.episode import Episode
from cosmos_policy_ros.interop.hdf5_layout import (
    ACTION,
    CAMERAS,
    DATE_TIME,
    EFFORT,
    IMAGES,
    JPEG_SETS,
    POLICY_NAME,
    QPOS,
    QVEL,
    SIM,
    SUCCESS,
    SUCCESS_SCORE,
    TASK_DESCRIPTION,
    USER_DESCRIPTION,
    USER_NAME,
    VIDEO_PATHS,
    video_length,
)
from cosmos_policy_ros.interop.to_bag import DATE_FORMAT

# An HDF5 file to be written on a disk that may be full.


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Create a file and close it at the end.

    Raises:
        OSError: it is there already, or the disk refused; it is not whole then.
    """
    with path.open("xb+", buffering=0) as raw:
        disk = _PatientDisk(raw)
        with h5py.File(disk, "w") as file:
            yield file
        disk.check()


class _PatientDisk:
    """A file that tells HDF5 of no failed write, but :meth:`check` of the first one.

    A write that fails leaves HDF5's library with objects that it can neither write nor forget, and
    the process ends in a segmentation fault some files later.
    """

    def __init__(self, raw: FileIO) -> None:
        self._raw = raw
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the OSError of the first write that failed, if one did."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def read(self, size: int = -1) -> bytes:
        """Never called; by it h5py tells a file from a path."""
        return self._raw.read(size) or b""

    def readinto(self, buffer: memoryview) -> int:
        # What was never written reads as zeros, so that a file given up can still be closed.
        count = self._raw.readinto(buffer) or 0
        buffer[count:] = bytes(len(buffer) - count)
        return len(buffer)

    def write(self, data: memoryview) -> int:
        left = memoryview(data)
        try:
            while left and self._error is None:
                left = left[self._raw.write(left) or 0 :]
        except OSError as error:
            self._error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._raw.truncate(size)
        except OSError as error:
            self._error = self._error or error
        return size or 0

    def flush(self) -> None:
        """Nothing is kept back here."""


Images = Literal["jpeg", "raw", "video"]
RELATIVE_ACTION, ARGS_JSON = "relative_action", "args_json"
_CODEC = "mp4v"  # the released client's


@dataclass(frozen=True)
class Exported:
    """What became of a bag: the file, its steps, and why steps are missing."""

    path: Path
    steps: int
    left_out: tuple[str, ...]


class _ImageWriter(Protocol):
    """Takes one camera's images."""

    def add(self, rgb: NDArray[np.uint8], jpeg: bytes | None) -> None: ...

    def close(self) -> None: ...


@dataclass
class _JpegWriter:
    """A top-level data set of JPEG files, those of the bag as they are."""

    file: h5py.File
    key: str
    steps: int
    count: int = 0

    def __post_init__(self) -> None:
        kind = h5py.vlen_dtype(np.uint8)
        self._dataset = self.file.create_dataset(self.key, (self.steps,), kind, maxshape=(None,))

    def add(self, rgb: NDArray[np.uint8], jpeg: bytes | None) -> None:
        data = jpeg if jpeg is not None else to_jpeg(rgb)
        self._dataset[self.count] = np.frombuffer(data, np.uint8)
        self.count += 1

    def close(self) -> None:
        self._dataset.resize(self.count, axis=0)


@dataclass
class _RawWriter:
    """A data set (T, H, W, 3), written image by image: all of them do not fit into memory."""

    file: h5py.File
    key: str
    steps: int
    dataset: Any = None
    count: int = 0

    def add(self, rgb: NDArray[np.uint8], jpeg: bytes | None) -> None:
        if self.dataset is None:
            self.dataset = self.file.create_dataset(
                self.key,
                (self.steps, *rgb.shape),
                np.uint8,
                maxshape=(None, *rgb.shape),
                chunks=(1, *rgb.shape),
            )
        self.dataset[self.count] = rgb
        self.count += 1

    def close(self) -> None:
        self.dataset.resize(self.count, axis=0)


@dataclass
class _VideoWriter:
    """An MP4 file beside the HDF5 file, which names it."""

    file: h5py.File
    key: str
    path: Path
    rate: float
    writer: Any = None
    count: int = 0

    def add(self, rgb: NDArray[np.uint8], jpeg: bytes | None) -> None:
        if self.writer is None:
            size = (rgb.shape[1], rgb.shape[0])
            fourcc = cv2.VideoWriter.fourcc(*_CODEC)
            self.writer = cv2.VideoWriter(str(self.path), fourcc, self.rate, size)
            if not self.writer.isOpened():
                raise RolloutError(
                    f"{self.path}: OpenCV here cannot write {_CODEC} videos; take --images jpeg"
                )
        self.writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        self.count += 1

    def close(self) -> None:
        self.writer.release()
        # OpenCV does not tell of a disk that refuses.
        held = video_length(self.path)
        if held != self.count:
            raise RolloutError(f"{self.path}: holds {held} of {self.count} frames; free disk space")
        self.file[self.key] = self.path.name.encode()


def export_hdf5(episode: Episode, folder: Path, index: int, images: Images = "jpeg") -> Exported:
    """Write ``folder/episode_<index>.hdf5``; nothing stays of an export that failed.

    Args:
        episode: a finished one.
        folder: is there.
        index: in the file's name, and in those of its videos.
        images: JPEG data sets, what the released trainer reads with its released configuration;
            raw data sets; or videos beside the file.

    Raises:
        RolloutError: the bag is damaged, no step of it can be looked at, a camera
            changes its size, the file is there already, or the disk refused.
    """
    path = folder / f"episode_{index}.hdf5"
    if path.exists():
        raise RolloutError(f"{path}: exists already; export into a new folder")
    source = ExecutedEpisode(episode)
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as draft:
            count = _write(source, Path(draft) / path.name, images)
            # The file itself comes last: whoever finds it finds its videos.
            for made in sorted(Path(draft).iterdir(), key=lambda p: p.suffix == path.suffix):
                made.rename(folder / made.name)
    except OSError as error:
        raise RolloutError(f"{path}: cannot be written: {error}; free disk space") from error
    return Exported(path, count, tuple(source.left_out))


def _write(source: ExecutedEpisode, path: Path, images: Images) -> int:
    rows: dict[str, list[NDArray[np.float64]]] = {QPOS: [], QVEL: [], EFFORT: [], ACTION: []}
    with new_hdf5(path) as file:
        for key, value in attributes_of(source.episode, source.rig.kind == "sim").items():
            file.attrs[key] = value
        writers = {role: _sink(source, file, path, role, images) for role in CAMERAS}
        shapes: dict[str, tuple[int, ...]] = {}
        for step in source:
            _check_shapes(source, shapes, step)
            for role, writer in writers.items():
                writer.add(step.images[role], step.jpegs.get(role))
            values = (step.state, step.velocity, step.effort, step.action)
            for key, value in zip(rows, values, strict=True):
                rows[key].append(value)
        count = len(rows[ACTION])
        if not count:
            raise RolloutError(
                f"{source.episode.path}: none of its {len(source)} steps can be looked at: "
                f"{source.left_out[0]}"
            )
        for writer in writers.values():
            writer.close()
        for key, values_ in rows.items():
            file[key] = np.asarray(values_, np.float32)
        file[RELATIVE_ACTION] = _relative(np.asarray(rows[ACTION], np.float32))
        file[ARGS_JSON] = json.dumps(source.episode.metadata.custom_data(), ensure_ascii=False)
    return count


def attributes_of(episode: Episode, simulated: bool) -> Mapping[str, Any]:
    """Return the attributes of the released rollouts; without a score none that would state one."""
    metadata, score = episode.metadata, episode.score
    begun = datetime.fromtimestamp(episode.start_ns / NS_PER_S)
    policy = "--".join(part for part in (metadata.engine, metadata.checkpoint) if part)
    operator = metadata.operator_name or (score.operator_name if score else "")
    found: dict[str, Any] = {
        SIM: simulated,
        TASK_DESCRIPTION: metadata.prompt,
        DATE_TIME: begun.strftime(DATE_FORMAT),
    }
    if score is not None:
        found[SUCCESS] = score.success
        found[SUCCESS_SCORE] = score.points / FULL_SCORE
        found[USER_DESCRIPTION] = score.note
    if policy:
        found[POLICY_NAME] = policy
    if operator:
        found[USER_NAME] = operator
    return found


def _sink(
    source: ExecutedEpisode, file: h5py.File, path: Path, role: str, images: Images
) -> _ImageWriter:
    if images == "jpeg":
        return _JpegWriter(file, JPEG_SETS[role], len(source))
    if images == "raw":
        return _RawWriter(file, f"{IMAGES}/{CAMERAS[role]}", len(source))
    video = path.with_name(f"{path.stem}_{CAMERAS[role]}.mp4")
    return _VideoWriter(file, f"{VIDEO_PATHS}/{CAMERAS[role]}", video, source.rig.rates.control)


def _check_shapes(
    source: ExecutedEpisode, shapes: dict[str, tuple[int, ...]], step: ExecutedStep
) -> None:
    for role, image in step.images.items():
        before = shapes.setdefault(role, image.shape)
        if image.shape != before:
            raise RolloutError(
                f"{source.episode.path}: camera {role} changes from {before[1]}x{before[0]} to "
                f"{image.shape[1]}x{image.shape[0]} pixels; one file holds one size"
            )


def _relative(actions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (T, 14) steps from action to action, the last one repeated, as released files have."""
    steps = np.diff(actions, axis=0)
    return np.concatenate([steps, steps[-1:]]) if len(steps) else np.zeros_like(actions)
