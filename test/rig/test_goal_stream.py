"""Nothing moves unless the policy node is armed and heard of, and silence brakes both arms."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import pytest

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.arms import ARM_DIM
from cosmos_policy_ros.rig.chunk import BRAKE
from cosmos_policy_ros.rig.goal_stream import GoalStreamer
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryPoint

NOW = 1_000 * NS_PER_S
RIG = load_rig("interbotix_2", config_folder("rigs"))
PERIOD = round(NS_PER_S / RIG.stream.rate)
SIDES = ("left", "right")
FAR = 0.4  # rad, where the test's trajectory ends


class Bench:
    """A streamer, a clock, and parts that speak unless they are silenced."""

    def __init__(self) -> None:
        self.streamer = GoalStreamer(RIG)
        self.now = NOW
        self.armed = True
        self.policy_alive = True
        self.announced = (0, "")
        self.alive = set(SIDES)
        self.goals: list[dict[str, np.ndarray]] = []

    def joints(self, side: str) -> tuple[list[str], list[float]]:
        arm = RIG.arms[side]
        names = [*arm.joints, "gripper", "left_finger", "right_finger"]
        return names, [*arm.start, arm.gripper.command_closed, 0.044, -0.044]

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * NS_PER_S / PERIOD)):
            self.now += PERIOD
            if self.policy_alive:
                self.speak()
            for side in self.alive:
                self.streamer.on_joint_state(side, *self.joints(side), self.now)
            self.goals.append(self.streamer.tick(self.now))

    def speak(self) -> None:
        self.streamer.on_policy_state("me", self.armed, "run", self.announced, self.now)

    def send(self, side: str, seconds: float = 2.0, ending: str = "") -> None:
        arm = RIG.arms[side]
        there = (*(q + FAR for q in arm.start), arm.gripper.command_closed)
        points = [TrajectoryPoint(there, (0.0,) * ARM_DIM, round(seconds * NS_PER_S))]
        serial = self.announced[0] + 1
        chunk_id = f"run/{serial}{ending}"
        self.announced = (serial, chunk_id)
        if self.policy_alive:
            self.speak()
        self.streamer.on_trajectory(side, chunk_id, arm.names, points, 0, self.now)

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
    bench.send("left")
    bench.run(1.0)
    assert not any(bench.goals)
    assert bench.streamer.arms["left"].refused == 1
    assert bench.streamer.refusal == "left: the policy node is disarmed, or has not been heard of"
    assert not bench.streamer.reason


def test_an_arm_that_has_not_spoken_is_not_moved() -> None:
    bench = Bench()
    bench.alive = {"left"}
    bench.run(0.1)
    with pytest.raises(RigError, match=r"follower_right/joint_states is silent: is its driver"):
        bench.send("right")
    bench.streamer.on_joint_state("right", ["waist"], [0.0], bench.now)
    with pytest.raises(RigError, match="silent: joint 'shoulder' is not in the message"):
        bench.send("right")


def test_disarming_lets_the_brake_end_and_then_lets_go(bench: Bench) -> None:
    bench.send("left", seconds=0.4, ending=BRAKE)
    bench.run(0.1)
    bench.armed = False
    bench.run(0.5)
    assert not bench.goals[-1]
    np.testing.assert_allclose(bench.path("left")[-1][:6], np.array(RIG.arms.left.start) + FAR)


def test_disarming_ends_what_is_no_brake(bench: Bench) -> None:
    """The brake that disarming sends may be lost, or come last."""
    bench.send("left")
    bench.run(0.5)
    bench.armed = False
    bench.run(RIG.stream.brake_seconds + 0.1)
    assert not bench.goals[-1]
    assert 0.01 < bench.path("left")[-1][0] < FAR / 2


def test_a_brake_that_comes_after_the_state_that_disarms_is_followed(bench: Bench) -> None:
    bench.send("left", seconds=0.4)
    bench.run(0.1)
    bench.announced = (2, "run/1/brake")
    bench.speak()
    bench.armed = False
    bench.speak()
    arm = RIG.arms.left
    here = tuple(bench.path("left")[-1])
    stop = [TrajectoryPoint(here, (0.0,) * ARM_DIM, NS_PER_S // 25)]
    bench.streamer.on_trajectory("left", "run/1/brake", arm.names, stop, 0, bench.now)
    bench.run(0.5)
    np.testing.assert_allclose(bench.path("left")[-1], here)


@pytest.mark.parametrize("chunk_id", ["", "moveit", "run/9"])
def test_a_stranger_on_the_topic_moves_nothing_and_holds_both_arms(
    bench: Bench, chunk_id: str
) -> None:
    for side in SIDES:
        bench.send(side)
    bench.run(0.5)
    before = {side: bench.path(side)[-1] for side in SIDES}
    arm = RIG.arms.left
    there = (*(q - 1.0 for q in arm.start), arm.gripper.command_closed)
    points = [TrajectoryPoint(there, (0.0,) * ARM_DIM, NS_PER_S // 10)]
    with suppress(RigError):
        bench.streamer.on_trajectory("left", chunk_id, arm.names, points, 0, bench.now)
    bench.run(2.0)
    for side in SIDES:
        off = np.abs(bench.path(side)[-1] - before[side])
        assert (off < FAR * 0.2).all(), "braked on its own path"
    assert "that this policy node has not sent" in bench.streamer.reason
    with pytest.raises(RigError, match="the arms are held"):
        bench.send("right")


def test_a_trajectory_is_taken_once(bench: Bench) -> None:
    """A copy of an announced trajectory, sent again, is a stranger's."""
    bench.send("left", seconds=0.3)
    bench.run(0.5)
    assert not bench.streamer.reason
    arm = RIG.arms.left
    points = [TrajectoryPoint((*arm.start, arm.gripper.command_closed), (), NS_PER_S)]
    bench.streamer.on_trajectory("left", "run/1", arm.names, points, 0, bench.now)
    bench.run(0.2)
    assert bench.streamer.reason


def test_a_bad_trajectory_that_is_announced_late_keeps_the_other_arm_from_nothing(
    bench: Bench,
) -> None:
    """Its error went through the callback, and the other arm's was taken for a stranger's."""
    for side in SIDES:
        arm = RIG.arms[side]
        points = [TrajectoryPoint((0.1, *arm.start[1:], arm.gripper.command_closed), (), NS_PER_S)]
        start_ns = bench.now + 3600 * NS_PER_S if side == "left" else 0
        bench.streamer.on_trajectory(side, "run/1", arm.names, points, start_ns, bench.now)
    bench.announced = (1, "run/1")
    bench.run(1.5)
    assert bench.streamer.refusal.startswith("left: ") and not bench.streamer.reason
    assert bench.path("right")[-1][0] == pytest.approx(0.1)
    assert not len(bench.path("left"))


def test_an_announcement_may_come_last(bench: Bench) -> None:
    arm = RIG.arms.left
    points = [TrajectoryPoint((0.1, *arm.start[1:], arm.gripper.command_closed), (), NS_PER_S)]
    bench.streamer.on_trajectory("left", "run/1", arm.names, points, 0, bench.now)
    bench.announced = (1, "run/1")
    bench.run(1.5)
    assert not bench.streamer.reason
    assert bench.path("left")[-1][0] == pytest.approx(0.1)


def test_another_policy_node_changes_nothing(bench: Bench) -> None:
    """A second, disarmed policy node's states; an armed one's; one without an identity."""
    bench.send("left")
    bench.run(0.3)
    for identity, armed in (("other", False), ("other", True), ("", True), ("", False)):
        bench.streamer.on_policy_state(identity, armed, "run", (7, "run/7"), bench.now)
        assert bench.streamer.ownership.owner == "me"
    bench.streamer.hold("a test")
    bench.streamer.on_policy_state("other", False, "", (0, ""), bench.now)
    assert bench.streamer.reason == "a test"


def test_a_policy_node_that_starts_after_a_crash_takes_over_by_arming(bench: Bench) -> None:
    bench.send("left")
    bench.run(0.3)
    bench.policy_alive = False
    bench.run(1.0)
    assert bench.streamer.reason
    bench.streamer.on_policy_state("next", False, "", (0, ""), bench.now)
    assert bench.streamer.reason, "it has not been armed"
    bench.streamer.on_policy_state("next", True, "", (0, ""), bench.now)
    assert not bench.streamer.reason
    assert bench.streamer.ownership.owner == "next"


@pytest.mark.parametrize(
    ("joint", "value", "words"),
    [
        (2, 1.63, "left/elbow would be told 1.630, its limits are -1.76278 to 1.6057"),
        (0, math.nan, "NaN"),
        (0, 30.0, "left/waist would be told 30.000"),
        (6, 40.0, "left/gripper would be told 40.000"),
    ],
)
def test_what_lies_outside_the_limits_is_refused(
    bench: Bench, joint: int, value: float, words: str
) -> None:
    arm = RIG.arms.left
    there = [*arm.start, arm.gripper.command_closed]
    there[joint] = value
    bench.announced = (1, "run/1")
    bench.speak()
    points = [TrajectoryPoint(tuple(there), (), 20 * NS_PER_S)]
    with pytest.raises(RigError, match=words):
        bench.streamer.on_trajectory("left", "run/1", arm.names, points, 0, bench.now)
    bench.run(0.5)
    assert not any(bench.goals)


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
        bench.streamer.on_joint_state("left", names, [-math.pi] * 9, bench.now)
        bench.run(0.02)
    assert "6 joints read -pi: a failed read of the servo bus" in bench.streamer.reason


def test_an_arm_that_rests_may_be_silent(bench: Bench) -> None:
    bench.send("left", seconds=0.3)
    bench.run(0.5)
    bench.alive.clear()
    bench.run(2.0)
    assert not bench.streamer.reason
