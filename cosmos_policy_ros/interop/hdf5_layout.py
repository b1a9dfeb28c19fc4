"""One episode in an HDF5 file, in whichever of the known layouts.

ALOHA and ACT files, and the released demonstrations and rollouts, share ``/observations/qpos`` and
``/action``; they differ in where the images are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.bags.jpeg import JPEG_BEGIN, ImageArray, is_jpeg
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import UnreadableError, check_file, open_file, reading, shown
from cosmos_policy_ros.interop.hdf5_checks import attribute, find, names_in, try_apart
from cosmos_policy_ros.rig.arms import STATE_DIM

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
QPOS, QVEL, EFFORT = "observations/qpos", "observations/qvel", "observations/effort"
ACTION = "action"
IMAGES, VIDEO_PATHS = "observations/images", "observations/video_paths"
_KEYS = (
    *(ACTION, QPOS, QVEL, EFFORT, IMAGES, VIDEO_PATHS, *JPEG_SETS.values()),
    *(f"{group}/{name}" for group in (IMAGES, VIDEO_PATHS) for name in CAMERAS.values()),
)
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
"""The attributes of the file's root that are read."""
DATE_FORMAT = "%Y_%m_%d--%H_%M_%S"
"""As the released ALOHA client writes :data:`DATE_TIME`."""

RELEASED_RATE = 25.0  # Hz; what the released client runs at
LEAST_STEPS = 2
MAX_PIXELS = 1 << 24
"""An image's most pixels; twice those of a 4K camera."""
MAX_SCANS = 64
"""Passes over a progressive JPEG; encoders make ten, and each takes as long as an image."""

_JPEG_SCAN = b"\xff\xda"
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # heads of an image, which hold sizes
_MP4_BEGIN = b"ftyp"  # bytes 4 to 8 of the file

# The images of one camera in an HDF5 file or beside it. An episode of 44 s holds three gigabytes of
# raw images, so none of the classes here keeps more than the one it was asked for.


@dataclass(frozen=True)
class _DataSet:
    """Images in a data set, one per entry; ``where`` names it in messages."""

    dataset: Any
    where: str

    @property
    def count(self) -> int:
        """Length of the data set."""
        return int(self.dataset.shape[0])

    def _entries(self, stride: int, together: int) -> Iterator[tuple[int, Any]]:
        """Yield (number, entry) of every ``stride``-th, so many read together."""
        for first in range(0, self.count, together):
            where = f"{self.where}: image {first} cannot be read"
            with reading(where, "images", RolloutError, "the file is damaged"):
                entries = self.dataset[first : first + together]
            for index in range(first + -first % stride, first + len(entries), stride):
                yield index, entries[index - first]


@dataclass(frozen=True)
class RawFrames(_DataSet):
    """A data set (T, H, W, 3) uint8."""

    def __post_init__(self) -> None:
        shape, dtype = self.dataset.shape, self.dataset.dtype
        if len(shape) == 2:
            raise RolloutError(
                f"{self.where}: holds rows of bytes, as compressed ACT files do, whose order of "
                f"colours differs from tool to tool; decompress it with the tool that wrote it"
            )
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or 0 in shape:
            raise RolloutError(
                f"{self.where}: is {dtype} {shape}, expected uint8 (T, height, width, 3) RGB"
            )

    def every(self, stride: int) -> Iterator[ImageArray]:
        """Yield every ``stride``-th image as (H, W, 3). Raises RolloutError: one is damaged."""
        # A chunk is unpacked whole for each of its rows that is read alone.
        for _, entry in self._entries(stride, self.dataset.chunks[0] if self.dataset.chunks else 1):
            yield np.asarray(entry)


@dataclass(frozen=True)
class JpegFrames(_DataSet):
    """A data set (T,) of JPEG files, uint8 of any length each; they are handed on byte for byte.

    ``most`` is the bytes that all of them together may have, those of the file: an image may be
    named by a thousand entries and stored once.
    """

    most: int

    def __post_init__(self) -> None:
        dtype = self.dataset.dtype
        vlen = (dtype.metadata or {}).get("vlen")
        if len(self.dataset.shape) != 1 or vlen is None or np.dtype(vlen) != np.uint8:
            raise RolloutError(
                f"{self.where}: is {dtype} {self.dataset.shape}, expected (T,) of JPEG files"
            )

    def every(self, stride: int) -> Iterator[ImageArray]:
        """Yield every ``stride``-th file, decoded once to be sure. Raises RolloutError: damaged."""
        left = self.most
        for index, entry in self._entries(stride, 1):
            data = np.asarray(entry, np.uint8)
            left -= data.size
            if left < 0:
                raise RolloutError(
                    f"{self.where}: its images come to more than the {self.most} bytes of the "
                    f"file; the file is damaged"
                )
            jpeg = data.tobytes()
            _check_jpeg(jpeg, f"{self.where}: image {index}")
            yield jpeg


def _check_jpeg(jpeg: bytes, where: str) -> None:
    """Refuse what is no whole JPEG, or has more pixels or passes over them than a camera's."""
    at, height, width = len(JPEG_BEGIN), 0, 0
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker in _FRAME_MARKERS:
            height, width = (int.from_bytes(jpeg[at + i : at + i + 2], "big") for i in (5, 7))
            break
        at += 2 + length if marker != 0xFF else 1
    whole = is_jpeg(jpeg)
    if whole and (height * width > MAX_PIXELS or jpeg.count(_JPEG_SCAN) > MAX_SCANS):
        raise RolloutError(
            f"{where}: a JPEG of {width}x{height} pixels in {jpeg.count(_JPEG_SCAN)} scans; at "
            f"most {MAX_PIXELS} pixels in {MAX_SCANS} are decoded"
        )
    # OpenCV fills what is missing with grey and says nothing.
    if not whole or cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) is None:
        fault = "is no whole JPEG" if not whole else "does not decode"
        raise RolloutError(f"{where}, {len(jpeg)} bytes, {fault}; the file is damaged there")


@dataclass
class VideoFrames:
    """An MP4 file; ``where`` names the key that points to it.

    Attributes:
        count: frames, by the file's own header.
        rate: frames per second, by the file's own header.
    """

    path: Path
    where: str
    count: int = field(init=False)
    rate: float = field(init=False)

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise RolloutError(f"{self.where}: {self.path} is not there; copy the videos as well")
        with reading(f"{self.where}: {self.path} cannot be read as a video", "", RolloutError):
            with open_file(self.path) as file:
                begin = file.read(8)
            # What looks like a list of other files would be followed.
            if begin[4:] != _MP4_BEGIN:
                raise UnreadableError("it does not begin like an MP4")
            self.count, self.rate, width, height = video_header(self.path)
            if self.count < 1 or self.rate <= 0 or not 0 < width * height <= MAX_PIXELS:
                raise UnreadableError(
                    f"it says {self.count} frames of {width:g}x"
                    f"{height:g} pixels, at most {MAX_PIXELS} of them are decoded"
                )

    def every(self, stride: int) -> Iterator[ImageArray]:
        """Yield every ``stride``-th frame as (H, W, 3). Raises RolloutError: some are missing."""
        video, index = cv2.VideoCapture(str(self.path)), 0
        try:
            while index <= self.count and video.grab():
                if index % stride == 0 and index < self.count:
                    found, bgr = video.retrieve()
                    if not found:
                        break
                    yield np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
                index += 1
        finally:
            video.release()
        if index != self.count:
            readable = f"{index}" if index < self.count else "more"
            raise RolloutError(
                f"{self.where}: {self.path} says it has {self.count} frames, {readable} can be "
                f"read; the video is damaged"
            )


def video_header(path: Path) -> tuple[int, float, float, float]:
    """Return a video's frames, rate [Hz], width and height [px]; zeros where it cannot be read."""
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            return 0, 0.0, 0.0, 0.0
        return (
            round(video.get(cv2.CAP_PROP_FRAME_COUNT)),
            video.get(cv2.CAP_PROP_FPS),
            video.get(cv2.CAP_PROP_FRAME_WIDTH),
            video.get(cv2.CAP_PROP_FRAME_HEIGHT),
        )
    finally:
        video.release()


@dataclass(frozen=True)
class SourceEpisode:
    """An open file; its images are read when they are asked for.

    Attributes:
        path: of the file.
        qpos, action: (T, 14) float64: left arm, right arm, six joints [rad] and the gripper
            (0 closed, 1 open) each.
        qvel, effort: (T, 14), or None where the file has none or holds zeros for them.
        frames: T images per role, all of the same kind.
        rate: steps per second [Hz]; None when the file does not tell.
        attributes: those of :data:`ATTRIBUTES` that the file has.
    """

    path: Path
    qpos: NDArray[np.float64]
    action: NDArray[np.float64]
    qvel: NDArray[np.float64] | None
    effort: NDArray[np.float64] | None
    frames: Mapping[str, RawFrames | JpegFrames | VideoFrames]
    rate: float | None
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

    def stride(self, rate: float | None, control: float) -> int:
        """Return every how many-th row is a control step.

        Args:
            rate: of the source [Hz]; None for what the file tells.
            control: of the rig [Hz].

        Raises:
            RolloutError: the file does not tell its rate, or it is no multiple of ``control``.
        """
        rate = rate if rate is not None else self.rate
        if rate is None:
            raise RolloutError(
                f"{self.path}: does not tell its rate; give --rate {control:g}, or --rate 50 for a "
                f"file recorded with ACT"
            )
        stride = round(rate / control) if math.isfinite(rate) else 0
        if stride < 1 or not math.isclose(stride * control, rate, rel_tol=1e-3):
            raise RolloutError(
                f"{self.path}: {rate:g} Hz is no multiple of the rig's {control:g} Hz; if the file "
                f"is wrong about it, give --rate"
            )
        return stride


@contextmanager
def open_hdf5(path: Path) -> Iterator[SourceEpisode]:
    """Open an episode and check all of it but the images' content.

    Raises:
        RolloutError: no such file, not HDF5, not one of the known layouts, a wrong shape, a value
            that is not finite, or other numbers of images than of actions; names file and key.
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
                f"{path}: {each.count} images of {CAMERAS[role]} and {len(action)} rows in "
                f"/{ACTION}; the released trainer skips such an episode, too"
            )
    rates = {f.rate for f in frames.values() if isinstance(f, VideoFrames)}
    if len(rates) > 1:
        found = ", ".join(f"{rate:g}" for rate in sorted(rates))
        raise RolloutError(f"{path}: its videos have {found} frames per second; they differ")
    released = TASK_DESCRIPTION in file.attrs or find(file, JPEG_SETS["primary"]) is not None
    return SourceEpisode(
        path=path,
        qpos=qpos,
        action=action,
        qvel=_measured(file, QVEL, len(action)),
        effort=_measured(file, EFFORT, len(action)),
        frames=frames,
        rate=rates.pop() if rates else RELEASED_RATE if released else None,
        attributes={key: attribute(file, key) for key in ATTRIBUTES if key in file.attrs},
    )


def _vectors(file: h5py.File, key: str) -> NDArray[np.float64]:
    """Read a (T, 14) data set of finite numbers."""
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


def _frames(file: h5py.File, size: int) -> dict[str, RawFrames | JpegFrames | VideoFrames]:
    """Find the images where the released trainer looks for them, in its order."""
    group, names = "", CAMERAS
    if any(find(file, key) is not None for key in JPEG_SETS.values()):
        names = JPEG_SETS
    elif find(file, IMAGES) is not None:
        group = IMAGES
    elif find(file, VIDEO_PATHS) is not None:
        group = VIDEO_PATHS
    else:
        raise RolloutError(
            f"{file.filename}: has no images: none of /{JPEG_SETS['primary']}, /{IMAGES} and "
            f"/{VIDEO_PATHS} is there"
        )
    frames: dict[str, RawFrames | JpegFrames | VideoFrames] = {}
    for role, name in names.items():
        key = f"{group}/{name}" if group else name
        where = f"{file.filename}: /{key}"
        dataset = find(file, key)
        if not isinstance(dataset, h5py.Dataset):
            inside = find(file, group) if group else file
            raise RolloutError(f"{where}: is not there; in its place there is {names_in(inside)}")
        if names is JPEG_SETS:
            frames[role] = JpegFrames(dataset, where, size)
        elif group == IMAGES:
            frames[role] = RawFrames(dataset, where)
        else:
            frames[role] = VideoFrames(_video_path(file, dataset, where), where)
    return frames


def _video_path(file: h5py.File, dataset: h5py.Dataset, where: str) -> Path:
    """Return the path of a video, which the data set names relative to the file."""
    text = h5py.check_string_dtype(dataset.dtype) is not None or dataset.dtype.kind == "S"
    value = dataset[()] if dataset.shape == () and text else None
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
