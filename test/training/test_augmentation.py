"""Holds the augmentations against torchvision's, whose results lie in ``data`` as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cosmos_policy_ros.training.samples import Augmentation, apply_augmentation, draw_augmentation

DATA = Path(__file__).parent / "data"
CASES = {
    "strong": Augmentation(2 / 3, 0.2, 4.0, 1.2, 0.7, 1.4, 0.04),
    "negative": Augmentation(0.0, 0.99, -3.0, 0.8, 1.3, 0.6, -0.05),
    "standard": Augmentation(0.5, 0.5, 0.0, 1.1, 0.9, 1.1, 0.02),
}


def image(name: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(DATA / f"{name}.png"))


@pytest.mark.parametrize("name", CASES)
def test_a_image_comes_out_as_torchvision_makes_it(name: str) -> None:
    (found,) = apply_augmentation(CASES[name], image("plain")[None])
    off = np.abs(found.astype(int) - image(f"augmented_{name}"))
    assert off.max() <= 1  # of 255: another colour conversion rounds elsewhere
    assert (off > 0).mean() < 0.02


def test_all_images_of_a_sample_change_alike_each_by_itself() -> None:
    plain = image("plain")
    images = np.stack([plain, plain // 2, plain])
    together = apply_augmentation(CASES["strong"], images)
    np.testing.assert_array_equal(together[0], together[2])
    for index, alone in enumerate(images):
        np.testing.assert_array_equal(
            together[index], apply_augmentation(CASES["strong"], alone[None])[0]
        )


def test_draws_keep_their_ranges() -> None:
    random = np.random.default_rng(0)
    draws = np.array([draw_augmentation("strong", random) for _ in range(2000)], float)
    low, high = draws.min(axis=0), draws.max(axis=0)
    np.testing.assert_allclose(low, [0, 0, -5, 0.7, 0.6, 0.5, -0.05], atol=0.01)
    np.testing.assert_allclose(high, [1, 1, 5, 1.3, 1.4, 1.5, 0.05], atol=0.01)
    standard = [draw_augmentation("standard", random) for _ in range(200)]
    assert {a.angle for a in standard if a} == {0.0}
    assert draw_augmentation("none", random) is None
