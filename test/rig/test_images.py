"""Every common encoding must give the same RGB image; anything else a clear error, at once.

Pins: a PNG or JPEG of a few hundred bytes that claimed 60000 rows ended the policy node or held it
for 23 s; half a JPEG passed for an image under OpenCV 4, one torn before its end marker under
OpenCV 5, too; grey and depth images passed for
colour; whatever cv_bridge raised ended the node.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.rig.images import as_jpeg, decode_image, image_size
from cosmos_policy_ros.rig.spec import MAX_SIDE

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def message(encoding: str, pixels: np.ndarray, padding: int = 0) -> SimpleNamespace:
    rows = pixels.reshape(pixels.shape[0], -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    height, width = pixels.shape[:2]
    return SimpleNamespace(
        encoding=encoding, height=height, width=width, step=padded.shape[1], data=padded.tobytes()
    )


COLOURS = pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("rgba8", np.dstack([RGB, RGB[..., 0]])),
        ("bgra8", np.dstack([RGB[..., ::-1], RGB[..., 0]])),
    ],
)


@pytest.mark.parametrize("padding", [0, 5])
@COLOURS
def test_colour_encodings_agree(encoding: str, pixels: np.ndarray, padding: int) -> None:
    image = decode_image(message(encoding, pixels, padding), "cam")
    np.testing.assert_array_equal(image, RGB)
    assert image.dtype == np.uint8


def test_grey_becomes_three_equal_channels() -> None:
    image = decode_image(message("mono8", RGB[..., 0]), "cam", grey=True)
    for channel in range(3):
        np.testing.assert_array_equal(image[..., channel], RGB[..., 0])


@pytest.mark.parametrize("padding", [0, 5])
@COLOURS
def test_every_encoding_becomes_the_same_jpeg(
    encoding: str, pixels: np.ndarray, padding: int
) -> None:
    odd = np.vstack([pixels[:5, :7]] * 3)  # 15 rows of 7: no whole block each way
    found = as_jpeg(message(encoding, odd, padding), "cam", 95)
    expected = as_jpeg(message("rgb8", np.vstack([RGB[:5, :7]] * 3)), "cam", 95)
    assert found == expected and found.format == "rgb8; jpeg compressed bgr8"
    assert decode_image(found, "cam").shape == (15, 7, 3)
    assert len(as_jpeg(message(encoding, odd), "cam", 50).data) < len(found.data)


def test_a_grey_image_becomes_a_grey_jpeg() -> None:
    found = as_jpeg(message("mono8", RGB[..., 0], 3), "cam", 95)
    assert found.format == "mono8; jpeg compressed "
    image = decode_image(found, "cam", grey=True)
    assert np.abs(image.astype(int) - RGB[..., :1]).mean() < 4
    with pytest.raises(ObservationError, match="is no colour image"):
        decode_image(found, "cam")


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


# ---------------------------------------------------------------- compressed images

SMOOTH = cv2.resize(RGB, (64, 48), interpolation=cv2.INTER_CUBIC)
JPEG = cv2.imencode(".jpg", SMOOTH)[1].tobytes()
PNG = cv2.imencode(".png", SMOOTH)[1].tobytes()


def compressed(data: bytes, said: str = "") -> SimpleNamespace:
    return SimpleNamespace(format=said, data=data)


@contextmanager
def no_decoder() -> Iterator[None]:
    """No decoder may be asked."""
    decoded = AssertionError("it was decoded")
    with (
        patch.object(cv2, "imdecode", side_effect=decoded),
        patch.object(simplejpeg, "decode_jpeg", side_effect=decoded),
    ):
        yield


def refusal(message: Any, **options: Any) -> str:
    with no_decoder(), pytest.raises(ObservationError) as raised:
        decode_image(message, "/cam/compressed", **options)
    assert str(raised.value).startswith("/cam/compressed: ")
    return str(raised.value)


def jpeg_claiming(height: int, width: int, *, channels: int = 3, marker: int = 0xC0) -> bytes:
    """Return a JPEG's bytes with another size, or kind of coding, in its frame header."""
    at = JPEG.index(b"\xff\xc0")
    frame = struct.pack(">BBHBHHB", 0xFF, marker, 17, 8, height, width, channels)
    return JPEG[:at] + frame + JPEG[at + len(frame) :]


def chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(height: int, width: int, *extra: bytes, bits: int = 8, colour: int = 2) -> bytes:
    """Return a PNG of black pixels, as many as 64 rows of them."""
    per_pixel = {0: 1, 2: 3, 4: 2, 6: 4}[colour] * bits // 8
    rows = (b"\0" + bytes(width * per_pixel)) * min(height, 64)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return PNG[:8] + header + b"".join(extra) + body


@pytest.mark.parametrize(
    "data",
    [
        jpeg_claiming(65500, 65500),
        jpeg_claiming(MAX_SIDE + 1, 8),
        jpeg_claiming(8, MAX_SIDE + 1),
        jpeg_claiming(0, 64),
        jpeg_claiming(65500, 65500)[:400],
        png(60000, 60000),
        png(0, 64),
        png(2**31 - 1, 1),
    ],
)
def test_a_size_beyond_the_limit_is_refused_undecoded(data: bytes) -> None:
    told = refusal(compressed(data))
    assert f"pixels (rows x columns); 1 to {MAX_SIDE} each way are taken" in told
    with pytest.raises(ObservationError, match="each way are taken"):
        image_size(compressed(data), "/cam")


def test_an_image_cannot_claim_more_than_its_bytes_hold() -> None:
    """4096 x 4096 of 700 bytes: 0.3 s of decoding, and all of it grey."""
    assert "cannot hold the 4096x4096 pixels" in refusal(compressed(jpeg_claiming(4096, 4096)))


@pytest.mark.parametrize("tail", [b"", bytes(40), b"\xff" * 9], ids=["end", "zeros", "ones"])
@pytest.mark.parametrize("whole", [JPEG, PNG], ids=["jpeg", "png"])
def test_an_image_that_was_cut_off_is_none(whole: bytes, tail: bytes) -> None:
    """Wherever it was cut, and whatever a buffer was filled up with."""
    for length in (*range(8, len(whole), 7), len(whole) - 2):
        assert "no readable image" in refusal(compressed(whole[:length] + tail))


CAMERA = cv2.resize(SMOOTH, (320, 240)) // 2 + np.random.default_rng(1).integers(
    0, 40, (240, 320, 3), np.uint8
)
RESTARTING = cv2.imencode(".jpg", CAMERA, [cv2.IMWRITE_JPEG_RST_INTERVAL, 20])[1].tobytes()
PROGRESSIVE = cv2.imencode(".jpg", CAMERA, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
GREY_CAMERA = cv2.imencode(".jpg", CAMERA[..., 0])[1].tobytes()


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(
    "whole",
    [cv2.imencode(".jpg", CAMERA)[1].tobytes(), RESTARTING, PROGRESSIVE, GREY_CAMERA],
    ids=["baseline", "restart markers", "progressive", "grey"],
)
def test_a_jpeg_torn_before_its_end_marker_is_none(whole: bytes, part: float) -> None:
    """A lost packet of a USB camera: OpenCV fills what is missing with grey and says nothing."""
    at = round(part * len(whole))
    for torn in (
        whole[:at] + whole[-2:],
        whole[:at] + whole[at + 2000 :],
        whole[:at] + bytes(1024) + whole[-2:],
    ):
        with pytest.raises(ObservationError, match=r"no readable image: .*JPEG"):
            decode_image(compressed(torn, "jpeg"), "cam", grey=True)


def test_the_decoder_gives_what_opencv_gives() -> None:
    """What was recorded, or trained on, by others was read by OpenCV."""
    for data in (JPEG, RESTARTING, PROGRESSIVE, GREY_CAMERA):
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(decode_image(compressed(data), "cam", grey=True), expected)


def test_bytes_after_the_end_are_padding() -> None:
    """Stock recorders pad every image to the longest one's length."""
    wanted = decode_image(compressed(JPEG), "cam")
    np.testing.assert_array_equal(decode_image(compressed(JPEG + bytes(500)), "cam"), wanted)


def test_an_end_marker_within_a_note_is_no_end() -> None:
    note = b"\xff\xfe\x00\x06\xff\xd9\xff\xd9"
    noted = JPEG[:2] + note + JPEG[2:]
    np.testing.assert_array_equal(
        decode_image(compressed(noted), "cam"), decode_image(compressed(JPEG), "cam")
    )
    assert "no readable image" in refusal(compressed(noted[:-2]))


def test_a_changed_byte_of_a_png_is_noticed() -> None:
    for at in range(8, len(PNG)):
        changed = PNG[:at] + bytes([PNG[at] ^ 1]) + PNG[at + 1 :]
        with pytest.raises(ObservationError, match="no readable image"):
            decode_image(compressed(changed), "cam")


GREY_JPEG = cv2.imencode(".jpg", SMOOTH[..., 0])[1].tobytes()
GREY_PNG = cv2.imencode(".png", SMOOTH[..., 0])[1].tobytes()
DEPTH_PNG = cv2.imencode(".png", SMOOTH[..., 0].astype(np.uint16) * 257)[1].tobytes()


@pytest.mark.parametrize(
    ("said", "data"),
    [
        ("jpeg", GREY_JPEG),
        ("png", GREY_PNG),
        ("png", DEPTH_PNG),
        ("png", cv2.imencode(".png", SMOOTH.astype(np.uint16))[1].tobytes()),
        ("16UC1; compressedDepth", bytes(12) + DEPTH_PNG),
        ("32FC1; compressedDepth png", bytes(12) + DEPTH_PNG),
        ("16UC1; png compressed ", DEPTH_PNG),
        ("mono8; jpeg compressed ", JPEG),
    ],
)
def test_a_compressed_grey_or_depth_image_is_no_colour(said: str, data: bytes) -> None:
    assert "no colour image of 8 bits a channel" in refusal(compressed(data, said))


@pytest.mark.parametrize("encoding", ["mono8", "mono16", "8UC1", "16UC1", "32FC1", "16SC1"])
def test_a_raw_grey_or_depth_image_is_no_colour(encoding: str) -> None:
    told = refusal(message(encoding, RGB[..., 0]))
    assert f"encoding '{encoding}' is no colour image" in told
    assert "take its colour stream" in told


@pytest.mark.parametrize("data", [GREY_JPEG, GREY_PNG])
def test_a_grey_camera_is_taken_where_the_rig_file_says_so(data: bytes) -> None:
    image = decode_image(
        compressed(data, "mono8; jpeg" if data is GREY_JPEG else ""), "c", grey=True
    )
    assert np.abs(image.astype(int) - SMOOTH[..., :1]).mean() < 4
    assert "no colour image" in refusal(compressed(DEPTH_PNG), grey=True)


@pytest.mark.parametrize(
    ("said", "data", "accepted"),
    [
        ("rgb8; jpeg compressed bgr8", JPEG, True),
        ("bgr8; jpeg compressed bgr8", JPEG, True),
        ("JPG", JPEG, True),
        ("mjpeg", JPEG, True),
        ("", JPEG, True),
        ("rgb8; png compressed bgr8", PNG, True),
        ("jpeg", PNG, False),
        ("png", JPEG, False),
        ("h264", b"\0\0\0\1" + JPEG, False),
    ],
)
def test_the_content_is_what_the_format_says(said: str, data: bytes, accepted: bool) -> None:
    if accepted:
        assert decode_image(compressed(data, said), "cam").shape == SMOOTH.shape
    else:
        assert "no readable image" in refusal(compressed(data, said))


def test_other_codings_are_refused() -> None:
    for marker in (0xC3, 0xC5, 0xC9, 0xCF):
        assert "is not baseline or progressive" in refusal(
            compressed(jpeg_claiming(48, 64, marker=marker))
        )
    assert "frame header is damaged" in refusal(compressed(jpeg_claiming(48, 64, channels=4)))


@pytest.mark.parametrize(
    "data",
    [
        JPEG[:2] + b"\xff\xfe\0\2" * 5000 + JPEG[2:],
        JPEG[:-2] + JPEG[JPEG.index(b"\xff\xda") : -2] * 40 + JPEG[-2:],
        PNG[:33] + chunk(b"IDAT", b"") * 30_000 + PNG[33:],
        png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8_000_000)))),
        png(8, 8, chunk(b"acTL", bytes(8))),
    ],
)
def test_an_image_of_endless_parts_is_refused(data: bytes) -> None:
    refusal(compressed(data))


def test_a_note_on_how_a_camera_was_held_turns_nothing() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06" + bytes(6)
    turned = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + JPEG[2:]
    assert decode_image(compressed(turned), "cam").shape == SMOOTH.shape


def test_what_opencv_raises_becomes_an_error_with_the_topic() -> None:
    with (
        patch.object(cv2, "imdecode", side_effect=cv2.error("validateInputImageSize failed")),
        pytest.raises(ObservationError, match=r"^/cam: OpenCV cannot decode .* bytes of 'png'"),
    ):
        decode_image(compressed(PNG, "png"), "/cam")


def test_the_rig_files_size_is_asked_for() -> None:
    assert decode_image(compressed(JPEG), "cam", size=(48, 64)).shape == (48, 64, 3)
    told = refusal(compressed(JPEG), size=(64, 48))
    assert "has 48x64 pixels (rows x columns), the rig file says 64x48" in told


# ---------------------------------------------------------------- raw images


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 2**32 - 1},
        {"width": 2**32 - 1},
        {"height": 2**31, "width": 2**31, "step": 2**32 - 1},
        {"height": 0},
        {"width": 0},
        {"height": 0, "data": b""},
        {"step": 0},
        {"step": 2**32 - 1},
        {"height": 5},
        {"data": b""},
        {"data": bytes(RGB.size + 1)},
        {"data": bytes(10 * RGB.size)},
    ],
)
def test_numbers_of_a_raw_image_that_do_not_fit(changes: dict[str, Any]) -> None:
    wrong = message("rgb8", RGB)
    vars(wrong).update(changes)
    refusal(wrong)


# ---------------------------------------------------------------- cv_bridge


class BridgeError(TypeError):
    """As cv_bridge has one."""


def bridge(answer: Any) -> Any:
    """Return a context in which an installed cv_bridge answers so, or raises it."""

    class CvBridge:
        def imgmsg_to_cv2(self, message: Any, encoding: str) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    module = ModuleType("cv_bridge")
    module.CvBridge = CvBridge  # type: ignore[attr-defined]
    return patch.dict(sys.modules, {"cv_bridge": module})


@pytest.mark.parametrize(
    "error",
    [
        BridgeError("encoding specified as rgb8, but image has incompatible type yuyv"),
        KeyError("yuyv"),
        RuntimeError("Unrecognized image encoding [yuyv]"),
        AttributeError("_ARRAY_API not found"),
        cv2.error("bad argument"),
        MemoryError(),
    ],
)
def test_whatever_cv_bridge_raises_becomes_an_error_with_the_topic(error: Exception) -> None:
    with bridge(error):
        told = refusal(message("yuyv", RGB))
    assert "encoding 'yuyv' needs cv_bridge, which cannot convert it" in told
    assert type(error).__name__ in told and "set the camera to one of rgb8" in told


def test_a_cv_bridge_built_for_another_numpy_is_named() -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("_ARRAY_API not found")

    with patch.dict(sys.modules, {"cv_bridge": Broken("cv_bridge")}):
        assert "cannot be loaded (RuntimeError: _ARRAY_API not found)" in refusal(
            message("yuyv", RGB)
        )


@pytest.mark.parametrize("answer", [RGB[..., 0], RGB[:-1], RGB.astype(np.uint16), None, 5])
def test_what_cv_bridge_returns_is_looked_at(answer: Any) -> None:
    with bridge(answer):
        assert "its header says 6x8 pixels" in refusal(message("yuyv", RGB))
    with bridge(RGB):
        np.testing.assert_array_equal(decode_image(message("yuyv", RGB), "cam"), RGB)


def test_a_strangers_words_are_short_and_printable() -> None:
    told = refusal(compressed(b"abc", "\x1b[31m\n" + "x" * 10_000))
    assert len(told) < 300 and "\n" not in told and "\x1b" not in told


# ---------------------------------------------------------------- anything at all


def outcome(message: Any) -> Any:
    """Return the image, or None for a refusal; anything else that is raised fails the test."""
    try:
        image = decode_image(message, "cam")
    except ObservationError:
        return None
    assert image.dtype == np.uint8 and image.shape[2:] == (3,)
    assert image.shape[:2] == image_size(message, "cam")
    assert max(image.shape) <= MAX_SIDE
    return image


EDITS = st.lists(
    st.tuples(st.integers(0, 10**6), st.binary(max_size=4), st.integers(0, 4)), max_size=6
)


def edited(data: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    """Replace, insert or cut some bytes at each of the places."""
    for place, new, length in edits:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + length :]
    return data


FUZZED = settings(max_examples=300, deadline=None, derandomize=True)


@FUZZED
@given(st.sampled_from([JPEG, PNG, GREY_JPEG, DEPTH_PNG]), EDITS, st.text(max_size=30))
def test_any_damage_gives_an_image_or_an_error(
    data: bytes, edits: list[tuple[int, bytes, int]], said: str
) -> None:
    outcome(compressed(edited(data, edits), said))


UINT32 = st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1))


@FUZZED
@given(
    st.sampled_from(["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "yuyv", "16UC1", "", "\0"]),
    UINT32,
    UINT32,
    UINT32,
    st.binary(max_size=400),
)
def test_any_raw_fields_give_an_image_or_an_error(
    encoding: str, height: int, width: int, step: int, data: bytes
) -> None:
    outcome(SimpleNamespace(encoding=encoding, height=height, width=width, step=step, data=data))
