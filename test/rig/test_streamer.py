"""Nothing moves unless the policy node is armed and heard of, and silence brakes both arms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cosmos_policy_ros.errors import RigError
from cosmos_policy_ros.rig.arms import ARM_DIM
from cosmos_policy_ros.rig.share import config_folder
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.rig.streamer import Streamer
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryPoint

NS = 1_000_000_000
NOW = 1_000 * NS
RIG = load_rig("interbotix_2", config_folder("rigs"))
PERIOD = round(NS / RIG.stream.rate)
SIDES = ("left", "right")
FAR = 0.4  # rad, where the test's trajectory ends


class Bench:
    """A streamer, a clock, and parts that speak unless they are silenced."""

    def __init__(self) -> None:
        self.streamer = Streamer(RIG)
        self.now = NOW
        self.armed = True
        self.policy_alive = True
        self.alive = set(SIDES)
        self.goals: list[dict[str, np.ndarray]] = []

    def joints(self, side: str) -> tuple[list[str], list[float]]:
        arm = RIG.arms[side]
        names = [*arm.joints, "gripper", "left_finger", "right_finger"]
        return names, [*arm.start, arm.gripper.command_closed, 0.044, -0.044]

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * NS / PERIOD)):
            self.now += PERIOD
            if self.policy_alive:
                self.streamer.hear_policy(self.armed, self.now)
            for side in self.alive:
                self.streamer.hear_arm(side, *self.joints(side), self.now)
            self.goals.append(self.streamer.tick(self.now))

    def send(self, side: str, seconds: float = 2.0) -> None:
        arm = RIG.arms[side]
        there = (*(q + FAR for q in arm.start), arm.gripper.command_closed)
        points = [TrajectoryPoint(there, (0.0,) * ARM_DIM, round(seconds * NS))]
        self.streamer.accept(side, arm.names, points, 0, self.now)

    def path(self, side: str) -> np.ndarray:
        return np.array([goals[side] for goals in self.goals if side in goals])


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.run(0.1)
    return bench


def test_an_armed_streamer_is_silent_until_a_trajectory_comes(bench: Bench) -> None:
    assert not any(bench.goals)
    bench.send("left")
    bench.run(2.5)
    assert bench.goals[-1].keys() == {"left"}
    np.testing.assert_allclose(bench.path("left")[-1][:6], np.array(RIG.arms.left.start) + FAR)


@pytest.mark.parametrize("heard", [True, False], ids=["disarmed", "never heard of"])
def test_a_disarmed_policy_node_moves_nothing(heard: bool) -> None:
    bench = Bench()
    bench.armed, bench.policy_alive = False, heard
    bench.run(0.1)
    with pytest.raises(RigError, match="disarmed, or has not been heard of"):
        bench.send("left")
    bench.run(1.0)
    assert not any(bench.goals)
    assert bench.streamer.arms["left"].refused == 1
    assert bench.streamer.refusal.startswith("left: the policy node")


def test_an_arm_that_has_not_spoken_is_not_moved() -> None:
    bench = Bench()
    bench.alive = {"left"}
    bench.run(0.1)
    with pytest.raises(RigError, match=r"follower_right/joint_states is silent: is its driver"):
        bench.send("right")
    bench.streamer.hear_arm("right", ["waist"], [0.0], bench.now)
    with pytest.raises(RigError, match="silent: joint 'shoulder' is not in the message"):
        bench.send("right")


def test_disarming_lets_the_brake_end_and_then_lets_go(bench: Bench) -> None:
    bench.send("left", seconds=0.4)
    bench.run(0.1)
    bench.armed = False
    bench.run(0.5)
    assert not bench.goals[-1]
    np.testing.assert_allclose(bench.path("left")[-1][:6], np.array(RIG.arms.left.start) + FAR)


def braked(bench: Bench) -> int:
    """Return after how many ticks both arms rest for good."""
    paths = np.hstack([bench.path(side) for side in SIDES])
    moving = np.flatnonzero((np.diff(paths, axis=0) != 0).any(axis=1))
    return int(moving[-1]) + 2


def test_without_the_policy_node_both_arms_brake_and_stay(bench: Bench) -> None:
    for side in SIDES:
        bench.send(side)
    bench.run(0.5)
    bench.policy_alive = False
    bench.run(3.0)
    assert "the policy node was last heard of" in bench.streamer.reason
    limits = RIG.stream
    in_time = 0.5 + limits.heartbeat_timeout + limits.brake_seconds
    assert braked(bench) <= math.ceil(in_time * limits.rate) + 2
    assert 0.01 < np.abs(bench.path("left")[-1][0]) < FAR / 2
    bench.policy_alive = True
    bench.run(0.2)
    with pytest.raises(RigError, match="the arms are held: the policy node was last heard of"):
        bench.send("left")
    bench.armed = False
    bench.run(0.2)
    assert not bench.streamer.reason
    bench.armed = True
    bench.run(0.1)
    bench.send("left")


@pytest.mark.parametrize("side", SIDES)
def test_when_one_arm_falls_silent_both_brake(bench: Bench, side: str) -> None:
    for each in SIDES:
        bench.send(each)
    bench.run(0.5)
    bench.alive.remove(side)
    bench.run(2.0)
    assert f"follower_{side}/joint_states: last good state is" in bench.streamer.reason
    limits = RIG.stream
    in_time = 0.5 + limits.arm_silence + limits.brake_seconds
    assert braked(bench) <= math.ceil(in_time * limits.rate) + 2


def test_failed_reads_are_silence_and_tell_why(bench: Bench) -> None:
    bench.send("left")
    bench.run(0.5)
    bench.alive.remove("left")
    names, _ = bench.joints("left")
    for _ in range(20):
        bench.streamer.hear_arm("left", names, [-math.pi] * 9, bench.now)
        bench.run(0.02)
    assert "6 joints read -pi: a failed read of the servo bus" in bench.streamer.reason


def test_an_arm_that_rests_may_be_silent(bench: Bench) -> None:
    bench.send("left", seconds=0.3)
    bench.run(0.5)
    bench.alive.clear()
    bench.run(2.0)
    assert not bench.streamer.reason
