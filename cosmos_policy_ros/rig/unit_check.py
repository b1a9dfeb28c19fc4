"""Are a recording's joints in radians, its grippers from 0 closed to 1 open, as the rig has them?

Another unit is never converted silently: a wrong guess would move arms. It is refused with the
joint, the value, the limit, and the unit that it looks like.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.vx300s import TICK

Floats = NDArray[np.float64]

JOINT_MARGIN = 1.0
"""How far past a joint's limit a recorded value may be [rad]. Leaders turn up to 0.74 further than
followers do; a waist's limits differ from rig to rig."""
GRIPPER_MARGIN = 0.45
"""The same for grippers [strokes]. With constants of another gripper, states of 1.33 are found."""
# A finger stands 0.0109 to 0.0624 m from the middle, whichever published constants it has, and at
# least this far it moves when it is used. In strokes, that would be a gripper that never opens.
_FINGER = (0.0105, 0.0645)  # m
_FINGER_WAY = 0.004  # m
_ANGLE = (
    -1.8,
    2.0,
)  # rad; of gripper motors, leaders' and followers', with any published constants
_FAILED_READ = -math.pi  # what a motor's driver publishes when it could not read
_UNREAD = "; it looks like a motor that could not be read"
_USED = 0.2  # of a stroke, or rad; a gripper that moves further is used
_SHOWN = 3


def check_units(rig: RigSpec, values: Mapping[str, Floats]) -> None:
    """Refuse values that the rig's joints cannot have; see :func:`unit_faults`.

    Raises:
        RolloutError: names up to three joints, each with value, row, limit and likely unit.
    """
    if fault := describe_faults(unit_faults(rig, values)):
        raise RolloutError(fault)


def unit_faults(rig: RigSpec, values: Mapping[str, Floats]) -> list[str]:
    """Return what the rig's joints cannot have, a text per joint; none is best.

    Args:
        rig: has the limits.
        values: (T, 14) by the names for messages, such as "/action"; at least one row of each.
    """
    faults: list[str] = []
    for where, found in values.items():
        for index, joint in enumerate(rig.joint_names):
            column = found[:, index]
            if index in GRIPPER_INDICES:
                others = [each[:, index] for name, each in values.items() if name != where]
                fault = _gripper_fault(column, others)
            else:
                fault = _joint_fault(column, rig.lower[index], rig.upper[index])
            if fault:
                faults.append(f"{where}: {joint} {fault}")
    return faults


def describe_faults(faults: Sequence[str]) -> str:
    """Return the first of such faults, and what to do, as one text; "" for none."""
    if not faults:
        return ""
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    advice = (
        "cut these rows out of the file"
        if all(fault.endswith(_UNREAD) for fault in faults)
        else "convert the file: joints in radians (degrees times pi/180), grippers from 0 closed "
        "to 1 open; or give the --rig that it is of"
    )
    return f"{'; '.join(faults[:_SHOWN])}{more}; {advice}"


def _joint_fault(column: Floats, lower: float, upper: float) -> str:
    """Tell how a joint's values [rad] pass its limits; "" where they do not."""
    row, excess = _furthest(column, lower, upper)
    if excess <= JOINT_MARGIN:
        return ""
    value = column[row]
    return (
        f"is {value:.4g} at row {row}, the rig's limits are {lower:.4g} to {upper:.4g} rad"
        f"{_joint_unit(column, lower, upper)}"
    )


def _joint_unit(column: Floats, lower: float, upper: float) -> str:
    degrees = np.radians(column)
    ticks = column * TICK
    row, _ = _furthest(column, lower, upper)
    if abs(column[row] - _FAILED_READ) < 1e-3:
        return _UNREAD
    if _furthest(degrees, lower, upper)[1] <= JOINT_MARGIN:
        return "; it looks like degrees"
    centred = ticks - math.pi
    if min(_furthest(t, lower, upper)[1] for t in (ticks, centred)) <= JOINT_MARGIN:
        return "; it looks like an encoder's ticks"
    return "; its unit is none that is known here"


def _gripper_fault(column: Floats, others: Sequence[Floats]) -> str:
    """Tell how a gripper's values are none from 0 to 1; "" where they are.

    One that is never opened stands near 0, as metres do; so metres are told by the states when the
    actions (``others``) show that it was used, or are metres as well, and the other way round.
    """
    low, high = float(column.min()), float(column.max())
    if _like_metres(column) and any(_like_metres(o) or np.ptp(o) >= _USED for o in others):
        return (
            f"goes from {low:.4g} to {high:.4g}, where 0 is closed and 1 is open: "
            f"it looks like a finger's metres"
        )
    row, excess = _furthest(column, 0.0, 1.0)
    if excess <= GRIPPER_MARGIN:
        return ""
    if abs(column[row] - _FAILED_READ) < 1e-3:
        return f"is {column[row]:.4g} at row {row}{_UNREAD}"
    if _ANGLE[0] <= low and high <= _ANGLE[1]:
        unit = "a motor's angle in radians"
    elif math.radians(low) >= _ANGLE[0] and math.radians(high) <= _ANGLE[1]:
        unit = "degrees, or per cent of its stroke" if low >= 0 and high <= 100 else "degrees"
    elif low >= 0 and high <= 1000:
        unit = "millimetres, or parts of a thousand"
    else:
        unit = "none that is known here"
    return (
        f"is {column[row]:.4g} at row {row}, the rig's limits are 0 (closed) to 1 (open); its unit "
        f"looks like {unit}"
    )


def _like_metres(column: Floats) -> bool:
    low, high = float(column.min()), float(column.max())
    return _FINGER[0] <= low and high <= _FINGER[1] and high - low >= _FINGER_WAY


def _furthest(column: Floats, lower: float, upper: float) -> tuple[int, float]:
    """Return the row that is furthest past the limits, and how far; below 0 is within them."""
    past = np.maximum(lower - column, column - upper)
    row = int(past.argmax())
    return row, float(past[row])
