"""A gripper's block of the rig file, from what its driver says closed and open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from cosmos_policy_ros.errors import RigError
from cosmos_policy_ros.rig.arms import Gripper
from cosmos_policy_ros.rig.config import did_you_mean

LEAST_TURN, LEAST_WAY = 0.3, 0.005  # rad of the motor, m of a finger; less is no stroke
MOST_UNSTEADY = 0.05  # of the stroke, from the lowest reading to the highest
FINGERS = 2.0  # a "linear" command is the distance between both

Joints = Mapping[str, float]


def calibrate(gripper: Gripper, closed: Sequence[Joints], opened: Sequence[Joints]) -> Gripper:
    """Return the block with measured ends; everything else stays as it was.

    Args:
        gripper: as it is in the rig file.
        closed: joint states, positions by name, while the fingers touch.
        opened: the same while they are as far apart as they go.

    Raises:
        RigError: the joints are not in the messages, it moved too little, or it was not held still.
    """
    if not closed or not opened:
        raise RigError(f"no joint state of gripper '{gripper.joint}' came; is the driver running?")
    turned = gripper.state_source == "angle"
    told = (_all(gripper.state_joint, joints) for joints in (closed, opened))
    shut, wide = ([gripper.reading(position) for position in positions] for positions in told)
    state = _ends(gripper, shut, wide, LEAST_TURN if turned else LEAST_WAY)
    command = gripper.command_closed, gripper.command_open
    if gripper.command_unit == "angle":
        angles = _all(gripper.joint, closed), _all(gripper.joint, opened)
        command = _ends(gripper, *angles, LEAST_TURN)
    elif gripper.command_unit == "linear":
        ways = _all(gripper.finger_joint, closed), _all(gripper.finger_joint, opened)
        one = _ends(gripper, *ways, LEAST_WAY)
        command = FINGERS * one[0], FINGERS * one[1]
    return replace(
        gripper,
        state_closed=round(state[0], 5),
        state_open=round(state[1], 5),
        command_closed=round(command[0], 4),
        command_open=round(command[1], 4),
    )


def _all(name: str, states: Sequence[Joints]) -> list[float]:
    return [_joint(name, joints) for joints in states]


def _joint(name: str, joints: Joints) -> float:
    if name not in joints:
        raise RigError(f"joint '{name}' is not in the message{did_you_mean(name, joints)}")
    return float(joints[name])


def _ends(
    gripper: Gripper, closed: Sequence[float], opened: Sequence[float], least: float
) -> tuple[float, float]:
    ends = median(closed), median(opened)
    stroke = abs(ends[1] - ends[0])
    if stroke < least:
        raise RigError(
            f"gripper '{gripper.joint}' went from {ends[0]:.4f} to {ends[1]:.4f}, by less than "
            f"{least:g}; close it wholly, then open it wholly"
        )
    for name, readings in (("closed", closed), ("open", opened)):
        if max(readings) - min(readings) > MOST_UNSTEADY * stroke:
            raise RigError(
                f"gripper '{gripper.joint}' moved while it was read {name}: {min(readings):.4f} to "
                f"{max(readings):.4f}; hold it still"
            )
    return ends
