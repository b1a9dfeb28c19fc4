"""A LeRobot data set on disk: what its description tells, and where each episode's files are.

Versions 2.0 and 2.1 keep each episode in files of its own, version 3 several to a file. They are
read here as files, without LeRobot's library: from 0.5 on that needs Python 3.12, and it brings a
training stack along.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import (
    UnreadableError,
    parse_json,
    read_file,
    reading,
    shown,
)
from cosmos_policy_ros.interop.parquet_files import ParquetFile
from cosmos_policy_ros.interop.row_episode import LEAST_ROWS, MAX_ROWS
from cosmos_policy_ros.interop.source_rate import LEAST_RATE, MOST_RATE

INFO = "meta/info.json"
TASKS, EPISODES = "meta/tasks.jsonl", "meta/episodes.jsonl"
"""Of version 2: one line each."""
TASKS_3, EPISODES_3 = "meta/tasks.parquet", "meta/episodes"
"""Of version 3; the second is a folder of Parquet files."""
IMAGE, VIDEO = "image", "video"
"""Kinds of a camera's feature."""
MAX_LINES_BYTES = 64 << 20
"""Of a file of lines; 100,000 episodes with their tasks have 20 MB."""
MAX_EPISODES = 1_000_000
_VIDEO_PATH_2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_DATA_PATH_2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_VIDEO_PATH_3 = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_DATA_PATH_3 = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_CHUNK = 1000  # episodes
_FIELD = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")
_MOST_INDEX = 10**9
_SHOWN_PATH = 200


@dataclass(frozen=True)
class Feature:
    """A column of the rows, or a camera beside them.

    Attributes:
        key: its name, such as "observation.state".
        dtype: as LeRobot spells it; "image" and "video" are cameras.
        names: of its numbers, in whichever form they are told.
        depth: it is said to be a map of depths.
    """

    key: str
    dtype: str
    names: Any
    depth: bool


@dataclass(frozen=True)
class VideoPlace:
    """Where an episode is in a video.

    Attributes:
        path: of the file.
        begin, end: seconds; ``end`` is None where the file holds this episode alone.
    """

    path: Path
    begin: float
    end: float | None


def is_set(folder: Path) -> bool:
    """Return whether a folder looks like a LeRobot data set."""
    with suppress(OSError):
        return (folder / INFO).is_file()
    return False


class LeRobotSet:
    """A data set.

    Attributes:
        folder: of it.
        version: of the format, such as 2 or 3.
        fps: rows per second [Hz].
        robot_type: as it is told; "" where it is not.
        features: by their keys.
    """

    def __init__(self, folder: Path) -> None:
        """Read its description.

        Raises:
            RolloutError: no such data set, not of version 2 or 3, or its description is damaged.
        """
        self.folder = folder
        path = folder / INFO
        with reading(path, "JSON", RolloutError, "is this a LeRobot data set's folder?"):
            self._info = _mapping(parse_json(read_file(path)), "")
            self._changed_ns = path.stat().st_mtime_ns
            self.version = _version(self._info.get("codebase_version"))
            self.fps = _rate(self._info.get("fps"))
            told = self._info.get("robot_type")
            self.robot_type = told if isinstance(told, str) else ""
            self.features = _features(self._info.get("features"))
        self._rows: tuple[Path, NDArray[np.int64]] | None = None

    def episodes(self) -> list[SetEpisode]:
        """Return the episodes, in order; one whose entry is damaged has its fault.

        Raises:
            RolloutError: none is listed.
        """
        listed = self._listed_2() if self.version == 2 else self._listed_3()
        entries: list[_Entry] = []
        known: set[int] = set()
        for where, record in listed:
            entry = _entry(where, record)
            if not entry.fault and entry.index in known:
                entry = _Entry(where, fault=f"{where}: lists episode {entry.index} a second time")
            elif not entry.fault:
                known.add(entry.index)
            entries.append(entry)
            if len(entries) > MAX_EPISODES:
                raise RolloutError(f"{self.folder}: lists more than {MAX_EPISODES} episodes")
        if not entries:
            raise RolloutError(f"{self.folder}: lists no episodes")
        found, rows = [], 0
        for entry in reversed(entries):
            # The last row was as late as the last change; the others went before it.
            rows += entry.length
            start_ns = max(self._changed_ns - round(rows / self.fps * NS_PER_S), 0)
            found.append(SetEpisode(**vars(entry), source=self, start_ns=start_ns))
        return found[::-1]

    @cached_property
    def tasks(self) -> Mapping[int, str | RolloutError]:
        """The tasks' texts by their numbers, and the fault of one that cannot be read.

        Raises:
            RolloutError: the file of tasks cannot be read.
        """
        found: dict[int, str | RolloutError] = {}
        for number, text, where in self._tasks_2() if self.version == 2 else self._tasks_3():
            try:
                told: str | RolloutError = text if isinstance(text, str) else text.decode()
            except UnicodeDecodeError as error:
                told = RolloutError(
                    f"{where}: the text of task {number} is not UTF-8: byte {error.start} is not; "
                    f"give --prompt"
                )
            if number in found and found[number] != told:
                told = RolloutError(f"{where}: task {number} has two texts; give --prompt")
            found[number] = told
        return found

    def file(self, template: str, **values: int | str) -> Path:
        """Return the path of a file of the data set.

        Args:
            template: relative to the folder, with the values' names in braces.
            values: what stands in their places.

        Raises:
            RolloutError: the template has something else in braces, the file is not there, or the
                path leads out of the folder.
        """
        where = f"{self.folder / INFO}: the path '{shown(template)}'"

        def fill(match: re.Match[str]) -> str:
            value = values.get(match[1])
            if value is None or (match[2] and not isinstance(value, int)):
                raise RolloutError(f"{where} asks for {shown(match[0])}, which is not known here")
            return f"{value:0{match[2]}d}" if match[2] else str(value)

        relative = _FIELD.sub(fill, template)
        if "\0" in relative or len(_FIELD.findall(template)) != template.count("{"):
            raise RolloutError(f"{where} is none that is known here")
        path = self.folder / relative
        with reading(f"{self.folder}/{shown(relative, _SHOWN_PATH)}", "a path", RolloutError):
            root, found = self.folder.resolve(), path.resolve()
            # A hub's cache has links to the files' contents, which it keeps beside the snapshots.
            roots = [
                root,
                *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else []),
            ]
            if not any(found.is_relative_to(each) for each in roots):
                raise UnreadableError(
                    "is not in the data set's folder; copy the file itself to where it belongs"
                )
            if not found.exists():
                raise UnreadableError("is not there; copy the whole data set")
        return path

    def path_of(self, kind: str) -> str:
        """Return the template of "data" or "video" paths. Raises RolloutError: it is no text."""
        usual = {
            ("data", 2): _DATA_PATH_2,
            ("video", 2): _VIDEO_PATH_2,
            ("data", 3): _DATA_PATH_3,
            ("video", 3): _VIDEO_PATH_3,
        }
        told = self._info.get(f"{kind}_path") or usual[kind, self.version]
        if not isinstance(told, str):
            raise RolloutError(f"{self.folder / INFO}: {kind}_path: expected a text")
        return told

    @property
    def chunk(self) -> int:
        """Episodes to a folder, of version 2. Raises RolloutError: it is none above 0."""
        told = self._info.get("chunks_size", _CHUNK)
        if not _is_index(told) or told == 0:
            raise RolloutError(f"{self.folder / INFO}: chunks_size: {shown(told)} must be above 0")
        return int(told)

    def rows_of(self, file: ParquetFile, index: int) -> range:
        """Return the rows of an episode in a file. Raises RolloutError: they are not together."""
        if self._rows is None or self._rows[0] != file.path:
            # Kept for the next: a file has a thousand episodes.
            self._rows = (file.path, file.integers("episode_index"))
        found = np.flatnonzero(self._rows[1] == index)
        if not len(found):
            raise RolloutError(f"{file.path}: has no rows of episode {index}")
        rows = range(int(found[0]), int(found[-1]) + 1)
        if len(rows) != len(found):
            raise RolloutError(f"{file.path}: the rows of episode {index} do not stand together")
        return rows

    def _listed_2(self) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
        for where, line in self._lines(EPISODES):
            try:
                yield where, _mapping(parse_json(line), "")
            except UnreadableError as error:
                yield where, str(error)

    def _listed_3(self) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
        folder = self.folder / EPISODES_3
        try:
            paths = sorted(folder.glob("*/*.parquet"))
        except OSError as error:
            raise RolloutError(f"{folder}: cannot be read: {error.strerror}") from error
        for path in paths:
            # A file that cannot be read does not cost the episodes of another.
            try:
                self.file(f"{path.relative_to(self.folder)}")
                with ParquetFile(path) as file:
                    wanted = [name for name in file.names if _tells_place(name)]
                    columns = {name: file.numbers(name)[:, 0] for name in wanted}
                    rows = file.rows
            except RolloutError as error:
                yield str(error), ""
                continue
            for row in range(rows):
                yield f"{path}: row {row}", {key: column[row] for key, column in columns.items()}

    def _tasks_2(self) -> Iterator[tuple[int, str | bytes, str]]:
        for where, line in self._lines(TASKS):
            # One line that is damaged costs the episodes of that task, not the others'.
            with suppress(UnreadableError):
                record = _mapping(parse_json(line.decode(errors="surrogateescape")), "")
                number, text = _index(record.get("task_index")), record.get("task")
                if number is not None and isinstance(text, str):
                    yield number, text.encode(errors="surrogatepass"), where

    def _tasks_3(self) -> Iterator[tuple[int, str | bytes, str]]:
        path = self.file(TASKS_3)
        with ParquetFile(path) as file:
            numbers = file.integers("task_index")
            texts = [name for name in file.names if file.is_text(name)]
            # An index of a table in which a name was not given is called so.
            usual = [name for name in ("task", "__index_level_0__") if name in texts]
            if not usual and len(texts) != 1:
                raise RolloutError(f"{path}: has no column of the tasks' texts; give --prompt")
            told = file.texts((usual or texts)[0])
            for number, text in zip(numbers.tolist(), told, strict=True):
                yield number, text, str(path)

    def _lines(self, name: str) -> Iterator[tuple[str, bytes]]:
        """Yield where a line is, and it."""
        path = self.file(name)
        with reading(path, "lines of JSON", RolloutError):
            lines = read_file(path, MAX_LINES_BYTES).split(b"\n")
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path}: line {number}", line


@dataclass(frozen=True)
class _Entry:
    """What is listed of an episode.

    Attributes:
        listed: where, for messages.
        record: its entry.
        index: its number; -1 where the entry does not tell one.
        length: rows.
        fault: what is wrong with the entry; "" where it can be read.
    """

    listed: str
    record: Mapping[str, Any] = field(default_factory=dict)
    index: int = -1
    length: int = 0
    fault: str = ""


@dataclass(frozen=True)
class SetEpisode(_Entry):
    """An episode of a data set, before anything of it is read.

    Attributes:
        source: the data set.
        start_ns: when it began, as well as the data set tells, nanoseconds since the epoch.
    """

    source: LeRobotSet = field(kw_only=True)
    start_ns: int = field(kw_only=True)

    def __str__(self) -> str:
        number = f", episode {self.index}" if self.index >= 0 else ""
        return f"{self.source.folder}{number}"

    def data_file(self) -> Path:
        """Return the path of the file that has its rows. Raises RolloutError."""
        return self._file("data", "data", {})

    def video(self, key: str) -> VideoPlace:
        """Return where its video of a camera is.

        Raises:
            RolloutError: it is not told, not there, or not in the data set's folder.
        """
        if "/" in key or key in (".", ".."):
            raise RolloutError(f"{self}: camera {shown(key)} has a name that leads elsewhere")
        path = self._file("video", f"videos/{key}", {"video_key": key})
        if self.source.version == 2:
            return VideoPlace(path, 0.0, None)
        begin, end = (self._told(f"videos/{key}/{name}_timestamp") for name in ("from", "to"))
        if not 0 <= begin < end:
            raise RolloutError(
                f"{self.listed}: camera {shown(key)} goes from {begin:g} to {end:g} s of its video"
            )
        return VideoPlace(path, begin, end)

    def _file(self, kind: str, prefix: str, values: Mapping[str, str]) -> Path:
        source = self.source
        if source.version == 2:
            numbers = {"episode_index": self.index, "episode_chunk": self.index // source.chunk}
        else:
            numbers = {}
            for name in ("chunk_index", "file_index"):
                number = _index(self._told(f"{prefix}/{name}"))
                if number is None:
                    raise RolloutError(f"{self.listed}: {shown(prefix)}/{name} is no whole number")
                numbers[name] = number
        return source.file(source.path_of(kind), **numbers, **values)

    def _told(self, key: str) -> float:
        """Return a number of its entry. Raises RolloutError: there is none."""
        value = self.record.get(key)
        if value is None or not math.isfinite(value):
            raise RolloutError(f"{self.listed}: tells no {shown(key)}; the data set is not whole")
        return float(value)


def _entry(listed: str, record: Mapping[str, Any] | str) -> _Entry:
    """Return what an episode's entry tells; ``record`` may be what is wrong with it instead."""
    if isinstance(record, str):
        return _Entry(listed, fault=": ".join(filter(None, (listed, record))))
    index, length = (_index(record.get(key)) for key in ("episode_index", "length"))
    if index is None or length is None:
        fault = f"{listed}: tells no episode_index and length of an episode"
        return _Entry(listed, fault=fault)
    if not LEAST_ROWS <= length <= MAX_ROWS:
        fault = f"{listed}: episode {index} has {length} rows, {LEAST_ROWS} to {MAX_ROWS} are read"
        return _Entry(listed, index=index, fault=fault)
    return _Entry(listed, record, index, length)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UnreadableError(f"{where}{': ' if where else ''}expected a mapping")
    return value


def _version(told: Any) -> int:
    match = (
        re.fullmatch(r"v?(\d{1,3})\.\d{1,3}(\.\d{1,3})?", told) if isinstance(told, str) else None
    )
    version = int(match[1]) if match else 0
    if version not in (2, 3):
        raise UnreadableError(
            f"codebase_version: '{shown(told)}' is not read here, v2.0, v2.1 and v3.0 are; convert "
            f"the data set with LeRobot's own script"
        )
    return version


def _rate(told: Any) -> float:
    number = isinstance(told, int | float) and not isinstance(told, bool)
    if not number or not LEAST_RATE <= told <= MOST_RATE:
        raise UnreadableError(
            f"fps: '{shown(told)}' is no rate of a recording; expected {LEAST_RATE:g} to "
            f"{MOST_RATE:g} rows per second"
        )
    return float(told)


def _features(told: Any) -> Mapping[str, Feature]:
    found = {}
    for key, value in _mapping(told, "features").items():
        feature = _mapping(value, f"features: {shown(key)}")
        dtype = feature.get("dtype")
        if not isinstance(dtype, str):
            raise UnreadableError(f"features: {shown(key)}: dtype: '{shown(dtype)}' must be text")
        info = feature.get("info") or feature.get("video_info") or {}
        depth = isinstance(info, dict) and bool(
            info.get("video.is_depth_map") or info.get("is_depth_map")
        )
        found[key] = Feature(key, dtype, feature.get("names"), depth)
    return found


def _tells_place(name: str) -> bool:
    """Return whether a column of the episodes' file is read; statistics and texts are not."""
    if name in ("episode_index", "length"):
        return True
    parts: Sequence[str] = name.rsplit("/", 1)
    place = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    return len(parts) == 2 and parts[1] in place and parts[0].startswith(("data", "videos/"))


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_INDEX


def _index(value: Any) -> int | None:
    """Return a whole number from 0 on; None where it is something else."""
    if _is_index(value):
        return int(value)
    whole = isinstance(value, float) and math.isfinite(value) and value == int(value)
    return int(value) if whole and 0 <= value <= _MOST_INDEX else None
