"""The way to the start pose is gentle and straight, and passes the same gate as any chunk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES
from cosmos_policy_ros.rig.safety_gate import GateContext, SafetyGate, start_motion
from cosmos_policy_ros.rig.spec import load_rig

NOW = 1_000_000_000_000
SPEED = 0.5  # rad/s
RIG = load_rig("interbotix_1", config_folder("rigs"))
GATE = SafetyGate(RIG)
ANYWHERE = SafetyGate(replace(RIG, geometry=None))
START = np.concatenate([[*arm.start, 0.0] for arm in RIG.arms.values()])


def at(pose: np.ndarray, **ages: float) -> GateContext:
    return GateContext(commanded=pose, measured=pose, **ages)


@given(st.lists(st.floats(0.0, 1.0), min_size=14, max_size=14))
def test_from_anywhere_within_the_limits(shares: list[float]) -> None:
    pose = RIG.lower + np.array(shares) * (RIG.upper - RIG.lower)
    chunk = start_motion(RIG, ANYWHERE, at(pose), NOW, SPEED)
    path = np.array(
        [chunk.sample(NOW + t * 20_000_000) for t in range(len(chunk.positions) * 2 + 3)]
    )
    arms = np.delete(path, GRIPPER_INDICES, axis=1)
    assert np.abs(np.diff(arms, axis=0)).max() <= SPEED * 0.02 * 1.001
    np.testing.assert_allclose(arms[-1], np.delete(START, GRIPPER_INDICES), atol=1e-12)
    held = np.tile(pose[GRIPPER_INDICES], (len(path), 1))
    np.testing.assert_allclose(path[:, GRIPPER_INDICES], held, atol=1e-12)
    # Never away from the goal: straight there.
    assert (np.diff(np.abs(arms - arms[-1]), axis=0) <= 1e-12).all()


@pytest.mark.parametrize("opening", [0.0, 1.0])
@pytest.mark.parametrize(
    "folded",
    [(0, -1.85, 1.55, 0, 0.8, 0), (0, -1.7, 1.55, 0.12, 0.65, 0), (0, -1.85, 1.6, 0, -1.86, 0)],
)
def test_from_where_arms_lie_folded_upon_themselves(
    folded: tuple[float, ...], opening: float
) -> None:
    """There they are nearer to their own shoulders than the margin."""
    pose = np.array([*folded, opening] * 2)
    assert len(start_motion(RIG, GATE, at(pose), NOW, SPEED).positions) > 50


def test_a_way_through_the_arms_own_base_is_refused() -> None:
    """From behind it, where the arm stands free."""
    pose = START.copy()
    pose[:6] = (-2.76, -0.08, 0.86, -0.75, 1.95, -0.52)
    with pytest.raises(RigError, match="left base and left fingers come to"):
        start_motion(RIG, GATE, at(pose), NOW, SPEED)


def test_at_the_start_pose_it_takes_one_row() -> None:
    assert len(start_motion(RIG, GATE, at(START), NOW, SPEED).positions) == 1


def test_the_gate_stands_before_it() -> None:
    with pytest.raises(RigError, match=r"the arms were last heard of 0.60 s ago"):
        start_motion(RIG, GATE, at(START, state_age=0.6), NOW, SPEED)
    far = START.copy()
    far[1] = RIG.lower[1] - 0.2
    with pytest.raises(RigError, match=r"left/shoulder at step 0 .* past its position limit"):
        start_motion(RIG, GATE, at(far), NOW, SPEED)
    moved = replace(at(START), measured=START + np.where(np.arange(14) == 9, 0.2, 0.0))
    with pytest.raises(
        RigError, match=r"right/elbow at step 0 is 0.200 rad from the measured pose"
    ):
        start_motion(RIG, GATE, moved, NOW, SPEED)
