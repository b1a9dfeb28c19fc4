"""What an HDF5 file tells of its rate: attributes, stamps, videos, a known layout, velocities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice

import h5py
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.untrusted import UnreadableError, shown
from cosmos_policy_ros.interop.hdf5_checks import attribute, find, reach
from cosmos_policy_ros.interop.source_rate import (
    LEAST_RATE,
    MOST_RATE,
    STAMPS,
    Pace,
    fitting_rate,
    seconds_of,
)

RELEASED: Mapping[str, float] = {"layout (the released client's)": 25.0}
"""What files of the released client run at [Hz]."""
# Names of attributes of the root, and of data sets of one number, that recorders write; in any
# case. The first are rows per second, the others seconds per row.
_RATES = {
    *("fps", "hz", "rate", "freq", "frequency", "frame_rate", "framerate"),
    *("sample_rate", "sampling_rate", "sync_sample_rate", "record_rate", "recording_rate"),
    *("control_rate", "control_freq", "control_frequency", "control_hz", "data_rate"),
}
_PERIODS = {"dt", "control_dt", "control_timestep", "timestep"}
RATE_SETS = ("fps", "hz", "rate", "frequency", "dt")
STAMP_SETS = tuple(
    f"{group}{name}"
    for group in ("", "observations/")
    for name in ("timestamps", "timestamp", "time", "times", "stamps", "stamp", "timestamp_ns")
)
_MOST_ATTRIBUTES = 256


def pace_of(
    file: h5py.File,
    qpos: NDArray[np.float64],
    qvel: NDArray[np.float64] | None,
    videos: Mapping[str, float],
    layout: Mapping[str, float],
) -> Pace:
    """Return what a file tells of its rate.

    Args:
        file: open.
        qpos: (T, 14) [rad].
        qvel: (T, 14) [rad/s], which may have NaN, or None.
        videos: rates [Hz] that videos tell.
        layout: what the layout tells, for a file in which nothing else does.

    Raises:
        UnreadableError: one of those objects is a link, or claims more than the file holds.
    """
    doubts: list[str] = []
    stamps = _stamps(file, len(qpos), doubts)
    told = {} if stamps is None else {STAMPS: (len(stamps) - 1) / float(stamps[-1])}
    told |= _attributes(file) | _scalars(file) | dict(videos)
    return Pace(
        told=told or dict(layout),
        stamps=stamps,
        fitting=None if qvel is None else fitting_rate(qpos, qvel),
        doubts=tuple(doubts),
    )


def _attributes(file: h5py.File) -> dict[str, float]:
    found = {}
    for key in islice(file.attrs, _MOST_ATTRIBUTES):
        if key.lower() in _RATES | _PERIODS:
            with suppress(UnreadableError):  # an array, or another's text by the same name
                rate = _as_rate(key, attribute(file, key))
                if rate is not None:
                    found[f"attribute {shown(key)}"] = rate
    return found


def _scalars(file: h5py.File) -> dict[str, float]:
    found = {}
    for key in RATE_SETS:
        dataset = reach(file, key)
        if isinstance(dataset, h5py.Dataset) and dataset.size == 1 and dataset.dtype.kind in "fiu":
            find(file, key)
            rate = _as_rate(key, dataset[()])
            if rate is not None:
                found[f"data set /{key}"] = rate
    return found


def _as_rate(key: str, value: object) -> float | None:
    """Return a value as a rate [Hz]; None where it can be none."""
    try:
        number = float(np.asarray(value).item())
    except (TypeError, ValueError, OverflowError):
        return None
    if key.lower() in _PERIODS and number:
        number = 1 / number
    return number if math.isfinite(number) and LEAST_RATE <= number <= MOST_RATE else None


def _stamps(file: h5py.File, rows: int, doubts: list[str]) -> NDArray[np.float64] | None:
    """Return stamps of the rows as seconds from the first on."""
    for key in STAMP_SETS:
        dataset = reach(file, key)
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiu":
            continue
        if dataset.shape not in ((rows,), (rows, 1)):
            continue
        find(file, key)
        values = np.asarray(dataset[()]).reshape(rows)
        if not values.any():
            continue  # made, and never written
        try:
            floats = values.dtype.kind == "f"
            return seconds_of(values.astype(np.float64) if floats else values.astype(np.int64))
        except ValueError as error:
            doubts.append(f"its /{key} {error}")
    return None
