"""Pins the inverse kinematics over the whole object range, upright and inside the limits."""

from __future__ import annotations

import numpy as np
import pytest

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.sim.demonstrator import DT, SCRIPTS, Variation
from cosmos_policy_ros.sim.kinematics import ArmKinematics, between, gripper_pose, plan_motion
from cosmos_policy_ros.sim.rig import START_POSE

START = np.array([*START_POSE, -0.32] * 2)
CORNERS = [(x, y) for x in (0.0, 0.2) for y in (0.4, 0.6)]


@pytest.mark.parametrize("arm", ["left", "right"])
def test_solutions_are_solutions(arm: str) -> None:
    kinematics = ArmKinematics(arm)
    side = -1.0 if arm == "left" else 1.0
    for x, y in CORNERS:
        target = gripper_pose(arm, np.array([side * x, y, 0.02]), 60.0)
        joints = kinematics.reach(target)
        pose = kinematics.forward(joints)
        np.testing.assert_allclose(pose.position, target.position, atol=3e-4)
        assert abs(float(pose.quaternion @ target.quaternion)) > 1 - 1e-5
        assert abs(joints[3]) < 1.2  # forearm not turned over


def test_fingers_face_the_other_arm_and_point_down() -> None:
    right = gripper_pose("right", np.zeros(3), 60.0)
    ahead = np.array([-np.cos(np.radians(60)), 0.0, -np.sin(np.radians(60))])
    np.testing.assert_allclose(right.backed_off(-1.0).position, ahead, atol=1e-12)


def test_between_goes_straight_and_turns_evenly() -> None:
    one = gripper_pose("left", np.zeros(3), 0.0)
    two = gripper_pose("left", np.array([0.2, 0.0, 0.1]), 60.0)
    middle = between(one, two, 0.5)
    np.testing.assert_allclose(middle.position, [0.1, 0.0, 0.05])
    expected = gripper_pose("left", np.zeros(3), 30.0).quaternion
    np.testing.assert_allclose(np.abs(middle.quaternion @ expected), 1.0)


def test_out_of_reach_says_where_and_how_far() -> None:
    with pytest.raises(ObservationError, match=r"left gripper cannot reach \(0\.900, 0\.500"):
        ArmKinematics("left").reach(gripper_pose("left", np.array([0.9, 0.5, 0.1]), 60.0))


@pytest.mark.parametrize("corner", range(4))
@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_every_corner_of_the_object_range_can_be_planned(task: str, corner: int) -> None:
    x, y = CORNERS[corner]
    seen = {"cube": (x, y), "peg": (0.1 + x / 2, y), "socket": (-0.1 - x / 2, 1.0 - y)}
    _, script = SCRIPTS[task]
    planned = plan_motion(START, script(seen, Variation(0.004, 0.02, 0.03), ""), DT)
    rows = np.vstack([START, planned])
    assert np.abs(np.diff(rows, axis=0)).max() <= np.pi * DT
    assert len(rows) * DT < 16.0
    steps = np.abs(np.diff(rows, axis=0)).max(axis=1)
    assert steps[0] < 5e-3
    assert steps[-1] < 5e-3
