"""Pins joint_trajectory_controller's Humble behaviour, so that what works here works on an arm."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryController, TrajectoryPoint

NAMES = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
NOW = 100 * NS_PER_S


def point(value: float, seconds: float, velocity: float | None = None) -> TrajectoryPoint:
    velocities = () if velocity is None else (velocity,) * 7
    return TrajectoryPoint((value,) * 7, velocities, round(seconds * NS_PER_S))


def controller(value: float = 0.0) -> TrajectoryController:
    return TrajectoryController(NAMES, np.full(7, value))


def first(arm: TrajectoryController, seconds: float) -> float:
    return float(arm.sample(NOW + round(seconds * NS_PER_S))[0])


def test_holds_before_any_trajectory_and_after_the_last_point() -> None:
    arm = controller(0.3)
    assert first(arm, 0.0) == 0.3
    arm.accept(NAMES, [point(1.0, 1.0), point(2.0, 2.0)], 0, NOW)
    assert first(arm, 2.0) == first(arm, 50.0) == 2.0


def test_it_holds_its_first_point_before_its_time() -> None:
    """A cubic at negative time is at minus thirty thousand radians within ten seconds."""
    arm = controller(0.3)
    arm.accept(NAMES, [point(1.0, 1.0, 2.0), point(2.0, 2.0, 0.0)], 0, NOW)
    for seconds in (-0.01, -1.0, -3600.0):
        assert first(arm, seconds) == 0.3


def test_positions_alone_are_joined_by_straight_lines() -> None:
    arm = controller()
    arm.accept(NAMES, [point(1.0, 1.0), point(0.0, 3.0)], 0, NOW)
    assert [first(arm, t) for t in (0.0, 0.25, 1.0, 2.0)] == pytest.approx([0.0, 0.25, 1.0, 0.5])


def test_velocities_make_cubics() -> None:
    arm = controller()
    arm.accept(NAMES, [point(1.0, 1.0, 2.0), point(2.0, 2.0, 0.0)], 0, NOW)
    # From rest to 1 at speed 2: t^2; then 1 to 2, from speed 2 to rest: 1 + 2u - u^2.
    assert first(arm, 0.5) == pytest.approx(0.25)
    assert first(arm, 1.5) == pytest.approx(1.75)


def test_one_point_without_velocity_makes_its_two_segments_straight() -> None:
    arm = controller()
    arm.accept(NAMES, [point(1.0, 1.0, 0.0), point(2.0, 2.0), point(3.0, 3.0, 0.0)], 0, NOW)
    assert first(arm, 0.25) == pytest.approx(3 * 0.25**2 - 2 * 0.25**3)
    assert [first(arm, t) for t in (1.25, 2.75)] == pytest.approx([1.25, 2.75])


def test_a_new_trajectory_replaces_the_old_at_once_from_the_commanded_state() -> None:
    arm = controller()
    arm.accept(NAMES, [point(1.0, 1.0)], 0, NOW)
    arm.accept(NAMES, [point(0.0, 0.5)], 0, NOW + NS_PER_S // 2)
    assert first(arm, 0.5) == pytest.approx(0.5)
    assert first(arm, 0.75) == pytest.approx(0.25)
    assert first(arm, 1.0) == 0.0


def test_replacing_in_motion_keeps_the_velocity() -> None:
    arm = controller()
    arm.accept(NAMES, [point(1.0, 1.0), point(2.0, 2.0)], 0, NOW)
    arm.accept(NAMES, [point(2.5, 2.0, 0.0)], 0, NOW + NS_PER_S // 2)
    before, after = first(arm, 0.5), first(arm, 0.501)
    assert (after - before) / 0.001 == pytest.approx(1.0, abs=0.01)


def test_a_future_start_drops_the_old_trajectory_and_ramps_until_its_first_point() -> None:
    arm = controller()
    arm.accept(NAMES, [point(9.0, 1.0)], 0, NOW)
    arm.accept(NAMES, [point(1.0, 1.0)], NOW + 3 * NS_PER_S, NOW)
    assert [first(arm, t) for t in (1.0, 2.0, 4.0)] == pytest.approx([0.25, 0.5, 1.0])


def test_a_first_point_at_zero_is_a_step() -> None:
    arm = controller()
    arm.accept(NAMES, [point(1.0, 0.0), point(2.0, 1.0)], 0, NOW)
    assert [first(arm, t) for t in (0.0, 0.5)] == pytest.approx([1.0, 1.5])


def test_partly_past_jumps_onto_the_segment_for_now() -> None:
    arm = controller()
    arm.accept(NAMES, [point(1.0, 1.0), point(2.0, 2.0)], NOW - 3 * NS_PER_S // 2, NOW)
    assert first(arm, 0.0) == pytest.approx(1.5)


def test_wholly_past_is_refused_with_the_age() -> None:
    with pytest.raises(RigError, match=r"ended 1\.000 s ago.*clocks agree"):
        controller().accept(NAMES, [point(1.0, 1.0)], NOW - 2 * NS_PER_S, NOW)


def test_stamp_zero_is_now_even_when_now_is_large() -> None:
    arm = controller()
    arm.accept(NAMES, [point(1.0, 1.0)], 0, NOW)
    assert first(arm, 0.5) == pytest.approx(0.5)


def test_last_velocity_need_not_be_zero() -> None:
    arm = controller()
    arm.accept(NAMES, [point(1.0, 1.0, 5.0)], 0, NOW)
    assert first(arm, 2.0) == 1.0


def test_joint_order_is_free() -> None:
    arm = controller()
    order = (3, 0, 6, 1, 5, 2, 4)
    values = tuple(float(i) for i in order)
    arm.accept([NAMES[i] for i in order], [TrajectoryPoint(values, values, NS_PER_S)], 0, NOW)
    assert arm.sample(NOW + NS_PER_S).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


GOOD = point(1.0, 1.0)
BAD = [
    ((*NAMES[:6], "griper"), [GOOD], "unknown joint 'griper'; did you mean 'gripper'"),
    (NAMES[:6], [GOOD], r"lacks joint\(s\) gripper"),
    ((*NAMES, "waist"), [GOOD], "joint twice"),
    (NAMES, [], "no points"),
    (NAMES, [replace(GOOD, positions=(1.0,) * 6)], "point 0 has 6 positions, 7 needed"),
    (NAMES, [GOOD, replace(GOOD, velocities=(0.0,))], "point 1 has 1 velocities, 0 or 7"),
    (NAMES, [replace(GOOD, effort=(1.0,) * 7)], "point 0 has 7 efforts"),
    (NAMES, [GOOD, point(2.0, 1.0)], r"point 1 is at 1\.000 s, not after point 0 at 1\.000 s"),
    (NAMES, [GOOD, point(2.0, 0.5)], "must grow strictly"),
    (NAMES, [point(math.nan, 1.0)], "point 0 holds NaN or infinity"),
    (NAMES, [point(1.0, 1.0, math.inf)], "point 0 holds NaN or infinity"),
]


@pytest.mark.parametrize(("names", "points", "message"), BAD)
def test_refusals_name_the_fault_and_leave_the_arm_on_its_way(
    names: tuple[str, ...], points: list[TrajectoryPoint], message: str
) -> None:
    arm = controller()
    arm.accept(NAMES, [point(2.0, 2.0)], 0, NOW)
    with pytest.raises(RigError, match=message):
        arm.accept(names, points, 0, NOW + NS_PER_S)
    assert first(arm, 1.5) == pytest.approx(1.5)


@settings(max_examples=50)
@given(
    st.lists(st.floats(-3.0, 3.0), min_size=2, max_size=12),
    st.lists(st.floats(0.01, 0.5), min_size=12, max_size=12),
    st.booleans(),
)
def test_passes_through_every_point(
    values: list[float], gaps: list[float], with_velocities: bool
) -> None:
    times = np.cumsum(gaps)
    points = [
        point(value, time, 0.5 if with_velocities else None)
        for value, time in zip(values, times, strict=False)
    ]
    arm = controller()
    arm.accept(NAMES, points, 0, NOW)
    for p in points:
        reached = arm.sample(NOW + p.time_from_start_ns)
        assert reached == pytest.approx(p.positions, abs=1e-9)
