"""Camera messages into RGB arrays, only when a query needs them.

Works on any object with the fields of ``sensor_msgs/Image`` or ``CompressedImage``: a message
that rclpy delivered and one that was read back from a bag give the same bytes. An image of a video,
which cannot be decoded by itself, comes with its ``pixels``.

Anyone on the network may publish an image, so nothing is decoded before its header has been read:
a few hundred bytes can ask a decoder for gigabytes.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.rig.jpeg import JPEG_BEGIN, from_jpeg, to_jpeg
from cosmos_policy_ros.rig.spec import GREY, MAX_SIDE

CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
JPEG_FORMAT = "rgb8; jpeg compressed bgr8"  # of a colour image, as image_transport spells it
_TO_RGB = {  # by OpenCV's names
    "bgr8": "COLOR_BGR2RGB",
    "rgba8": "COLOR_RGBA2RGB",
    "bgra8": "COLOR_BGRA2RGB",
    GREY: "COLOR_GRAY2RGB",
}

# Encodings of one channel: grey, depth, infrared. Also how image_transport begins a format.
_ONE_CHANNEL = re.compile(r"mono(8|16)|(8|16|32|64)[USF]C1", re.IGNORECASE)
_NAMED_TYPES = {
    "JPEG": re.compile(r"\bm?jpe?g\b", re.IGNORECASE),
    "PNG": re.compile(r"\bpng\b", re.IGNORECASE),
}
# A whole file has some ten of each; a million empty ones would keep a reader busy for seconds.
_MOST_SEGMENTS = 1000
_MOST_SCANS = 32  # of a progressive JPEG; usually 10, and each costs a pass over the whole image
_MOST_CHUNKS = 20_000  # of a PNG; libpng cuts an image of 50 MB into 6000

_EOI, _SOS = 0xD9, 0xDA
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_DECODABLE = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive; Huffman coded
_MARKER = re.compile(rb"\xff+[\x01-\xfe]")  # any number of ff may come before one
# A block of 8x8 pixels takes at least one bit, so that work is bounded by what was received.
_MOST_PIXELS_PER_BYTE = 64 * 8
# Within a scan, ff 00 is a byte of data and ff d0 to ff d7 are restarts; the rest ends it.
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # by colour type, without the opacity
_PALETTE = 3  # the colour type whose colours have 8 bits, whatever its indices have
# Compressed notes and further frames: they cost a decoder what the header says nothing of.
_PNG_REFUSED = frozenset({b"zTXt", b"iTXt", b"iCCP", b"acTL", b"fcTL", b"fdAT"})


class Jpeg(NamedTuple):
    """An image with the fields of a ``CompressedImage``."""

    format: str
    data: bytes


class _Header(NamedTuple):
    """What a JPEG's or PNG's own header says."""

    height: int
    width: int
    channels: int
    bits: int


class _DamagedError(Exception):
    """What is wrong with a compressed image, for the end of a sentence."""


def decode_image(
    message: Any, source: str, *, grey: bool = False, size: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 RGB. ``rgb8`` without row padding is a view, not a copy.

    Args:
        message: an Image (``encoding``, ``height``, ``width``, ``step``, ``data``) or a
            CompressedImage (``format``, ``data``), or a video's image (``pixels``).
        source: topic, for messages.
        grey: whether a grey image is wanted, as three equal channels; a colour camera that
            sends one is set up wrongly.
        size: rows and columns that it must have; empty for any up to :data:`MAX_SIDE`.

    Raises:
        ObservationError: not whole, too large, not of ``size``, grey or depth where colour is
            wanted, not readable, or cv_bridge is needed and missing or fails.
    """
    import cv2  # a model is asked, and trained, where no camera's message is decoded

    height, width = image_size(message, source, grey=grey)
    if size and (height, width) != tuple(size):
        raise ObservationError(
            f"{source}: the image has {height}x{width} pixels (rows x columns), the rig file "
            f"says {size[0]}x{size[1]}; set the camera's profile, or size in the rig file"
        )
    image: Any
    if hasattr(message, "pixels"):
        image = message.pixels
    elif hasattr(message, "format"):
        image = _decompressed(message, source)
    elif message.encoding in CHANNELS:
        channels = CHANNELS[message.encoding]
        rows = np.frombuffer(message.data, np.uint8).reshape(height, int(message.step))
        image = rows[:, : width * channels].reshape(height, width, channels)
        if message.encoding in _TO_RGB:
            image = cv2.cvtColor(image, getattr(cv2, _TO_RGB[message.encoding]))
    else:
        image = _through_cv_bridge(message, source)
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ObservationError(
            f"{source}: decoded to {image.dtype} {image.shape}, its header says "
            f"{height}x{width} pixels; restart the camera driver"
        )
    return np.asarray(image)


def as_jpeg(message: Any, source: str, quality: int) -> Jpeg:
    """Return what an Image becomes in the bag: recorder and policy both ask here.

    A grey image stays one, or it would be read as a colour camera's.

    Args:
        message: a raw Image.
        source: topic, for messages.
        quality: 1 to 100.

    Raises:
        ObservationError: as for :func:`decode_image`.
    """
    grey = message.encoding == GREY
    rgb = decode_image(message, source, grey=grey)
    # Spelt as image_transport does.
    said = f"{GREY}; jpeg compressed " if grey else JPEG_FORMAT
    return Jpeg(said, to_jpeg(rgb, quality, grey=grey))


def image_size(message: Any, source: str, *, grey: bool = False) -> tuple[int, int]:
    """Return an image's rows and columns by its header; nothing is decoded.

    A JPEG or PNG is followed to its end marker, so that half of one is no image.

    Raises:
        ObservationError: as for :func:`decode_image`, as far as the header tells.
    """
    if hasattr(message, "pixels"):
        return int(message.pixels.shape[0]), int(message.pixels.shape[1])
    if hasattr(message, "format"):
        return _compressed_size(message, source, grey=grey)
    encoding, height, width = message.encoding, int(message.height), int(message.width)
    _refuse_size(source, f"a '{shown(encoding)}'", height, width)
    if _ONE_CHANNEL.fullmatch(encoding) and not (grey and encoding == GREY):
        raise _no_colour(source, f"encoding '{shown(encoding)}'")
    if encoding in CHANNELS:
        step, size = int(message.step), len(message.data)
        least = width * CHANNELS[encoding]
        if step < least or size != height * step:
            raise ObservationError(
                f"{source}: image of {height}x{width} {encoding} with rows of {step} bytes "
                f"carries {size} bytes, expected {height * max(step, least)}; fix the camera "
                f"driver"
            )
    return height, width


def _decompressed(message: Any, source: str) -> Any:
    """Return the pixels of a JPEG or PNG whose header was read."""
    import cv2

    data = np.frombuffer(message.data, np.uint8)
    if data[: len(JPEG_BEGIN)].tobytes() == JPEG_BEGIN:
        try:
            return from_jpeg(data)
        except ValueError as error:
            raise _unreadable(message, source, shown(str(error))) from error
    try:
        # An image is where the camera is: a note in it on how it was held turns nothing.
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ObservationError(
            f"{source}: OpenCV cannot decode {data.size} bytes of '{shown(message.format)}' "
            f"({' '.join(str(error).split())[:200]}); restart the camera driver"
        ) from error
    if bgr is None:
        raise _unreadable(message, source, "it does not decode")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _compressed_size(message: Any, source: str, *, grey: bool) -> tuple[int, int]:
    declared = message.format.split(";")[0].strip()
    one_channel = _ONE_CHANNEL.fullmatch(declared) and not (grey and declared == GREY)
    if one_channel or "compresseddepth" in message.format.lower():
        raise _no_colour(source, f"format '{shown(message.format)}'")
    data = np.frombuffer(message.data, np.uint8).tobytes()
    try:
        if data.startswith(JPEG_BEGIN):
            kind, header = "JPEG", _read_jpeg(data, source)
        elif data.startswith(_PNG_BEGIN):
            kind, header = "PNG", _read_png(data, source)
        else:
            raise _DamagedError("it begins as neither JPEG nor PNG")
        named = [name for name, pattern in _NAMED_TYPES.items() if pattern.search(message.format)]
        if named and kind not in named:
            raise _DamagedError(f"it is a {kind}")
    except _DamagedError as error:
        raise _unreadable(message, source, str(error)) from None
    if header.bits != 8 or (header.channels == 1 and not grey):
        found = f"a {kind} of {header.channels} x {header.bits} bits a pixel"
        raise _no_colour(source, found)
    return header.height, header.width


def _read_jpeg(data: bytes, source: str) -> _Header:
    """Walk from segment to segment to the end marker; what comes after it is padding."""
    header: _Header | None = None
    at, scans = len(JPEG_BEGIN), 0
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.match(data, at)
        if found is None:
            raise _DamagedError(f"it was cut off or damaged at byte {at}, before its end marker")
        at, marker = found.end() - 2, data[found.end() - 1]
        if marker == _EOI:
            if header is None or not scans:
                raise _DamagedError("it has no pixels")
            if header.height * header.width > _MOST_PIXELS_PER_BYTE * at:
                raise _DamagedError(
                    f"its {at} bytes cannot hold the {header.height}x{header.width} pixels it "
                    f"claims"
                )
            return header
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at + 4 : at + 2 + length]
        if length < 2 or at + 2 + length > len(data):
            raise _DamagedError(f"it was cut off in the segment at byte {at}")
        at += 2 + length
        if marker in _FRAMES:
            if header is not None:
                raise _DamagedError("it has two frames")
            if marker not in _DECODABLE:
                raise _DamagedError(
                    f"its coding (marker ff{marker:02x}) is not baseline or progressive"
                )
            if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
                raise _DamagedError("its frame header is damaged")
            bits, height, width, channels = struct.unpack(">BHHB", segment[:6])
            if channels not in (1, 3):
                raise _DamagedError(f"it has {channels} channels, where 3 are a colour image")
            header = _Header(height, width, channels, bits)
            _refuse_size(source, "a JPEG", height, width)
        elif marker == _SOS:
            scans += 1
            if header is None or scans > _MOST_SCANS:
                raise _DamagedError(f"it has scans without a frame, or more than {_MOST_SCANS}")
            end = _SCAN_END.search(data, at)
            at = len(data) if end is None else end.start()
    raise _DamagedError(f"it has more than {_MOST_SEGMENTS} segments")


def _read_png(data: bytes, source: str) -> _Header:
    """Walk from chunk to chunk to the end; each carries its length and a checksum."""
    header: _Header | None = None
    at, pixels = len(_PNG_BEGIN), False
    for _ in range(_MOST_CHUNKS):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(data):
            raise _DamagedError("it was cut off, its end chunk is missing")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise _DamagedError(f"the chunk at byte {at} does not fit its checksum")
        if header is None:
            if kind != b"IHDR" or length != 13:
                raise _DamagedError("its first chunk is no header")
            width, height, bits, colour = struct.unpack_from(">IIBB", data, at + 8)
            if colour not in _PNG_CHANNELS:
                raise _DamagedError(f"its colour type is {colour}")
            bits = 8 if colour == _PALETTE else bits
            header = _Header(height, width, _PNG_CHANNELS[colour], bits)
            _refuse_size(source, "a PNG", height, width)
        elif kind in _PNG_REFUSED:
            raise _DamagedError(f"it has a chunk '{kind.decode()}', which no camera sends")
        elif kind == b"IEND":
            if not pixels:
                raise _DamagedError("it has no pixels")
            return header
        pixels = pixels or kind == b"IDAT"
        at = end + 4
    raise _DamagedError(f"it has more than {_MOST_CHUNKS} chunks")


def _through_cv_bridge(message: Any, source: str) -> Any:
    needed = f"{source}: encoding '{shown(message.encoding)}' needs cv_bridge, which"
    try:
        from cv_bridge import CvBridge  # type: ignore[import-not-found]
    except ImportError:
        raise ObservationError(
            f"{needed} is not installed; "
            f"set the camera to one of {', '.join(CHANNELS)} or install ros-<distro>-cv-bridge"
        ) from None
    except Exception as error:  # one built for another NumPy raises AttributeError
        raise _bridge_fails(f"{needed} cannot be loaded", error) from error
    try:
        return np.asarray(CvBridge().imgmsg_to_cv2(message, "rgb8"))
    # Its encodings raise KeyError, RuntimeError, cv2.error and classes of its own.
    except Exception as error:
        raise _bridge_fails(f"{needed} cannot convert it", error) from error


def _bridge_fails(what: str, error: Exception) -> ObservationError:
    told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    colours = ", ".join(name for name in CHANNELS if name != GREY)
    return ObservationError(f"{what} ({told}); set the camera to one of {colours}")


def _refuse_size(source: str, what: str, height: int, width: int) -> None:
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ObservationError(
            f"{source}: {what} image of {height}x{width} pixels (rows x columns); 1 to "
            f"{MAX_SIDE} each way are taken; set the camera to a smaller profile, or end whatever "
            f"else publishes there"
        )


def _no_colour(source: str, found: str) -> ObservationError:
    return ObservationError(
        f"{source}: {found} is no colour image of 8 bits a channel, as this camera must send; "
        f"take its colour stream, or list {GREY} in the camera's encodings in the rig file for a "
        f"grey one"
    )


def _unreadable(message: Any, source: str, why: str) -> ObservationError:
    return ObservationError(
        f"{source}: {len(message.data)} bytes of '{shown(message.format)}' are no readable "
        f"image: {why}; use JPEG or PNG transport, and look at the camera's cable"
    )
