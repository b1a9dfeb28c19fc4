"""An HDF5 file as an episode: its rows become messages.

Control step t is seen at ``start + t * dt`` and its action is due one dt later, as on a rig that
answers at once. Receive stamps are the header stamps: nothing was on its way anywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cosmos_policy_ros.bags.jpeg import SUFFIX, to_jpeg
from cosmos_policy_ros.bags.messages import RigMessages
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.task import FULL_SCORE
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import escaped, shown
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.topics import absolute, rig_topics
from cosmos_policy_ros.interop import hdf5_layout as layout
from cosmos_policy_ros.interop.foreign_episode import (
    EpisodeContent,
    ImportContext,
    SourceMetadata,
    check_prompt,
)
from cosmos_policy_ros.interop.hdf5_frames import JpegFrames, VideoFrames, repeated
from cosmos_policy_ros.interop.hdf5_layout import SourceEpisode
from cosmos_policy_ros.interop.source_rate import Grid
from cosmos_policy_ros.rig.arms import ARM_DIM, Arms
from cosmos_policy_ros.rig.spec import RigSpec
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


_DATE_FORMATS = (
    layout.DATE_FORMAT,
    "%Y_%m_%d-%H_%M_%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
)


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
    check_prompt(source.path, prompt)
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


@dataclass(frozen=True)
class Hdf5Source:
    """An HDF5 file: one episode."""

    path: Path

    @property
    def name(self) -> str:
        """The file's."""
        return self.path.name

    @contextmanager
    def open(self, context: ImportContext) -> Iterator[Hdf5Content]:
        """Open it; raises as :func:`hdf5_layout.open_hdf5` does."""
        options = context.options
        with layout.open_hdf5(self.path, options.cameras, options.colours) as source:
            yield Hdf5Content(source, context)


@dataclass(frozen=True)
class Hdf5Content:
    """An open HDF5 file, and the operator's options."""

    source: SourceEpisode
    context: ImportContext

    def digest(self) -> str:
        """Return the sha256 (hex) over the file and its videos."""
        return self.source.digest()

    def content(self) -> EpisodeContent:
        """Check units, rate and attributes. Raises RolloutError."""
        source, options = self.source, self.context.options
        rig = self._rig()
        found = source_metadata(source, self.context.prompts, options.prompt)
        try:
            check_units(rig, {f"/{layout.QPOS}": source.qpos, f"/{layout.ACTION}": source.action})
        except RolloutError as error:
            raise RolloutError(f"{source.path}: {error}") from error
        grid = source.grid(options.rate, rig.rates.control)
        messages = RigMessages(self.context.types)
        return EpisodeContent(
            rig=rig,
            found=found,
            topics=rig_topics(rig),
            steps=len(grid.rows),
            notes=(*grid.notes, *source.notes),
            messages=_messages(messages, source, rig, found.start_ns, grid),
        )

    def _rig(self) -> RigSpec:
        source, options = self.source, self.context.options
        simulated = bool(source.attributes.get(layout.SIM, False))
        kinds = {type(frames) for frames in source.frames.values()}
        jpeg = JpegFrames in kinds or (VideoFrames in kinds and options.videos_as == "jpeg")
        return rig_as_imported(options.load_rig(simulated=simulated), jpeg=jpeg)


def _messages(
    messages: RigMessages, source: SourceEpisode, rig: RigSpec, start_ns: int, grid: Grid
) -> Iterator[tuple[str, int, bytes]]:
    """Yield (topic, stamp in ns, message) of a whole episode in order of time."""
    step_ns = round(rig.rates.dt * NS_PER_S)
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
