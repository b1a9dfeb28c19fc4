"""Where a motion of both arms brings a link too near the table, the other arm or its own arm.

The links are capsules (:mod:`cosmos_policy_ros.rig.vx300s`), the table is everything below a
height, and what the arms hold is not known here. Rows are looked at one by one, and between rows
wherever the links' largest possible motion does not rule out a closer approach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.rig import vx300s
from cosmos_policy_ros.rig.arms import ARM_DIM, ARM_JOINTS, ARMS, GRIPPER_INDICES, STATE_DIM

Indices = NDArray[np.intp]

TABLE = "table"
RESOLUTION = 0.004  # m; between two poses looked at, no two links come closer by more than half
_ROUNDING = 1e-7  # m; arms that stand still come no closer


@dataclass(frozen=True)
class Base:
    """Where an arm's base plate is bolted down: the middle below its waist's axis.

    Attributes:
        position: x, y, z [m], z up, in a frame that both arms and the table share.
        yaw: direction [rad] in which the arm reaches with its waist at 0; 0 is along x.
    """

    position: tuple[float, float, float]
    yaw: float


@dataclass(frozen=True)
class Bases:
    """Of both arms."""

    left: Base
    right: Base


@dataclass(frozen=True)
class Geometry:
    """What the arms can run into, and how near they may come.

    Attributes:
        bases: where the arms stand.
        table: height of the table's top [m]; it has no edges.
        margin: least distance between two links, and of a link from the table [m].
        finger_margin: the same of fingers from the table and from the other arm's fingers and hand
            [m], which come close or touch in many tasks; below 0 they may overlap by so much.
    """

    bases: Bases
    table: float
    margin: float
    finger_margin: float


@dataclass(frozen=True)
class Approach:
    """The closest that two links, or a link and the table, come to each other in a motion.

    Attributes:
        between: their names, such as ("left hand", "table").
        row: of the motion, the first from which on they are that close.
        distance: [m]; below 0 they overlap.
        limit: what was allowed [m].
    """

    between: tuple[str, str]
    row: int
    distance: float
    limit: float


class CollisionModel:
    """Both arms of one rig as capsules."""

    def __init__(self, geometry: Geometry) -> None:
        """Lay out the pairs that can meet."""
        bases = (geometry.bases.left, geometry.bases.right)
        # arm, place and axes, xyz
        self._bases = np.array([(base.position, *_axes(base.yaw)) for base in bases])
        self._table = geometry.table
        capsules = vx300s.CAPSULES * len(ARMS)
        self._names = [f"{side} {c.link}" for side in ARMS for c in vx300s.CAPSULES]
        self._radii = np.array([c.radius for c in capsules])
        self._slides = _STROKE * np.array([[float(c.slides)] for c in vx300s.CAPSULES])
        ends = np.array([(c.start, c.end) for c in vx300s.CAPSULES])
        ends[..., 1] += vx300s.FINGER_CLOSED * self._slides / _STROKE
        # Per frame, which its capsules follow each other in: (2 capsules, 4), 1 and x, y, z.
        local = np.concatenate([np.ones((*ends.shape[:2], 1)), ends], axis=2)
        frame_of = np.array([c.frame for c in vx300s.CAPSULES])
        self._ends = [local[frame_of == f].reshape(-1, 4) for f in range(vx300s.HAND + 1)]
        # Per joint, from a frame's place and axes to the next one's, but for the joint's angle.
        axes = np.array(vx300s.AXES)
        self._turns = np.tile(np.eye(4), (len(axes), 1, 1))
        self._turns[:, 0, 1:] = vx300s.ORIGINS
        self._turning = (1 + (axes + 1) % 3, 1 + (axes + 2) % 3)
        lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
        self._half = np.tile(lengths / 2, len(ARMS))

        pairs = [(i, j) for i in range(len(capsules)) for j in range(i) if _can_meet(i, j)]
        self._first, self._second = (np.array(each) for each in zip(*pairs, strict=True))
        self._above = np.array([i for i, c in enumerate(capsules) if c.frame > vx300s.SHOULDER])
        self._count = len(pairs)
        touching = [_may_touch(i, j) for i, j in pairs]
        touching += [bool(capsules[i].slides) for i in self._above]
        self._with_fingers = np.array(
            [bool(capsules[i].slides or capsules[j].slides) for i, j in pairs]
            + [bool(capsules[i].slides) for i in self._above]
        )
        self._margins = np.where(touching, geometry.finger_margin, geometry.margin)
        names = [self._pair_names(pair) for pair in range(len(touching))]
        self._links = np.array([names.index(name) for name in names])
        self._reach = np.concatenate(
            [
                [_relative_reach(i, j) for i, j in pairs],
                [_reach(i, above=True) for i in self._above],
            ]
        ).T
        # Bounding spheres rule out most pairs.
        both = self._half + self._radii
        self._bound = both[self._first] + both[self._second]

    def approach(
        self, rows: Array, velocities: Array, dt: float, openings: Array
    ) -> Approach | None:
        """Return the worst approach of a motion that comes too close anywhere, else None.

        Two links that are nearer than their margin in the first row may stay, but not come closer.

        Fingers stand where they are commanded, or as wide as they have been, if there is an object
        between them; what is too close either way is.

        Args:
            rows: (n, 14) poses, the first of which the arms hold already, policy units.
            velocities: (n, 14) there, policy units per second; between rows the motion is cubic.
            dt: seconds between rows.
            openings: (2,) measured, of the left and the right gripper.
        """
        rows, widest = _openings(rows, openings)
        # The most by which a pair can come closer between two rows, on any way on which no joint
        # turns back; the widest opening changes by no more than the opening.
        moved = np.abs(np.diff(rows, axis=0)) @ self._reach  # (n - 1, pairs)
        near = np.zeros((len(rows), len(self._margins)))
        near[:-1] = moved
        near[1:] = np.maximum(near[1:], moved)
        distances = self._distances(rows, widest, near + self._margins)
        # Links that are too near already: as near as any part of them is.
        held = np.full(len(self._margins), np.inf)
        np.minimum.at(held, self._links, distances[0])
        allowed = np.minimum(self._margins, held[self._links] - _ROUNDING)
        over = allowed - distances
        if (over > 0).any():
            row, pair = np.unravel_index(int(np.argmax(over)), over.shape)
            return self._tell(int(pair), int(row), distances[row, pair], allowed[pair])
        before, after = distances[:-1], distances[1:]
        at, pairs = np.nonzero((before + after - moved) / 2 < allowed)
        if not len(at):
            return None
        path = _Path(rows, velocities * dt, widest)
        return self._between(path, at, pairs, (before[at, pairs], after[at, pairs]), allowed)

    def distances(self, rows: Array, openings: Array | None = None) -> dict[tuple[str, str], float]:
        """Return how close each two links, or link and table, come in (n, 14) poses [m].

        Args:
            rows: poses, policy units.
            openings: as :meth:`approach` has them; None for fingers where they are commanded.
        """
        rows, widest = _openings(rows, np.zeros(len(ARMS)) if openings is None else openings)
        widest = rows[:, _GRIPPERS] if openings is None else widest
        everything = np.full((len(rows), len(self._margins)), np.inf)
        found: dict[tuple[str, str], float] = {}
        closest = self._distances(rows, widest, everything).min(axis=0)
        for pair, distance in enumerate(closest.tolist()):
            names = self._pair_names(pair)
            found[names] = min(distance, found.get(names, np.inf))
        return found

    def _between(
        self, path: _Path, at: Indices, pairs: Indices, ends: tuple[Array, Array], allowed: Array
    ) -> Approach | None:
        """Halve the stretches ``at`` which ``pairs`` may come too close, until none is left.

        Args:
            path: of the arms.
            at: (m,) rows that the stretches begin with.
            pairs: (m,) whose distance it is about.
            ends: (m,) distances at each stretch's beginning and end.
            allowed: per pair.
        """
        begin, end = np.zeros(len(at)), np.ones(len(at))
        low, high = ends
        while len(at):
            middle = (begin + end) / 2
            poses, widest, where = path.poses(at, middle)
            now = self._some_distances(poses, widest, where, pairs)
            over = allowed[pairs] - now
            if (over > 0).any():
                worst = int(np.argmax(over))
                pair = int(pairs[worst])
                return self._tell(pair, int(at[worst]) + 1, now[worst], allowed[pair])
            at, pairs = np.tile(at, 2), np.tile(pairs, 2)
            low, high = np.concatenate([low, now]), np.concatenate([now, high])
            begin, end = np.concatenate([begin, middle]), np.concatenate([middle, end])
            moved = path.moved(at, begin, end)
            moved = np.einsum("ij,ji->i", moved, self._reach[:, pairs])
            open_ = ((low + high - moved) / 2 < allowed[pairs]) & (moved > RESOLUTION)
            at, pairs, begin, end = at[open_], pairs[open_], begin[open_], end[open_]
            low, high = low[open_], high[open_]
        return None

    def _tell(self, pair: int, row: int, distance: float, limit: float) -> Approach:
        return Approach(self._pair_names(pair), row, float(distance), float(limit))

    def _pair_names(self, pair: int) -> tuple[str, str]:
        if pair >= self._count:
            return self._names[int(self._above[pair - self._count])], TABLE
        return self._names[int(self._second[pair])], self._names[int(self._first[pair])]

    def _distances(self, rows: Array, widest: Array, near: Array) -> Array:
        """Return (n, pairs) distances; those beyond ``near`` (n, pairs) are a lower bound of them.

        Args:
            rows: (n, 14) poses.
            widest: (n, 2) openings that an object may have kept the fingers at.
            near: of interest.
        """
        ends, slide = self._place(rows)
        middles = (ends[:, :, 0] + ends[:, :, 1]).transpose(2, 0, 1) / 2
        apart = np.zeros((len(rows), self._count))
        for axis in np.ascontiguousarray(middles):
            apart += (axis[:, self._first] - axis[:, self._second]) ** 2
        found = np.hstack([np.sqrt(apart) - self._bound, self._heights(ends)[:, self._above]])
        which, pairs = np.nonzero(found < near)
        found[which, pairs] = self._exact(ends, which, pairs)
        by = widest - rows[:, _GRIPPERS]
        fingers = self._with_fingers[pairs] & (by.max(axis=1) > 0)[which]
        which, pairs = which[fingers], pairs[fingers]
        opened = self._exact(_opened(ends, slide, by), which, pairs)
        found[which, pairs] = np.maximum(found[which, pairs], opened)
        return found

    def _some_distances(self, rows: Array, widest: Array, which: Indices, pairs: Indices) -> Array:
        """Return (m,) distances of ``pairs`` (m,) in the rows ``which`` (m,)."""
        ends, slide = self._place(rows)
        found, by = self._exact(ends, which, pairs), widest - rows[:, _GRIPPERS]
        if (by > 0).any():
            found = np.maximum(found, self._exact(_opened(ends, slide, by), which, pairs))
        return found

    def _exact(self, ends: Array, which: Indices, pairs: Indices) -> Array:
        """Return (m,) distances of ``pairs`` (m,) in the poses ``which`` (m,)."""
        found = np.empty(len(pairs))
        tables = pairs >= self._count
        links = ~tables
        found[tables] = self._heights(ends)[which[tables], self._above[pairs[tables] - self._count]]
        found[links] = self._segments(ends, which[links], pairs[links])
        return found

    def _heights(self, ends: Array) -> Array:
        """Return (n, capsules) heights above the table."""
        return np.asarray(ends[..., 2].min(axis=2) - self._radii - self._table)

    def _segments(self, ends: Array, which: Indices, pairs: Indices) -> Array:
        """Return (m,) distances between the capsules of ``pairs`` in the poses ``which``.

        The closest points of two lines of finite length: clamp the one of the endless lines, then
        the other's, then the first again.
        """
        first, second = self._first[pairs], self._second[pairs]
        one, other = ends[which, first], ends[which, second]  # (m, 2, 3)
        along, across = one[:, 1] - one[:, 0], other[:, 1] - other[:, 0]
        off = one[:, 0] - other[:, 0]
        a, e = 4 * self._half[first] ** 2, 4 * self._half[second] ** 2
        b, c, f = _dot(along, across), _dot(along, off), _dot(across, off)
        area = np.maximum(a * e - b * b, 1e-12)
        s = np.clip((b * f - c * e) / area, 0.0, 1.0)
        t = np.clip((b * s + f) / e, 0.0, 1.0)
        s = np.clip((b * t - c) / a, 0.0, 1.0)
        gap = off + s[:, None] * along - t[:, None] * across
        return np.asarray(np.sqrt(_dot(gap, gap)) - self._radii[first] - self._radii[second])

    def _place(self, rows: Array) -> tuple[Array, Array]:
        """Return both ends of every capsule's line in (n, 14) poses, and where openings move them.

        Returns:
            (n, capsules, 2, 3) [m]; (n, capsules, 3) [m] per opening, 0 but for fingers.
        """
        each = rows.reshape(-1, ARM_DIM)  # both arms of a row, then those of the next
        turns = np.empty((len(vx300s.JOINTS), len(each), 4, 4))
        turns[:] = self._turns[:, None]
        joint, (one, two) = np.arange(len(turns)), self._turning
        turns[joint, :, one, one] = turns[joint, :, two, two] = np.cos(each[:, joint]).T
        sines = np.sin(each[:, joint]).T
        turns[joint, :, one, two], turns[joint, :, two, one] = sines, -sines
        frames = [np.tile(self._bases, (len(rows), 1, 1))]  # place and axes, xyz
        for turn in turns:
            frames.append(turn @ frames[-1])
        ends = np.concatenate(
            [local @ frame for local, frame in zip(self._ends, frames, strict=True)], axis=1
        ).reshape(len(each), -1, 2, 3)
        slide = self._slides * frames[-1][:, None, 2]
        ends += (each[:, ARM_JOINTS, None, None] * slide)[:, :, None]
        return ends.reshape(len(rows), -1, 2, 3), slide.reshape(len(rows), -1, 3)


_GRIPPERS = GRIPPER_INDICES
_STROKE = vx300s.FINGER_OPEN - vx300s.FINGER_CLOSED


class _Path:
    """The cubic between rows."""

    def __init__(self, rows: Array, per_row: Array, widest: Array) -> None:
        self._rows, self._per_row, self._widest = rows, per_row, widest

    def poses(self, at: Indices, u: Array) -> tuple[Array, Array, Indices]:
        """Return the poses and widest openings at each different place, and which is which."""
        unique, which = np.unique(at + u, return_inverse=True)
        row = np.floor(unique).astype(np.intp)
        poses = self._sample(row, unique - row)
        widest = np.maximum(self._widest[row], poses[:, _GRIPPERS])
        return poses, widest, which.reshape(-1)

    def moved(self, at: Indices, begin: Array, end: Array) -> Array:
        """Return (m, 14) how far each joint goes on each stretch."""
        return np.abs(self._sample(at, end) - self._sample(at, begin))

    def _sample(self, row: Indices, u: Array) -> Array:
        u = u[:, None]
        return np.asarray(
            (1 + 2 * u) * (1 - u) ** 2 * self._rows[row]
            + u * (1 - u) ** 2 * self._per_row[row]
            + u**2 * (3 - 2 * u) * self._rows[row + 1]
            + u**2 * (u - 1) * self._per_row[row + 1]
        )


def _openings(rows: Array, measured: Array) -> tuple[Array, Array]:
    """Return (n, 14) rows with openings from 0 to 1, and the widest (n, 2) up to each of them."""
    rows = rows.copy()
    rows[:, _GRIPPERS] = np.clip(rows[:, _GRIPPERS], 0.0, 1.0)
    widest: Array = rows[:, _GRIPPERS].copy()
    widest[0] = np.maximum(widest[0], np.clip(measured, 0.0, 1.0))
    return rows, np.maximum.accumulate(widest, axis=0)


def _axes(yaw: float) -> Array:
    """Return the (3, 3) axes, one per row, of a frame that is turned about z by ``yaw`` [rad]."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])


def _opened(ends: Array, slide: Array, by: Array) -> Array:
    """Return (n, capsules, 2, 3) ends with the grippers opened further by (n, 2)."""
    further = np.repeat(by, len(vx300s.CAPSULES), axis=1)[..., None]
    return np.asarray(ends + (further * slide)[:, :, None])


def _dot(one: Array, other: Array) -> Array:
    return np.asarray(np.einsum("ij,ij->i", one, other))


def _can_meet(i: int, j: int) -> bool:
    """Whether two capsules can come near each other, j before i.

    Of one arm, what the elbow carries behind the forearm's roll can reach what lies before the
    elbow. Joint limits keep all other links apart, or they hang together.
    """
    count = len(vx300s.CAPSULES)
    near, far = sorted((vx300s.CAPSULES[i % count].frame, vx300s.CAPSULES[j % count].frame))
    if i // count != j // count:  # no upper arm comes down to a base
        return far > (vx300s.UPPER_ARM if near == vx300s.BASE else vx300s.SHOULDER)
    if far == vx300s.LOWER_FOREARM:
        return near in (vx300s.SHOULDER, vx300s.UPPER_ARM)
    return far > vx300s.LOWER_FOREARM and near <= vx300s.UPPER_ARM


def _may_touch(i: int, j: int) -> bool:
    """Whether two capsules are one arm's fingers and the other arm's fingers or hand."""
    count = len(vx300s.CAPSULES)
    one, other = vx300s.CAPSULES[i % count], vx300s.CAPSULES[j % count]
    hands = one.frame == other.frame == vx300s.HAND
    return i // count != j // count and hands and bool(one.slides or other.slides)


def _reach(i: int, *, above: bool = False, since: int = -1) -> Array:
    """Return the (14,) most that each joint's turn moves any point of a capsule [m/rad].

    Args:
        i: the capsule.
        above: only up and down, which the waist does not move.
        since: frame of the same arm against which the motion is; its own joint and those before it
            move both.
    """
    arm, number = divmod(i, len(vx300s.CAPSULES))
    capsule = vx300s.CAPSULES[number]
    ends = np.array([capsule.start, capsule.end])
    if capsule.slides:
        ends = np.abs(ends) + np.array([0.0, vx300s.FINGER_OPEN, 0.0])
    reach = np.zeros(STATE_DIM)
    for joint in range(capsule.frame):
        if joint < since or (above and joint == 0):
            continue
        if joint == capsule.frame - 1:  # about an axis of its own frame
            lever = np.delete(ends, vx300s.AXES[joint], axis=1)
            furthest = float(np.linalg.norm(lever, axis=1).max())
        else:
            between = vx300s.ORIGINS[joint + 1 : capsule.frame]
            furthest = float(np.linalg.norm(ends, axis=1).max())
            furthest += float(np.linalg.norm(between, axis=1).sum())
        reach[arm * ARM_DIM + joint] = furthest + capsule.radius
    if capsule.slides:
        reach[arm * ARM_DIM + ARM_JOINTS] = _STROKE
    return reach


def _relative_reach(i: int, j: int) -> Array:
    """Return the (14,) most that each joint's turn brings two capsules closer [m/rad]."""
    count = len(vx300s.CAPSULES)
    if i // count != j // count:
        return _reach(i) + _reach(j)
    return _reach(i, since=vx300s.CAPSULES[j % count].frame)
