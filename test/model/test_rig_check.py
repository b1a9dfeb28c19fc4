"""Pins that statistics of another arm or in another unit are named, joint by joint.

And that 16:9 cameras do not arm under a checkpoint that saw 4:3, as they did without a line.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.statistics import (
    Range,
    Statistics,
    check_images,
    compare_with_rig,
    load_statistics,
)
from cosmos_policy_ros.rig.spec import CAMERA_ROLES, RigSpec


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


FOUR_TO_THREE = (480, 640)


@pytest.mark.parametrize("size", [(480, 640), (240, 320), (960, 1280), (48, 64), (470, 640)])
def test_images_of_the_trained_aspect_ratio_pass(rig: RigSpec, size: tuple[int, int]) -> None:
    check = check_images(dict.fromkeys(CAMERA_ROLES, size), FOUR_TO_THREE, rig)
    assert check.passed
    assert f"primary {size[0]}x{size[1]}" in check.found


@pytest.mark.parametrize(
    ("size", "by"),
    [((180, 320), "+33%"), ((480, 848), "+32%"), ((480, 480), "-25%"), ((640, 480), "-44%")],
)
def test_wider_and_narrower_images_are_named(rig: RigSpec, size: tuple[int, int], by: str) -> None:
    sizes = dict.fromkeys(CAMERA_ROLES, FOUR_TO_THREE) | {"primary": size}
    check = check_images(sizes, FOUR_TO_THREE, rig)
    assert not check.passed
    assert f"primary {size[0]}x{size[1]}, {by} in width" in check.found
    assert "wrist" not in check.found and "480x640" in check.found
    assert "any_aspect: true" in check.advice


def test_the_rig_file_may_except_a_camera(rig: RigSpec) -> None:
    cameras = tuple(replace(c, any_aspect=c.role == "primary") for c in rig.cameras)
    excepting = replace(rig, cameras=cameras)
    wide = (180, 320)
    sizes = dict.fromkeys(CAMERA_ROLES, FOUR_TO_THREE) | {"primary": wide}
    assert check_images(sizes, FOUR_TO_THREE, excepting).passed
    assert not check_images(dict.fromkeys(CAMERA_ROLES, wide), FOUR_TO_THREE, excepting).passed


def test_images_that_nothing_was_learned_from_are_only_told(rig: RigSpec) -> None:
    check = check_images({"primary": (180, 320)}, (), rig)
    assert check.passed and "primary 180x320" in check.found
    assert not check_images({}, FOUR_TO_THREE, rig).passed


@pytest.mark.parametrize(
    ("name", "size"),
    [("tiny", (480, 640)), ("aloha_2b", (480, 640)), ("libero_2b", (256, 256))],
)
def test_what_checkpoints_were_trained_on(name: str, size: tuple[int, int]) -> None:
    file = config_folder("models") / name / "config.yaml"
    config = load_config(CheckpointConfig, file)
    assert config.trained_on == size
    assert replace(config, camera_size=(720, 1280)).trained_on == (720, 1280)
    for wrong in ((480,), (0, 640), (1, 2, 3)):
        with pytest.raises(ValueError, match="must be rows and columns"):
            replace(config, camera_size=wrong)
