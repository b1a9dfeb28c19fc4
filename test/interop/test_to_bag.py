"""Pins that an imported episode is an episode like any other and holds its file's very numbers.

Read with nothing but rosbags, and with the code that makes a policy's observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from helpers.exchange import DT, ROWS, Shared, look
from helpers.hdf5 import CAMERAS, JPEG_KEYS, ROLLOUT, jpegs, motion, random_images, write_hdf5
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.messages import RigMessages
from cosmos_policy_ros.core.config import parse_config
from cosmos_policy_ros.core.errors import ConfigError, RolloutError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.quality import QualityMonitor, load_limits
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.verify import verify
from cosmos_policy_ros.interop.foreign_episode import ImportOptions
from cosmos_policy_ros.interop.hdf5_layout import Hdf5Source
from cosmos_policy_ros.interop.importer import Importer, KnownSourceError, rig_text
from cosmos_policy_ros.interop.to_bag import rig_as_imported
from cosmos_policy_ros.rig.observation import read_arm
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

STEP_NS = 40_000_000
ROLES = {"cam_high": "primary", "cam_left_wrist": "left_wrist", "cam_right_wrist": "right_wrist"}
LIMITS = load_limits()


class Take:
    """Imports into one store."""

    def __init__(self, store: EpisodeStore, types: Typestore) -> None:
        self.store, self.types = store, types

    def __call__(self, path: Path, **options: Any) -> Path:
        return (
            Importer(self.store, self.types, ImportOptions(**options)).take(Hdf5Source(path)).path
        )


@pytest.fixture
def take(store: EpisodeStore, types: Typestore) -> Take:
    return Take(store, types)


def messages(bag: Path, kind: str) -> dict[str, list[Any]]:
    """Return the messages of a type by topic, read by rosbags with its own types."""
    types = get_typestore(Stores.ROS2_KILTED)
    found: dict[str, list[Any]] = {}
    with Reader(bag) as reader:
        wanted = [c for c in reader.connections if c.msgtype == kind]
        for connection, stamp_ns, cdr in reader.messages(wanted):
            message = types.deserialize_cdr(cdr, kind)
            stamp = message.header.stamp
            assert stamp.sec * 10**9 + stamp.nanosec == stamp_ns
            found.setdefault(connection.topic, []).append(message)
    return found


def camera_of(topic: str) -> str:
    return topic.split("/")[1]


@pytest.mark.parametrize("images", ["raw", "jpeg", "video"])
def test_states_and_actions_are_the_files(shared: Mapping[str, Shared], images: str) -> None:
    made = shared[images]
    states = np.stack([each.state for each in made.seen])
    assert np.array_equal(states.astype(np.float32), motion(ROWS))
    assert np.array_equal(made.windows.steps.actions.astype(np.float32), motion(ROWS, 1))
    assert np.abs(states - motion(ROWS)).max() < 1e-12
    assert set(np.diff(made.windows.steps.times_ns)) == {STEP_NS}
    assert made.episode.quality.go
    assert verify(made.episode.path, LIMITS).problems == ()


@pytest.mark.parametrize("rig", [p.stem for p in config_folder("rigs").glob("*.yaml")])
@settings(max_examples=25)
@given(
    position=st.lists(st.floats(-3, 3, width=32), min_size=7, max_size=7),
    velocity=st.lists(st.floats(-3, 3, width=32), min_size=7, max_size=7),
)
def test_every_rig_reads_back_what_was_in_the_file(
    types: Typestore, rig: str, position: list[float], velocity: list[float]
) -> None:
    arm = rig_as_imported(load_rig(rig, config_folder("rigs")), jpeg=False).arms.left
    wanted = np.array(position)
    assume(np.count_nonzero(np.abs(wanted[:-1] + np.pi) < 1e-3) < 3)
    cdr = RigMessages(types).joint_state(arm, 0, wanted, np.array(velocity), None)
    message: Any = types.deserialize_cdr(cdr, "sensor_msgs/msg/JointState")
    found = read_arm(arm, message.name, message.position)
    assert np.array_equal(found[:-1], wanted[:-1])
    assert found[-1] == pytest.approx(wanted[-1], abs=1e-12)
    stroke = arm.gripper.state_open - arm.gripper.state_closed
    assert np.allclose(message.velocity[-1] / stroke, velocity[-1])


def test_raw_images_are_byte_for_byte_the_files(shared: Mapping[str, Shared]) -> None:
    made = shared["raw"]
    for camera, role in ROLES.items():
        wanted = random_images(ROWS, camera)
        pairs = zip(made.seen, wanted, strict=True)
        assert all(np.array_equal(each.images[role], image) for each, image in pairs)
    for topic, images in messages(made.episode.path, "sensor_msgs/msg/Image").items():
        kept = [bytes(image.data) for image in images]
        assert kept == [frame.tobytes() for frame in random_images(ROWS, camera_of(topic))]


def test_jpeg_files_are_byte_for_byte_the_files(shared: Mapping[str, Shared]) -> None:
    found = messages(shared["jpeg"].episode.path, "sensor_msgs/msg/CompressedImage")
    assert len(found) == 3
    for topic, images in found.items():
        assert [bytes(i.data) for i in images] == jpegs(random_images(ROWS, camera_of(topic)))


@pytest.mark.parametrize("videos_as", ["jpeg", "raw"])
def test_the_frames_of_videos_are_the_same_images(
    take: Take, shared: Mapping[str, Shared], videos_as: str
) -> None:
    path, found = shared["video"].source, shared["video"].seen
    if videos_as == "raw":
        _, _, found = look(take(path, videos_as="raw"))
    for camera, role in ROLES.items():
        video = cv2.VideoCapture(str(path.with_name(f"video_{camera}.mp4")))
        for each, original in zip(found, random_images(ROWS, camera), strict=True):
            frame = cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB)
            image = each.images[role].astype(int)
            lost = np.abs(image - frame).max()
            assert lost == 0 if videos_as == "raw" else lost < 60
            # Neither red and blue swapped nor a neighbour's frame: MPEG-4 and JPEG blur, no more.
            assert np.abs(image - original).mean() < 8


def test_a_trajectory_is_what_a_controller_expects(shared: Mapping[str, Shared]) -> None:
    found = messages(shared["raw"].episode.path, "trajectory_msgs/msg/JointTrajectory")
    gripper = load_rig("interbotix_1", config_folder("rigs")).arms.left.gripper
    for topic, part in (("left", slice(0, 7)), ("right", slice(7, 14))):
        sent = found[f"/follower_{topic}/arm_controller/joint_trajectory"]
        assert [m.header.frame_id for m in sent] == ["import/0", "import/1"]
        assert [len(m.points) for m in sent] == [50, 10]
        rows = np.array([p.positions for m in sent for p in m.points])
        wanted = motion(ROWS, 1)[:, part].astype(np.float64)
        wanted[:, 6] = gripper.command_closed + wanted[:, 6] * (
            gripper.command_open - gripper.command_closed
        )
        assert np.array_equal(rows, wanted)
        times = [p.time_from_start.sec + p.time_from_start.nanosec / 1e9 for p in sent[0].points]
        assert np.allclose(times, DT * np.arange(1, 51))


@pytest.mark.parametrize(("images", "rows"), [("raw", 24), ("jpeg", 25), ("video", 25)])
def test_50_hz_gives_every_second_step(tmp_path: Path, take: Take, images: str, rows: int) -> None:
    path = write_hdf5(tmp_path / "a/e.hdf5", images, rows=rows, rate=50, measured=True)
    bag = take(path, rate=None if images == "video" else 50)
    _, windows, found = look(bag)
    assert np.array_equal(windows.steps.actions.astype(np.float32), motion(rows, 1)[::2])
    assert np.array_equal(np.float32([o.state for o in found]), motion(rows)[::2])
    wanted = random_images(rows, "cam_high")[::2]
    for each, image in zip(found, wanted, strict=True):
        # The red corner counts the frames by one grey level, blue by three.
        assert np.abs(each.images["primary"].astype(int) - image).mean() < 5
    efforts = messages(bag, "sensor_msgs/msg/JointState")["/follower_left/joint_states"]
    assert np.array_equal([m.effort for m in efforts], motion(rows, 3)[::2, :7])


def test_a_rollout_keeps_score_operator_and_note(shared: Mapping[str, Shared]) -> None:
    episode = shared["jpeg"].episode
    assert episode.metadata.prompt == "put candy in bag"
    assert episode.metadata.task == "ziploc"
    assert "slider grasped by right arm" in episode.metadata.task_yaml
    assert episode.metadata.engine == "cosmos--chkpt50000"
    assert episode.metadata.operator_name == "ann"
    score = episode.score
    assert score is not None
    assert (score.points, score.success) == (60, False)
    assert (score.operator_name, score.note) == ("ann", "the slider slipped")
    assert episode.id.startswith("20250905-140701_ziploc_")


@pytest.mark.parametrize(
    ("given", "points", "success"),
    [
        ({"success": True}, 100, True),
        ({"success": np.bool_(False)}, 0, False),
        ({"success_score": np.float32(1.0)}, 100, True),
        ({"success": False, "success_score": 1}, 100, False),
    ],
)
def test_a_score_from_what_there_is(
    tmp_path: Path, take: Take, given: dict[str, Any], points: float, success: bool
) -> None:
    path = write_hdf5(tmp_path / "a/e.hdf5", attributes={"task_description": "x", **given})
    score = read_episode(take(path, rate=25)).score
    assert score is not None
    assert (score.points, score.success) == (points, success)


@pytest.mark.parametrize(
    ("folder", "prompt", "task"),
    [
        ("fold_shirt_1500_steps/train", "fold shirt", "shirt"),
        ("pre_put_candies_in_bowl_v2/val", "put candies in bowl", "candies"),
        ("wipe_table_800_steps", "wipe table", "wipe_table"),
    ],
)
def test_a_demonstration_is_called_after_its_folder(
    tmp_path: Path, take: Take, folder: str, prompt: str, task: str
) -> None:
    episode = read_episode(take(write_hdf5(tmp_path / folder / "episode_0.hdf5"), rate=25))
    assert (episode.metadata.prompt, episode.metadata.task) == (prompt, task)
    assert (episode.metadata.engine, episode.score) == ("", None)
    assert bool(episode.metadata.task_yaml) == (task != "wipe_table")


def test_prompt_and_task_can_be_given(tmp_path: Path, take: Take) -> None:
    path = write_hdf5(tmp_path / "a/e.hdf5", attributes=ROLLOUT)
    episode = read_episode(take(path, rate=25, prompt="do it", task="plate"))
    assert (episode.metadata.prompt, episode.metadata.task) == ("do it", "plate")
    with pytest.raises(ConfigError, match="did you mean 'plate'"):
        take(path, task="plat", again=True)


def test_a_simulated_file_is_on_the_simulated_rig(tmp_path: Path, take: Take) -> None:
    path = write_hdf5(tmp_path / "a/e.hdf5", attributes={"sim": True})
    assert read_episode(take(path, rate=25)).metadata.rig == "sim"


@pytest.mark.parametrize("name", [p.stem for p in config_folder("rigs").glob("*.yaml")])
def test_the_rig_of_an_import_is_a_rig_file(name: str) -> None:
    for jpeg in (False, True):
        rig = rig_as_imported(load_rig(name, config_folder("rigs")), jpeg=jpeg)
        assert parse_config(RigSpec, rig_text(rig), "text") == rig
        assert rig_as_imported(rig, jpeg=jpeg) == rig


def test_a_file_is_taken_once(tmp_path: Path, take: Take) -> None:
    path = write_hdf5(tmp_path / "a/e.hdf5", "video")
    first = take(path)
    with pytest.raises(KnownSourceError, match=rf"as {first.name}; --again"):
        take(path)
    assert take(path, again=True) != first
    copy = path.with_name("copy.hdf5")
    copy.write_bytes(path.read_bytes())
    with pytest.raises(KnownSourceError):
        take(copy)
    # The same numbers beside another video are another episode.
    path.with_name("e_cam_high.mp4").write_bytes(
        path.with_name("e_cam_left_wrist.mp4").read_bytes()
    )
    take(path)


def replaced(key: str, value: Any) -> Any:
    def change(file: h5py.File) -> None:
        if key in file:
            del file[key]
        if value is not None:
            file[key] = value

    return change


def nan(file: h5py.File) -> None:
    file["action"][7, 3] = np.nan


def torn_jpeg(file: h5py.File) -> None:
    whole = file[JPEG_KEYS["cam_left_wrist"]][9]
    file[JPEG_KEYS["cam_left_wrist"]][9] = whole[: len(whole) // 2]


def no_jpeg(file: h5py.File) -> None:
    file[JPEG_KEYS["cam_high"]][9] = np.frombuffer(b"\xff\xd8\xff\xda\0\2nothing\xff\xd9", np.uint8)


FAULTS: dict[str, tuple[str, Any, str]] = {
    "not finite": ("raw", nan, "/action: row 7, column 3 is nan"),
    "short action": ("raw", replaced("action", motion(23)), "qpos has 24 rows and /action 23"),
    "one step": ("raw", replaced("action", motion(1)), "rows"),
    "wrong width": (
        "raw",
        replaced("observations/qpos", motion(24)[:, :7]),
        r"\(24, 7\), expected",
    ),
    "words": ("raw", replaced("action", b"words"), "expected numbers"),
    "foreign": ("raw", replaced("action", None), "/action: is not there, so this is no ALOHA file"),
    "qvel": ("raw", replaced("observations/qvel", motion(9)), "qvel has 9 rows"),
    "camera": (
        "raw",
        replaced("observations/images/cam_high", None),
        "no camera is known as primary; there is cam_left_wrist, cam_right_wrist: say which",
    ),
    "no images": ("raw", replaced("observations/images", None), "has no images"),
    "short camera": (
        "raw",
        replaced("observations/images/cam_high", random_images(22, "cam_high")),
        "22 images of cam_high and 24 rows in /action",
    ),
    "grey": (
        "raw",
        replaced("observations/images/cam_high", random_images(24, "cam_high")[..., 0]),
        r"uint8 \(24, 24, 32\), expected uint8",
    ),
    "padded": (
        "raw",
        replaced("observations/images/cam_high", np.zeros((24, 99), np.uint8)),
        "give --colours rgb",
    ),
    "torn JPEG": ("jpeg", torn_jpeg, "wrist_left_images_jpeg: image 9.*no whole JPEG"),
    "no JPEG": ("jpeg", no_jpeg, "primary_images_jpeg: image 9.*does not decode"),
    "not JPEG": (
        "jpeg",
        replaced("primary_images_jpeg", motion(24)),
        "primary_images_jpeg: is float32",
    ),
    "video gone": (
        "video",
        replaced("observations/video_paths/cam_high", b"gone.mp4"),
        "gone.mp4 is not there; copy the videos",
    ),
    "no video": (
        "video",
        replaced("observations/video_paths/cam_high", b"e.hdf5"),
        "e.hdf5 cannot be read as a video",
    ),
    "no name": (
        "video",
        replaced("observations/video_paths/cam_high", motion(2)),
        "expected the name of a video",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named_and_nothing_stays(tmp_path: Path, take: Take, fault: str) -> None:
    images, change, words = FAULTS[fault]
    path = write_hdf5(tmp_path / "a/e.hdf5", images, change=change)
    with pytest.raises(RolloutError, match=words) as raised:
        take(path, rate=25)
    assert str(path) in str(raised.value)
    assert list(take.store.root.iterdir()) == []


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"success_score": 60.0}, "success_score: 60 must be from 0 to 1"),
        ({"success_score": np.nan}, "success_score: .*nan.* must be a number"),
        ({"success": "maybe"}, "success: 'maybe' must be a number"),
        ({"task_description": 3}, "task_description: .*3.* must be text"),
        ({"user_name": np.array(b"a\0b", "S3")}, "NUL"),
    ],
)
def test_an_impossible_attribute_is_named(
    tmp_path: Path, take: Take, attributes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RolloutError, match=words):
        take(write_hdf5(tmp_path / "a/e.hdf5", attributes={**ROLLOUT, **attributes}))
    assert list(take.store.root.iterdir()) == []


def test_a_file_that_is_no_hdf5_or_cut_off_is_named(tmp_path: Path, take: Take) -> None:
    path = tmp_path / "e.hdf5"
    path.write_bytes(b"no")
    with pytest.raises(RolloutError, match=r"e\.hdf5: cannot be read as HDF5"):
        take(path)
    whole = write_hdf5(tmp_path / "whole.hdf5", "raw").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RolloutError, match=r"e\.hdf5"):
        take(path, rate=25)
    assert list(take.store.root.iterdir()) == []


@pytest.mark.parametrize("frames", [20, 30])
def test_a_video_of_another_length_is_named(tmp_path: Path, take: Take, frames: int) -> None:
    path = write_hdf5(tmp_path / "a/e.hdf5", "video")
    other = write_hdf5(tmp_path / "b/e.hdf5", "video", rows=frames)
    path.with_name("e_cam_high.mp4").write_bytes(other.with_name("e_cam_high.mp4").read_bytes())
    with pytest.raises(RolloutError, match=f"{frames} images of cam_high and 24 rows"):
        take(path)


def test_a_damaged_video_is_named(tmp_path: Path, take: Take) -> None:
    path = write_hdf5(tmp_path / "a/e.hdf5", "video")
    video = path.with_name("e_cam_high.mp4")
    content = bytearray(video.read_bytes())
    start = content.index(b"mdat") + 4
    # From the middle of the frames on there is nothing; the header still promises 24.
    middle = start + (content.index(b"moov") - start) // 2
    content[middle : content.index(b"moov") - 4] = bytes(content.index(b"moov") - 4 - middle)
    video.write_bytes(content)
    with pytest.raises(RolloutError, match="says it has 24 frames"):
        take(path)
    assert list(take.store.root.iterdir()) == []


@pytest.mark.parametrize(
    ("images", "rate", "options", "words"),
    [
        ("raw", 25, {}, "does not tell its rate; give --rate 25, or --rate 50"),
        ("jpeg", 25, {"rate": 0.0}, "0 Hz, as given, is no rate of a recording; expected 5 to"),
        ("raw", 25, {"rate": float("inf")}, "inf Hz, as given, is no rate"),
        ("raw", 25, {"rate": float("nan")}, "nan Hz, as given, is no rate"),
    ],
)
def test_a_rate_is_never_guessed(
    tmp_path: Path, take: Take, images: str, rate: float, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RolloutError, match=words):
        take(write_hdf5(tmp_path / "a/e.hdf5", images, rate=rate), **options)


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, take: Take, disk_of: Any, size: int) -> None:
    path = write_hdf5(tmp_path / "a/e.hdf5", "raw")
    with disk_of(size), pytest.raises(RolloutError, match="free disk space"):
        take(path, rate=25)
    assert not list(take.store.root.glob("*.recording"))
    assert list(take.store.root.iterdir()) == []


def test_an_import_broken_off_leaves_nothing(
    tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(QualityMonitor, "report", stop)
    with pytest.raises(KeyboardInterrupt):
        take(write_hdf5(tmp_path / "a/e.hdf5", "raw"), rate=25)
    assert list(take.store.root.iterdir()) == []


def test_what_another_recorder_has_is_left_to_it(
    tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = take.store.root / "20250905-140701_ziploc_0001.recording"
    taken.mkdir(parents=True)
    monkeypatch.setattr(EpisodeStore, "episodes", lambda self: {})
    with pytest.raises(RolloutError, match="exists already; take another episode id"):
        take(write_hdf5(tmp_path / "a/e.hdf5", "raw", attributes=ROLLOUT), rate=25)
    assert taken.exists()


def test_cameras_are_known_by_name_not_by_order() -> None:
    assert set(ROLES) == set(CAMERAS) == set(JPEG_KEYS)
