"""Camera images into what the model was trained on.

The released checkpoints saw 480x640 frames squeezed (aspect not kept) to 256x256 for storage, then
to the model's size, both with Pillow's bicubic filter; at test time a centre crop of 90 % of the
area stands for the random crops of training and is enlarged back with an antialiased bilinear
filter on whole numbers. The simulators' checkpoints were trained on square renderings turned
upright and stored as JPEG; their ``config.yaml`` asks for both.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from cosmos_policy_ros.core.errors import ObservationError

ImageArray = NDArray[np.uint8]

STORED_SIZE = 256  # pixels; what the demonstrations were stored at
CROP_AREA = 0.9  # of the image; the area that training's random crops kept


def reduce(
    image: ImageArray, size: int, role: str, *, flip: bool = False, jpeg_quality: int | None = None
) -> ImageArray:
    """Bring one camera image to the model's size: flip, JPEG, resize, in that order.

    Args:
        image: (H, W, 3) uint8 RGB. One that is ``size`` x ``size`` already is not resized.
        size: the model's image size, pixels.
        role: camera role, named in errors.
        flip: turn it upside down, as a simulator's rendering needs whose first row is the lowest.
        jpeg_quality: 1 to 95; pass it through JPEG at the camera's size. None: do not.

    Returns:
        (size, size, 3) uint8.

    Raises:
        ObservationError: not a non-empty (H, W, 3) uint8 array.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ObservationError(
            f"camera '{role}': image has shape {image.shape} and type {image.dtype}; the model "
            f"takes (H, W, 3) uint8 RGB"
        )
    if flip:
        image = np.ascontiguousarray(image[::-1])
    if jpeg_quality is not None:
        # Pillow's encoder, like training's: another one's tables, or full instead of halved colour
        # resolution, leave other errors than those trained on.
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=jpeg_quality)
        image = np.asarray(Image.open(file), dtype=np.uint8)
    if image.shape[:2] != (size, size):
        for side in (STORED_SIZE, size):
            if image.shape[:2] != (side, side):
                resized = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
                image = np.asarray(resized, dtype=np.uint8)
    return image


def centre_crop(image: ImageArray) -> ImageArray:
    """Crop the middle 90 % of the area of (S, S, 3) and enlarge it back to S x S."""
    size = image.shape[0]
    window = math.floor(size * math.sqrt(CROP_AREA))
    start = round((size - window) / 2)
    pixels = torch.tensor(image).permute(2, 0, 1).unsqueeze(0)
    enlarged = enlarge(pixels, start, start, window).squeeze(0).permute(1, 2, 0)
    return np.ascontiguousarray(enlarged.numpy())


def enlarge(images: Tensor, top: int, left: int, window: int) -> Tensor:
    """Cut a square window out of (N, 3, S, S) uint8 and enlarge it back to S x S."""
    crop = images[:, :, top : top + window, left : left + window].float()
    enlarged = interpolate(crop, size=images.shape[-2:], mode="bilinear", antialias=True)
    return enlarged.round().to(torch.uint8)


def to_model(images: ImageArray, dtype: torch.dtype) -> Tensor:
    """Map (N, H, W, 3) uint8 to (1, 3, N, H, W) in [-1, 1].

    The arithmetic itself runs in ``dtype``: with bfloat16 both the division and the subtraction
    round, and the released weights were trained on the twice rounded numbers.
    """
    video = torch.from_numpy(images).permute(3, 0, 1, 2).unsqueeze(0).to(dtype)
    return video.div(127.5).sub(1)


def from_model(video: Tensor) -> ImageArray:
    """Map (1, 3, N, H, W) in [-1, 1] to (N, H, W, 3) uint8; truncated, not rounded."""
    levels = ((video[0] + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 3, 0).cpu().numpy())
