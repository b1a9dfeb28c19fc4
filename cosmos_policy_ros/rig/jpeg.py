"""JPEG files from pixels and back, by one library wherever the package meets one.

What a recorder writes is what a policy looked at because both come here: libjpeg-turbo, which the
wheel brings along, makes the same bytes of the same pixels, and the same pixels of the same bytes,
on every processor. It also says when pixels are missing, where OpenCV fills in grey.
"""

from __future__ import annotations

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from cosmos_policy_ros.rig.spec import JPEG_QUALITY

JPEG_BEGIN = b"\xff\xd8"
# Half the colour resolution each way. At a model's 224 px what is lost is 46 dB below the image
# where full resolution would lose 51 dB below, for a third more bytes; the released checkpoints
# were trained on video, which halves it too.
SUBSAMPLING = "420"


def to_jpeg(rgb: NDArray[np.uint8], quality: int = JPEG_QUALITY, *, grey: bool = False) -> bytes:
    """Return (H, W, 3) RGB as a JPEG file, of one channel if ``grey``; ``quality`` is 1 to 100."""
    # The encoder asks nothing of the rows' distance.
    pixels = np.ascontiguousarray(rgb[..., :1] if grey else rgb)
    colours, sampling = ("GRAY", "Gray") if grey else ("RGB", SUBSAMPLING)
    return bytes(simplejpeg.encode_jpeg(pixels, quality, colours, sampling))


def from_jpeg(data: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) RGB of a JPEG file; three equal channels of a grey one.

    Raises:
        ValueError: it does not decode, or not to its last pixel. Its header is to be trusted: ask
            ``rig.images.image_size`` first, since a small file may claim gigabytes.
    """
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
