"""Pins that an image of a video is the same in whatever order it is asked for, and its colours."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from helpers.scenes import scene
from numpy.typing import NDArray

from cosmos_policy_ros.bags import video
from cosmos_policy_ros.bags.index import index_topics
from cosmos_policy_ros.bags.mcap_file import Declaration, McapFile
from cosmos_policy_ros.bags.types import types_of_definition
from cosmos_policy_ros.bags.video import (
    DEFINITION,
    VIDEO,
    VideoDecoder,
    VideoEncoder,
    VideoFrames,
    fingerprint_of,
    is_key,
)
from cosmos_policy_ros.core.errors import RolloutError

GROUP, COUNT = 10, 34
TYPES = types_of_definition(VIDEO, DEFINITION)
MS = 1_000_000


def encoded(images: Iterator[NDArray[np.uint8]], crf: int = 18) -> list[bytes]:
    encoder = VideoEncoder(crf, GROUP)
    return [encoder.encode(image, number) for number, image in enumerate(images)]


def scenes(count: int = COUNT, **options: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    return (scene("primary", number, **options) for number in range(count))


def decoded(messages: list[bytes]) -> list[NDArray[np.uint8]]:
    found, decoder = [], VideoDecoder()
    for data in messages:
        if is_key(data):
            decoder = VideoDecoder()
        decoder.add(data)
        found.append(decoder.image(-1))
    return found


def shuffled(seed: int) -> list[int]:
    return [int(index) for index in np.random.default_rng(seed).permutation(COUNT)]


def nal_units(data: bytes) -> list[int]:
    """Return the kinds of a message's parts: 7 and 8 the decoder's settings, 5 a key frame."""
    return [found[1][0] & 31 for found in video._NAL.finditer(data)]


def write(path: Path, messages: list[bytes], stamps: list[int] | None = None) -> VideoFrames:
    """Write messages into a file as a bag's; return its reader."""
    file = McapFile(path, (), TYPES)
    file.declare(Declaration("/cam/foxglove", VIDEO, DEFINITION, TYPES.hash_rihs01(VIDEO), ""))
    for number, data in enumerate(messages):
        sec, nanosec = divmod((stamps or range(COUNT))[number] * 40 * MS, 1000 * MS)
        stamp = TYPES.types["builtin_interfaces/msg/Time"](sec, nanosec)
        message = TYPES.types[VIDEO](stamp, "lens", np.frombuffer(data, np.uint8), "h264")
        cdr = bytes(TYPES.serialize_cdr(message, VIDEO))
        file.write("/cam/foxglove", 10**9 + number * 40 * MS, cdr)
    file.close(file.describe({}))
    return VideoFrames(index_topics([path], ["/cam/foxglove"])["/cam/foxglove"])


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> VideoFrames:
    return write(tmp_path_factory.mktemp("video") / "a.mcap", encoded(scenes()))


@pytest.fixture(scope="module")
def truth() -> list[NDArray[np.uint8]]:
    """Every image as it is decoded in order, by nothing but PyAV and the colours' way back."""
    codec = av.CodecContext.create("h264", "r")
    found = [codec.decode(av.Packet(data)) for data in encoded(scenes())]
    assert [len(each) for each in found] == [1] * COUNT
    return [video._to_rgb(frame) for (frame,) in found]


def test_the_type_is_foxgloves() -> None:
    assert VIDEO == "foxglove_msgs/msg/CompressedVideo"
    names, kinds = zip(*TYPES.fielddefs[VIDEO][1], strict=True)
    assert names == ("timestamp", "frame_id", "data", "format")
    assert "builtin_interfaces/msg/Time" in str(kinds[0])
    assert DEFINITION.startswith("builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data")


def test_each_message_is_one_image_and_each_group_stands_alone() -> None:
    """What Foxglove asks: Annex B, settings before each key frame, no image that waits."""
    messages = encoded(scenes())
    for number, data in enumerate(messages):
        assert data.startswith((b"\0\0\1", b"\0\0\0\1"))
        kinds = nal_units(data)
        assert kinds.count(1) + kinds.count(5) == 1
        key = number % GROUP == 0
        assert is_key(data) == key == ({7, 8, 5} <= set(kinds))
        assert fingerprint_of(data) == number
    codec = av.CodecContext.create("h264", "r")
    pictures = [codec.decode(av.Packet(data))[0] for data in messages[GROUP:]]
    assert {int(picture.pict_type) for picture in pictures} == {1, 2}  # I and P, by FFmpeg
    assert not codec.has_b_frames


def test_the_order_of_asking_changes_nothing(
    frames: VideoFrames, truth: list[NDArray[np.uint8]]
) -> None:
    for order in (range(COUNT), reversed(range(COUNT)), shuffled(0), [33, 3, 33, 4, 3]):
        for index in order:
            np.testing.assert_array_equal(frames.pixels(index), truth[index])


def test_header_stamps_in_another_order(tmp_path: Path, truth: list[NDArray[np.uint8]]) -> None:
    """They are what is asked by; what an image needs is what stands before it in the file."""
    stamps = shuffled(1)
    frames = write(tmp_path / "b.mcap", encoded(scenes()), stamps)
    for place, stamp in enumerate(stamps):
        np.testing.assert_array_equal(frames.pixels(stamp), truth[place])


def test_threads_and_processes(frames: VideoFrames, truth: list[NDArray[np.uint8]]) -> None:
    frames.pixels(5)  # a forked process finds a decoder under way
    order = shuffled(2)
    with ThreadPoolExecutor(4) as threads:
        for index, image in zip(order, threads.map(frames.pixels, order), strict=True):
            np.testing.assert_array_equal(image, truth[index])
    again = pickle.loads(pickle.dumps(frames))  # noqa: S301  as a loader's spawned workers do it
    np.testing.assert_array_equal(again.pixels(29), truth[29])
    with ProcessPoolExecutor(2, get_context("fork")) as processes:
        for index, image in zip(order, processes.map(frames.pixels, order), strict=True):
            np.testing.assert_array_equal(image, truth[index])


def test_neighbours_cost_one_image_each(
    frames: VideoFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    video._groups().clear()
    added: list[bytes] = []
    add = VideoDecoder.add

    def counting(decoder: VideoDecoder, data: bytes) -> None:
        added.append(data)
        add(decoder, data)

    monkeypatch.setattr(VideoDecoder, "add", counting)
    frames.pixels(14)
    assert len(added) == 5
    for index in (15, 15, 14, 12, 16):
        frames.pixels(index)
    assert len(added) == 7


def test_what_is_kept_is_bounded(frames: VideoFrames, monkeypatch: pytest.MonkeyPatch) -> None:
    video._groups().clear()
    monkeypatch.setattr(video, "_GROUP_BYTES", 0)
    for index in (3, 13, 23, 3):
        frames.pixels(index)
        assert len(video._groups()) == 1


@pytest.mark.parametrize("size", [(48, 64), (47, 64), (48, 63), (31, 33), (2, 2), (1, 1)])
def test_sizes_even_and_odd(size: tuple[int, int]) -> None:
    images = list(scenes(12, size=size))
    for image, shown in zip(images, decoded(encoded(iter(images))), strict=True):
        assert shown.shape == image.shape
        assert cv2.PSNR(image, shown) > 36


def test_colours_are_kept() -> None:
    """A range taken for another would be off by 16 levels, a matrix by 10, libswscale by 1.4."""
    tones = np.array([[r, g, b] for r in (0, 90, 255) for g in (0, 128, 255) for b in (0, 60, 255)])
    image = np.repeat(np.repeat(tones.reshape(3, 9, 3), 16, 0), 16, 1).astype(np.uint8)
    shown = decoded(encoded(iter([image] * 3), crf=4))[-1].astype(int)
    inside = (slice(4, None, 16), slice(4, None, 16))  # edges share their colours
    off = shown[inside] - image[inside].astype(int)
    assert np.abs(off).max() <= 4
    assert np.abs(off.mean((0, 1))).max() < 0.7


def test_grey_stays_grey() -> None:
    images = [scene("primary", number)[..., :1].repeat(3, 2) for number in range(5)]
    for image, shown in zip(images, decoded(encoded(iter(images))), strict=True):
        assert (shown[..., 0] == shown[..., 1]).all() and (shown[..., 0] == shown[..., 2]).all()
        assert cv2.PSNR(image, shown) > 36


def test_a_camera_that_changes_its_size_begins_anew() -> None:
    images = [*scenes(5), *scenes(5, size=(30, 40)), *scenes(5)]
    messages = encoded(iter(images))
    assert [number for number, data in enumerate(messages) if is_key(data)] == [0, 5, 10]
    for image, shown in zip(images, decoded(messages), strict=True):
        assert shown.shape == image.shape and cv2.PSNR(image, shown) > 34


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m[1:], "no key frame"),
        (lambda m: [*m[:3], b"", *m[4:]], "holds no image"),
        (lambda m: [*m[:3], b"\0\0\1\x41", *m[4:]], "cannot be read as H.264"),
        (lambda m: [*m[:3], m[3] + m[4], *m[5:]], "cannot be read as H.264|holds"),
        (lambda m: [m[0][: len(m[0]) // 2], *m[1:]], "cannot be read as H.264|holds"),
        (lambda m: [data.replace(video._REMARK, video._REMARK + b"?") for data in m], "no number"),
    ],
)
def test_damage_is_an_error_with_the_place(tmp_path: Path, change: object, says: str) -> None:
    frames = write(tmp_path / "c.mcap", change(encoded(scenes(6))))  # type: ignore[operator]
    with pytest.raises(RolloutError, match=f"the video at .* ns: .*({says})"):
        for index in range(5):
            frames.image(index).pixels  # noqa: B018


def test_random_bytes_end_in_an_error(tmp_path: Path) -> None:
    key, *_ = encoded(scenes(1))
    noise = np.random.default_rng(0)
    for number in range(30):
        data = bytearray(key)
        for at in noise.integers(0, len(data), 20):
            data[at] = noise.integers(256)
        frames = write(tmp_path / f"{number}.mcap", [bytes(data)])
        try:
            assert frames.image(0).pixels.ndim == 3
        except RolloutError as error:
            assert "the video at 0 ns" in str(error)
