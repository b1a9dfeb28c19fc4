"""A chunk on the clock that arms move by, and how one chunk takes over from another in motion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES, STATE_DIM

BRAKE = "/brake"  # how the id of a trajectory that ends another one ends


@dataclass(frozen=True)
class TimedChunk:
    """Joint targets with times, and the cubic path that the arms follow through them.

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
        limits which the rows keep.
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
        travelled, _ = braking_fraction(max(1, round(seconds / self.dt)))
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
        """Return a chunk from ``start`` (14,) to a ``pose`` (14,) that is held, at half speed."""
        seconds = float((np.abs(pose - start) / max_velocity).max()) * 2
        rows = max(1, math.ceil(seconds / dt))
        way = np.arange(1, rows + 1)[:, None] / rows
        return cls(chunk_id, now_ns, dt, start, start + way * (pose - start), max_velocity)


MINIMUM_JERK_PEAK = 1.875  # the highest speed of such a way, of its average


def minimum_jerk(share: Any) -> Any:
    """Return how much of a way is done at a share of its time, a number or an array of them.

    Smooth from rest to rest.
    """
    return share**3 * (10.0 - 15.0 * share + 6.0 * share**2)


def braking_fraction(rows: int) -> tuple[Array, Array]:
    """Return rows of a path travelled, and pace, at each of ``rows`` in which it slows from 1 to 0.

    Half as many rows are travelled at the last.
    """
    share = np.arange(1, rows + 1) / rows
    return (share - share**2 / 2) * rows, 1.0 - share


# Rows of the old path that a blend keeps: the first so that the arms, under way to it, need not
# change course at once, the second so that neither does their velocity at the first.
KEPT = 2


@dataclass(frozen=True)
class Blend:
    """A chunk decided in motion on its way into the path that is under way.

    Row i of a decision is due (i + 1) dt after its observation, so its past rows are dropped. What
    is sent is one path on the time grid of the old one: ``KEPT`` old rows, ``rows`` that go over to
    the new ones, then the new ones. Commanded position and velocity have no jump, even at a
    controller that forgets the old trajectory on arrival.

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
        """The path's first row that is not due yet; what is sent begins with it."""
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
        return self._sample(self.path)

    @cached_property
    def new(self) -> Array:
        """(n, 14) poses of the decision at the same times."""
        return self._sample(self.decided)

    def _sample(self, chunk: TimedChunk) -> Array:
        last = (self.decided.end_ns - self.path.start_ns) // self.path.step_ns
        return np.stack([chunk.sample(self.path.due_ns(row)) for row in range(self.first, last)])

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
        """Return the chunk to send: ``rows`` (n, 14) from ``first`` on."""
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


# Makes the rows (n, 14) of a blend, from its first one on; usually ``Blend.blended``.
Blender = Callable[[Blend], Array]

AROUND = 7  # rows from a transition on that are measured: those of the usual blend, and two


@dataclass(frozen=True)
class Discontinuity:
    """How rough a transition is: the largest of all arm joints, grippers apart.

    Attributes:
        position: distance between the old path and the first changed row [rad].
        velocity: change from one step to the next around the transition [rad/s].
        acceleration: its change from one step to the next [rad/s²].
    """

    position: float
    velocity: float
    acceleration: float

    def __str__(self) -> str:
        """Return its three numbers with their units."""
        return f"{self.position:.3f} rad, {self.velocity:.2f} rad/s, {self.acceleration:.1f} rad/s²"


@dataclass(frozen=True)
class ChunkTransition:
    """Where a chunk took over from the path before it.

    Attributes:
        asked_ns: stamp of the observation that triggered it.
        latency: seconds from there until it was judged, on the clock that arms move by.
        dropped: rows that were past, or the old path's, when it took over.
        blend_rows: over which it goes over from a path under way; 0 at rest.
        decided: roughness of the decision before blending; of a refused one too.
        sent: roughness of what was sent; None of a refused one.
    """

    asked_ns: int
    latency: float
    dropped: int
    blend_rows: int
    decided: Discontinuity
    sent: Discontinuity | None

    def __str__(self) -> str:
        """Return it in one line for people."""
        sent = f"; as sent {self.sent}" if self.sent else ""
        return (
            f"asked at {self.asked_ns / NS_PER_S:.3f} s, answered after {self.latency:.3f} s, "
            f"{self.dropped} rows dropped; jump as decided {self.decided}{sent}"
        )


def measure_transition(
    asked_ns: int,
    latency: float,
    *,
    rows: tuple[Array, Array, Array | None],
    dt: float,
    dropped: int = 0,
    blend_rows: int = 0,
) -> ChunkTransition | None:
    """Measure where a chunk takes over; None if the decision is not one for this rig at all.

    ``rows`` are the old path (KEPT + n, 14), beginning KEPT rows before the transition, and from
    the transition on what was decided (n, 14) and what was sent (n, 14) or None, ``dt`` seconds
    apart.
    """
    old, decided, sent = rows
    if decided.shape != old[KEPT:].shape or not np.isfinite(decided).all():
        return None

    def measure(followed: Array) -> Discontinuity:
        off = np.delete(followed[0] - old[KEPT], GRIPPER_INDICES)
        path = np.vstack([old[:KEPT], followed])[: KEPT + AROUND]
        changes = np.diff(np.delete(path, GRIPPER_INDICES, axis=1), n=2, axis=0) / dt
        return Discontinuity(
            float(np.abs(off).max()),
            float(np.abs(changes).max(initial=0.0)),
            float(np.abs(np.diff(changes, axis=0)).max(initial=0.0)) / dt,
        )

    return ChunkTransition(
        asked_ns=asked_ns,
        latency=latency,
        dropped=dropped,
        blend_rows=blend_rows,
        decided=measure(decided),
        sent=None if sent is None else measure(sent),
    )
