"""Whether a checkpoint was trained on an arm like this one. Imports no torch."""

from __future__ import annotations

import numpy as np

from cosmos_policy_ros.model.statistics import Range, Statistics
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES, STATE_DIM
from cosmos_policy_ros.rig.spec import RigSpec

# Share of the stroke. Whoever demonstrates with a gripper opens it wider than this; the same stroke
# in metres (0.02 to 0.06) never gets there.
LEAST_OPENING = 0.1


def compare_with_rig(statistics: Statistics, rig: RigSpec) -> tuple[str, ...]:
    """Name what in a checkpoint's ranges does not fit the rig, one sentence each; none is best.

    A range may pass a position limit by as much as the safety gate clamps silently: what lies
    beyond, the gate will refuse. A gripper that never opens points to another unit.
    """
    warnings: list[str] = []
    for what, limits in (("actions", statistics.actions), ("proprio", statistics.proprio)):
        if limits.low.shape != (STATE_DIM,):
            warnings.append(
                f"the checkpoint's {what} have {limits.low.size} numbers, the rig '{rig.name}' has "
                f"{STATE_DIM}: it was not trained on this kind of rig"
            )
            continue
        warnings += _beyond_limits(what, limits, rig)
        warnings += _closed_grippers(what, limits, rig)
    return tuple(warnings)


def _beyond_limits(what: str, limits: Range, rig: RigSpec) -> list[str]:
    tolerance = np.full(STATE_DIM, rig.gate.joint_overshoot)
    tolerance[list(GRIPPER_INDICES)] = rig.gate.gripper_overshoot
    ends = (
        ("low", "lower", limits.low, rig.lower, rig.lower - limits.low),
        ("high", "upper", limits.high, rig.upper, limits.high - rig.upper),
    )
    found = []
    for index, name in enumerate(rig.joint_names):
        unit = "strokes" if index in GRIPPER_INDICES else "rad"
        for end, side, reach, limit, excess in ends:
            if excess[index] > tolerance[index]:
                found.append(
                    f"{name}: the checkpoint's {what} go as {end} as {reach[index]:.3f} {unit}, "
                    f"{excess[index]:.3f} past the {side} limit {limit[index]:.3f} of rig "
                    f"'{rig.name}' (tolerance {tolerance[index]:g})"
                )
    return found


def _closed_grippers(what: str, limits: Range, rig: RigSpec) -> list[str]:
    return [
        f"{rig.joint_names[index]}: the checkpoint's {what} never exceed {limits.high[index]:.3f}, "
        f"where 0 is closed and 1 is open: this gripper was not used, or is counted in another unit"
        for index in GRIPPER_INDICES
        if limits.high[index] < LEAST_OPENING
    ]
