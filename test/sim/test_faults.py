"""Pins the text form of faults and that each acts on its target, in its time, and nowhere else."""

from __future__ import annotations

import math

import pytest

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.sim.faults import Fault, Faults, faulty_joints, parse_fault
from cosmos_policy_ros.sim.rig import JointSample
from cosmos_policy_ros.sim.scene import ARM_JOINTS

SAMPLE = JointSample(
    1, (*ARM_JOINTS, "gripper", "left_finger", "right_finger"), (0.1,) * 9, (0.2,) * 9
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "camera_silent:left_wrist@2.0-5.0",
            Fault("camera_silent", "left_wrist", 2.0, 5.0),
        ),
        ("camera_frozen:primary", Fault("camera_frozen", "primary", 0.0, math.inf)),
        (" camera_delay:primary=0.3@2-5 ", Fault("camera_delay", "primary", 2.0, 5.0, 0.3)),
        ("camera_delay:primary=1", Fault("camera_delay", "primary", 0.0, math.inf, 1.0)),
        ("joints_nan:right@0-0.5", Fault("joints_nan", "right", 0.0, 0.5)),
    ],
)
def test_parse(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camera_silent", "expected kind:target@from-until"),
        ("camera_silnt:primary", "unknown kind 'camera_silnt'; did you mean 'camera_silent'"),
        ("camera_silent:left_wirst", "did you mean 'left_wrist'"),
        ("joints_nan:primary", "acts on one of left, right, not on 'primary'"),
        ("camera_delay:primary@1-2", "leader_delay, leader_jump have, and need, a value"),
        ("camera_silent:primary=1@1-2", "leader_delay, leader_jump have, and need, a value"),
        ("camera_silent:primary@5-2", r"ends at 2\.0 s, not after its start at 5\.0 s"),
        ("camera_silent:primary@2", "expected kind:target@from-until"),
        ("camera_silent:primary@a-2", "'a' is not a number of seconds"),
        ("stamps_off:left=-nan", "'nan' is not a number of seconds"),
        ("joint_stuck:left", "joint_stuck acts on one of left/waist, left/shoulder"),
        ("camera_delay:primary=inf", "'inf' is not a number of seconds"),
        ("camera_silent:primary@1-nan", "'nan' is not a number of seconds"),
        ("camera_silent:primary@1--2", "'-2' is not a number of seconds"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_fault(text)
    assert f"fault '{text}'" in str(caught.value)


def test_active_only_for_its_target_and_time() -> None:
    faults = Faults.parse(["", "camera_silent:left_wrist@2-5", "joints_nan:left@1-2"])
    assert [faults.camera_fault("left_wrist", t) is not None for t in (1.9, 2.0, 4.9, 5.0)] == [
        False,
        True,
        True,
        False,
    ]
    assert faults.camera_fault("primary", 3.0) is None
    assert faults.joint_fault("left", 1.5) == Fault("joints_nan", "left", 1.0, 2.0)
    assert faults.joint_fault("right", 1.5) is None
    assert Faults().camera_fault("primary", 0.0) is None


def test_stamps_may_be_off_in_both_directions() -> None:
    faults = Faults.parse(["stamps_off:left=-30@1-2", "stamps_off:primary=3600"])
    assert faults.stamp_offset("left", 1.5) == -30.0
    assert faults.stamp_offset("left", 2.0) == 0.0
    assert faults.stamp_offset("primary", 0.0) == 3600.0
    assert faults.stamp_offset("right", 1.5) == 0.0


def test_stuck_joints_are_named() -> None:
    faults = Faults.parse(["joint_stuck:left/waist@1-2", "joint_stuck:right/elbow"])
    assert faults.stuck_joints(1.5) == ("left/waist", "right/elbow")
    assert faults.stuck_joints(2.0) == ("right/elbow",)


def test_joint_faults() -> None:
    assert faulty_joints(SAMPLE, "left", None) is SAMPLE
    assert faulty_joints(SAMPLE, "left", Fault("joints_silent", "left")) is None
    nan = faulty_joints(SAMPLE, "left", Fault("joints_nan", "left"))
    assert all(map(math.isnan, nan.positions + nan.velocities))
    failed = faulty_joints(SAMPLE, "left", Fault("joints_minus_pi", "left"))
    assert failed.positions[:7] == (-math.pi,) * 7
    assert failed.positions[7] == -failed.positions[8] == pytest.approx(0.0285, abs=1e-4)
    renamed = faulty_joints(SAMPLE, "left", Fault("joints_renamed", "left"))
    assert renamed.names[0] == "left_waist"
    assert renamed.positions == SAMPLE.positions
