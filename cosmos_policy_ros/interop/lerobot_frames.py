"""The images of one camera of a LeRobot episode: a part of a video, or files within the rows."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cosmos_policy_ros.bags.jpeg import ImageArray
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import UnreadableError, open_file, reading
from cosmos_policy_ros.interop.jpeg_files import decode_jpeg, jpeg_end
from cosmos_policy_ros.interop.parquet_files import ParquetFile, check_begin
from cosmos_policy_ros.interop.row_episode import MAX_PIXELS, Floats, Kind
from cosmos_policy_ros.rig.jpeg import JPEG_BEGIN, to_jpeg

_MP4_BEGIN = b"ftyp"  # bytes 4 to 8 of the file
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = ("RGB", "RGBA", "P", "L", "1")  # 8 bits at most; depth is kept in more
_NEAR = 0.25
"""Of a row's time, by which its frame's may be off."""


@dataclass(frozen=True)
class VideoPart:
    """Frames of a video, one for each row.

    Attributes:
        path: of an MP4 file.
        where: names the camera in messages.
        seconds: (T,) of each row in the video.
        period: from row to row [s].
        whole: the video holds nothing else.
        swapped: its images have red and blue exchanged, and are handed on put right.
    """

    path: Path
    where: str
    seconds: Floats
    period: float
    whole: bool
    swapped: bool

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.seconds)

    @property
    def kind(self) -> Kind:
        """A video."""
        return "video"

    def rows(self, rows: Iterable[int]) -> Iterator[ImageArray]:
        """Yield the frames of these rows, ascending, as (H, W, 3) RGB.

        Every frame of the part is decoded and its time compared with its row's.

        Raises:
            RolloutError: a row has no frame, there is one too many, or one is damaged.
        """
        asked = iter(rows)
        wanted = next(asked, None)
        row, shape = 0, None
        for frame in self._frames():
            if row == self.count:
                if self.whole:
                    raise RolloutError(
                        f"{self.where}: {self.path} has more frames than the {self.count} rows"
                    )
                break
            if frame.time is None:
                raise RolloutError(f"{self._at(row)}: its frame has no time; the video is damaged")
            early = (self.seconds[row] - frame.time) / self.period
            if early > _NEAR:
                if row == 0 and not self.whole:
                    continue  # another episode's
                raise RolloutError(f"{self._at(row)}: a frame at {frame.time:.3f} s is too many")
            if early < -_NEAR:
                raise RolloutError(
                    f"{self._at(row)}: has no frame, the next is at {frame.time:.3f} s; the video "
                    f"is damaged, or not of these rows"
                )
            if frame.is_corrupt:
                raise RolloutError(f"{self._at(row)}: its frame is damaged")
            if shape not in (None, (frame.width, frame.height)):
                raise RolloutError(f"{self._at(row)}: has {frame.width}x{frame.height} pixels")
            shape = (frame.width, frame.height)
            if row == wanted:
                with self._reading():
                    rgb = frame.to_ndarray(format="rgb24")
                yield np.ascontiguousarray(rgb[..., ::-1]) if self.swapped else rgb
                wanted = next(asked, None)
            row += 1
        if row != self.count:
            raise RolloutError(
                f"{self.where}: {self.path} has frames of {row} rows, the episode has "
                f"{self.count}; the video was cut off, or is damaged"
            )

    def digest(self, sha: Any) -> None:
        """Add the part's encoded frames to a digest: they stay the same in another file."""
        with self._opened() as (container, stream):
            begin, end = self.seconds[0] - self.period / 2, self.seconds[-1] + self.period / 2
            with self._reading():
                for packet in container.demux(stream):
                    if packet.pts is None:
                        continue
                    time = float(packet.pts * packet.time_base)
                    if begin <= time <= end:
                        sha.update(bytes(packet))
                    elif time > end + 100 * self.period:  # frames are not stored in their order
                        break

    def _frames(self) -> Iterator[Any]:
        """Yield decoded frames, from one before the part's first row on."""
        with self._opened() as (container, stream):
            stream.thread_type = "AUTO"
            frames = container.decode(stream)
            while True:
                with self._reading():
                    frame = next(frames, None)
                if frame is None:
                    return
                yield frame

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        with self._reading():
            check_begin(self.path, _MP4_BEGIN, "an MP4 video", 4)
            file = open_file(self.path)
        with file:
            with self._reading():
                # What looks like a list of other files would be followed: the format is given,
                # and no name of a file.
                container: Any = av.open(file, "r", format="mp4", metadata_errors="replace")
            with container:
                with self._reading():
                    if not container.streams.video:
                        raise UnreadableError("has no images")
                    stream = container.streams.video[0]
                    if stream.codec_context is None:
                        raise UnreadableError("is of a codec that is not known here")
                    if not 0 < stream.width * stream.height <= MAX_PIXELS:
                        raise UnreadableError(
                            f"has {stream.width}x{stream.height} pixels, at most {MAX_PIXELS} of "
                            f"them are decoded"
                        )
                    # What the frames say themselves may be more than what the file says.
                    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
                    begin = float(self.seconds[0] - self.period / 2)
                    if begin > 0:
                        container.seek(int(begin / stream.time_base), stream=stream)
                yield container, stream

    @contextmanager
    def _reading(self) -> Iterator[None]:
        where = f"{self.where}: {self.path}"
        with reading(where, "a video", RolloutError, "the video may be damaged; copy it again"):
            yield

    def _at(self, row: int) -> str:
        return f"{self.where}: {self.path}: row {row} at {self.seconds[row]:.3f} s"


@dataclass(frozen=True)
class EmbeddedFrames:
    """PNG or JPEG files in a column of the rows; JPEG is handed on byte for byte.

    Attributes:
        file: open.
        key: of the column.
        where: names the camera in messages.
        span: the episode's rows in the file.
        swapped: the images have red and blue exchanged, and are handed on put right.
    """

    file: ParquetFile
    key: str
    where: str
    span: range
    swapped: bool

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.span)

    @property
    def kind(self) -> Kind:
        """What the first image is."""
        first = next(self.file.images(self.key, self.span[:1]))
        return "jpeg" if first.startswith(JPEG_BEGIN) else "raw"

    def rows(self, rows: Iterable[int]) -> Iterator[ImageArray]:
        """Yield the images of these rows, ascending: JPEG files, or of PNG (H, W, 3) RGB.

        Raises:
            RolloutError: a row has no image, or another file than such, or a damaged one.
        """
        asked = iter(rows)
        wanted, kind = next(asked, None), self.kind
        for row, data in enumerate(self.file.images(self.key, self.span)):
            if wanted is None:
                return
            if row == wanted:
                yield self._image(data, kind, f"{self.where}: row {row}")
                wanted = next(asked, None)

    def digest(self, sha: Any) -> None:
        """Add the images' files to a digest."""
        for data in self.file.images(self.key, self.span):
            sha.update(hashlib.sha256(data).digest())

    def _image(self, data: bytes, kind: Kind, where: str) -> ImageArray:
        jpeg = data[: jpeg_end(data)] if data.startswith(JPEG_BEGIN) else None
        rgb = decode_png(data, where) if jpeg is None else decode_jpeg(jpeg, len(data), where)
        if jpeg is not None and kind == "jpeg" and not self.swapped:
            return jpeg
        if self.swapped:
            rgb = np.ascontiguousarray(rgb[..., ::-1])
        return to_jpeg(rgb) if kind == "jpeg" else rgb


LeRobotFrames = VideoPart | EmbeddedFrames
"""All images of one camera."""


def decode_png(data: bytes, where: str) -> NDArray[np.uint8]:
    """Return the pixels of a PNG file, (H, W, 3) RGB.

    Raises:
        RolloutError: it is none, is not whole, has more than 8 bits in a colour, or more pixels
            than a camera's image.
    """
    with reading(where, "an image", RolloutError, "the image is damaged"):
        if not data.startswith(_PNG_BEGIN):
            raise UnreadableError("is no PNG or JPEG file")
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableError(
                    f"has {image.width}x{image.height} pixels, at most {MAX_PIXELS} are decoded"
                )
            if image.mode not in _PNG_MODES:
                raise UnreadableError(f"is a PNG of kind {image.mode}, expected colours of 8 bits")
            return np.asarray(image.convert("RGB"))
