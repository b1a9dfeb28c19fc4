"""Trajectories must have exact times and a cubic that never leaves the rows it joins."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.chunk import TimedChunk

V_MAX = np.full(14, 3.0)


def chunk(positions: np.ndarray, start: np.ndarray | None = None) -> TimedChunk:
    first = np.zeros(14) if start is None else start
    return TimedChunk("run/0", 5 * NS_PER_S, 0.04, first, positions, V_MAX)


paths = arrays(np.float64, (6, 14), elements=st.floats(-1.0, 1.0, width=32))


def test_fifty_rows_end_at_two_seconds_exactly() -> None:
    times = chunk(np.zeros((50, 14))).times_ns()
    assert times[0] == 40_000_000
    assert times[-1] == 2 * NS_PER_S
    assert set(np.diff(times)) == {40_000_000}


@given(paths)
def test_velocities_are_bounded_and_the_last_row_rests(positions: np.ndarray) -> None:
    velocities = chunk(positions).velocities
    assert velocities.shape == positions.shape
    assert np.all(np.abs(velocities) <= V_MAX)
    np.testing.assert_array_equal(velocities[-1], 0.0)


@settings(max_examples=50)
@given(paths)
def test_the_cubic_stays_between_its_two_rows(positions: np.ndarray) -> None:
    c = chunk(positions)
    knots = np.vstack([c.start, positions])
    for row in range(len(positions)):
        low = np.minimum(knots[row], knots[row + 1]) - 1e-9
        high = np.maximum(knots[row], knots[row + 1]) + 1e-9
        for share in np.linspace(0, 1, 9):
            pose = c.sample(c.start_ns + int((row + share) * c.step_ns))
            assert np.all(pose >= low)
            assert np.all(pose <= high)


@given(paths)
def test_the_path_passes_through_every_row_and_holds_outside(positions: np.ndarray) -> None:
    c = chunk(positions)
    for row, time_ns in enumerate(c.times_ns()):
        np.testing.assert_allclose(c.sample(c.start_ns + time_ns), positions[row], atol=1e-12)
    np.testing.assert_array_equal(c.sample(c.start_ns - NS_PER_S), c.start)
    np.testing.assert_array_equal(c.sample(c.end_ns + NS_PER_S), positions[-1])


def test_constant_speed_is_kept_by_the_velocities() -> None:
    positions = np.outer(np.arange(1, 7) * 0.04, np.ones(14))
    np.testing.assert_allclose(chunk(positions).velocities[:-1], 1.0)


@given(paths, st.floats(0.0, 0.24))
def test_braking_stays_on_the_path_and_ends_at_rest(positions: np.ndarray, at: float) -> None:
    c = chunk(positions)
    now_ns = c.start_ns + int(at * NS_PER_S)
    brake = c.brake(now_ns, 0.4)
    np.testing.assert_array_equal(brake.start, c.sample(now_ns))
    np.testing.assert_array_equal(brake.velocities[-1], 0.0)
    assert brake.end_ns - brake.start_ns == 400_000_000
    # Half of the braking time is travelled along the old path, and not one nanosecond more.
    np.testing.assert_array_equal(brake.positions[-1], c.sample(now_ns + 200_000_000))


def test_braking_never_speeds_up() -> None:
    positions = np.outer(np.arange(1, 51) * 0.1, np.ones(14))
    c = chunk(positions)
    brake = c.brake(c.start_ns + NS_PER_S, 0.4)
    steps = np.diff(np.vstack([brake.start, brake.positions]), axis=0)[:, 0]
    assert np.all(np.diff(steps) < 0)
    assert steps[0] < 0.1
