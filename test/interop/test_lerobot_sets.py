"""Pins that LeRobot data sets come in as they go out: each row its numbers, its frame, its prompt.

A data set had to be turned into something else before it could be imported, by a library of another
Python; an episode of version 3 is a part of files that hold others, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.exchange import look
from helpers.hdf5 import CAMERAS, motion
from helpers.lerobot import (
    DATA_2,
    DATA_3,
    IMAGES,
    JOINTS,
    NAMES,
    PROMPTS,
    ROWS,
    VIDEO_3,
    LeRobot,
    change_table,
    encoded,
    pictures,
    write_lines,
)
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.foreign_episode import ImportOptions
from cosmos_policy_ros.interop.importer import Imported, Importer, KnownSourceError
from cosmos_policy_ros.interop.joint_names import columns_of, joint_of
from cosmos_policy_ros.interop.lerobot_episode import LeRobotEpisode, open_episode
from cosmos_policy_ros.interop.lerobot_set import LeRobotSet
from cosmos_policy_ros.interop.sources import find_sources

ROLES = {"cam_high": "primary", "cam_left_wrist": "left_wrist", "cam_right_wrist": "right_wrist"}
VERSIONS = ("v2.1", "v3.0")
RIGHT_FIRST = (*range(7, 14), *range(7))


class Take:
    """Imports into one store."""

    def __init__(self, store: EpisodeStore, types: Typestore) -> None:
        self.store, self.types = store, types

    def __call__(self, folder: Path, **options: Any) -> list[Imported]:
        importer = Importer(self.store, self.types, ImportOptions(**options))
        return [importer.take(source) for source in find_sources(folder)]


@pytest.fixture
def take(store: EpisodeStore, types: Typestore) -> Take:
    return Take(store, types)


def read(
    folder: Path, index: int = 0, check: Callable[[LeRobotEpisode], Any] = id, **how: Any
) -> Any:
    """Open an episode and return what a check of it returns."""
    with open_episode(LeRobotSet(folder).episodes()[index], **how) as episode:
        return check(episode)


def frames(folder: Path, index: int, role: str, **how: Any) -> list[Any]:
    """Return every image of a camera."""

    def check(episode: LeRobotEpisode) -> list[Any]:
        return list(episode.frames[role].rows(range(len(episode.qpos))))

    found: list[Any] = read(folder, index, check, **how)
    return found


def notes(folder: Path, index: int = 0, **how: Any) -> str:
    return str(read(folder, index, lambda episode: "; ".join(episode.notes), **how))


@pytest.mark.parametrize("images", ["video", "png", "jpeg"])
@pytest.mark.parametrize("version", VERSIONS)
def test_an_episode_is_its_rows(tmp_path: Path, take: Take, version: str, images: str) -> None:
    done = take(LeRobot(version, images).write(tmp_path / "set"))
    assert [each.notes for each in done] == [(), ()]
    ended_ns = 0
    for index, each in enumerate(done):
        episode, windows, seen = look(each.path)
        assert episode.start_ns >= ended_ns
        ended_ns = int(windows.steps.times_ns[-1])
        states = np.stack([one.state for one in seen])
        assert np.array_equal(states.astype(np.float32), motion(ROWS[index], index))
        actions = windows.steps.actions.astype(np.float32)
        assert np.array_equal(actions, motion(ROWS[index], 10 + index))
        assert episode.quality.go and episode.metadata.prompt == PROMPTS[index]
        assert episode.score is None and episode.metadata.engine == ""
        for camera, role in ROLES.items():
            wanted = pictures(ROWS[index], camera, index)
            for one, image in zip(seen, wanted, strict=True):
                lost = np.abs(one.images[role].astype(int) - image).mean()
                assert lost == 0 if images == "png" else lost < 2.5


def test_jpeg_in_the_rows_is_handed_on_byte_for_byte(tmp_path: Path) -> None:
    folder = LeRobot("v3.0", "jpeg").write(tmp_path / "set")
    wanted = encoded(pictures(ROWS[1], CAMERAS[0], 1), ".jpeg")
    assert frames(folder, 1, "primary") == wanted
    swapped = frames(folder, 1, "primary", colours="bgr")
    right = cv2.imdecode(np.frombuffer(wanted[3], np.uint8), cv2.IMREAD_COLOR)
    found = cv2.imdecode(np.frombuffer(swapped[3], np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(found[..., ::-1].astype(int) - right).mean() < 3


@pytest.mark.parametrize("codec", ["libsvtav1", "libx264", "libx265"])
def test_frames_are_those_at_the_rows_times_in_a_video_of_many(tmp_path: Path, codec: str) -> None:
    folder = LeRobot("v3.0", fps=30, rows=(24, 20, 9), prompts=["a"] * 3, codec=codec)
    path = folder.write(tmp_path / "set") / VIDEO_3.format(f"{IMAGES}cam_high")
    with av.open(str(path)) as video:
        whole = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    for index, part in ((0, whole[:24]), (1, whole[24:44]), (2, whole[44:])):
        found = frames(tmp_path / "set", index, "primary")
        assert np.array_equal(found, part)
        wanted = pictures(len(part), CAMERAS[0], index).astype(int)
        assert np.abs(np.array(found) - wanted).mean() < 3


def test_the_same_episode_of_another_version_is_known(
    tmp_path: Path, take: Take, capsys: Any
) -> None:
    two = LeRobot("v2.1").write(tmp_path / "two")
    three = LeRobot("v3.0").write(tmp_path / "three")
    assert len(take(two)) == 2
    with pytest.raises(KnownSourceError, match=r"three/episode 0: is in .* as .*_0001; --again"):
        take(three)
    longer = LeRobot("v3.0", rows=(*ROWS, 12), prompts=("a", "b", "c")).write(tmp_path / "longer")
    assert cosmos.main(["import", "--root", str(take.store.root), str(longer)]) == 1
    said = capsys.readouterr()
    assert "1 episode imported" in said.out and "2 there already" in said.out
    assert len(take(three, again=True)) == 2


def test_50_hz_gives_every_second_row_and_30_hz_is_resampled(tmp_path: Path, take: Take) -> None:
    fast = LeRobot("v3.0", fps=50, rows=(24,), prompts=["a"]).write(tmp_path / "fast")
    (done,) = take(fast)
    assert done.notes == ("every second row of 50 Hz",)
    _, windows, seen = look(done.path)
    assert np.array_equal(windows.steps.actions.astype(np.float32), motion(24, 10)[::2])
    for one, image in zip(seen, pictures(24, CAMERAS[0])[::2], strict=True):
        assert np.abs(one.images["primary"].astype(int) - image).mean() < 2.5
    other = LeRobot("v2.1", fps=30, rows=(31,), prompts=["a"]).write(tmp_path / "other")
    (done,) = take(other)
    assert done.notes == ("30 Hz resampled to 25 Hz by stamps",)
    assert done.steps == 26


@pytest.mark.parametrize(
    ("name", "joint"),
    [
        ("left_waist", ("left", "waist")),
        ("right/wrist_rotate", ("right", "wrist_rotate")),
        ("follower_left.forearm_roll", ("left", "forearm_roll")),
        ("left_arm_wrist_angle.pos", ("left", "wrist_angle")),
        ("puppet_right_gripper", ("right", "gripper")),
        ("Left Elbow", ("left", "elbow")),
        ("vx300s_left/shoulder", ("left", "shoulder")),
        ("waist", None),
        ("left_right_waist", None),
        ("left_shoulder_pan.pos", None),
        ("left_arm_joint_1", None),
        ("base_vel_x", None),
    ],
)
def test_a_joint_is_known_by_its_name(name: str, joint: tuple[str, str] | None) -> None:
    assert joint_of(name) == joint


def reordered(names: Any) -> tuple[int, ...]:
    return columns_of(names, 14, "set", None).order


def test_columns_are_put_in_order_by_their_names() -> None:
    right_first = [*NAMES[7:], *NAMES[:7]]
    for names in (NAMES, {"motors": NAMES}, {"left": NAMES[:7], "right": NAMES[7:]}, [NAMES]):
        assert reordered(names) == tuple(range(14))
    assert reordered({name: index for index, name in enumerate(NAMES)}) == tuple(range(14))
    assert reordered(right_first) == RIGHT_FIRST
    grippers_last = [name for name in NAMES if "grip" not in name] + [
        "left_gripper",
        "right_gripper",
    ]
    assert reordered(grippers_last) == (*range(6), 12, *range(6, 12), 13)
    for names in (
        None,
        ["state"],
        [f"motor_{i}" for i in range(14)],
        [f"{i}" for i in range(1, 15)],
    ):
        assert columns_of(names, 14, "set", None).notes == (
            "joints are not named: the first seven columns are taken for the left arm's",
        )


@pytest.mark.parametrize("names", [[*NAMES[7:], *NAMES[:7]], {"motors": [*NAMES[7:], *NAMES[:7]]}])
def test_a_right_arm_that_comes_first_is_put_behind(tmp_path: Path, names: Any) -> None:
    folder = LeRobot(names=names, columns=RIGHT_FIRST).write(tmp_path / "set")
    assert notes(folder) == "right arm's columns put behind the left's, by their names"
    read(folder, check=lambda e: np.testing.assert_array_equal(e.qpos, motion(ROWS[0])))


def test_names_that_a_converter_writes_over_another_order_are_asked_about(tmp_path: Path) -> None:
    """The one of openpi names the right arm first, and copies HDF5's columns, left arm first."""
    names = [[*NAMES[7:], *NAMES[:7]]]
    folder = LeRobot(names=names).write(tmp_path / "set")
    asked = (
        r"set, episode 0: observation.state: its names put the right arm first.*--first-arm left"
    )
    with pytest.raises(RolloutError, match=asked):
        read(folder)
    read(
        folder,
        check=lambda e: np.testing.assert_array_equal(e.qpos, motion(ROWS[0])),
        first_arm="left",
    )
    assert notes(folder, first_arm="right") == "right arm's columns put behind the left's, as given"
    other = LeRobot(names=names, columns=RIGHT_FIRST).write(tmp_path / "other")
    read(
        other,
        check=lambda e: np.testing.assert_array_equal(e.action, motion(ROWS[0], 10)),
        first_arm="right",
    )


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            [f"{side}_{joint}.pos" for side in ("left", "right") for joint in "abcdefg"],
            r"names no left_waist, left_shoulder, left_elbow …, or two; its names are left_a\.pos, "
            r".*give --first-arm",
        ),
        ([*NAMES[:13], "right_\x1b[31mgrip"], r"names no right_gripper, or two; .*--first-arm"),
        ([*NAMES[:13], "left_waist"], "names no left_waist, right_gripper, or two"),
        (NAMES[:7], "has 14 columns and 7 names"),
        ([*NAMES[:13], 5], "names no right_gripper, or two"),
    ],
)
def test_names_of_another_robot_are_refused(tmp_path: Path, names: Any, told: str) -> None:
    folder = LeRobot(names=names).write(tmp_path / "set")
    with pytest.raises(RolloutError, match=f"set, episode 0: observation.state: {told}"):
        read(folder)
    read(folder, first_arm="left")


def test_one_arm_is_refused_and_a_base_is_named(tmp_path: Path) -> None:
    one = LeRobot(names=NAMES[:7], columns=range(7)).write(tmp_path / "one")
    with pytest.raises(RolloutError, match=r"names no right_waist.*only two arms of an ALOHA can"):
        read(one)
    with pytest.raises(RolloutError, match="has 7 columns, expected 14"):
        read(one, first_arm="left")
    names = [*NAMES, "base_x", "base_y"]
    moving = LeRobot(names=names, columns=(*range(14), 0, 1)).write(tmp_path / "moving")
    still = "not taken: observation.state base_x, observation.state base_y, action base_x"
    assert notes(moving).startswith(still)
    read(moving, check=lambda e: np.testing.assert_array_equal(e.qpos, motion(ROWS[0])))


def test_what_moves_and_is_not_taken_is_named(tmp_path: Path) -> None:
    speeds = np.zeros((24, 2), np.float32)
    folder = LeRobot(
        extra={
            "observation.base_velocity": ("float32", ["x", "w"], speeds + 0.3),
            "observation.environment_state": ("float32", None, motion(24)[:, :3]),
            "observation.still": ("float32", None, speeds),
            "next.reward": ("float32", None, np.arange(24, dtype=np.float32)),
            "observation.words": ("string", None, ["a"] * 24),
        },
        info={"robot_type": "widow\x1bx"},
    ).write(tmp_path / "set")
    assert notes(folder) == (
        "recorded with 'widow\\x1bx'; not taken: observation.base_velocity, "
        "observation.environment_state, which move"
    )


def test_velocities_and_efforts_are_taken_and_hold_the_rate(tmp_path: Path, take: Take) -> None:
    rate = 25
    fine = motion(24)
    speeds = (np.gradient(fine, axis=0) * rate).astype(np.float32)
    extra = {
        "observation.velocity": ("float32", NAMES, speeds),
        "observation.effort": ("float32", NAMES, speeds),
    }
    folder = LeRobot(extra=extra, rows=(24,), prompts=["a"]).write(tmp_path / "set")
    read(folder, check=lambda e: np.testing.assert_array_equal(e.qvel, speeds))
    (done,) = take(folder)
    assert done.notes == ()
    wrong = LeRobot(extra=extra, fps=50, rows=(24,), prompts=["a"]).write(tmp_path / "wrong")
    with pytest.raises(RolloutError, match=r"50 Hz, by its meta/info.json .*is about 25 Hz"):
        take(wrong)
    extra["observation.effort"] = ("float32", ["one"] * 3, speeds[:, :3])
    assert "left out: " in notes(LeRobot(extra=extra).write(tmp_path / "three"))


def test_the_success_of_a_rollout_is_its_score(tmp_path: Path, take: Take) -> None:
    def score(name: str, **features: Any) -> Any:
        extra = {
            key.replace("_", ".", 1) if key.startswith("next") else key: (
                "bool" if np.asarray(values).dtype == bool else "float32",
                None,
                np.asarray(values),
            )
            for key, values in features.items()
        }
        folder = LeRobot(extra=extra, rows=(24,), prompts=[name]).write(tmp_path / name)
        episode, _, _ = look(take(folder, again=True)[0].path)
        return None if episode.score is None else (episode.score.points, episode.score.success)

    never, reached = np.zeros(24, bool), np.arange(24) > 20
    assert score("a", success=never) == (0, False)
    assert score("b", next_success=reached) == (100, True)
    assert score("c", success=never, score=np.full(24, 0.6, np.float32)) == (60, False)
    assert score("d", score=np.full(24, 0.6, np.float32)) is None
    assert score("e", success=~never, score=np.arange(24, dtype=np.float32)) == (100, True)
    assert score("f", next_reward=np.ones(24, np.float32)) is None


@pytest.mark.parametrize("version", VERSIONS)
def test_an_episode_of_several_prompts_asks_for_one(
    tmp_path: Path, take: Take, version: str
) -> None:
    folder = LeRobot(version).write(tmp_path / "set")
    path = folder / (DATA_3 if version == "v3.0" else DATA_2.format(0))
    number = np.array(pq.read_table(path)["task_index"].to_pylist())
    number[10:24] = 1
    change_table(path, task_index=number)
    with pytest.raises(
        RolloutError, match=r"has 2 prompts, 'put candy in bag', 'fold shirt'; .*--pr"
    ):
        read(folder, check=lambda episode: episode.metadata((), None))
    assert len(take(folder, prompt="tidy up")) == 2


def test_cameras_are_told_with_or_without_what_they_share(tmp_path: Path) -> None:
    cameras = dict(zip(CAMERAS, (f"{IMAGES}{name}" for name in ("up", "l", "r")), strict=True))
    folder = LeRobot(cameras=cameras).write(tmp_path / "set")
    with pytest.raises(
        RolloutError, match="no camera is known as left_wrist; there is up, l, r: say"
    ):
        read(folder)
    given = {"primary": f"{IMAGES}up", "left_wrist": "l", "right_wrist": f"{IMAGES}r"}
    found = frames(folder, 0, "left_wrist", cameras=given)
    assert np.abs(np.array(found) - pictures(ROWS[0], CAMERAS[1]).astype(int)).mean() < 2.5


def test_a_camera_of_depths_is_none(tmp_path: Path) -> None:
    folder = LeRobot().write(tmp_path / "set")
    info = json.loads((folder / "meta/info.json").read_text())
    top = info["features"][f"{IMAGES}cam_high"]
    info["features"][f"{IMAGES}depth"] = {**top, "info": {"video.is_depth_map": True}}
    (folder / "meta/info.json").write_text(json.dumps(info))
    assert notes(folder) == "not taken: camera depth"
    with pytest.raises(RolloutError, match=r"images\.depth: is a map of depths; choose a camera"):
        read(folder, cameras={"primary": "depth"})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.degrees(motion(24)), "observation.state: left/.*it looks like degrees"),
        (motion(24) * 200, "observation.state: left/"),
    ],
)
def test_other_units_are_refused(tmp_path: Path, take: Take, values: Any, told: str) -> None:
    folder = LeRobot(rows=(24,), prompts=["a"]).write(tmp_path / "set")
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), 14)
    change_table(folder / DATA_2.format(0), **{"observation.state": column})
    with pytest.raises(RolloutError, match=f"set, episode 0: {told}"):
        take(folder)
    assert not [path for path in take.store.root.iterdir() if path.is_dir()]


def test_lists_of_any_kind_are_vectors(tmp_path: Path) -> None:
    folder = LeRobot().write(tmp_path / "set")
    rows = motion(ROWS[0]).tolist()
    for kind in (pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 14)):
        change_table(folder / DATA_2.format(0), **{"observation.state": pa.array(rows, kind)})
        read(folder, check=lambda e: np.testing.assert_array_equal(e.qpos, motion(ROWS[0])))


def test_a_hubs_cache_keeps_the_contents_elsewhere(tmp_path: Path) -> None:
    made = LeRobot("v3.0").write(tmp_path / "made")
    snapshot, blobs = tmp_path / "hub/datasets--a/snapshots/1", tmp_path / "hub/datasets--a/blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(p for p in made.rglob("*") if p.is_file()):
        link = snapshot / path.relative_to(made)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / f"{number}")
        link.symlink_to(blobs / f"{number}")
    assert len(frames(snapshot, 1, "primary")) == ROWS[1]


def test_the_command_finds_sets_beside_other_files_and_one_never_ends_the_others(
    tmp_path: Path, capsys: Any
) -> None:
    data = tmp_path / "data"
    LeRobot("v3.0", rows=(9,), prompts=["a"]).write(data / "b/three")
    two = LeRobot("v2.1", rows=(9, 9, 9), prompts=["a", "b", "c"]).write(data / "a/two")
    write_lines(two / "meta/tasks.jsonl", [{"task_index": 0, "task": "a"}])
    text = (two / "meta/episodes.jsonl").read_text().replace('"length"', '"length', 1)
    (two / "meta/episodes.jsonl").write_text(text)
    LeRobot().write(data / "c/damaged")
    (data / "c/damaged/meta/info.json").write_text("[")
    assert cosmos.main(["import", "--root", str(tmp_path / "store"), str(data)]) == 1
    said = capsys.readouterr()
    assert "1 episode imported" in said.out and "4 failed" in said.out
    assert f"{data}/b/three/episode 0: " in said.out
    for told in (
        r"two/meta/episodes.jsonl: line 1: cannot be read as JSON: line 1, column",
        r"two, episode 1: has no task, or one without a text; give --prompt",
        r"damaged/meta/info.json: cannot be read as JSON",
    ):
        assert told in said.err
    assert cosmos.main(["import", "--root", str(tmp_path / "two"), "--prompt", "b", str(two)]) == 1
    assert "2 episodes imported" in capsys.readouterr().out


def test_joints_of_the_rig_are_those_that_are_known() -> None:
    assert [f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS] == NAMES
