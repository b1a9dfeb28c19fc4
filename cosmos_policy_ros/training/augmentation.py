"""Random changes to a sample's pictures, the same for all of them.

What the released trainer does with torchvision, drawn and applied here: a crop of 90 % of the area,
for ALOHA a turn by up to five degrees, then brightness, contrast, saturation and hue. Frames that
hold no picture stay black. At test time a centre crop stands for all of it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from cosmos_policy_ros.model.images import CROP_AREA, Picture, enlarge
from cosmos_policy_ros.training.config import Strength

MOST_TURNED = 5.0  # degrees; "strong" only
MOST_HUE = 0.05  # of a full turn of the colour circle
# How far the factors of brightness, contrast and saturation may be from 1.
JITTER = {"standard": (0.2, 0.2, 0.2), "strong": (0.3, 0.4, 0.5)}
GREY = torch.tensor([0.2989, 0.587, 0.114])  # shares of red, green and blue


class Augmentation(NamedTuple):
    """One draw.

    Attributes:
        top, left: of the crop's corner, in shares of the room it has.
        angle: degrees, counter-clockwise.
        brightness, contrast, saturation: factors.
        hue: share of a full turn.
    """

    top: float
    left: float
    angle: float
    brightness: float
    contrast: float
    saturation: float
    hue: float


def draw_augmentation(strength: Strength, random: np.random.Generator) -> Augmentation | None:
    """Draw an augmentation; None for "none"."""
    if strength == "none":
        return None
    angle = random.uniform(-MOST_TURNED, MOST_TURNED) if strength == "strong" else 0.0
    brightness, contrast, saturation = (
        random.uniform(1 - most, 1 + most) for most in JITTER[strength]
    )
    return Augmentation(
        top=random.random(),
        left=random.random(),
        angle=angle,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=random.uniform(-MOST_HUE, MOST_HUE),
    )


def apply_augmentation(augmentation: Augmentation, pictures: Picture) -> Picture:
    """Change (N, S, S, 3) uint8 pictures, all in the same way."""
    a, size = augmentation, pictures.shape[1]
    window = round(size * math.sqrt(CROP_AREA))
    room = size - window + 1
    pixels = torch.tensor(pictures).permute(0, 3, 1, 2)
    pixels = enlarge(pixels, int(a.top * room), int(a.left * room), window)
    if a.angle:
        pixels = _turn(pixels, a.angle)
    pixels = _blend(pixels, torch.zeros(()), a.brightness)
    # The mean is each picture's own: how dark it is, not how dark its neighbours are.
    pixels = _blend(pixels, _grey(pixels).float().mean((1, 2, 3), keepdim=True), a.contrast)
    pixels = _blend(pixels, _grey(pixels), a.saturation)
    turned = [_shift_hue(picture, a.hue) for picture in pixels.permute(0, 2, 3, 1).numpy()]
    return np.stack(turned)


def _turn(pixels: Tensor, degrees: float) -> Tensor:
    """Turn (N, 3, S, S) about the centre; what comes in from outside is black."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    where = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(pixels), -1, -1)
    grid = affine_grid(where, list(pixels.shape), align_corners=False)
    turned = grid_sample(pixels.float(), grid, mode="nearest", align_corners=False)
    return turned.to(torch.uint8)


def _blend(pixels: Tensor, other: Tensor, factor: float) -> Tensor:
    """Mix in, or take away, another picture; numbers are cut off, not rounded."""
    mixed = factor * pixels.float() + (1 - factor) * other.float()
    return mixed.clamp(0, 255).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    return (pixels.float() * GREY.view(3, 1, 1)).sum(1, keepdim=True).to(torch.uint8)


def _shift_hue(picture: Picture, turn: float) -> Picture:
    hsv = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    # The last level as wide as the others, as torchvision counts them.
    return (rgb.clip(0, 1) * 255.999).astype(np.uint8)
