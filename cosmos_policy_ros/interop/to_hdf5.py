"""Bags become HDF5 files in the layout of the released rollouts, for the released trainer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.task import FULL_SCORE
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.dataset.windows import ExecutedEpisode
from cosmos_policy_ros.episodes.episode import Episode
from cosmos_policy_ros.interop import hdf5_cameras as cameras
from cosmos_policy_ros.interop import hdf5_layout as layout
from cosmos_policy_ros.interop import hdf5_metadata as attributes
from cosmos_policy_ros.interop.hdf5_frames import video_header
from cosmos_policy_ros.rig.jpeg import to_jpeg

Images = Literal["jpeg", "raw", "video"]
_CODEC = "mp4v"  # the released client's


@dataclass(frozen=True)
class Exported:
    """What became of a bag: the file, its steps, and why steps are missing."""

    path: Path
    steps: int
    left_out: tuple[str, ...]


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
            with _PatientFile(Path(draft) / path.name, "xb+") as disk:
                with h5py.File(disk, "w") as file:
                    count = _write(source, file, Path(draft) / path.stem, images)
                if disk.error is not None:
                    raise disk.error
            # The file itself comes last: once it is there, so are its videos.
            for made in sorted(Path(draft).iterdir(), key=lambda p: p.suffix == path.suffix):
                made.rename(folder / made.name)
    except OSError as error:
        raise RolloutError(f"{path}: cannot be written: {error}; free disk space") from error
    return Exported(path, count, tuple(source.left_out))


class _PatientFile(FileIO):
    """A file that tells HDF5 of no failed write, but keeps the first error.

    A write that fails leaves HDF5's library with objects that it can neither write nor forget, and
    the process ends in a segmentation fault some files later.
    """

    error: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        # What was never written reads as zeros, so that a file given up can still be closed.
        count = super().readinto(buffer) or 0
        buffer[count:] = bytes(len(buffer) - count)
        return len(buffer)

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            while left and self.error is None:
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
        return size or 0


@dataclass
class _DataSetWriter:
    """A camera's images in a data set, one by one: all of them do not fit into memory."""

    dataset: Any
    count: int = 0

    def add(self, rgb: NDArray[np.uint8], jpeg: bytes | None) -> None:
        if self.dataset.ndim == 1:
            self.dataset[self.count] = np.frombuffer(jpeg or to_jpeg(rgb), np.uint8)
        else:
            self.dataset[self.count] = rgb
        self.count += 1

    def close(self) -> None:
        self.dataset.resize(self.count, axis=0)


class _VideoWriter:
    """A camera's images in an MP4 file."""

    def __init__(self, path: Path, rate: float, height: int, width: int) -> None:
        self._path, self._count = path, 0
        fourcc = cv2.VideoWriter.fourcc(*_CODEC)
        self._writer = cv2.VideoWriter(str(path), fourcc, rate, (width, height))
        if not self._writer.isOpened():
            raise RolloutError(
                f"{path}: OpenCV here cannot write {_CODEC} videos; take --images jpeg"
            )

    def add(self, rgb: NDArray[np.uint8], _: bytes | None) -> None:
        self._writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        self._count += 1

    def close(self) -> None:
        self._writer.release()
        # OpenCV does not tell of a disk that refuses.
        found, *_ = video_header(self._path)
        if found != self._count:
            raise RolloutError(
                f"{self._path}: holds {found} of {self._count} frames; free disk space"
            )


def _write(source: ExecutedEpisode, file: h5py.File, stem: Path, images: Images) -> int:
    """Write all steps and return their number; ``stem`` is what the videos' names begin with."""
    file.attrs.update(_attributes(source.episode, source.rig.kind == "sim"))
    file.attrs[layout.FPS] = source.rig.rates.control
    shapes: dict[str, tuple[int, ...]] = {}
    writers: dict[str, _DataSetWriter | _VideoWriter] = {}
    rows: list[tuple[NDArray[np.float64], ...]] = []
    for step in source:
        for role, image in step.images.items():
            if role not in writers:
                shapes[role] = image.shape
                writers[role] = _image_writer(source, file, stem, role, image.shape, images)
            height, width, _ = shapes[role]
            if image.shape != shapes[role]:
                raise RolloutError(
                    f"{source.episode.path}: camera {role} changes from {width}x{height} to "
                    f"{image.shape[1]}x{image.shape[0]} pixels; one file holds one size"
                )
            writers[role].add(image, step.jpegs.get(role))
        rows.append((step.state, step.velocity, step.effort, step.action))
    if not rows:
        raise RolloutError(
            f"{source.episode.path}: none of its {len(source)} steps can be looked at: "
            f"{source.left_out[0]}"
        )
    for writer in writers.values():
        writer.close()
    keys = (layout.QPOS, layout.QVEL, layout.EFFORT, layout.ACTION)
    columns = [np.asarray(values, np.float32) for values in zip(*rows, strict=True)]
    for key, values in zip(keys, columns, strict=True):
        file[key] = values
    # From action to action, the last one repeated, as released files have them.
    relative = np.diff(columns[-1], axis=0)
    relative = (
        np.concatenate([relative, relative[-1:]]) if len(rows) > 1 else np.zeros_like(columns[-1])
    )
    file[layout.RELATIVE_ACTION] = relative
    file[layout.ARGS_JSON] = json.dumps(source.episode.metadata.custom_data(), ensure_ascii=False)
    return len(rows)


def _image_writer(
    source: ExecutedEpisode,
    file: h5py.File,
    stem: Path,
    role: str,
    shape: tuple[int, ...],
    images: Images,
) -> _DataSetWriter | _VideoWriter:
    steps, camera = len(source), cameras.CAMERAS[role]
    if images == "jpeg":
        kind = h5py.vlen_dtype(np.uint8)
        key = cameras.JPEG_SETS[role]
        return _DataSetWriter(file.create_dataset(key, (steps,), kind, maxshape=(None,)))
    if images == "raw":
        dataset = file.create_dataset(
            f"{cameras.IMAGES}/{camera}",
            (steps, *shape),
            np.uint8,
            maxshape=(None, *shape),
            chunks=(1, *shape),
        )
        return _DataSetWriter(dataset)
    video = stem.with_name(f"{stem.name}_{camera}.mp4")
    file[f"{cameras.VIDEO_PATHS}/{camera}"] = video.name.encode()
    return _VideoWriter(video, source.rig.rates.control, *shape[:2])


def _attributes(episode: Episode, simulated: bool) -> Mapping[str, Any]:
    """Return the attributes of the released rollouts; without a score none that would state one."""
    metadata, score = episode.metadata, episode.score
    begun = datetime.fromtimestamp(episode.start_ns / NS_PER_S)
    policy = "--".join(part for part in (metadata.engine, metadata.checkpoint) if part)
    operator = metadata.operator_name or (score.operator_name if score else "")
    found: dict[str, Any] = {
        attributes.SIM: simulated,
        attributes.TASK_DESCRIPTION: metadata.prompt,
        attributes.DATE_TIME: begun.strftime(attributes.DATE_FORMAT),
    }
    if score is not None:
        found[attributes.SUCCESS] = score.success
        found[attributes.SUCCESS_SCORE] = score.points / FULL_SCORE
        found[attributes.USER_DESCRIPTION] = score.note
    if policy:
        found[attributes.POLICY_NAME] = policy
    if operator:
        found[attributes.USER_NAME] = operator
    return found
