"""Whether a checkpoint was trained on an arm and cameras like these. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cosmos_policy_ros.model.statistics import Range, Statistics
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES, STATE_DIM
from cosmos_policy_ros.rig.self_check import Check
from cosmos_policy_ros.rig.spec import RigSpec

# Share of the stroke. Whoever demonstrates with a gripper opens it wider than this; the same stroke
# in metres (0.02 to 0.06) never gets there.
LEAST_OPENING = 0.1
# Share by which a picture may be wider or narrower than those of training. Rectifying and binning
# cost a few rows; 16:9 is 33 % wider than 4:3, and a circle becomes as much of an ellipse.
ASPECT_TOLERANCE = 0.05


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


def check_pictures(
    sizes: Mapping[str, tuple[int, int]], trained_on: Sequence[int], rig: RigSpec
) -> Check:
    """Look at whether the cameras' pictures have the aspect ratio of those trained on.

    The model takes squares: every picture is squeezed into one, and a wider camera's more.

    Args:
        sizes: rows and columns of the newest picture by camera role.
        trained_on: rows and columns of the checkpoint's training pictures; empty where nothing was
            learned from pictures.
        rig: whose cameras may be excepted, with ``any_aspect``.
    """
    what, excepted = "pictures", {c.role for c in rig.cameras if c.any_aspect}
    if not sizes:
        return Check(what, False, "no camera has sent one", "start the cameras' drivers")
    told = ", ".join(f"{role} {height}x{width}" for role, (height, width) in sizes.items())
    told += " (rows x columns)"
    if not trained_on:
        return Check(what, True, told)
    wanted = trained_on[1] / trained_on[0]
    off = [
        f"{role} {height}x{width}, {width / height / wanted - 1:+.0%} in width"
        for role, (height, width) in sizes.items()
        if role not in excepted and not _alike(width / height, wanted)
    ]
    if not off:
        return Check(what, True, told)
    return Check(
        what,
        False,
        f"{'; '.join(off)} against the checkpoint's {trained_on[0]}x{trained_on[1]} (rows x "
        f"columns; at most {ASPECT_TOLERANCE:.0%}): it would see everything squeezed",
        "set the cameras' profiles to that aspect ratio; or, if the checkpoint was trained on "
        "these, camera_size in its config.yaml; or any_aspect: true at the camera in the rig file",
    )


def _alike(found: float, wanted: float) -> bool:
    return max(found / wanted, wanted / found) <= 1 + ASPECT_TOLERANCE


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
