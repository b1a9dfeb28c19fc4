"""Feeds a rig's sources as its drivers would."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.observation import SensorBuffer
from cosmos_policy_ros.rig.spec import CAMERA_ROLES

NAMES = (
    "waist shoulder elbow forearm_roll wrist_angle wrist_rotate gripper left_finger right_finger"
)
JOINTS = [0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.1, 0.038, -0.038]


def image(value: int, encoding: str = "rgb8") -> SimpleNamespace:
    """Return an image message of one grey value."""
    pixels = np.full((48, 64, 3), value, np.uint8)
    return SimpleNamespace(encoding=encoding, height=48, width=64, step=192, data=pixels.tobytes())


def fill(
    sources: SensorBuffer, at: float, skip: str = "", pose: NDArray[np.float64] | None = None
) -> None:
    """Let every camera and arm but ``skip`` report at ``at`` seconds, images ever changing.

    The arms stand at JOINTS, or where (14,) ``pose`` says, grippers apart.
    """
    stamp = int(at * NS_PER_S)
    for role in CAMERA_ROLES:
        if role != skip:
            sources.add_image(role, image(int(at * 25) % 256), stamp)
    for side, first in (("left", 0), ("right", 7)):
        if side != skip:
            joints = JOINTS if pose is None else [*pose[first : first + 6], *JOINTS[6:]]
            sources.add_joint_state(side, NAMES.split(), joints, stamp)
