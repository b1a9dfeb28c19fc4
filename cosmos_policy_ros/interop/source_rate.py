"""How fast a recording was made, and which of its rows, or what between them, each control step is.

A rate is never guessed: a file tells it, or an operator does, and positions and velocities that
disagree with it refuse it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES

Floats = NDArray[np.float64]

LEAST_RATE, MOST_RATE = 5.0, 1000.0
"""Rows per second that a recording of arms may have [Hz]; fewer are too far apart to be joined."""
STAMPS = "stamps"
"""What tells a rate that was measured, in :attr:`Pace.told`; others say what was meant."""
AGREE = 1.02
"""Factor between two things in a file that tell the same rate."""
CONTRADICT = 1.15
"""Factor between a rate that was meant and the one that stamps, or positions and velocities, show,
from which on it is refused. Recorders run some per cent slower than they say; 25 and 30 Hz are 1.2
apart."""
MAX_GAP = 0.25
"""Seconds between two rows that may be interpolated: beyond it the arms may have done anything."""
_UNEVEN = 0.25  # of a control step, by which stamps may be off an even pace
_EXACT = 1e-3  # by which a rate may be off a multiple of the control rate
# A stamp's unit by the spacing of the rows; the ranges, of 5 to 500 Hz, do not touch.
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_SPACING = (0.002, 0.2)  # s
# Velocities are summed and compared with the way over this many rows: noise and a velocity that
# lags by a row weigh little over it.
_WINDOW = 5
_LEAST_WINDOWS = 10
_LEAST_WAY = 0.02  # rad; of a joint within an episode, to count as moving
_LEAST_CORRELATION = 0.95  # noise of less turns the rate by 1.05 at most
_IMPOSSIBLE_SPEED = 10.0  # rad/s; three times a servo's
_COMMON_RATES = (5, 10, 15, 20, 25, 30, 40, 50, 60, 100, 200)


@dataclass(frozen=True)
class Pace:
    """What a file tells of its rate.

    Attributes:
        told: rates [Hz] by what tells them, such as "attribute fps"; stamps come first.
        stamps: (T,) seconds from the first row on, or None.
        fitting: the rate [Hz] at which positions and velocities agree; None where velocities are
            not measured, or nothing moves.
        doubts: why something that looks like it tells no rate, one text each.
    """

    told: Mapping[str, float]
    stamps: Floats | None = None
    fitting: float | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """The control steps of a recording.

    Attributes:
        rows: (N,) the row nearest to each step, ascending; a row may come again.
        places: (N,) where each step is between the rows; None where it is a row.
        notes: what was done to the rate, for a report.
    """

    rows: NDArray[np.int64]
    places: Floats | None
    notes: tuple[str, ...]

    def values(self, of_rows: Floats) -> Floats:
        """Return (N, D) of (T, D): those of a row, or interpolated linearly between two."""
        if self.places is None:
            return np.asarray(of_rows[self.rows])
        # Not numpy's interp: a step on a row gives the row's very number here.
        below = np.minimum(np.floor(self.places).astype(np.int64), len(of_rows) - 2)
        share = (self.places - below)[:, None]
        return np.asarray(of_rows[below] * (1 - share) + of_rows[below + 1] * share)


def control_grid(pace: Pace, count: int, given: float | None, control: float) -> Grid:
    """Return the control steps of a recording.

    Where its rate is a multiple of the rig's, every so many rows are taken. Else steps are put
    between the rows by their stamps: time is never stretched.

    Args:
        pace: what the file tells.
        count: its rows.
        given: the rate that an operator gives [Hz]; None for what the file tells.
        control: of the rig [Hz].

    Raises:
        RolloutError: no rate is told, or several; it is outside its range, or positions and
            velocities contradict it; or the stamps have a gap.
    """
    rate, by = _rate(pace, given)
    stamps = pace.stamps if given is None else None
    if stamps is not None:
        _check_gaps(stamps)
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise RolloutError(
            f"{rate:g} Hz, {by}, is no rate of a recording; expected {LEAST_RATE:g} to "
            f"{MOST_RATE:g} rows per second"
        )
    if pace.fitting is not None and not _near(rate, pace.fitting, CONTRADICT):
        raise RolloutError(
            f"{rate:g} Hz, {by}, is not what positions and velocities in the file agree at, "
            f"which is about {_rounded(pace.fitting):g} Hz; give --rate "
            f"{_rounded(pace.fitting):g}, or take the velocities out if they are wrong"
        )
    notes = [
        f"{rate:g} Hz as given, though by its {name} it is {other:g}"
        for name, other in pace.told.items()
        if given is not None and not _near(rate, other, AGREE)
    ]
    stride = round(rate / control)
    even = stamps is None or _unevenness(stamps) < _UNEVEN / control
    if stride >= 1 and even and math.isclose(stride * control, rate, rel_tol=_EXACT):
        notes += [f"every {_ordinal(stride)} row of {rate:g} Hz"] if stride > 1 else []
        return Grid(np.arange(0, count, stride), None, tuple(notes))
    seconds = np.arange(count) / rate if stamps is None else stamps
    steps = math.floor(seconds[-1] * control + _EXACT) + 1
    times = np.minimum(np.arange(steps) / control, seconds[-1])
    places = np.interp(times, seconds, np.arange(count))
    rows = np.floor(places + 0.5).astype(np.int64)
    notes.append(f"{rate:.4g} Hz resampled to {control:g} Hz by stamps")
    return Grid(rows, places, tuple(notes))


def fitting_rate(qpos: Floats, qvel: Floats) -> float | None:
    """Return the rate [Hz] at which positions and velocities of the arms agree.

    Args:
        qpos: (T, 14) [rad] and grippers, which are not looked at: drivers measure no speed of
            fingers.
        qvel: (T, 14) [rad/s]; may have NaN.

    Returns:
        None where velocities are zeros, no joint moves, or the two do not go together.
    """
    if len(qpos) < _WINDOW + 1 or qpos.shape != qvel.shape:
        return None
    arms = np.setdiff1d(np.arange(qpos.shape[1]), GRIPPER_INDICES)
    positions, speeds = qpos[:, arms], qvel[:, arms].copy()
    speeds[~(np.abs(speeds) < _IMPOSSIBLE_SPEED)] = np.nan
    way = positions[_WINDOW:] - positions[:-_WINDOW]
    # The mean of two rows' speeds is that between them; summed up it is the way times the rate.
    between = (speeds[1:] + speeds[:-1]) / 2
    summed = np.stack([between[i : len(between) - _WINDOW + 1 + i] for i in range(_WINDOW)]).sum(0)
    good = np.isfinite(summed) & (np.ptp(positions, axis=0) > _LEAST_WAY)
    if np.count_nonzero(good) < _LEAST_WINDOWS:
        return None
    way, summed = way[good], summed[good]
    scale = float(np.sqrt((way**2).sum() * (summed**2).sum()))
    if scale == 0 or float((way * summed).sum()) / scale < _LEAST_CORRELATION:
        return None
    rate = float(np.sqrt((summed**2).sum() / (way**2).sum()))
    # Beyond any recorder's, the velocities are in another unit, or those of motors before a gear.
    return rate if _SPACING[0] <= 1 / rate <= _SPACING[1] else None


def seconds_of(stamps: NDArray[np.int64] | Floats) -> Floats:
    """Return stamps of rows as seconds from the first one on, whatever their unit.

    Args:
        stamps: (T,) in seconds, milliseconds, microseconds or nanoseconds, from any start.

    Raises:
        ValueError: they do not increase, or are no stamps of 5 to 500 rows per second.
    """
    passed = (stamps - stamps[0]).astype(np.float64)
    steps = np.diff(passed)
    bad = np.flatnonzero(~(steps > 0))
    if len(bad):
        raise ValueError(f"do not increase from row {bad[0]} to {bad[0] + 1}")
    spacing = float(np.median(steps))
    for unit in _UNITS.values():
        if _SPACING[0] <= spacing * unit <= _SPACING[1]:
            return np.asarray(passed * unit)
    raise ValueError(f"are {spacing:g} apart, which in no unit of time is a recorder's pace")


def _rate(pace: Pace, given: float | None) -> tuple[float, str]:
    """Return the rate and what tells it."""
    if given is not None:
        return given, "as given"
    if not pace.told:
        doubts = "".join(f"; {doubt}" for doubt in pace.doubts)
        fit = pace.fitting
        hint = (
            f"give --rate, such as --rate {_rounded(fit):g}, at which its positions and velocities "
            f"agree"
            if fit is not None
            else "give --rate 25, or --rate 50 for a file recorded with ACT"
        )
        raise RolloutError(f"does not tell its rate{doubts}; {hint}")
    (by, rate), *others = pace.told.items()
    for name, other in others:
        if not _near(rate, other, CONTRADICT if by == STAMPS else AGREE):
            raise RolloutError(
                f"is of {rate:g} Hz by its {by}, and of {other:g} Hz by its {name}; give --rate "
                f"with what is right"
            )
    return rate, f"by its {by}"


def _near(rate: float, other: float, factor: float) -> bool:
    return abs(math.log(rate / other)) < math.log(factor) if rate > 0 and other > 0 else False


def _rounded(rate: float) -> float:
    """Return the common rate that this one is near to, else a whole one."""
    near = min(_COMMON_RATES, key=lambda common: abs(math.log(common / rate)))
    return near if _near(near, rate, 1.05) else round(rate)


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def _check_gaps(stamps: Floats) -> None:
    steps = np.diff(stamps)
    widest = int(steps.argmax())
    if steps[widest] > MAX_GAP:
        raise RolloutError(
            f"has nothing for {steps[widest]:.2f} s between rows {widest} and {widest + 1}, at "
            f"most {MAX_GAP:g} s can be interpolated; cut the file there"
        )


def _unevenness(stamps: Floats) -> float:
    """Return how far [s] stamps are off an even pace from the first to the last."""
    even = np.linspace(stamps[0], stamps[-1], len(stamps))
    return float(np.abs(stamps - even).max())
