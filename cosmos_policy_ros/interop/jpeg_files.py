"""JPEG files within other files: where one ends, and whether it is whole and of a camera's size."""

from __future__ import annotations

import re
from typing import Any

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.interop.row_episode import MAX_PIXELS
from cosmos_policy_ros.rig.jpeg import JPEG_BEGIN, from_jpeg

MAX_SCANS = 64
"""Passes over a progressive JPEG; encoders make ten, and each takes as long as an image."""
_JPEG_END = 0xD9
_JPEG_SCAN = 0xDA
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # heads of an image, which hold sizes
# Within a scan, 0xff stands before a zero, a restart marker or a filling 0xff, else it ends there.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def jpeg_end(data: bytes) -> int:
    """Return how many bytes at the beginning are one whole JPEG file; 0 when there is none.

    What lies behind is padding, whatever is in it. An end marker within a segment, that of a
    preview, is none.
    """
    at = len(JPEG_BEGIN)
    if not data.startswith(JPEG_BEGIN):
        return 0
    while at + 2 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _JPEG_END:
            return at + 2
        if marker == 0xFF:
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _JPEG_SCAN:
            found = _AFTER_SCAN.search(data, at)
            if found is None:
                return 0
            at = found.start()
    return 0


def decode_jpeg(jpeg: bytes, length: int, where: str) -> Any:
    """Return the pixels of a JPEG file, (H, W, 3) RGB.

    Args:
        jpeg: the file; empty where there is no whole one.
        length: of what is stored, for the message.
        where: the same.

    Raises:
        RolloutError: it is not whole, does not decode, or has more pixels or passes over them than
            a camera's.
    """
    at, height, width = len(JPEG_BEGIN), 0, 0
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        marker, size = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker in _FRAME_MARKERS:
            height, width = (int.from_bytes(jpeg[at + i : at + i + 2], "big") for i in (5, 7))
            break
        at += 2 + size if marker != 0xFF else 1
    scans = jpeg.count(bytes([0xFF, _JPEG_SCAN]))
    if height * width > MAX_PIXELS or scans > MAX_SCANS:
        raise RolloutError(
            f"{where}: a JPEG of {width}x{height} pixels in {scans} scans; at most {MAX_PIXELS} "
            f"pixels in {MAX_SCANS} are decoded"
        )
    fault = "is no whole JPEG"
    if jpeg:
        try:
            return from_jpeg(jpeg)
        except ValueError as error:
            fault = f"does not decode ({error})"
    raise RolloutError(f"{where}, {length} bytes, {fault}; the file is damaged there")
