"""The rig description: ``config/rigs/*.yaml`` as frozen dataclasses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.errors import ConfigError
from cosmos_policy_ros.rig import vx300s
from cosmos_policy_ros.rig.arms import (
    ARM_DIM,
    ARM_JOINTS,
    ARMS,
    GRIPPER_INDICES,
    STATE_DIM,
    Arm,
    Arms,
)
from cosmos_policy_ros.rig.collision import Base, Geometry
from cosmos_policy_ros.rig.config import load_config, named_file
from cosmos_policy_ros.rig.limits import (
    BASE_DISTANCE,
    GRIPPER_RANGES,
    MAX_ACCELERATION,
    OFF_AT_0,
    RANGES,
    GateLimits,
    ObservationLimits,
    Rates,
    StreamLimits,
    TrackingLimits,
)
from cosmos_policy_ros.rig.outputs import Output, find_outputs

CAMERA_ROLES = ("left_wrist", "right_wrist", "primary")
GREY = "mono8"
"""Encoding of a grey picture of 8 bits."""
MAX_SIDE = 4096
"""Rows and columns [px] of a picture. Cameras of a rig have 480 to 2160 rows; one of this size
takes 50 MB and 0.1 to 0.6 s to decode, and ten times as many pixels would hold up the arms."""


@dataclass(frozen=True)
class Camera:
    """One colour camera.

    Attributes:
        role: left_wrist, right_wrist or primary.
        topic: image topic, relative to the node's namespace.
        info_topic: its CameraInfo, recorded beside the images.
        transport: "raw" (sensor_msgs/Image) or "compressed" (sensor_msgs/CompressedImage).
        encodings: what a raw image may be encoded as; anything else is refused by name. Grey
            pictures, compressed ones too, are taken only where mono8 is among them.
        size: rows and columns [px] that it sends; another size is refused. Empty for any.
        any_aspect: take pictures of another aspect ratio than the checkpoint's training had; the
            model sees them squeezed.
    """

    role: Literal["left_wrist", "right_wrist", "primary"]
    topic: str
    info_topic: str
    transport: Literal["raw", "compressed"] = "raw"
    encodings: tuple[str, ...] = ("rgb8", "bgr8", "rgba8", "bgra8")
    size: tuple[int, ...] = ()
    any_aspect: bool = False

    def __post_init__(self) -> None:
        """Refuse a size that is none."""
        if self.size and not (len(self.size) == 2 and all(0 < n <= MAX_SIDE for n in self.size)):
            raise ValueError(
                f"size: {list(self.size)} must be rows and columns of 1 to {MAX_SIDE} px, or left "
                f"out"
            )

    @property
    def grey(self) -> bool:
        """Whether it may send grey pictures."""
        return GREY in self.encodings


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
        tracking: when moving arms do not follow.
        trajectory_stamp: "zero" starts a trajectory on arrival, "start" stamps it.
        sink: who takes the trajectories: "joint_trajectory", controllers, or "interbotix",
            arm_streamer_node in front of drivers that know none.
        stream: how the latter streams.
        bringup: what ``bringup:=true`` starts; None where there is nothing to start.
        geometry: what the arms can run into; None in bags from before this key.
    """

    name: str
    kind: Literal["real", "sim"]
    description: str
    arms: Arms
    cameras: tuple[Camera, ...]
    rates: Rates
    observation: ObservationLimits
    gate: GateLimits
    tracking: TrackingLimits = field(default_factory=TrackingLimits)
    trajectory_stamp: Literal["zero", "start"] = "zero"
    sink: Literal["joint_trajectory", "interbotix"] = "joint_trajectory"
    stream: StreamLimits = field(default_factory=StreamLimits)
    bringup: Bringup | None = None
    geometry: Geometry | None = None

    def __post_init__(self) -> None:
        """Refuse a missing or doubled camera role, a shared topic and limits that say nothing."""
        roles = [camera.role for camera in self.cameras]
        if sorted(roles) != sorted(CAMERA_ROLES):
            raise ValueError(
                f"cameras: need each of {', '.join(CAMERA_ROLES)} once, found {', '.join(roles)}"
            )
        self._check_topics()
        for block in (self.rates, self.observation, self.gate, self.tracking, self.stream):
            for key, value in vars(block).items():
                if not math.isfinite(value) or value < 0 or (value == 0 and key not in OFF_AT_0):
                    raise ValueError(f"{key}: {value} must be above 0")

    def _check_topics(self) -> None:
        arms = self.arms.values()
        drivers = [arm.driver for arm in arms if arm.driver is not None]
        topics = [camera.topic for camera in self.cameras]
        topics += dict.fromkeys(arm.joint_states for arm in arms)
        topics += [output.topic for output in self.outputs]
        topics += [topic for each in drivers for topic in (each.joint_group, each.joint_single)]
        if len(set(topics)) != len(topics):
            raise ValueError("cameras and arms: two of them share a topic")
        left, right = arms
        both = sorted({*left.state_names} & {*right.state_names})
        if left.joint_states == right.joint_states and both:
            raise ValueError(
                f"both arms' joint states come on '{left.joint_states}', and a joint of each is "
                f"called '{both[0]}'; give them names of their own, or each arm a topic"
            )
        if self.sink == "interbotix":
            if len(drivers) < len(ARMS):
                raise ValueError("sink: interbotix needs each arm's driver block")
            per_arm = [tuple(range(ARM_DIM)), tuple(range(ARM_DIM, STATE_DIM))]
            if [output.columns for output in self.outputs] != per_arm:
                raise ValueError(
                    "sink: interbotix takes one trajectory per arm, its gripper among the joints"
                )

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """The controllers that trajectories go to, in the order of the 14-vector."""
        arms = self.arms.values()
        return find_outputs(
            [topic for arm in arms for topic in arm.trajectories],
            [name for arm in arms for name in arm.names],
            GRIPPER_INDICES,
        )

    def command(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (K, 14) targets in policy units as the drivers take them."""
        left, right = np.hsplit(positions, len(ARMS))
        return np.hstack([self.arms.left.command(left), self.arms.right.command(right)])

    def command_speed(self, velocities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (K, 14) velocities in policy units per second as the drivers take them."""
        left, right = np.hsplit(velocities, len(ARMS))
        return np.hstack([self.arms.left.command_speed(left), self.arms.right.command_speed(right)])

    def commanded(self, sent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the (K, 14) targets in policy units for which the drivers' (K, 14) were sent."""
        left, right = np.hsplit(sent, len(ARMS))
        return np.hstack([self.arms.left.commanded(left), self.arms.right.commanded(right)])

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

    @property
    def max_acceleration(self) -> NDArray[np.float64]:
        """(14,) limits of acceleration [rad/s^2]; infinite for grippers, and where there is none.

        A gripper's servo limits its own current, and a target may jump by half a stroke.
        """
        free = (math.inf,) * ARM_DIM
        return np.concatenate(
            [[*(arm.max_acceleration or free)[:ARM_JOINTS], math.inf] for arm in self.arms.values()]
        )


def load_rig(name_or_path: str, folder: Path) -> RigSpec:
    """Load a rig that is to move, by the name of a file in ``folder`` or by a YAML file's path.

    Unlike a rig in a bag, which is read as it was, it must keep to the limits of its arms' model.

    Raises:
        ConfigError: no such rig (with the nearest name), or the file is wrong (with the key).
    """
    path = named_file(name_or_path, folder)
    rig = load_config(RigSpec, path)
    wrong = next(_excesses(rig), None)
    if wrong is not None:
        raise ConfigError(f"{path}: {wrong}; correct the rig file")
    return rig


def _excesses(rig: RigSpec) -> Iterator[str]:
    """Yield what in a rig file lies outside what its arms can do, or a limit may be."""
    for name, ranges in RANGES.items():
        block = getattr(rig, name)
        if block is None:
            yield f"key '{name}' is missing: copy it from config/rigs and measure what it asks for"
            return
        for key, allowed in ranges.items():
            yield from _outside(f"{name}: {key}", getattr(block, key), allowed)
    if rig.gate.lead_in and round(rig.gate.lead_in * rig.rates.control) < 1:
        yield f"gate: lead_in: {rig.gate.lead_in} s is less than a row"
    for side, arm in rig.arms.items():
        yield from _arm_excesses(f"arms: {side}", arm)
    assert rig.geometry is not None
    for side in ARMS:
        base: Base = getattr(rig.geometry.bases, side)
        for axis, value in zip("xyz", base.position, strict=True):
            where = f"geometry: bases: {side}: position ({axis})"
            yield from _outside(where, value, (-BASE_DISTANCE, BASE_DISTANCE))
        yield from _outside(f"geometry: bases: {side}: yaw", base.yaw, (-math.tau, math.tau))


def _arm_excesses(where: str, arm: Arm) -> Iterator[str]:
    if arm.max_acceleration is None:
        yield f"{where}: key 'max_acceleration' is missing: copy it from config/rigs"
        return
    for index, joint in enumerate(vx300s.JOINTS):
        of = (vx300s.LOWER[index], vx300s.UPPER[index])
        for key, value, allowed in (
            ("lower", arm.lower[index], of),
            ("upper", arm.upper[index], of),
            ("max_velocity", arm.max_velocity[index], (0.05, vx300s.MAX_VELOCITY)),
            ("max_acceleration", arm.max_acceleration[index], MAX_ACCELERATION),
        ):
            model = ", the vx300s's; yours may be narrower" if key in ("lower", "upper") else ""
            yield from _outside(f"{where}: {key}[{index}] ({joint})", value, allowed, model)
    for key, allowed in GRIPPER_RANGES.items():
        yield from _outside(f"{where}: gripper: {key}", getattr(arm.gripper, key), allowed)
    if arm.gripper.crank is not None:
        for key in ("radius", "rod"):
            yield from _outside(
                f"{where}: gripper: crank: {key}", getattr(arm.gripper.crank, key), (0.005, 0.1)
            )
    if arm.driver is not None:
        for index, value in enumerate(arm.driver.parked):
            yield from _outside(f"{where}: driver: parked[{index}]", value, (-math.pi, math.pi))


def _outside(
    where: str, value: float, allowed: tuple[float, float], whose: str = ""
) -> Iterator[str]:
    low, high = allowed
    if not low <= value <= high:
        yield f"{where}: {value:g} is outside {low:g} to {high:g}{whose}"
