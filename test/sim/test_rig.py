"""Pins what the simulated arms report and obey: names, units, crank, seeds, time, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.arms import finger_from_angle
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryPoint
from cosmos_policy_ros.sim.rig import CRANK_RADIUS, ROD_LENGTH, START_FINGER, START_POSE, SimRig
from cosmos_policy_ros.sim.scene import ARM_JOINTS
from cosmos_policy_ros.sim.tasks import TASKS

CONTROLLER_JOINTS = (*ARM_JOINTS, "gripper")
OPEN_ANGLE = 1.2


@pytest.fixture(scope="module")
def rig() -> SimRig:
    return SimRig()


def test_starts_at_the_start_pose_with_the_driver_s_names(rig: SimRig) -> None:
    rig.reset("transfer_cube", 0)
    for arm in ("left", "right"):
        sample = rig.joint_states(arm)
        assert sample.names == (*CONTROLLER_JOINTS, "left_finger", "right_finger")
        assert sample.positions[:6] == START_POSE
        assert sample.positions[7] == START_FINGER == -sample.positions[8]
        assert finger_from_angle(sample.positions[6], CRANK_RADIUS, ROD_LENGTH) == pytest.approx(
            START_FINGER
        )
        assert sample.velocities == (0.0,) * 9


def test_holds_the_start_pose_without_commands(rig: SimRig) -> None:
    rig.reset("transfer_cube", 0)
    rig.advance(1.0)
    for arm in ("left", "right"):
        assert rig.joint_states(arm).positions[:6] == pytest.approx(START_POSE, abs=0.02)


def test_follows_a_trajectory_and_reports_the_gripper_by_its_motor(rig: SimRig) -> None:
    rig.reset("transfer_cube", 0)
    target = (0.3, -0.7, 1.0, 0.2, -0.1, 0.4, OPEN_ANGLE)
    rig.command("left", CONTROLLER_JOINTS, [TrajectoryPoint(target, (0.0,) * 7, NS_PER_S)], 0)
    rig.advance(0.5)
    moving = rig.joint_states("left")
    assert moving.velocities[0] == pytest.approx(0.3 * 1.5, rel=0.2)
    assert moving.velocities[6] > 0.5
    assert moving.velocities[7:] == (0.0, 0.0)
    rig.advance(1.0)
    reached = rig.joint_states("left").positions
    assert reached[:6] == pytest.approx(target[:6], abs=0.03)
    assert reached[6] == pytest.approx(OPEN_ANGLE, abs=0.15)  # the finger servos are weak
    assert rig.joint_states("right").positions[:6] == pytest.approx(START_POSE, abs=0.02)
    assert rig.accepted == {"left": 1, "right": 0}


def test_refusals_are_counted_and_kept(rig: SimRig) -> None:
    rig.reset("transfer_cube", 0)
    with pytest.raises(RigError, match="no points"):
        rig.command("right", CONTROLLER_JOINTS, [], 0)
    assert rig.refused == {"left": 0, "right": 1}
    assert rig.refusal == "right: trajectory has no points; at least one is needed"
    with pytest.raises(RigError, match="no controller 'rihgt'; did you mean 'right'"):
        rig.command("rihgt", CONTROLLER_JOINTS, [], 0)
    rig.reset("transfer_cube", 0)
    assert rig.refused == {"left": 0, "right": 0}
    assert rig.refusal == ""


def test_time_grows_by_what_was_asked_also_across_resets(rig: SimRig) -> None:
    rig.reset("transfer_cube", 0)
    before = rig.time_ns
    rig.advance(0.04)
    rig.reset("insertion", 1)
    rig.advance(0.01)
    assert rig.time_ns - before == 50_000_000
    assert rig.snapshot().stamp_ns == rig.joint_states("left").stamp_ns == rig.time_ns
    with pytest.raises(RigError, match=r"multiple of 0\.002 s"):
        rig.advance(0.003)


@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_the_seed_alone_places_the_objects_and_within_range(rig: SimRig, task: str) -> None:
    places = []
    for seed in (0, 1, 2, 3, 0):
        rig.reset(task, seed)
        objects = rig.snapshot().qpos[16:].reshape(-1, 7)
        places.append(objects[:, :2])
        for place, (x_range, y_range) in zip(objects, TASKS[task].ranges.values(), strict=True):
            assert x_range[0] <= place[0] <= x_range[1]
            assert y_range[0] <= place[1] <= y_range[1]
    np.testing.assert_array_equal(places[0], places[4])
    assert len({p.tobytes() for p in places}) == 4


def test_the_same_commands_give_the_same_bytes(rig: SimRig) -> None:
    ends = []
    for _ in range(2):
        rig.reset("transfer_cube", 5)
        points = [TrajectoryPoint((0.5, *START_POSE[1:], OPEN_ANGLE), (), NS_PER_S)]
        rig.command("right", CONTROLLER_JOINTS, points, 0)
        rig.advance(1.0)
        ends.append(rig.snapshot().qpos.tobytes())
    assert ends[0] == ends[1]


def test_unknown_task_and_negative_seed_are_named(rig: SimRig) -> None:
    with pytest.raises(RigError, match="no simulated task 'transfer_cub'; did you mean"):
        rig.reset("transfer_cub", 0)
    with pytest.raises(RigError, match="seed -1 is negative"):
        rig.reset("transfer_cube", -1)
    assert rig.task in ("transfer_cube", "insertion")
    rig.advance(0.002)


def test_unstable_physics_is_an_error_until_the_reset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves a log file where it runs
    rig = SimRig()
    rig._data.qvel[0] = 1e12
    with pytest.raises(RigError, match=r"became unstable after 1\.00 s of rig time; reset"):
        rig.advance(0.002)
    rig.reset("transfer_cube", 0)
    rig.advance(0.1)
    assert rig.joint_states("left").positions[:6] == pytest.approx(START_POSE, abs=0.02)
