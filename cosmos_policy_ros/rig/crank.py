"""The ViperX gripper's crank: motor angle to finger position and back.

A disc of ``radius`` turned by the gripper motor pushes each finger through a connecting rod, so
equal motor steps are unequal finger steps, and an angle and a finger position normalised to 0..1
agree at the ends only.
"""

from __future__ import annotations

import math

from cosmos_policy_ros.errors import ConfigError


def finger_from_angle(angle: float, radius: float, rod: float) -> float:
    """Return one finger's distance [m] from the gripper's middle at motor ``angle`` [rad].

    Args:
        angle: gripper motor angle; -pi/2 is the innermost and pi/2 the outermost position.
        radius: crank radius [m], 0.022 on a vx300s.
        rod: connecting rod length [m], 0.036 on a vx300s.

    Raises:
        ConfigError: the geometry is impossible, i.e. not 0 < radius < rod.
    """
    _check(radius, rod)
    return radius * math.sin(angle) + math.sqrt(rod**2 - (radius * math.cos(angle)) ** 2)


def angle_from_finger(finger: float, radius: float, rod: float) -> float:
    """Return the motor angle [rad] in [-pi/2, pi/2] that puts a finger at ``finger`` [m].

    Positions the crank cannot reach (outside ``[rod - radius, rod + radius]``) give the nearest
    end; NaN stays NaN.

    Raises:
        ConfigError: the geometry is impossible, i.e. not 0 < radius < rod.
    """
    _check(radius, rod)
    if math.isnan(finger):
        return math.nan
    reachable = min(max(finger, rod - radius), rod + radius)
    sine = (reachable**2 + radius**2 - rod**2) / (2.0 * reachable * radius)
    return math.asin(min(max(sine, -1.0), 1.0))


def _check(radius: float, rod: float) -> None:
    if not 0.0 < radius < rod:
        raise ConfigError(
            f"gripper crank: radius {radius} m and rod {rod} m cannot turn; "
            "needed 0 < radius < rod (0.022 and 0.036 on a vx300s)"
        )
