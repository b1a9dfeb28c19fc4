"""Episodes beside each other: the ranges that a training takes from them, and which ones stand out.

Made of the episodes' reports alone, so that no bag is read twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.dataset.checks import (
    CheckLimits,
    EpisodeReport,
    Finding,
    describe_idle,
    differ_in_aspect,
)
from cosmos_policy_ros.dataset.motion import Measures
from cosmos_policy_ros.model.statistics import MEASURES, widen

_NORMAL = 1.4826  # standard deviations of a normal distribution in its median absolute deviation
_SIZES_SHOWN = 4


@dataclass(frozen=True)
class Ranges:
    """The statistics that a training computes from demonstrations.

    Attributes:
        content: the ten entries of the statistics file.
        widened: the dimensions whose range was widened, each with the ticks that it moves by.
    """

    content: Mapping[str, list[float]]
    widened: tuple[str, ...]

    @property
    def text(self) -> str:
        """What was widened, in a line; "" for nothing."""
        if not self.widened:
            return ""
        return f"ranges widened, of what moves by so many ticks only: {', '.join(self.widened)}"


def learned_ranges(reports: Sequence[EpisodeReport], limits: CheckLimits) -> Ranges | None:
    """Return the ranges of episodes taken together; None where none has states and actions.

    Minimum, maximum, mean and standard deviation are those of all steps. The median, which nothing
    reads, is that of the episodes' medians.
    """
    measured = [report for report in reports if report.states and report.actions]
    if not measured:
        return None
    content: dict[str, list[float]] = {}
    for what, of in (("actions", _actions(measured)), ("proprio", _states(measured))):
        together = _together(of)
        content |= {f"{what}_{name}": list(getattr(together, name)) for name in MEASURES}
    if not measured[0].joints:  # of what no encoder's ticks are known, nothing is widened
        return Ranges(content, ())
    joints, tick = measured[0].joints, _tick(measured)
    widened = widen(content, limits.least_range * tick)
    named = []
    for what, word in (("actions", "action"), ("proprio", "state")):
        moved = np.subtract(content[f"{what}_max"], content[f"{what}_min"])
        changed = np.not_equal(content[f"{what}_max"], widened[f"{what}_max"])
        named += [
            f"{word} {joints[at]} ({moved[at] / tick[at]:.0f})" for at in np.flatnonzero(changed)
        ]
    return Ranges(widened, tuple(named))


def outliers(
    reports: Mapping[str, EpisodeReport], limits: CheckLimits
) -> dict[str, tuple[Finding, ...]]:
    """Return by name what stands out among the episodes: their length, and how jerky they are."""
    if len(reports) < limits.least_episodes:
        return {}
    found: dict[str, list[Finding]] = {name: [] for name in reports}
    lengths = np.array([report.seconds for report in reports.values()])
    middle = float(np.median(lengths))
    for name, odd in zip(reports, _odd(lengths, limits), strict=True):
        if odd:
            seconds = reports[name].seconds
            text = f"lasts {seconds:.1f} s, where the episodes' median is {middle:.1f} s"
            found[name].append(Finding("outlier", text))
    for word in ("states", "actions"):
        known = {name: m for name, r in reports.items() if (m := getattr(r, word)) is not None}
        if len(known) < limits.least_episodes:
            continue
        jerks = np.array([each.jerk for each in known.values()])
        medians = np.median(jerks, axis=0)
        odd = np.stack([_odd(column, limits) for column in jerks.T], axis=1) & (jerks > medians)
        for row, name in enumerate(known):
            if odd[row].any():
                times = np.where(odd[row], jerks[row] / np.maximum(medians, 1e-12), 0.0)
                at = int(times.argmax())
                others = int(odd[row].sum()) - 1
                joints = reports[name].joints
                text = (
                    f"its {word} are jerky: {joints[at] if joints else f'dimension {at}'} "
                    f"{_factor(times[at])} the episodes' median"
                    f"{f', and {others} more dimensions' if others else ''}"
                )
                found[name].append(Finding("outlier", text))
    return {name: tuple(findings) for name, findings in found.items() if findings}


def set_warnings(reports: Sequence[EpisodeReport], limits: CheckLimits) -> list[Finding]:
    """Return what is odd about the episodes together: idle dimensions, images of several shapes."""
    found = []
    measured = [report for report in reports if report.states and report.actions]
    if measured and measured[0].joints:
        states, actions = _together(_states(measured)), _together(_actions(measured))
        if idle := describe_idle(measured[0].joints, _tick(measured), states, actions, limits):
            found.append(Finding("idle", f"in all episodes together {idle}"))
    for role in dict.fromkeys(role for report in reports for role in report.sizes):
        counts = Counter(size for report in reports for size in report.sizes.get(role, ()))
        if len(counts) > 1:
            listed = ", ".join(
                f"{rows}x{columns} in {count}"
                for (rows, columns), count in counts.most_common(_SIZES_SHOWN)
            )
            text = f"{role}: images of several sizes (rows x columns, episodes): {listed}"
            if differ_in_aspect(list(counts)):
                text += "; of several aspect ratios, so that a circle is not the same in all"
            found.append(Finding("size", text))
    return found


def idle_joints(reports: Sequence[EpisodeReport], limits: CheckLimits) -> tuple[str, ...]:
    """Return the joints that hardly move in all episodes together, in state and action."""
    measured = [report for report in reports if report.states and report.actions]
    if not measured or not measured[0].joints:
        return ()
    moved = np.maximum(_together(_states(measured)).range, _together(_actions(measured)).range)
    idle = moved < limits.least_range * _tick(measured)
    return tuple(name for name, is_idle in zip(measured[0].joints, idle, strict=True) if is_idle)


def count_prompts(reports: Iterable[EpisodeReport]) -> list[tuple[str, int]]:
    """Return the prompts as they can be shown, with their episodes, the most frequent first."""
    return Counter(shown(report.prompt) for report in reports).most_common()


def with_outliers(
    reports: Mapping[str, EpisodeReport], limits: CheckLimits
) -> dict[str, EpisodeReport]:
    """Return the reports with what stands out among those that are GO, added to their warnings."""
    odd = outliers({name: report for name, report in reports.items() if report.go}, limits)
    return {
        name: replace(report, warnings=(*report.warnings, *odd.get(name, ())))
        for name, report in reports.items()
    }


def _states(reports: Iterable[EpisodeReport]) -> list[Measures]:
    return [report.states for report in reports if report.states is not None]


def _actions(reports: Iterable[EpisodeReport]) -> list[Measures]:
    return [report.actions for report in reports if report.actions is not None]


def _tick(reports: Sequence[EpisodeReport]) -> Array:
    ticks: Array = np.array([report.tick for report in reports]).max(axis=0)
    return ticks


def _together(parts: Sequence[Measures]) -> Measures:
    """Return the measures of several episodes' rows; the jerk is the largest."""
    rows = np.array([part.rows for part in parts])
    weights = rows / rows.sum()
    mean = weights @ np.array([part.mean for part in parts])
    spread = np.array([part.std for part in parts]) ** 2
    spread += (np.array([part.mean for part in parts]) - mean) ** 2
    return Measures(
        rows=int(rows.sum()),
        min=tuple(np.min([part.min for part in parts], axis=0).tolist()),
        max=tuple(np.max([part.max for part in parts], axis=0).tolist()),
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(weights @ spread).tolist()),
        median=tuple(np.median([part.median for part in parts], axis=0).tolist()),
        jerk=tuple(np.max([part.jerk for part in parts], axis=0).tolist()),
    )


def _odd(values: Array, limits: CheckLimits) -> NDArray[np.bool_]:
    """Return which of (n,) positive values stand out, by their logarithm; zeros never do."""
    known = values > 0
    if not known.any():
        return np.zeros(len(values), bool)
    logs = np.log(np.where(known, values, 1.0))
    middle = np.median(logs[known])
    off = np.abs(logs - middle)
    spread = _NORMAL * float(np.median(off[known]))
    odd: NDArray[np.bool_] = off > max(limits.outlier * spread, np.log(limits.outlier_factor))
    return known & odd


def _factor(times: float) -> str:
    return f"{times:.0f} times" if times < 1000 else "more than 1000 times"
