"""A chunk placed on the clock that arms move by, and the path the arms follow through it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import STATE_DIM

BRAKE = "/brake"  # how the id of a trajectory that ends another one ends


@dataclass(frozen=True)
class TimedChunk:
    """Joint targets with times.

    Attributes:
        chunk_id: "<run>/<index>".
        start_ns: when the arms leave ``start``, nanoseconds of the clock that arms move by.
        dt: seconds between rows; row i is due at ``start_ns + (i + 1) * dt``.
        start: (14,) commanded pose before the first row, policy units.
        positions: (K, 14) targets, policy units.
        max_velocity: (14,) bound of the velocities at the rows.
        start_velocity: (14,) at ``start``; the arms are not at rest there when a chunk takes over
            from another.
        sent_after_ns: how much of the way to the first row is past when the chunk is sent; less
            than a step.
    """

    chunk_id: str
    start_ns: int
    dt: float
    start: Array
    positions: Array
    max_velocity: Array
    start_velocity: Array = field(default_factory=lambda: np.zeros(STATE_DIM))
    sent_after_ns: int = 0

    @property
    def step_ns(self) -> int:
        """Nanoseconds between rows, rounded once so that 50 rows of 40 ms end at 2.0 s exactly."""
        return round(self.dt * NS_PER_S)

    @property
    def end_ns(self) -> int:
        """When the last row is due."""
        return self.start_ns + len(self.positions) * self.step_ns

    @property
    def sent_ns(self) -> int:
        """When it is sent."""
        return self.start_ns + self.sent_after_ns

    def due_ns(self, row: int) -> int:
        """When a row is due; -1 is the start."""
        return self.start_ns + (row + 1) * self.step_ns

    def times_ns(self) -> tuple[int, ...]:
        """Nanoseconds from sending it to each row; strictly increasing, the first never 0."""
        return tuple(self.due_ns(i) - self.sent_ns for i in range(len(self.positions)))

    @cached_property
    def velocities(self) -> Array:
        """(K, 14) velocities at the rows for cubic interpolation; the last row rests.

        Shape-preserving: zero where a joint turns, else the harmonic mean of the slopes on both
        sides (Fritsch-Butland), so that the cubic stays between its two rows and cannot leave
        limits which the rows keep. Bounded by ``max_velocity``.
        """
        slopes: Array = np.diff(self.positions, axis=0, prepend=self.start[None]) / self.dt
        before, after = slopes[:-1], slopes[1:]
        same_sign = before * after > 0
        total = np.where(same_sign, before + after, 1.0)
        inner = np.where(same_sign, 2.0 * before * after / total, 0.0)
        velocities = np.vstack([inner, np.zeros_like(self.start)])
        bounded: Array = np.clip(velocities, -self.max_velocity, self.max_velocity)
        return bounded

    def sample(self, now_ns: int) -> Array:
        """Return the (14,) commanded pose at a time: held before the start and after the end."""
        return self.state(now_ns)[0]

    def state(self, now_ns: int) -> tuple[Array, Array]:
        """Return the (14,) commanded pose and its velocity [1/s] at a time."""
        elapsed = (now_ns - self.start_ns) / self.step_ns
        if elapsed <= 0:
            return self.start, self.start_velocity
        if elapsed >= len(self.positions):
            return np.asarray(self.positions[-1]), np.zeros_like(self.start)
        row = int(elapsed)
        u = elapsed - row
        velocities = self.velocities * self.dt
        p0 = self.positions[row - 1] if row else self.start
        v0 = velocities[row - 1] if row else self.start_velocity * self.dt
        p1, v1 = self.positions[row], velocities[row]
        position = (
            (1 + 2 * u) * (1 - u) ** 2 * p0
            + u * (1 - u) ** 2 * v0
            + u**2 * (3 - 2 * u) * p1
            + u**2 * (u - 1) * v1
        )
        per_step = 6 * u * (1 - u) * (p1 - p0) + (1 - u) * (1 - 3 * u) * v0 + u * (3 * u - 2) * v1
        return np.asarray(position), np.asarray(per_step / self.dt)

    def brake(self, now_ns: int, seconds: float) -> TimedChunk:
        """Return a chunk that slows to rest along this one's own path, within ``seconds``.

        Braking along the commanded path visits only poses that the gate has already passed.
        """
        travelled, _ = braking_share(max(1, round(seconds / self.dt)))
        travelled_ns = np.rint(travelled * self.step_ns).astype(np.int64)
        positions = np.stack([self.sample(now_ns + int(t)) for t in travelled_ns])
        start, velocity = self.state(now_ns)
        return TimedChunk(
            chunk_id=f"{self.chunk_id}{BRAKE}",
            start_ns=now_ns,
            dt=self.dt,
            start=start,
            positions=positions,
            max_velocity=self.max_velocity,
            start_velocity=velocity,
        )

    def holding(self, joints: Sequence[int], pose: Array) -> TimedChunk:
        """Return it with some joints at a (14,) pose from its first row on."""
        positions, velocity = self.positions.copy(), self.start_velocity.copy()
        positions[:, joints], velocity[joints] = pose[joints], 0.0
        start = self.start.copy()
        start[joints] = pose[joints]
        return replace(self, start=start, positions=positions, start_velocity=velocity)

    @classmethod
    def hold(
        cls, chunk_id: str, now_ns: int, dt: float, start: Array, pose: Array, max_velocity: Array
    ) -> TimedChunk:
        """Return a chunk that holds the arms at a (14,) pose.

        Their command is led there from ``start`` (14,) at half the joints' highest speed.
        """
        seconds = float((np.abs(pose - start) / max_velocity).max()) * 2
        rows = max(1, math.ceil(seconds / dt))
        way = np.arange(1, rows + 1)[:, None] / rows
        return cls(chunk_id, now_ns, dt, start, start + way * (pose - start), max_velocity)


def braking_share(rows: int) -> tuple[Array, Array]:
    """Return how a path is travelled while its pace falls linearly from 1 to 0 within ``rows``.

    Returns:
        Rows of the path travelled at each row, half of them at the last; the pace there.
    """
    share = np.arange(1, rows + 1) / rows
    return (share - share**2 / 2) * rows, 1.0 - share
