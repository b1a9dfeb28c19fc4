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

Picture = NDArray[np.uint8] | bytes
"""(H, W, 3) RGB, or a whole JPEG file."""
Kind = Literal["raw", "jpeg", "video"]

_JPEG_BEGIN, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


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

    def _entries(self, stride: int) -> Iterator[tuple[int, Any]]:
        for index in range(0, self.count, stride):
            try:
                entry = self.dataset[index]
            except Exception as error:  # a damaged file may raise anything
                raise RolloutError(
                    f"{self.where}: picture {index} cannot be read: {error}; the file is damaged"
                ) from error
            yield index, entry


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
        for _, entry in self._entries(stride):
            yield np.asarray(entry)


@dataclass(frozen=True)
class JpegFrames(_DataSet):
    """A data set (T,) of JPEG files, uint8 of any length each; they are handed on byte for byte."""

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
        for index, entry in self._entries(stride):
            data = np.asarray(entry, np.uint8)
            _check_jpeg(data, f"{self.where}: picture {index}")
            yield data.tobytes()


def is_jpeg(data: bytes) -> bool:
    """Return whether this is a JPEG file from its first to its last marker."""
    return data.startswith(_JPEG_BEGIN) and data.rstrip(b"\0").endswith(_JPEG_END)


def _check_jpeg(data: NDArray[np.uint8], where: str) -> None:
    # OpenCV fills what is missing with grey and says nothing.
    whole = is_jpeg(data.tobytes())
    if not whole or cv2.imdecode(data, cv2.IMREAD_COLOR) is None:
        fault = "is no whole JPEG" if not whole else "does not decode"
        raise RolloutError(f"{where}, {data.size} bytes, {fault}; the file is damaged there")


@dataclass(frozen=True)
class VideoFrames:
    """An MP4 file; ``where`` names the key that points to it."""

    path: Path
    where: str
    kind: ClassVar[Kind] = "video"

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise RolloutError(f"{self.where}: {self.path} is not there; copy the videos as well")
        if self.count < 1 or self.rate <= 0:
            raise RolloutError(f"{self.where}: {self.path} cannot be read as a video")

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
