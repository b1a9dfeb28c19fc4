"""The images of one camera in an HDF5 file or beside it, in whichever way a recorder stored them.

An episode of 44 s holds three gigabytes of raw images, so none of the classes here keeps more than
the one that it was asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cosmos_policy_ros.bags.jpeg import ImageArray
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import UnreadableError, open_file, reading
from cosmos_policy_ros.interop.jpeg_files import decode_jpeg, jpeg_end
from cosmos_policy_ros.interop.row_episode import MAX_PIXELS, Kind
from cosmos_policy_ros.rig.jpeg import to_jpeg

_MP4_BEGIN = b"ftyp"  # bytes 4 to 8 of the file


@dataclass(frozen=True)
class _DataSet(ABC):
    """Images in a data set, one per row.

    Attributes:
        dataset: of h5py.
        where: names it in messages.
        swapped: the images have red and blue exchanged, and are handed on put right.
    """

    dataset: Any
    where: str
    swapped: bool = field(default=False, kw_only=True)

    @property
    def count(self) -> int:
        """Length of the data set."""
        return int(self.dataset.shape[0])

    def every(self, stride: int) -> Iterator[ImageArray]:
        """Yield every ``stride``-th image, as :meth:`rows` does."""
        return self.rows(range(0, self.count, stride))

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """How they are kept."""

    @abstractmethod
    def rows(self, rows: Iterable[int]) -> Iterator[ImageArray]:
        """Yield the images of these rows, ascending. Raises RolloutError: one is damaged."""

    def _entries(self, rows: Iterable[int], together: int) -> Iterator[tuple[int, Any]]:
        """Yield (row, entry) of these rows, so many read together."""
        first, block = 0, self.dataset[:0]
        for row in rows:
            if not first <= row < first + len(block):
                first = row - row % together
                where = f"{self.where}: image {first} cannot be read"
                with reading(where, "images", RolloutError, "the file is damaged"):
                    block = self.dataset[first : first + together]
            yield row, block[row - first]

    def _rows_per_chunk(self) -> int:
        """Return how many rows are unpacked together: a chunk is, whatever is read of it."""
        return int(self.dataset.chunks[0]) if self.dataset.chunks else 1


@dataclass(frozen=True)
class RawFrames(_DataSet):
    """A data set (T, H, W, 3) uint8."""

    def __post_init__(self) -> None:
        shape, dtype = self.dataset.shape, self.dataset.dtype
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or 0 in shape:
            raise RolloutError(
                f"{self.where}: is {dtype} {shape}, expected uint8 (T, height, width, 3), or JPEG "
                f"files: uint8 (T, bytes), or (T,) of byte strings or of uint8 of any length"
            )

    @property
    def kind(self) -> Kind:
        """Pixels."""
        return "raw"

    def rows(self, rows: Iterable[int]) -> Iterator[ImageArray]:
        """Yield the images of these rows as (H, W, 3) RGB. Raises RolloutError: damaged."""
        for _, entry in self._entries(rows, self._rows_per_chunk()):
            yield np.ascontiguousarray(entry[..., ::-1]) if self.swapped else np.asarray(entry)


@dataclass(frozen=True)
class JpegFrames(_DataSet):
    """JPEG files, handed on byte for byte up to their end, unless their colours are ``swapped``.

    They are entries (T,) of uint8 of any length, byte strings (T,) of any or of one length, or rows
    (T, bytes) of uint8; shorter ones are padded. ``most`` is the bytes that all of them together
    may have, those of the file: an image may be named by a thousand entries and stored once.
    """

    most: int

    def __post_init__(self) -> None:
        if not holds_jpeg(self.dataset):
            raise RolloutError(
                f"{self.where}: is {self.dataset.dtype} {self.dataset.shape}, expected (T,) of "
                f"JPEG files"
            )

    @property
    def kind(self) -> Kind:
        """JPEG files."""
        return "jpeg"

    def rows(self, rows: Iterable[int]) -> Iterator[ImageArray]:
        """Yield the files of these rows, decoded once to be sure. Raises RolloutError: damaged."""
        left, scattered = self.most, self.dataset.dtype.kind == "O"
        for row, entry in self._entries(rows, 1 if scattered else self._rows_per_chunk()):
            data = _bytes_of(entry)
            left -= len(data) if scattered else 0  # of others the claim is checked before
            if left < 0:
                raise RolloutError(
                    f"{self.where}: its images come to more than the {self.most} bytes of the "
                    f"file; the file is damaged"
                )
            jpeg = data[: jpeg_end(data)]
            rgb = decode_jpeg(jpeg, len(data.rstrip(b"\0")), f"{self.where}: image {row}")
            yield to_jpeg(rgb[..., ::-1]) if self.swapped else jpeg


def holds_jpeg(dataset: Any) -> bool:
    """Return whether a data set is shaped and typed like JPEG files, one per row."""
    dtype, shape = dataset.dtype, dataset.shape
    if len(shape) == 2:
        return bool(dtype == np.uint8 and 0 not in shape)
    if len(shape) != 1:
        return False
    if dtype.kind in "SV" and dtype.names is None and dtype.subdtype is None:
        return True
    vlen = (dtype.metadata or {}).get("vlen")
    return vlen in (bytes, str) or (vlen is not None and np.dtype(vlen) in (np.uint8, np.int8))


def _bytes_of(entry: Any) -> bytes:
    if isinstance(entry, str):
        return entry.encode(errors="surrogateescape")
    return entry if isinstance(entry, bytes) else np.asarray(entry).tobytes()


@dataclass
class VideoFrames:
    """An MP4 file; ``where`` names the key that points to it, ``swapped`` is as in a data set.

    Attributes:
        count: frames, by the file's own header.
        rate: frames per second, by the file's own header.
    """

    path: Path
    where: str
    swapped: bool = False
    count: int = field(init=False)
    rate: float = field(init=False)
    kind: Kind = field(default="video", init=False)

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
        """Yield every ``stride``-th frame, as :meth:`rows` does."""
        return self.rows(range(0, self.count, stride))

    def rows(self, rows: Iterable[int]) -> Iterator[ImageArray]:
        """Yield these frames, ascending, as (H, W, 3) RGB. Raises RolloutError: some are missing.

        A video tells only at its end whether it held what it promised, so it is read to there.
        """
        video, index = cv2.VideoCapture(str(self.path)), 0
        asked = iter(rows)
        wanted = next(asked, None)
        try:
            while index <= self.count and video.grab():
                if index == wanted:
                    found, bgr = video.retrieve()
                    if not found:
                        break
                    rgb = bgr if self.swapped else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
                    yield np.asarray(rgb, np.uint8)
                    wanted = next(asked, None)
                index += 1
        finally:
            video.release()
        if index != self.count:
            readable = f"{index}" if index < self.count else "more"
            raise RolloutError(
                f"{self.where}: {self.path} says it has {self.count} frames, {readable} can be "
                f"read; the video is damaged"
            )


Hdf5Frames = RawFrames | JpegFrames | VideoFrames
"""All images of one camera."""


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
