"""Pins the statistics of an arm at rest: a tick of its encoder became the whole of -1 to 1.

0.03 rad away from such a tick, a state was given to the network as 38, and nothing was said.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.episodes import RIG
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cosmos_policy_ros.dataset.checks import (
    EpisodeReport,
    load_check_limits,
)
from cosmos_policy_ros.dataset.motion import Measures, Motion, measure_motion
from cosmos_policy_ros.dataset.review import (
    idle_joints,
    learned_ranges,
    outliers,
    set_warnings,
    with_outliers,
)
from cosmos_policy_ros.model.statistics import MEASURES, Range, measure, widen

Array = NDArray[np.float64]
LIMITS = load_check_limits()
TICK = RIG.tick


def report(actions: Array, states: Array | None = None, **others: object) -> EpisodeReport:
    """Return the report of an episode of (n, 14) actions and states, 25 a second."""
    times = np.arange(len(actions)) * 40_000_000
    motion = Motion(times, actions if states is None else states, actions, 0.04)
    made = EpisodeReport(
        prompt="fold",
        steps=len(actions),
        seconds=len(actions) / 25,
        joints=RIG.joint_names,
        tick=tuple(TICK.tolist()),
        states=measure_motion(motion, motion.states),
        actions=measure_motion(motion, motion.actions),
        sizes={"primary": ((480, 640),)},
    )
    return replace(made, **others)  # type: ignore[arg-type]


def moving(rows: int = 100, seed: int = 0) -> Array:
    draw = np.random.default_rng(seed)
    at = np.arange(rows)[:, None] / 25
    return np.sin(at * draw.uniform(0.5, 2, 14) + draw.uniform(0, 6, 14)) / 2


@given(st.integers(0, 10**6), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_ranges_are_those_of_all_steps(seed: int, lengths: list[int]) -> None:
    """But for the median, which nothing reads."""
    draw = np.random.default_rng(seed)
    episodes = [draw.normal(0, 3, (2, rows, 14)) * draw.uniform(0.5, 2) for rows in lengths]
    ranges = learned_ranges([report(actions, states) for actions, states in episodes], LIMITS)
    assert ranges is not None
    whole = np.concatenate(episodes, axis=1)
    wanted = widen(measure(*whole), LIMITS.least_range * TICK)
    assert list(ranges.content) == list(wanted)
    for key in wanted:
        if not key.endswith("median"):
            np.testing.assert_allclose(ranges.content[key], wanted[key], atol=1e-9)


@pytest.mark.parametrize("ticks", [1, 2, 5, 31])
def test_an_idle_arm_is_not_stretched(ticks: int) -> None:
    actions = moving()
    actions[:, 7:] = [0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.5]
    states = actions.copy()
    noise = np.random.default_rng(0).integers(0, ticks + 1, (len(actions), 7))
    noise[:2] = [[0], [ticks]]
    states[:, 7:] += noise * TICK[7:]
    ranges = learned_ranges([report(actions, states)], LIMITS)
    assert ranges is not None
    assert ranges.widened == tuple(f"state {name} ({ticks})" for name in RIG.joint_names[7:])
    assert "right/waist" in ranges.text
    low, high = (np.array(ranges.content[f"proprio_{end}"]) for end in ("min", "max"))
    rest = states[0].copy()
    away = rest.copy()
    away[7:13] += 0.03
    scaled = Range(low, high).normalise(np.stack([rest, away, rest + TICK]))
    assert np.abs(scaled).max() < 2.5
    assert (scaled[2] - scaled[0])[7:].max() == pytest.approx(2 / LIMITS.least_range)
    # What moves is as it was; what never moved at all has no range to be widened.
    np.testing.assert_array_equal(low[:7], states[:, :7].min(axis=0))
    assert ranges.content["actions_min"] == actions.min(axis=0).tolist()
    assert idle_joints([report(actions, states)], LIMITS) == RIG.joint_names[7:]
    ((check, text),) = ((f.check, f.text) for f in set_warnings([report(actions, states)], LIMITS))
    assert check == "idle"
    assert f"the right arm (at most {ticks})" in text


def test_what_one_episode_moves_is_idle_in_none() -> None:
    still, turning = moving(), moving(seed=1)
    still[:, 3] = 0.1
    assert "left/forearm_roll" in set_warnings([report(still)], LIMITS)[0].text
    assert not set_warnings([report(still), report(turning)], LIMITS)


def test_without_an_episode_there_are_no_ranges() -> None:
    assert learned_ranges([], LIMITS) is None
    assert learned_ranges([replace(report(moving()), states=None)], LIMITS) is None


def jerky(jerk: float) -> EpisodeReport:
    made = report(moving())
    assert made.states is not None
    jerks = [10.0] * 14
    jerks[4] = jerk
    return replace(made, states=replace(made.states, jerk=tuple(jerks)))


@pytest.mark.parametrize("seconds", [0.5, 40.0])
def test_an_episode_of_another_length_stands_out(seconds: float) -> None:
    reports = {str(i): report(moving(), seconds=4.0 + i / 10) for i in range(10)}
    reports["odd"] = report(moving(), seconds=seconds)
    (found,) = outliers(reports, LIMITS).items()
    assert found[0] == "odd"
    assert found[1][0].text.startswith(f"lasts {seconds} s, where the episodes' median is 4.")


def test_a_jerky_episode_stands_out() -> None:
    reports = {str(i): jerky(10.0 + i / 2) for i in range(10)}
    reports["odd"] = jerky(500.0)
    (found,) = outliers(reports, LIMITS).items()
    assert found[0] == "odd"
    assert (
        found[1][0].text == "its states are jerky: left/wrist_angle 40 times the episodes' median"
    )
    told = with_outliers(reports, LIMITS)
    assert told["odd"].warnings == found[1]
    assert told["0"] == reports["0"]


def test_few_episodes_or_like_ones_have_no_outliers() -> None:
    few = {str(i): report(moving(), seconds=s) for i, s in enumerate((1.0, 1.0, 99.0))}
    assert not outliers(few, LIMITS)
    # All alike but one, which is barely longer: a spread of zero makes nothing odd.
    alike = {str(i): report(moving(), seconds=4.0) for i in range(20)}
    assert not outliers({**alike, "21": report(moving(), seconds=4.1)}, LIMITS)


def test_images_of_several_shapes_are_said() -> None:
    shapes = [(480, 640)] * 5 + [(720, 1280)] * 2
    reports = [report(moving(), sizes={"primary": (shape,)}) for shape in shapes]
    (found,) = set_warnings(reports, LIMITS)
    assert "primary: images of several sizes" in found.text
    assert "480x640 in 5, 720x1280 in 2; of several aspect ratios" in found.text
    assert not set_warnings(reports[:5], LIMITS)
    same = [report(moving(), sizes={"primary": (shape,)}) for shape in ((480, 640), (240, 320))]
    assert "aspect" not in set_warnings(same, LIMITS)[0].text


def test_measures_know_how_far_each_dimension_moves() -> None:
    made = report(moving()).actions
    assert isinstance(made, Measures)
    np.testing.assert_allclose(made.range, np.ptp(moving(), axis=0))
    assert set(MEASURES) <= set(vars(made))
