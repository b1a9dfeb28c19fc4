"""The safety gate: one ordered list of rules over a whole chunk, before anything is published.

The same object judges live, in a dry run and over recorded episodes. It is symmetric and looks at
every joint; the released client's check saw only positive jumps and no grippers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.rig.arms import GRIPPER_INDICES, STATE_DIM
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.splice import Splice, Splicer

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Situation:
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
class Verdict:
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
        self._lead_in = round(rig.gate.lead_in / rig.rates.dt)  # rows
        self._lead_in_jump = rig.gate.lead_in_jump
        self._state_age = rig.observation.state_timeout
        self._result_age = rig.gate.result_age

    def judge(
        self, positions: Array, dt: float, now: Situation, rows: int | None = None
    ) -> Verdict:
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
        return (
            self._check_start(chunk, now)
            or self._check_speed(chunk)
            or Verdict(True, chunk, int(np.count_nonzero(clipped != positions)), message=message)
        )

    def judge_splice(self, splice: Splice, splicer: Splicer, now: Situation) -> Verdict:
        """Judge a chunk that is to take over from the one under way.

        The rules are :meth:`judge`'s. The start jump is that between the two paths where the new
        one takes over, and the measured pose may be any of those commanded of late; the speeds are
        those of the spliced path.

        Returns:
            The first rule broken, or acceptance with the (n, 14) rows of the spliced path.
        """
        positions = splice.decided.positions
        if unusable := self._check_usable(positions, splice.decided.dt, now, self._steps):
            return unusable
        clipped = np.clip(positions, self._lower, self._upper)
        splice = replace(splice, decided=replace(splice.decided, positions=clipped))
        rows = np.clip(splicer(splice), self._lower, self._upper)
        before, _ = splice.path.state(splice.path.due_ns(splice.first - 1))
        return (
            self._check_takeover(splice, now)
            or self._check_speed(np.vstack([before, rows]), first=splice.first - 1)
            or Verdict(True, rows, int(np.count_nonzero(clipped != positions)))
        )

    def _led_over(self, chunk: Array, commanded: Array) -> tuple[Array, str]:
        """Begin a chunk where the arms are held, if the rig asks for it and it is near enough.

        One that may begin where it does is left as it was decided.
        """
        off = commanded - chunk[0]
        jump = np.delete(np.abs(off), GRIPPER_INDICES)
        furthest = float(jump.max())
        # A held pose outside the limits leads nowhere that the limits allow.
        inside = bool(((commanded >= self._lower) & (commanded <= self._upper)).all())
        acceptable = bool((np.abs(off) <= self._start_jump).all())
        if not self._lead_in or acceptable or furthest > self._lead_in_jump or not inside:
            return chunk, ""
        share = (1 + np.cos(np.pi * np.arange(self._lead_in) / self._lead_in)) / 2
        led = chunk.copy()
        led[: self._lead_in] += share[:, None] * off
        # Between two poses within the limits, but not always on the straight way.
        led = np.clip(led, self._lower, self._upper)
        return led, f"led over from the held pose, {furthest:.3f} rad off"

    def _check_usable(
        self, positions: Array, dt: float, now: Situation, rows: int
    ) -> Verdict | None:
        return (
            self._check_shape(positions, dt, rows)
            or self._check_finite(positions)
            or self._check_ages(now)
            or self._check_limits(positions)
        )

    def _check_shape(self, positions: Array, dt: float, rows: int) -> Verdict | None:
        if positions.shape == (rows, STATE_DIM) and abs(dt - self._dt) < 1e-9:
            return None
        return Verdict(
            False,
            rule="shape",
            message=f"chunk of shape {positions.shape} at dt {dt:g} s, the rig takes "
            f"({rows}, {STATE_DIM}) at {self._dt:g} s: the checkpoint is for another rig",
        )

    def _check_finite(self, positions: Array) -> Verdict | None:
        bad = np.argwhere(~np.isfinite(positions))
        if not len(bad):
            return None
        step, joint = map(int, bad[0])
        return Verdict(
            False,
            rule="finite",
            joint=joint,
            step=step,
            value=float(positions[step, joint]),
            message=f"{self._names[joint]} at step {step} is {positions[step, joint]} "
            f"({len(bad)} values are not finite): check the checkpoint and its statistics",
        )

    def _check_ages(self, now: Situation) -> Verdict | None:
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

    def _check_limits(self, positions: Array) -> Verdict | None:
        excess = np.maximum(self._lower - positions, positions - self._upper)
        return self._worst(
            "joint_limits",
            excess,
            self._overshoot,
            "past its position limit: compare the checkpoint's statistics with the rig file",
        )

    def _check_start(self, positions: Array, now: Situation) -> Verdict | None:
        for reference, what in ((now.commanded, "commanded"), (now.measured, "measured")):
            jump = np.abs(positions[:1] - reference)
            advice = f"from the {what} pose: move the arms to the start pose (or mend the policy)"
            if verdict := self._worst("start_jump", jump, self._start_jump, advice):
                return verdict
        return None

    def _check_takeover(self, splice: Splice, now: Situation) -> Verdict | None:
        limit = self._start_jump
        if self._lead_in:  # a rig that leads chunks over from further off does so here, too
            limit = np.maximum(limit, self._lead_in_jump)
        advice = "from the path under way: mend the policy, or set execution: blocking"
        gap = np.abs(splice.gap)[None]
        if verdict := self._worst("start_jump", gap, limit, advice, first=splice.takeover):
            return verdict
        trail = now.commanded[None] if now.trail is None else now.trail
        off = np.maximum(trail.min(axis=0) - now.measured, now.measured - trail.max(axis=0))
        advice = "from where it was commanded to be: is the arm held, or its servo overloaded?"
        return self._worst("start_jump", np.maximum(off, 0.0)[None], self._start_jump, advice)

    def _check_speed(self, positions: Array, first: int = 0) -> Verdict | None:
        # Row 0 is the start jump's: its reference is a pose of the arms, not a row.
        steps = np.zeros_like(positions)
        steps[1:] = np.abs(np.diff(positions, axis=0))
        advice = "in one control step: too fast"
        return self._worst("step_speed", steps, self._step, advice, first)

    def _worst(
        self, rule: str, found: Array, limit: Array, advice: str, first: int = 0
    ) -> Verdict | None:
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
        return Verdict(
            False,
            rule=rule,
            joint=joint,
            step=step + first,
            value=value,
            limit=allowed,
            message=f"{self._names[joint]} at step {step + first} is {value:.3f} {unit} {advice}; "
            f"allowed is {allowed:.3f}",
        )


def _too_old(rule: str, age: float, limit: float, message: str) -> Verdict:
    told = f"{message.format(age=f'{age:.2f}')}; allowed is {limit:g} s"
    return Verdict(False, rule=rule, value=age, limit=limit, message=told)
