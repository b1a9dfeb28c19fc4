"""The rig of an imported episode: the lab's own file, changed where the source differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import yaml

from cosmos_policy_ros.rig.arms import Arm, Arms
from cosmos_policy_ros.rig.limits import Rates
from cosmos_policy_ros.rig.spec import Camera, RigSpec
from cosmos_policy_ros.rollouts.pictures import SUFFIX


def rig_as_imported(rig: RigSpec, *, jpeg: bool) -> RigSpec:
    """Return the rig as the bag of an imported episode shows it.

    One joint state per control step, pictures of one kind, trajectories that bear their start. A
    gripper is read from its finger: past its ends, where recorded states go by some per cent, a
    crank has no angle. Two equal pictures in a row are no sign of a frozen camera here: videos and
    simulators have them whenever nothing moves.

    Args:
        rig: of the lab.
        jpeg: the pictures are JPEG files, else raw RGB.
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
