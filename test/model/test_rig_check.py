"""Pins that statistics of another arm or in another unit are named, joint by joint."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cosmos_policy_ros.model.rig_check import compare_with_rig
from cosmos_policy_ros.model.statistics import Range, Statistics, load_statistics
from cosmos_policy_ros.rig.spec import RigSpec


def within(rig: RigSpec) -> Range:
    return Range(rig.lower.copy(), rig.upper.copy())


def test_the_rigs_own_limits_fit(rig: RigSpec) -> None:
    assert compare_with_rig(Statistics(within(rig), within(rig)), rig) == ()


def test_shipped_statistics_fit(rig: RigSpec, tiny_path: Path) -> None:
    statistics = load_statistics(tiny_path / "dataset_statistics.json", 14, 14)
    assert compare_with_rig(statistics, rig) == ()


@pytest.mark.parametrize(
    ("index", "low", "high", "named"),
    [
        (1, -0.16, 0.0, "left/shoulder: .* as low as -2.010 rad, 0.160 past the lower limit -1.85"),
        (9, 0.0, 0.16, "right/elbow: .* as high as 1.766 rad, 0.160 past the upper limit 1.606"),
        (6, -0.51, 0.0, "left/gripper: .* as low as -0.510 strokes"),
        (13, 0.0, 0.51, "right/gripper: .* as high as 1.510 strokes"),
        (13, 0.0, -0.942, "right/gripper: .* never exceed 0.058, where 0 is closed"),
    ],
)
@pytest.mark.parametrize("what", ["actions", "proprio"])
def test_misfit_is_named(
    rig: RigSpec, what: str, index: int, low: float, high: float, named: str
) -> None:
    ranges = {"actions": within(rig), "proprio": within(rig)}
    ranges[what].low[index] += low
    ranges[what].high[index] += high
    (warning,) = compare_with_rig(Statistics(**ranges), rig)
    assert f"the checkpoint's {what}" in warning
    assert re.search(named, warning)


def test_what_the_gate_clamps_silently_is_silent(rig: RigSpec) -> None:
    overshoot = Range(rig.lower - 0.149, rig.upper + 0.149)
    assert compare_with_rig(Statistics(overshoot, overshoot), rig) == ()


def test_degrees_are_noticed(rig: RigSpec) -> None:
    degrees = Range(np.rad2deg(rig.lower), np.rad2deg(rig.upper))
    assert len(compare_with_rig(Statistics(within(rig), degrees), rig)) >= 12


def test_another_robot_is_named_once_per_quantity(rig: RigSpec) -> None:
    arm = Range(np.zeros(7), np.ones(7))
    warnings = compare_with_rig(Statistics(arm, within(rig)), rig)
    assert len(warnings) == 1 and "actions have 7 numbers, the rig 'sim' has 14" in warnings[0]
