"""A gripper's ends come out as they were held, and a bad reading is refused with what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from cosmos_policy_ros.cli.calibrate_grippers import calibrate
from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.rig.arms import finger_from_angle
from cosmos_policy_ros.rig.observation import read_arm
from cosmos_policy_ros.rig.spec import load_rig

ARM = load_rig("interbotix_1", config_folder("rigs")).arms.left
CLOSED, OPEN = 0.55, 1.7  # rad, of another gripper than the preset's
CHANGED = ("state_closed", "state_open", "command_closed", "command_open")
NOISE = np.random.default_rng(0)


def states(angle: float, noise: float = 0.002, count: int = 50) -> list[dict[str, float]]:
    """Joint states of a driver with the crank of the ALOHA motor file."""
    found = []
    for each in angle + NOISE.uniform(-noise, noise, count):
        finger = finger_from_angle(float(each), 0.0275, 0.035)
        arm = dict.fromkeys(ARM.joints, 0.0)
        found.append({**arm, "gripper": float(each), "left_finger": finger})
    return found


@pytest.mark.parametrize("source", ["finger", "angle", "crank"])
def test_the_ends_are_0_and_1_afterwards(source: Literal["finger", "angle", "crank"]) -> None:
    before = replace(ARM.gripper, state_source=source)
    gripper = calibrate(before, states(CLOSED), states(OPEN))
    arm = replace(ARM, gripper=gripper)
    for angle, opening in ((CLOSED, 0.0), (OPEN, 1.0)):
        (joints,) = states(angle, noise=0.0, count=1)
        assert read_arm(arm, list(joints), list(joints.values()))[6] == pytest.approx(
            opening, abs=0.01
        )
        assert float(gripper.command(np.array([opening]))[0]) == pytest.approx(angle, abs=0.005)
    assert replace(gripper, **{k: getattr(before, k) for k in CHANGED}) == before


def test_a_linear_command_is_both_fingers_way() -> None:
    gripper = calibrate(replace(ARM.gripper, command_unit="linear"), states(CLOSED), states(OPEN))
    assert gripper.command_open == pytest.approx(
        2 * finger_from_angle(OPEN, 0.0275, 0.035), abs=1e-3
    )


def test_bad_readings() -> None:
    with pytest.raises(RigError, match=r"by less than 0.005; close it wholly"):
        calibrate(ARM.gripper, states(CLOSED), states(CLOSED + 0.1))
    with pytest.raises(RigError, match=r"moved while it was read open"):
        calibrate(ARM.gripper, states(CLOSED), states(OPEN, noise=0.2))
    with pytest.raises(RigError, match=r"no joint state of gripper 'gripper' came"):
        calibrate(ARM.gripper, [], states(OPEN))
    with pytest.raises(RigError, match=r"joint 'gripper' is not in the message"):
        calibrate(ARM.gripper, [{"grippers": 1.0}], states(OPEN))
