"""Pins the picture pipeline against independent filters: a shifted crop misleads the policy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from cosmos_policy_ros.errors import ObservationError
from cosmos_policy_ros.model.images import centre_crop, prepare, to_model


def scene(height: int, width: int) -> np.ndarray:
    """Make a smooth picture with edges, so that a wrong filter or window shows."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    red = 127 + 120 * np.sin(9 * x + 5 * y)
    green = 255 * ((x > 0.3) & (y < 0.6))
    blue = 255 * x * y
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize(("size", "window", "start"), [(224, 212, 6), (64, 60, 2)])
def test_pipeline_against_pillow_alone(size: int, window: int, start: int) -> None:
    assert window == math.floor(size * math.sqrt(0.9))
    stored = Image.fromarray(scene(480, 640)).resize((256, 256), Image.Resampling.BICUBIC)
    box = (start, start, start + window, start + window)
    crop = stored.resize((size, size), Image.Resampling.BICUBIC).crop(box)
    expected = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    found = prepare(scene(480, 640), size, "primary")
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    # Pillow's fixed-point arithmetic may round to the other side of a half.
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_golden_pixels() -> None:
    """Made with Pillow 13.0 and torch 2.13; another filter or order of steps moves them by more."""
    found = prepare(scene(480, 640), 224, "primary")
    points = found[[0, 40, 111, 150, 223], [0, 66, 80, 200, 223]].astype(int)
    assert np.abs(points - GOLDEN).max() <= 1


GOLDEN = np.array([[174, 0, 0], [59, 254, 15], [70, 255, 47], [8, 0, 147], [229, 0, 240]])


def test_picture_of_the_right_size_is_only_cropped() -> None:
    picture = scene(64, 64)
    np.testing.assert_array_equal(prepare(picture, 64, "primary"), centre_crop(picture))


def test_flat_picture_stays_flat() -> None:
    picture = np.full((480, 640, 3), 201, dtype=np.uint8)
    assert np.unique(prepare(picture, 64, "primary")).tolist() == [201]


def test_bfloat16_rounds_twice() -> None:
    """All 256 levels, against a table made without torch."""
    levels = np.arange(256, dtype=np.uint8)
    video = to_model(np.broadcast_to(levels[:, None, None, None], (256, 1, 1, 3)).copy(), BF16)
    expected = [bfloat16(bfloat16(level / 127.5) - 1) for level in range(256)]
    assert video[0, 0, :, 0, 0].float().tolist() == expected
    once = to_model(np.full((1, 1, 1, 3), 129, np.uint8), torch.float32).bfloat16()
    assert float(once.flatten()[0]) != expected[129], "the test would not see one rounding"


BF16 = torch.bfloat16


def bfloat16(number: float) -> float:
    """Round to 8 significant bits, ties to even."""
    if number == 0:
        return 0.0
    step = 2.0 ** (math.floor(math.log2(abs(number))) - 7)
    return round(number / step) * step


def test_model_axes() -> None:
    images = np.zeros((5, 4, 6, 3), dtype=np.uint8)
    images[2, 1, 3, 0] = 255
    video = to_model(images, torch.float32)
    assert video.shape == (1, 3, 5, 4, 6)
    assert video[0, 0, 2, 1, 3] == 1 and video.sum() == -video.numel() + 2


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((480, 640), np.uint8),
        np.zeros((480, 640, 4), np.uint8),
        np.zeros((0, 640, 3), np.uint8),
        np.full((480, 640, 3), np.nan),
    ],
    ids=["grey", "alpha", "empty", "NaN"],
)
def test_unusable_picture_names_its_camera(picture: np.ndarray) -> None:
    with pytest.raises(ObservationError, match=r"camera 'left_wrist'.*\(H, W, 3\) uint8"):
        prepare(picture, 64, "left_wrist")
