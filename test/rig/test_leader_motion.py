"""Leaders go to their followers slowly and smoothly, give way to a hand, and stay there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES, Leader
from cosmos_policy_ros.rig.leader_motion import HELD_BACK, SUSTAINED, LeaderMotion, Torque
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.rig.teleoperation import follower_pose, leader_pose

RIG = load_rig("sim", config_folder("rigs"))
SPEED, TICK = RIG.teleoperation.leader_speed, 0.02
POSES = arrays(np.float64, (14,), elements=st.floats(-1.5, 1.5))


def play(motion: LeaderMotion, start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Move leaders that follow; return the (n, 14) goals they were sent."""
    motion.begin(start, goal, 0)
    leaders, sent = start, []
    for tick in range(2000):
        told = motion.tick(leaders, round(tick * TICK * NS_PER_S))
        if told is None:
            return np.array(sent)
        leaders = told.copy()
        sent.append(leaders)
    raise AssertionError("it never ends")


@given(start=POSES, goal=POSES)
def test_it_arrives_no_faster_than_it_may(start: np.ndarray, goal: np.ndarray) -> None:
    motion = LeaderMotion(RIG)
    path = play(motion, start, goal)
    assert (motion.torque, motion.problem) == (Torque.HOLDING, "")
    arms = np.delete(np.arange(14), GRIPPER_INDICES)
    np.testing.assert_allclose(path[-1, arms], goal[arms], atol=1e-12)
    assert (path[:, GRIPPER_INDICES] == start[list(GRIPPER_INDICES)]).all(), "fingers are in them"
    steps = np.diff(path, axis=0, prepend=start[None])
    assert np.abs(steps).max() <= SPEED * TICK * (1 + 1e-9)
    assert np.abs(np.diff(steps, axis=0)).max(initial=0.0) < 0.02, "smooth at both ends"


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_it_gives_way_to_a_hand(sign: float) -> None:
    start, goal = np.zeros(14), np.full(14, sign)
    motion = LeaderMotion(RIG)
    motion.begin(start, goal, 0)
    held = start.copy()
    for tick in range(500):
        told = motion.tick(held, round(tick * TICK * NS_PER_S))
        assert told is not None
        if motion.torque is not Torque.MOVING:
            break
        assert np.abs(told).max() <= HELD_BACK + SPEED * (SUSTAINED + 2 * TICK)
    assert "leader left/waist is 0." in motion.problem and "is it held?" in motion.problem
    np.testing.assert_array_equal(told, held)
    assert motion.torque is Torque.HOLDING
    assert motion.tick(held, 100 * NS_PER_S) is None


def test_a_bump_does_not_stop_it() -> None:
    motion = LeaderMotion(RIG)
    motion.begin(np.zeros(14), np.full(14, 1.0), 0)
    bumped = np.full(14, 0.5)
    for tick in range(int(SUSTAINED / TICK) - 1):
        motion.tick(bumped, round(tick * TICK * NS_PER_S))
    assert motion.torque is Torque.MOVING


@pytest.mark.parametrize("wait", [0.2, 1.0, 60.0])
def test_kept_waiting_it_goes_on_where_it_was(wait: float) -> None:
    motion = LeaderMotion(RIG)
    motion.begin(np.zeros(14), np.full(14, 1.0), 0)
    before = np.zeros(14)
    for tick in range(1, 41):
        told = motion.tick(before, round(tick * TICK * NS_PER_S))
        assert told is not None
        before = told.copy()
    after = motion.tick(before, round((40 * TICK + wait) * NS_PER_S))
    assert after is not None and motion.torque is Torque.MOVING
    assert np.abs(after - before).max() <= 2 * SPEED * TICK * (1 + 1e-9)


def test_a_silent_leader_goes_no_further() -> None:
    motion = LeaderMotion(RIG)
    motion.begin(np.zeros(14), np.full(14, 1.0), 0)
    told = motion.tick(np.zeros(14), round(0.5 * NS_PER_S))
    assert told is not None
    np.testing.assert_array_equal(motion.tick(None, round(0.6 * NS_PER_S)), told)
    assert (motion.torque, motion.problem) == (Torque.HOLDING, "a leader is silent")


def test_what_is_not_moving_is_told_nothing() -> None:
    motion = LeaderMotion(RIG)
    assert motion.tick(np.zeros(14), 0) is None
    motion.stop("called off")
    assert (motion.torque, motion.problem) == (Torque.OFF, "")


@given(pose=arrays(np.float64, (7,), elements=st.floats(-2.0, 2.0)))
def test_what_a_leader_is_told_is_what_it_asks_for(pose: np.ndarray) -> None:
    names = tuple(RIG.arms.left.names)
    turned = Leader("leader", -0.6, 0.3, signs=(1, -1, 1, 1, -1, 1), offsets=(0, 1, 0, -2, 0, 3))
    back = follower_pose(turned, names, leader_pose(turned, pose))
    np.testing.assert_allclose(back, pose, atol=1e-12)
