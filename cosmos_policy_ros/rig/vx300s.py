"""The ViperX 300 S, the follower arm of every ALOHA: its joints, its limits, and its links' shapes.

Joint limits are those of Interbotix's URDF. Joint placements are the same in that URDF and in the
model of the ALOHA's authors (gym-aloha 0.1.5). The capsules were laid around that model's meshes by
hand; a test holds them against MuJoCo's distances between these.
"""

from __future__ import annotations

import math
from typing import NamedTuple

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
LOWER = (-3.14158, -1.85005, -1.76278, -3.14158, -1.86750, -3.14158)
UPPER = (3.14158, 1.25664, 1.60570, 3.14158, 2.23402, 3.14158)
"""Position limits [rad]."""
MAX_VELOCITY = 3.14159
"""Of every joint [rad/s]."""
TICKS_PER_TURN = 4096
TICK = math.tau / TICKS_PER_TURN
"""One count of a motor's encoder [rad]: what is finer cannot be measured, nor told to it."""

ORIGINS = (
    (0.0, 0.0, 0.079),
    (0.0, 0.0, 0.04805),
    (0.05955, 0.0, 0.3),
    (0.2, 0.0, 0.0),
    (0.1, 0.0, 0.0),
    (0.069744, 0.0, 0.0),
)
"""Each joint's place in the frame of the link before it [m]; with all joints at 0 the frames are
parallel, x ahead, z up."""
AXES = (2, 1, 1, 0, 1, 0)
"""What each joint turns about: 0 is x, 1 is y, 2 is z."""

FINGER_CLOSED, FINGER_OPEN = 0.021, 0.057
"""How far each finger stands off the hand's middle at opening 0 and at 1 [m]."""

BASE, SHOULDER, UPPER_ARM, UPPER_FOREARM, LOWER_FOREARM, WRIST, HAND = range(7)
"""Numbers of the links' frames: the base, then what each joint moves."""


class Capsule(NamedTuple):
    """All points within ``radius`` of the line from ``start`` to ``end``.

    Attributes:
        link: its name for people.
        frame: that it is fixed to.
        start, end: in that frame [m].
        radius: [m].
        slides: 1 or -1 for a finger, which moves along y with the gripper's opening; 0 for none.
    """

    link: str
    frame: int
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float
    slides: int = 0


CAPSULES = (
    Capsule("base", BASE, (-0.175, 0.030, 0.040), (0.045, 0.030, 0.040), 0.050),
    Capsule("base", BASE, (-0.175, -0.030, 0.040), (0.045, -0.030, 0.040), 0.050),
    Capsule("base", BASE, (-0.180, 0.085, -0.018), (0.085, 0.085, -0.018), 0.036),
    Capsule("base", BASE, (-0.180, -0.085, -0.018), (0.085, -0.085, -0.018), 0.036),
    Capsule("shoulder", SHOULDER, (0.0, 0.0, 0.0), (0.0, 0.0, 0.020), 0.065),
    Capsule("upper arm", UPPER_ARM, (0.0, 0.032, 0.0), (0.008, 0.032, 0.300), 0.0235),
    Capsule("upper arm", UPPER_ARM, (0.0, 0.0, 0.0), (0.008, 0.0, 0.300), 0.0235),
    Capsule("upper arm", UPPER_ARM, (0.0, -0.032, 0.0), (0.008, -0.032, 0.300), 0.0235),
    Capsule("upper arm", UPPER_ARM, (0.046, 0.030, 0.301), (0.046, -0.030, 0.301), 0.031),
    Capsule("forearm", UPPER_FOREARM, (0.020, 0.036, 0.0), (0.020, -0.036, 0.0), 0.028),
    Capsule("forearm", UPPER_FOREARM, (0.021, 0.0, 0.0), (0.190, 0.0, 0.0), 0.029),
    Capsule("forearm", LOWER_FOREARM, (0.012, 0.002, 0.0), (0.092, -0.003, 0.0), 0.031),
    Capsule("forearm", LOWER_FOREARM, (0.010, 0.022, 0.0), (0.040, 0.022, 0.0), 0.028),
    Capsule("wrist", WRIST, (0.005, 0.0, 0.002), (0.050, 0.0, 0.010), 0.032),
    Capsule("hand", HAND, (0.010, 0.0, 0.008), (0.045, 0.0, 0.008), 0.029),
    Capsule("hand", HAND, (0.047, 0.053, 0.0), (0.047, -0.053, 0.0), 0.037),
    Capsule("fingers", HAND, (0.085, -0.011, 0.017), (0.085, -0.011, -0.017), 0.021, 1),
    Capsule("fingers", HAND, (0.090, -0.010, 0.0), (0.142, -0.017, 0.0), 0.012, 1),
    Capsule("fingers", HAND, (0.085, 0.011, 0.017), (0.085, 0.011, -0.017), 0.021, -1),
    Capsule("fingers", HAND, (0.090, 0.010, 0.0), (0.142, 0.017, 0.0), 0.012, -1),
)
"""Of one arm, from the base to the fingertips."""
