"""Where a motion of both arms brings a link too near the table, the other arm or its own arm.

The links are capsules (:mod:`cosmos_policy_ros.rig.vx300s`), the table is everything below a
height, and what the arms hold is not known here. Rows are looked at one by one, and between rows
wherever the links' largest possible motion does not rule out a closer approach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
        self._bases = np.array(  # (arm, place and axes, xyz)
            [
                (
                    base.position,
                    (np.cos(base.yaw), np.sin(base.yaw), 0.0),
                    (-np.sin(base.yaw), np.cos(base.yaw), 0.0),
                    (0.0, 0.0, 1.0),
                )
                for base in (geometry.bases.left, geometry.bases.right)
            ]
        )
        self._table = geometry.table
        capsules = vx300s.CAPSULES
        self._slides = _STROKE * np.array([[float(c.slides)] for c in capsules])
        ends = np.array([(c.start, c.end) for c in capsules])
        ends[..., 1] += vx300s.FINGER_CLOSED * self._slides / _STROKE
        # Per frame, which its capsules follow each other in: (2 capsules, 4), 1 and x, y, z.
        local = np.concatenate([np.ones((*ends.shape[:2], 1)), ends], axis=2)
        frame_of = np.array([c.frame for c in capsules])
        self._ends = [local[frame_of == f].reshape(-1, 4) for f in range(vx300s.HAND + 1)]
        # Per joint, from a frame's place and axes to the next one's, but for the joint's angle.
        axes = np.array(vx300s.AXES)
        self._turns = np.tile(np.eye(4), (len(axes), 1, 1))
        self._turns[:, 0, 1:] = vx300s.ORIGINS
        self._turning = (1 + (axes + 1) % 3, 1 + (axes + 2) % 3)
        lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
        self._half = np.tile(lengths / 2, len(ARMS))
        self._radii = np.array([c.radius for c in capsules] * len(ARMS))

        # A pair is of two links, or after those of a link and the table.
        links = [_Link(arm, capsule) for arm in range(len(ARMS)) for capsule in capsules]
        pairs = [
            (i, j) for i, one in enumerate(links) for j in range(i) if _can_meet(one, links[j])
        ]
        above = [i for i, link in enumerate(links) if link.capsule.frame > vx300s.SHOULDER]
        self._first, self._second = (np.array(each) for each in zip(*pairs, strict=True))
        self._above, self._count = np.array(above), len(pairs)
        names = [f"{ARMS[link.arm]} {link.capsule.link}" for link in links]
        self._names = [(names[j], names[i]) for i, j in pairs] + [(names[i], TABLE) for i in above]
        self._links = np.array([self._names.index(name) for name in self._names])
        fingers = [bool(link.capsule.slides) for link in links]
        self._with_fingers = np.array(
            [fingers[i] or fingers[j] for i, j in pairs] + [fingers[i] for i in above]
        )
        # One arm's fingers may touch the table and the other arm's fingers or hand.
        hands = [link.capsule.frame == vx300s.HAND for link in links]
        may_touch = [hands[i] and hands[j] and links[i].arm != links[j].arm for i, j in pairs]
        self._margins = np.where(
            self._with_fingers & np.array(may_touch + [True] * len(above)),
            geometry.finger_margin,
            geometry.margin,
        )
        self._reach = np.array(
            [
                links[i].reach() + links[j].reach()
                if links[i].arm != links[j].arm
                else links[i].reach(since=links[j].capsule.frame)
                for i, j in pairs
            ]
            + [links[i].reach(above=True) for i in above]
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
            row, pair = map(int, np.unravel_index(int(np.argmax(over)), over.shape))
            return self._approach(pair, row, distances[row, pair], allowed)
        before, after = distances[:-1], distances[1:]
        at, pairs = np.nonzero((before + after - moved) / 2 < allowed)
        if not len(at):
            return None
        path = (rows, velocities * dt, widest)
        return self._between(path, at, pairs, (before[at, pairs], after[at, pairs]), allowed)

    def distances(self, rows: Array, openings: Array | None = None) -> dict[tuple[str, str], float]:
        """Return how close each two links, or link and table, come in (n, 14) poses [m].

        ``openings`` are :meth:`approach`'s; None for fingers where they are commanded.
        """
        rows, widest = _openings(rows, np.zeros(len(ARMS)) if openings is None else openings)
        widest = rows[:, GRIPPER_INDICES] if openings is None else widest
        everything = np.full((len(rows), len(self._margins)), np.inf)
        found: dict[tuple[str, str], float] = {}
        closest = self._distances(rows, widest, everything).min(axis=0)
        for pair, distance in enumerate(closest.tolist()):
            names = self._names[pair]
            found[names] = min(distance, found.get(names, np.inf))
        return found

    def _between(
        self,
        path: tuple[Array, Array, Array],
        at: Indices,
        pairs: Indices,
        distances: tuple[Array, Array],
        allowed: Array,
    ) -> Approach | None:
        """Halve the stretches on which ``pairs`` (m,) may come too close, until none is left.

        They begin with the rows ``at`` (m,) of the ``path``, which is rows, velocities per row and
        widest openings, and have ``distances`` (m,) at their beginning and end.
        """
        rows, per_row, widest = path

        def sample(row: Indices, u: Array) -> Array:
            u = u[:, None]
            return np.asarray(
                (1 + 2 * u) * (1 - u) ** 2 * rows[row]
                + u * (1 - u) ** 2 * per_row[row]
                + u**2 * (3 - 2 * u) * rows[row + 1]
                + u**2 * (u - 1) * per_row[row + 1]
            )

        low, high = distances
        begin, end = np.zeros(len(at)), np.ones(len(at))
        while len(at):
            middle = (begin + end) / 2
            unique, which = np.unique(at + middle, return_inverse=True)
            row = np.floor(unique).astype(np.intp)
            poses = sample(row, unique - row)
            opened = np.maximum(widest[row], poses[:, GRIPPER_INDICES])
            now = self._exact(self._place(poses, opened), which.reshape(-1), pairs)
            over = allowed[pairs] - now
            if (over > 0).any():
                worst = int(np.argmax(over))
                return self._approach(pairs[worst], at[worst] + 1, now[worst], allowed)
            at, pairs = np.tile(at, 2), np.tile(pairs, 2)
            low, high = np.concatenate([low, now]), np.concatenate([now, high])
            begin, end = np.concatenate([begin, middle]), np.concatenate([middle, end])
            moved = np.abs(sample(at, end) - sample(at, begin))
            moved = np.einsum("ij,ji->i", moved, self._reach[:, pairs])
            open_ = ((low + high - moved) / 2 < allowed[pairs]) & (moved > RESOLUTION)
            at, pairs, begin, end = at[open_], pairs[open_], begin[open_], end[open_]
            low, high = low[open_], high[open_]
        return None

    def _approach(self, pair: int, row: int, distance: float, allowed: Array) -> Approach:
        return Approach(self._names[pair], int(row), float(distance), float(allowed[pair]))

    def _distances(self, rows: Array, widest: Array, near: Array) -> Array:
        """Return (n, pairs) distances in (n, 14) poses; those beyond ``near`` are a lower bound.

        An object may have kept the fingers at the ``widest`` (n, 2) openings.
        """
        placed = self._place(rows, widest)
        middles = (placed.ends[:, :, 0] + placed.ends[:, :, 1]).transpose(2, 0, 1) / 2
        apart = np.zeros((len(rows), self._count))
        for axis in np.ascontiguousarray(middles):
            apart += (axis[:, self._first] - axis[:, self._second]) ** 2
        heights = self._heights(placed.ends)[:, self._above]
        found = np.hstack([np.sqrt(apart) - self._bound, heights])
        which, pairs = np.nonzero(found < near)
        found[which, pairs] = self._exact(placed, which, pairs)
        return found

    def _exact(self, placed: _Placed, which: Indices, pairs: Indices) -> Array:
        """Return (m,) distances of ``pairs`` (m,) in the poses ``which`` (m,).

        Of fingers that an object may have kept open, the larger of both ways to stand.
        """
        found = self._apart(placed.ends, which, pairs)
        fingers = np.flatnonzero(self._with_fingers[pairs] & placed.kept_open[which])
        opened = self._apart(placed.opened, which[fingers], pairs[fingers])
        found[fingers] = np.maximum(found[fingers], opened)
        return found

    def _apart(self, ends: Array, which: Indices, pairs: Indices) -> Array:
        """Return (m,) distances of ``pairs`` (m,) in the poses ``which`` (m,) of ``ends``.

        The closest points of two lines of finite length: clamp the one of the endless lines, then
        the other's, then the first again.
        """
        found = np.empty(len(pairs))
        tables = pairs >= self._count
        found[tables] = self._heights(ends)[which[tables], self._above[pairs[tables] - self._count]]
        which, pairs = which[~tables], pairs[~tables]
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
        found[~tables] = np.sqrt(_dot(gap, gap)) - self._radii[first] - self._radii[second]
        return found

    def _heights(self, ends: Array) -> Array:
        """Return (n, capsules) heights above the table."""
        return np.asarray(ends[..., 2].min(axis=2) - self._radii - self._table)

    def _place(self, rows: Array, widest: Array) -> _Placed:
        """Place the capsules in (n, 14) poses, and with fingers ``widest`` (n, 2) open."""
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
        slide = self._slides * frames[-1][:, None, 2]  # [m] per opening, 0 but for fingers
        ends += (each[:, ARM_JOINTS, None, None] * slide)[:, :, None]
        ends, slide = ends.reshape(len(rows), -1, 2, 3), slide.reshape(len(rows), -1, 3)
        by = widest - rows[:, GRIPPER_INDICES]
        further = np.repeat(by, len(vx300s.CAPSULES), axis=1)[..., None]
        return _Placed(ends, ends + (further * slide)[:, :, None], by.max(axis=1) > 0)


_STROKE = vx300s.FINGER_OPEN - vx300s.FINGER_CLOSED


class _Placed(NamedTuple):
    """Both ends of every capsule's line in n poses."""

    ends: Array  # (n, capsules, 2, 3) [m]
    opened: Array  # the same with the fingers as far open as an object may keep them
    kept_open: NDArray[np.bool_]  # (n,) whether that differs


def _openings(rows: Array, measured: Array) -> tuple[Array, Array]:
    """Return (n, 14) rows with openings from 0 to 1, and the widest (n, 2) up to each of them."""
    rows = rows.copy()
    rows[:, GRIPPER_INDICES] = np.clip(rows[:, GRIPPER_INDICES], 0.0, 1.0)
    widest: Array = rows[:, GRIPPER_INDICES].copy()
    widest[0] = np.maximum(widest[0], np.clip(measured, 0.0, 1.0))
    return rows, np.maximum.accumulate(widest, axis=0)


def _dot(one: Array, other: Array) -> Array:
    return np.asarray(np.einsum("ij,ij->i", one, other))


class _Link(NamedTuple):
    """A capsule of one arm."""

    arm: int
    capsule: vx300s.Capsule

    def reach(self, *, above: bool = False, since: int = -1) -> Array:
        """Return the (14,) most that each joint's turn moves any point of it [m/rad].

        With ``above`` only up and down, where the waist moves nothing; with ``since`` against that
        frame of the same arm, whose own joint and those before it move both.
        """
        capsule, first = self.capsule, self.arm * ARM_DIM
        ends = np.array([capsule.start, capsule.end])
        if capsule.slides:
            ends = np.abs(ends) + np.array([0.0, vx300s.FINGER_OPEN, 0.0])
        reach = np.zeros(STATE_DIM)
        for joint in range(max(since, 1 if above else 0), capsule.frame):
            if joint == capsule.frame - 1:  # about an axis of its own frame
                lever = np.delete(ends, vx300s.AXES[joint], axis=1)
                furthest = float(np.linalg.norm(lever, axis=1).max())
            else:
                between = vx300s.ORIGINS[joint + 1 : capsule.frame]
                furthest = float(np.linalg.norm(ends, axis=1).max())
                furthest += float(np.linalg.norm(between, axis=1).sum())
            reach[first + joint] = furthest + capsule.radius
        if capsule.slides:
            reach[first + ARM_JOINTS] = _STROKE
        return reach


def _can_meet(one: _Link, other: _Link) -> bool:
    """Whether two links can come near each other.

    Of one arm, what the elbow carries behind the forearm's roll can reach what lies before the
    elbow. Joint limits keep all other links apart, or they hang together.
    """
    near, far = sorted((one.capsule.frame, other.capsule.frame))
    if one.arm != other.arm:  # no upper arm comes down to a base
        return far > (vx300s.UPPER_ARM if near == vx300s.BASE else vx300s.SHOULDER)
    if far == vx300s.LOWER_FOREARM:
        return near in (vx300s.SHOULDER, vx300s.UPPER_ARM)
    return far > vx300s.LOWER_FOREARM and near <= vx300s.UPPER_ARM
