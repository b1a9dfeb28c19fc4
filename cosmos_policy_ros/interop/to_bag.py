"""An episode of an HDF5 file becomes a bag like any other.

Row t is seen at ``start + t * dt`` and its action is due one dt later, as on a rig that answers at
once. Receive stamps are the header stamps: nothing was on its way anywhere.
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
from cosmos_policy_ros.bags.jpeg import SUFFIX, ImageArray, to_jpeg
from cosmos_policy_ros.bags.messages import EpisodeMetadata, RigMessages
from cosmos_policy_ros.bags.writer import RECORDING, BagWriter, read_metadata
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import FolderLock
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import FULL_SCORE, Task, load_task, read_task, task_names
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.episodes.episode import OUTCOME, QUALITY, bare_id, episode_id
from cosmos_policy_ros.episodes.labels import OperatorScore, labels_of, number, write_labels
from cosmos_policy_ros.episodes.quality import (
    QualityMonitor,
    QualityReport,
    load_limits,
    sensors_of,
)
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.topics import absolute, rig_topics
from cosmos_policy_ros.interop.hdf5_layout import (
    DATE_TIME,
    POLICY_NAME,
    SIM,
    SUCCESS,
    SUCCESS_SCORE,
    TASK_DESCRIPTION,
    USER_DESCRIPTION,
    USER_NAME,
    SourceEpisode,
    open_hdf5,
)
from cosmos_policy_ros.rig.arms import ARM_DIM, Arm, Arms
from cosmos_policy_ros.rig.spec import Camera, Rates, RigSpec, load_rig

# The rig of an imported episode: the lab's own file, changed where the source differs from it.


def rig_as_imported(rig: RigSpec, *, jpeg: bool) -> RigSpec:
    """Return the rig as the bag of an imported episode shows it.

    One joint state per control step, images of one kind, trajectories that bear their start. A
    gripper is read from its finger: past its ends, where recorded states go by some per cent, a
    crank has no angle. Two equal images in a row are no sign of a frozen camera here: videos and
    simulators have them whenever nothing moves.

    Args:
        rig: of the lab.
        jpeg: the images are JPEG files, else raw RGB.
    """
    return replace(
        rig,
        arms=Arms(_finger_read(rig.arms.left), _finger_read(rig.arms.right)),
        cameras=tuple(_camera(camera, jpeg) for camera in rig.cameras),
        rates=Rates(
            control=rig.rates.control,
            chunk_steps=rig.rates.chunk_steps,
            joint_states=rig.rates.control,
            cameras=rig.rates.control,
        ),
        observation=replace(rig.observation, frozen_after=0.0),
        trajectory_stamp="start",
    )


def rig_text(rig: RigSpec) -> str:
    """Return a rig as the text of a rig file."""
    text = yaml.safe_dump(_plain(asdict(rig)), sort_keys=False, allow_unicode=True, width=100)
    return f"# As imported: made from the rig file '{rig.name}' and what the source holds.\n{text}"


def _finger_read(arm: Arm) -> Arm:
    if arm.gripper.state_source != "crank":
        return arm
    return replace(arm, gripper=replace(arm.gripper, state_source="finger"))


def _camera(camera: Camera, jpeg: bool) -> Camera:
    topic = camera.topic.removesuffix(SUFFIX)
    if jpeg:
        return replace(camera, topic=topic + SUFFIX, transport="compressed")
    return replace(camera, topic=topic, transport="raw", encodings=("rgb8",))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


# What an HDF5 file says of its episode: prompt, score, who, when.


DATE_FORMAT = "%Y_%m_%d--%H_%M_%S"
"""As the released ALOHA client writes it."""

UNNAMED_POLICY = "unknown policy"
_DATE_FORMATS = (DATE_FORMAT, "%Y_%m_%d-%H_%M_%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S")
_SPLITS = ("train", "val")
_STEPS_SUFFIX = re.compile(r"_\d+_steps$")


@dataclass(frozen=True)
class SourceMetadata:
    """What is known of an episode from its file.

    Attributes:
        prompt: the task's text.
        policy: who drove the arms; "" for a demonstration.
        operator_name: who watched.
        start_ns: when it was recorded, as well as the file tells, nanoseconds since the epoch.
        operator_score: of a rollout; None where the file has none.
    """

    prompt: str
    policy: str
    operator_name: str
    start_ns: int
    operator_score: OperatorScore | None


def facts_of(source: SourceEpisode, prompts: Iterable[str], prompt: str = "") -> SourceMetadata:
    """Return what the file says.

    Args:
        source: an open file.
        prompts: those of the known tasks, looked for in the folder's name.
        prompt: in place of the file's own.

    Raises:
        RolloutError: an attribute is of a wrong type or outside its range.
    """
    # Released rollouts have all three, demonstrations none.
    rollout = any(key in source.attributes for key in (SUCCESS, SUCCESS_SCORE, POLICY_NAME))
    operator_score = _judgement(source)
    return SourceMetadata(
        prompt=prompt or _text(source, TASK_DESCRIPTION) or _prompt_of_folder(source, prompts),
        policy=(_text(source, POLICY_NAME) or UNNAMED_POLICY) if rollout else "",
        operator_name=_text(source, USER_NAME),
        start_ns=_start_ns(source),
        operator_score=operator_score,
    )


def _judgement(source: SourceEpisode) -> OperatorScore | None:
    given = source.attributes
    if SUCCESS not in given and SUCCESS_SCORE not in given:
        return None
    success = _number(source, SUCCESS) if SUCCESS in given else None
    score = _number(source, SUCCESS_SCORE) if SUCCESS_SCORE in given else float(bool(success))
    if not 0 <= score <= 1:
        raise RolloutError(f"{source.path}: {SUCCESS_SCORE}: {score:g} must be from 0 to 1")
    return OperatorScore(
        score=score * FULL_SCORE,
        success=score == 1 if success is None else bool(success),
        operator_name=_text(source, USER_NAME),
        note=_text(source, USER_DESCRIPTION),
    )


def _prompt_of_folder(source: SourceEpisode, prompts: Iterable[str]) -> str:
    """Return the prompt that the folder ``<task>``, or ``<task>/{train,val}``, is named after."""
    parents = source.path.resolve().parents
    name = next((p.name for p in parents if p.name not in _SPLITS), "")
    for prompt in sorted(prompts, key=len, reverse=True):
        if prompt.replace(" ", "_") in name:
            return prompt
    prompt = _STEPS_SUFFIX.sub("", name).replace("_", " ").strip()
    if not prompt:
        raise RolloutError(f"{source.path}: has no attribute {TASK_DESCRIPTION}; give --prompt")
    return prompt


def _start_ns(source: SourceEpisode) -> int:
    text = _text(source, DATE_TIME)
    for form in _DATE_FORMATS:
        try:
            seconds = datetime.strptime(text, form).timestamp()
        except (ValueError, OverflowError):
            continue
        if seconds >= 0:
            return round(seconds) * NS_PER_S
    # The time of the file's last change is the only other trace of when it was recorded.
    return round(source.path.stat().st_mtime) * NS_PER_S


def _text(source: SourceEpisode, key: str) -> str:
    value: Any = source.attributes.get(key, "")
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, h5py.Empty):
        return ""
    if not isinstance(value, str):
        raise RolloutError(f"{source.path}: {key}: '{shown(value)}' must be text")
    return value


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

DEFAULT_RIG, DEFAULT_SIM_RIG = "interbotix_1", "sim"


class KnownSourceError(RolloutError):
    """The store has an episode made of this very file."""


@dataclass(frozen=True)
class ImportOptions:
    """What the files do not say, or say wrongly.

    Attributes:
        rig: name or path of a rig file; "" for the stock ALOHA's, or the simulated one's where the
            file says that it was simulated.
        task: name or path of a task file; "" for the one that has the episode's prompt.
        prompt: in place of the files' own; "" for those.
        rate: of the source [Hz]; 0 for what the file tells.
        videos_as: what the frames of a video become.
        again: take a file that the store has.
    """

    rig: str = ""
    task: str = ""
    prompt: str = ""
    rate: float = 0.0
    videos_as: Literal["jpeg", "raw"] = "jpeg"
    again: bool = False


@dataclass(frozen=True)
class Imported:
    """What became of a file: the bag's folder, its steps, seconds, verdict and score."""

    path: Path
    steps: int
    seconds: float
    verdict: QualityReport
    score: float | None


@dataclass(frozen=True)
class _Plan:
    """All that is decided before the first byte is written."""

    source: SourceEpisode
    rig: RigSpec
    said: SourceMetadata
    metadata: EpisodeMetadata
    stride: int
    digest: str


@dataclass
class Importer:
    """Puts episodes of HDF5 files into a store.

    Attributes:
        store: where they go.
        types: knows ROS's and this package's messages.
        options: the same for every file.

    Raises:
        ConfigError: no such rig or task.
    """

    store: EpisodeStore
    types: Typestore
    options: ImportOptions = field(default_factory=ImportOptions)

    def __post_init__(self) -> None:
        self._messages = RigMessages(self.types)
        self._limits = load_limits()
        self._known = _known_sources(self.store)
        self._tasks = _tasks()
        if self.options.rig:
            load_rig(self.options.rig, config_folder("rigs"))
        if self.options.task:
            load_task(self.options.task, config_folder("tasks"))

    def take(self, path: Path) -> Imported:
        """Import one file; nothing stays of an import that failed.

        Raises:
            KnownSourceError: the store has it.
            RolloutError: something is wrong with the file, see :func:`open_hdf5`, or the disk
                refused.
        """
        with open_hdf5(path) as source:
            plan = self._plan(source)
            begun = datetime.fromtimestamp(plan.said.start_ns / NS_PER_S)
            name = episode_id(plan.metadata.task, begun, self.store.episodes())
            folder = self.store.root / (name + RECORDING)
            new = not folder.exists()
            try:
                imported = self._write(plan, name)
            except BaseException:
                if new:
                    _remove(folder)
                raise
        self._known[plan.digest] = name
        return imported

    def _plan(self, source: SourceEpisode) -> _Plan:
        digest = source.digest()
        if digest in self._known and not self.options.again:
            raise KnownSourceError(
                f"{source.path}: is in {self.store.root} as {self._known[digest]}; --again imports "
                f"it once more"
            )
        simulated = bool(source.attributes.get(SIM, False))
        name = self.options.rig or (DEFAULT_SIM_RIG if simulated else DEFAULT_RIG)
        rig = load_rig(name, config_folder("rigs"))
        kinds = {frames.kind for frames in source.frames.values()}
        jpeg = kinds == {"jpeg"} or (kinds == {"video"} and self.options.videos_as == "jpeg")
        rig = rig_as_imported(rig, jpeg=jpeg)
        prompts = [prompt for task in self._tasks for prompt in task.prompts]
        said = facts_of(source, prompts, self.options.prompt)
        metadata = self._metadata(rig, said)
        stride = source.stride(self.options.rate, rig.rates.control)
        return _Plan(source, rig, said, metadata, stride, digest)

    def _metadata(self, rig: RigSpec, said: SourceMetadata) -> EpisodeMetadata:
        task, text = said.prompt.lower().replace(" ", "_"), ""
        fitting = [task.name for task in self._tasks if said.prompt in task.prompts]
        if wanted := self.options.task or next(iter(fitting), ""):
            found = read_task(wanted, config_folder("tasks"))
            task, text = found.task.name, found.text
        return EpisodeMetadata(
            task=task,
            prompt=said.prompt,
            rig=rig.name,
            engine=said.policy,
            operator_name=said.operator_name,
            package_version=__version__,
            rig_yaml=rig_text(rig),
            task_yaml=text,
        )

    def _write(self, plan: _Plan, name: str) -> Imported:
        rig, start_ns = plan.rig, plan.said.start_ns
        metadata = replace(plan.metadata, episode_id=name)
        quality = QualityMonitor(
            sensors_of(rig, absolute), rig.observation.camera_skew, self._limits
        )
        folder, topics = self.store.root / name, rig_topics(rig)
        newest_ns, steps = 0, len(plan.source.action[:: plan.stride])
        with BagWriter(folder, topics, metadata, types=self.types, start_ns=start_ns) as writer:
            for topic, stamp_ns, cdr in self._episode(plan):
                writer.write(topic, stamp_ns, cdr)
                quality.add(topic, stamp_ns, cdr)
                newest_ns = stamp_ns
            score = self._label(plan, metadata, writer, newest_ns)
            verdict = quality.report(newest_ns, shutil.disk_usage(self.store.root).free)
            notes = {
                OUTCOME: IMPORTED,
                QUALITY: verdict.to_json(),
                SOURCE: plan.source.path.name,
                SOURCE_DIGEST: plan.digest,
            }
            path = writer.close(notes)
        return Imported(path, steps, steps * rig.rates.dt, verdict, score)

    def _label(
        self, plan: _Plan, metadata: EpisodeMetadata, writer: BagWriter, stamp_ns: int
    ) -> float | None:
        if plan.said.operator_score is None:
            return None
        labels = number(labels_of(metadata, plan.said.operator_score, stamp_ns))
        write_labels(writer, labels, self.types)
        return labels[-1].points

    def _episode(self, plan: _Plan) -> Iterator[tuple[str, int, bytes]]:
        """Yield (topic, stamp in ns, message) of a whole episode in order of time."""
        rig, source, stride = plan.rig, plan.source, plan.stride
        step_ns, start_ns = round(rig.rates.dt * NS_PER_S), plan.said.start_ns
        images = {role: frames.every(stride) for role, frames in source.frames.items()}
        per_chunk = rig.rates.chunk_steps
        actions = source.action[::stride]
        for step in range(len(actions)):
            now_ns = start_ns + step * step_ns
            if step % per_chunk == 0:
                rows = actions[step : step + per_chunk]
                chunk_id = f"import/{step // per_chunk}"
                sent = self._messages.trajectories(rig, chunk_id, now_ns, step_ns, rows)
                for topic, cdr in sent:
                    yield absolute(topic), now_ns, cdr
            yield from self._states(plan, step * stride, now_ns)
            for camera in rig.cameras:
                image = _as_wanted(next(images[camera.role]), camera.transport)
                yield absolute(camera.topic), now_ns, self._messages.image(image, now_ns)
        for rest in images.values():
            next(rest, None)  # a video tells only at its end whether it held what it promised

    def _states(self, plan: _Plan, row: int, now_ns: int) -> Iterator[tuple[str, int, bytes]]:
        source = plan.source
        for index, arm in enumerate(plan.rig.arms.values()):
            part = _of_arm(index)
            velocity = None if source.qvel is None else source.qvel[row, part]
            effort = None if source.effort is None else source.effort[row, part]
            cdr = self._messages.joint_state(arm, now_ns, source.qpos[row, part], velocity, effort)
            yield absolute(arm.joint_states), now_ns, cdr


def _remove(folder: Path) -> None:
    """Delete what an import that failed has written a moment ago, unless somebody else has it."""
    with suppress(OSError):
        hold = FolderLock(folder)
        shutil.rmtree(folder, ignore_errors=True)
        hold.release()


def _known_sources(store: EpisodeStore) -> dict[str, str]:
    """Return the ids of the store's imported episodes by their sources' digests."""
    known = {}
    for folder in store.episodes().values():
        if folder.name.endswith(RECORDING):
            continue
        try:
            notes: Mapping[str, str] = read_metadata(folder).get("custom_data") or {}
        except RolloutError:
            continue  # whatever it is, it is no import that was finished
        if SOURCE_DIGEST in notes:
            known[notes[SOURCE_DIGEST]] = bare_id(folder.name)
    return known


def _tasks() -> tuple[Task, ...]:
    folder = config_folder("tasks")
    return tuple(load_task(name, folder) for name in task_names(folder))


def _of_arm(index: int) -> slice:
    return slice(index * ARM_DIM, (index + 1) * ARM_DIM)


def _as_wanted(image: ImageArray, transport: str) -> ImageArray:
    if transport == "raw" or isinstance(image, bytes):
        return image
    return to_jpeg(image)
