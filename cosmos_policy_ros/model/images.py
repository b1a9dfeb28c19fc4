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
from functools import lru_cache

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


def as_stored(
    image: ImageArray, role: str, *, flip: bool = False, jpeg_quality: int | None = None
) -> ImageArray:
    """Turn a camera image as the demonstrations were stored: upright, through JPEG.

    Args:
        image: (H, W, 3) uint8 RGB.
        role: camera role, named in errors.
        flip: turn it upside down, as a simulator's rendering needs whose first row is the lowest.
        jpeg_quality: 1 to 95; pass it through JPEG at the camera's size. None: do not.

    Returns:
        (H, W, 3) uint8.

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
    return image


def reduce(image: ImageArray, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Bring (H, W, 3) uint8 to (size, size, 3) uint8 on a device, by the stored size.

    One that has the size already is left as it is. A CPU uses Pillow itself; another device gets
    the image and does the same, bit for bit (:func:`resize`).
    """
    sizes = [] if image.shape[:2] == (size, size) else [STORED_SIZE, size]
    if torch.device(device).type == "cpu":
        for side in sizes:
            if image.shape[:2] != (side, side):
                resized = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
                image = np.asarray(resized, dtype=np.uint8)
        return torch.tensor(image)
    pixels = send(torch.from_numpy(image), device)
    for side in sizes:
        pixels = resize(pixels, side)
    return pixels


PRECISION = 22  # bits behind the point of Pillow's filter weights
SUPPORT = 2  # pixels to either side that a bicubic filter reaches


def resize(image: Tensor, side: int) -> Tensor:
    """Resize (H, W, 3) uint8 to (side, side, 3), bit for bit as Pillow's bicubic filter does.

    Pillow resizes rows, rounds to whole levels and resizes columns, with weights of 22 bits behind
    the point. Sums of their products with levels are whole numbers below 2^53, so that matrix
    products in float64 are exact, in whatever order a device adds.
    """
    pixels = image.permute(2, 0, 1)
    for _ in range(2):  # rows, then, transposed, columns
        length = pixels.shape[-1]
        if length != side:
            weights = _bicubic(length, side, pixels.device)
            sums = pixels.double() @ weights.T + 2 ** (PRECISION - 1)
            pixels = (sums / 2**PRECISION).floor().clamp(0, 255)
        pixels = pixels.mT
    return pixels.permute(1, 2, 0).to(torch.uint8)


@lru_cache(32)
def _bicubic(length: int, side: int, device: torch.device) -> Tensor:
    """Return Pillow's weights (side, length) float64, whole numbers, of one row's resizing.

    The filter (Keys 1981, with a = -1/2) is stretched over the pixels that fall together.
    """
    scale = length / side
    stretch = max(scale, 1.0)
    weights = np.zeros((side, length))
    for row in range(side):
        centre = (row + 0.5) * scale
        first = max(int(centre - SUPPORT * stretch + 0.5), 0)
        last = min(int(centre + SUPPORT * stretch + 0.5), length)
        x = np.abs((np.arange(first, last) - centre + 0.5) / stretch)
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        window = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        scaled = window / window.sum() * 2**PRECISION
        weights[row, first:last] = np.trunc(scaled + np.copysign(0.5, scaled))
    return torch.from_numpy(weights).to(device)


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Bring a tensor to a device; from the CPU to a GPU without waiting until it is there."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def centre_crop(image: Tensor) -> Tensor:
    """Crop the middle 90 % of the area of (S, S, 3) uint8 and enlarge it back to S x S."""
    size = image.shape[0]
    window = math.floor(size * math.sqrt(CROP_AREA))
    start = round((size - window) / 2)
    pixels = image.permute(2, 0, 1).unsqueeze(0)
    return enlarge(pixels, start, start, window).squeeze(0).permute(1, 2, 0).contiguous()


def enlarge(images: Tensor, top: int, left: int, window: int) -> Tensor:
    """Cut a square window out of (N, 3, S, S) uint8 and enlarge it back to S x S."""
    crop = images[:, :, top : top + window, left : left + window].float()
    enlarged = interpolate(crop, size=images.shape[-2:], mode="bilinear", antialias=True)
    return enlarged.round().to(torch.uint8)


def to_model(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Map (N, H, W, 3) uint8 to (1, 3, N, H, W) in [-1, 1], on the same device.

    The arithmetic itself runs in ``dtype``: with bfloat16 both the division and the subtraction
    round, and the released weights were trained on the twice rounded numbers.
    """
    video = images.permute(3, 0, 1, 2).unsqueeze(0).to(dtype)
    return video.div(127.5).sub(1)


def from_model(video: Tensor) -> ImageArray:
    """Map (1, 3, N, H, W) in [-1, 1] to (N, H, W, 3) uint8; truncated, not rounded."""
    levels = ((video[0] + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 3, 0).cpu().numpy())
