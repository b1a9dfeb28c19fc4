"""Pins that a damaged or hostile LeRobot data set is one clear error, and leads nowhere else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.hdf5 import CAMERAS, motion
from helpers.lerobot import (
    DATA_2,
    DATA_3,
    EPISODES_3,
    IMAGES,
    ROWS,
    VIDEO_2,
    VIDEO_3,
    LeRobot,
    change_table,
    encoded,
    pictures,
    write_lines,
    write_table,
    write_video,
)

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.interop.lerobot_episode import open_episode
from cosmos_policy_ros.interop.lerobot_set import LeRobotSet

Change = Callable[[Path], Any]
TOP = f"{IMAGES}cam_high"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


def read_all(folder: Path, index: int = 0) -> str:
    """Read an episode to the last image of the primary camera, and return its prompt."""
    with open_episode(LeRobotSet(folder).episodes()[index]) as episode:
        rows = list(episode.frames["primary"].rows(range(len(episode.qpos))))
        assert len(rows) == len(episode.qpos)
        episode.digest()
        return episode.metadata((), None).prompt


def refused(folder: Path, told: str, index: int = 0) -> None:
    with pytest.raises(RolloutError, match=told) as raised:
        read_all(folder, index)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 1000


def with_info(**changed: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


def with_text(before: str, after: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / "meta/info.json"
        path.write_text(path.read_text().replace(before, after))

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            with_info(codebase_version="v1.6"),
            r"codebase_version: 'v1\.6' is not read here, v2\.0, ",
        ),
        (with_info(codebase_version="v4.0"), "convert the data set with LeRobot's own script"),
        (with_info(codebase_version=["v2.1"]), "codebase_version: "),
        (with_info(codebase_version="v" + "9" * 9999 + ".0"), "codebase_version: "),
        (with_info(fps=None), "fps: 'None' is no rate of a recording"),
        (with_info(fps="25"), "fps: '25' is no rate of a recording; expected 5 to 1000 rows"),
        (with_info(fps=True), "fps: 'True' is no rate"),
        (with_info(fps=10**400), "fps: "),
        (with_text('"fps": 25', '"fps": 1e999'), "fps: 'inf' is no rate"),
        (with_text('"fps": 25', '"fps": NaN'), "fps: 'nan' is no rate"),
        (with_text('"fps": 25', f'"fps": {"9" * 5000}'), "cannot be read as JSON"),
        (lambda f: (f / "meta/info.json").write_text("[" * 100_000), "cannot be read as JSON"),
        (with_info(features=[]), "features: expected a mapping"),
        (with_info(features={"action": 5}), "features: action: expected a mapping"),
        (with_info(features={"a\x1b": {"dtype": 5}}), r"features: a\\x1b: dtype: '5' must be text"),
        (with_info(features={}), "observation.state: is not there, so this is no robot's data set"),
        (with_info(chunks_size=0), "chunks_size: 0 must be above 0"),
        (with_info(chunks_size="many"), "chunks_size: many must be above 0"),
        (with_info(data_path=5), "data_path: expected a text"),
        (with_info(data_path="../../{episode_index}"), "/[0-9]+: is not in the data set's folder"),
        (with_info(data_path="/etc/passwd"), "/etc/passwd: is not in the data set's folder"),
        (
            with_info(data_path="{episode_index.__class__}"),
            "the path .* is none that is known here",
        ),
        (with_info(data_path="{episode_index:0999999999d}"), "is none that is known here"),
        (with_info(data_path="{other:03d}"), r"asks for \{other:03d\}, which is not known here"),
        (with_info(data_path="{{}}/{episode_index}"), "is none that is known here"),
        (with_info(data_path="a\0b"), r"the path 'a\\x00b' is none that is known here"),
        (with_info(data_path="d" * 5000), "cannot be read: File name too long"),
        (with_info(data_path="meta/info.json"), "meta/info.json: does not begin like Parquet"),
        (with_info(data_path="meta"), "meta: is a folder, expected a regular file"),
        (
            with_info(video_path="../{video_key}.mp4"),
            "is not in the data set's folder; copy the file",
        ),
        (with_info(video_path="{video_key:03d}"), "asks for"),
        (lambda folder: (folder / "meta/info.json").write_bytes(b"\xff\xfe{"), "info.json: .*JSON"),
        (lambda folder: (folder / "meta/info.json").unlink(), "info.json: cannot be read: No such"),
        (
            lambda folder: (folder / "meta/info.json").write_bytes(b" " * (2 << 20)),
            "has 2097152 bytes, at most 1048576 are read",
        ),
    ],
)
def test_a_description_that_cannot_be_is_refused(tmp_path: Path, change: Change, told: str) -> None:
    folder = LeRobot(rows=(9,), prompts=["a"]).write(tmp_path / "set")
    change(folder)
    refused(folder, told)


def test_a_camera_named_like_a_path_leads_nowhere(tmp_path: Path) -> None:
    names = (f"{IMAGES}top", f"{IMAGES}../../left_wrist", f"{IMAGES}right_wrist")
    cameras = dict(zip(CAMERAS, names, strict=True))
    folder = LeRobot(images="png", cameras=cameras, rows=(9,), prompts=["a"]).write(
        tmp_path / "set"
    )
    text = (folder / "meta/info.json").read_text().replace('"image"', '"video"')
    (folder / "meta/info.json").write_text(text)
    given = {"left_wrist": "../../left_wrist"}
    entry = LeRobotSet(folder).episodes()[0]
    told = pytest.raises(RolloutError, match="has a name that leads elsewhere")
    with told, open_episode(entry, given):
        pass


@pytest.mark.parametrize("name", [DATA_2.format(0), VIDEO_2.format(TOP, 0), "meta/episodes.jsonl"])
@pytest.mark.parametrize(
    ("put", "told"),
    [
        (
            lambda path, moved: path.symlink_to(moved),
            "is not in the data set's folder; copy the file",
        ),
        (lambda path, _: path.symlink_to(path.name), "cannot be read"),
        (lambda *_: None, "is not there; copy the whole data set"),
        (lambda path, _: os.mkfifo(path), "is a pipe, expected a regular file"),
        (lambda path, _: path.mkdir(), "is a folder, expected a regular file"),
    ],
    ids=["link", "loop", "gone", "pipe", "folder"],
)
def test_a_file_that_is_none_of_the_set_is_refused(
    tmp_path: Path, name: str, put: Callable[[Path, Path], Any], told: str
) -> None:
    folder = LeRobot(rows=(9,), prompts=["a"]).write(tmp_path / "set")
    moved = (folder / name).rename(tmp_path / "elsewhere")
    put(folder / name, moved)
    refused(folder, f"{re.escape(name)}: {told}")


def cut(path: Path, share: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (DATA_3, "was cut off, or its recorder never finished it"),
        (EPISODES_3, "was cut off, or its recorder never finished it"),
        ("meta/tasks.parquet", "was cut off, or its recorder never finished it"),
        (VIDEO_3.format(TOP), "cannot be read as a video"),
    ],
)
def test_a_file_that_was_cut_off(tmp_path: Path, name: str, told: str) -> None:
    folder = LeRobot("v3.0").write(tmp_path / "set")
    cut(folder / name)
    refused(folder, f"{re.escape(name)}: {told}")
    (folder / name).write_text(LFS)
    refused(folder, f"{re.escape(name)}: only stands for a file that Git LFS keeps; .*git lfs pull")
    (folder / name).write_bytes(b"")
    refused(folder, f"{re.escape(name)}: does not begin like ")


def test_a_damaged_page_of_numbers(tmp_path: Path) -> None:
    folder = LeRobot().write(tmp_path / "set")
    path = folder / DATA_2.format(0)
    content = bytearray(path.read_bytes())
    content[4:400] = os.urandom(396)
    path.write_bytes(content)
    refused(folder, r"episode_000000\.parquet: ")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: p.unlink(), "is not there; copy the whole data set"),
        (
            lambda p: write_video(p, pictures(ROWS[0] - 1, "cam_high"), 25, "libx264"),
            "of 23 rows, the",
        ),
        (
            lambda p: write_video(p, pictures(ROWS[0] + 1, "cam_high"), 25, "libx264"),
            "more frames than",
        ),
        (
            lambda p: write_video(p, pictures(ROWS[0], "cam_high"), 30, "libx264"),
            "row 2 at 0.080 s: a fr",
        ),
        (
            lambda p: write_video(p, pictures(ROWS[0], "cam_high"), 20, "libx264"),
            "has no frame, the next",
        ),
        (
            lambda p: p.write_text("#EXTM3U\nfile:///etc/passwd\n"),
            "does not begin like an MP4 video",
        ),
        (lambda p: p.write_bytes(b"\0\0\0\x18ftypisom" + bytes(50)), "cannot be read as a video"),
    ],
    ids=["gone", "short", "long", "fast", "slow", "list", "empty"],
)
def test_a_video_that_is_not_of_its_rows(tmp_path: Path, change: Change, told: str) -> None:
    folder = LeRobot().write(tmp_path / "set")
    change(folder / VIDEO_2.format(TOP, 0))
    refused(folder, told)
    assert read_all(folder, 1) == "fold shirt"


def test_a_video_whose_frames_are_damaged(tmp_path: Path) -> None:
    """Bytes within the frames: a decoder fills in what it can and says so at best."""
    folder = LeRobot().write(tmp_path / "set")
    path = folder / VIDEO_2.format(TOP, 0)
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 800
    content[begin : begin + 600] = bytes(600)
    path.write_bytes(content)
    refused(folder, r"episode_000000\.mp4: ")


def test_frames_in_the_rows_that_are_damaged(tmp_path: Path) -> None:
    files = encoded(pictures(9, "cam_high"), ".png")
    jpeg = encoded(pictures(9, "cam_high"), ".jpg")[0]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    flipped = bytearray(files[3])
    flipped[len(flipped) // 2] ^= 0xFF
    deep = cv2.imencode(".png", np.zeros((48, 64), np.uint16))[1].tobytes()
    for number, (data, told) in enumerate(
        [
            (files[3][:-100], "row 3: cannot be read as an image"),
            (bytes(flipped), "row 3: cannot be read as an image"),
            (jpeg[:-100], "row 3, [0-9]+ bytes, is no whole JPEG; the file is damaged there"),
            (b"GIF89a" + bytes(50), "row 3: is no PNG or JPEG file"),
            (b"", "row 3: is no PNG or JPEG file"),
            (deep, "row 3: is a PNG of kind I;16, expected colours of 8 bits"),
            (None, "row 3 has no image's bytes; the images must be embedded"),
        ]
    ):
        folder = LeRobot(images="png", rows=(9,), prompts=["a"]).write(tmp_path / f"{number}")
        entries = [{"bytes": each, "path": "a"} for each in files]
        entries[3] = {"bytes": data, "path": "images/a.png"}
        change_table(folder / DATA_2.format(0), **{TOP: pa.array(entries, kind)})
        refused(folder, told)


def test_a_single_jpeg_among_png_files_becomes_pixels(tmp_path: Path) -> None:
    folder = LeRobot(images="png", rows=(9,), prompts=["a"]).write(tmp_path / "set")
    files = encoded(pictures(9, "cam_high"), ".png")
    files[3] = encoded(pictures(9, "cam_high"), ".jpg")[3]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    entries = [{"bytes": each, "path": "a"} for each in files]
    change_table(folder / DATA_2.format(0), **{TOP: pa.array(entries, kind)})
    with open_episode(LeRobotSet(folder).episodes()[0]) as episode:
        found = np.array(list(episode.frames["primary"].rows(range(9))), int)
    assert np.abs(found - pictures(9, "cam_high")).mean() < 2


def vectors(values: Any) -> pa.Array:
    return pa.array(np.asarray(values, np.float32).tolist(), pa.list_(pa.float32()))


def holed() -> Any:
    values = motion(24)
    values[7, 2] = np.nan
    return values


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"action": vectors(holed())}, "action: row 7, column 2 is nan and 0 more are no numbers"),
        ({"action": vectors(motion(24)[:, :13])}, "action: has 13 columns and 14 names"),
        ({"action": pa.array(["a"] * 24)}, "action: is string, expected numbers"),
        (
            {"action": pa.array([[0.0] * 14, [0.0] * 13] * 12)},
            "action: has rows of 14 and 13 values",
        ),
        ({"action": pa.array([[0.0] * 14, None] * 12)}, "action: value 1 and 11 more are none"),
        ({"action": pa.array([[0.0] * 13 + [None]] * 24)}, "action: value 13 and 23 more are none"),
        ({"frame_index": np.arange(24) + 1}, "frame_index: is 1 at row 0; rows are missing"),
        ({"frame_index": np.arange(24)[::-1]}, "frame_index: is 23 at row 0"),
        ({"frame_index": np.arange(24) + 0.5}, "frame_index: expected one whole number"),
        ({"timestamp": np.zeros(24, np.float32)}, "timestamp: is 0 s at row 1; they must begin at"),
        ({"timestamp": np.arange(24) / 25 + 9}, "timestamp: is 9 s at row 0; they must begin at 0"),
        ({"timestamp": np.full(24, np.nan, np.float32)}, "timestamp: is nan s at row 1"),
        ({"timestamp": np.arange(24) / 20}, "row 1 at 0.050 s: a frame at 0.040 s is too many"),
        ({"episode_index": np.full(24, 1)}, r"000000\.parquet: has no rows of episode 0"),
        ({"episode_index": np.arange(24) % 2}, "the rows of episode 0 do not stand together"),
        ({"episode_index": np.arange(24) // 12}, "is listed with 24 rows, and has 12 of the 24"),
        ({"task_index": np.full(24, 7)}, "has no task, or one without a text; give --prompt"),
    ],
)
def test_rows_that_contradict_themselves(tmp_path: Path, columns: Any, told: str) -> None:
    folder = LeRobot().write(tmp_path / "set")
    change_table(folder / DATA_2.format(0), **columns)
    refused(folder, told)
    assert read_all(folder, 1) == "fold shirt"


def test_a_column_that_is_not_there_or_twice(tmp_path: Path) -> None:
    folder = LeRobot().write(tmp_path / "set")
    path = folder / DATA_2.format(0)
    table = pq.read_table(path)
    write_table(path, table.append_column("action", table["action"]))
    refused(folder, "has no column action, or two; it has")
    write_table(path, table.drop_columns(["action"]))
    refused(folder, "action: is not there, so this is no robot's data set")
    write_table(path, table.drop_columns(["episode_index"]))
    refused(folder, "has no column episode_index")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"episode_index": 0, "length": 23}', "is listed with 23 rows, and has 24 of the 24"),
        ('{"episode_index": 0, "length": 1e300}', "line 1: tells no episode_index and length"),
        ('{"episode_index": 0, "length": 900000}', "episode 0 has 900000 rows, 2 to 100000 are"),
        ('{"episode_index": -1, "length": 24}', "line 1: tells no episode_index and length of an"),
        ('{"episode_index": true, "length": 24}', "line 1: tells no episode_index and length of"),
        (
            '{"episode_index": 1, "length": 24}',
            r"episodes\.jsonl: line 2: lists episode 1 a second",
        ),
        ('{"episode_index": 99, "length": 24}', r"episode_000099\.parquet: is not there; copy the"),
        ("[]", "line 1: expected a mapping"),
        ("\xff", "line 1: cannot be read as JSON"),
    ],
)
def test_a_line_that_lists_no_episode_costs_no_other(tmp_path: Path, line: str, told: str) -> None:
    folder = LeRobot(rows=(24, 20, 9), prompts=["a", "b", "c"]).write(tmp_path / "set")
    path = folder / "meta/episodes.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([line.encode("latin-1"), *lines[1:]]))
    refused(folder, told, 1 if "second" in told else 0)
    assert read_all(folder, 2) == "c"


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            {f"videos/{TOP}/from_timestamp": [0.0, 9.0]},
            "is listed from 9.000 to 1.760 s|goes from 9",
        ),
        (
            {f"videos/{TOP}/from_timestamp": [0.0, 0.9]},
            "is listed from 0.900 to 1.760 s of .*20 rows",
        ),
        (
            {f"videos/{TOP}/from_timestamp": [0.0, np.nan]},
            "tells no .*from_timestamp; the data set is",
        ),
        ({f"videos/{TOP}/to_timestamp": [0.96, 2.4]}, "is listed from 0.960 to 2.400 s"),
        (
            {
                f"videos/{TOP}/from_timestamp": [0.0, 0.975],
                f"videos/{TOP}/to_timestamp": [0.96, 1.775],
            },
            "row 0 at 0.975 s: has no frame, the next is at 1.000 s",
        ),
        (
            {
                f"videos/{TOP}/from_timestamp": [0.0, 50.0],
                f"videos/{TOP}/to_timestamp": [0.96, 50.8],
            },
            "has frames of 0 rows, the episode has 20",
        ),
        ({"data/file_index": [0, 7]}, r"file-007\.parquet: is not there; copy the whole data set"),
        ({"data/file_index": [0, -1]}, "data/file_index is no whole number"),
        ({"data/file_index": [0.0, 1e300]}, "data/file_index is no whole number"),
        ({"length": [24, 19]}, "is listed with 19 rows, and has 20 of the 44"),
        ({"episode_index": [0, 0]}, "row 1: lists episode 0 a second time"),
        ({"episode_index": [0, 5]}, r"file-000\.parquet: has no rows of episode 5"),
    ],
)
def test_an_entry_of_version_3_that_is_wrong(tmp_path: Path, columns: Any, told: str) -> None:
    folder = LeRobot("v3.0").write(tmp_path / "set")
    change_table(folder / EPISODES_3, **columns)
    refused(folder, told, 1)
    assert read_all(folder) == "put candy in bag"


def test_a_file_of_entries_that_is_damaged_costs_no_other(tmp_path: Path) -> None:
    folder = LeRobot("v3.0").write(tmp_path / "set")
    table = pq.read_table(folder / EPISODES_3)
    write_table(folder / EPISODES_3, table.slice(0, 1))
    write_table(folder / EPISODES_3.replace("000.p", "001.p"), table.slice(1, 1))
    cut(folder / EPISODES_3)
    refused(folder, r"episodes/chunk-000/file-000\.parquet: was cut off")
    assert read_all(folder, 1) == "fold shirt"


def test_a_set_that_lists_no_episode(tmp_path: Path) -> None:
    for version in ("v2.1", "v3.0"):
        path = LeRobot(version).write(tmp_path / version)
        if version == "v2.1":
            (path / "meta/episodes.jsonl").write_text("\n")
        else:
            (path / EPISODES_3).unlink()
        with pytest.raises(RolloutError, match="lists no episodes"):
            LeRobotSet(path).episodes()


def test_texts_of_tasks_that_cannot_be_read(tmp_path: Path) -> None:
    folder = LeRobot().write(tmp_path / "set")
    tasks = folder / "meta/tasks.jsonl"
    lines = tasks.read_bytes()
    tasks.write_bytes(lines.replace(b"put candy", b"put c\xe4ndy"))
    refused(folder, "line 1: the text of task 0 is not UTF-8: byte 5 is not; give --prompt")
    assert read_all(folder, 1) == "fold shirt"
    tasks.write_bytes(lines.replace(b"put candy", b"put \\u001b[31mcandy"))
    refused(folder, r"its prompt 'put \\x1b\[31mcandy in bag' has characters that cannot be shown")
    tasks.write_bytes(lines.replace(b"put candy", b"put \\ud800 candy"))
    refused(folder, "the text of task 0 is not UTF-8")
    write_lines(tasks, [{"task_index": 0, "task": text} for text in ("a", "b")])
    refused(folder, "task 0 has two texts; give --prompt")
    tasks.unlink()
    refused(folder, r"tasks\.jsonl: is not there")
    three = LeRobot("v3.0").write(tmp_path / "three")
    raw = pa.array([b"put c\xe4ndy", b"fold shirt"]).view(pa.string())
    change_table(three / "meta/tasks.parquet", __index_level_0__=raw)
    refused(three, "the text of task 0 is not UTF-8")
    assert read_all(three, 1) == "fold shirt"
    write_table(three / "meta/tasks.parquet", pa.table({"task_index": [0, 1]}))
    refused(three, "has no column of the tasks' texts; give --prompt")
