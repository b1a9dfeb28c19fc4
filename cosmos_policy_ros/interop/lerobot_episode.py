"""One episode of a LeRobot data set, with its columns in ALOHA's order and its cameras by roles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.task import FULL_SCORE
from cosmos_policy_ros.core.untrusted import escaped, shown
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.interop import camera_names
from cosmos_policy_ros.interop.foreign_episode import (
    Arm,
    Colours,
    ImportContext,
    SourceMetadata,
    check_prompt,
)
from cosmos_policy_ros.interop.joint_names import Columns, columns_of
from cosmos_policy_ros.interop.lerobot_frames import EmbeddedFrames, LeRobotFrames, VideoPart
from cosmos_policy_ros.interop.lerobot_set import (
    IMAGE,
    INFO,
    VIDEO,
    Feature,
    LeRobotSet,
    SetEpisode,
)
from cosmos_policy_ros.interop.parquet_files import ParquetFile
from cosmos_policy_ros.interop.row_episode import (
    Floats,
    RowEpisode,
    check_finite,
    measured,
    moves,
    not_taken,
)
from cosmos_policy_ros.interop.source_rate import STAMPS, Pace, fitting_rate
from cosmos_policy_ros.interop.to_bag import OpenRows

STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
VELOCITY, EFFORT = "observation.velocity", "observation.effort"
SCORE, SUCCESS = "score", "success"
"""Features that repeat an episode's score (0 to 1) and success in each of its frames."""
NEXT_SUCCESS = "next.success"
"""LeRobot's own name of the second, true where it was reached."""
STAMP, FRAME, TASK = "timestamp", "frame_index", "task_index"
_KNOWN = {
    *(STATE, ACTION, VELOCITY, EFFORT, SCORE, SUCCESS, NEXT_SUCCESS, STAMP, FRAME, TASK),
    *("index", "episode_index", "next.done", "next.reward"),
}
_MOST_OTHERS = 64  # features that are not taken, and looked at all the same
_MOST_WIDE = 256  # numbers of such a one in a row
_EVEN = 0.1  # of a row's time, by which stamps may be off frame_index / fps to be the same
_SHOWN_PROMPTS = 3


@dataclass(frozen=True)
class LeRobotEpisode(RowEpisode):
    """An open episode.

    Attributes:
        entry: what its data set lists.
        tasks: numbers of the tasks in its rows; empty where the rows tell none.
        success: whether it was one; None where that is not told.
        score: from 0 to 1; None where that is not told.
    """

    entry: SetEpisode
    tasks: tuple[int, ...]
    success: bool | None
    score: float | None
    images: Mapping[str, LeRobotFrames]

    def digest(self) -> str:
        """Return the sha256 (hex) over its numbers and encoded images.

        Not over its files: those hold other episodes, too, and become others when the data set
        grows.
        """
        sha = hashlib.sha256()
        for values in (self.qpos, self.action):
            sha.update(np.ascontiguousarray(values, "<f8").tobytes())
        for role in sorted(self.images):
            self.images[role].digest(sha)
        return sha.hexdigest()

    def metadata(self, prompts: Iterable[str], prompt: str | None) -> SourceMetadata:
        """Return what its rows tell; see :meth:`RowEpisode.metadata`, which also raises."""
        operator_score = None
        if self.success is not None:
            score = float(self.success) if self.score is None else self.score
            operator_score = OperatorScore(
                score=score * FULL_SCORE, success=self.success, operator_name="", note=""
            )
        prompt = prompt or self._prompt()
        check_prompt(self.where, prompt)
        return SourceMetadata(
            prompt=prompt,
            policy="" if operator_score is None else "unknown policy",
            operator_name="",
            start_ns=self.entry.start_ns,
            operator_score=operator_score,
        )

    def _prompt(self) -> str:
        known = self.entry.source.tasks
        found: dict[str, None] = {}
        for number in self.tasks:
            text = known.get(number, "")
            if isinstance(text, RolloutError):
                raise text
            found[text.strip("\r\n")] = None
        if len(found) > 1:
            texts = ", ".join(f"'{shown(text)}'" for text in list(found)[:_SHOWN_PROMPTS])
            raise RolloutError(
                f"{self.where}: has {len(found)} prompts, {texts}; an episode has one here: give "
                f"--prompt with what holds for all of it"
            )
        (prompt,) = found or [""]
        if not prompt:
            raise RolloutError(f"{self.where}: has no task, or one without a text; give --prompt")
        return prompt


@dataclass(frozen=True)
class LeRobotSource:
    """An episode of a data set, not yet opened.

    Attributes:
        folder: the data set's.
        listed: where in there the episode is listed.
        entry: what is listed.
    """

    folder: Path
    listed: str
    entry: SetEpisode = field(compare=False)

    @property
    def path(self) -> Path:
        """For messages: an episode has no file of its own."""
        return self.folder / f"episode {self.entry.index}"

    @property
    def name(self) -> str:
        """The data set's, and the episode's number."""
        return f"{self.folder.resolve().name}, episode {self.entry.index}"

    @contextmanager
    def open(self, context: ImportContext) -> Iterator[OpenRows]:
        """Open it; raises as :func:`open_episode` does."""
        options = context.options
        with open_episode(
            self.entry, options.cameras, options.colours, options.first_arm
        ) as source:
            yield OpenRows(source, context)


def sources_of(folder: Path) -> list[LeRobotSource]:
    """Return the episodes of a data set. Raises RolloutError: it cannot be read, or has none."""
    entries = LeRobotSet(folder).episodes()
    return [LeRobotSource(folder, entry.listed, entry) for entry in entries]


@contextmanager
def open_episode(
    entry: SetEpisode,
    cameras: Mapping[str, str] | None = None,
    colours: Colours | None = None,
    first_arm: Arm | None = None,
) -> Iterator[LeRobotEpisode]:
    """Open an episode and check all of it but the images' content.

    Args:
        entry: of the data set.
        cameras: its names of cameras by their roles, with or without "observation.images."; the
            others are recognised.
        colours: "bgr" where the images have red and blue exchanged; LeRobot's own are RGB.
        first_arm: whose columns come first, see :func:`joint_names.columns_of`.

    Raises:
        RolloutError: its entry or a file of it is missing or damaged, its columns are not those of
            two ALOHA arms, a value is no number, or rows, stamps and videos contradict each other;
            names the data set, the episode and the file.
    """
    if entry.fault:
        raise RolloutError(entry.fault)
    with ParquetFile(entry.data_file()) as file:
        yield _Reader(entry, file, first_arm).read(cameras or {}, colours)


class _Reader:
    """Reads one episode's rows."""

    def __init__(self, entry: SetEpisode, file: ParquetFile, first_arm: Arm | None) -> None:
        self._entry, self._file, self._first_arm = entry, file, first_arm
        self._features = entry.source.features
        self._where = str(entry)
        self._span = entry.source.rows_of(file, entry.index)
        self._notes: list[str] = []
        self._moving: list[str] = []

    def read(self, cameras: Mapping[str, str], colours: Colours | None) -> LeRobotEpisode:
        """Return all of it but the images' content. Raises as :func:`open_episode` does."""
        rows, length = len(self._span), self._entry.length
        if rows != length or (self._entry.source.version == 2 and self._file.rows != rows):
            raise RolloutError(
                f"{self._where}: is listed with {length} rows, and has {rows} of the "
                f"{self._file.rows} of {self._file.path}; the data set is damaged"
            )
        qpos, action = self._vectors(STATE), self._vectors(ACTION)
        qvel, effort = self._measured(VELOCITY), self._measured(EFFORT)
        stamps = self._stamps()
        frames = self._cameras(cameras, colours, stamps)
        success, score = self._success()
        self._others()
        notes = dict.fromkeys([*self._notes, *not_taken(self._moving)])
        return LeRobotEpisode(
            where=self._where,
            keys=(STATE, ACTION),
            qpos=qpos,
            action=action,
            qvel=qvel,
            effort=effort,
            frames=frames,
            pace=self._pace(stamps, qpos, qvel),
            notes=tuple(notes),
            entry=self._entry,
            tasks=self._tasks(),
            success=success,
            score=score,
            images=frames,
        )

    def _numbers(self, key: str) -> Floats:
        return self._file.numbers(key, self._span)

    def _has(self, key: str) -> bool:
        return key in self._file.names and key in self._features

    def _vectors(self, key: str) -> Floats:
        """Return (T, 14) in ALOHA's order; what else the columns hold is noted if it moves."""
        where = f"{self._where}: {key}"
        if not self._has(key):
            raise RolloutError(
                f"{where}: is not there, so this is no robot's data set; it has "
                f"{', '.join(shown(name) for name in list(self._features)[:12])}"
            )
        values = self._numbers(key)
        columns = columns_of(self._features[key].names, values.shape[1], where, self._first_arm)
        self._notes += columns.notes
        self._moving += _moving(key, values, columns)
        values = values[:, columns.order]
        check_finite(where, values)
        return values

    def _measured(self, key: str) -> Floats | None:
        """Return (T, 14) of what not every rig measures."""
        if not self._has(key):
            return None
        try:
            values = self._numbers(key)
            names, where = self._features[key].names, f"{self._where}: {key}"
            order = columns_of(names, values.shape[1], where, self._first_arm).order
        except RolloutError as error:  # no training reads these
            self._notes.append(f"left out: {error}")
            return None
        return measured(values[:, order], key, self._notes)

    def _stamps(self) -> Floats:
        """Return (T,) seconds of the rows since the episode's begin."""
        rows, fps = len(self._span), self._entry.source.fps
        if FRAME in self._file.names:
            frames = self._file.integers(FRAME, self._span)
            if not np.array_equal(frames, np.arange(rows)):
                row = int(np.flatnonzero(frames != np.arange(rows))[0])
                raise RolloutError(
                    f"{self._where}: {FRAME}: is {frames[row]} at row {row}; rows are missing, or "
                    f"in another order"
                )
        if STAMP not in self._file.names:
            return np.arange(rows) / fps
        stamps = self._numbers(STAMP)[:, 0]
        steps = np.diff(stamps)
        bad = np.flatnonzero(~(steps > 0))
        if len(bad) or not abs(stamps[0]) < 1 / fps:
            row = int(bad[0]) + 1 if len(bad) else 0
            raise RolloutError(
                f"{self._where}: {STAMP}: is {stamps[row]:g} s at row {row}; they must begin at 0 "
                f"and increase"
            )
        return stamps

    def _pace(self, stamps: Floats, qpos: Floats, qvel: Floats | None) -> Pace:
        fps, rows = self._entry.source.fps, len(stamps)
        told = {f"{INFO} (fps)": fps}
        fitting = None if qvel is None else fitting_rate(qpos, qvel)
        if float(np.abs(stamps - np.arange(rows) / fps).max()) * fps <= _EVEN:
            return Pace(told, fitting=fitting)  # not the stamps, which are rounded to float32
        passed = stamps - stamps[0]
        told = {STAMPS: (rows - 1) / float(passed[-1]), **told}
        return Pace(told, passed, fitting)

    def _cameras(
        self, given: Mapping[str, str], colours: Colours | None, stamps: Floats
    ) -> dict[str, LeRobotFrames]:
        keys = {_short(f.key): f.key for f in self._features.values() if f.dtype in (IMAGE, VIDEO)}
        if not keys:
            raise RolloutError(f"{self._where}: has no images: no feature is of {IMAGE} or {VIDEO}")
        short = {role: _short(name) for role, name in given.items()}
        found = camera_names.assign(list(keys), short, self._where)
        self._notes += found.notes
        if colours == "bgr":
            self._notes.append("red and blue exchanged back (as given)")
        swapped = colours == "bgr"
        return {
            role: self._frames(self._features[keys[name]], swapped, stamps)
            for role, name in found.names.items()
        }

    def _frames(self, feature: Feature, swapped: bool, stamps: Floats) -> LeRobotFrames:
        where = f"{self._where}: {shown(feature.key)}"
        if feature.depth:
            raise RolloutError(f"{where}: is a map of depths; choose a camera with --camera")
        if feature.dtype == IMAGE:
            return EmbeddedFrames(self._file, feature.key, where, self._span, swapped)
        place, fps = self._entry.video(feature.key), self._entry.source.fps
        listed = len(stamps) / fps if place.end is None else place.end - place.begin
        # What is listed are durations that containers tell; the frames' own times are held later.
        if abs(listed * fps - len(stamps)) > 1:
            raise RolloutError(
                f"{where}: is listed from {place.begin:.3f} to {place.end:.3f} s of {place.path}, "
                f"which is not the {len(stamps)} rows at {fps:g} per second"
            )
        seconds = place.begin + stamps
        return VideoPart(place.path, where, seconds, 1 / fps, place.end is None, swapped)

    def _tasks(self) -> tuple[int, ...]:
        if TASK not in self._file.names:
            return ()
        return tuple(dict.fromkeys(self._file.integers(TASK, self._span).tolist()))

    def _success(self) -> tuple[bool | None, float | None]:
        """Return whether it was a success, and its score, where a feature tells so."""
        for key in (SUCCESS, NEXT_SUCCESS):
            if self._has(key) and self._features[key].dtype == "bool":
                success = bool(self._numbers(key).any())
                break
        else:
            return None, None
        if not self._has(SCORE):
            return success, None
        scores = self._numbers(SCORE)
        score = round(float(scores[0, 0]), 6)  # stored as float32
        constant = scores.shape[1] == 1 and not np.ptp(scores)
        return success, score if constant and 0 <= score <= 1 else None

    def _others(self) -> None:
        """Note what else has numbers in each row, and moves."""
        others = [f for f in self._features.values() if f.dtype not in (IMAGE, VIDEO)]
        for feature in [f for f in others if f.key not in _KNOWN][:_MOST_OTHERS]:
            try:
                values = self._numbers(feature.key)
            except RolloutError:  # texts, or not there
                continue
            if values.shape[1] <= _MOST_WIDE and moves(feature.key, values):
                self._moving.append(shown(feature.key))
        robot = self._entry.source.robot_type
        if robot and not any(word in robot.lower() for word in ("aloha", "viperx", "vx300")):
            self._notes.append(f"recorded with '{escaped(shown(robot))}'")


def _moving(key: str, values: Floats, columns: Columns) -> list[str]:
    return [
        f"{key} {shown(name)}"
        for index, name in columns.others
        if moves(name, values[:, index : index + 1])
    ]


def _short(key: str) -> str:
    """Return a camera's name without what all have in common."""
    return key.removeprefix("observation.").removeprefix("images.")
