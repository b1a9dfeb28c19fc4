"""What an episode's arms did, step by step, and what became of each dimension of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.rig.arms import STATE_DIM


@dataclass(frozen=True)
class Motion:
    """What was measured and what was told at each step of an episode.

    Attributes:
        times_ns: (n,) when each step begins.
        states: (n, d) policy units, 14 of an ALOHA; NaN where the arms had reported nothing usable.
        actions: (n, d) policy units, due one step later.
        dt: seconds per step.
    """

    times_ns: NDArray[np.int64]
    states: Array
    actions: Array
    dt: float

    def __len__(self) -> int:
        return len(self.times_ns)

    def pairs(self, steps: int) -> NDArray[np.intp]:
        """Return the steps i that have a step i + ``steps`` just so much later: no pause between.

        ``steps`` may be negative.
        """
        first = np.arange(max(0, -steps), min(len(self), len(self) - steps))
        passed = self.times_ns[first + steps] - self.times_ns[first]
        off = np.abs(passed / NS_PER_S - steps * self.dt)
        return first[off < self.dt / 2]


def read_motion(windows: EpisodeWindows, dt: float) -> Motion:
    """Read the state at every step of an episode; ``dt`` is what its windows were made with.

    Raises:
        RolloutError: the bag is damaged.
    """
    states = np.full((len(windows), STATE_DIM), np.nan)
    for step in range(len(windows)):
        try:
            states[step] = windows.state(step)
        except ObservationError:
            continue  # a gap: no window begins or ends there either
    return Motion(windows.steps.times_ns, states, windows.steps.actions, dt)


@dataclass(frozen=True)
class Measures:
    """What became of each of the d dimensions over an episode, in policy units; 14 of an ALOHA.

    Attributes:
        rows: steps that were measured.
        min, max, mean, std, median: (d,) each.
        jerk: (d,) root mean square of the third derivative, units per s^3; 0 where fewer than four
            steps follow each other.
    """

    rows: int
    min: tuple[float, ...]
    max: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    median: tuple[float, ...]
    jerk: tuple[float, ...]

    @property
    def range(self) -> Array:
        """(d,) how far each dimension moves."""
        return np.subtract(self.max, self.min, dtype=np.float64)


def measure_motion(motion: Motion, values: Array) -> Measures:
    """Return the measures of (n, d) values, rows of NaN left out."""
    kept = values[np.isfinite(values).all(axis=1)]
    steps = motion.pairs(3)
    change = values[steps + 3] - 3 * values[steps + 2] + 3 * values[steps + 1] - values[steps]
    change = change[np.isfinite(change).all(axis=1)] / motion.dt**3
    jerk = np.sqrt((change**2).mean(axis=0)) if len(change) else np.zeros(values.shape[1])
    names = ("min", "max", "mean", "std", "median")
    of = {name: tuple(getattr(np, name)(kept, axis=0).tolist()) for name in names}
    return Measures(rows=len(kept), jerk=tuple(jerk.tolist()), **of)
