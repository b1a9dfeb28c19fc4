"""Pins that recording never blocks its caller, keeps within its memory, and tells what it lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.waiting import wait_for
from mcap.reader import make_reader
from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.errors import ObservationError, RolloutError
from cosmos_policy_ros.rig.images import decode_image
from cosmos_policy_ros.rollouts.bag_writer import BagWriter
from cosmos_policy_ros.rollouts.episode import read_episode, read_messages
from cosmos_policy_ros.rollouts.mcap_file import Topic
from cosmos_policy_ros.rollouts.messages import EpisodeFacts
from cosmos_policy_ros.rollouts.recording import Options
from cosmos_policy_ros.rollouts.salvage import recover
from cosmos_policy_ros.rollouts.store import EpisodeStore

START_NS = 1_700_000_000_000_000_000
CAMERA = Topic("/cam", "sensor_msgs/msg/Image")


def picture(types: Typestore, encoding: str = "rgb8", seed: int = 0) -> tuple[bytes, np.ndarray]:
    """Return a serialised, smooth picture with a stamp, and its pixels as RGB."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    pixels = cv2.resize(small, (64, 48), interpolation=cv2.INTER_CUBIC)
    stored = pixels[..., ::-1] if encoding == "bgr8" else pixels
    stamp = types.types["builtin_interfaces/msg/Time"](sec=1_700_000_000, nanosec=5)
    message = types.types["sensor_msgs/msg/Image"](
        header=types.types["std_msgs/msg/Header"](stamp=stamp, frame_id="cam"),
        height=48,
        width=64,
        encoding=encoding,
        is_bigendian=0,
        step=192,
        data=np.ascontiguousarray(stored).ravel(),
    )
    return bytes(types.serialize_cdr(message, message.__msgtype__)), pixels


def grey_picture(types: Typestore) -> bytes:
    cdr, _ = picture(types)
    message = types.deserialize_cdr(cdr, "sensor_msgs/msg/Image")
    grey = replace(message, encoding="mono8", step=64, data=message.data[: 48 * 64])
    return bytes(types.serialize_cdr(grey, message.__msgtype__))


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that writes nothing until the event is set."""
    ready = threading.Event()
    write = BagWriter.write

    def wait_and_write(self: BagWriter, topic: str, stamp_ns: int, cdr: bytes) -> None:
        if topic == CAMERA.name:
            ready.wait(60.0)
        write(self, topic, stamp_ns, cdr)

    monkeypatch.setattr(BagWriter, "write", wait_and_write)
    return ready


def test_a_flood_is_bounded_and_counted(
    store: EpisodeStore, facts: EpisodeFacts, slow_disk: threading.Event
) -> None:
    recording = store.begin(facts, [CAMERA], options=Options(queue_bytes=100_000))
    for number in range(200):
        recording.write("/cam", START_NS + number, bytes(1000))
    verdict = recording.verdict()
    assert verdict.waited_bytes == 100_000
    assert verdict.topics["/cam"]["dropped"] == 100
    slow_disk.set()
    episode = read_episode(recording.finish("stopped"))
    assert episode.topics["/cam"].count == 100
    assert not episode.verdict.go
    assert "100 messages of /cam were dropped, the disk is too slow (50.0%)" in episode.verdict.text


def test_a_disk_that_only_hesitates_costs_nothing(
    store: EpisodeStore, facts: EpisodeFacts, slow_disk: threading.Event
) -> None:
    recording = store.begin(facts, [CAMERA])
    for number in range(200):
        recording.write("/cam", START_NS + number, bytes(1000))
    threading.Timer(0.2, slow_disk.set).start()
    episode = read_episode(recording.finish("stopped"))
    assert episode.topics["/cam"].count == 200
    assert episode.verdict.waited_bytes == 200_000
    assert "dropped" not in episode.verdict.text


def test_the_middlewares_losses_stand_in_the_verdict(
    store: EpisodeStore, facts: EpisodeFacts
) -> None:
    recording = store.begin(facts, [CAMERA])
    recording.write("/cam", START_NS, bytes(10))
    recording.lost("/cam", 3)
    verdict = read_episode(recording.finish("stopped")).verdict
    assert "3 messages of /cam were lost on the way here (75.0%)" in verdict.text


def test_what_was_written_reaches_the_disk_by_itself(
    store: EpisodeStore, facts: EpisodeFacts
) -> None:
    """Twice a second, though nothing else comes and no chunk is full."""
    recording = store.begin(facts, [CAMERA])
    (file,) = recording.path.glob("*.mcap")
    recording.write("/cam", START_NS, b"seen at last")
    wait_for(lambda: b"seen at last" in file.read_bytes(), "the flush")
    recording.finish("stopped")


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_pictures_as_jpeg(
    store: EpisodeStore, facts: EpisodeFacts, types: Typestore, encoding: str
) -> None:
    cdr, pixels = picture(types, encoding)
    recording = store.begin(facts, [CAMERA], options=Options(jpegs=(CAMERA,)))
    recording.write("/cam", START_NS, cdr)
    path = recording.finish("stopped")
    ((topic, _, message),) = list(read_messages(path, ["/cam", "/cam/compressed"]))
    assert topic == "/cam/compressed"
    assert message.header.stamp.nanosec == 5 and message.header.frame_id == "cam"
    found = decode_image(message, "cam")
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).mean() < 4
    assert len(message.data) < len(cdr) / 3


def test_a_grey_picture_stays_one(
    store: EpisodeStore, facts: EpisodeFacts, types: Typestore
) -> None:
    """As a JPEG of three channels it would be read as a colour camera's."""
    recording = store.begin(facts, [CAMERA], options=Options(jpegs=(CAMERA,)))
    recording.write("/cam", START_NS, grey_picture(types))
    path = recording.finish("stopped")
    ((_, _, message),) = list(read_messages(path, ["/cam/compressed"]))
    assert message.format == "mono8; jpeg compressed "
    assert decode_image(message, "cam", grey=True).shape == (48, 64, 3)
    with pytest.raises(ObservationError, match="is no colour picture"):
        decode_image(message, "cam")


def test_a_picture_that_cannot_be_a_jpeg_ends_the_bag_with_its_reason(
    store: EpisodeStore, facts: EpisodeFacts, types: Typestore
) -> None:
    cdr, _ = picture(types)
    recording = store.begin(facts, [CAMERA], options=Options(jpegs=(CAMERA,)))
    recording.write("/cam", START_NS, cdr.replace(b"rgb8", b"yuv4"))
    wait_for(lambda: not recording.open, "the recording to fail")
    assert "encoding 'yuv4' needs cv_bridge" in recording.failure


def test_a_message_that_is_no_picture_ends_the_bag_with_its_reason(
    store: EpisodeStore, facts: EpisodeFacts
) -> None:
    recording = store.begin(facts, [CAMERA], options=Options(jpegs=(CAMERA,)))
    recording.write("/cam", START_NS, b"\0\1\0\0nothing like it")
    wait_for(lambda: not recording.open, "the recording to fail")
    assert "a picture cannot become a JPEG" in recording.failure


def test_zstd_is_undone_by_every_reader(
    store: EpisodeStore, facts: EpisodeFacts, types: Typestore
) -> None:
    sent = [picture(types, seed=seed)[0] for seed in range(3)]
    sizes = {}
    for compression in ("none", "zstd"):
        recording = store.begin(facts, [CAMERA], options=Options(compression=compression))  # type: ignore[arg-type]
        for number, cdr in enumerate(sent):
            recording.write("/cam", START_NS + number, cdr)
        path = recording.finish("stopped")
        (file,) = path.glob("*.mcap")
        sizes[compression] = file.stat().st_size
        with Reader(path) as reader:
            assert [bytes(d) for c, _, d in reader.messages() if c.topic == "/cam"] == sent
        with file.open("rb") as stream:
            found = make_reader(stream, validate_crcs=True).iter_messages(topics=["/cam"])
            assert [m.data for _, _, m in found] == sent
    assert sizes["zstd"] < sizes["none"]


def test_a_full_disk_keeps_what_was_flushed(
    store: EpisodeStore,
    facts: EpisodeFacts,
    disk_of: Callable[[int], AbstractContextManager[None]],
) -> None:
    recording = store.begin(facts, [CAMERA])
    recording.write("/cam", START_NS, b"early")
    (file,) = recording.path.glob("*.mcap")
    wait_for(lambda: b"early" in file.read_bytes(), "the flush")
    with disk_of(500_000):
        for number in range(1, 100):
            recording.write("/cam", START_NS + number, bytes(20_000))
        wait_for(lambda: not recording.open, "the disk to be full")
    assert "its bag failed" in recording.failure
    with pytest.raises(RolloutError, match="its bag failed"):
        recording.finish("stopped")
    recovered = recover(recording.path)
    messages = camera_messages(recovered.path)
    assert messages[0] == b"early"
    assert all(content == bytes(20_000) for content in messages[1:])


def camera_messages(path: Path) -> list[bytes]:
    with Reader(path) as reader:
        return [bytes(d) for c, _, d in reader.messages() if c.topic == "/cam"]
