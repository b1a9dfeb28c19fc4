"""Pins that recordings are judged before they are learned from, whatever they are recorded as.

Joints in degrees were imported as GO, a mobile base was dropped and images of 16:9 were taken for
4:3 without a word.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pyarrow as pa
import pytest
from helpers.episodes import MS, START_NS, Writing
from helpers.foreign_bags import foreign_types, write_bag
from helpers.foreign_episode import record_ours
from helpers.hdf5 import CAMERAS, write_hdf5
from helpers.lerobot import DATA_2, DATA_3, LeRobot, change_table
from numpy.typing import NDArray
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.rig.chunk import TimedChunk

Array = NDArray[np.float64]
ROWS = 60


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Imports go below here, and nothing of them stays."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def check(*arguments: object) -> int:
    return cosmos.main(["dataset", "check", *map(str, arguments)])


def wave(rows: int = ROWS) -> Array:
    at = np.arange(rows)[:, None] / 25
    return np.sin(at * np.linspace(1.0, 2.5, 14) + np.arange(14)) / 4 + 0.5


def recording(
    path: Path,
    actions: Array | None = None,
    *,
    others: Mapping[str, Any] | None = None,
    states: Array | None = None,
    size: tuple[int, int] = (24, 32),
) -> Path:
    """Write an HDF5 episode of arms that are at each action three rows later."""
    actions = wave() if actions is None else actions

    def change(file: h5py.File) -> None:
        for key, values in (
            ("action", actions),
            ("observations/qpos", np.roll(actions, 3, axis=0) if states is None else states),
            *(others or {}).items(),
        ):
            if key in file:
                del file[key]
            file[key] = values
        file["observations/qpos"][:3] = file["observations/qpos"][3]
        for camera in CAMERAS:
            key = f"observations/images/{camera}"
            resized = [cv2.resize(image, size[::-1]) for image in file[key]]
            del file[key]
            file[key] = np.asarray(resized)

    return write_hdf5(path, rows=len(actions), change=change)


def episode(
    root: Path, types: Typestore, *, turned: bool = False, prompt: str = "transfer the red cube"
) -> Path:
    """Record an episode of arms that do what they are told, or ``turned`` the other way round."""
    writing, actions = Writing(EpisodeStore(root, types), types, prompt=prompt), wave()
    writing.trajectory(
        TimedChunk("run/0", START_NS + 200 * MS, 0.04, actions[0], actions, np.full(14, 9.0))
    )
    path = 1 - actions if turned else actions
    writing.follow(2.8, lambda at: path[np.clip((at - 340) // 40, 0, ROWS - 1)])
    return writing.recording.finish("stopped")


def test_a_good_recording_is_go_and_nothing_stays(
    tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recording(tmp_path / "fold_shirt/episode_0.hdf5")
    assert check(path, "--rate", 25) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"{path}: GO, 60 steps, 2.4 s"
    assert "1 of 1 episode GO" in rest
    assert "prompt in 1: fold shirt" in rest
    assert "primary: 24x32 in 1 (rows x columns)" in rest
    (waist,) = (line for line in rest if line.startswith("left/waist"))
    numbers = [float(cell) for cell in waist.split()[1:]]
    assert numbers[3:5] == pytest.approx([wave()[:, 0].min(), wave()[:, 0].max()], abs=1e-3)
    assert not list(temporary.iterdir())
    assert sorted(each.name for each in path.parent.iterdir()) == ["episode_0.hdf5"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.degrees, "looks like degrees"),
        (lambda actions: with_grippers(actions, 0.018, 0.058), "looks like a finger's metres"),
        (lambda actions: with_grippers(actions, -0.62, 1.62), "a motor's angle in radians"),
    ],
)
def test_other_units_are_refused(
    tmp_path: Path,
    temporary: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Array], Array],
    words: str,
) -> None:
    bad = recording(tmp_path / "data/bad.hdf5", change(wave()))
    good = recording(tmp_path / "data/good.hdf5")
    assert check(tmp_path / "data", "--rate", 25) == 1
    said = capsys.readouterr().out
    assert f"{bad}: NO-GO: " in said
    assert words in said
    assert f"{good}: GO" in said
    assert "1 of 2 episodes GO" in said
    assert "NO-GO by check, in episodes: refused 1" in said
    assert not list(temporary.iterdir())


def with_grippers(values: Array, low: float, high: float) -> Array:
    changed = values.copy()
    changed[:, [6, 13]] = low + (values[:, [6, 13]] - 0.25) * 2 * (high - low)
    return changed


def test_a_mobile_base_that_moves_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"base_action": np.full((ROWS, 2), 0.3, np.float32)}
    path = recording(tmp_path / "a/e.hdf5", others=base)
    assert check(path, "--rate", 25) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "warning: not taken: /base_action, which moves" in first


def test_an_arm_at_rest_is_named_and_its_range_widened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    actions = wave()
    actions[:, 7:] = [0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.5]
    states = np.roll(actions, 3, axis=0)
    states[:, 7:] += np.random.default_rng(0).integers(0, 2, (ROWS, 7)) * 2 * np.pi / 4096
    path = recording(tmp_path / "a/e.hdf5", actions, states=states)
    assert check(path, "--rate", 25, "--json", tmp_path / "found.json") == 0
    said = capsys.readouterr().out
    assert "warning: hardly moved, in ticks of the encoder: the right arm (at most 1)" in said
    assert "ranges widened, of what moves by so many ticks only: state right/waist (1)" in said
    (waist,) = (line for line in said.splitlines() if line.startswith("right/waist"))
    assert waist.endswith("idle")
    found = json.loads((tmp_path / "found.json").read_text())
    low, high = (found["statistics"][f"proprio_{end}"][7] for end in ("min", "max"))
    assert high - low == pytest.approx(32 * 2 * np.pi / 4096)
    assert found["episodes"][str(path)]["go"]


def test_wide_images_under_a_checkpoint_of_others_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ("--prompt", "transfer the red cube", "--rate", 25, "--checkpoint", "tiny_random")
    recording(tmp_path / "a/wide.hdf5", size=(18, 32))
    recording(tmp_path / "a/narrow.hdf5")
    assert check(tmp_path / "a", *prompt) == 0
    said = capsys.readouterr().out
    assert "against the checkpoint's 480x640" in said
    assert "primary: images of several sizes (rows x columns, episodes): 24x32 in 1, 18x32" in said
    assert "of several aspect ratios" in said


def test_a_checkpoints_prompts_count(
    tmp_path: Path, types: Typestore, capsys: pytest.CaptureFixture[str]
) -> None:
    path = episode(tmp_path / "rollouts", types, prompt="juggle")
    assert check(path) == 0
    assert check(path, "--checkpoint", config_folder("models") / "tiny") == 1
    assert "its prompt 'juggle' has no embedding in" in capsys.readouterr().out


def test_a_folder_of_episodes_is_judged_one_by_one(
    tmp_path: Path, types: Typestore, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "rollouts"
    good, turned, lost, thrown = (episode(root, types, turned=index == 1) for index in range(4))
    (lost / "metadata.yaml").unlink()
    EpisodeStore(root, types).discard("bumped", episode=thrown.name)
    (root / "notes").mkdir()
    drawn = tmp_path / "joints.png"
    assert check(root, "--histograms", drawn, "--json", tmp_path / "found.json") == 1
    said = capsys.readouterr().out
    assert f"{good}: GO, 60 steps" in said
    assert f"{turned}: NO-GO, 60 steps, 2.4 s; " in said
    assert f"{lost}: NO-GO: " in said
    assert "1 of 3 episodes GO" in said
    assert "not looked at: 1 discarded episode" in said
    image = cv2.imread(str(drawn))
    assert image.shape[1] > 1000
    assert image.std() > 10
    found = json.loads((tmp_path / "found.json").read_text())["episodes"]
    assert {name: each["go"] for name, each in found.items()} == {
        str(good): True,
        str(turned): False,
        str(lost): False,
    }
    assert {each["check"] for each in found[str(turned)]["reasons"]} >= {"following"}


def test_a_bag_of_others_is_judged_beside_episodes(
    tmp_path: Path, types: Typestore, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was taken for an episode, since it has the files of one."""
    ours = record_ours(EpisodeStore(tmp_path / "data", types), types)
    write_bag(tmp_path / "data/theirs", ours.messages, foreign_types(types), "sqlite3")
    given = ["--rig", "sim", "--prompt", "transfer the red cube"]
    cosmos.main(["dataset", "check", str(tmp_path / "data"), *given])
    said = capsys.readouterr().out
    for judged in (ours.windows.episode.path, tmp_path / "data/theirs"):
        (line,) = (line for line in said.splitlines() if line.startswith(f"{judged}: "))
        assert "45 steps, 1.8 s" in line
    assert "actions: JointTrajectory messages as they are" in line


def test_what_stands_out_is_said_in_the_end(
    tmp_path: Path, types: Typestore, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for index in range(8):
        recording(data / f"{index}.hdf5")
    odd = recording(data / "8.hdf5", wave(200))
    assert check(data, "--rate", 25) == 0
    said = capsys.readouterr().out
    assert f"{odd}: lasts 8.0 s, where the episodes' median is 2.4 s" in said
    assert "warnings by check, in episodes: outlier 1" in said


def test_what_cannot_be_read_is_named_and_counted(
    tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = tmp_path / "data/\x1b[2Jnot.hdf5"
    orders.parent.mkdir()
    orders.write_bytes(b"nonsense")
    good = recording(tmp_path / "data/good.hdf5")
    missing = tmp_path / "nowhere"
    assert check(missing, good.parent, "--rate", 25, "--histograms", tmp_path / "h.png") == 1
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\\x1b[2Jnot.hdf5: NO-GO: " in said
    assert f"{missing}: NO-GO: no such file or folder" in said
    assert "1 of 3 episodes GO" in said
    assert "refused 2" in said
    assert check(orders, "--json", tmp_path / "none.json", "--histograms", tmp_path / "n.png") == 1
    assert "0 of 1 episode GO" in capsys.readouterr().out
    assert json.loads((tmp_path / "none.json").read_text())["statistics"] is None
    assert not (tmp_path / "n.png").exists()
    assert not list(temporary.iterdir())


def test_what_cannot_be_written_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recording(tmp_path / "a/e.hdf5")
    for option in ("--json", "--histograms"):
        assert check(path, "--rate", 25, option, tmp_path / "nowhere/it") == 1
        assert "nowhere/it: cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_every_episode_of_a_lerobot_set_is_judged(
    tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    """They have no files of their own: each has a line, and none takes another's place."""
    folder = LeRobot(version=version, rows=(60, 70), prompts=("fold", "fold")).write(
        tmp_path / "set"
    )
    places = [(DATA_2.format(0), (60,)), (DATA_2.format(1), (70,))]
    for file, lengths in places if version == "v2.1" else [(DATA_3, (60, 70))]:
        actions = np.concatenate([wave(rows) for rows in lengths])
        states = np.concatenate([wave(rows)[np.arange(rows).clip(3) - 3] for rows in lengths])
        if lengths[-1] == 70:  # both arms of the second episode do what the left one is told
            states[-70:, 7:] = states[-70:, :7]
        columns = {"action": vectors(actions), "observation.state": vectors(states)}
        change_table(folder / file, **columns)
    assert check(folder) == 1
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{folder}/episode 0: GO, 60 steps")
    assert second.startswith(f"{folder}/episode 1: NO-GO, 70 steps")
    assert not list(temporary.iterdir())


def vectors(values: Array) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel().astype(np.float32)), 14)
