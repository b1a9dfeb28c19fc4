"""The ranges a checkpoint was trained in, and the way into and out of [-1, 1].

True minimum and maximum over the demonstrations, not quantiles. Nothing is clipped: a value beyond
the demonstrations is legal for the model, and safety is the gate's business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.errors import CheckpointError
from cosmos_policy_ros.rig.config import did_you_mean
from cosmos_policy_ros.rig.untrusted import parse_json, read_text, reading, shown

MEASURES = ("min", "max", "mean", "std", "median")
KEYS = tuple(f"{what}_{measure}" for what in ("actions", "proprio") for measure in MEASURES)

# Narrower than one float32 step of a joint angle near 1 rad: such a dimension never moved, and
# dividing by its range would amplify rounding into the whole of [-1, 1].
CONSTANT_RANGE = 1e-8


@dataclass(frozen=True)
class Range:
    """One quantity's range per dimension, in policy units.

    Attributes:
        low: (d,) minimum.
        high: (d,) maximum.
    """

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
    """Ranges of the actions and of the proprioception, each (14,) for ALOHA."""

    actions: Range
    proprio: Range

    def equals(self, other: Statistics) -> bool:
        """Return whether both scale alike, to the last bit."""
        mine, theirs = (self.actions, self.proprio), (other.actions, other.proprio)
        return all(
            np.array_equal(one.low, two.low) and np.array_equal(one.high, two.high)
            for one, two in zip(mine, theirs, strict=True)
        )


def load_statistics(path: Path, action_dims: int, proprio_dims: int) -> Statistics:
    """Read the flat JSON with ten keys ("actions_min", ... "proprio_median") that NVIDIA publishes.

    Only the minima and maxima are used; the others must be there so that a half-written or
    foreign file is noticed.

    Raises:
        CheckpointError: unreadable, a missing or unknown key, wrong length, a number that is not
            finite, or a maximum below its minimum.
    """
    with reading(path, "JSON", CheckpointError):
        content = parse_json(read_text(path))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, expected ten named lists")
    for key in content:
        if key not in KEYS:
            raise CheckpointError(f"{path}: unknown key '{shown(key)}'{did_you_mean(key, KEYS)}")
    dims = {"actions": action_dims, "proprio": proprio_dims}
    columns = {key: _column(content, key, dims[key.split("_")[0]], path) for key in KEYS}
    return Statistics(
        actions=_range(columns, "actions", path), proprio=_range(columns, "proprio", path)
    )


def measure(actions: Array, proprio: Array) -> dict[str, list[float]]:
    """Return the ten entries of the file for (n, d) actions and proprioception, policy units."""
    content = {}
    for what, values in (("actions", actions), ("proprio", proprio)):
        for measure in MEASURES:
            content[f"{what}_{measure}"] = getattr(np, measure)(values, axis=0).tolist()
    return content


def write_statistics(path: Path, content: Mapping[str, list[float]]) -> None:
    """Write the file. Raises CheckpointError when the disk refuses."""
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
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


def _column(content: Mapping[str, Any], key: str, dims: int, path: Path) -> Array:
    if key not in content:
        raise CheckpointError(f"{path}: key '{key}' is missing")
    try:
        column = np.asarray(content[key], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise CheckpointError(f"{path}: '{key}' is not a list of numbers") from None
    if column.shape != (dims,):
        raise CheckpointError(
            f"{path}: '{key}' has shape {column.shape}, but the checkpoint's config asks for "
            f"{dims} numbers"
        )
    if not np.isfinite(column).all():
        where = int(np.flatnonzero(~np.isfinite(column))[0])
        raise CheckpointError(f"{path}: '{key}'[{where}] is {column[where]}, not a finite number")
    return column


def _range(columns: Mapping[str, Array], what: str, path: Path) -> Range:
    low, high = columns[f"{what}_min"], columns[f"{what}_max"]
    if (high < low).any():
        where = int(np.flatnonzero(high < low)[0])
        raise CheckpointError(
            f"{path}: '{what}_max'[{where}] = {high[where]} lies below "
            f"'{what}_min'[{where}] = {low[where]}"
        )
    return Range(low, high)
