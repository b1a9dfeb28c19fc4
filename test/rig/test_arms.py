"""Pins the crank geometry to the numbers measured on the ALOHA's ViperX grippers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.rig.arms import angle_from_finger, finger_from_angle

VX300S = (0.022, 0.036)
ALOHA_VX300S = (0.0275, 0.035)


@pytest.mark.parametrize(
    ("geometry", "angle", "finger"),
    [
        (VX300S, 1.4910, 0.0579),
        (VX300S, -0.6213, 0.0184),
        (VX300S, 1.6214, 0.0580),
        (VX300S, 0.6197, 0.0440),
        (ALOHA_VX300S, 1.4910, 0.0623),
        (ALOHA_VX300S, -0.6213, 0.0109),
        (ALOHA_VX300S, 0.6197, 0.0429),
    ],
)
def test_known_grippers(geometry: tuple[float, float], angle: float, finger: float) -> None:
    assert finger_from_angle(angle, *geometry) == pytest.approx(finger, abs=6e-5)


@given(st.floats(-1.5, 1.5), st.sampled_from([VX300S, ALOHA_VX300S]))
def test_there_and_back(angle: float, geometry: tuple[float, float]) -> None:
    finger = finger_from_angle(angle, *geometry)
    assert angle_from_finger(finger, *geometry) == pytest.approx(angle, abs=1e-6)


def test_beyond_the_ends_is_the_end() -> None:
    assert angle_from_finger(0.070, *VX300S) == pytest.approx(math.pi / 2)
    assert angle_from_finger(0.0, *VX300S) == pytest.approx(-math.pi / 2)


def test_nan_is_not_hidden() -> None:
    assert math.isnan(angle_from_finger(math.nan, *VX300S))


def test_impossible_crank_is_named() -> None:
    with pytest.raises(ConfigError, match=r"radius 0\.04 m and rod 0\.036 m"):
        finger_from_angle(0.0, 0.04, 0.036)
    with pytest.raises(ConfigError, match="0 < radius < rod"):
        angle_from_finger(0.03, 0.0, 0.036)
