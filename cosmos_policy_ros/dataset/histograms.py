"""The histograms of every joint's states and actions in one image, 14 plots."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import replacing
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.dataset.motion import Motion
from cosmos_policy_ros.rig.arms import ARM_DIM, ARMS, STATE_DIM
from cosmos_policy_ros.rig.spec import RigSpec

BINS = 60
_FINE = 8192  # cells between the ends of what is counted: one is no more than two ticks
_BEYOND = 0.5  # of a joint's range that is counted on either side of its limits
STATE, ACTION, LIMIT, IDLE = "#1f77b4", "#d95f02", "#777777", "#fff3c4"


class JointHistograms:
    """Counts states and actions, episode by episode, and draws them."""

    def __init__(self) -> None:
        self._rig: RigSpec | None = None
        self._counts = np.zeros((2, STATE_DIM, _FINE), np.int64)

    def add(self, rig: RigSpec, motion: Motion) -> None:
        """Count an episode's steps; values that are not finite are left out.

        What lies half a joint's range or more past the limits of the first episode's rig is counted
        there.
        """
        if self._rig is None:
            self._rig = rig
            beyond = _BEYOND * (rig.upper - rig.lower)
            self._low, self._high = rig.lower - beyond, rig.upper + beyond
        for what, values in enumerate((motion.states, motion.actions)):
            cells = (values - self._low) / (self._high - self._low) * _FINE
            for joint in range(STATE_DIM):
                known = cells[np.isfinite(cells[:, joint]), joint]
                at = np.clip(known, 0, _FINE - 1).astype(np.int64)
                self._counts[what, joint] += np.bincount(at, minlength=_FINE)

    def draw(self, path: Path, idle: Collection[str]) -> None:
        """Write the plots as PNG; ``idle`` joints are marked.

        Raises:
            RolloutError: there was no episode, or the disk refused.
        """
        if self._rig is None:
            raise RolloutError(f"{path}: there is no episode to draw")
        figure = Figure(figsize=(2.6 * ARM_DIM, 5.2), layout="constrained")
        axes = figure.subplots(len(ARMS), ARM_DIM).ravel()
        for joint, (name, plot) in enumerate(zip(self._rig.joint_names, axes, strict=True)):
            self._draw_joint(plot, joint, (self._rig.lower[joint], self._rig.upper[joint]))
            ends = f"{self._rig.lower[joint]:.2f} to {self._rig.upper[joint]:.2f}"
            plot.set_title(f"{name}{', idle' * (name in idle)}\n{ends}", fontsize=8)
            if name in idle:
                plot.set_facecolor(IDLE)
        axes[0].legend(fontsize=7)
        figure.supxlabel(
            "rad; grippers 0 closed to 1 open. Dashed, and in the titles: the rig's limits",
            fontsize=9,
        )
        figure.supylabel("steps", fontsize=9)
        try:
            with replacing(path) as draft:
                figure.savefig(draft, format="png", dpi=110)
        except OSError as error:
            raise RolloutError(f"{path}: cannot be written: {error}") from error

    def _draw_joint(self, plot: Axes, joint: int, limits: tuple[float, float]) -> None:
        counts = self._counts[:, joint]
        used = np.flatnonzero(counts.sum(axis=0))
        if not len(used):
            return
        # Whole cells, so that no bin has more of them than its neighbour.
        width = max(1, -(-(int(used[-1] - used[0]) + 1) // BINS))
        first = int(used[0])
        bins = -(-(int(used[-1]) + 1 - first) // width)
        cell = (self._high[joint] - self._low[joint]) / _FINE
        edges: Array = self._low[joint] + cell * (first + width * np.arange(bins + 1))
        for what, (label, colour) in enumerate((("state", STATE), ("action", ACTION))):
            plot.stairs(_rebin(counts[what], first, bins, width), edges, label=label, color=colour)
        plot.set_xlim(edges[0] - 2 * width * cell, edges[-1] + 2 * width * cell)
        for limit in limits:
            plot.axvline(limit, color=LIMIT, linestyle="--", linewidth=1)
        plot.tick_params(labelsize=7)


def _rebin(counts: NDArray[np.int64], first: int, bins: int, width: int) -> NDArray[np.int64]:
    padded = np.zeros(bins * width, np.int64)
    part = counts[first : first + bins * width]
    padded[: len(part)] = part
    summed: NDArray[np.int64] = padded.reshape(bins, width).sum(axis=1)
    return summed
