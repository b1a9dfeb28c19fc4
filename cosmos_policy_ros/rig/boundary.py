"""How rough the boundary between two chunks is, as it was decided and as it was sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES
from cosmos_policy_ros.rig.splice import KEPT

AROUND = 7  # rows from the boundary on that are looked at: those of the usual blend, and two


@dataclass(frozen=True)
class Jump:
    """Of all arm joints, grippers apart, the largest.

    Attributes:
        position: distance between the old path and the first changed row [rad].
        velocity: change from one step to the next around the boundary [rad/s].
        acceleration: its change from one step to the next [rad/s²].
    """

    position: float
    velocity: float
    acceleration: float

    def __str__(self) -> str:
        """Return it for people."""
        return f"{self.position:.3f} rad, {self.velocity:.2f} rad/s, {self.acceleration:.1f} rad/s²"


@dataclass(frozen=True)
class Boundary:
    """Where a chunk took over, for people and tables.

    Attributes:
        asked_ns: stamp of the observation that triggered it.
        latency: seconds from there until it was judged, on the clock that arms move by.
        dropped: rows that were past, or the old path's, when it took over.
        blend_rows: over which it goes over from a path under way; 0 at rest.
        decided: how rough it would have been as it was decided; of a refused one too.
        sent: how rough it was as it was sent; None of a refused one.
    """

    asked_ns: int
    latency: float
    dropped: int
    blend_rows: int
    decided: Jump
    sent: Jump | None

    def __str__(self) -> str:
        """Return it in one line for people."""
        sent = f"; as sent {self.sent}" if self.sent else ""
        return (
            f"asked at {self.asked_ns / NS_PER_S:.3f} s, answered after {self.latency:.3f} s, "
            f"{self.dropped} rows dropped; jump as decided {self.decided}{sent}"
        )


def measure_boundary(
    asked_ns: int,
    latency: float,
    *,
    rows: tuple[Array, Array, Array | None],
    dt: float,
    dropped: int = 0,
    blend_rows: int = 0,
) -> Boundary | None:
    """Measure where a chunk takes over.

    Args:
        asked_ns: stamp of its observation.
        latency: seconds from there until it was judged.
        rows: (KEPT + n, 14) the path before it, beginning KEPT rows before the boundary; from the
            boundary on (n, 14) what was decided, and what was sent or None.
        dt: seconds per row.
        dropped: rows of it that were past.
        blend_rows: over which it goes over from the path before.

    Returns:
        None if the decision is not one for this rig at all.
    """
    old, decided, sent = rows
    if decided.shape != old[KEPT:].shape or not np.isfinite(decided).all():
        return None

    def jump(followed: Array) -> Jump:
        return measure_jump(old, np.vstack([old[:KEPT], followed]), dt)

    return Boundary(
        asked_ns=asked_ns,
        latency=latency,
        dropped=dropped,
        blend_rows=blend_rows,
        decided=jump(decided),
        sent=None if sent is None else jump(sent),
    )


def measure_jump(old: Array, rows: Array, dt: float) -> Jump:
    """Measure where ``rows`` leave the old path.

    Args:
        old: (n, 14) the path before.
        rows: (n, 14) what is followed: KEPT rows of the old path, then another.
        dt: seconds per row.
    """
    arms = np.delete(rows[: KEPT + AROUND], GRIPPER_INDICES, axis=1)
    changes = np.diff(arms, n=2, axis=0) / dt
    off = np.delete(rows[KEPT] - old[KEPT], GRIPPER_INDICES)
    return Jump(
        float(np.abs(off).max()),
        float(np.abs(changes).max(initial=0.0)),
        float(np.abs(np.diff(changes, axis=0)).max(initial=0.0)) / dt,
    )
