"""The released client's gate missed negative jumps, grippers, speed and NaN; this one may not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES, Arms
from cosmos_policy_ros.rig.safety_gate import GateContext, GateResult, SafetyGate, StartDrift
from cosmos_policy_ros.rig.spec import load_rig

# Joints alone; what links run into is test_collision's.
WHOLE = load_rig("sim", config_folder("rigs"))
LEADING = replace(WHOLE, geometry=None)
RIG = replace(LEADING, gate=replace(LEADING.gate, ramp_in=0.0))  # as every real rig
GATE, LEADING_GATE, WHOLE_GATE = SafetyGate(RIG), SafetyGate(LEADING), SafetyGate(WHOLE)
POSE = np.concatenate([[*arm.start, 0.5] for _, arm in RIG.arms.items()])
joints = st.integers(0, 13)
steps = st.integers(0, 49)
signs = st.sampled_from([-1.0, 1.0])


def still() -> np.ndarray:
    return np.tile(POSE, (50, 1))


def judge(positions: np.ndarray, commanded: np.ndarray = POSE, dt: float = 0.04) -> GateResult:
    return GATE.judge(positions, dt, GateContext(commanded, POSE))


def test_a_still_chunk_passes_unchanged() -> None:
    verdict = judge(still())
    assert verdict.accepted
    assert verdict.clamped == 0
    np.testing.assert_array_equal(verdict.positions, still())


@pytest.mark.parametrize("shape", [(49, 14), (50, 13), (50,), (0, 14)])
def test_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    verdict = judge(np.zeros(shape))
    assert (verdict.accepted, verdict.rule, verdict.positions) == (False, "shape", None)


def test_wrong_rate_is_refused() -> None:
    assert judge(still(), dt=0.02).rule == "shape"


@given(joints, steps, st.sampled_from([np.nan, np.inf, -np.inf]))
def test_one_bad_number_is_refused_by_name(joint: int, step: int, bad: float) -> None:
    chunk = still()
    chunk[step, joint] = bad
    verdict = judge(chunk)
    assert (verdict.rule, verdict.joint, verdict.step) == ("finite", joint, step)
    assert RIG.joint_names[joint] in verdict.message


@given(joints, st.booleans())
def test_where_the_arms_are_must_be_known(joint: int, commanded: bool) -> None:
    lost = POSE.copy()
    lost[joint] = np.nan
    now = GateContext(lost, POSE) if commanded else GateContext(POSE, lost)
    for gate in (GATE, LEADING_GATE, WHOLE_GATE):
        verdict = gate.judge(still(), 0.04, now)
        assert (verdict.rule, verdict.positions) == ("start_jump", None)


def aged(**ages: float) -> GateResult:
    return GATE.judge(still(), 0.04, GateContext(POSE, POSE, **ages))


@pytest.mark.parametrize(
    ("age", "rule", "limit", "advice"),
    [
        ("state_age", "stale_state", RIG.observation.state_timeout, "drivers"),
        ("result_age", "result_age", RIG.gate.result_age, "deadline"),
    ],
)
@given(share=st.one_of(st.floats(1.001, 1e6), st.just(np.inf), st.just(np.nan)))
def test_nothing_moves_on_what_is_known_from_long_ago(
    age: str, rule: str, limit: float, advice: str, share: float
) -> None:
    verdict = aged(**{age: share * limit})
    assert (verdict.rule, verdict.positions, verdict.limit) == (rule, None, limit)
    assert advice in verdict.message
    assert aged(**{age: limit}).accepted


@pytest.mark.parametrize(
    ("age", "rule"), [("state_age", "stale_state"), ("result_age", "result_age")]
)
@given(ahead=st.one_of(st.floats(1.001, 1e6), st.just(np.inf)))
def test_what_is_stamped_ahead_of_the_clock_moves_nothing(
    age: str, rule: str, ahead: float
) -> None:
    """Stamps an hour ahead switched every limit of age off."""
    verdict = aged(**{age: -ahead * RIG.observation.stamp_ahead})
    assert (verdict.rule, verdict.positions, verdict.limit) == (
        rule,
        None,
        RIG.observation.stamp_ahead,
    )
    assert "ahead of the clock" in verdict.message
    assert aged(**{age: -RIG.observation.stamp_ahead}).accepted


def test_a_rig_may_refuse_what_others_clamp() -> None:
    strict = SafetyGate(replace(RIG, gate=replace(RIG.gate, joint_overshoot=0.0)))
    chunk = np.tile(RIG.upper, (50, 1))
    chunk[7, 0] += 0.01
    context = GateContext(RIG.upper, RIG.upper)
    assert GATE.judge(chunk, 0.04, context).clamped == 1
    verdict = strict.judge(chunk, 0.04, context)
    assert (verdict.rule, verdict.joint, verdict.step) == ("joint_limits", 0, 7)


@given(joints, signs, st.floats(1.001, 3.0))
def test_a_start_jump_is_refused_in_both_directions_on_every_joint(
    joint: int, sign: float, times: float
) -> None:
    gripper = joint in GRIPPER_INDICES
    limit = RIG.gate.gripper_start_jump if gripper else RIG.gate.start_jump
    commanded = POSE.copy()
    commanded[joint] += sign * limit * times
    verdict = judge(still(), commanded)
    assert (verdict.rule, verdict.joint, verdict.step) == ("start_jump", joint, 0)
    assert verdict.value == pytest.approx(limit * times)
    assert "commanded" in verdict.message


@given(joints, signs)
def test_a_first_row_that_is_too_fast_is_refused(joint: int, sign: float) -> None:
    """A start jump of 0.15 rad was 3.75 rad/s where 3.14 are allowed."""
    if joint in GRIPPER_INDICES:
        return
    chunk = still()
    chunk[:, joint] += sign * (FIRST_STEP + RIG.gate.start_jump) / 2
    verdict = judge(chunk)
    assert (verdict.rule, verdict.joint, verdict.step) == ("step_speed", joint, 0)


@given(joints, signs)
def test_a_jump_from_the_measured_pose_is_refused_too(joint: int, sign: float) -> None:
    measured = POSE.copy()
    measured[joint] += sign * 0.9
    verdict = GATE.judge(still(), 0.04, GateContext(POSE, measured))
    assert (verdict.rule, verdict.joint) == ("start_jump", joint)
    assert "measured" in verdict.message


@pytest.mark.parametrize("jump", [-0.5, 0.5])
def test_half_a_radian_is_refused_both_ways(jump: float) -> None:
    chunk = still()
    chunk[:, 0] += jump
    assert judge(chunk).rule == "start_jump"
    chunk = still()
    chunk[25:, 0] += jump
    verdict = judge(chunk)
    assert (verdict.rule, verdict.joint, verdict.step) == ("step_speed", 0, 25)


@given(joints, st.integers(1, 49), signs)
def test_a_step_at_the_speed_limit_passes_and_above_it_is_refused(
    joint: int, step: int, sign: float
) -> None:
    limit = RIG.max_velocity[joint] * 0.04
    pose = POSE.copy()
    pose[joint] = (RIG.lower + RIG.upper)[joint] / 2 - sign * limit / 2
    chunk = np.tile(pose, (50, 1))
    chunk[step:, joint] += sign * limit
    assert GATE.judge(chunk, 0.04, GateContext(pose, pose)).accepted
    chunk[step:, joint] += sign * limit * 1e-3
    verdict = GATE.judge(chunk, 0.04, GateContext(pose, pose))
    assert (verdict.rule, verdict.joint, verdict.step) == ("step_speed", joint, step)


@given(joints, signs)
def test_a_little_past_a_limit_is_clamped_and_counted(joint: int, sign: float) -> None:
    limit = RIG.upper[joint] if sign > 0 else RIG.lower[joint]
    pose = POSE.copy()
    pose[joint] = limit
    chunk = np.tile(pose, (50, 1))
    chunk[10:12, joint] += sign * 0.01
    verdict = GATE.judge(chunk, 0.04, GateContext(pose, pose))
    assert verdict.accepted
    assert verdict.clamped == 2
    assert verdict.positions is not None
    np.testing.assert_array_equal(verdict.positions[:, joint], limit)


@given(joints, signs)
def test_far_past_a_limit_is_refused(joint: int, sign: float) -> None:
    limit = RIG.upper[joint] if sign > 0 else RIG.lower[joint]
    chunk = still()
    chunk[30, joint] = limit + sign * 0.6
    verdict = judge(chunk)
    assert (verdict.rule, verdict.joint, verdict.step) == ("joint_limits", joint, 30)
    assert verdict.positions is None


arm_joints = joints.filter(lambda joint: joint not in GRIPPER_INDICES)


FIRST_STEP = RIG.max_velocity[0] * 0.04  # rad; less than a start jump


@given(arm_joints, signs, st.floats(0.0, 0.999))
def test_a_chunk_that_may_begin_where_it_does_is_left_alone(
    joint: int, sign: float, share: float
) -> None:
    chunk = still()
    chunk[:, joint] += sign * share * FIRST_STEP
    verdict = LEADING_GATE.judge(chunk, 0.04, GateContext(POSE, POSE))
    assert (verdict.accepted, verdict.message) == (True, "")
    np.testing.assert_array_equal(verdict.positions, chunk)


@given(arm_joints, signs, st.floats(0.001, 0.999))
def test_a_chunk_that_begins_a_little_off_is_led_over(
    joint: int, sign: float, share: float
) -> None:
    """From the held pose, within the rows of the ramp-in; behind them it is as it was."""
    least, most = FIRST_STEP, LEADING.gate.ramp_in_jump
    jump = sign * (least + share * (most - least))
    chunk = still()
    chunk[:, joint] += jump
    verdict = LEADING_GATE.judge(chunk, 0.04, GateContext(POSE, POSE))
    assert verdict.accepted, verdict.message
    assert verdict.positions is not None
    np.testing.assert_allclose(verdict.positions[0], POSE, atol=1e-12)
    np.testing.assert_array_equal(verdict.positions[10:], chunk[10:])
    assert (np.diff(verdict.positions[:11, joint]) * sign >= 0).all()
    told = float(verdict.message.split(", ")[1].split()[0])
    assert told == pytest.approx(abs(jump), abs=6e-4)


@given(joints, signs)
def test_further_off_it_is_refused_as_ever(joint: int, sign: float) -> None:
    jump = 0.9 if joint in GRIPPER_INDICES else LEADING.gate.ramp_in_jump + 0.01
    chunk = still()
    chunk[:, joint] += sign * jump
    if joint in GRIPPER_INDICES:  # it goes along with arms that are led over, or not at all
        chunk[:, 0] += LEADING.gate.ramp_in_jump + 0.01
    verdict = LEADING_GATE.judge(chunk, 0.04, GateContext(POSE, POSE))
    assert (verdict.rule, verdict.positions) == ("start_jump", None)


def test_all_joints_to_and_fro_at_full_speed_are_refused() -> None:
    """157 rad/s^2 in every row, all within the speed limit."""
    chunk = still()
    chunk[::2] += np.where(np.isin(np.arange(14), GRIPPER_INDICES), 0.0, FIRST_STEP * 0.999)
    verdict = judge(chunk)
    assert verdict.rule == "acceleration"
    assert verdict.value == pytest.approx(157, abs=1)
    assert "rad/s^2" in verdict.message


@given(arm_joints, st.integers(1, 38))
def test_an_arm_that_shakes_within_its_acceleration_is_refused(joint: int, first: int) -> None:
    """To and fro in every row; ten rows of it, not two."""
    chunk = still()
    chunk[first : first + 2 : 2, joint] += 0.99 * FIRST_STEP / 2
    assert judge(chunk).accepted
    chunk[first : first + 10 : 2, joint] = POSE[joint] + 0.99 * FIRST_STEP / 2
    verdict = judge(chunk)
    assert (verdict.rule, verdict.joint) == ("shaking", joint)


@given(arm_joints, signs)
def test_leaving_rest_and_coming_to_rest_count(joint: int, sign: float) -> None:
    arms = Arms(*(replace(arm, max_acceleration=(10.0,) * 6) for arm in RIG.arms.values()))
    gate = SafetyGate(replace(RIG, arms=arms))
    away = sign * np.eye(14)[joint]
    ramp = np.cumsum(0.02 * 0.9 ** np.arange(50))[:, None] * away
    verdict = gate.judge(POSE + ramp, 0.04, GateContext(POSE, POSE))
    assert (verdict.rule, verdict.joint, verdict.step) == ("acceleration", joint, 0)
    ramp = np.cumsum(0.02 * 0.9 ** np.arange(50)[::-1])[:, None] * away
    verdict = gate.judge(POSE + ramp, 0.04, GateContext(POSE, POSE))
    assert (verdict.rule, verdict.joint, verdict.step) == ("acceleration", joint, 49)


def test_a_gripper_may_snap() -> None:
    chunk = still()
    chunk[1::2, GRIPPER_INDICES] = 0.1
    assert judge(chunk).accepted


@given(joints, signs)
def test_a_run_whose_chunks_walk_an_arm_away_is_told(joint: int, sign: float) -> None:
    """Each start within its limit: +0.149 rad twelve times over went unnoticed."""
    gripper = joint in GRIPPER_INDICES
    drift, pose, told = StartDrift(RIG), POSE.copy(), []
    pose[joint] = (RIG.lower + RIG.upper)[joint] / 2 - sign * (0.25 if gripper else 0.66)
    for count in range(1, 13):
        chunk = np.tile(pose, (50, 1))
        chunk[:, joint] += sign * (0.04 if gripper else 0.11)
        verdict = drift.add(GATE.judge(chunk, 0.04, GateContext(pose, pose)))
        assert verdict.accepted, verdict.message
        assert verdict.positions is not None
        pose = verdict.positions[-1]
        if verdict.message:
            told.append(count)
            assert f"{RIG.joint_names[joint]} away by {sign * count * 0.11:+.2f}" in verdict.message
    assert told == ([] if gripper else list(range(3, 13)))


@given(st.lists(signs, min_size=1, max_size=40))
def test_starts_that_are_off_to_and_fro_are_no_drift(ways: list[float]) -> None:
    drift, sums = StartDrift(RIG), np.cumsum(ways) * 0.11
    for sign, total in zip(ways, sums, strict=True):
        chunk = still()
        chunk[:, 0] += sign * 0.11
        told = drift.add(judge(chunk)).message
        assert bool(told) == (abs(total) > RIG.gate.drift)


wandering = st.integers(0, 2**32 - 1).map(np.random.default_rng)


# Shook by 41.5 in its first tenth of a chunk, for setting out was not counted beside the turn.
@example(np.random.default_rng(162), 0.0625, 0.05078125)
@given(wandering, st.floats(0.0, 0.5), st.floats(0.0, 0.12))
def test_nothing_that_passes_breaks_a_limit_a_speed_or_a_jump(
    random: np.random.Generator, off: float, speed: float
) -> None:
    commanded = random.uniform(RIG.lower, RIG.upper)
    start = commanded + random.uniform(-off, off, 14)
    chunk = start + np.cumsum(random.uniform(-speed, speed, (50, 14)), axis=0)
    for gate, rig in ((GATE, RIG), (LEADING_GATE, LEADING)):
        verdict = gate.judge(chunk, 0.04, GateContext(commanded, commanded))
        if verdict.positions is None:
            assert not verdict.accepted
            continue
        path = np.vstack([commanded, verdict.positions])
        assert (path >= rig.lower).all()
        assert (path <= rig.upper).all()
        assert (np.abs(np.diff(path[1:], axis=0)) <= rig.max_velocity * 0.04 + 1e-9).all()
        rest = np.delete(np.vstack([path[:1], path, path[-1:]]), GRIPPER_INDICES, axis=1)
        assert (np.abs(np.diff(rest[:2], axis=0)) <= FIRST_STEP + 1e-9).all()
        speeds = np.diff(rest, axis=0) / 0.04
        changes = np.diff(speeds, axis=0) / 0.04
        assert (np.abs(changes) <= 78.54 + 1e-6).all()
        for row in range(len(changes) - 9):
            shaking = np.sqrt((changes[row : row + 10] ** 2).mean(axis=0))
            assert (shaking <= 0.5 * 78.54 + 1e-6).all()
        jump = np.abs(path[1] - commanded)
        assert (np.delete(jump, GRIPPER_INDICES) <= rig.gate.start_jump + 1e-9).all()
        assert (jump[GRIPPER_INDICES] <= rig.gate.gripper_start_jump + 1e-9).all()


@pytest.mark.parametrize("joint", range(14))
def test_a_held_pose_outside_the_limits_leads_nowhere(joint: int) -> None:
    held = POSE.copy()
    held[joint] = RIG.upper[joint] + 0.05
    chunk = np.tile(held, (50, 1))
    chunk[:, joint] = RIG.upper[joint] - 0.05
    verdict = LEADING_GATE.judge(chunk, 0.04, GateContext(held, held))
    assert verdict.accepted
    assert verdict.positions is not None
    np.testing.assert_array_equal(verdict.positions, chunk)


@given(
    arm_joints,
    st.floats(0.5, 3.0),  # Hz
    st.floats(0.01, 1.0),  # rad
    st.booleans(),
)
def test_a_motion_gets_one_answer_at_any_rate(
    joint: int, hertz: float, reach: float, dies_away: bool
) -> None:
    """The same motion as 25 and as 50 rows a second, but for one that is nearly at a limit."""

    def answer(dt: float, size: float) -> str:
        seconds = np.arange(1, round(2.0 / dt) + 1) * dt
        fade = np.minimum(1.0, (2.0 - seconds) / 0.5) if dies_away else np.ones(len(seconds))
        chunk = np.tile(POSE, (len(seconds), 1))
        way = size * (1 - np.cos(2 * np.pi * hertz * seconds)) / 2 * fade
        chunk[:, joint] += way * (1 if POSE[joint] < (RIG.lower + RIG.upper)[joint] / 2 else -1)
        gate = SafetyGate(RIG.executing(len(seconds), dt))
        verdict = gate.judge(chunk, dt, GateContext(POSE, POSE))
        assert verdict.accepted or verdict.joint == joint
        return verdict.rule or "passes"

    # Within a fifth of a limit two samplings of one curve may differ.
    around = {answer(dt, reach * scale) for dt in (0.04, 0.02) for scale in (0.8, 1.25)}
    if len(around) == 1:
        assert answer(0.04, reach) == answer(0.02, reach) == around.pop()


@pytest.mark.parametrize(
    ("hertz", "reach", "rule"),
    [(0.5, 0.4, ""), (0.7, 1.6, "step_speed"), (4.0, 0.22, "shaking"), (6.0, 0.15, "acceleration")],
)
def test_and_each_answer_is_given(hertz: float, reach: float, rule: str) -> None:
    for dt in (0.04, 0.02, 0.01):
        seconds = np.arange(1, round(2.0 / dt) + 1) * dt
        chunk = np.tile(POSE, (len(seconds), 1))
        chunk[:, 0] += reach * (1 - np.cos(2 * np.pi * hertz * seconds)) / 2
        gate = SafetyGate(RIG.executing(len(seconds), dt))
        assert gate.judge(chunk, dt, GateContext(POSE, POSE)).rule == rule, dt


def test_a_chunk_shorter_than_the_ramp_in_is_led_over_within_it() -> None:
    gate = SafetyGate(LEADING.executing(10, 0.02))
    chunk = np.tile(POSE, (10, 1))
    chunk[:, 0] += 0.05
    verdict = gate.judge(chunk, 0.02, GateContext(POSE, POSE))
    assert verdict.accepted, verdict.message
    assert verdict.positions is not None
    np.testing.assert_allclose(verdict.positions[0], POSE, atol=1e-12)
    assert (np.diff(verdict.positions[:, 0]) > 0).all()
