"""Pins the image pipeline against independent filters: a shifted crop misleads the policy."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.images import as_stored, centre_crop, reduce, resize, to_model
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sequence import prepare_images
from cosmos_policy_ros.rig.observation import Observation

# What torchvision 0.28.0 (``transforms.functional``, as in the released evaluation) with torch
# 2.13.0 and Pillow 13.0.0 makes of scene(480, 640): Pillow's default resize to 256, again to 224,
# on uint8 center_crop to 212, and resize with antialias=True back to 224. Ours is not in it.
TORCHVISION = Path(__file__).with_name("data") / "torchvision_224.png"


def prepare(image: np.ndarray, size: int, role: str = "primary", **options: Any) -> np.ndarray:
    return centre_crop(reduce(as_stored(image, role, **options), size)).numpy()


def scene(height: int, width: int) -> np.ndarray:
    """Make a smooth image with edges, so that a wrong filter or window shows."""
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
    found = prepare(scene(480, 640), size)
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    # Pillow's fixed-point arithmetic may round to the other side of a half.
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_whole_image_equals_torchvisions() -> None:
    """Other versions may round a tie elsewhere; torchvision's own ``v2`` differs in 9 %."""
    off = np.abs(prepare(scene(480, 640), 224).astype(int) - image_in(TORCHVISION))
    assert off.shape == (224, 224, 3)
    assert off.max() <= 1
    assert np.count_nonzero(off) < 0.01 * off.size


def image_in(file: Path | io.BytesIO) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


def test_golden_pixels() -> None:
    """Made with Pillow 13.0 and torch 2.13; another filter or order of steps moves them by more."""
    found = prepare(scene(480, 640), 224)
    points = found[[0, 40, 111, 150, 223], [0, 66, 80, 200, 223]].astype(int)
    assert np.abs(points - GOLDEN).max() <= 1


GOLDEN = np.array([[174, 0, 0], [59, 254, 15], [70, 255, 47], [8, 0, 147], [229, 0, 240]])


@pytest.mark.parametrize(("render", "size"), [(256, 224), (224, 224), (250, 64)])
def test_simulators_image_against_pillow_alone(render: int, size: int) -> None:
    """LIBERO renders 256, RoboCasa 224: upright first, then JPEG at that size, then as always.

    At both sizes JPEG's blocks fit in, so that it could come first; at 250 the order shows.
    """
    rendering = scene(render, render)
    file = io.BytesIO()
    ImageOps.flip(Image.fromarray(rendering)).save(file, format="JPEG", quality=95)
    expected = prepare(image_in(file).astype(np.uint8), size)
    found = prepare(rendering, size, flip=True, jpeg_quality=95)
    np.testing.assert_array_equal(found, expected)
    for other in (
        {"flip": True},
        {"jpeg_quality": 95},
        {"flip": True, "jpeg_quality": 94},
    ):
        assert not np.array_equal(prepare(rendering, size, **other), expected), other


def test_jpeg_halves_the_resolution_of_colour_as_the_training_images_did() -> None:
    """Columns of red and blue one pixel wide blur into each other; at full resolution they stay."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 255
    halved, full = io.BytesIO(), io.BytesIO()
    Image.fromarray(stripes).save(halved, format="JPEG", quality=95, subsampling="4:2:0")
    Image.fromarray(stripes).save(full, format="JPEG", quality=95, subsampling="4:4:4")
    found = prepare(stripes, 64, jpeg_quality=95)
    expected, other = (
        centre_crop(torch.tensor(image_in(file).astype(np.uint8))).numpy().astype(int)
        for file in (halved, full)
    )
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - other).max() > 50


def test_flip_turns_rows_and_not_columns() -> None:
    image = scene(64, 64)
    turned = prepare(image, 64, flip=True)
    np.testing.assert_array_equal(turned, prepare(image, 64)[::-1])


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(480, 640, 256), (256, 256, 224), (480, 640, 224), (224, 224, 256), (97, 201, 64), (3, 5, 7)],
)
def test_a_device_resizes_bit_for_bit_as_pillow(height: int, width: int, side: int) -> None:
    """Noise meets every rounding; a scene with edges, the filter's overshoot."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for image in (noise, scene(height, width), noise // 128 * 255):
        expected = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        found = resize(torch.from_numpy(image), side)
        np.testing.assert_array_equal(found.numpy(), np.asarray(expected))


@pytest.mark.parametrize(
    ("model", "flip", "quality"),
    [("libero_2b", True, 95), ("robocasa_2b", True, 95), ("aloha_2b", False, None)],
)
def test_released_checkpoints_ask_for_what_they_were_evaluated_with(
    model: str, flip: bool, quality: int | None
) -> None:
    config = load_config(CheckpointConfig, config_folder("models") / model / "config.yaml")
    assert (config.flip_images, config.jpeg_quality) == (flip, quality)


def test_every_camera_is_prepared_as_the_checkpoint_asks(
    tiny: CosmosPolicy, observation: Observation
) -> None:
    config = dataclasses.replace(tiny.checkpoint.config, flip_images=True, jpeg_quality=60)
    checkpoint = dataclasses.replace(tiny.checkpoint, config=config)
    for role, found in prepare_images(observation, checkpoint).items():
        expected = prepare(observation.images[role], 64, role, flip=True, jpeg_quality=60)
        np.testing.assert_array_equal(found, expected)
        assert not np.array_equal(found, prepare(observation.images[role], 64, role))


def test_image_of_the_right_size_is_only_cropped() -> None:
    image = scene(64, 64)
    np.testing.assert_array_equal(prepare(image, 64), centre_crop(torch.tensor(image)))


def test_flat_image_stays_flat() -> None:
    image = np.full((480, 640, 3), 201, dtype=np.uint8)
    assert np.unique(prepare(image, 64)).tolist() == [201]


def test_bfloat16_rounds_twice() -> None:
    """All 256 levels, against a table made without torch."""
    video = to_model(
        torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 1, 3), BF16
    )
    expected = [bfloat16(bfloat16(level / 127.5) - 1) for level in range(256)]
    assert video[0, 0, :, 0, 0].float().tolist() == expected
    once = to_model(torch.full((1, 1, 1, 3), 129, dtype=torch.uint8), torch.float32).bfloat16()
    assert float(once.flatten()[0]) != expected[129], "the test would not see one rounding"


BF16 = torch.bfloat16


def bfloat16(number: float) -> float:
    """Round to 8 significant bits, ties to even."""
    if number == 0:
        return 0.0
    step = 2.0 ** (math.floor(math.log2(abs(number))) - 7)
    return round(number / step) * step


def test_model_axes() -> None:
    images = torch.zeros(5, 4, 6, 3, dtype=torch.uint8)
    images[2, 1, 3, 0] = 255
    video = to_model(images, torch.float32)
    assert video.shape == (1, 3, 5, 4, 6)
    assert video[0, 0, 2, 1, 3] == 1 and video.sum() == -video.numel() + 2


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((480, 640), np.uint8),
        np.zeros((480, 640, 4), np.uint8),
        np.zeros((0, 640, 3), np.uint8),
        np.full((480, 640, 3), np.nan),
    ],
    ids=["grey", "alpha", "empty", "NaN"],
)
def test_unusable_image_names_its_camera(image: np.ndarray) -> None:
    with pytest.raises(ObservationError, match=r"camera 'left_wrist'.*\(H, W, 3\) uint8"):
        prepare(image, 64, "left_wrist")
