"""Pins that compaction keeps an episode whole: killed, refused, raced, and in what is read of it.

``pytest test/episodes/test_compact.py -s`` prints the figures of the kills.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import yaml
from helpers.episodes import MS, RIG, START_NS, Writing, metadata
from helpers.scenes import record_scenes, scene
from numpy.typing import NDArray
from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.check import CheckedFile
from cosmos_policy_ros.bags.index import index_topics
from cosmos_policy_ros.bags.messages import header_stamp
from cosmos_policy_ros.bags.video import VIDEO, image_reader
from cosmos_policy_ros.bags.writer import METADATA, read_metadata, write_metadata
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.files import locked
from cosmos_policy_ros.dataset.checks import (
    EpisodeReport,
    judge_episode,
    load_check_limits,
)
from cosmos_policy_ros.dataset.contact_sheet import contact_sheet
from cosmos_policy_ros.dataset.gate_replay import check_episode
from cosmos_policy_ros.dataset.motion import read_motion
from cosmos_policy_ros.dataset.playback import observations
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.compact import (
    Compacted,
    compact,
    is_compacted,
    load_compaction,
)
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.episodes.folders import COMPACTED, State, look
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.quality import load_limits
from cosmos_policy_ros.episodes.recovery import recover
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.topics import find_rig
from cosmos_policy_ros.episodes.verify import verify
from cosmos_policy_ros.interop.to_hdf5 import export_hdf5
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.observation import Observation

CONFIG = load_compaction()
FRAMES = 12
LEAST = 34.0  # dB; these images' neighbours are 30 dB apart at most
FORK = get_context("fork")


@pytest.fixture
def episodes(tmp_path: Path, types: Typestore) -> EpisodeStore:
    return EpisodeStore(tmp_path / "episodes", types, clock=lambda: START_NS)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, types: Typestore) -> Path:
    """A scored episode: two files, a label log, an executed chunk."""
    store = EpisodeStore(tmp_path_factory.mktemp("original"), types, clock=lambda: START_NS)
    writing = Writing(store, types)
    positions = np.full((50, 14), 0.5)
    writing.trajectory(TimedChunk("run/0", START_NS, 0.04, positions[0], positions, np.ones(14)))
    path = record_scenes(writing, FRAMES)
    store.score(OperatorScore(None, False, ("touched", "lifted"), note="slipped"))
    return path


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, types: Typestore) -> Path:
    """A scored episode of three images per camera."""
    store = EpisodeStore(tmp_path_factory.mktemp("short"), types, clock=lambda: START_NS)
    path = record_scenes(Writing(store, types), 3)
    store.score(OperatorScore(50, False))
    return path


@pytest.fixture
def scored(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / original.name))


def compacted(path: Path) -> Compacted:
    found = compact(path, CONFIG)
    assert found is not None
    return found


def received(episode: Episode) -> list[tuple[str, int, int, bytes]]:
    """Return all messages in order: topic, both stamps, bytes."""
    files = [CheckedFile(path) for path in episode.files]
    found = [
        (message.topic, message.stamp_ns, header_stamp(message.cdr), message.cdr)
        for file in files
        for message in file.messages()
    ]
    assert not [problem for file in files for problem in file.problems]
    return found


def images(path: Path) -> dict[str, list[NDArray[np.uint8]]]:
    """Return every image of an episode by its camera's role."""
    episode = read_episode(path)
    rig = find_rig(episode)
    topics = index_topics(episode.files, rig.cameras)
    found: dict[str, list[NDArray[np.uint8]]] = {}
    for name, role in rig.cameras.items():
        read = image_reader(topics[name])
        assert topics[name].msgtype == VIDEO
        found[role] = [read(index).pixels for index in range(len(topics[name]))]
    return found


def assert_shows_scenes(path: Path, size: tuple[int, int] = (48, 64)) -> None:
    for role, shown in images(path).items():
        assert len(shown) == FRAMES
        for number, image in enumerate(shown):
            truth = scene(role, number, size)
            assert image.shape == truth.shape
            assert cv2.PSNR(image, truth) > LEAST, (role, number)


# ---------------------------------------------------------------- the same episode


def test_all_but_the_images_is_the_same(scored: Path) -> None:
    before = read_episode(scored)
    old, names = received(before), find_rig(before).cameras
    result = compacted(scored)
    after = read_episode(scored)
    new, cameras = received(after), find_rig(after).cameras
    assert [m[1:3] for m in new] == [m[1:3] for m in old]
    for was, now in zip(old, new, strict=True):
        if was[0] in names:
            assert (now[0], cameras[now[0]]) == (was[0] + "/foxglove", names[was[0]])
        else:
            assert now == was
    same = ("id", "metadata", "labels", "outcome", "discarded", "start_ns", "duration_ns")
    for name in same:
        assert getattr(after, name) == getattr(before, name), name
    assert (after.quality.go, after.quality.reasons) == (True, before.quality.reasons)
    assert result.images == 3 * FRAMES
    assert result.bytes_after == after.files[0].stat().st_size < result.bytes_before / 2
    assert_shows_scenes(scored)


def test_the_metadata_tell_of_it(scored: Path) -> None:
    before = read_metadata(scored)
    result = compacted(scored)
    after = read_metadata(scored)
    note = json.loads(after["custom_data"].pop(COMPACTED))
    (name, file), *others = note.pop("replaced").items()
    assert not others and name == before["relative_file_paths"][0]
    assert (len(file["sha256"]), file["bytes"]) == (64, result.bytes_before)
    told = {"format": "h264", "crf": CONFIG.crf, "group": CONFIG.group, "images": 3 * FRAMES}
    assert told.items() <= note.items()
    assert note["psnr_least"] == pytest.approx(result.least_psnr, abs=0.01)
    for key in ("message_count", "starting_time", "duration"):
        assert after[key] == before[key]
    assert after["relative_file_paths"][1:] == before["relative_file_paths"][1:]
    assert [each["path"] for each in after["files"]] == after["relative_file_paths"]
    on_disk = {path.name for path in scored.iterdir()}
    assert on_disk == {*after["relative_file_paths"], METADATA, "labels.jsonl"}
    # ROS 2's own reader, and the types by which Foxglove knows what it is.
    with Reader(scored) as reader:
        assert reader.message_count == before["message_count"]
        video = [c for c in reader.connections if c.msgtype == VIDEO]
        assert len(video) == 3 and {c.msgcount for c in video} == {FRAMES}
        assert {c.digest for c in video} == {video[0].digest} != {""}


def test_a_second_time_changes_nothing(scored: Path) -> None:
    compacted(scored)
    before = {path.name: path.read_bytes() for path in scored.iterdir()}
    assert compact(scored, CONFIG) is None
    assert before == {path.name: path.read_bytes() for path in scored.iterdir()}


def test_verify_finds_it_sound(scored: Path) -> None:
    before = verify(scored, load_limits())
    compacted(scored)
    after = verify(scored, load_limits())
    assert (after.problems, after.messages, after.stale) == ((), before.messages, False)


def test_a_verdict_names_the_topics_that_there_are(
    episodes: EpisodeStore, types: Typestore
) -> None:
    writing = Writing(episodes, types)
    for at in range(0, 3000, 10):
        writing.state("left", at)
        for camera in RIG.cameras:
            if at % 40 == 0 and not (camera.role == "primary" and at > 1000):
                writing.image(camera.role, at, scene(camera.role, at // 40))
    writing.recording.lost(writing.topic(RIG.cameras[0].topic), 40)
    path = writing.recording.finish("time_limit")
    before = read_episode(path).quality
    compacted(path)
    after = read_episode(path).quality
    assert (after.go, len(after.reasons)) == (False, len(before.reasons))
    assert sum("/foxglove " in reason for reason in after.reasons) == 2
    assert verify(path, load_limits()).problems == ()


# ---------------------------------------------------------------- what is in it


@pytest.mark.parametrize("namespace", ["", "/lab/left_table"])
@pytest.mark.parametrize("jpeg", [False, True])
def test_raw_and_jpeg(episodes: EpisodeStore, types: Typestore, namespace: str, jpeg: bool) -> None:
    path = record_scenes(Writing(episodes, types, namespace=namespace, jpeg=jpeg), FRAMES)
    compacted(path)
    assert_shows_scenes(path)
    assert all(
        name.startswith(f"{namespace}/cam_") for name in find_rig(read_episode(path)).cameras
    )


@pytest.mark.parametrize("size", [(47, 64), (48, 63)])
def test_odd_sizes(episodes: EpisodeStore, types: Typestore, size: tuple[int, int]) -> None:
    path = record_scenes(Writing(episodes, types), FRAMES, size=size)
    compacted(path)
    assert_shows_scenes(path, size)


def record_images(
    episodes: EpisodeStore,
    types: Typestore,
    make: Callable[[int], tuple[str, dict[str, Any]]],
    **of_rig: Any,
) -> Path:
    """Record a second of images of any message, and nothing else but a state."""
    cameras = tuple(replace(camera, **of_rig) for camera in RIG.cameras)
    rig = replace(RIG, cameras=cameras)
    text = yaml.safe_load(metadata().rig_yaml)
    changes = {k: list(v) if isinstance(v, tuple) else v for k, v in of_rig.items()}
    text["cameras"] = [{**each, **changes} for each in text["cameras"]]
    writing = Writing(episodes, types, rig=rig, rig_yaml=yaml.safe_dump(text))
    for number in range(FRAMES):
        for side in ("left", "right"):
            writing.state(side, 40 * number)
        for camera in cameras:
            kind, fields = make(number)
            writing._write(camera.topic, f"sensor_msgs/msg/{kind}", 40 * number, None, **fields)
    return writing.recording.finish("stopped")


@pytest.mark.parametrize("form", ["bgr8", "rgba8", "mono8", "png", "jpeg"])
def test_whatever_the_package_decodes(episodes: EpisodeStore, types: Typestore, form: str) -> None:
    def make(number: int) -> tuple[str, dict[str, Any]]:
        rgb = scene("primary", number)
        if form in ("png", "jpeg"):
            data = cv2.imencode(f".{form}", rgb[..., ::-1])[1]
            return "CompressedImage", {"format": form, "data": data.ravel()}
        pixels = {
            "bgr8": rgb[..., ::-1],
            "rgba8": np.dstack([rgb, rgb[..., 0]]),
            "mono8": rgb[..., :1],
        }
        shown = np.ascontiguousarray(pixels[form])
        height, width, channels = shown.shape
        return "Image", {
            **{"height": height, "width": width, "encoding": form, "is_bigendian": 0},
            **{"step": channels * width, "data": shown.ravel()},
        }

    raw = {"encodings": ("rgb8", "bgr8", "rgba8", "mono8")}
    path = record_images(
        episodes, types, make, **({"transport": "compressed"} if form in ("png", "jpeg") else raw)
    )
    compacted(path)
    for shown in images(path).values():
        for number, image in enumerate(shown):
            truth = scene("primary", number)
            if form == "mono8":
                truth = truth[..., :1].repeat(3, 2)
            assert cv2.PSNR(image, truth) > LEAST
    (found,) = observations(path, [START_NS + 400 * MS])
    assert isinstance(found, Observation)


def test_a_frozen_camera_stays_frozen(episodes: EpisodeStore, types: Typestore) -> None:
    """As video its images differ, from one key frame to the next; training must not learn them."""

    def record(freezes: bool) -> Path:
        writing = Writing(episodes, types)
        for at in range(0, 4000, 10):
            for side in ("left", "right"):
                writing.state(side, at)
            for camera in RIG.cameras if at % 40 == 0 else ():
                still = camera.role == "primary" and freezes and at > 1000
                writing.image(camera.role, at, scene(camera.role, 25 if still else at // 40))
        return writing.recording.finish("stopped")

    late = [START_NS + 3900 * MS]
    for freezes in (True, False):
        path = record(freezes)
        (before,) = observations(path, late)
        compacted(path)
        (after,) = observations(path, late)
        assert isinstance(after, ObservationError if freezes else Observation)
        assert type(before) is type(after) and ("frozen" in str(after)) == freezes


# ---------------------------------------------------------------- who reads it


def test_playback_and_windows_give_the_same_moments(scored: Path) -> None:
    before = EpisodeWindows(read_episode(scored))
    moments = [int(at) for at in before.steps.times_ns]
    seen = [before.observe(at) for at in moments]
    compacted(scored)
    after = EpisodeWindows(read_episode(scored))
    np.testing.assert_array_equal(after.steps.times_ns, before.steps.times_ns)
    np.testing.assert_array_equal(after.steps.actions, before.steps.actions)
    np.testing.assert_array_equal(after.usable(5), before.usable(5))
    assert len(moments) > 5
    for at, was in reversed(list(zip(moments, seen, strict=True))):
        now = after.observe(at)
        assert (now.stamp_ns, now.ages) == (was.stamp_ns, was.ages)
        np.testing.assert_array_equal(now.state, was.state)
        for role, image in now.images.items():
            assert cv2.PSNR(image, was.images[role]) > LEAST


def test_what_was_decided_on_is_the_newest_by_its_stamp(
    episodes: EpisodeStore, types: Typestore
) -> None:
    writing = Writing(episodes, types)
    writing.decision(200, "ab" * 32)
    path = record_scenes(writing, FRAMES)
    (before,) = observations(path)
    assert isinstance(before, ObservationError)
    compacted(path)
    (after,) = observations(path)
    assert isinstance(after, Observation) and after.stamp_ns == START_NS + 200 * MS


def test_contact_sheet(scored: Path) -> None:
    before = contact_sheet(scored, columns=4)
    compacted(scored)
    after = contact_sheet(scored, columns=4)
    assert after.shape == before.shape and cv2.PSNR(after, before) > LEAST


def test_the_checks_before_a_training(scored: Path) -> None:
    def judge() -> EpisodeReport:
        windows = EpisodeWindows(read_episode(scored))
        return judge_episode(windows, read_motion(windows, 0.04), load_check_limits())

    before = judge()
    compacted(scored)
    assert judge() == before
    assert before.sizes and not any(found.check == "images" for found in before.reasons)


def test_gate_replay_and_export(scored: Path, tmp_path: Path) -> None:
    judged = check_episode(scored)
    (tmp_path / "before").mkdir()
    was = export_hdf5(read_episode(scored), tmp_path / "before", 0, images="raw")
    compacted(scored)
    again = check_episode(scored)
    assert (again.judged, again.refused) == (judged.judged, judged.refused)
    assert judged.judged > 0
    (tmp_path / "after").mkdir()
    now = export_hdf5(read_episode(scored), tmp_path / "after", 0, images="raw")
    with h5py.File(was.path) as old, h5py.File(now.path) as new:
        np.testing.assert_array_equal(new["action"], old["action"])
        for name, images in old["observations/images"].items():
            again_images = new[f"observations/images/{name}"]
            assert images.shape == again_images.shape
            assert cv2.PSNR(images[3], again_images[3]) > LEAST


# ---------------------------------------------------------------- meanwhile


def meanwhile(path: Path, act: Callable[[], object], config: Any = CONFIG) -> None:
    """Compact, and act when half of the images are done."""

    def progress(done: int, total: int) -> None:
        if done == total // 2:
            act()

    compact(path, config, progress)


def test_a_score_that_comes_meanwhile(episodes: EpisodeStore, types: Typestore) -> None:
    path = record_scenes(Writing(episodes, types), FRAMES)
    meanwhile(path, lambda: episodes.score(OperatorScore(70, False), episode=path.name))
    episode = read_episode(path)
    assert is_compacted(episode) and episode.score is not None and episode.score.points == 70
    episodes.score(OperatorScore(80, False), episode=path.name)
    assert [label.points for label in read_episode(path).labels] == [70, 80]
    assert verify(path, load_limits()).problems == ()
    assert_shows_scenes(path)


def test_discarded_meanwhile(episodes: EpisodeStore, types: Typestore) -> None:
    path = record_scenes(Writing(episodes, types), FRAMES)
    with pytest.raises(RolloutError, match="was moved or d"):
        meanwhile(path, lambda: episodes.discard("blurred", episode=path.name))
    (discarded,) = episodes.root.iterdir()
    episode = read_episode(discarded)
    assert episode.discarded and not is_compacted(episode)
    assert not list(discarded.glob(".*"))
    assert verify(discarded, load_limits()).problems == ()


def test_two_at_once(scored: Path) -> None:
    refused: list[str] = []

    def again() -> None:
        with pytest.raises(RolloutError) as caught:
            compact(scored, CONFIG)
        refused.append(str(caught.value))

    meanwhile(scored, again)
    assert "is being compacted by another process" in refused[0]
    assert_shows_scenes(scored)


def test_nothing_waits_for_it(scored: Path) -> None:
    """A score takes the folder's lock; it must not wait until minutes of images are done."""
    free: list[bool] = []

    def look() -> None:
        with locked(scored):
            free.append(True)

    meanwhile(scored, look)
    assert free == [True]


# ---------------------------------------------------------------- refused


def unchanged(path: Path, says: str, config: Any = CONFIG) -> None:
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(RolloutError, match=says) as caught:
        compact(path, config)
    assert str(path) in str(caught.value)
    assert before == {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_full_disk(scored: Path, disk_of: Callable[[int], AbstractContextManager[None]]) -> None:
    for size in (0, 3000, 60_000):
        with disk_of(size):
            unchanged(scored, "cannot be compacted: .*stays as it is; free disk space")
    compacted(scored)


def test_worse_than_the_limit(scored: Path) -> None:
    strict = replace(CONFIG, least_psnr=59.0)
    unchanged(scored, r"image 0, of /cam_.* dB from its source \(at least 59", strict)


def test_a_damaged_file(scored: Path) -> None:
    file = read_episode(scored).files[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    unchanged(scored, "is damaged: .*stays as it is")


def test_an_image_that_is_none(episodes: EpisodeStore, types: Typestore) -> None:
    def make(number: int) -> tuple[str, dict[str, Any]]:
        data = cv2.imencode(".jpg", scene("primary", number))[1].ravel()
        return "CompressedImage", {"format": "jpeg", "data": data[: -9 if number == 7 else None]}

    path = record_images(episodes, types, make, transport="compressed")
    unchanged(path, "image 2., of /cam_.*: 7?.*no readable image.*; the episode stays as it is")


def test_counts_that_do_not_fit(scored: Path) -> None:
    information = read_metadata(scored)
    topic = find_rig(read_episode(scored)).sensors[0]
    for each in information["topics_with_message_count"]:
        each["message_count"] += each["topic_metadata"]["name"] == topic
    write_metadata(scored, information)
    unchanged(scored, f"has {3 * FRAMES} images, its metadata say {3 * FRAMES + 1}; the episode st")


def test_receipts_that_go_back(episodes: EpisodeStore, types: Typestore) -> None:
    writing = Writing(episodes, types)
    for number in range(5):
        for side in ("left", "right"):
            writing.state(side, 40 * number)
        for camera in RIG.cameras:
            at = 40 * number
            writing.image(camera.role, at, scene(camera.role, number), 10 if number == 3 else at)
    unchanged(writing.recording.finish("stopped"), "was received before the one in front of it")


def test_what_is_no_finished_episode(episodes: EpisodeStore, types: Typestore) -> None:
    path = record_scenes(Writing(episodes, types), 3)
    unchanged(episodes.discard("blurred", episode=path.name), "is discarded, and only finished")
    recording = Writing(episodes, types).recording
    renamed = (episodes.root / f"{path.name}.discarded").rename(episodes.root / "mine")
    unchanged(renamed, "is discarded, and only finished")
    with pytest.raises(RolloutError, match="is unfinished, and only finished"):
        compact(recording.path, CONFIG)
    with pytest.raises(RolloutError, match="cannot be read: No such file"):
        compact(episodes.root / "gone", CONFIG)


def test_what_is_left_over_is_not_removed_while_the_episode_needs_it(scored: Path) -> None:
    """Metadata of an earlier day, copied back: its file is gone, the video is all there is."""
    before = (scored / METADATA).read_text()
    compacted(scored)
    (scored / METADATA).write_text(before)
    with pytest.raises(RolloutError):
        compact(scored, CONFIG)
    assert len(list(scored.glob("*_video.mcap"))) == 1


def test_metadata_that_were_lost_are_made_again_and_tell_of_it(scored: Path) -> None:
    compacted(scored)
    before = read_episode(scored)
    told = read_metadata(scored)["custom_data"][COMPACTED]
    (scored / METADATA).unlink()
    recovered = recover(scored)
    assert recovered.loss.startswith("nothing")
    assert read_metadata(scored)["custom_data"][COMPACTED] == told
    after = read_episode(scored)
    assert (after.topics, after.labels, after.quality) == (
        before.topics,
        before.labels,
        before.quality,
    )
    assert verify(scored, load_limits()).problems == ()


def test_of_a_recording_and_its_video_without_metadata_one_is_the_episode(scored: Path) -> None:
    """A compaction was killed, and then the metadata were lost, which tell them apart."""
    recording = next(scored.glob("*_0.mcap"))
    kept = recording.read_bytes()
    compacted(scored)
    recording.write_bytes(kept)
    (scored / METADATA).unlink()
    recover(scored)
    assert not is_compacted(read_episode(scored)), "the images that were decided on"
    assert (
        verify(scored, load_limits()).problems[0].endswith("'cosmos episodes compact' removes it")
    )
    compacted(scored)
    assert verify(scored, load_limits()).problems == ()
    recording.write_bytes(kept[: len(kept) // 2])  # a copy of it that was cut off
    (scored / METADATA).unlink()
    recover(scored)
    assert is_compacted(read_episode(scored))


# ---------------------------------------------------------------- killed

# Raised before the deed, and so behind the one before.
DEEDS = ("open", "os.rename", "os.remove", "os.truncate", "fcntl.flock", "os.scandir", "os.listdir")


def compact_and_die(folder: Path, at: int) -> None:
    """Compact, and be killed at the n-th time that a file is touched or some images are done."""
    left = at

    def touch() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in DEEDS and (event == "fcntl.flock" or str(folder) in str(arguments[0])):
            touch()

    sys.addaudithook(watch)
    compact(folder, CONFIG, lambda done, total: touch() if done % 3 == 0 else None)
    os._exit(0)


def dies(folder: Path, at: int) -> bool:
    """Compact in a process of its own; return whether it lived long enough to be killed."""
    process = FORK.Process(target=compact_and_die, args=(folder, at))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_anywhere(short: Path, tmp_path: Path) -> None:
    def contents(folder: Path) -> list[tuple[str, int, int]]:
        found = received(read_episode(folder))
        return [(name.removesuffix("/foxglove"), *stamps) for name, *stamps, _ in found]

    before = contents(short)
    found: Counter[str] = Counter()
    folder = tmp_path / short.name
    for at in range(1, 100):
        shutil.copytree(short, folder)
        if not dies(folder, at):
            break
        assert contents(folder) == before, at
        new = is_compacted(read_episode(folder))
        found["new" if new else "old"] += 1
        found["with a file left over"] += len(list(folder.iterdir())) > 4
        assert not new or [len(shown) for shown in images(folder).values()] == [3] * 3
        problems = verify(folder, load_limits()).problems if new else ()
        assert all("is left of a compaction that was killed" in problem for problem in problems)
        # Both files together would be the episode twice.
        assert (look(folder).state, look(folder).remark) == (State.FINISHED, "")
        compact(folder, CONFIG)
        assert len(list(folder.iterdir())) == 4, at
        assert contents(folder) == before, at
        shutil.rmtree(folder)
    print(f"\nkilled at {at - 1} places: {dict(found)}; nothing lost")
    assert at > 20 and found["old"] and found["new"] and found["with a file left over"]
