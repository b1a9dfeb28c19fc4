"""Followers go where leaders are led, within the rig's limits, and hold on every doubt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.arms import ARMS, GRIPPER_INDICES, Leader
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.teleoperation import Phase, Teleoperation

NAMES = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]
CLOSED, OPEN = -0.5, 0.5
START = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.5] * 2)
PERIOD = 0.02


@pytest.fixture
def led(rig: RigSpec) -> RigSpec:
    """The simulated rig with leaders."""
    arms = {
        side: replace(arm, leader=Leader(f"leader_{side}/joint_states", CLOSED, OPEN))
        for side, arm in rig.arms.items()
    }
    return replace(rig, arms=replace(rig.arms, **arms))


class Bench:
    """A person who holds both leaders, and a clock."""

    def __init__(self, rig: RigSpec, pose: NDArray[np.float64] = START) -> None:
        self.rig, self.now, self.pose = rig, 10.0, pose.copy()
        self.teleoperation = Teleoperation(rig)
        self.sent: list[NDArray[np.float64]] = []

    @property
    def measured(self) -> NDArray[np.float64]:
        """Followers that follow."""
        return self.teleoperation.target

    @property
    def now_ns(self) -> int:
        return round(self.now * NS_PER_S)

    def report(self, *silent: str) -> None:
        for side, row in zip(ARMS, self.pose.reshape(2, 7), strict=True):
            if side not in silent:
                values = [*row[:6], CLOSED + row[6] * (OPEN - CLOSED)]
                self.teleoperation.on_leader(side, NAMES, values, self.now_ns)

    def begin(self, followers: NDArray[np.float64] = START) -> None:
        self.report()
        self.teleoperation.begin(followers, self.now_ns)
        self.sent = [followers.copy()]

    def tick(self, *silent: str, wait: float = PERIOD) -> NDArray[np.float64] | None:
        self.now += wait
        self.report(*silent)
        target = self.teleoperation.tick(self.now_ns, self.measured)
        if target is not None:
            self.sent.append(target.copy())
        return target

    def run(self, seconds: float, move: Callable[[float], NDArray[np.float64]]) -> None:
        began = self.now
        while self.now - began < seconds:
            self.pose = move(self.now - began)
            self.tick()

    @property
    def speeds(self) -> NDArray[np.float64]:
        return np.diff(np.array(self.sent), axis=0) / PERIOD


@pytest.fixture
def bench(led: RigSpec) -> Bench:
    return Bench(led)


def waist(angle: float, index: int = 0) -> NDArray[np.float64]:
    pose = START.copy()
    pose[index] = angle
    return pose


def test_followers_are_where_the_leaders_are_led(bench: Bench) -> None:
    assert bench.teleoperation.tick(bench.now_ns, bench.measured) is None, "off"
    bench.begin()
    bench.run(2.0, lambda t: waist(0.4 * np.sin(2 * t)))
    bench.run(0.5, lambda t: bench.pose)
    np.testing.assert_allclose(bench.sent[-1], bench.pose, atol=1e-6)
    assert bench.teleoperation.phase is Phase.FOLLOWING
    # A tenth of a second behind a hand at 0.8 rad/s, once the ramp is over.
    bench.run(2.0, lambda t: waist(0.4 * np.sin(2 * t) + bench.pose[0] * (t < 0)))
    assert abs(bench.sent[-1][0] - bench.pose[0]) < 0.08


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((0, 0.35), "left/waist by +0.35 rad (limit 0.3)"),
        ((10, -0.5), "right/forearm_roll by -0.50 rad"),
        ((6, 0.6), "left/gripper by +1.10 strokes"),
    ],
)
def test_it_begins_only_where_leaders_and_followers_agree(
    bench: Bench, change: tuple[int, float], words: str
) -> None:
    bench.report()
    joint, by = change
    followers = START.copy()
    followers[joint] -= by if joint != 6 else 0.6 + 0.5
    with pytest.raises(RigError) as refused:
        bench.teleoperation.begin(followers, bench.now_ns)
    assert words in str(refused.value) and "move the leaders there" in str(refused.value)
    assert bench.teleoperation.phase is Phase.OFF
    assert bench.tick() is None


def test_a_leader_that_was_never_heard_of_is_named(bench: Bench) -> None:
    bench.report("right")
    with pytest.raises(RigError, match="leader_right/joint_states is silent: is the leader driver"):
        bench.teleoperation.begin(START, bench.now_ns)


@settings(max_examples=50)
@given(data=st.data())
def test_however_it_is_led_the_arms_can_follow(data: st.DataObject, rig: RigSpec) -> None:
    """Speed, acceleration and position stay within the rig's limits, in every phase."""
    arms = {
        side: replace(arm, leader=Leader(f"leader_{side}/joint_states", CLOSED, OPEN))
        for side, arm in rig.arms.items()
    }
    bench = Bench(replace(rig, arms=replace(rig.arms, **arms)))
    bench.begin()
    pose = START.copy()
    for _ in range(data.draw(st.integers(1, 25))):
        joint = data.draw(st.integers(0, 13))
        pose[joint] += data.draw(st.floats(-0.28, 0.28))
        bench.pose = pose.copy()
        event = data.draw(st.sampled_from(("go on", "go on", "clutch", "silence", "wait")))
        if event == "clutch" and bench.teleoperation.phase is Phase.FOLLOWING:
            bench.teleoperation.clutch(True, bench.now_ns)
        for _ in range(data.draw(st.integers(1, 10))):
            silent = ("left",) if event == "silence" else ()
            if event == "wait":
                bench.tick(wait=0.08)
                bench.sent[-1:] = []  # of another length
                bench.sent.append(bench.teleoperation.target.copy())
            else:
                bench.tick(*silent)
    sent, arms_only = np.array(bench.sent), np.delete(np.arange(14), GRIPPER_INDICES)
    assert (sent >= rig.lower - 1e-9).all() and (sent <= rig.upper + 1e-9).all()
    assert (np.abs(bench.speeds) <= rig.max_velocity * (1 + 1e-9)).all()
    changes = np.abs(np.diff(bench.speeds, axis=0, prepend=0))[:, arms_only] / PERIOD
    if "would come to" not in bench.teleoperation.reason:  # links too close: at once
        assert (changes <= rig.max_acceleration[arms_only] * (1 + 1e-6)).all()


def test_it_goes_over_without_a_jump(bench: Bench) -> None:
    bench.pose = waist(0.25)
    bench.begin()
    bench.run(1.0, lambda t: waist(0.25))
    first, speeds = bench.sent[1][0] - bench.sent[0][0], bench.speeds[:, 0]
    assert 0 < first < 0.006
    assert speeds.max() < 2.5 and abs(bench.sent[-1][0] - 0.25) < 1e-6


def held(bench: Bench, words: str) -> None:
    assert bench.teleoperation.phase is Phase.HELD
    assert words in bench.teleoperation.reason
    bench.run(0.2, lambda t: bench.pose)
    at = bench.sent[-1].copy()
    bench.run(0.3, lambda t: waist(0.1))
    np.testing.assert_array_equal(bench.sent[-1], at)


def moving(bench: Bench) -> None:
    bench.begin()
    bench.run(1.0, lambda t: waist(0.2 * t))


@pytest.mark.parametrize("side", ARMS)
def test_a_silent_leader_holds_the_followers(bench: Bench, side: str) -> None:
    moving(bench)
    for _ in range(8):
        bench.tick(side)
    held(bench, f"leader_{side}/joint_states: last good state is 0.1")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([np.nan] * 7, "joint 'waist' is nan"),
        ([-np.pi] * 7, "failed read of the servo bus"),
        ([0.0] * 6, "7 joint names with 6 positions"),
    ],
)
def test_what_is_no_reading_counts_as_silence(
    bench: Bench, values: list[float], words: str
) -> None:
    moving(bench)
    for _ in range(8):
        bench.now += PERIOD
        bench.report("left")
        bench.teleoperation.on_leader("left", NAMES, values, bench.now_ns)
        target = bench.teleoperation.tick(bench.now_ns, bench.measured)
        if target is not None:
            bench.sent.append(target.copy())
    held(bench, words)


def test_a_leader_that_jumps_holds_the_followers(bench: Bench) -> None:
    moving(bench)
    bench.pose = waist(bench.pose[0] + 0.5)
    bench.tick()
    held(bench, "leader left/waist jumped by 0.50 rad in 0.020 s")
    assert abs(bench.sent[-1][0]) < 0.25


def thawed(bench: Bench, by: float) -> None:
    """Freeze the leaders in motion, their values the same to the last bit, then let them be off."""
    moving(bench)
    frozen = bench.pose.copy()
    bench.run(2.0, lambda t: frozen)
    assert bench.teleoperation.phase is Phase.FOLLOWING, "as leaders that were put down"
    np.testing.assert_array_equal(bench.sent[-1], bench.sent[-50])
    np.testing.assert_allclose(bench.sent[-1], frozen, atol=1e-6)
    bench.pose = waist(frozen[0] + by)
    bench.tick()


def test_a_frozen_leader_is_one_at_rest_and_one_that_thaws_far_off_has_jumped(bench: Bench) -> None:
    thawed(bench, 0.35)
    held(bench, "leader left/waist jumped by 0.35 rad in 0.020 s")
    assert abs(bench.sent[-1][0] - 0.2) < 1e-3


def test_a_frozen_leader_that_thaws_near_is_followed_within_the_limits(bench: Bench) -> None:
    """No further off than where teleoperation begins at all."""
    thawed(bench, bench.rig.teleoperation.match - 0.01)
    bench.run(1.0, lambda t: bench.pose)
    assert bench.teleoperation.phase is Phase.FOLLOWING
    assert abs(bench.sent[-1][0] - bench.pose[0]) < 1e-6
    assert (np.abs(bench.speeds) <= bench.rig.max_velocity * (1 + 1e-9)).all()
    changes = np.abs(np.diff(bench.speeds[:, :6], axis=0)) / PERIOD
    assert (changes <= bench.rig.max_acceleration[:6] * (1 + 1e-6)).all()


def test_a_clutch_that_sticks_holds_however_the_leaders_are_led(bench: Bench) -> None:
    moving(bench)
    bench.teleoperation.clutch(True, bench.now_ns)
    bench.run(0.2, lambda t: bench.pose)
    at = bench.sent[-1].copy()
    bench.run(5.0, lambda t: waist(0.2 + 0.5 * np.sin(9 * t)))
    np.testing.assert_array_equal(bench.sent[-1], at)
    assert bench.teleoperation.phase is Phase.CLUTCHED


def test_a_loop_that_was_kept_waiting_holds(bench: Bench) -> None:
    moving(bench)
    bench.tick(wait=0.15)
    held(bench, "this node was kept waiting for 0.15 s")


def test_links_are_not_led_into_each_other(bench: Bench) -> None:
    bench.begin()
    down = START.copy()
    for _ in range(600):
        down[1] = min(down[1] + 0.005, 1.2)
        bench.pose = down.copy()
        bench.tick()
    held(bench, "table")
    assert bench.sent[-1][1] < 1.1


def test_with_the_clutch_the_leaders_are_free_and_come_back(bench: Bench) -> None:
    moving(bench)
    bench.teleoperation.clutch(True, bench.now_ns)
    bench.run(0.2, lambda t: bench.pose)
    at = bench.sent[-1].copy()
    bench.run(1.0, lambda t: waist(0.2 + t))
    np.testing.assert_array_equal(bench.sent[-1], at)
    with pytest.raises(RigError, match="left/waist by"):
        bench.teleoperation.clutch(False, bench.now_ns)
    bench.run(1.0, lambda t: waist(1.2 - t))
    bench.teleoperation.clutch(False, bench.now_ns)
    bench.run(1.0, lambda t: waist(0.2))
    assert bench.sent[-1][0] == pytest.approx(0.2)
    bench.teleoperation.end()
    with pytest.raises(RigError, match="teleoperation is off; begin it first"):
        bench.teleoperation.clutch(True, bench.now_ns)


def test_a_mirrored_leader_of_other_names(led: RigSpec) -> None:
    other = Leader(
        "gello/joint_states",
        closed=0.2,
        open=-0.8,
        names=("a", "b", "c", "d", "e", "f", "g"),
        signs=(-1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
        offsets=(0.1, 0.0, 0.0, 0.0, 0.0, 0.0),
    )
    rig = replace(led, arms=replace(led.arms, left=replace(led.arms.left, leader=other)))
    bench = Bench(rig)
    bench.report("left")
    left = [0.1 - START[0], *START[1:6], 0.2 - 0.5]
    bench.teleoperation.on_leader("left", list("abcdefg"), left, bench.now_ns)
    assert bench.teleoperation.apart(START, bench.now_ns) == ""


def test_a_rig_without_leaders_cannot_be_led(rig: RigSpec) -> None:
    arms = {side: replace(arm, leader=None) for side, arm in rig.arms.items()}
    with pytest.raises(RigError, match="rig 'sim' has no leader for its left and right arm"):
        Teleoperation(replace(rig, arms=replace(rig.arms, **arms)))


def test_a_takeover_waits_until_the_leaders_fit(bench: Bench) -> None:
    """And for as long as the ramp: a leader that swings past leads no arm."""
    bench.pose = waist(0.5)
    for tick in range(100):
        bench.now += PERIOD
        bench.pose = waist(0.2 if tick == 50 else 0.5)
        bench.report()
        bench.teleoperation.match(START, bench.now_ns)
        assert bench.teleoperation.tick(bench.now_ns, START) is None
        assert bench.teleoperation.phase is Phase.MATCHING
    assert "left/waist by +0.50 rad (limit 0.3)" in bench.teleoperation.reason
    bench.pose = waist(0.2)
    for tick in range(27):
        bench.now += PERIOD
        bench.report()
        if bench.teleoperation.phase is Phase.MATCHING:
            bench.teleoperation.match(START, bench.now_ns)
        following = bench.teleoperation.phase is Phase.FOLLOWING
        assert following == (tick >= 24), tick  # after half a second
    assert bench.teleoperation.reason == ""


def test_it_ends_at_rest(bench: Bench) -> None:
    bench.begin()
    bench.run(1.0, lambda t: waist(0.8 * t))
    bench.teleoperation.stop()
    assert bench.teleoperation.phase is Phase.STOPPING
    bench.run(0.2, lambda t: bench.pose)
    assert bench.teleoperation.phase is Phase.OFF
    assert np.abs(np.diff(bench.speeds[:, 0])).max() / PERIOD <= 78.5 * (1 + 1e-6)
    bench.begin(bench.pose)
    bench.teleoperation.stop()
    assert bench.teleoperation.phase is Phase.OFF, "at once, where nothing moves"


def test_why_it_has_ended_is_told_until_it_is_begun_anew(bench: Bench) -> None:
    """A streamed follower that fell silent ended it, and the state told nothing."""
    moving(bench)
    bench.teleoperation.end("the arms are held: the left arm is silent")
    assert bench.tick() is None
    assert bench.teleoperation.reason == "the arms are held: the left arm is silent"
    bench.begin(bench.pose)
    assert bench.teleoperation.reason == ""


def test_a_follower_that_does_not_follow_holds_both(bench: Bench) -> None:
    moving(bench)
    stuck = bench.measured.copy()
    for _ in range(60):
        bench.pose = waist(bench.pose[0] + 0.01)
        bench.now += PERIOD
        bench.report()
        bench.teleoperation.tick(bench.now_ns, stuck)
    assert bench.teleoperation.phase is Phase.HELD
    assert "left/waist has been 0." in bench.teleoperation.reason


def test_a_follower_that_is_silent_holds_both(bench: Bench) -> None:
    moving(bench)
    bench.now += PERIOD
    bench.report()
    bench.teleoperation.tick(bench.now_ns, None)
    held(bench, "a follower is silent")
