"""Pins that what is exported is what was recorded, in the very layout of the released rollouts."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import PIL.Image
import pytest
from helpers.episodes import Writing
from helpers.exchange import ROWS, Shared
from helpers.hdf5 import CAMERAS, JPEG_KEYS, ROLLOUT, jpegs, motion, random_images, write_hdf5
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.messages import RigMessages
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.dataset.windows import opening_per_reading
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.foreign_episode import ImportOptions
from cosmos_policy_ros.interop.hdf5_layout import Hdf5Source
from cosmos_policy_ros.interop.importer import Importer, rig_text
from cosmos_policy_ros.interop.to_hdf5 import export_hdf5
from cosmos_policy_ros.rig.observation import read_arm
from cosmos_policy_ros.rig.spec import load_rig

MS = 1_000_000
START_NS = 1_700_000_000_000_000_000


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def importer(store: EpisodeStore, types: Typestore) -> Importer:
    return Importer(store, types, ImportOptions(rate=25))


def arrays(path: Path) -> dict[str, Any]:
    """Return everything in a file but its images."""
    names = ["observations/qpos", "observations/qvel", "observations/effort", "action"]
    with h5py.File(path) as file:
        return {name: file[name][()] for name in names}


def check_equal(found: Path, wanted: Path) -> None:
    ours, theirs = arrays(found), arrays(wanted)
    for name, values in theirs.items():
        assert ours[name].dtype == np.float32
        assert np.array_equal(ours[name], values), name


@pytest.mark.parametrize("images", ["raw", "jpeg", "video"])
def test_there_and_back_again_is_equal(
    out: Path, shared: Mapping[str, Shared], images: Any
) -> None:
    done = export_hdf5(shared[images].episode, out, 7, images)
    assert (done.path, done.steps, done.left_out) == (out / "episode_7.hdf5", ROWS, ())
    check_equal(done.path, shared[images].source)
    videos = [f"episode_7_{camera}.mp4" for camera in CAMERAS] if images == "video" else []
    assert sorted(p.name for p in out.iterdir()) == ["episode_7.hdf5", *videos]
    with h5py.File(done.path) as file:
        steps = np.diff(motion(ROWS, 1), axis=0)
        assert np.array_equal(file["relative_action"][:-1], steps)
        assert np.array_equal(file["relative_action"][-1], steps[-1])
        if images == "jpeg":
            assert dict(file.attrs) == {**ROLLOUT, "sim": True, "fps": 25.0}
            assert json.loads(file["args_json"][()])["task"] == "ziploc"
        else:
            assert set(file.attrs) == {"sim", "task_description", "date_time", "fps"}
        for camera in CAMERAS:
            check_images(file, out, camera, images)


def check_images(file: h5py.File, out: Path, camera: str, images: str) -> None:
    wanted = random_images(ROWS, camera)
    if images == "raw":
        assert np.array_equal(file[f"observations/images/{camera}"], wanted)
    elif images == "jpeg":
        assert [data.tobytes() for data in file[JPEG_KEYS[camera]]] == jpegs(wanted)
    else:
        name = file[f"observations/video_paths/{camera}"][()].decode()
        video = cv2.VideoCapture(str(out / name))
        assert video.get(cv2.CAP_PROP_FPS) == 25
        frames = [cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB) for _ in range(ROWS)]
        assert np.abs(np.asarray(frames).astype(int) - wanted).mean() < 8


def test_velocities_and_efforts_come_back(tmp_path: Path, out: Path, importer: Importer) -> None:
    path = write_hdf5(tmp_path / "a/e.hdf5", "raw", measured=True)
    done = export_hdf5(read_episode(importer.take(Hdf5Source(path)).path), out, 0, "raw")
    check_equal(done.path, path)
    assert arrays(done.path)["observations/effort"].any()


@pytest.mark.parametrize("rig", ["interbotix_1", "interbotix_2", "sim"])
@pytest.mark.parametrize("reading", [0.8, 1.2])
def test_a_grippers_velocity_is_that_of_its_opening(rig: str, reading: float) -> None:
    """In ``h`` seconds of a steady reading the opening changes by its velocity times ``h``."""
    arm, h = load_rig(rig, config_folder("rigs")).arms.left, 1e-4
    names = [*arm.names, arm.gripper.finger_joint]
    before, after = (
        read_arm(arm, names, np.full(len(names), value))[6] for value in (reading, reading + h)
    )
    assert opening_per_reading(arm.gripper, reading) == pytest.approx(
        (after - before) / h, rel=1e-3
    )


def test_a_demonstration_there_and_back_again_stays_one(
    out: Path, shared: Mapping[str, Shared], importer: Importer
) -> None:
    done = export_hdf5(shared["raw"].episode, out, 0, "jpeg")
    again = read_episode(importer.take(Hdf5Source(done.path)).path)
    assert (again.metadata.prompt, again.metadata.engine, again.score) == ("fold shirt", "", None)


def test_raw_images_become_jpeg_files_that_the_trainer_can_read(
    out: Path, shared: Mapping[str, Shared]
) -> None:
    with h5py.File(export_hdf5(shared["raw"].episode, out, 0).path) as file:
        for camera in CAMERAS:
            for data, wanted in zip(
                file[JPEG_KEYS[camera]], random_images(ROWS, camera), strict=True
            ):
                rgb = np.asarray(PIL.Image.open(io.BytesIO(data.tobytes())))
                assert np.abs(rgb.astype(int) - wanted).mean() < 4


def test_a_later_score_is_what_is_exported(
    tmp_path: Path, out: Path, importer: Importer, store: EpisodeStore
) -> None:
    path = write_hdf5(tmp_path / "a/e.hdf5", "jpeg", rows=5, attributes=ROLLOUT)
    bag = importer.take(Hdf5Source(path)).path
    store.score(OperatorScore(85, True, operator_name="bob", note="on the video"), episode=bag.name)
    with h5py.File(export_hdf5(read_episode(bag), out, 0).path) as file:
        assert file.attrs["success"]
        assert file.attrs["success_score"] == pytest.approx(0.85)
        assert file.attrs["user_description"] == "on the video"


def driven(store: EpisodeStore, types: Typestore, *, without: int = -1) -> Path:
    """Record 2 s of the simulated rig under one chunk, 40 ms a row; a camera may lack a second."""
    writing = Writing(store, types)
    messages = RigMessages(types)
    rows, start_ns = np.tile(np.arange(50)[:, None] / 100, (1, 14)), START_NS + 100 * MS
    for topic, cdr in messages.trajectories(writing.rig, "run/0", start_ns, 40 * MS, rows):
        writing.recording.write(f"/{topic}", start_ns, cdr)
    for at in range(0, 2400, 10):
        for side in ("left", "right"):
            writing.state(side, at)
        for camera in writing.rig.cameras:
            if at % 40 == 0 and not (camera.role == "primary" and without <= at < without + 600):
                writing.image(camera.role, at)
    return writing.recording.finish("time_limit")


def test_a_recorded_episode_gives_its_control_steps(
    out: Path, store: EpisodeStore, types: Typestore
) -> None:
    bag = driven(store, types, without=10_000)
    done = export_hdf5(read_episode(bag), out, 0, "raw")
    assert (done.steps, done.left_out) == (50, ())
    found = arrays(done.path)
    assert np.allclose(found["action"][:, 3], np.arange(50) / 100)
    # The state at the step's begin: at / 1e5 rad, as the helper writes it.
    assert np.allclose(found["observations/qpos"][:, 0], (100 + 40 * np.arange(50)) / 1e5)
    assert not found["observations/qvel"].any()
    with h5py.File(done.path) as file:
        assert file.attrs["policy_name"] == "cosmos--aloha_tuned"
        assert "success" not in file.attrs
        assert file.attrs["sim"]


def test_steps_without_an_image_are_left_out_and_counted(
    out: Path, store: EpisodeStore, types: Typestore
) -> None:
    done = export_hdf5(read_episode(driven(store, types, without=800)), out, 0, "raw")
    assert 0 < len(done.left_out) == 50 - done.steps < 20
    assert "cam_high" in done.left_out[0]
    with h5py.File(done.path) as file:
        assert len(file["observations/images/cam_high"]) == len(file["action"]) == done.steps


def test_an_episode_without_steps_is_named(
    out: Path, store: EpisodeStore, types: Typestore
) -> None:
    writing = Writing(store, types)
    writing.seconds(1.0)
    bag = writing.recording.finish("stopped")
    with pytest.raises(RolloutError, match="holds no executed step"):
        export_hdf5(read_episode(bag), out, 0)
    assert list(out.iterdir()) == []


def test_a_file_is_never_overwritten(out: Path, shared: Mapping[str, Shared]) -> None:
    (out / "episode_0.hdf5").write_text("mine")
    with pytest.raises(RolloutError, match="exists already; export into a new folder"):
        export_hdf5(shared["raw"].episode, out, 0)
    assert (out / "episode_0.hdf5").read_text() == "mine"


@pytest.mark.parametrize("images", ["raw", "jpeg", "video"])
def test_a_full_disk_leaves_nothing(
    out: Path, shared: Mapping[str, Shared], disk_of: Any, images: Any
) -> None:
    with disk_of(1500), pytest.raises(RolloutError, match="free disk space"):
        export_hdf5(shared["raw"].episode, out, 0, images)
    assert list(out.iterdir()) == []


def test_a_camera_that_changes_its_size_is_named(
    out: Path, store: EpisodeStore, types: Typestore
) -> None:
    episode = read_episode(_growing(store, types))
    with pytest.raises(RolloutError, match="camera primary changes from 8x8 to 16x16 pixels"):
        export_hdf5(episode, out, 0)
    assert list(out.iterdir()) == []


def _growing(store: EpisodeStore, types: Typestore) -> Path:
    writing, messages = Writing(store, types), RigMessages(types)
    rows = np.zeros((10, 14))
    for topic, cdr in messages.trajectories(writing.rig, "run/0", START_NS, 40 * MS, rows):
        writing.recording.write(f"/{topic}", START_NS, cdr)
    for at in range(0, 400, 40):
        for side in ("left", "right"):
            writing.state(side, at)
        for camera in writing.rig.cameras:
            size = 16 if at >= 200 and camera.role == "primary" else 8
            image = np.full((size, size, 3), at % 256, np.uint8)
            cdr = messages.image(image, START_NS + at * MS)
            writing.recording.write(f"/{camera.topic}", START_NS + at * MS, cdr)
    return writing.recording.finish("stopped")


def test_the_text_of_a_rig_tells_where_it_is_from() -> None:
    text = rig_text(load_rig("sim", config_folder("rigs")))
    assert text.startswith("# As imported: made from the rig file 'sim'")
