"""The ranges a checkpoint was trained in, and the way into and out of [-1, 1].

True minimum and maximum over the demonstrations, not quantiles. Nothing is clipped: a value beyond
the demonstrations is legal for the model, and safety is the gate's business. Imports no torch.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.core.files import replace_text
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.core.untrusted import parse_json, read_text, reading, shown
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES, STATE_DIM
from cosmos_policy_ros.rig.self_check import Check
from cosmos_policy_ros.rig.spec import RigSpec

MEASURES = ("min", "max", "mean", "std", "median")
UNUSED_SHOWN = 5
KEYS = tuple(f"{what}_{measure}" for what in ("actions", "proprio") for measure in MEASURES)

# Narrower than one float32 step of a joint angle near 1 rad: such a dimension never moved, and
# dividing by its range would amplify rounding into the whole of [-1, 1].
CONSTANT_RANGE = 1e-8


@dataclass(frozen=True)
class Range:
    """One quantity's minimum and maximum (d,) per dimension, in policy units."""

    low: Array
    high: Array

    def normalise(self, values: Array) -> Array:
        """Map (..., d) from [low, high] to [-1, 1]; a constant dimension becomes 0."""
        span = self.high - self.low
        constant = span < CONSTANT_RANGE
        scaled = 2 * (values - self.low) / np.where(constant, 1.0, span) - 1
        return np.where(constant, 0.0, scaled)

    def unnormalise(self, values: Array) -> Array:
        """Map (..., d) from [-1, 1] to [low, high]; a constant dimension keeps its constant."""
        span = self.high - self.low
        return np.where(span < CONSTANT_RANGE, self.low, (values + 1) / 2 * span + self.low)


@dataclass(frozen=True)
class Statistics:
    """Ranges of actions and proprioception, each (14,) for ALOHA; ``unused`` are other keys."""

    actions: Range
    proprio: Range
    unused: tuple[str, ...] = ()

    def equals(self, other: Statistics) -> bool:
        """Return whether both scale alike, to the last bit."""
        return all(
            np.array_equal(one.low, two.low) and np.array_equal(one.high, two.high)
            for one, two in ((self.actions, other.actions), (self.proprio, other.proprio))
        )


def load_statistics(path: Path, action_dims: int, proprio_dims: int) -> Statistics:
    """Read the flat JSON with ten keys ("actions_min", ... "proprio_median") that NVIDIA publishes.

    Only the minima and maxima are used; the others must be there so that a half-written or
    foreign file is noticed.

    Raises:
        CheckpointError: unreadable, a missing key, wrong length, a number that is not
            finite, or a maximum below its minimum.
    """
    with reading(path, "JSON", CheckpointError):
        content = parse_json(read_text(path))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, expected ten named lists")
    unused = tuple(key for key in content if key not in KEYS)
    columns = {}
    for key in KEYS:
        if key not in content:
            near = difflib.get_close_matches(key, [shown(other) for other in unused], n=1)
            hint = f"; is it '{near[0]}'?" if near else ""
            raise CheckpointError(f"{path}: key '{key}' is missing{hint}")
        try:
            column = np.asarray(content[key], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise CheckpointError(f"{path}: '{key}' is not a list of numbers") from None
        dims = action_dims if key.startswith("actions") else proprio_dims
        if column.shape != (dims,):
            raise CheckpointError(
                f"{path}: '{key}' has shape {column.shape}, but the checkpoint's config asks for "
                f"{dims} numbers"
            )
        if not np.isfinite(column).all():
            where = int(np.flatnonzero(~np.isfinite(column))[0])
            raise CheckpointError(
                f"{path}: '{key}'[{where}] is {column[where]}, not a finite number"
            )
        columns[key] = column
    for what in ("actions", "proprio"):
        low, high = columns[f"{what}_min"], columns[f"{what}_max"]
        if (high < low).any():
            where = int(np.flatnonzero(high < low)[0])
            raise CheckpointError(
                f"{path}: '{what}_max'[{where}] = {high[where]} lies below "
                f"'{what}_min'[{where}] = {low[where]}"
            )
    return Statistics(
        actions=Range(columns["actions_min"], columns["actions_max"]),
        proprio=Range(columns["proprio_min"], columns["proprio_max"]),
        unused=unused,
    )


def measure(actions: Array, proprio: Array) -> dict[str, list[float]]:
    """Return the ten entries of the file for (n, d) actions and proprioception, policy units."""
    content = {}
    for what, values in (("actions", actions), ("proprio", proprio)):
        for measure in MEASURES:
            content[f"{what}_{measure}"] = getattr(np, measure)(values, axis=0).tolist()
    return content


def widen(content: Mapping[str, list[float]], least: Array) -> dict[str, list[float]]:
    """Return such entries with no range below ``least`` (d,), policy units, about its middle.

    A dimension that rests moves by a tick of its encoder now and then. Stretched to [-1, 1], that
    noise would be the most violent motion that there is. One that never moved at all stays: always
    0.
    """
    widened = dict(content)
    for what in ("actions", "proprio"):
        low, high = np.array(content[f"{what}_min"]), np.array(content[f"{what}_max"])
        narrow = (high - low < least) & (high - low >= CONSTANT_RANGE)
        middle = (low + high) / 2
        widened[f"{what}_min"] = np.where(narrow, middle - least / 2, low).tolist()
        widened[f"{what}_max"] = np.where(narrow, middle + least / 2, high).tolist()
    return widened


def write_statistics(path: Path, content: Mapping[str, list[float]]) -> None:
    """Write the file. Raises CheckpointError when the disk refuses."""
    try:
        replace_text(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error


def constant_dimensions(statistics: Statistics) -> list[str]:
    """Return the dimensions that never moved, such as "actions[3]"; they normalise to 0."""
    ranges = {"actions": statistics.actions, "proprio": statistics.proprio}
    return [
        f"{what}[{index}]"
        for what, each in ranges.items()
        for index in np.flatnonzero(each.high - each.low < CONSTANT_RANGE)
    ]


def describe_unused(statistics: Statistics) -> str:
    """Say what else the file has, of many entries a few; empty if nothing."""
    unused = statistics.unused
    if not unused:
        return ""
    named = ", ".join(shown(key) for key in unused[:UNUSED_SHOWN])
    rest = f" and {len(unused) - UNUSED_SHOWN} more" if len(unused) > UNUSED_SHOWN else ""
    return f"the statistics have entries that nothing reads: {named}{rest}"


# Whether a checkpoint was trained on an arm and cameras like these.

# Fraction of the stroke. A gripper that is used opens wider than this; the same stroke in metres
# (0.02 to 0.06) never gets there.
LEAST_OPENING = 0.1
# Fraction by which an image may be wider or narrower than those of training. Rectifying and binning
# cost a few rows; 16:9 is 33 % wider than 4:3, and a circle becomes as much of an ellipse.
ASPECT_TOLERANCE = 0.05


def compare_with_rig(statistics: Statistics, rig: RigSpec) -> tuple[str, ...]:
    """Name what in a checkpoint's ranges does not fit the rig, one sentence each; none is best.

    A range may pass a position limit by as much as the safety gate clamps silently: what lies
    beyond, the gate will refuse. A gripper that never opens points to another unit.
    """
    warnings: list[str] = []
    tolerance = np.full(STATE_DIM, rig.gate.joint_overshoot)
    tolerance[list(GRIPPER_INDICES)] = rig.gate.gripper_overshoot
    for what, limits in (("actions", statistics.actions), ("proprio", statistics.proprio)):
        if limits.low.shape != (STATE_DIM,):
            warnings.append(
                f"the checkpoint's {what} have {limits.low.size} numbers, the rig '{rig.name}' has "
                f"{STATE_DIM}: it was not trained on this kind of rig"
            )
            continue
        ends = (
            ("low", "lower", limits.low, rig.lower, rig.lower - limits.low),
            ("high", "upper", limits.high, rig.upper, limits.high - rig.upper),
        )
        for index, name in enumerate(rig.joint_names):
            unit = "strokes" if index in GRIPPER_INDICES else "rad"
            warnings += [
                f"{name}: the checkpoint's {what} go as {end} as {reach[index]:.3f} {unit}, "
                f"{excess[index]:.3f} past the {side} limit {limit[index]:.3f} of rig "
                f"'{rig.name}' (tolerance {tolerance[index]:g})"
                for end, side, reach, limit, excess in ends
                if excess[index] > tolerance[index]
            ]
        warnings += [
            f"{rig.joint_names[index]}: the checkpoint's {what} never exceed "
            f"{limits.high[index]:.3f}, where 0 is closed and 1 is open: this gripper was not "
            f"used, or is counted in another unit"
            for index in GRIPPER_INDICES
            if limits.high[index] < LEAST_OPENING
        ]
    return tuple(warnings)


def check_images(
    sizes: Mapping[str, tuple[int, int]], trained_on: Sequence[int], rig: RigSpec
) -> Check:
    """Check that the cameras' images have the aspect ratio of those trained on.

    The model takes squares: every image is squeezed into one, and a wider camera's more.

    Args:
        sizes: rows and columns of the newest image by camera role.
        trained_on: rows and columns of the checkpoint's training images; empty where nothing was
            learned from images.
        rig: its cameras with ``any_aspect`` are excepted.
    """
    what, excepted = "images", {c.role for c in rig.cameras if c.any_aspect}
    if not sizes:
        return Check(what, False, "no camera has sent one", "start the cameras' drivers")
    off = []
    for role, (height, width) in sizes.items():
        if trained_on and role not in excepted:
            wider = width / height / (trained_on[1] / trained_on[0])
            if max(wider, 1 / wider) > 1 + ASPECT_TOLERANCE:
                off.append(f"{role} {height}x{width}, {wider - 1:+.0%} in width")
    if not off:
        listed = ", ".join(f"{role} {height}x{width}" for role, (height, width) in sizes.items())
        return Check(what, True, f"{listed} (rows x columns)")
    return Check(
        what,
        False,
        f"{'; '.join(off)} against the checkpoint's {trained_on[0]}x{trained_on[1]} (rows x "
        f"columns; at most {ASPECT_TOLERANCE:.0%}): it would see everything squeezed",
        "set the cameras' profiles to that aspect ratio; or, if the checkpoint was trained on "
        "these, camera_size in its config.yaml; or any_aspect: true at the camera in the rig file",
    )
