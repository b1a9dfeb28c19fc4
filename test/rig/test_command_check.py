"""Nothing leaves a node that is not finite, past a limit, too fast or far from the arm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.rig.command_check import CUBIC_PEAK, CommandCheck
from cosmos_policy_ros.rig.spec import load_rig

RIG = load_rig("sim", config_folder("rigs"))
CHECK = CommandCheck.of_rig(RIG)
START = np.concatenate([[*arm.start, 0.5] for arm in RIG.arms.values()])
DT = RIG.rates.dt


def problem(rows: np.ndarray, **changes: Any) -> str:
    seconds = np.arange(1, len(rows) + 1) * DT
    return CHECK.problem(rows, **{"seconds": seconds, "commanded": START} | changes)


def walk(joint: int, step: float, rows: int = 10) -> np.ndarray:
    path = np.tile(START, (rows, 1))
    path[:, joint] += step * np.arange(1, rows + 1)
    return path


def test_what_the_arms_can_do_is_sent() -> None:
    assert not problem(walk(0, 0.9 * RIG.max_velocity[0] * DT), measured=START)
    assert not problem(START[None], measured=START)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_both_sides_of_every_limit(sign: float) -> None:
    assert "left/waist would be moved at" in problem(walk(0, sign * 2.0 * RIG.max_velocity[0] * DT))
    far = np.tile(START, (5, 1))
    far[:, 9] += sign * 10.0
    assert "right/elbow would be told" in problem(far)
    off = START.copy()
    off[3] += sign * 0.3
    assert "left/forearm_roll is at" in problem(START[None], measured=off)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_but_numbers(bad: float) -> None:
    rows = walk(0, 0.0)
    rows[4, 6] = bad
    assert "not finite" in problem(rows)
    assert "not finite" in problem(START[None], commanded=np.full(14, bad))
    assert "not finite" in problem(START[None], velocities=np.full((1, 14), bad))
    assert "not finite" in problem(START[None], seconds=np.array([bad]))
    assert "nothing at all" in problem(np.zeros((0, 14)))


@pytest.mark.parametrize("seconds", [[0.0, 0.04], [-0.04, 0.04], [0.04, 0.04], [0.04, 1e6]])
def test_times_must_grow_from_now(seconds: list[float]) -> None:
    assert "out of order" in problem(np.tile(START, (2, 1)), seconds=np.array(seconds))


def test_velocities_are_bounded_too() -> None:
    velocities = np.zeros((1, 14))
    velocities[0, 8] = -1.01 * RIG.max_velocity[8]
    assert "right/shoulder would be moved" in problem(START[None], velocities=velocities)


def test_an_arm_past_a_limit_may_be_held_there_and_brought_back() -> None:
    past = START.copy()
    past[2] = RIG.upper[2] + 0.05
    assert not problem(past[None], commanded=past, measured=past)
    back = past.copy()
    back[2] -= 0.02
    assert not problem(back[None], commanded=past)
    further = past.copy()
    further[2] += 0.02
    assert "left/elbow would be told" in problem(further[None], commanded=past)


def test_a_gripper_may_be_far_from_its_target() -> None:
    holding = START.copy()
    holding[6] = 1.0
    assert not problem(START[None], measured=holding)


def test_lagging_arms_are_near_what_they_were_told_of_late() -> None:
    told = np.linspace(START, START + 0.4, 5)
    assert not problem(told[-1:], commanded=told, measured=START + 0.1)
    assert problem(told[-1:], commanded=told, measured=START - 0.2)


@pytest.mark.parametrize("name", ["sim", "interbotix_1", "interbotix_2"])
def test_of_one_controller_it_is_in_the_drivers_units(name: str) -> None:
    rig = load_rig(name, config_folder("rigs"))
    for output in rig.outputs:
        check = CommandCheck.of_output(rig, output)
        assert (check.lower < check.upper).all(), "a gripper may close towards higher angles"
        rows = rig.command(START[None])[:, list(output.columns)]
        assert not check.problem(rows, np.array([DT]), rows[0], measured=rows[0])


@given(
    rows=arrays(np.float64, (6, 14), elements=st.floats(-5.0, 5.0)),
    commanded=arrays(np.float64, (14,), elements=st.floats(-3.0, 3.0)),
)
def test_what_passes_keeps_every_limit(rows: np.ndarray, commanded: np.ndarray) -> None:
    rows[:, :12] = START[:12] + 0.02 * rows[:, :12]  # near enough that some pass
    rows[:, 6], rows[:, 13] = 0.5, 0.5
    commanded = START + 0.02 * commanded
    if problem(rows, commanded=commanded):
        return
    assert (rows >= np.minimum(RIG.lower, commanded) - 1e-5).all()
    assert (rows <= np.maximum(RIG.upper, commanded) + 1e-5).all()
    speeds = np.abs(np.diff(rows, axis=0, prepend=commanded[None])) / DT
    assert (speeds <= CUBIC_PEAK * RIG.max_velocity + 1e-3).all()
