"""Every common encoding must give the same RGB picture; anything else a clear error."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from cosmos_policy_ros.errors import ObservationError
from cosmos_policy_ros.rig.images import decode_image

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def message(encoding: str, pixels: np.ndarray, padding: int = 0) -> SimpleNamespace:
    rows = pixels.reshape(pixels.shape[0], -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    height, width = pixels.shape[:2]
    return SimpleNamespace(
        encoding=encoding, height=height, width=width, step=padded.shape[1], data=padded.tobytes()
    )


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("rgba8", np.dstack([RGB, RGB[..., 0]])),
        ("bgra8", np.dstack([RGB[..., ::-1], RGB[..., 0]])),
    ],
)
def test_colour_encodings_agree(encoding: str, pixels: np.ndarray, padding: int) -> None:
    image = decode_image(message(encoding, pixels, padding), "cam")
    np.testing.assert_array_equal(image, RGB)
    assert image.dtype == np.uint8


def test_grey_becomes_three_equal_channels() -> None:
    image = decode_image(message("mono8", RGB[..., 0]), "cam")
    for channel in range(3):
        np.testing.assert_array_equal(image[..., channel], RGB[..., 0])


def test_rgb8_is_a_view_and_not_a_copy() -> None:
    source = message("rgb8", RGB)
    data = bytearray(source.data)
    source.data = data
    image = decode_image(source, "cam")
    data[0] ^= 255
    assert image[0, 0, 0] == data[0]


def test_compressed_png_is_exact() -> None:
    _, data = cv2.imencode(".png", RGB[..., ::-1])
    image = decode_image(SimpleNamespace(format="png", data=data.tobytes()), "cam")
    np.testing.assert_array_equal(image, RGB)


def test_broken_jpeg_names_the_topic() -> None:
    with pytest.raises(ObservationError, match="cam/compressed: 3 bytes of 'jpeg'"):
        decode_image(SimpleNamespace(format="jpeg", data=b"abc"), "cam/compressed")
    with pytest.raises(ObservationError, match="0 bytes of 'jpeg'"):
        decode_image(SimpleNamespace(format="jpeg", data=b""), "cam/compressed")


def test_truncated_image_names_what_is_missing() -> None:
    short = message("rgb8", RGB)
    short.data = short.data[:-1]
    with pytest.raises(ObservationError, match="carries 143 bytes, expected 144"):
        decode_image(short, "cam")


def test_rows_shorter_than_their_pixels_are_refused() -> None:
    wrong = message("rgb8", RGB)
    wrong.step = 23
    with pytest.raises(ObservationError, match="rows of 23 bytes"):
        decode_image(wrong, "cam")


def test_rare_encoding_asks_for_cv_bridge() -> None:
    with pytest.raises(ObservationError, match="'bayer_rggb8' needs cv_bridge"):
        decode_image(message("bayer_rggb8", RGB[..., 0]), "cam")
