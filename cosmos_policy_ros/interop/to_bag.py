"""Rows at a rate become the messages of a bag.

Control step t is seen at ``start + t * dt`` and its action is due one dt later, as on a rig that
answers at once. Receive stamps are the header stamps: nothing was on its way anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cosmos_policy_ros.bags.jpeg import SUFFIX
from cosmos_policy_ros.bags.messages import RigMessages
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.episodes.topics import absolute, rig_topics
from cosmos_policy_ros.interop.foreign_episode import EpisodeContent, ImportContext
from cosmos_policy_ros.interop.row_episode import RowEpisode, repeated
from cosmos_policy_ros.interop.source_rate import Grid
from cosmos_policy_ros.rig.arms import ARM_DIM, Arms
from cosmos_policy_ros.rig.jpeg import to_jpeg
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


@dataclass(frozen=True)
class OpenRows:
    """An open episode of rows, and the operator's options."""

    source: RowEpisode
    context: ImportContext

    def digest(self) -> str:
        """Return a sha256 (hex) by which the same episode is known again."""
        return self.source.digest()

    def content(self) -> EpisodeContent:
        """Check units, rate and what else it tells. Raises RolloutError."""
        source, options = self.source, self.context.options
        rig = self._rig()
        found = source.metadata(self.context.prompts, options.prompt)
        try:
            check_units(rig, dict(zip(source.keys, (source.qpos, source.action), strict=True)))
        except RolloutError as error:
            raise RolloutError(f"{source.where}: {error}") from error
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
        options = self.context.options
        kinds = {frames.kind for frames in self.source.frames.values()}
        jpeg = "jpeg" in kinds or ("video" in kinds and options.videos_as == "jpeg")
        return rig_as_imported(options.load_rig(simulated=self.source.simulated), jpeg=jpeg)


def _messages(
    messages: RigMessages, source: RowEpisode, rig: RigSpec, start_ns: int, grid: Grid
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
