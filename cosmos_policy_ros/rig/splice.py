"""Where a chunk that was decided in motion takes over from the one under way.

Row i of a decision is meant for (i + 1) dt after its observation, so what is already past of it is
dropped. What is sent is one path on the time grid of the old one: its next rows as they are, then
rows that go over from the old to the new ones, then the new ones. The arms' commanded position and
velocity have no jump, and a controller that forgets the old trajectory on arrival loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.rig.chunk import TimedChunk

# Rows of the old path that stay as they are: the first so that the arms, under way to it, need not
# change course at once, the second so that neither does their velocity at the first.
KEPT = 2


@dataclass(frozen=True)
class Splice:
    """A decision on its way into a path.

    Attributes:
        path: under way.
        decided: the decision's rows, starting at its observation's stamp.
        now_ns: when it is sent.
        rows: over which the old path goes over into the new one.
    """

    path: TimedChunk
    decided: TimedChunk
    now_ns: int
    rows: int

    @cached_property
    def first(self) -> int:
        """The path's first row that is not due yet."""
        return max((self.now_ns - self.path.start_ns) // self.path.step_ns, 0)

    @property
    def takeover(self) -> int:
        """The path's first row that is no longer the old one's alone."""
        return self.first + KEPT

    @property
    def lateness(self) -> float:
        """Seconds by which the decision came too late; 0 or less if it did not.

        KEPT rows of the old path must be left, and a row of the new one behind them.
        """
        step_ns = self.path.step_ns
        end_ns = min(self.path.end_ns, self.decided.end_ns - step_ns)
        return (self.now_ns - end_ns + KEPT * step_ns) / 1e9

    @cached_property
    def old(self) -> Array:
        """(n, 14) poses of the old path at the rows from ``first`` on; its last pose after it."""
        return np.stack([self.path.sample(due_ns) for due_ns in self._due_ns])

    @cached_property
    def new(self) -> Array:
        """(n, 14) poses of the decision at the same times."""
        return np.stack([self.decided.sample(due_ns) for due_ns in self._due_ns])

    @property
    def dropped(self) -> int:
        """Rows of the decision that are past, or the old path's."""
        due_ns = self.path.due_ns(self.takeover)
        past = -(-(due_ns - self.decided.start_ns) // self.decided.step_ns) - 1
        return min(max(past, 0), len(self.decided.positions))

    @property
    def gap(self) -> Array:
        """(14,) how far the decision is off the old path where it takes over."""
        return np.asarray(self.new[KEPT] - self.old[KEPT])

    def blended(self) -> Array:
        """Return (n, 14) rows: a smooth step from the old ones to the new ones.

        Where the old path ends on the way its distance from the new one is kept instead: blended
        with a path at rest the arms would slow down for a moment.
        """
        off = self.old - self.new
        ends = min(len(self.path.positions) - self.first, len(off))
        off[ends:] = off[ends - 1]
        row = np.arange(len(off)) - KEPT + 1
        share = np.clip(row / (self.rows + 1), 0.0, 1.0)
        share = share**2 * (3 - 2 * share)
        rows = self.new + (1 - share[:, None]) * off
        rows[:KEPT] = self.old[:KEPT]
        return np.asarray(rows)

    def chunk(self, chunk_id: str, rows: Array) -> TimedChunk:
        """Return what is to be sent: ``rows`` (n, 14) from ``first`` on."""
        path, before_ns = self.path, self.path.due_ns(self.first - 1)
        start, velocity = path.state(before_ns)
        return replace(
            path,
            chunk_id=chunk_id,
            start_ns=before_ns,
            start=start,
            positions=rows,
            start_velocity=velocity,
            sent_after_ns=max(self.now_ns - before_ns, 0),
        )

    @cached_property
    def _due_ns(self) -> list[int]:
        last = (self.decided.end_ns - self.path.start_ns) // self.path.step_ns
        return [self.path.due_ns(row) for row in range(self.first, last)]


# Makes the rows (n, 14) of a splice, from its first one on; usually ``Splice.blended``.
Splicer = Callable[[Splice], Array]
