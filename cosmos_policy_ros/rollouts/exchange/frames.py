"""The pictures of one camera in an HDF5 file or beside it, one at a time.

An episode of 44 s holds three gigabytes of raw pictures, so none of the classes here keeps more
than the one it was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rig.untrusted import UnreadableError, open_file, reading

Picture = NDArray[np.uint8] | bytes
"""(H, W, 3) RGB, or a whole JPEG file."""
Kind = Literal["raw", "jpeg", "video"]

MAX_PIXELS = 1 << 24
"""Of a picture; twice those of a 4K camera."""
MAX_SCANS = 64
"""Passes over a progressive JPEG; encoders make ten, and each takes as long as a picture."""

JPEG_BEGIN, JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_SCAN = b"\xff\xda"
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # heads of a picture, which hold sizes
_SIZES = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
_MP4_BEGIN = b"ftyp"  # bytes 4 to 8 of the file


class Frames(Protocol):
    """One camera's pictures."""

    @property
    def kind(self) -> Kind:
        """How the source holds them."""

    @property
    def count(self) -> int:
        """How many there are."""

    def every(self, stride: int) -> Iterator[Picture]:
        """Yield pictures 0, stride, 2 * stride, ...

        Raises:
            RolloutError: one cannot be read or decoded; names file, key and number.
        """


@dataclass(frozen=True)
class _DataSet:
    """Pictures in a data set, one per entry; ``where`` names it in messages."""

    dataset: Any
    where: str

    @property
    def count(self) -> int:
        """Length of the data set."""
        return int(self.dataset.shape[0])

    def _entries(self, stride: int, together: int) -> Iterator[tuple[int, Any]]:
        """Yield (number, entry) of every ``stride``-th, so many read together."""
        for first in range(0, self.count, together):
            where = f"{self.where}: picture {first} cannot be read"
            with reading(where, "pictures", RolloutError, "the file is damaged"):
                entries = self.dataset[first : first + together]
            for index in range(first + -first % stride, first + len(entries), stride):
                yield index, entries[index - first]


@dataclass(frozen=True)
class RawFrames(_DataSet):
    """A data set (T, H, W, 3) uint8."""

    kind: ClassVar[Kind] = "raw"

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

    def every(self, stride: int) -> Iterator[Picture]:
        """Yield (H, W, 3) arrays; see :class:`Frames`."""
        # A chunk is unpacked whole for each of its rows that is read alone.
        for _, entry in self._entries(stride, self.dataset.chunks[0] if self.dataset.chunks else 1):
            yield np.asarray(entry)


@dataclass(frozen=True)
class JpegFrames(_DataSet):
    """A data set (T,) of JPEG files, uint8 of any length each; they are handed on byte for byte.

    ``most`` is the bytes that all of them together may have, those of the file: a picture may be
    named by a thousand entries and stored once.
    """

    most: int
    kind: ClassVar[Kind] = "jpeg"

    def __post_init__(self) -> None:
        dtype = self.dataset.dtype
        vlen = (dtype.metadata or {}).get("vlen")
        if len(self.dataset.shape) != 1 or vlen is None or np.dtype(vlen) != np.uint8:
            raise RolloutError(
                f"{self.where}: is {dtype} {self.dataset.shape}, expected (T,) of JPEG files"
            )

    def every(self, stride: int) -> Iterator[Picture]:
        """Yield JPEG files that were decoded once to be sure; see :class:`Frames`."""
        left = self.most
        for index, entry in self._entries(stride, 1):
            data = np.asarray(entry, np.uint8)
            left -= data.size
            if left < 0:
                raise RolloutError(
                    f"{self.where}: its pictures come to more than the {self.most} bytes of the "
                    f"file; the file is damaged"
                )
            _check_jpeg(data, f"{self.where}: picture {index}")
            yield data.tobytes()


def is_jpeg(data: bytes) -> bool:
    """Return whether this is a JPEG file from its first to its last marker."""
    return data.startswith(JPEG_BEGIN) and data.rstrip(b"\0").endswith(JPEG_END)


def _check_jpeg(data: NDArray[np.uint8], where: str) -> None:
    # OpenCV fills what is missing with grey and says nothing.
    content = data.tobytes()
    whole = is_jpeg(content)
    if whole:
        _check_work(content, where)
    if not whole or cv2.imdecode(data, cv2.IMREAD_COLOR) is None:
        fault = "is no whole JPEG" if not whole else "does not decode"
        raise RolloutError(f"{where}, {data.size} bytes, {fault}; the file is damaged there")


def _check_work(jpeg: bytes, where: str) -> None:
    """Refuse a JPEG that claims more pixels, or passes over them, than a camera's has."""
    at, height, width = len(JPEG_BEGIN), 0, 0
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker in _FRAME_MARKERS:
            height, width = (int.from_bytes(jpeg[at + i : at + i + 2], "big") for i in (5, 7))
            break
        at += 2 + length if marker != 0xFF else 1
    if height * width > MAX_PIXELS or jpeg.count(_JPEG_SCAN) > MAX_SCANS:
        raise RolloutError(
            f"{where}: a JPEG of {width}x{height} pixels in {jpeg.count(_JPEG_SCAN)} scans; at "
            f"most {MAX_PIXELS} pixels in {MAX_SCANS} are decoded"
        )


@dataclass(frozen=True)
class VideoFrames:
    """An MP4 file; ``where`` names the key that points to it."""

    path: Path
    where: str
    kind: ClassVar[Kind] = "video"

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise RolloutError(f"{self.where}: {self.path} is not there; copy the videos as well")
        with reading(f"{self.where}: {self.path} cannot be read as a video", "", RolloutError):
            with open_file(self.path) as file:
                begin = file.read(8)
            # What looks like a list of other files would be followed.
            if begin[4:] != _MP4_BEGIN:
                raise UnreadableError("it does not begin like an MP4")
            width, height = (_of_video(self.path, of) for of in _SIZES)
            if self.count < 1 or self.rate <= 0 or not 0 < width * height <= MAX_PIXELS:
                raise UnreadableError(
                    f"it says {self.count} frames of {width:g}x"
                    f"{height:g} pixels, at most {MAX_PIXELS} of them are decoded"
                )

    @property
    def count(self) -> int:
        """Frames, by the file's own header."""
        return video_length(self.path)

    @property
    def rate(self) -> float:
        """Frames per second, by the file's own header."""
        return _of_video(self.path, cv2.CAP_PROP_FPS)

    def every(self, stride: int) -> Iterator[Picture]:
        """Yield (H, W, 3) arrays; see :class:`Frames`."""
        video, count, index = cv2.VideoCapture(str(self.path)), self.count, 0
        try:
            while index <= count and video.grab():
                if index % stride == 0 and index < count:
                    found, bgr = video.retrieve()
                    if not found:
                        break
                    yield np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
                index += 1
        finally:
            video.release()
        if index != count:
            readable = f"{index}" if index < count else "more"
            raise RolloutError(
                f"{self.where}: {self.path} says it has {count} frames, {readable} can be read; "
                f"the video is damaged"
            )


def video_length(path: Path) -> int:
    """Return the frames of a video by its own header, 0 when it has none that can be read."""
    return round(_of_video(path, cv2.CAP_PROP_FRAME_COUNT))


def _of_video(path: Path, which: int) -> float:
    video = cv2.VideoCapture(str(path))
    try:
        return float(video.get(which)) if video.isOpened() else 0.0
    finally:
        video.release()
