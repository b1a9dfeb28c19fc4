"""Every line of the self-check can fail, and says then what was found and what to do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.rig.self_check import (
    Check,
    check_alone,
    check_grippers,
    check_listeners,
    check_pose,
    check_qos,
    check_rates,
    check_sides,
    check_sources,
    check_watchdog,
    failures,
    table,
)
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

PRESETS = ("interbotix_1", "interbotix_2", "ros1_names", "sim")
RIG = load_rig("interbotix_1", config_folder("rigs"))
START = np.concatenate([[*arm.start, 0.5] for arm in RIG.arms.values()])


def rates(seconds: float = 2.0, **slow: float) -> Check:
    usual = {"left_wrist": 30.0, "right_wrist": 30.0, "primary": 30.0}
    usual |= {"left/joint_states": 97.0, "right/joint_states": 97.0}
    counts = {name: round(seconds * rate) for name, rate in (usual | slow).items()}
    return check_rates(RIG, counts, seconds)


def test_a_watchdog_that_is_silent_stands_against_arming() -> None:
    assert check_watchdog("arm_interface_node", "").passed
    silence = "the arm interface has not been heard of on /x: is it running?"
    found = check_watchdog("arm_interface_node", silence)
    assert "has not been heard of on /x" in failures([found])


def test_rates() -> None:
    assert rates().passed
    slow = rates(primary=15.0)
    assert not slow.passed
    assert slow.found == "primary 15 Hz; the rig file says 25"
    soon = rates(seconds=0.4)
    assert not soon.passed
    assert soon.found == "heard for 0.4 s, 1 are needed"


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_has_its_sides_swapped(name: str) -> None:
    assert check_sides(load_rig(name, config_folder("rigs"))).passed


def swapped_arms(rig: RigSpec) -> RigSpec:
    arms = replace(rig.arms, left=rig.arms.right, right=rig.arms.left)
    return replace(rig, arms=arms)


def swapped_cameras(rig: RigSpec) -> RigSpec:
    left, right, primary = rig.cameras
    topics = replace(left, topic=right.topic), replace(right, topic=left.topic), primary
    return replace(rig, cameras=topics)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("swapped", [swapped_arms, swapped_cameras])
def test_swapped_sides_are_noticed_by_the_topics_names(name: str, swapped: object) -> None:
    rig = load_rig(name, config_folder("rigs"))
    check = check_sides(swapped(rig))  # type: ignore[operator]
    assert not check.passed
    assert "left" in check.found
    assert "right" in check.found


def test_a_joint_outside_its_limits() -> None:
    assert check_pose(RIG, START).passed
    assert not check_pose(RIG, None).passed
    bent = START.copy()
    bent[8] = RIG.upper[8] + RIG.gate.joint_overshoot + 0.01
    check = check_pose(RIG, bent)
    assert not check.passed
    assert "right/shoulder 1.42 rad" in check.found


@pytest.mark.parametrize("opening", [-0.11, 1.33])
@pytest.mark.parametrize("index", [6, 13])
def test_a_gripper_of_another_kind(index: int, opening: float) -> None:
    assert check_grippers(RIG, START).passed
    assert not check_grippers(RIG, None).passed
    odd = START.copy()
    odd[index] = opening
    assert check_pose(RIG, odd).passed
    check = check_grippers(RIG, odd)
    assert not check.passed
    assert f"{opening:.2f}" in check.found
    assert "calibrate_grippers" in check.advice


def test_what_was_seen_on_the_wire() -> None:
    assert check_sources([]).passed
    assert not check_sources(["cam_high has sent no image yet"]).passed
    assert check_alone({"commands": []}).passed
    other = check_alone({"a": [], "b": ["teleop", "policy_node"]})
    assert not other.passed
    assert other.found == "teleop, policy_node on b"
    assert check_listeners([]).passed
    deaf = check_listeners(["follower_left/arm_controller/joint_trajectory"])
    assert "no listener on follower_left/arm_controller/joint_trajectory" in failures([deaf])
    assert check_qos([]).passed
    assert not check_qos(["camera on cam_high: best effort"]).passed


def test_the_table_and_the_one_line() -> None:
    checks = [Check("pose", True, "fine"), Check("alone", False, "teleop on a", "end it")]
    assert table(checks).splitlines() == ["pass  pose   fine", "FAIL  alone  teleop on a -> end it"]
    assert failures(checks) == "alone: teleop on a (end it)"
    assert not failures(checks[:1])
