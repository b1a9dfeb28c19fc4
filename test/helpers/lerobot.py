"""LeRobot data sets as its library writes them, made without it: small images, made-up motion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from helpers.hdf5 import CAMERAS, motion
from numpy.typing import NDArray

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
NAMES = [f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS]
IMAGES = "observation.images."
PROMPTS = ("put candy in bag", "fold shirt")
ROWS = (24, 20)
DATA_2 = "data/chunk-000/episode_{:06d}.parquet"
VIDEO_2 = "videos/chunk-000/{}/episode_{:06d}.mp4"
DATA_3 = "data/chunk-000/file-000.parquet"
VIDEO_3 = "videos/{}/chunk-000/file-000.mp4"
EPISODES_3 = "meta/episodes/chunk-000/file-000.parquet"
_CHUNK = "chunk-{episode_chunk:03d}"
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_PATHS = {
    "v2.1": {
        "data_path": f"data/{_CHUNK}/episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{_CHUNK}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
    },
    "v3.0": {
        "data_path": f"data/{_FILE}.parquet",
        "video_path": f"videos/{{video_key}}/{_FILE}.mp4",
    },
}


@dataclass
class LeRobot:
    """What a data set is made of; a test changes what it is about.

    Attributes:
        version: "v2.1" or "v3.0".
        images: "video", "png" or "jpeg"; the last two are in the rows.
        fps: rows per second.
        rows: of each episode.
        prompts: of each episode.
        codec: of the videos.
        cameras: names of features by those that :func:`pictures` knows.
        names: of the columns of state and action, in any form.
        columns: of the vectors, in the order in which they are stored.
        extra: more features, each with its type, names, and (T, D) values of an episode's rows.
        info: in place of what the description has.
    """

    version: str = "v2.1"
    images: str = "video"
    fps: float = 25
    rows: Sequence[int] = ROWS
    prompts: Sequence[str] = PROMPTS
    codec: str = "libx264"
    cameras: Mapping[str, str] = field(
        default_factory=lambda: {name: f"{IMAGES}{name}" for name in CAMERAS}
    )
    names: Any = field(default_factory=lambda: list(NAMES))
    columns: Sequence[int] = tuple(range(14))
    extra: Mapping[str, tuple[str, Any, Any]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write it."""
        (folder / "meta").mkdir(parents=True)
        (folder / "meta/info.json").write_text(json.dumps(self._info()))
        tasks = list(dict.fromkeys(self.prompts))
        tables = [self._table(episode, tasks) for episode in range(len(self.rows))]
        if self.images == "video":
            for episode, rows in enumerate(self.rows):
                for camera, key in self.cameras.items():
                    path = folder / VIDEO_2.format(key, episode)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(_video(rows, camera, episode, self.fps, self.codec))
        if self.version == "v2.1":
            for episode, table in enumerate(tables):
                write_table(folder / DATA_2.format(episode), table)
            lines = [
                {"episode_index": e, "tasks": [self.prompts[e]], "length": rows}
                for e, rows in enumerate(self.rows)
            ]
            write_lines(folder / "meta/episodes.jsonl", lines)
            texts = [{"task_index": i, "task": task} for i, task in enumerate(tasks)]
            write_lines(folder / "meta/tasks.jsonl", texts)
        else:
            self._write_3(folder, tables, tasks)
        return folder

    def _info(self) -> dict[str, Any]:
        vector = {"dtype": "float32", "shape": [len(self.columns)], "names": self.names}
        features: dict[str, Any] = {"observation.state": vector, "action": vector}
        for key in self.cameras.values():
            features[key] = {
                "dtype": "video" if self.images == "video" else "image",
                "shape": [48, 64, 3],
                "names": ["height", "width", "channels"],
            }
        for key, (dtype, names, values) in self.extra.items():
            shape = [int(np.prod(np.shape(values)[1:]))]
            features[key] = {"dtype": dtype, "shape": shape, "names": names}
        for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
            dtype = "float32" if key == "timestamp" else "int64"
            features[key] = {"dtype": dtype, "shape": [1], "names": None}
        found = {
            "codebase_version": self.version,
            "robot_type": "aloha",
            "total_episodes": len(self.rows),
            "total_frames": sum(self.rows),
            "chunks_size": 1000,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self.rows)}"},
            **_PATHS[self.version],
            "features": features,
        }
        return found | dict(self.info)

    def _table(self, episode: int, tasks: Sequence[str]) -> pa.Table:
        rows, before = self.rows[episode], sum(self.rows[:episode])
        columns: dict[str, Any] = {
            "observation.state": _vectors(motion(rows, episode)[:, self.columns]),
            "action": _vectors(motion(rows, 10 + episode)[:, self.columns]),
        }
        if self.images != "video":
            for camera, key in self.cameras.items():
                files = encoded(pictures(rows, camera, episode), f".{self.images}")
                entries = [
                    {"bytes": data, "path": f"frame_{i:06d}"} for i, data in enumerate(files)
                ]
                kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                columns[key] = pa.array(entries, kind)
        for key, (dtype, _, values) in self.extra.items():
            taken = np.asarray(values)[:rows]
            columns[key] = _vectors(taken) if taken.ndim == 2 else pa.array(taken, dtype)
        columns["timestamp"] = (np.arange(rows) / self.fps).astype(np.float32)
        columns["frame_index"] = np.arange(rows)
        columns["episode_index"] = np.full(rows, episode)
        columns["index"] = before + np.arange(rows)
        columns["task_index"] = np.full(rows, tasks.index(self.prompts[episode]))
        return pa.table(columns)

    def _write_3(self, folder: Path, tables: list[pa.Table], tasks: list[str]) -> None:
        data = folder / DATA_3
        data.parent.mkdir(parents=True)
        with pq.ParquetWriter(data, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
        texts = {"task_index": np.arange(len(tasks)), "__index_level_0__": tasks}
        write_table(folder / "meta/tasks.parquet", pa.table(texts))
        count = len(self.rows)
        ends = np.cumsum(self.rows)
        listed: dict[str, Any] = {
            "episode_index": np.arange(count),
            "tasks": [[prompt] for prompt in self.prompts],
            "length": np.array(self.rows),
            "data/chunk_index": np.zeros(count, int),
            "data/file_index": np.zeros(count, int),
            "dataset_from_index": ends - self.rows,
            "dataset_to_index": ends,
        }
        for key in self.cameras.values() if self.images == "video" else ():
            parts = [folder / VIDEO_2.format(key, episode) for episode in range(count)]
            concatenate(parts, folder / VIDEO_3.format(key), self.rows, self.fps)
            for part in parts:
                part.unlink()
            listed[f"videos/{key}/chunk_index"] = np.zeros(count, int)
            listed[f"videos/{key}/file_index"] = np.zeros(count, int)
            listed[f"videos/{key}/from_timestamp"] = (ends - self.rows) / self.fps
            listed[f"videos/{key}/to_timestamp"] = ends / self.fps
        listed["stats/action/mean"] = [[0.0] * 14] * count
        write_table(folder / EPISODES_3, pa.table(listed))


def pictures(rows: int, camera: str, episode: int = 0) -> NDArray[np.uint8]:
    """Return (rows, 48, 64, 3) RGB: smooth colours; every row, camera and episode its own."""
    y, x = np.mgrid[0:48, 0:64]
    shift = 40 * CAMERAS.index(camera) + 15 * episode
    frames = [
        np.stack([x * 2 + 4 * t, y * 3 + shift, np.full_like(x, (5 * t + shift) % 200)], axis=-1)
        for t in range(rows)
    ]
    return np.asarray(frames).clip(0, 255).astype(np.uint8)


def encoded(frames: NDArray[np.uint8], suffix: str) -> list[bytes]:
    """Return each image as a file."""
    return [cv2.imencode(suffix, cv2.cvtColor(f, cv2.COLOR_RGB2BGR))[1].tobytes() for f in frames]


def write_video(path: Path, frames: NDArray[np.uint8], fps: float, codec: str) -> None:
    """Write an MP4 file with a key frame every second frame, as the library does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"g": "2", "crf": "18"}
    if codec == "libx265":
        options["x265-params"] = "log-level=none"
    height, width = frames.shape[1:3]
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, Fraction(fps), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))


@cache
def _video(rows: int, camera: str, episode: int, fps: float, codec: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        write_video(path, pictures(rows, camera, episode), fps, codec)
        return path.read_bytes()


def concatenate(parts: Sequence[Path], path: Path, rows: Sequence[int], fps: float) -> None:
    """Write the frames of several files behind each other, as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        target: Any = None
        for index, part in enumerate(parts):
            with av.open(str(part)) as read:
                stream = read.streams.video[0]
                if target is None:
                    target = file.add_stream_from_template(stream, opaque=True)
                    target.time_base = stream.time_base
                offset = round(sum(rows[:index]) / fps / stream.time_base)
                for packet in read.demux(stream):
                    if packet.dts is None:
                        continue
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = target
                    file.mux(packet)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def change_table(path: Path, **columns: Any) -> None:
    """Put other columns into a Parquet file."""
    table = pq.read_table(path)
    for key, values in columns.items():
        array = values if isinstance(values, pa.Array) else pa.array(values)
        table = table.set_column(table.column_names.index(key), key, array)
    pq.write_table(table, path)


def write_lines(path: Path, entries: Sequence[Any]) -> None:
    """Write a file of lines of JSON."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def _vectors(values: NDArray[Any]) -> pa.Array:
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), values.shape[1])
