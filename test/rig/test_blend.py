"""Whatever is decided and whenever it comes, what is sent is one smooth path that is never past."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.chunk import KEPT, Blend, TimedChunk
from cosmos_policy_ros.rig.safety_gate import GateContext, SafetyGate
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryController, TrajectoryPoint

RIG = load_rig("interbotix_2", config_folder("rigs"))
GATE = SafetyGate(RIG)
START = np.concatenate([[*arm.start, 0.5] for arm in RIG.arms.values()])
NOW = 1_000 * NS_PER_S
STEP = 40_000_000
ROWS = 50
HAIR = 1e-9
JUMP = np.tile([RIG.gate.start_jump] * 6 + [RIG.gate.gripper_start_jump], 2)
LIMIT = RIG.max_velocity * RIG.gate.velocity_scale * RIG.rates.dt


def walk(seed: int, start: np.ndarray, share: float = 0.5) -> np.ndarray:
    """Return (50, 14) rows that wander from a pose within the limits, below the speed limit."""
    steps = np.random.default_rng(seed).uniform(-share, share, (ROWS, 14)) * LIMIT
    return np.clip(start + np.cumsum(steps, axis=0), RIG.lower, RIG.upper)


def chunk(rows: np.ndarray, start: np.ndarray, start_ns: int = NOW) -> TimedChunk:
    return TimedChunk("run/0", start_ns, 0.04, start, rows, RIG.max_velocity)


def blend_at(seed: int, seen_ns: int, latency_ns: int, rows: int = 5, share: float = 0.5) -> Blend:
    path = chunk(walk(seed, START, share), START)
    seen = path.sample(NOW + seen_ns)
    decided = chunk(walk(seed + 1, seen, share), seen, NOW + seen_ns)
    return Blend(path, decided, NOW + seen_ns + latency_ns, rows)


MOMENTS = {
    "seed": st.integers(0, 2**31),
    "seen_ns": st.integers(0, 2 * NS_PER_S),
    "latency_ns": st.integers(0, 2 * NS_PER_S),
    "rows": st.integers(0, 12),
}


@given(**MOMENTS)
def test_what_is_sent_goes_on_from_what_is_commanded(
    seed: int, seen_ns: int, latency_ns: int, rows: int
) -> None:
    blend = blend_at(seed, seen_ns, latency_ns, rows)
    if blend.lateness > 0:
        return
    sent = blend.chunk("run/1", blend.blended())
    assert sent.sent_ns == blend.now_ns
    times = sent.times_ns()
    assert times[0] > 0, "a point of the past"
    assert all(b > a for a, b in pairwise(times))
    assert sent.end_ns <= blend.decided.end_ns
    # Up to the first row it is the old path to the last bit, position and velocity.
    for at in np.linspace(blend.now_ns, sent.due_ns(0), 5).astype(int):
        for found, was in zip(sent.state(int(at)), blend.path.state(int(at)), strict=True):
            np.testing.assert_allclose(found, was, atol=HAIR)
    np.testing.assert_array_equal(sent.positions[:KEPT], blend.old[:KEPT])
    # Far behind the transition it is what was decided.
    behind = KEPT + rows + 1
    np.testing.assert_allclose(sent.positions[behind:], blend.new[behind:], atol=HAIR)


@given(**MOMENTS)
def test_position_and_velocity_are_continuous_at_the_controller(
    seed: int, seen_ns: int, latency_ns: int, rows: int
) -> None:
    """Played by a controller that forgets the old trajectory the moment the new one arrives."""
    blend = blend_at(seed, seen_ns, latency_ns, rows)
    if blend.lateness > 0:
        return
    sent = blend.chunk("run/1", blend.blended())
    names = [f"j{i}" for i in range(14)]
    controller = TrajectoryController(names, START)

    def points(of: TimedChunk) -> list[TrajectoryPoint]:
        return [
            TrajectoryPoint(tuple(p), tuple(v), t)
            for p, v, t in zip(of.positions, of.velocities, of.times_ns(), strict=True)
        ]

    controller.accept(names, points(blend.path), 0, NOW)
    now_ns = blend.now_ns
    before = controller.state(now_ns)
    controller.accept(names, points(sent), 0, now_ns)
    after = controller.state(now_ns)
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    np.testing.assert_allclose(after[1], before[1], atol=1e-4)
    # It then plays what the run believes to be commanded.
    for at in (now_ns + 7_000_000, now_ns + 300_000_000):
        np.testing.assert_allclose(controller.sample(at), sent.sample(at), atol=1e-6)


@given(**MOMENTS, share=st.floats(0.1, 1.2), offset=st.floats(-0.4, 0.4))
def test_the_gates_limits_hold_across_splices(
    seed: int, seen_ns: int, latency_ns: int, rows: int, share: float, offset: float
) -> None:
    blend = blend_at(seed, seen_ns, latency_ns, rows, share=0.2)
    if blend.lateness > 0:
        return
    wild = walk(seed + 2, blend.decided.start + offset, share)
    blend = replace(blend, decided=replace(blend.decided, positions=wild))
    commanded = blend.path.sample(blend.now_ns)
    verdict = GATE.judge_blend(blend, Blend.blended, GateContext(commanded, commanded))
    if verdict.positions is None:
        if verdict.rule == "collision":
            assert verdict.value < verdict.limit
            return
        rules = ("start_jump", "step_speed", "joint_limits", "acceleration", "shaking")
        assert verdict.rule in rules
        assert verdict.value > verdict.limit
        return
    sent = blend.chunk("run/1", verdict.positions)
    path = np.vstack([blend.path.sample(sent.start_ns), verdict.positions])
    assert (np.abs(np.diff(path, axis=0)) <= LIMIT * (1 + 1e-6)).all()
    changes = np.diff(np.delete(path, (6, 13), axis=1), n=2, axis=0) / 0.04**2
    assert (np.abs(changes) <= 78.54 * (1 + 1e-6)).all()
    assert (verdict.positions >= RIG.lower - HAIR).all()
    assert (verdict.positions <= RIG.upper + HAIR).all()
    assert (np.abs(blend.gap) <= JUMP + 0.5 * LIMIT).all()


def test_an_answer_when_the_path_is_nearly_over_is_late() -> None:
    left = 3 * STEP
    assert blend_at(0, NS_PER_S, NS_PER_S - left).lateness <= 0
    assert blend_at(0, NS_PER_S, NS_PER_S - STEP).lateness == pytest.approx(0.04)
    assert blend_at(0, NS_PER_S, NS_PER_S + STEP).lateness == pytest.approx(0.12)


@pytest.mark.parametrize("seen_ns", [0, -NS_PER_S // 2, 7 * STEP])
def test_the_last_moment_that_is_not_late_leaves_a_row_of_the_new_path(seen_ns: int) -> None:
    """Even of what was seen before the path began, as after a clock that jumped."""
    late = blend_at(4, seen_ns, 0).lateness
    last = blend_at(4, seen_ns, -round(late * NS_PER_S))
    assert last.lateness == 0
    sent = last.chunk("run/1", last.blended())
    assert len(sent.positions) > KEPT
    assert blend_at(4, seen_ns, -round(late * NS_PER_S) + 1).lateness > 0


def test_rows_that_are_past_are_dropped() -> None:
    """Observed at row 10's time, answered after 12.5 rows: 12 are past, and the old path's two."""
    blend = blend_at(3, 10 * STEP, 12 * STEP + STEP // 2)
    assert blend.first == 22
    assert blend.takeover == 24
    assert blend.dropped == 14
    np.testing.assert_allclose(blend.new[KEPT], blend.decided.positions[14], atol=HAIR)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("joint", range(14))
def test_a_new_path_too_far_from_the_old_one_is_refused(joint: int, sign: float) -> None:
    blend = blend_at(5, NS_PER_S // 2, NS_PER_S // 4, share=0.02)
    gripper = joint in (6, 13)
    limit = RIG.gate.gripper_start_jump if gripper else RIG.gate.start_jump
    at = blend.new[KEPT, joint]
    span = RIG.lower[joint] + 0.01, RIG.upper[joint] - 0.01
    for factor, refused in ((0.9, False), (1.1, True)):
        off = sign * factor * limit - blend.gap[joint]
        rows = blend.decided.positions.copy()
        rows[:, joint] += off
        inside = span[0] <= at + off <= span[1]
        moved = replace(blend, decided=replace(blend.decided, positions=rows))
        commanded = blend.path.sample(blend.now_ns)
        verdict = GATE.judge_blend(moved, Blend.blended, GateContext(commanded, commanded))
        if refused and inside:
            assert (verdict.rule, verdict.joint) == ("start_jump", joint), verdict.message
            assert verdict.value == pytest.approx(1.1 * limit, rel=0.01)
        elif inside:
            assert verdict.rule != "start_jump", verdict.message


def test_arms_that_lag_behind_pass_and_an_arm_that_is_held_does_not() -> None:
    """A moving arm is where it was to be a moment ago; a blocked one is somewhere else."""
    blend = blend_at(7, NS_PER_S // 2, NS_PER_S // 4, share=0.3)
    blend = replace(blend, decided=replace(blend.path, start_ns=blend.path.start_ns))
    commanded = blend.path.sample(blend.now_ns)
    trail = np.stack([blend.path.sample(blend.now_ns - t * STEP) for t in range(12)])
    lagging = GateContext(commanded, trail[8], trail=trail)
    assert GATE.judge_blend(blend, Blend.blended, lagging).accepted
    for sign in (1.0, -1.0):
        blocked = trail[0].copy()
        blocked[2] = (trail.max(axis=0) if sign > 0 else trail.min(axis=0))[2] + sign * 0.2
        verdict = GATE.judge_blend(
            blend, Blend.blended, GateContext(commanded, blocked, trail=trail)
        )
        assert (verdict.rule, verdict.joint) == ("start_jump", 2)
        assert verdict.value == pytest.approx(0.2)


@pytest.mark.parametrize("rows", [49, 51])
def test_another_rigs_chunk_is_refused(rows: int) -> None:
    blend = blend_at(9, NS_PER_S // 2, NS_PER_S // 4)
    wrong = np.resize(blend.decided.positions, (rows, 14))
    moved = replace(blend, decided=replace(blend.decided, positions=wrong))
    assert GATE.judge_blend(moved, Blend.blended, GateContext(START, START)).rule == "shape"
