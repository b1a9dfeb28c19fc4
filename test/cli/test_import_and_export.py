"""Pins that one bad file or bag does not stop the others; an operator sees no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.foreign_bags import foreign_types, write_bag
from helpers.foreign_episode import record_ours
from helpers.hdf5 import ROLLOUT, write_hdf5
from helpers.recordings import write_recording
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.hdf5_layout import open_hdf5
from cosmos_policy_ros.interop.sources import find_sources

ROOT = Path(__file__).parents[2]
ROWS = 6
Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of four files, the third of which is spoilt."""
    folder = tmp_path / "data/fold_shirt/train"

    def spoil(file: object) -> None:
        file["action"][2, 2] = np.inf  # type: ignore[index]

    write_hdf5(folder / "episode_2.hdf5", "video", rows=ROWS)
    write_hdf5(folder / "episode_10.hdf5", "jpeg", rows=ROWS + 1)
    write_hdf5(folder / "episode_11.hdf5", "jpeg", rows=ROWS, change=spoil)
    write_hdf5(folder / "rollouts/episode_12.h5", "raw", rows=ROWS, attributes=ROLLOUT)
    return tmp_path / "data"


def run(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts/cosmos", command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Here:
    """Run a command in this process; what it prints is kept whole, a library's words too."""

    def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        words = list(map(str, arguments))
        code = cosmos.main(words)
        return subprocess.CompletedProcess(words, code, *capfd.readouterr())

    return run_here


def test_a_bad_file_does_not_stop_the_others(
    tmp_path: Path, sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    done = run("import", sources, "--root", store, "--rate", 25)
    assert done.returncode == 1
    told = [line.partition(": ")[0] for line in done.stdout.splitlines()]
    names = ["episode_2.hdf5", "episode_10.hdf5", "episode_12.h5"]
    assert [Path(line).name for line in told[:-1]] == names
    assert told[-1] == f"3 episodes imported into {store}, 1 failed"
    assert "episode_11.hdf5: /action: row 2, column 2 is inf" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(list(store.iterdir())) == 3

    (sources / "fold_shirt/train/episode_11.hdf5").unlink()
    assert cosmos.main(["import", str(sources), "--root", str(store)]) == 1
    said = capsys.readouterr()
    assert said.err.count("refused: ") == 3
    assert said.out == f"0 episodes imported into {store}, 3 there already\n"
    assert (
        cosmos.main(["import", str(sources), "--root", str(store), "--rate", "25", "--again"]) == 0
    )
    assert len(list(store.iterdir())) == 6


def test_no_file_ends_the_others(tmp_path: Path, here: Here) -> None:
    """Names that are no text, a terminal's orders, a locked, a cut and an empty file, one gone."""
    folder = tmp_path / "data"
    good = write_hdf5(folder / "good.hdf5", "raw", rows=ROWS).read_bytes()
    (folder / os.fsdecode(b"caf\xe9.hdf5")).write_bytes(good + b"\0")
    (folder / "\x1b[31mred\n.hdf5").write_bytes(good + b"\0\0")
    (folder / "cut.hdf5").write_bytes(good[: len(good) // 2])
    (folder / "empty.hdf5").touch()
    (folder / "dangling.hdf5").symlink_to("nowhere")
    orders = {"task_description": "fold", "user_name": "\x1b]0;ann\x07", "success": True}
    write_hdf5(folder / "orders.hdf5", "raw", rows=ROWS, attributes=orders)
    locked = write_hdf5(folder / "locked.hdf5", "raw", rows=ROWS)
    with h5py.File(locked, "a"):
        done = run("import", folder, folder / "gone", "--root", tmp_path / "store", "--rate", 25)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = done.stdout.splitlines()
    assert told[-1] == f"4 episodes imported into {tmp_path / 'store'}, 4 failed"
    assert any("caf\\udce9.hdf5: " in line for line in told)
    assert any("\\x1b[31mred\\n.hdf5: " in line for line in told)
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()
    for words in (
        "gone: no such file or folder",
        "cut.hdf5: cannot be read as HDF5: it was cut off (",
        "empty.hdf5: cannot be read as HDF5",
        "locked.hdf5: is locked: another program has it open",
    ):
        assert done.stderr.count(words) == 1, done.stderr
    listed = here("episodes", "list", "--root", tmp_path / "store")
    assert (listed.stdout + listed.stderr).replace("\n", "").isprintable()
    assert listed.returncode == 0


def test_files_and_bags_of_every_kind_go_through_one_command(
    tmp_path: Path, types: Typestore, here: Here
) -> None:
    """Two bags and a file that are sound, among some that are cut, empty or no bag at all."""
    known = foreign_types(types)
    ours = record_ours(EpisodeStore(tmp_path / "ours", types), types)
    folder = tmp_path / "data"
    write_bag(folder / "\x1b[31mred", ours.messages, known, "sqlite3 messages zstd")
    write_bag(folder / "ros1.bag", ours.messages, known, "ros1")
    write_hdf5(folder / "episode.hdf5", "raw", rows=ROWS)
    for name, form in (("cut", "sqlite3"), ("torn.bag", "ros1 lz4")):
        path = write_bag(folder / name, ours.messages, known, form)
        file = path if path.is_file() else path / "cut_0.db3"
        file.write_bytes(file.read_bytes()[:60_000])
    (folder / "empty.mcap").touch()
    (folder / "noise.db3").write_bytes(b"\x1b]0;noise\x07" * 100)
    (folder / "text.bag.active").write_text("#ROSBAG V1.2\n")
    (folder / os.fsdecode(b"caf\xe9.mcap")).symlink_to("nowhere")
    store = tmp_path / "store"
    given = ["--root", store, "--rig", "sim", "--prompt", "fold it"]
    done = here("import", folder, *given, "--rate", 25)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "please report" not in done.stderr
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()
    told = done.stdout.splitlines()
    names = ["episode.hdf5", "ros1.bag", "\\x1b[31mred"]
    assert [line.partition(": ")[0].rpartition("/")[2] for line in told[:-1]] == names
    assert told[-1] == f"3 episodes imported into {store}, 6 failed"
    for words in (
        "cut_0.db3: was cut off: 60000 of ",
        "torn.bag: its index cannot be read (",
        "empty.mcap: is empty; was it copied whole?",
        "noise.db3: begins like no bag: neither MCAP, SQLite nor ROS 1",
        "text.bag.active: its index cannot be read (Bag version 102 is not supported.)",
        "caf\\udce9.mcap: cannot be read: No such file or directory",
    ):
        assert done.stderr.count(words) == 1, done.stderr
    again = here("import", folder / "ros1.bag", *given)
    assert again.returncode == 1
    assert "ros1.bag: is in " in again.stderr and "--again imports it once more" in again.stderr


def test_options_name_cameras_and_colours(tmp_path: Path, here: Here) -> None:
    names = {"cam_high": "up", "cam_left_wrist": "l", "cam_right_wrist": "r"}
    path = write_recording(tmp_path / "a/e.hdf5", "strings", rows=ROWS, cameras=names)
    store = ["--root", tmp_path / "store", "--rate", 50]
    asked = here("import", path, *store)
    assert asked.returncode == 1
    assert "no camera is known as left_wrist; there is l, r, up" in asked.stderr
    given = [f"--camera={role}={name}" for role, name in (("primary", "up"), ("left_wrist", "l"))]
    done = here("import", path, *store, *given, "--camera", "right_wrist=r", "--colours", "bgr")
    assert done.returncode == 0, done.stderr
    assert "every second row of 50 Hz; red and blue exchanged back (as given)" in done.stdout
    for wrong in ("primary", "front=up", "primary="):
        refused = here("import", path, *store, "--camera", wrong)
        assert refused.returncode == 1
        assert (
            "expected ROLE=NAME with a role of left_wrist, right_wrist, primary" in refused.stderr
        )


def test_a_wrong_rig_or_task_is_said_once(
    tmp_path: Path, sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--root", str(tmp_path / "store")]
    for option, near in (("--rig=interbotix_3", "interbotix_"), ("--task=shirts", "'shirt'")):
        assert cosmos.main(["import", str(sources), *store, option]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"did you mean {near}" in said.replace("'interbotix", "interbotix")


def test_export_takes_what_is_scored_and_goes_on(
    tmp_path: Path,
    sources: Path,
    types: Typestore,
    here: Here,
    capfd: pytest.CaptureFixture[str],
) -> None:
    store, out = tmp_path / "store", tmp_path / "deep/out"
    cosmos.main(["import", str(sources), "--root", str(store), "--rate", "25"])
    done = here("export-hdf5", "--root", store, "--out", out)
    assert done.returncode == 0
    assert "left out: 2 without a score" in done.stderr
    with open_hdf5(out / "episode_0.hdf5") as file:
        assert file.attributes["task_description"] == "put candy in bag"

    capfd.readouterr()
    assert cosmos.main(["export-hdf5", "--root", str(store), "--out", str(out)]) == 1
    assert "is there and not empty; give a new folder" in capfd.readouterr().err
    arguments = ["--root", str(store), "--unscored", "--task", "shirt"]
    assert cosmos.main(["export-hdf5", *arguments, "--out", str(tmp_path / "shirts")]) == 0
    assert len(list((tmp_path / "shirts").iterdir())) == 2
    none = ["--root", str(store), "--task", "plate", "--out", str(tmp_path / "none")]
    assert cosmos.main(["export-hdf5", *none]) == 1
    assert "no such episode among 3" in capfd.readouterr().err
    assert not (tmp_path / "none").exists()
    assert cosmos.main(["export-hdf5", "1", *none]) == 1
    assert "by --task, not both" in capfd.readouterr().err
    EpisodeStore(store, types).discard("bad light", episode=next(store.iterdir()).name)
    discarded = next(p for p in store.iterdir() if p.suffix == ".discarded").name[-14:-10]
    assert cosmos.main(["export-hdf5", discarded, *none[:2], *none[-2:]]) == 1
    assert "was discarded: bad light" in capfd.readouterr().err


def test_a_bag_that_cannot_be_exported_does_not_stop_the_others(
    tmp_path: Path, sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    cosmos.main(["import", str(sources), "--root", str(store), "--rate", "25"])
    first = sorted(store.iterdir(), key=lambda p: p.name[-4:])[0]
    mcap = first / f"{first.name}_0.mcap"
    content = bytearray(mcap.read_bytes())
    half = len(content) // 2  # most of the messages' chunk; what the episode is stays readable
    content[half - 3000 : half + 12000] = b"\xff" * 15000
    mcap.write_bytes(content)
    capsys.readouterr()
    assert (
        cosmos.main(
            ["export-hdf5", "1", "2", "--root", str(store), "--unscored", "--out", str(out)]
        )
        == 1
    )
    said = capsys.readouterr()
    assert "error: " in said.err
    assert "1 episode exported" in said.out
    assert [p.name for p in out.iterdir()] == ["episode_0.hdf5"]


def test_files_are_found_below_folders_in_the_order_of_their_numbers(sources: Path) -> None:
    found = find_sources(sources)
    numbers = [source.path.stem for source in found]
    assert numbers == ["episode_2", "episode_10", "episode_11", "episode_12"]
    assert find_sources(sources / "fold_shirt/train/episode_2.hdf5") == found[:1]
    with pytest.raises(RolloutError, match="no such file or folder"):
        find_sources(sources / "gone")
    (sources / "empty").mkdir()
    with pytest.raises(RolloutError, match=r"no .* file and no LeRobot data set"):
        find_sources(sources / "empty")


@pytest.mark.parametrize("command", ["import", "export-hdf5", "export-lerobot"])
def test_help_says_what_can_be_chosen(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert "--root ROOT" in done.stdout
