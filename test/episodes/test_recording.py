"""Pins that recording never blocks its caller, keeps within its memory, and tells what it lost.

And that it notices within a second when its folder or file is moved, replaced, deleted or cut,
which read GO until the end, and saves what it can.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.waiting import wait_for
from mcap.reader import make_reader
from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.jpeg import to_compressed
from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata
from cosmos_policy_ros.bags.writer import BagWriter
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.episodes.episode import read_episode, read_messages
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.recording import Options, Recording
from cosmos_policy_ros.episodes.recovery import recover
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.rig.images import decode_image
from cosmos_policy_ros.rig.spec import JPEG_QUALITY

START_NS = 1_700_000_000_000_000_000
RECORDING = "cosmos_policy_ros.episodes.recording"
CAMERA = Topic("/cam", "sensor_msgs/msg/Image")


def image(types: Typestore, encoding: str = "rgb8", seed: int = 0) -> tuple[bytes, np.ndarray]:
    """Return a serialised, smooth image with a stamp, and its pixels as RGB."""
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


def large_image(types: Typestore) -> bytes:
    """Return a serialised image of noise, a megabyte."""
    message = types.deserialize_cdr(image(types)[0], "sensor_msgs/msg/Image")
    pixels = np.random.default_rng(0).integers(0, 256, 480 * 640 * 3, np.uint8)
    large = replace(message, height=480, width=640, step=1920, data=pixels)
    return bytes(types.serialize_cdr(large, message.__msgtype__))


def grey_image(types: Typestore) -> bytes:
    cdr, _ = image(types)
    message = types.deserialize_cdr(cdr, "sensor_msgs/msg/Image")
    grey = replace(message, encoding="mono8", step=64, data=message.data[: 48 * 64])
    return bytes(types.serialize_cdr(grey, message.__msgtype__))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush, and look at the disk, ten times as often as in earnest."""
    monkeypatch.setattr(f"{RECORDING}.FLUSH_PERIOD", 0.05)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that writes nothing until the event is set."""
    ready = threading.Event()
    write = BagWriter.write

    def wait_and_write(self: BagWriter, topic: str, stamp_ns: int, cdr: bytes) -> None:
        if topic.startswith(CAMERA.name):
            ready.wait(60.0)
        write(self, topic, stamp_ns, cdr)

    monkeypatch.setattr(BagWriter, "write", wait_and_write)
    return ready


@pytest.fixture
def recording(store: EpisodeStore, metadata: EpisodeMetadata) -> Recording:
    return store.begin(metadata, [CAMERA])


@pytest.fixture
def jpegs(store: EpisodeStore, metadata: EpisodeMetadata) -> Recording:
    """A recording that makes JPEG of its camera's images."""
    return store.begin(metadata, [CAMERA], options=Options(jpegs=(CAMERA,)))


def test_a_flood_is_bounded_and_counted(
    store: EpisodeStore, metadata: EpisodeMetadata, slow_disk: threading.Event
) -> None:
    recording = store.begin(metadata, [CAMERA], options=Options(queue_bytes=100_000))
    for number in range(200):
        recording.write("/cam", START_NS + number, bytes(1000))
    verdict = recording.quality()
    assert verdict.waited_bytes == 100_000
    assert verdict.topics["/cam"]["dropped"] == 100
    slow_disk.set()
    episode = read_episode(recording.finish("stopped"))
    assert episode.topics["/cam"].count == 100
    assert not episode.quality.go
    assert "100 messages of /cam were dropped, the disk is too slow (50.0%)" in episode.quality.text


def test_a_disk_that_only_hesitates_costs_nothing(
    recording: Recording, slow_disk: threading.Event
) -> None:
    for number in range(200):
        recording.write("/cam", START_NS + number, bytes(1000))
    threading.Timer(0.2, slow_disk.set).start()
    episode = read_episode(recording.finish("stopped"))
    assert episode.topics["/cam"].count == 200
    assert episode.quality.waited_bytes == 200_000
    assert "dropped" not in episode.quality.text


def test_the_middlewares_losses_stand_in_the_verdict(recording: Recording) -> None:
    recording.write("/cam", START_NS, bytes(10))
    recording.lost("/cam", 3)
    verdict = read_episode(recording.finish("stopped")).quality
    assert "3 messages of /cam were lost on the way here (75.0%)" in verdict.text


def test_what_was_written_reaches_the_disk_by_itself(recording: Recording) -> None:
    """Twice a second, though nothing else comes and no chunk is full."""
    (file,) = recording.path.glob("*.mcap")
    recording.write("/cam", START_NS, b"seen at last")
    wait_for(lambda: b"seen at last" in file.read_bytes(), "the flush")
    recording.finish("stopped")


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_images_as_jpeg(jpegs: Recording, types: Typestore, encoding: str) -> None:
    cdr, pixels = image(types, encoding)
    jpegs.write("/cam", START_NS, cdr)
    path = jpegs.finish("stopped")
    ((topic, _, message),) = list(read_messages(path, ["/cam", "/cam/compressed"]))
    assert topic == "/cam/compressed"
    assert message.header.stamp.nanosec == 5 and message.header.frame_id == "cam"
    found = decode_image(message, "cam")
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).mean() < 4
    assert len(message.data) < len(cdr) / 3


def test_a_grey_image_stays_one(jpegs: Recording, types: Typestore) -> None:
    """As a JPEG of three channels it would be read as a colour camera's."""
    jpegs.write("/cam", START_NS, grey_image(types))
    path = jpegs.finish("stopped")
    ((_, _, message),) = list(read_messages(path, ["/cam/compressed"]))
    assert message.format == "mono8; jpeg compressed "
    assert decode_image(message, "cam", grey=True).shape == (48, 64, 3)
    with pytest.raises(ObservationError, match="is no colour image"):
        decode_image(message, "cam")


@pytest.mark.parametrize(
    ("cdr", "why"),
    [
        (lambda good: good.replace(b"rgb8", b"yuv4"), "encoding 'yuv4' needs cv_bridge"),
        (lambda good: good[:-100], "Invalid sequence length"),
        (lambda good: b"\0\1\0\0nothing like it", ""),
    ],
    ids=["rare", "cut off", "no image"],
)
def test_what_cannot_be_a_jpeg_is_left_out_counted_and_explained(
    jpegs: Recording, types: Typestore, cdr: Callable[[bytes], bytes], why: str
) -> None:
    """A torn message of a camera ended the whole episode."""
    good = image(types)[0]
    for number, each in enumerate([good, cdr(good), good]):
        jpegs.write("/cam", START_NS + number, each)
    path = jpegs.finish("stopped")
    assert "/cam/compressed: an image cannot become a JPEG" in jpegs.refused
    assert why in jpegs.refused
    assert len(list(read_messages(path, ["/cam/compressed"]))) == 2
    episode = read_episode(path)
    told = "1 messages of /cam/compressed were no readable images and left out (33.3%)"
    assert told in episode.quality.text


def test_images_that_become_jpeg_keep_their_order_and_their_place(
    store: EpisodeStore, metadata: EpisodeMetadata, types: Typestore
) -> None:
    """A large one takes longer than the small one behind it, and nothing overtakes either."""
    other = Topic("/joints", "sensor_msgs/msg/Image")
    recording = store.begin(metadata, [CAMERA, other], options=Options(jpegs=(CAMERA,)))
    sent = [image(types, seed=seed)[0] for seed in range(3)]
    sent.insert(0, large_image(types))
    for number, cdr in enumerate(sent * 5):
        recording.write("/cam", START_NS + 2 * number, cdr)
        recording.write("/joints", START_NS + 2 * number + 1, cdr[:60])
    path = recording.finish("stopped")  # with most of it waiting
    with Reader(path) as reader:
        topics = [c.topic for c in reader.connections if c.topic.startswith(("/cam", "/joints"))]
        assert sorted(topics) == ["/cam/compressed", "/joints"]
    (file,) = path.glob("*.mcap")
    with file.open("rb") as stream:
        found = [
            (channel.topic, message.log_time - START_NS, message.data)
            for _, channel, message in make_reader(stream).iter_messages(
                topics=topics, log_time_order=False
            )
        ]
    assert [stamp for _, stamp, _ in found] == list(range(2 * 5 * len(sent)))
    jpegs = [data for topic, _, data in found if topic == "/cam/compressed"]
    assert jpegs == [to_compressed(types, cdr, JPEG_QUALITY) for cdr in sent] * 5


def test_what_waits_to_become_jpeg_counts_with_its_raw_bytes(
    store: EpisodeStore,
    metadata: EpisodeMetadata,
    types: Typestore,
    slow_disk: threading.Event,
) -> None:
    cdr = image(types)[0]
    options = Options(jpegs=(CAMERA,), queue_bytes=10 * len(cdr))
    recording = store.begin(metadata, [CAMERA], options=options)
    for number in range(30):
        recording.write("/cam", START_NS + number, cdr)
    assert recording.quality().topics["/cam/compressed"]["dropped"] == 20
    slow_disk.set()
    assert len(list(read_messages(recording.finish("stopped"), ["/cam/compressed"]))) == 10


def test_zstd_is_undone_by_every_reader(
    store: EpisodeStore, metadata: EpisodeMetadata, types: Typestore
) -> None:
    sent = [image(types, seed=seed)[0] for seed in range(3)]
    sizes = {}
    for compression in ("none", "zstd"):
        recording = store.begin(metadata, [CAMERA], options=Options(compression=compression))  # type: ignore[arg-type]
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


def test_a_full_disk_is_no_go_and_keeps_what_was_flushed(
    recording: Recording, disk_of: Callable[[int], AbstractContextManager[None]]
) -> None:
    recording.write("/cam", START_NS, b"early")
    (file,) = recording.path.glob("*.mcap")
    wait_for(lambda: b"early" in file.read_bytes(), "the flush")
    with disk_of(500_000):
        for number in range(1, 100):
            recording.write("/cam", START_NS + number, bytes(20_000))
        wait_for(lambda: not recording.open, "the disk to be full")
    verdict = recording.quality()
    assert not verdict.go and "its bag failed" in verdict.reasons[0]
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


class Moved:
    """A recording of which ten messages are on the disk, and what becomes of it afterwards."""

    def __init__(self, store: EpisodeStore, metadata: EpisodeMetadata) -> None:
        self.recording = store.begin(metadata, [CAMERA])
        for number in range(10):
            self.recording.write("/cam", START_NS + number, bytes(1000 + number))
        (self.file,) = self.recording.path.glob("*.mcap")
        self.path = self.recording.path
        wait_for(lambda: bytes(1009) in self.file.read_bytes(), "the flush")
        assert self.recording.quality().go

    def ended(self) -> str:
        """Return why, once the recording has noticed by itself; every answer must say it."""
        wait_for(lambda: not self.recording.open, "the recording to notice")
        failure = self.recording.failure
        verdict = self.recording.quality()
        assert not verdict.go and verdict.reasons[0] == failure
        assert str(self.path) in failure
        with pytest.raises(RolloutError, match="takes nothing more"):
            self.recording.finish("stopped")
        assert not self.recording.quality().go
        return failure


@pytest.fixture
def moved(store: EpisodeStore, metadata: EpisodeMetadata) -> Moved:
    return Moved(store, metadata)


def test_a_deleted_folder_ends_the_episode(moved: Moved) -> None:
    shutil.rmtree(moved.path)
    assert "was deleted while it was recorded; what was recorded is lost" in moved.ended()


def test_a_deleted_root_ends_the_episode(moved: Moved, store: EpisodeStore) -> None:
    shutil.rmtree(store.root)
    assert "was deleted while it was recorded" in moved.ended()


def test_a_deleted_file_ends_the_episode(moved: Moved) -> None:
    moved.file.unlink()
    assert f"{moved.file} was deleted while it was recorded" in moved.ended()


def test_a_moved_root_keeps_a_whole_episode(moved: Moved, store: EpisodeStore) -> None:
    """And a new folder in the old one's place stays as it is."""
    elsewhere = store.root.with_name("elsewhere")
    store.root.rename(elsewhere)
    moved.path.mkdir(parents=True)
    final = elsewhere / moved.recording.id
    failure = moved.ended()
    assert f"was moved to {elsewhere / moved.path.name} while it was recorded" in failure
    assert "something else is in its place" in failure
    assert f"the episode so far is whole in {final}" in failure
    assert len(camera_messages(final)) == 10
    episode = read_episode(final)
    assert episode.outcome == "its folder or file was moved"
    assert not episode.quality.go and "was moved to" in episode.quality.text
    assert list(moved.path.iterdir()) == []


def test_a_renamed_folder_keeps_its_new_name(moved: Moved) -> None:
    renamed = moved.path.with_name("mine")
    moved.path.rename(renamed)
    assert f"the episode so far is whole in {renamed}" in moved.ended()
    assert len(camera_messages(renamed)) == 10


def test_a_replaced_file_keeps_its_messages(moved: Moved) -> None:
    aside = moved.path.parent / "aside.mcap"
    moved.file.rename(aside)
    moved.file.write_bytes(b"another")
    failure = moved.ended()
    assert f"{moved.file} was moved to {aside}" in failure
    assert f"the messages so far are in {aside}" in failure
    with aside.open("rb") as stream:
        found = make_reader(stream, validate_crcs=True).iter_messages(topics=["/cam"])
        assert len(list(found)) == 10
    assert moved.file.read_bytes() == b"another"


def test_a_file_that_is_cut_short_ends_the_episode(moved: Moved) -> None:
    with moved.file.open("r+b") as file:
        file.truncate(100)
    assert f"{moved.file} was cut short while it was recorded" in moved.ended()


@pytest.mark.parametrize("what", ["a label", "an end"])
def test_nothing_is_written_to_what_replaced_the_folder(
    moved: Moved, store: EpisodeStore, what: str
) -> None:
    moved.path.rename(moved.path.with_name("mine"))
    moved.path.mkdir()
    with pytest.raises(RolloutError, match="was moved to"):
        if what == "a label":
            store.score(OperatorScore(50.0))
        else:
            moved.recording.finish("stopped")
    assert list(moved.path.iterdir()) == []


def test_a_disk_that_does_not_answer_is_no_go_and_holds_nobody_up(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = threading.Event()
    asked = threading.Event()

    def hang(path: object) -> Any:
        asked.set()
        answering.wait(60.0)
        return real(path)  # type: ignore[arg-type]

    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", hang)
    monkeypatch.setattr(f"{RECORDING}.DISK_PATIENCE", 0.2)
    assert asked.wait(60.0)
    wait_for(lambda: not recording.quality().go, "the silence to be noticed")
    assert "the disk has not answered for" in recording.quality().reasons[0]
    answering.set()
    wait_for(lambda: recording.quality().go, "the disk to be heard of again")
    recording.finish("stopped")
