"""The rig description: ``config/rigs/*.yaml`` as frozen dataclasses.

The 14-vector is the left arm then the right arm, seven each: six joints [rad] and the gripper
(0 closed, 1 open), as in every ALOHA dataset that Cosmos Policy was trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.rig.config import load_config, named_file
from cosmos_policy_ros.rig.crank import finger_from_angle
from cosmos_policy_ros.rig.limits import (
    OFF_AT_0,
    GateLimits,
    ObservationLimits,
    Rates,
    StreamLimits,
)

ARM_JOINTS = 6
ARM_DIM = ARM_JOINTS + 1
STATE_DIM = 2 * ARM_DIM
ARMS = ("left", "right")
CAMERA_ROLES = ("left_wrist", "right_wrist", "primary")
GRIPPER_INDICES = (ARM_JOINTS, ARM_DIM + ARM_JOINTS)


@dataclass(frozen=True)
class Crank:
    """Geometry that turns the gripper motor's angle into finger metres.

    Attributes:
        radius: crank radius [m].
        rod: connecting rod [m].
    """

    radius: float
    rod: float


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

    def __post_init__(self) -> None:
        """Refuse ranges without width and a crank source without a crank."""
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

    def command(self, opening: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what is sent for openings (n,), 0 closed to 1 open."""
        return self.command_closed + opening * self.command_stroke

    def commanded(self, command: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the openings (n,) for which commands were sent."""
        return (command - self.command_closed) / self.command_stroke


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
class Arm:
    """One follower arm.

    Attributes:
        joint_states: topic, relative to the node's namespace.
        trajectory: topic the arm's JointTrajectory goes to.
        joints: the six joint names, in the order of the 14-vector.
        lower, upper: position limits [rad].
        max_velocity: speed limits [rad/s].
        start: start pose [rad].
        gripper: the seventh entry.
        driver: of an arm that is streamed to; needed where the rig's sink is "interbotix".
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

    def __post_init__(self) -> None:
        """Refuse duplicate names, empty ranges and a start pose outside the limits."""
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
        """The seven names of this arm's trajectory."""
        return (*self.joints, self.gripper.joint)

    def command(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (K, 7) targets in policy units as the arm's driver takes them."""
        sent: NDArray[np.float64] = positions.copy()
        sent[:, ARM_JOINTS] = self.gripper.command(sent[:, ARM_JOINTS])
        return sent

    def command_speed(self, velocities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (K, 7) velocities in policy units per second as the arm's driver takes them."""
        sent: NDArray[np.float64] = velocities.copy()
        sent[:, ARM_JOINTS] *= self.gripper.command_stroke
        return sent


@dataclass(frozen=True)
class Arms:
    """Both arms; their order in the 14-vector is left, right."""

    left: Arm
    right: Arm

    def keys(self) -> tuple[str, str]:
        """Return the sides in the order of the 14-vector."""
        return ("left", "right")

    def values(self) -> tuple[Arm, Arm]:
        """Return the arms in the order of the 14-vector."""
        return (self.left, self.right)

    def items(self) -> tuple[tuple[str, Arm], tuple[str, Arm]]:
        """Return (side, arm) in the order of the 14-vector."""
        return (("left", self.left), ("right", self.right))


@dataclass(frozen=True)
class Camera:
    """One colour camera.

    Attributes:
        role: left_wrist, right_wrist or primary.
        topic: image topic, relative to the node's namespace.
        info_topic: its CameraInfo, recorded beside the images.
        transport: "raw" (sensor_msgs/Image) or "compressed" (sensor_msgs/CompressedImage).
        encodings: what a raw image may be encoded as; anything else is refused by name.
    """

    role: Literal["left_wrist", "right_wrist", "primary"]
    topic: str
    info_topic: str
    transport: Literal["raw", "compressed"] = "raw"
    encodings: tuple[str, ...] = ("rgb8", "bgr8", "rgba8", "bgra8", "mono8")


@dataclass(frozen=True)
class Bringup:
    """The launch file that starts a rig's own drivers: arms and cameras, without leaders.

    Attributes:
        package: that has it.
        file: in the package's folder ``launch``.
        arguments: such as "launch_leaders:=false".
    """

    package: str
    file: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class RigSpec:
    """Everything the package knows about one rig.

    Attributes:
        name: name of the file.
        kind: "real" or "sim"; a sim rig is started by the launch file.
        description: one line for people.
        arms: left and right.
        cameras: in the order the policy sees them.
        rates: control, chunk, sensors.
        observation: when a source may not be used.
        gate: limits of the safety gate.
        trajectory_stamp: "zero" starts a trajectory on arrival, "start" stamps it.
        sink: who takes the trajectories: "joint_trajectory", a controller per arm, or "interbotix",
            arm_streamer_node in front of drivers that know none.
        stream: how the latter streams.
        bringup: what ``bringup:=true`` starts; None where there is nothing to start.
    """

    name: str
    kind: Literal["real", "sim"]
    description: str
    arms: Arms
    cameras: tuple[Camera, ...]
    rates: Rates
    observation: ObservationLimits
    gate: GateLimits
    trajectory_stamp: Literal["zero", "start"] = "zero"
    sink: Literal["joint_trajectory", "interbotix"] = "joint_trajectory"
    stream: StreamLimits = field(default_factory=StreamLimits)
    bringup: Bringup | None = None

    def __post_init__(self) -> None:
        """Refuse a missing or doubled camera role, a shared topic and limits that say nothing."""
        roles = [camera.role for camera in self.cameras]
        if sorted(roles) != sorted(CAMERA_ROLES):
            raise ValueError(
                f"cameras: need each of {', '.join(CAMERA_ROLES)} once, found {', '.join(roles)}"
            )
        topics = [camera.topic for camera in self.cameras]
        topics += [arm.joint_states for arm in self.arms.values()]
        topics += [arm.trajectory for arm in self.arms.values()]
        drivers = [arm.driver for arm in self.arms.values() if arm.driver is not None]
        topics += [topic for each in drivers for topic in (each.joint_group, each.joint_single)]
        if self.sink == "interbotix" and len(drivers) < len(ARMS):
            raise ValueError("sink: interbotix needs each arm's driver block")
        if len(set(topics)) != len(topics):
            raise ValueError("cameras and arms: two of them share a topic")
        for block in (self.rates, self.observation, self.gate, self.stream):
            for key, value in vars(block).items():
                if not math.isfinite(value) or value < 0 or (value == 0 and key not in OFF_AT_0):
                    raise ValueError(f"{key}: {value} must be above 0")

    @property
    def joint_names(self) -> tuple[str, ...]:
        """The 14 names "left/waist" … "right/gripper"."""
        return tuple(f"{side}/{name}" for side, arm in self.arms.items() for name in arm.names)

    @property
    def lower(self) -> NDArray[np.float64]:
        """(14,) lower limits, policy units."""
        return np.concatenate([[*arm.lower, 0.0] for arm in self.arms.values()])

    @property
    def upper(self) -> NDArray[np.float64]:
        """(14,) upper limits, policy units."""
        return np.concatenate([[*arm.upper, 1.0] for arm in self.arms.values()])

    @property
    def max_velocity(self) -> NDArray[np.float64]:
        """(14,) speed limits, policy units per second."""
        return np.concatenate(
            [[*arm.max_velocity, arm.gripper.max_velocity] for arm in self.arms.values()]
        )


def load_rig(name_or_path: str, folder: Path) -> RigSpec:
    """Load a rig by the name of a file in ``folder`` or by the path of a YAML file.

    Raises:
        ConfigError: no such rig (with the nearest name), or the file is wrong (with the key).
    """
    return load_config(RigSpec, named_file(name_or_path, folder))
