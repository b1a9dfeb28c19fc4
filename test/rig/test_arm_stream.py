"""A stream of goals is smooth, never too fast, never off the path, and begins where the arm is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.chunk import Blend, TimedChunk
from cosmos_policy_ros.rig.command_check import CommandCheck
from cosmos_policy_ros.rig.goal_stream import CATCH_UP, ArmStream
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryPoint

NOW = 1_000 * NS_PER_S
RATE = 100.0
PERIOD = round(NS_PER_S / RATE)
RIG = load_rig("interbotix_2", config_folder("rigs"))
ARM = RIG.arms.left
SPEED = np.array([*ARM.max_velocity, ARM.gripper.max_velocity * ARM.gripper.command_stroke])
START = np.array([*ARM.start, ARM.gripper.command_closed + 0.3])


def points(rows: np.ndarray, dt: float = 0.04, start: np.ndarray = START) -> list[TrajectoryPoint]:
    """What the policy node sends of a chunk."""
    velocities = TimedChunk("", 0, dt, start, rows, SPEED).velocities
    return [
        TrajectoryPoint(tuple(row), tuple(velocity), round((index + 1) * dt * NS_PER_S))
        for index, (row, velocity) in enumerate(zip(rows, velocities, strict=True))
    ]


def swing(rows: int = 50, reach: float = 0.4) -> np.ndarray:
    """Every joint swings out and back; as fast as 1.6 reach per second."""
    share = np.sin(np.pi * np.arange(1, rows + 1) / rows)[:, None] ** 2
    return np.asarray(START + share * reach)


def stream() -> ArmStream:
    return ArmStream(ARM, RATE, CommandCheck.of_output(RIG, RIG.outputs[0]))


def play(arm: ArmStream, ticks: int, first: int = 1) -> np.ndarray:
    goals = [arm.tick(NOW + index * PERIOD) for index in range(first, first + ticks)]
    return np.array([goal for goal in goals if goal is not None])


def test_nothing_is_sent_before_a_trajectory_and_after_a_release() -> None:
    arm = stream()
    assert arm.silent
    assert arm.resting
    assert arm.tick(NOW) is None
    arm.accept(ARM.names, points(swing()), 0, NOW, START)
    assert not arm.silent
    arm.release()
    assert arm.tick(NOW + PERIOD) is None


def test_goals_pass_through_every_row_when_it_is_due_and_rest_at_the_last() -> None:
    arm, rows = stream(), swing()
    arm.accept(ARM.names, points(rows), 0, NOW, START)
    goals = play(arm, 300)
    np.testing.assert_allclose(goals[3:200:4], rows, atol=1e-12)
    assert (goals[199:] == rows[-1]).all()  # exactly
    assert arm.resting
    assert arm.counts.late == arm.counts.limited == 0


@pytest.mark.parametrize("latency_ns", [103_000_000, 487_000_000, 900_000_000])
def test_chunks_that_take_over_in_motion_are_one_smooth_stream(latency_ns: int) -> None:
    """The trajectories arrive between two ticks, one a second, and the arm never stands."""
    arm, first = stream(), swing(reach=0.3)
    path = TimedChunk("0", NOW, 0.04, START, first, SPEED, np.zeros(7))
    arm.accept(ARM.names, points(first), 0, NOW, START)
    goals, next_ns = [], NOW + 1_003_000_000
    for index in range(1, 1000):
        now_ns = NOW + index * PERIOD
        if now_ns >= next_ns:
            seen_ns = next_ns - latency_ns
            begun = (seen_ns - NOW) / (2.0 * NS_PER_S) % 1.0  # of a swing that goes on for ever
            share = np.sin(np.pi * (begun + np.arange(1, 51) / 50))[:, None] ** 2
            decided = TimedChunk(
                "", seen_ns, 0.04, path.sample(seen_ns), START + 0.3 * share, SPEED, np.zeros(7)
            )
            blend = Blend(path, decided, next_ns, 5)
            path = blend.chunk("1", blend.blended())
            sent = zip(path.positions, path.velocities, path.times_ns(), strict=True)
            told = [TrajectoryPoint(tuple(p), tuple(v), t) for p, v, t in sent]
            arm.accept(ARM.names, told, next_ns, next_ns, START)
            next_ns += 1_003_000_000
        goals.append(arm.tick(now_ns))
    assert arm.counts.late == arm.counts.limited == 0
    speeds = np.diff(np.array(goals), axis=0) * RATE
    usual = np.diff(np.vstack([START, play_alone(first)]), axis=0) * RATE
    assert np.abs(speeds).max() <= 1.1 * np.abs(usual).max()
    assert np.abs(np.diff(speeds, axis=0)).max() <= 2.0 * np.abs(np.diff(usual, axis=0)).max()


def play_alone(rows: np.ndarray) -> np.ndarray:
    """Return the goals of one chunk."""
    arm = stream()
    arm.accept(ARM.names, points(rows), 0, NOW, START)
    return play(arm, 220)


def test_velocity_is_continuous_inside_a_chunk() -> None:
    arm = stream()
    arm.accept(ARM.names, points(swing()), 0, NOW, START)
    speeds = np.diff(np.vstack([START, play(arm, 220)]), axis=0) * RATE
    # The swing's acceleration is at most 2 pi^2 / 4 times its reach, a cubic's between two rows
    # twice that where the slope at a turn is flattened.
    assert np.abs(np.diff(speeds, axis=0)).max() < 3 * np.pi**2 / 2 * 0.5 / RATE


def test_joints_may_come_in_any_order() -> None:
    arm, other = stream(), stream()
    arm.accept(ARM.names, points(swing()), 0, NOW, START)
    turned = [
        TrajectoryPoint(p.positions[::-1], p.velocities[::-1], p.time_from_start_ns)
        for p in points(swing())
    ]
    other.accept(ARM.names[::-1], turned, 0, NOW, START)
    np.testing.assert_array_equal(play(arm, 50), play(other, 50))


def test_a_new_trajectory_replaces_the_old_one_without_a_jump() -> None:
    arm = stream()
    arm.accept(ARM.names, points(swing()), 0, NOW, START)
    before = play(arm, 73)
    share = np.sin(np.pi / 2 * np.arange(1, 51) / 50)[:, None] ** 2
    back = before[-1] + share * (START - before[-1])
    arrival = NOW + 73 * PERIOD + 4_000_000
    arm.accept(ARM.names, points(back, start=before[-1]), 0, arrival, START)
    after = play(arm, 210, first=74)
    speeds = np.diff(np.vstack([before, after]), axis=0) * RATE
    assert np.abs(np.diff(speeds, axis=0)).max() < 0.4  # rad/s; a dead stop is 0.6
    assert (np.abs(speeds) <= SPEED + 1e-9).all()
    np.testing.assert_allclose(after[-1], START, atol=1e-12)


def test_a_refused_trajectory_leaves_the_one_under_way() -> None:
    arm, alone = stream(), stream()
    for one in (arm, alone):
        one.accept(ARM.names, points(swing()), 0, NOW, START)
    play(arm, 20)
    bad = [TrajectoryPoint((float("nan"),) * 7, (), NS_PER_S)]
    with pytest.raises(RigError, match="NaN"):
        arm.accept(ARM.names, bad, 0, NOW + 20 * PERIOD, START)
    np.testing.assert_array_equal(play(arm, 80, first=21), play(alone, 100)[20:])


def test_a_refused_first_trajectory_leaves_it_silent() -> None:
    arm = stream()
    with pytest.raises(RigError, match="lacks joint"):
        arm.accept(ARM.names[:6], points(swing()), 0, NOW, START)
    assert arm.silent


def test_a_stamped_trajectory_waits_for_its_time() -> None:
    arm = stream()
    arm.accept(ARM.names, points(swing()), NOW + NS_PER_S, NOW, START)
    assert (play(arm, 98)[:50] != START).any()  # the way to the first row begins at once
    assert np.abs(play(arm, 2, first=99) - START).max() < 0.01
    np.testing.assert_allclose(play(arm, 4, first=101)[-1], swing()[0], atol=1e-9)


def test_holding_rests_at_the_last_goal_exactly() -> None:
    arm = stream()
    arm.accept(ARM.names, points(swing()), 0, NOW, START)
    last = play(arm, 60)[-1]
    arm.brake(0.0)
    assert arm.resting
    assert (play(arm, 100, first=61) == last).all()


def test_braking_slows_down_along_the_path_and_rests_in_time() -> None:
    arm, on = stream(), stream()
    for one in (arm, on):
        one.accept(ARM.names, points(swing()), 0, NOW, START)
    path, before = play(on, 200), play(arm, 40)
    arm.brake(0.08)
    goals = play(arm, 30, first=41)
    steps = np.abs(np.diff(np.vstack([before[-1], goals]), axis=0))[:, 0]
    assert (np.diff(steps[:8]) < 0).all()
    assert (goals[8:] == goals[8]).all()
    assert arm.resting
    # Half the time's way at the speed of its beginning.
    np.testing.assert_allclose(goals[-1], path[43], atol=1e-3)
    assert arm.counts.late == 0


def test_a_trajectory_ends_a_brake() -> None:
    arm = stream()
    arm.accept(ARM.names, points(swing()), 0, NOW, START)
    here = play(arm, 40)[-1]
    arm.brake(0.08)
    rows = here + np.linspace(0, 0.2, 50)[:, None]
    arm.accept(ARM.names, points(rows, start=here), 0, NOW + 40 * PERIOD, START)
    np.testing.assert_allclose(play(arm, 210, first=41)[-1], rows[-1], atol=1e-12)


def test_after_a_long_wait_it_follows_the_path_and_does_not_cut_its_corner() -> None:
    arm, punctual = stream(), stream()
    for one in (arm, punctual):
        one.accept(ARM.names, points(swing()), 0, NOW, START)
    play(arm, 50)
    stalled = 80  # ticks; meanwhile the swing has turned
    late = play(arm, 150, first=50 + stalled)
    path = play(punctual, 200)
    np.testing.assert_allclose(late[:140], path[51:191], atol=1e-9)
    assert arm.counts.late == 1
    assert arm.counts.latest == pytest.approx(stalled / RATE)
    assert arm.counts.slipped == pytest.approx((stalled - CATCH_UP) / RATE)


def test_a_wait_while_resting_is_no_lateness() -> None:
    arm = stream()
    arm.accept(ARM.names, points(swing()), 0, NOW, START)
    play(arm, 210)
    arm.tick(NOW + 1_000 * PERIOD)
    assert arm.counts.late == 0
    assert arm.counts.slipped == 0.0


def test_a_fast_gripper_is_held_back_alone() -> None:
    arm, rows = stream(), swing(reach=0.1)
    rows[:, 6] = ARM.gripper.command_open  # at once: 25 strokes per second
    arm.accept(ARM.names, points(rows), 0, NOW, START)
    goals = play(arm, 200)
    np.testing.assert_allclose(goals[3::4, :6], rows[:, :6], atol=1e-12)
    assert arm.counts.limited > 0
    assert (goals[20:, 6] == ARM.gripper.command_open).all()


waits = st.lists(st.floats(0.1, 8.0), min_size=30, max_size=60)  # periods between ticks
jumps = st.lists(st.tuples(st.integers(0, 59), st.floats(-1.0, 1.0)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(waits, jumps)
def test_no_tick_moves_a_joint_faster_than_its_limit(
    periods: list[float], replaced: list[tuple[int, float]]
) -> None:
    """However late ticks are and whatever comes: trajectories far off the pose, too."""
    arm, now = stream(), NOW
    arm.accept(ARM.names, points(swing(reach=1.0)), 0, now, START)
    news, last = dict(replaced), START
    for index, wait in enumerate(periods):
        now += round(wait * PERIOD)
        goal = arm.tick(now)
        assert goal is not None
        assert (np.abs(goal - last) <= SPEED / RATE * (1 + 1e-9)).all()
        last = goal
        if index in news:
            rows = START + news[index] * np.ones((20, 7))
            arm.accept(ARM.names, points(rows), 0, now, START)
