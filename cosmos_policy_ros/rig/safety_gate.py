"""The safety gate: one ordered list of rules over a whole chunk, before anything is published.

The same object judges live, in a dry run and over recorded episodes. It is symmetric and looks at
every joint; the released client's check saw only positive jumps and no grippers. Last comes whether
a link would run into the table, the other arm or its own (:mod:`cosmos_policy_ros.rig.collision`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES, STATE_DIM
from cosmos_policy_ros.rig.chunk import (
    MINIMUM_JERK_PEAK,
    Blend,
    Blender,
    TimedChunk,
    minimum_jerk,
)
from cosmos_policy_ros.rig.collision import CollisionModel
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.tracking import deviation

SHAKE_SECONDS = 0.4  # over which an arm joint's mean acceleration is limited: ten rows at 25 Hz


@dataclass(frozen=True)
class GateContext:
    """Where the arms are when a chunk is judged, and how old that knowledge is.

    Attributes:
        commanded: (14,) last pose that was commanded (the measured one before the first).
        measured: (14,) pose that the arms reported last.
        state_age: seconds since the older of their reports.
        result_age: seconds since the observation that the chunk was decided on.
        trail: (n, 14) poses commanded of late, which moving arms may still be on their way
            through; None for arms at rest.
    """

    commanded: Array
    measured: Array
    state_age: float = 0.0
    result_age: float = 0.0
    trail: Array | None = None


@dataclass(frozen=True)
class GateResult:
    """The gate's answer to one chunk.

    Attributes:
        accepted: False means that nothing of the chunk may reach an arm.
        positions: (K, 14) the chunk to execute, led over from the commanded pose where the rig
            asks for that, clamped onto position limits; None when refused.
        clamped: values that were pulled back.
        rule: the rule that refused, else "".
        joint: index into the 14-vector, -1 when no one joint is meant.
        step: row of the chunk, -1 when no one row is meant.
        value, limit: found and allowed, in the joint's unit.
        message: one sentence for the operator.
        jump: (14,) decided first row less the commanded pose there; None when refused.
    """

    accepted: bool
    positions: Array | None = None
    clamped: int = 0
    rule: str = ""
    joint: int = -1
    step: int = -1
    value: float = 0.0
    limit: float = 0.0
    message: str = ""
    jump: Array | None = None


class StartDrift:
    """Tells when a run's chunks, by where they begin, lead the arms away joint by joint.

    Each first row may be off the commanded pose by nearly a start jump. A policy that always finds
    the arms elsewhere than they are walks them away with every chunk, within every other limit.
    """

    def __init__(self, rig: RigSpec) -> None:
        """Begin a run."""
        self._names, self._limit = rig.joint_names, rig.gate.drift
        self._sum, self._chunks = np.zeros(STATE_DIM), 0

    def add(self, result: GateResult) -> GateResult:
        """Count an accepted chunk; return its result, which names a drift over the limit."""
        if result.jump is None:
            return result
        self._chunks += 1
        self._sum += result.jump
        arms = np.abs(self._sum)
        arms[GRIPPER_INDICES] = 0.0
        joint = int(np.argmax(arms))
        if not 0 < self._limit < arms[joint]:
            return result
        drift = (
            f"the first rows of {self._chunks} chunks have led {self._names[joint]} away by "
            f"{self._sum[joint]:+.2f} rad in all (told from {self._limit:g} rad on): does the "
            "policy see the arms where they are?"
        )
        return replace(result, message="; ".join(filter(None, (result.message, drift))))


class SafetyGate:
    """Judges chunks against one rig's limits; the first rule broken refuses."""

    def __init__(self, rig: RigSpec) -> None:
        """Take the limits from ``rig`` once."""
        self._gate, self._observation = rig.gate, rig.observation
        self._names, self._steps, self._dt = rig.joint_names, rig.rates.chunk_steps, rig.rates.dt
        self._lower, self._upper, self._max_velocity = rig.lower, rig.upper, rig.max_velocity
        self._start_jump = np.full(STATE_DIM, rig.gate.start_jump)
        self._start_jump[GRIPPER_INDICES] = rig.gate.gripper_start_jump
        self._overshoot = np.full(STATE_DIM, rig.gate.joint_overshoot)
        self._overshoot[GRIPPER_INDICES] = rig.gate.gripper_overshoot
        self._step = rig.max_velocity * rig.gate.velocity_scale * rig.rates.dt
        self._acceleration = rig.max_acceleration
        self._shake = rig.max_acceleration * (rig.gate.shake or np.inf)
        self._shake_rows = max(round(SHAKE_SECONDS / rig.rates.dt), 1)
        self._ramp_in = round(rig.gate.ramp_in / rig.rates.dt)  # rows
        self._collisions = None if rig.geometry is None else CollisionModel(rig.geometry)

    def judge(
        self, positions: Array, dt: float, now: GateContext, rows: int | None = None
    ) -> GateResult:
        """Judge a chunk that begins at rest.

        Args:
            positions: (K, 14) targets, policy units.
            dt: seconds between rows.
            now: where the arms are.
            rows: how many there should be; None for a policy's chunk on this rig.
        """
        if unusable := self._check_usable(positions, dt, now, rows or self._steps):
            return unusable
        clipped = np.clip(positions, self._lower, self._upper)
        chunk, message = self._lead_in(clipped, now.commanded)
        for reference, what in ((now.commanded, "commanded"), (now.measured, "measured")):
            jump = np.abs(chunk[:1] - reference)
            advice = f"from the {what} pose: move the arms to the start pose (or fix the policy)"
            if refused := self._worst("start_jump", jump, self._start_jump, advice):
                return refused
        clamped = int(np.count_nonzero(clipped != positions))
        return self._check_path(chunk, now.commanded, None, now.measured) or GateResult(
            True, chunk, clamped, message=message, jump=clipped[0] - now.commanded
        )

    def foresee(self, query: Query, positions: Array) -> str:
        """Return why :meth:`judge` would refuse (K, 14) rows that answer a query; else "".

        For a search, which then chooses among what can be executed. It grants nothing: what is
        chosen is judged again, by where the arms are then. In motion it knows nothing, since a
        path depends on when its answer comes.
        """
        if query.held is None:
            return ""
        now = GateContext(query.held, query.observation.state)
        result = self.judge(positions, self._dt, now)
        return "" if result.accepted else result.message

    def judge_blend(self, blend: Blend, blender: Blender, now: GateContext) -> GateResult:
        """Judge a chunk that is to take over from the one under way.

        The rules are :meth:`judge`'s. The start jump is that between the two paths where the new
        one takes over, and the measured pose may be any of those commanded of late; the speeds are
        those of the blended path, whose rows (n, 14) are the result's positions.
        """
        positions = blend.decided.positions
        if unusable := self._check_usable(positions, blend.decided.dt, now, self._steps):
            return unusable
        clipped = np.clip(positions, self._lower, self._upper)
        blend = replace(blend, decided=replace(blend.decided, positions=clipped))
        rows = np.clip(blender(blend), self._lower, self._upper)
        limit = self._start_jump
        if self._ramp_in:  # a rig that leads chunks in from further off does so here, too
            limit = np.maximum(limit, self._gate.ramp_in_jump)
        gap = np.abs(blend.gap)[None]
        advice = "from the path under way: fix the policy, or set execution: synchronous"
        if refused := self._worst("start_jump", gap, limit, advice, blend.takeover):
            return refused
        trail = now.commanded[None] if now.trail is None else now.trail
        off = deviation(now.measured, trail)[None]
        advice = "from where it was commanded to be: is the arm held, or its servo overloaded?"
        if refused := self._worst("start_jump", off, self._start_jump, advice):
            return refused
        before, velocity = blend.path.state(blend.path.due_ns(blend.first - 1))
        clamped = int(np.count_nonzero(clipped != positions))
        return self._check_path(rows, before, velocity, now.measured, blend.first) or GateResult(
            True, rows, clamped, jump=blend.gap
        )

    def closest(self, positions: Array, now: GateContext) -> dict[tuple[str, str], float]:
        """Return how close each two links, or link and table, come at (K, 14) rows [m]."""
        if self._collisions is None or not np.isfinite(positions).all():
            return {}
        rows = np.clip(np.vstack([now.commanded, positions]), self._lower, self._upper)
        return self._collisions.distances(rows, now.measured[GRIPPER_INDICES])

    def _lead_in(self, chunk: Array, commanded: Array) -> tuple[Array, str]:
        """Begin a chunk where the arms are held, if the rig asks for it and it is near enough.

        One whose first row is acceptable is left unchanged.
        """
        off = commanded - chunk[0]
        furthest = float(np.delete(np.abs(off), GRIPPER_INDICES).max())
        # A held pose outside the limits leads nowhere that the limits allow.
        inside = bool(((commanded >= self._lower) & (commanded <= self._upper)).all())
        # From rest, the arms reach row 0 in one step, and there they may have to turn round.
        change = self._acceleration * self._dt**2
        step = np.minimum(self._step, change)
        step[GRIPPER_INDICES] = np.inf
        turn = np.abs(np.diff(np.vstack([commanded, chunk[:2]]), n=2, axis=0))
        turn[:, GRIPPER_INDICES] = 0.0
        acceptable = bool(
            (np.abs(off) <= np.minimum(self._start_jump, step)).all() and (turn <= change).all()
        )
        near = furthest <= self._gate.ramp_in_jump
        if not self._ramp_in or acceptable or not near or not inside:
            return chunk, ""
        rows = min(self._ramp_in, len(chunk))
        share = (1 + np.cos(np.pi * np.arange(rows) / rows)) / 2
        led = chunk.copy()
        led[:rows] += share[:, None] * off
        # Between two poses within the limits, but not always on the straight way.
        led = np.clip(led, self._lower, self._upper)
        return led, f"led over from the held pose, {furthest:.3f} rad off"

    def _check_usable(
        self, positions: Array, dt: float, now: GateContext, rows: int
    ) -> GateResult | None:
        """Check shape, numbers, ages and position limits."""
        if not (positions.shape == (rows, STATE_DIM) and abs(dt - self._dt) < 1e-9):
            return GateResult(
                False,
                rule="shape",
                message=f"chunk of shape {positions.shape} at dt {dt:g} s, the rig takes "
                f"({rows}, {STATE_DIM}) at {self._dt:g} s: the checkpoint is for another rig",
            )
        bad = np.argwhere(~np.isfinite(positions))
        if len(bad):
            step, joint = map(int, bad[0])
            return GateResult(
                False,
                rule="finite",
                joint=joint,
                step=step,
                value=float(positions[step, joint]),
                message=f"{self._names[joint]} at step {step} is {positions[step, joint]} "
                f"({len(bad)} values are not finite): check the checkpoint and its statistics",
            )
        state_age, result_age = now.state_age, now.result_age
        oldest_state, oldest_result = self._observation.state_timeout, self._gate.result_age
        ahead = self._observation.stamp_ahead
        clocks = "ahead of the clock here: set the machines' clocks by each other (chrony or ptp)"
        for rule, broken, value, limit, message in (
            (
                "stale_state",
                state_age < -ahead,
                -state_age,
                ahead,
                f"the arms' last report is stamped {-state_age:.2f} s {clocks}",
            ),
            (
                "result_age",
                result_age < -ahead,
                -result_age,
                ahead,
                f"what the chunk was decided on is stamped {-result_age:.2f} s {clocks}",
            ),
            (
                "stale_state",
                not state_age <= oldest_state,
                state_age,
                oldest_state,
                f"the arms were last heard of {state_age:.2f} s ago: are their drivers running?",
            ),
            (
                "result_age",
                not result_age <= oldest_result,
                result_age,
                oldest_result,
                f"decided on what was seen {result_age:.2f} s ago: give the search a deadline, or "
                "look at what keeps the policy",
            ),
        ):
            if broken:
                message = f"{message}; allowed is {limit:g} s"
                return GateResult(False, rule=rule, value=value, limit=limit, message=message)
        return self._worst(
            "joint_limits",
            np.maximum(self._lower - positions, positions - self._upper),
            self._overshoot,
            "past its position limit: compare the checkpoint's statistics with the rig file",
        )

    def _check_path(
        self,
        rows: Array,
        before: Array,
        velocity: Array | None,
        measured: Array,
        first: int = 0,
    ) -> GateResult | None:
        """Check speeds, accelerations and collisions of the path from ``before`` through ``rows``.

        Arms with a ``velocity`` pass through ``before``, those without leave it from rest; they
        rest at the last row. ``first`` is the number of the first row.
        """
        steps = np.abs(np.diff(rows, axis=0, prepend=before[None]))
        path = np.vstack([before, before, rows, rows[-1]])
        accelerations = np.abs(np.diff(path, n=2, axis=0)) / self._dt**2
        over = self._shake_rows
        # From rest there are two about the first row: of setting out, and of turning there.
        felt = accelerations if velocity is None else accelerations[1:]
        sums = np.cumsum(np.vstack([np.zeros((over, STATE_DIM)), felt**2]), axis=0)
        shaking = np.sqrt((sums[over:] - sums[:-over]) / over)[-len(rows) :]
        if velocity is None:
            # The start jump's alone: a gripper at an object stands far from its target.
            steps[0, GRIPPER_INDICES] = 0.0
            accelerations[1] = np.maximum(accelerations[0], accelerations[1])
        accelerations = accelerations[1:]
        advice = "of acceleration: the policy jerks; compare its rate with the rig's"
        mean = f"of acceleration, root mean square over {over} rows: the policy shakes"
        unit = "rad/s^2"
        return (
            self._worst("step_speed", steps, self._step, "in one control step: too fast", first)
            or self._worst("acceleration", accelerations, self._acceleration, advice, first, unit)
            or self._worst("shaking", shaking, self._shake, mean, first, unit)
            or self._check_collision(rows, before, velocity, measured, first)
        )

    def _check_collision(
        self, rows: Array, before: Array, velocity: Array | None, measured: Array, first: int
    ) -> GateResult | None:
        if self._collisions is None:
            return None
        path = TimedChunk("", 0, self._dt, before, rows, self._max_velocity)
        at_first = np.zeros(STATE_DIM) if velocity is None else velocity
        found = self._collisions.approach(
            np.vstack([before, rows]),
            np.vstack([at_first, path.velocities]),
            self._dt,
            measured[GRIPPER_INDICES],
        )
        if found is None:
            return None
        step = max(found.row - 1, 0) + first
        one, other = found.between
        return GateResult(
            False,
            rule="collision",
            step=step,
            value=found.distance,
            limit=found.limit,
            message=f"{one} and {other} come to {1000 * found.distance:.0f} mm of each other at "
            f"step {step} (below 0 they overlap); allowed is {1000 * found.limit:.0f} mm: move the "
            "arms to the start pose (or fix the policy); if nothing is near, measure geometry in "
            "the rig file",
        )

    def _worst(
        self,
        rule: str,
        found: Array,
        limit: Array,
        advice: str,
        first: int = 0,
        unit: str = "rad",
    ) -> GateResult | None:
        """Refuse with the entry of (n, 14) that is furthest over its (14,) limit, if any is over.

        ``advice`` ends the message, ``first`` is the number of the row that ``found`` begins with.
        """
        # A hair of tolerance: a chunk exactly at a limit must not fail by rounding.
        over = found - limit * (1 + 1e-9) - 1e-12
        step, joint = map(int, np.unravel_index(int(np.argmax(over)), over.shape))
        if over[step, joint] <= 0:
            return None
        value, allowed = float(found[step, joint]), float(limit[joint])
        unit = "of its stroke" if joint in GRIPPER_INDICES else unit
        return GateResult(
            False,
            rule=rule,
            joint=joint,
            step=step + first,
            value=value,
            limit=allowed,
            message=f"{self._names[joint]} at step {step + first} is {value:.3f} {unit} {advice}; "
            f"allowed is {allowed:.3f}",
        )


CHUNK_ID = "go_to_start"


def start_motion(
    rig: RigSpec, gate: SafetyGate, now: GateContext, now_ns: int, speed: float
) -> TimedChunk:
    """Return the way of both arms from where they are held at ``now_ns`` to their start pose.

    Minimum jerk, at most ``speed`` [rad/s]; every joint sets out and arrives together, and the
    grippers stay as they are, so that nothing is dropped. The gate judges it like any other chunk.

    Raises:
        RigError: the gate refused.
    """
    goal = np.concatenate([[*arm.start, 0.0] for arm in rig.arms.values()])
    goal[GRIPPER_INDICES] = np.clip(now.commanded[GRIPPER_INDICES], 0.0, 1.0)
    furthest = float(np.delete(np.abs(goal - now.commanded), GRIPPER_INDICES).max())
    seconds = MINIMUM_JERK_PEAK * furthest / speed
    rows = max(1, math.ceil(seconds / rig.rates.dt))
    share = np.arange(1, rows + 1)[:, None] / rows
    way = minimum_jerk(share)
    positions = now.commanded + way * (goal - now.commanded)
    result = gate.judge(positions, rig.rates.dt, now, rows=rows)
    if result.positions is None:
        raise RigError(f"the way to the start pose is refused: {result.message}")
    return TimedChunk(
        CHUNK_ID, now_ns, rig.rates.dt, now.commanded, result.positions, rig.max_velocity
    )
