"""Pins what goes into a LeRobot data set; where the library is installed, by reading it back.

Elsewhere a stand-in takes the library's place, which only notes what it is given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.exchange import look
from helpers.hdf5 import CAMERAS, ROLLOUT, motion, random_images, write_hdf5
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.cli import cosmos, export
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop import to_lerobot
from cosmos_policy_ros.interop.foreign_episode import ImportOptions
from cosmos_policy_ros.interop.hdf5_layout import Hdf5Source
from cosmos_policy_ros.interop.importer import Importer
from cosmos_policy_ros.interop.sources import find_sources
from cosmos_policy_ros.interop.to_lerobot import LeRobotExport, LibraryError

needs_library = pytest.mark.skipif(find_spec("lerobot") is None, reason="lerobot is not installed")
ROWS = 20


def main(arguments: list[str]) -> int:
    return cosmos.main(["export-lerobot", *arguments])


class StandIn:
    """What is used of ``LeRobotDataset``."""

    made: StandIn

    def __init__(self, root: Path, options: dict[str, Any]) -> None:
        self.root, self.options = root, options
        self.buffer: list[dict[str, Any]] = []
        self.episodes: list[list[dict[str, Any]]] = []
        self.finalized = False
        self.refuses = False

    @classmethod
    def create(cls, root: Path, **options: Any) -> StandIn:
        root.mkdir()
        cls.made = cls(root, options)
        return cls.made

    def add_frame(self, frame: dict[str, Any]) -> None:
        assert set(frame) == {*self.options["features"], "task"}
        self.buffer.append(frame)

    def save_episode(self) -> None:
        if self.refuses:
            raise ValueError("no room")
        self.episodes.append(self.buffer)
        self.buffer = []

    def clear_episode_buffer(self) -> None:
        self.buffer = []

    def finalize(self) -> None:
        self.finalized = True


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    monkeypatch.setattr(to_lerobot, "load_library", lambda: StandIn)
    monkeypatch.setattr(export, "load_library", lambda: StandIn)
    yield StandIn


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, types: Typestore) -> EpisodeStore:
    """A store with two rollouts, a demonstration, and a rollout of larger images."""
    folder = tmp_path_factory.mktemp("lerobot")
    store = EpisodeStore(folder / "episodes", types)
    importer = Importer(store, types, ImportOptions(rate=25))
    failure = write_hdf5(folder / "a/0.hdf5", "raw", rows=ROWS, attributes=ROLLOUT)
    success = write_hdf5(
        folder / "a/1.hdf5",
        "jpeg",
        rows=ROWS - 1,
        attributes={**ROLLOUT, "success": True, "success_score": 1.0},
    )
    demo = write_hdf5(folder / "fold_shirt/2.hdf5", "raw", rows=ROWS)

    def grow(file: Any) -> None:
        del file["observations/images/cam_high"]
        file["observations/images/cam_high"] = np.zeros((ROWS, 48, 64, 3), np.uint8)

    larger = write_hdf5(
        folder / "a/3.hdf5", "raw", rows=ROWS, attributes={**ROLLOUT, "success": 0}, change=grow
    )
    for path in (failure, success, demo, larger):
        importer.take(Hdf5Source(path))
    return store


@pytest.fixture(scope="module")
def episodes(filled: EpisodeStore) -> list[Episode]:
    """The same, read."""
    return [read_episode(path) for path in filled.episodes().values()]


def test_frames_are_the_episodes_steps(
    tmp_path: Path, episodes: list[Episode], stand_in: type[StandIn]
) -> None:
    with LeRobotExport(tmp_path / "set", episodes[0], images="video", scored=True) as data:
        done = [data.add(episode) for episode in episodes[:2]]
    made = stand_in.made
    assert made.finalized
    assert [(each.index, each.frames) for each in done] == [(0, 20), (1, 19)]
    assert (made.options["fps"], made.options["repo_id"]) == (25, "local/set")
    features = made.options["features"]
    assert features["observation.state"]["names"][6] == "left/gripper"
    assert features["observation.images.cam_high"]["shape"] == (24, 32, 3)
    first, second = made.episodes
    assert {frame["task"] for frame in first + second} == {"put candy in bag"}
    assert np.array_equal([f["observation.state"] for f in first], motion(ROWS))
    assert np.array_equal([f["action"] for f in second], motion(ROWS - 1, 1))
    for camera in CAMERAS:
        frames = [f[f"observation.images.{camera}"] for f in first]
        assert np.array_equal(frames, random_images(ROWS, camera))
    assert {float(f["score"][0]) for f in first} == {float(np.float32(0.6))}
    assert {bool(f["success"][0]) for f in second} == {True}


def test_an_episode_that_does_not_fit_leaves_no_frame(
    tmp_path: Path, episodes: list[Episode], stand_in: Any
) -> None:
    with LeRobotExport(tmp_path / "set", episodes[0], images="image", scored=True) as data:
        with pytest.raises(RolloutError, match="has 64x48 pixels, the data set 32x24"):
            data.add(episodes[3])
        with pytest.raises(RolloutError, match="has no score"):
            data.add(episodes[2])
        assert stand_in.made.buffer == []
        assert data.add(episodes[1]).index == 0


def test_a_data_set_without_an_episode_is_removed(
    tmp_path: Path, episodes: list[Episode], stand_in: Any
) -> None:
    with LeRobotExport(tmp_path / "set", episodes[0], images="image", scored=True):
        pass
    assert not (tmp_path / "set").exists()
    (tmp_path / "set").mkdir()
    with pytest.raises(RolloutError, match="exists already"):
        LeRobotExport(tmp_path / "set", episodes[0], images="image", scored=True)


def test_a_refusal_of_the_library_ends_the_data_set(
    tmp_path: Path, episodes: list[Episode], stand_in: Any
) -> None:
    with (
        pytest.raises(LibraryError, match="ValueError: no room; the data set is not whole"),
        LeRobotExport(tmp_path / "set", episodes[0], images="image", scored=True) as data,
    ):
        stand_in.made.refuses = True
        data.add(episodes[0])
    assert not stand_in.made.finalized


def test_the_command_scores_all_or_none(
    tmp_path: Path, filled: EpisodeStore, stand_in: Any, capsys: Any
) -> None:
    root = ["--root", str(filled.root)]
    assert main([*root, "--out", str(tmp_path / "scored")]) == 1
    assert "score" in stand_in.made.options["features"]
    said = capsys.readouterr()
    assert "2 episodes exported" in said.out
    assert "left out: 1 without a score" in said.err
    assert "has 64x48 pixels" in said.err
    assert main([*root, "1", "2", "3", "--unscored", "--out", str(tmp_path / "all")]) == 0
    assert "score" not in stand_in.made.options["features"]
    assert len(stand_in.made.episodes) == 3
    assert "the data set gets none" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["lerobot", "lerobot.datasets.lerobot_dataset"])
def test_without_the_library_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, missing: str
) -> None:
    for name in [name for name in sys.modules if name.startswith(missing)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "LeRobot's library is not installed here" in said
    assert "install this package with the extra 'lerobot'" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@needs_library
@pytest.mark.parametrize("images", ["video", "image"])
def test_the_library_reads_back_what_was_recorded(
    tmp_path: Path, episodes: list[Episode], images: Any
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder = tmp_path / "set"
    with LeRobotExport(folder, episodes[0], images=images, scored=True) as data:
        for episode in episodes[:2]:
            data.add(episode)
    read = LeRobotDataset("local/set", root=folder, video_backend="pyav")
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (read.num_episodes, len(read), read.fps) == (2, 2 * ROWS - 1, 25)
    for index in (0, 7, ROWS - 1, ROWS, 2 * ROWS - 2):
        episode, step = divmod(index, ROWS)
        frame, rows = read[index], ROWS - episode
        assert (int(frame["episode_index"]), int(frame["frame_index"])) == (episode, step)
        assert frame["task"] == "put candy in bag"
        assert float(frame["timestamp"]) == pytest.approx(step / 25)
        assert np.array_equal(frame["observation.state"], motion(rows)[step])
        assert np.array_equal(frame["action"], motion(rows, 1)[step])
        assert float(frame["score"]) == pytest.approx([0.6, 1.0][episode])
        assert bool(frame["success"]) == bool(episode)
        for camera in CAMERAS:
            seen = frame[f"observation.images.{camera}"].numpy().transpose(1, 2, 0) * 255
            lost = np.abs(seen - random_images(rows, camera)[step]).mean()
            exact = images == "image" and not episode
            assert lost < 1e-3 if exact else lost < 12


@needs_library
@pytest.mark.parametrize("images", ["video", "image"])
def test_what_was_exported_comes_back(
    tmp_path: Path, episodes: list[Episode], types: Typestore, images: Any
) -> None:
    folder = tmp_path / "set"
    with LeRobotExport(folder, episodes[0], images=images, scored=True) as data:
        for episode in episodes[:2]:
            data.add(episode)
    importer = Importer(EpisodeStore(tmp_path / "back", types), types)
    for source, before in zip(find_sources(folder), episodes[:2], strict=True):
        done = importer.take(source)
        assert done.notes == ()
        after, windows, seen = look(done.path)
        _, wanted, originals = look(before.path)
        assert (after.metadata.prompt, after.metadata.task) == ("put candy in bag", "ziploc")
        assert after.score is not None and before.score is not None
        assert after.score.points == pytest.approx(before.score.points)
        assert after.score.success == before.score.success
        assert np.array_equal(windows.steps.actions, wanted.steps.actions)
        for one, original in zip(seen, originals, strict=True):
            assert np.array_equal(one.state, original.state)
            for role, image in original.images.items():
                lost = np.abs(one.images[role].astype(int) - image)
                assert lost.max() == 0 if images == "image" else lost.mean() < 12
