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
from cosmos_policy_ros.rig.chunk import Blend, Blender, TimedChunk
from cosmos_policy_ros.rig.collision import CollisionModel
from cosmos_policy_ros.rig.spec import SHAKE_ROWS, RigSpec


@dataclass(frozen=True)
class GateContext:
    """Where the arms are when a chunk is judged, and how old is what is known of them.

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
    """What the gate said of one chunk.

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
        jump: (14,) first row, as it was decided, less the commanded pose there; None when refused.
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

    @property
    def led(self) -> Array:
        """(14,) signed sum of what the first rows were off the commanded pose, policy units."""
        led: Array = self._sum.copy()
        return led

    def add(self, verdict: GateResult) -> GateResult:
        """Count an accepted chunk; return its verdict, which tells of a drift over the limit."""
        if verdict.jump is None:
            return verdict
        self._chunks += 1
        self._sum += verdict.jump
        arms = np.abs(self._sum)
        arms[GRIPPER_INDICES] = 0.0
        joint = int(np.argmax(arms))
        if not 0 < self._limit < arms[joint]:
            return verdict
        told = (
            f"the first rows of {self._chunks} chunks have led {self._names[joint]} away by "
            f"{self._sum[joint]:+.2f} rad in all (told from {self._limit:g} rad on): does the "
            "policy see the arms where they are?"
        )
        return replace(verdict, message="; ".join(filter(None, (verdict.message, told))))


class SafetyGate:
    """Judges chunks against one rig's limits."""

    def __init__(self, rig: RigSpec) -> None:
        """Take the limits from ``rig`` once."""
        self._names = rig.joint_names
        self._steps = rig.rates.chunk_steps
        self._dt = rig.rates.dt
        self._lower, self._upper = rig.lower, rig.upper
        self._start_jump = np.full(STATE_DIM, rig.gate.start_jump)
        self._overshoot = np.full(STATE_DIM, rig.gate.joint_overshoot)
        for gripper in GRIPPER_INDICES:
            self._start_jump[gripper] = rig.gate.gripper_start_jump
            self._overshoot[gripper] = rig.gate.gripper_overshoot
        self._step = rig.max_velocity * rig.gate.velocity_scale * rig.rates.dt
        self._ramp_in = round(rig.gate.ramp_in / rig.rates.dt)  # rows
        self._ramp_in_jump = rig.gate.ramp_in_jump
        self._state_age = rig.observation.state_timeout
        self._result_age = rig.gate.result_age
        self._ahead = rig.observation.stamp_ahead
        self._max_velocity = rig.max_velocity
        self._acceleration = rig.max_acceleration
        self._shake = rig.max_acceleration * (rig.gate.shake or np.inf)
        self._collisions = None if rig.geometry is None else CollisionModel(rig.geometry)

    def judge(
        self, positions: Array, dt: float, now: GateContext, rows: int | None = None
    ) -> GateResult:
        """Judge one chunk.

        Args:
            positions: (K, 14) targets, policy units.
            dt: seconds between rows.
            now: where the arms are.
            rows: how many there should be; None for a policy's chunk on this rig.

        Returns:
            The first rule broken, or acceptance with the clamped positions.
        """
        if unusable := self._check_usable(positions, dt, now, rows or self._steps):
            return unusable
        clipped = np.clip(positions, self._lower, self._upper)
        chunk, message = self._led_over(clipped, now.commanded)
        clamped = int(np.count_nonzero(clipped != positions))
        return (
            self._check_start(chunk, now)
            or self._check_speed(now.commanded, chunk, from_rest=True)
            or self._check_acceleration(now.commanded, chunk, from_rest=True)
            or self._check_collision(now.commanded, chunk, now.measured)
            or GateResult(True, chunk, clamped, message=message, jump=clipped[0] - now.commanded)
        )

    def judge_splice(self, blend: Blend, blender: Blender, now: GateContext) -> GateResult:
        """Judge a chunk that is to take over from the one under way.

        The rules are :meth:`judge`'s. The start jump is that between the two paths where the new
        one takes over, and the measured pose may be any of those commanded of late; the speeds are
        those of the blended path.

        Returns:
            The first rule broken, or acceptance with the (n, 14) rows of the blended path.
        """
        positions = blend.decided.positions
        if unusable := self._check_usable(positions, blend.decided.dt, now, self._steps):
            return unusable
        clipped = np.clip(positions, self._lower, self._upper)
        blend = replace(blend, decided=replace(blend.decided, positions=clipped))
        rows = np.clip(blender(blend), self._lower, self._upper)
        before, velocity = blend.path.state(blend.path.due_ns(blend.first - 1))
        clamped = int(np.count_nonzero(clipped != positions))
        return (
            self._check_takeover(blend, now)
            or self._check_speed(before, rows, blend.first)
            or self._check_acceleration(before, rows, blend.first)
            or self._check_collision(before, rows, now.measured, velocity, blend.first)
            or GateResult(True, rows, clamped, jump=blend.gap)
        )

    def closest(self, positions: Array, now: GateContext) -> dict[tuple[str, str], float]:
        """Return how close each two links, or link and table, come at a chunk's rows [m].

        Args:
            positions: (K, 14) targets, policy units.
            now: where the arms are.
        """
        if self._collisions is None or not np.isfinite(positions).all():
            return {}
        rows = np.clip(np.vstack([now.commanded, positions]), self._lower, self._upper)
        return self._collisions.distances(rows, now.measured[GRIPPER_INDICES])

    def _led_over(self, chunk: Array, commanded: Array) -> tuple[Array, str]:
        """Begin a chunk where the arms are held, if the rig asks for it and it is near enough.

        One that may begin where it does is left as it was decided.
        """
        off = commanded - chunk[0]
        jump = np.delete(np.abs(off), GRIPPER_INDICES)
        furthest = float(jump.max())
        # A held pose outside the limits leads nowhere that the limits allow.
        inside = bool(((commanded >= self._lower) & (commanded <= self._upper)).all())
        # From rest, the arms reach row 0 in one step.
        step = np.minimum(self._step, self._acceleration * self._dt**2)
        step[GRIPPER_INDICES] = np.inf
        acceptable = bool((np.abs(off) <= np.minimum(self._start_jump, step)).all())
        # There they may have to turn round.
        turn = np.abs(np.diff(np.vstack([commanded, chunk[:2]]), n=2, axis=0))
        turn[:, GRIPPER_INDICES] = 0.0
        acceptable &= bool((turn <= self._acceleration * self._dt**2).all())
        if not self._ramp_in or acceptable or furthest > self._ramp_in_jump or not inside:
            return chunk, ""
        share = (1 + np.cos(np.pi * np.arange(self._ramp_in) / self._ramp_in)) / 2
        led = chunk.copy()
        led[: self._ramp_in] += share[:, None] * off
        # Between two poses within the limits, but not always on the straight way.
        led = np.clip(led, self._lower, self._upper)
        return led, f"led over from the held pose, {furthest:.3f} rad off"

    def _check_usable(
        self, positions: Array, dt: float, now: GateContext, rows: int
    ) -> GateResult | None:
        return (
            self._check_shape(positions, dt, rows)
            or self._check_finite(positions)
            or self._check_ages(now)
            or self._check_limits(positions)
        )

    def _check_shape(self, positions: Array, dt: float, rows: int) -> GateResult | None:
        if positions.shape == (rows, STATE_DIM) and abs(dt - self._dt) < 1e-9:
            return None
        return GateResult(
            False,
            rule="shape",
            message=f"chunk of shape {positions.shape} at dt {dt:g} s, the rig takes "
            f"({rows}, {STATE_DIM}) at {self._dt:g} s: the checkpoint is for another rig",
        )

    def _check_finite(self, positions: Array) -> GateResult | None:
        bad = np.argwhere(~np.isfinite(positions))
        if not len(bad):
            return None
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

    def _check_ages(self, now: GateContext) -> GateResult | None:
        for rule, what, age in (
            ("stale_state", "the arms' last report", now.state_age),
            ("result_age", "what the chunk was decided on", now.result_age),
        ):
            if age < -self._ahead:
                return _too_old(
                    rule,
                    -age,
                    self._ahead,
                    f"{what} is stamped {{age}} s ahead of the clock here: set the machines' "
                    "clocks by each other (chrony or ptp)",
                )
        if not now.state_age <= self._state_age:
            return _too_old(
                "stale_state",
                now.state_age,
                self._state_age,
                "the arms were last heard of {age} s ago: are their drivers running?",
            )
        if not now.result_age <= self._result_age:
            return _too_old(
                "result_age",
                now.result_age,
                self._result_age,
                "decided on what was seen {age} s ago: give the search a deadline, or look at what "
                "keeps the policy",
            )
        return None

    def _check_limits(self, positions: Array) -> GateResult | None:
        excess = np.maximum(self._lower - positions, positions - self._upper)
        return self._worst(
            "joint_limits",
            excess,
            self._overshoot,
            "past its position limit: compare the checkpoint's statistics with the rig file",
        )

    def _check_start(self, positions: Array, now: GateContext) -> GateResult | None:
        for reference, what in ((now.commanded, "commanded"), (now.measured, "measured")):
            jump = np.abs(positions[:1] - reference)
            advice = f"from the {what} pose: move the arms to the start pose (or fix the policy)"
            if verdict := self._worst("start_jump", jump, self._start_jump, advice):
                return verdict
        return None

    def _check_takeover(self, blend: Blend, now: GateContext) -> GateResult | None:
        limit = self._start_jump
        if self._ramp_in:  # a rig that leads chunks over from further off does so here, too
            limit = np.maximum(limit, self._ramp_in_jump)
        advice = "from the path under way: fix the policy, or set execution: synchronous"
        gap = np.abs(blend.gap)[None]
        if verdict := self._worst("start_jump", gap, limit, advice, first=blend.takeover):
            return verdict
        trail = now.commanded[None] if now.trail is None else now.trail
        off = np.maximum(trail.min(axis=0) - now.measured, now.measured - trail.max(axis=0))
        advice = "from where it was commanded to be: is the arm held, or its servo overloaded?"
        return self._worst("start_jump", np.maximum(off, 0.0)[None], self._start_jump, advice)

    def _check_speed(
        self, before: Array, rows: Array, first: int = 0, *, from_rest: bool = False
    ) -> GateResult | None:
        steps = np.abs(np.diff(rows, axis=0, prepend=before[None]))
        if from_rest:
            # The start jump's alone: a gripper at an object stands far from its target.
            steps[0, GRIPPER_INDICES] = 0.0
        return self._worst("step_speed", steps, self._step, "in one control step: too fast", first)

    def _check_acceleration(
        self, before: Array, rows: Array, first: int = 0, *, from_rest: bool = False
    ) -> GateResult | None:
        """Look at the change of speed at every row; the arms rest at the last one."""
        path = np.vstack([before, before, rows, rows[-1]])
        found = np.abs(np.diff(path, n=2, axis=0)) / self._dt**2
        # Arms at rest leave the held pose for row 0; moving ones are on their way to it.
        found[1] = np.maximum(found[0], found[1]) if from_rest else found[1]
        found = found[1:]
        advice = "^2 of acceleration: the policy jerks; compare its rate with the rig's"
        if verdict := self._worst("acceleration", found, self._acceleration, advice, first):
            return verdict
        sums = np.cumsum(np.vstack([np.zeros((SHAKE_ROWS, STATE_DIM)), found**2]), axis=0)
        shaking = np.sqrt((sums[SHAKE_ROWS:] - sums[:-SHAKE_ROWS]) / SHAKE_ROWS)
        advice = f"^2 of acceleration, root mean square over {SHAKE_ROWS} rows: the policy shakes"
        return self._worst("shaking", shaking, self._shake, advice, first)

    def _check_collision(
        self,
        before: Array,
        rows: Array,
        measured: Array,
        velocity: Array | None = None,
        first: int = 0,
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
        self, rule: str, found: Array, limit: Array, advice: str, first: int = 0
    ) -> GateResult | None:
        """Refuse with the entry that is furthest over its limit, if any is over.

        Args:
            rule: its name.
            found: (n, 14) values.
            limit: (14,).
            advice: ends the message.
            first: number of the row that ``found`` begins with.
        """
        # A hair of tolerance: a chunk exactly at a limit must not fail by rounding.
        over = found - limit * (1 + 1e-9) - 1e-12
        step, joint = map(int, np.unravel_index(int(np.argmax(over)), over.shape))
        if over[step, joint] <= 0:
            return None
        value, allowed = float(found[step, joint]), float(limit[joint])
        unit = "of its stroke" if joint in GRIPPER_INDICES else "rad"
        if advice.startswith("^2"):
            unit, advice = "rad/s^2", advice[3:]
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


def _too_old(rule: str, age: float, limit: float, message: str) -> GateResult:
    told = f"{message.format(age=f'{age:.2f}')}; allowed is {limit:g} s"
    return GateResult(False, rule=rule, value=age, limit=limit, message=told)


# A motion of our own, not the policy's: both arms to their start pose, gently and straight.


CHUNK_ID = "go_to_start"
MINIMUM_JERK_PEAK = 1.875  # its highest speed, of the average


def start_motion(
    rig: RigSpec, gate: SafetyGate, now: GateContext, now_ns: int, speed: float
) -> TimedChunk:
    """Return the way from where the arms are held to their start pose.

    Minimum jerk; every joint sets out and arrives together, and the grippers stay as they are, so
    that nothing is dropped. The safety gate judges it like any other chunk.

    Args:
        rig: start poses and rates.
        gate: judges.
        now: where the arms are.
        now_ns: when they leave.
        speed: of the fastest joint, at most [rad/s].

    Raises:
        RigError: the gate refused.
    """
    goal = np.concatenate([[*arm.start, 0.0] for arm in rig.arms.values()])
    grippers = GRIPPER_INDICES
    goal[grippers] = np.clip(now.commanded[grippers], 0.0, 1.0)
    furthest = float(np.delete(np.abs(goal - now.commanded), grippers).max())
    seconds = MINIMUM_JERK_PEAK * furthest / speed
    rows = max(1, math.ceil(seconds / rig.rates.dt))
    share = np.arange(1, rows + 1)[:, None] / rows
    way = share**3 * (10 - 15 * share + 6 * share**2)
    positions = now.commanded + way * (goal - now.commanded)
    verdict = gate.judge(positions, rig.rates.dt, now, rows=rows)
    if verdict.positions is None:
        raise RigError(f"the way to the start pose is refused: {verdict.message}")
    return TimedChunk(
        CHUNK_ID, now_ns, rig.rates.dt, now.commanded, verdict.positions, rig.max_velocity
    )
