"""The arms of a rig: their joints, their grippers, and the 14-vector that they make.

The 14-vector is the left arm then the right arm, seven each: six joints [rad] and the gripper
(0 closed, 1 open), as in every ALOHA dataset that Cosmos Policy was trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.units import Array

ARM_JOINTS = 6
ARM_DIM = ARM_JOINTS + 1
STATE_DIM = 2 * ARM_DIM
ARMS = ("left", "right")
GRIPPER_INDICES = [ARM_JOINTS, ARM_DIM + ARM_JOINTS]


@dataclass(frozen=True)
class Crank:
    """The ViperX gripper's crank, which turns the motor's angle into finger metres.

    A disc on the motor pushes each finger through a connecting rod, so equal motor steps are
    unequal finger steps, and an angle and a finger position normalised to 0..1 agree at the ends
    only.

    Attributes:
        radius: of the disc [m].
        rod: length of the connecting rod [m].
    """

    radius: float
    rod: float


def finger_from_angle(angle: float, radius: float, rod: float) -> float:
    """Return one finger's distance [m] from the gripper's middle at motor ``angle`` [rad].

    -pi/2 is the innermost and pi/2 the outermost angle; a vx300s has a radius of 0.022 m and a rod
    of 0.036 m.

    Raises:
        ConfigError: not 0 < radius < rod.
    """
    _check(radius, rod)
    return radius * math.sin(angle) + math.sqrt(rod**2 - (radius * math.cos(angle)) ** 2)


def angle_from_finger(finger: float, radius: float, rod: float) -> float:
    """Return the motor angle [rad] in [-pi/2, pi/2] that puts a finger at ``finger`` [m].

    Positions the crank cannot reach (outside ``[rod - radius, rod + radius]``) give the nearest
    end; NaN stays NaN.

    Raises:
        ConfigError: not 0 < radius < rod.
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


@dataclass(frozen=True)
class Gripper:
    """How one gripper is read and commanded.

    Attributes:
        joint: its name in joint_states and in the trajectory.
        state_source: "finger" reads ``finger_joint`` [m]; "angle" reads ``joint`` [rad]; "crank"
            reads ``joint`` and recomputes metres with ``crank``, for a driver whose own geometry
            is not the dataset's.
        finger_joint: the finger's name in joint_states.
        state_closed, state_open: what the source reads there (m, or rad for "angle").
        command_unit: "angle" [rad], "linear" [m] or "normalized".
        command_closed, command_open: what is sent for 0 and for 1, in that unit.
        max_velocity: strokes per second a *target* may move. The servo limits its own current,
            so this only catches nonsense.
        crank: needed by "crank" and by the simulated rig.
        trajectory: topic of a controller of the gripper's own; empty where the arm's moves it.
    """

    joint: str
    state_source: Literal["finger", "angle", "crank"]
    finger_joint: str
    state_closed: float
    state_open: float
    command_unit: Literal["angle", "linear", "normalized"]
    command_closed: float
    command_open: float
    max_velocity: float
    crank: Crank | None = None
    trajectory: str = ""

    def __post_init__(self) -> None:
        """Refuse what the types allow but no gripper is."""
        if self.state_open == self.state_closed or self.command_open == self.command_closed:
            raise ValueError(f"gripper '{self.joint}': open and closed must differ")
        if self.state_source == "crank" and self.crank is None:
            raise ValueError(f"gripper '{self.joint}': state_source crank needs a crank block")
        if self.max_velocity <= 0:
            raise ValueError(f"gripper '{self.joint}': max_velocity must be above 0")

    @property
    def state_joint(self) -> str:
        """The joint whose position tells the opening."""
        return self.finger_joint if self.state_source == "finger" else self.joint

    def reading(self, position: float) -> float:
        """Return in the state's unit what ``state_joint`` tells."""
        if self.crank is None or self.state_source != "crank":
            return position
        return finger_from_angle(position, self.crank.radius, self.crank.rod)

    def normalize(self, reading: float) -> float:
        """Return the normalised opening for a reading in the state's unit."""
        return (reading - self.state_closed) / self.state_stroke

    @property
    def state_stroke(self) -> float:
        """Distance from closed to open in the state's unit; the sign is the direction's."""
        return self.state_open - self.state_closed

    @property
    def command_stroke(self) -> float:
        """Distance from closed to open in the command's unit; the sign is the direction's."""
        return self.command_open - self.command_closed

    def command(self, opening: Array) -> Array:
        """Return what is sent for openings of any shape, 0 closed to 1 open."""
        return self.command_closed + opening * self.command_stroke


@dataclass(frozen=True)
class Driver:
    """A driver that takes goals one by one and knows no trajectories: Interbotix' xs_sdk.

    Attributes:
        joint_group: topic of the six joints' goals.
        joint_single: topic of the gripper's.
        services: namespace of the driver's services.
        group: what the driver calls the six joints.
        parked: an arm lies folded when its shoulder is below the first and its elbow above the
            second of these [rad]; only then may its torque be switched.
    """

    joint_group: str
    joint_single: str
    services: str
    group: str = "arm"
    parked: tuple[float, float] = (-1.4, 1.2)


@dataclass(frozen=True)
class LeaderDriver:
    """A driver that moves a leader by its own torque: Interbotix' xs_sdk.

    Attributes:
        joint_group: topic of the six joints' goals.
        services: namespace of the driver's services.
        group: what the driver calls the six joints.
        gravity_compensation: service that switches it; empty where the leader has none. It carries
            a leader that is led; without it, a leader that is let go of falls.
    """

    joint_group: str
    services: str
    group: str = "arm"
    gravity_compensation: str = ""


@dataclass(frozen=True)
class Leader:
    """The arm that an operator moves, and its follower after it.

    Where a bag of a teleoperated rig holds no commands, these are the actions.

    Attributes:
        joint_states: topic.
        closed, open: its gripper's motor there [rad].
        names: of its six joints and its gripper's motor; None: as the follower's.
        signs, offsets: its follower's joint is sign * leader + offset [rad].
        driver: that can move it to its follower; None: it is moved by hand alone.
    """

    joint_states: str
    closed: float
    open: float
    names: tuple[str, str, str, str, str, str, str] | None = None
    signs: tuple[float, float, float, float, float, float] = (1.0,) * 6
    offsets: tuple[float, float, float, float, float, float] = (0.0,) * 6
    driver: LeaderDriver | None = None

    def __post_init__(self) -> None:
        """Refuse what the types allow but no leader is."""
        if self.closed == self.open:
            raise ValueError("leader: open and closed must differ")
        if {*self.signs} - {1.0, -1.0}:
            raise ValueError(f"leader: signs: {list(self.signs)} must be 1 or -1")


@dataclass(frozen=True)
class Arm:
    """One follower arm.

    Attributes:
        joint_states: topic, relative to the node's namespace; both arms' may be one, if the names
            of the joints differ.
        trajectory: topic the arm's JointTrajectory goes to; of both arms too.
        joints: the six joint names, in the order of the 14-vector.
        lower, upper: position limits [rad].
        max_velocity: speed limits [rad/s].
        start: start pose [rad].
        gripper: the seventh entry.
        driver: for an arm that is streamed to; needed where ``command_interface`` is "interbotix".
        max_acceleration: limits of the change of speed from row to row [rad/s^2]; None in bags from
            before this key, for no limit.
        leader: that it follows where a person moves it.
    """

    joint_states: str
    trajectory: str
    joints: tuple[str, str, str, str, str, str]
    lower: tuple[float, float, float, float, float, float]
    upper: tuple[float, float, float, float, float, float]
    max_velocity: tuple[float, float, float, float, float, float]
    start: tuple[float, float, float, float, float, float]
    gripper: Gripper
    driver: Driver | None = None
    max_acceleration: tuple[float, float, float, float, float, float] | None = None
    leader: Leader | None = None

    def __post_init__(self) -> None:
        """Refuse what the types allow but no arm is."""
        if len({*self.joints, self.gripper.joint}) != ARM_DIM:
            raise ValueError(f"joints: names must differ, found {', '.join(self.joints)}")
        for name, low, high, speed, start in zip(
            self.joints, self.lower, self.upper, self.max_velocity, self.start, strict=True
        ):
            if not low < high:
                raise ValueError(f"joint '{name}': lower {low} must be below upper {high}")
            if not speed > 0:
                raise ValueError(f"joint '{name}': max_velocity {speed} must be above 0")
            if not low <= start <= high:
                raise ValueError(f"joint '{name}': start {start} is outside [{low}, {high}]")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of this arm's seven entries."""
        return (*self.joints, self.gripper.joint)

    @property
    def state_names(self) -> tuple[str, ...]:
        """The seven names that are read in joint_states."""
        return (*self.joints, self.gripper.state_joint)

    @property
    def trajectories(self) -> tuple[str, ...]:
        """The topics that its seven entries are sent to."""
        return (self.trajectory,) * ARM_JOINTS + (self.gripper.trajectory or self.trajectory,)

    def command(self, positions: Array) -> Array:
        """Return (K, 7) targets in policy units as the arm's driver takes them."""
        gripper = self.gripper.command(positions[:, ARM_JOINTS:])
        return np.hstack([positions[:, :ARM_JOINTS], gripper])


@dataclass(frozen=True)
class Arms:
    """Both arms; their order in the 14-vector is left, right."""

    left: Arm
    right: Arm

    def __getitem__(self, side: str) -> Arm:
        """Return the arm of a side."""
        return dict(self.items())[side]

    def keys(self) -> tuple[str, str]:
        """Return the sides in the order of the 14-vector."""
        return ("left", "right")

    def values(self) -> tuple[Arm, Arm]:
        """Return the arms in the order of the 14-vector."""
        return (self.left, self.right)

    def items(self) -> tuple[tuple[str, Arm], tuple[str, Arm]]:
        """Return (side, arm) in the order of the 14-vector."""
        return (("left", self.left), ("right", self.right))
