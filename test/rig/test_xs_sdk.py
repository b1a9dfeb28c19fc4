"""The stand-in has the stock driver's traps; our stream falls into none of them for 20 minutes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.xs_sdk import ARM, HIGHEST, LOWEST, UncaughtError, XsSdk

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.command_check import CommandCheck
from cosmos_policy_ros.rig.goal_stream import ArmStream
from cosmos_policy_ros.rig.observation import read_arm
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryPoint
from cosmos_policy_ros.sim.rig import JointSample
from cosmos_policy_ros.sim.scene import ARM_JOINTS

NOW = 1_000 * NS_PER_S
RIG = load_rig("interbotix_2", config_folder("rigs"))
SPEC = RIG.arms.left
START = np.array([*SPEC.start, SPEC.gripper.command_closed])


@pytest.fixture
def driver() -> XsSdk:
    driver = XsSdk(START.copy())
    driver.set_mode("single", "gripper", "current_based_position")
    return driver


def swing(rows: int = 50, reach: float = 0.3) -> np.ndarray:
    """Every joint swings out and back."""
    share = np.sin(np.pi * np.arange(1, rows + 1) / rows)[:, None] ** 2
    return np.asarray(START + share * reach)


def chunk(rows: np.ndarray) -> list[TrajectoryPoint]:
    speed = np.array([*SPEC.max_velocity, SPEC.gripper.max_velocity])
    velocities = TimedChunk("", 0, 0.04, START, rows, speed).velocities
    return [
        TrajectoryPoint(tuple(row), tuple(velocity), round((index + 1) * 0.04 * NS_PER_S))
        for index, (row, velocity) in enumerate(zip(rows, velocities, strict=True))
    ]


def sample() -> JointSample:
    return JointSample(
        NOW,
        (*ARM_JOINTS, "gripper", "left_finger", "right_finger"),
        (*START, 0.03, -0.03),
        (0.0,) * 9,
    )


def _stream() -> ArmStream:
    return ArmStream(SPEC, RIG.stream.rate, CommandCheck.of_output(RIG, RIG.outputs[0]))


def test_twenty_minutes_of_chunks_reach_the_servos_without_a_stall(driver: XsSdk) -> None:
    """600 chunks; every row is written when it is due, and nothing is refused."""
    stream, rows = _stream(), swing()
    points, period = chunk(rows), round(NS_PER_S / RIG.stream.rate)
    per_chunk = 2 * NS_PER_S // period
    written = []
    for tick in range(600 * per_chunk + 10):
        now = NOW + tick * period
        if (goal := stream.tick(now)) is not None:
            driver.write_group("arm", list(np.float32(goal[:6])))
            driver.write_single("gripper", float(np.float32(goal[6])))
            written.append(driver.goals.copy())
        if tick % per_chunk == 0 and tick < 600 * per_chunk:
            stream.accept(SPEC.names, points, 0, now, driver.goals)
    found = np.array(written)
    due = found[1 : 600 * per_chunk : 2]
    np.testing.assert_allclose(due, np.tile(rows, (600, 1)), atol=1e-6)
    assert (found[600 * per_chunk :] == found[-1]).all(), "holds at the end, exactly"
    assert not driver.log
    assert stream.counts.late == stream.counts.limited == 0
    speeds = np.diff(found, axis=0) * RIG.stream.rate
    assert np.abs(np.diff(speeds, axis=0)).max() < 0.2, "rad/s from goal to goal, across chunks too"


def test_its_own_trajectories_stall_at_every_whole_second(driver: XsSdk) -> None:
    """Why ours are never sent there."""
    driver.play([(p.positions[:6], p.time_from_start_ns) for p in chunk(swing())], NOW)
    times, before = [], driver.goals.copy()
    for tick in range(1000):
        driver.advance(NOW + tick * NS_PER_S // 100)
        if (driver.goals != before).any():
            times.append(tick / 100)
            before = driver.goals.copy()
    assert max(np.diff(times)) == pytest.approx(3.335, abs=0.011)
    assert times[-1] > 5.0


def test_it_rejects_a_trajectory_while_one_plays(driver: XsSdk) -> None:
    points = [(p.positions[:6], p.time_from_start_ns) for p in chunk(swing())]
    driver.play(points, NOW)
    driver.advance(NOW)
    driver.play(points, NOW)
    assert driver.log == ["trajectory rejected since joints are still moving"]


def test_an_unknown_group_takes_it_down_and_a_wrong_length_is_only_logged(driver: XsSdk) -> None:
    with pytest.raises(UncaughtError):
        driver.write_group("arms", [0.0] * 6)
    driver.write_group("arm", [0.0] * 7)
    assert driver.log == ["7 commands for the 6 of 'arm'"]
    assert (driver.goals == START).all()


def test_goals_outside_the_servos_range_are_dropped_without_a_word(driver: XsSdk) -> None:
    for index, name in enumerate(ARM):
        for goal in (LOWEST[index] - 0.01, HIGHEST[index] + 0.01):
            driver.write_single(name, goal)
    assert (driver.goals == START).all()
    assert not driver.log
    assert (np.array(SPEC.lower) > LOWEST[:6]).all(), "the gate's limits are inside"
    # The URDF's pi is a little more than what the servos' 4096 steps reach.
    assert (np.array(SPEC.upper) - HIGHEST[:6] < 0.002).all()


def test_before_its_mode_is_set_the_gripper_takes_radians_for_metres() -> None:
    driver = XsSdk(START.copy())
    driver.write_single("gripper", SPEC.gripper.command_closed)
    assert abs(driver.goals[6] - SPEC.gripper.command_closed) > 0.5


def test_failed_reads_are_published_and_refused_by_us(driver: XsSdk) -> None:
    bad = driver.joint_states(sample(), reads_fail=True)
    assert bad.positions[:7] == (-math.pi,) * 7
    with pytest.raises(ObservationError, match="a failed read of the servo bus"):
        read_arm(SPEC, bad.names, bad.positions)


def test_the_finger_is_of_another_crank_than_the_constants(driver: XsSdk) -> None:
    """Recomputed from the angle, closed is 0; as published it is not (metadata, section 2.2)."""
    seen = driver.joint_states(sample())
    assert read_arm(SPEC, seen.names, seen.positions)[6] == pytest.approx(0.0, abs=0.01)
    assert SPEC.gripper.normalize(seen.positions[7]) == pytest.approx(-0.08, abs=0.01)
