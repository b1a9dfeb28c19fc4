"""An episode of an HDF5 file becomes a bag like any other.

Control step t is seen at ``start + t * dt`` and its action is due one dt later, as on a rig that
answers at once. Receive stamps are the header stamps: nothing was on its way anywhere.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import yaml
from rosbags.typesys.store import Typestore

from cosmos_policy_ros import __version__
from cosmos_policy_ros.bags.jpeg import SUFFIX, to_jpeg
from cosmos_policy_ros.bags.messages import EpisodeMetadata, RigMessages
from cosmos_policy_ros.bags.writer import RECORDING, BagWriter, read_metadata
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import FolderLock
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import FULL_SCORE, load_task, read_task, task_names
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import escaped, shown
from cosmos_policy_ros.episodes.episode import OUTCOME, QUALITY, SOURCE_NOTES, bare_id, episode_id
from cosmos_policy_ros.episodes.labels import OperatorScore, labels_of, number, write_labels
from cosmos_policy_ros.episodes.quality import (
    QualityMonitor,
    QualityReport,
    load_limits,
    sensors_of,
)
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.topics import absolute, rig_topics
from cosmos_policy_ros.interop import hdf5_layout as layout
from cosmos_policy_ros.interop.hdf5_cameras import Colours
from cosmos_policy_ros.interop.hdf5_frames import JpegFrames, VideoFrames, repeated
from cosmos_policy_ros.interop.hdf5_layout import SourceEpisode
from cosmos_policy_ros.interop.source_rate import Grid
from cosmos_policy_ros.rig.arms import ARM_DIM, Arms
from cosmos_policy_ros.rig.spec import RigSpec, load_rig
from cosmos_policy_ros.rig.unit_check import check_units


def rig_as_imported(rig: RigSpec, *, jpeg: bool) -> RigSpec:
    """Return the lab's rig as the bag of an imported episode shows it.

    One joint state per control step, images of one kind (JPEG files, or raw RGB), trajectories that
    bear their start. A gripper is read from its finger: past its ends, where recorded states go by
    some per cent, a crank has no angle. Two equal images in a row are no sign of a frozen camera
    here: videos and simulators have them whenever nothing moves.
    """
    arms = []
    for arm in rig.arms.values():
        if arm.gripper.state_source == "crank":
            arm = replace(arm, gripper=replace(arm.gripper, state_source="finger"))
        arms.append(arm)
    cameras = []
    for camera in rig.cameras:
        topic = camera.topic.removesuffix(SUFFIX)
        if jpeg:
            camera = replace(camera, topic=topic + SUFFIX, transport="compressed")
        else:
            camera = replace(camera, topic=topic, transport="raw", encodings=("rgb8",))
        cameras.append(camera)
    return replace(
        rig,
        arms=Arms(*arms),
        cameras=tuple(cameras),
        rates=replace(rig.rates, joint_states=rig.rates.control, cameras=rig.rates.control),
        observation=replace(rig.observation, frozen_after=0.0),
        trajectory_stamp="start",
    )


def rig_text(rig: RigSpec) -> str:
    """Return a rig as the text of a rig file."""
    text = yaml.safe_dump(_plain(asdict(rig)), sort_keys=False, allow_unicode=True, width=100)
    return f"# As imported: made from the rig file '{rig.name}' and what the source holds.\n{text}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


_DATE_FORMATS = (
    layout.DATE_FORMAT,
    "%Y_%m_%d-%H_%M_%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
)


@dataclass(frozen=True)
class SourceMetadata:
    """What a file tells of its episode.

    Attributes:
        prompt: the task's text.
        policy: what drove the arms; "" for a demonstration.
        operator_name: of the person who watched.
        start_ns: when it was recorded, as well as the file tells, nanoseconds since the epoch.
        operator_score: of a rollout; None where the file has none.
    """

    prompt: str
    policy: str
    operator_name: str
    start_ns: int
    operator_score: OperatorScore | None


def source_metadata(
    source: SourceEpisode, prompts: Iterable[str], prompt: str | None = None
) -> SourceMetadata:
    """Return what the file tells.

    Args:
        source: an open file.
        prompts: those of the known tasks, looked for in the folder's name.
        prompt: in place of the file's own.

    Raises:
        RolloutError: an attribute is of a wrong type or outside its range.
    """
    given = source.attributes
    operator_score = None
    if layout.SUCCESS in given or layout.SUCCESS_SCORE in given:
        success = _number(source, layout.SUCCESS) if layout.SUCCESS in given else None
        key = layout.SUCCESS_SCORE
        score = _number(source, key) if key in given else float(bool(success))
        if not 0 <= score <= 1:
            raise RolloutError(f"{source.path}: {key}: {score:g} must be from 0 to 1")
        operator_score = OperatorScore(
            score=score * FULL_SCORE,
            success=score == 1 if success is None else bool(success),
            operator_name=_text(source, layout.USER_NAME),
            note=_text(source, layout.USER_DESCRIPTION),
        )
    # Released rollouts have all three, demonstrations none.
    rollout = operator_score is not None or layout.POLICY_NAME in given
    prompt = prompt or _text(source, layout.TASK_DESCRIPTION, as_it_is=True)
    prompt = prompt or _prompt_of_folder(source, prompts)
    if not prompt.isprintable():
        raise RolloutError(
            f"{source.path}: its prompt '{shown(prompt)}' has characters that cannot be shown, and "
            f"would be learnt with them; give --prompt"
        )
    return SourceMetadata(
        prompt=prompt,
        policy=(_text(source, layout.POLICY_NAME) or "unknown policy") if rollout else "",
        operator_name=_text(source, layout.USER_NAME),
        start_ns=_start_ns(source),
        operator_score=operator_score,
    )


def _prompt_of_folder(source: SourceEpisode, prompts: Iterable[str]) -> str:
    """Return the prompt that the folder ``<task>``, or ``<task>/{train,val}``, is named after."""
    parents = source.path.resolve().parents
    name = next((p.name for p in parents if p.name not in ("train", "val")), "")
    for prompt in sorted(prompts, key=len, reverse=True):
        if prompt.replace(" ", "_") in name:
            return prompt
    prompt = re.sub(r"_\d+_steps$", "", name).replace("_", " ").strip()
    if not prompt:
        raise RolloutError(
            f"{source.path}: has no attribute {layout.TASK_DESCRIPTION}; give --prompt"
        )
    return prompt


def _start_ns(source: SourceEpisode) -> int:
    text = _text(source, layout.DATE_TIME)
    for form in _DATE_FORMATS:
        try:
            seconds = datetime.strptime(text, form).timestamp()
        except (ValueError, OverflowError):
            continue
        if seconds >= 0:
            return round(seconds) * NS_PER_S
    # The time of the file's last change is the only other trace of when it was recorded.
    return round(source.path.stat().st_mtime) * NS_PER_S


def _text(source: SourceEpisode, key: str, *, as_it_is: bool = False) -> str:
    """Return an attribute's text, with what cannot be shown escaped, unless ``as_it_is``: one line.

    A note may have several.
    """
    value: Any = source.attributes.get(key, "")
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, h5py.Empty):
        return ""
    if not isinstance(value, str):
        raise RolloutError(f"{source.path}: {key}: '{shown(value)}' must be text")
    if "\0" in value:
        raise RolloutError(f"{source.path}: {key}: {shown(value)} holds a NUL character; remove it")
    if as_it_is:
        return value.strip("\r\n")
    return escaped(value, "\n\t" if key == layout.USER_DESCRIPTION else "")


def _number(source: SourceEpisode, key: str) -> float:
    value: Any = source.attributes[key]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RolloutError(f"{source.path}: {key}: '{shown(value)}' must be a number")
    return number


SOURCE, SOURCE_DIGEST = "source", "source_sha256"
"""Entries of ``custom_data``: the file's name, and the sha256 over it and its videos."""
IMPORTED = "imported"
"""The outcome of every imported episode."""


class KnownSourceError(RolloutError):
    """The store has an episode made of this very file."""


@dataclass(frozen=True)
class ImportOptions:
    """What the files do not say, or say wrongly.

    Attributes:
        rig: name or path of a rig file; None for the stock ALOHA's, or the simulated one's where
            the file says that it was simulated.
        task: name or path of a task file; None for the one that has the episode's prompt.
        prompt: in place of the files' own.
        rate: of the source [Hz].
        cameras: the files' names of cameras by their roles; others are recognised.
        colours: "rgb" or "bgr", see :func:`hdf5_layout.open_hdf5`; None for what a layout tells.
        videos_as: what the frames of a video become.
        again: take a file that the store has.
    """

    rig: str | None = None
    task: str | None = None
    prompt: str | None = None
    rate: float | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    colours: Colours | None = None
    videos_as: Literal["jpeg", "raw"] = "jpeg"
    again: bool = False


@dataclass(frozen=True)
class Imported:
    """What became of a file: the bag's folder, its steps, seconds, quality and score.

    ``notes`` say what was done to the content on the way, and what was left out.
    """

    path: Path
    steps: int
    seconds: float
    quality: QualityReport
    score: float | None
    notes: tuple[str, ...] = ()


class Importer:
    """Puts episodes of HDF5 files into a store."""

    def __init__(
        self, store: EpisodeStore, types: Typestore, options: ImportOptions | None = None
    ) -> None:
        """Find what the store has.

        Args:
            store: where episodes go.
            types: knows ROS's and this package's messages.
            options: the same for every file.

        Raises:
            ConfigError: no such rig or task.
        """
        self._store, self._types = store, types
        self._options = options or ImportOptions()
        self._messages, self._limits = RigMessages(types), load_limits()
        folder = config_folder("tasks")
        self._tasks = [load_task(name, folder) for name in task_names(folder)]
        if self._options.rig:
            load_rig(self._options.rig, config_folder("rigs"))
        if self._options.task:
            load_task(self._options.task, folder)
        self._known: dict[str, str] = {}  # ids of imported episodes by their sources' digests
        for path in store.episodes().values():
            if path.name.endswith(RECORDING):
                continue
            try:
                custom: Mapping[str, str] = read_metadata(path).get("custom_data") or {}
            except RolloutError:
                continue  # whatever it is, it is no import that was finished
            if SOURCE_DIGEST in custom:
                self._known[custom[SOURCE_DIGEST]] = bare_id(path.name)

    def take(self, path: Path) -> Imported:
        """Import one file; nothing stays of an import that failed.

        Raises:
            KnownSourceError: the store has it.
            RolloutError: something is wrong with the file, see :func:`open_hdf5`, its rate or its
                units, or the disk refused.
        """
        options = self._options
        with layout.open_hdf5(path, options.cameras, options.colours) as source:
            digest = source.digest()
            if digest in self._known and not options.again:
                raise KnownSourceError(
                    f"{source.path}: is in {self._store.root} as {self._known[digest]}; --again "
                    f"imports it once more"
                )
            rig = self._rig_of(source)
            prompts = [prompt for task in self._tasks for prompt in task.prompts]
            found = source_metadata(source, prompts, self._options.prompt)
            metadata = self._metadata(rig, found)
            try:
                check_units(
                    rig, {f"/{layout.QPOS}": source.qpos, f"/{layout.ACTION}": source.action}
                )
            except RolloutError as error:
                raise RolloutError(f"{source.path}: {error}") from error
            grid = source.grid(options.rate, rig.rates.control)
            folder = self._store.root / (metadata.episode_id + RECORDING)
            new = not folder.exists()
            try:
                imported = self._write(source, rig, found, metadata, grid, digest)
            except BaseException:
                if new:
                    with suppress(OSError):  # unless another recorder has it
                        lock = FolderLock(folder)
                        shutil.rmtree(folder, ignore_errors=True)
                        lock.release()
                raise
        self._known[digest] = metadata.episode_id
        return imported

    def _rig_of(self, source: SourceEpisode) -> RigSpec:
        simulated = bool(source.attributes.get(layout.SIM, False))
        name = self._options.rig or ("sim" if simulated else "interbotix_1")
        kinds = {type(frames) for frames in source.frames.values()}
        jpeg = JpegFrames in kinds or (VideoFrames in kinds and self._options.videos_as == "jpeg")
        return rig_as_imported(load_rig(name, config_folder("rigs")), jpeg=jpeg)

    def _metadata(self, rig: RigSpec, found: SourceMetadata) -> EpisodeMetadata:
        task, text = found.prompt.lower().replace(" ", "_"), ""
        fitting = (task.name for task in self._tasks if found.prompt in task.prompts)
        if wanted := self._options.task or next(fitting, None):
            file = read_task(wanted, config_folder("tasks"))
            task, text = file.task.name, file.text
        begun = datetime.fromtimestamp(found.start_ns / NS_PER_S)
        return EpisodeMetadata(
            episode_id=episode_id(task, begun, self._store.episodes()),
            task=task,
            prompt=found.prompt,
            rig=rig.name,
            engine=found.policy,
            operator_name=found.operator_name,
            package_version=__version__,
            rig_yaml=rig_text(rig),
            task_yaml=text,
        )

    def _write(
        self,
        source: SourceEpisode,
        rig: RigSpec,
        found: SourceMetadata,
        metadata: EpisodeMetadata,
        grid: Grid,
        digest: str,
    ) -> Imported:
        quality = QualityMonitor(
            sensors_of(rig, absolute), rig.observation.camera_skew, self._limits
        )
        steps, score = len(grid.rows), None
        notes = (*grid.notes, *source.notes)
        folder, start_ns = self._store.root / metadata.episode_id, found.start_ns
        newest_ns = 0
        with BagWriter(
            folder, rig_topics(rig), metadata, types=self._types, start_ns=start_ns
        ) as writer:
            for topic, stamp_ns, cdr in self._episode(source, rig, start_ns, grid):
                writer.write(topic, stamp_ns, cdr)
                quality.add(topic, stamp_ns, cdr)
                newest_ns = stamp_ns
            if found.operator_score is not None:
                labels = number(labels_of(metadata, found.operator_score, newest_ns))
                write_labels(writer, labels, self._types)
                score = labels[-1].points
            report = quality.report(newest_ns, shutil.disk_usage(self._store.root).free)
            path = writer.close(
                {
                    OUTCOME: IMPORTED,
                    QUALITY: report.to_json(),
                    SOURCE: escaped(source.path.name),
                    SOURCE_DIGEST: digest,
                    **({SOURCE_NOTES: "; ".join(notes)} if notes else {}),
                }
            )
        return Imported(path, steps, steps * rig.rates.dt, report, score, notes)

    def _episode(
        self, source: SourceEpisode, rig: RigSpec, start_ns: int, grid: Grid
    ) -> Iterator[tuple[str, int, bytes]]:
        """Yield (topic, stamp in ns, message) of a whole episode in order of time."""
        messages, step_ns = self._messages, round(rig.rates.dt * NS_PER_S)
        rows = grid.rows.tolist()
        images = {role: repeated(frames, rows) for role, frames in source.frames.items()}
        per_chunk = rig.rates.chunk_steps
        actions, qpos = grid.values(source.action), grid.values(source.qpos)
        qvel = None if source.qvel is None else grid.values(source.qvel)
        effort = None if source.effort is None else grid.values(source.effort)
        for step in range(len(actions)):
            now_ns = start_ns + step * step_ns
            if step % per_chunk == 0:
                due = actions[step : step + per_chunk]
                chunk_id = f"import/{step // per_chunk}"
                for topic, cdr in messages.trajectories(rig, chunk_id, now_ns, step_ns, due):
                    yield absolute(topic), now_ns, cdr
            for index, arm in enumerate(rig.arms.values()):
                part = slice(index * ARM_DIM, (index + 1) * ARM_DIM)
                cdr = messages.joint_state(
                    arm,
                    now_ns,
                    qpos[step, part],
                    None if qvel is None else qvel[step, part],
                    None if effort is None else effort[step, part],
                )
                yield absolute(arm.joint_states), now_ns, cdr
            for camera in rig.cameras:
                image = next(images[camera.role])
                if camera.transport == "compressed" and not isinstance(image, bytes):
                    image = to_jpeg(image)
                yield absolute(camera.topic), now_ns, messages.image(image, now_ns)
        for rest in images.values():
            next(rest, None)  # a video tells only at its end whether it held what it promised
