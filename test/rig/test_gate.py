"""The released client's gate missed negative jumps, grippers, speed and NaN; this one may not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_policy_ros.rig.gate import SafetyGate, Verdict
from cosmos_policy_ros.rig.share import config_folder
from cosmos_policy_ros.rig.spec import GRIPPER_INDICES, load_rig

RIG = load_rig("sim", config_folder("rigs"))
GATE = SafetyGate(RIG)
POSE = np.concatenate([[*arm.start, 0.5] for _, arm in RIG.arms.items()])
joints = st.integers(0, 13)
steps = st.integers(0, 49)
signs = st.sampled_from([-1.0, 1.0])


def still() -> np.ndarray:
    return np.tile(POSE, (50, 1))


def judge(positions: np.ndarray, commanded: np.ndarray = POSE, dt: float = 0.04) -> Verdict:
    return GATE.judge(positions, dt, commanded, POSE)


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
def test_a_jump_from_the_measured_pose_is_refused_too(joint: int, sign: float) -> None:
    measured = POSE.copy()
    measured[joint] += sign * 0.9
    verdict = GATE.judge(still(), 0.04, POSE, measured)
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
    assert GATE.judge(chunk, 0.04, pose, pose).accepted
    chunk[step:, joint] += sign * limit * 1e-3
    verdict = GATE.judge(chunk, 0.04, pose, pose)
    assert (verdict.rule, verdict.joint, verdict.step) == ("step_speed", joint, step)


@given(joints, signs)
def test_a_little_past_a_limit_is_clamped_and_counted(joint: int, sign: float) -> None:
    limit = RIG.upper[joint] if sign > 0 else RIG.lower[joint]
    pose = POSE.copy()
    pose[joint] = limit
    chunk = np.tile(pose, (50, 1))
    chunk[10:12, joint] += sign * 0.01
    verdict = GATE.judge(chunk, 0.04, pose, pose)
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
