"""The rig description: ``config/rigs/*.yaml`` as frozen dataclasses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from cosmos_policy_ros.core.config import load_config, named_file
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.rig import vx300s
from cosmos_policy_ros.rig.arms import (
    ARM_DIM,
    ARM_JOINTS,
    ARMS,
    GRIPPER_INDICES,
    STATE_DIM,
    Arms,
)
from cosmos_policy_ros.rig.collision import Base, Geometry

# Of every number in these blocks of a rig that is to move: least, most. A rig file may be stricter
# or more patient than those that ship, but not so that a limit stands for nothing.
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "rates": {
        "control": (5.0, 100.0),  # Hz; ALOHA data are recorded at 25 or 50
        "chunk_steps": (1, 250),  # ten seconds at 25 Hz
        "joint_states": (10.0, 1000.0),
        "cameras": (1.0, 240.0),
    },
    "observation": {  # s; what is a second old shows other arms than there are
        "image_age": (0.01, 1.0),
        "state_age": (0.01, 0.5),
        "camera_skew": (0.005, 0.5),
        "frozen_after": (0.0, 10.0),
        "state_timeout": (0.05, 1.0),
        "image_timeout": (0.0, 5.0),
        "stamp_ahead": (0.005, 0.5),
    },
    "gate": {
        "start_jump": (0.01, 0.3),  # rad; twice the released client's
        "gripper_start_jump": (0.05, 1.1),  # strokes; a whole one and its overshoot
        "joint_overshoot": (0.0, 0.3),  # rad
        "gripper_overshoot": (0.0, 1.0),  # strokes
        "velocity_scale": (0.05, 1.0),  # never faster than the arm
        "refusals": (1, 20),
        "result_age": (0.1, 600.0),  # s
        "ramp_in": (0.0, 1.0),  # s
        "ramp_in_jump": (0.0, 0.5),  # rad; with 0.4 s no joint is led faster than 2 rad/s
        "shake": (0.05, 1.0),
        "drift": (0.0, 1.0),  # rad
    },
    "teleoperation": {
        "rate": (20.0, 200.0),
        "match": (0.02, 0.6),  # rad; twice what the eye sees
        "gripper_match": (0.1, 1.5),  # strokes
        "ramp": (0.1, 5.0),  # s
        "silence": (0.02, 0.3),  # s
        "hand_speed": (3.0, 30.0),  # rad/s
        "leader_speed": (0.05, 1.0),  # rad/s
    },
    "tracking": {
        "lag": (0.02, 1.0),  # s
        "error": (0.02, 0.5),  # rad
        "wrist_error": (0.02, 1.0),  # rad
        "sustained": (0.04, 1.0),  # s
    },
    "stream": {
        "rate": (20.0, 500.0),  # Hz
        "heartbeat_timeout": (0.05, 2.0),  # s
        "arm_silence": (0.05, 1.0),  # s
        "brake_seconds": (0.0, 0.5),  # s
    },
    "geometry": {
        "table": (-1.0, 1.0),  # m
        "margin": (0.0, 0.1),  # m; more, and arms at rest would be too near
        "finger_margin": (-0.02, 0.1),  # m; two fingers' axes meet at -0.024
    },
}
GRIPPER_RANGES: dict[str, tuple[float, float]] = {
    "max_velocity": (0.5, 25.0),  # strokes/s; a whole one per control period
    "state_closed": (-7.0, 7.0),  # m or rad; a turn of the motor and a little
    "state_open": (-7.0, 7.0),
    "command_closed": (-7.0, 7.0),
    "command_open": (-7.0, 7.0),
}
# Of an arm joint [rad/s^2]: MoveIt plans the arm with 5; 157 turns a joint round at full speed from
# one row of 40 ms to the next.
MAX_ACCELERATION = (5.0, 100.0)
BASE_DISTANCE = 3.0  # m; how far a base may stand from the origin along each axis
LEAST_BRAKE = 0.08  # s; at full speed a joint slows by 39 rad/s^2
# Other numbers of a rig must be above 0.
OFF_AT_0 = (
    "frozen_after",
    "image_timeout",
    "joint_overshoot",
    "gripper_overshoot",
    "ramp_in",
    "ramp_in_jump",
    "brake_seconds",
    "shake",
    "drift",
)


@dataclass(frozen=True)
class Rates:
    """Rates of the rig [Hz] and the chunk it executes.

    Attributes:
        control: rows of a chunk per second.
        chunk_steps: rows per chunk.
        joint_states: what each arm publishes.
        cameras: what each camera publishes at least.
    """

    control: float
    chunk_steps: int
    joint_states: float
    cameras: float

    @property
    def loss_brake(self) -> float:
        """Seconds to rest once a source is lost: blind, so two control periods and no further.

        Rows that lie closer stop no arm in less time.
        """
        return max(2 * self.dt, LEAST_BRAKE)

    @property
    def dt(self) -> float:
        """Seconds between two rows of a chunk."""
        return 1.0 / self.control


@dataclass(frozen=True)
class ObservationLimits:
    """When a source may not be used [s].

    Attributes:
        image_age: oldest image, from its stamp to now.
        state_age: oldest joint state.
        camera_skew: widest spread of the three image stamps.
        frozen_after: byte-identical images under new stamps for this long mean a frozen camera
            (a real sensor is never noise-free); 0 turns the check off.
        state_timeout: without a good joint state for this long an executing chunk is braked.
        image_timeout: the same for a camera's new images; 0 lets a chunk go on without.
        stamp_ahead: how far a stamp may be ahead of this machine's clock. Two machines that chrony
            keeps together differ by milliseconds; a stamp further ahead would hide a source that
            has died for as long as it is ahead.
    """

    image_age: float
    state_age: float
    camera_skew: float
    frozen_after: float
    state_timeout: float
    # Bags carry their rig's file; those from before these keys are still read.
    image_timeout: float = 0.5
    stamp_ahead: float = 0.05


@dataclass(frozen=True)
class GateLimits:
    """Limits of the safety gate that are not an arm's own.

    Attributes:
        start_jump: first row against the commanded and the measured pose, arm joints [rad].
        gripper_start_jump: the same for grippers [strokes]; wide, since a gripper that holds an
            object stands far from its target.
        joint_overshoot: how far past a position limit a target is clamped [rad]; further is
            refused. 0 clamps nothing.
        gripper_overshoot: the same for grippers [strokes].
        velocity_scale: fraction of each joint's max_velocity a step may use.
        refusals: consecutive refused chunks that end a run.
        result_age: seconds from the observation that a chunk was decided on to its score; the
            arms have held meanwhile, the scene may have changed.
        ramp_in: seconds in which a chunk that begins off the commanded pose, and no further than
            ``ramp_in_jump``, is led over from there; 0 leaves chunks as they are, and
            ``start_jump`` refuses.
        ramp_in_jump: of any arm joint [rad].
        shake: root mean square of an arm joint's acceleration over 0.4 s, as a part of its
            max_acceleration; 0 for no limit.
        drift: a run is told from which sum on its chunks' first rows have led an arm joint away
            from the commanded pose in one direction [rad]; 0 for never.
    """

    start_jump: float
    gripper_start_jump: float
    joint_overshoot: float
    gripper_overshoot: float
    velocity_scale: float
    refusals: int
    # Bags carry their rig's file; those from before these keys are still read.
    result_age: float = 120.0
    ramp_in: float = 0.0
    ramp_in_jump: float = 0.0
    shake: float = 0.0
    drift: float = 0.0


@dataclass(frozen=True)
class TrackingLimits:
    """When arms that are being moved do not follow.

    Attributes:
        lag: seconds by which an arm may be behind its command.
        error: how far waist, shoulder and elbow may be off everything commanded within the lag
            [rad].
        wrist_error: the same for the three joints behind the elbow, which are weaker: what the hand
            presses against turns them.
        sustained: seconds for which it must be, before the arms are held.
    """

    lag: float = 0.3
    error: float = 0.15
    wrist_error: float = 0.4
    sustained: float = 0.2


@dataclass(frozen=True)
class StreamLimits:
    """Pace and patience of a stream of goals, where no controller takes trajectories.

    The heartbeat counts beside controllers, too.

    Attributes:
        rate: goals per second; the servos interpolate nothing, and below 50 the arms shake.
        heartbeat_timeout: seconds without the policy node, while it is armed, before the arms
            brake; and without the arm interface, before a run ends.
        arm_silence: the same for an arm's good joint states, while it is being moved.
        brake_seconds: time in which the arms come to rest along their path; 0 stops them dead.
    """

    rate: float = 50.0
    heartbeat_timeout: float = 0.3
    arm_silence: float = 0.25
    brake_seconds: float = 0.08


@dataclass(frozen=True)
class TeleoperationLimits:
    """How followers track leaders that a person moves; all other limits are the rig's.

    Attributes:
        rate: targets per second.
        match: how far [rad] a leader's joint may be from its follower's when it begins.
        gripper_match: the same of grippers [strokes].
        ramp: seconds in which the followers come up to the joints' speed.
        silence: seconds without a leader's joint state, or without a tick of the arm interface,
            after which the followers are held.
        hand_speed: fastest that a hand moves a leader's joint [rad/s]; what is faster is a fault.
        leader_speed: of the fastest joint of leaders that are moved by their own torque [rad/s].
    """

    rate: float = 50.0
    match: float = 0.3
    gripper_match: float = 1.0
    ramp: float = 0.5
    silence: float = 0.1
    hand_speed: float = 15.0
    leader_speed: float = 0.5


@dataclass(frozen=True)
class Output:
    """One controller: its topic, and what of the 14-vector it moves.

    Attributes:
        name: "left", "right" or "arms"; of grippers alone "left_gripper", "right_gripper" or
            "grippers".
        topic: relative to the node's namespace.
        joints: names in its trajectories, in their order.
        columns: the entries of the 14-vector behind them.
    """

    name: str
    topic: str
    joints: tuple[str, ...]
    columns: tuple[int, ...]


CAMERA_ROLES = ("left_wrist", "right_wrist", "primary")
GREY = "mono8"  # encoding of a grey image of 8 bits
# Rows and columns [px] of an image. Cameras of a rig have 480 to 2160 rows; one of this size takes
# 50 MB and 0.1 to 0.6 s to decode, and ten times as many pixels would hold up the arms.
MAX_SIDE = 4096
JPEG_QUALITY = 95  # above, files grow and nothing is seen


@dataclass(frozen=True)
class Camera:
    """One colour camera.

    Attributes:
        role: left_wrist, right_wrist or primary.
        topic: image topic, relative to the node's namespace.
        info_topic: its CameraInfo, recorded beside the images.
        transport: "raw" (sensor_msgs/Image) or "compressed" (sensor_msgs/CompressedImage).
        encodings: what a raw image may be encoded as; anything else is refused by name. Grey
            images, compressed ones too, are taken only where mono8 is among them.
        size: rows and columns [px] that it sends; another size is refused. Empty for any.
        any_aspect: take images of another aspect ratio than the checkpoint's training had; the
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
        """Whether it may send grey images."""
        return GREY in self.encodings


@dataclass(frozen=True)
class ImageRecording:
    """What becomes of raw cameras' images before they are recorded, and looked at.

    The policy looks at the bytes that are recorded. A camera of transport "compressed" is recorded,
    and looked at, as its driver sends it.

    Attributes:
        images: "jpeg", or "raw" for the driver's own bytes on eight times the disk.
        jpeg_quality: 1 to 95.
    """

    images: Literal["jpeg", "raw"] = "jpeg"
    jpeg_quality: int = JPEG_QUALITY

    def __post_init__(self) -> None:
        """Refuse a quality that is none."""
        if not 1 <= self.jpeg_quality <= JPEG_QUALITY:
            raise ValueError(f"jpeg_quality: {self.jpeg_quality} must be 1 to {JPEG_QUALITY}")

    @property
    def text(self) -> str:
        """In a word or two: "raw", or "jpeg 95"."""
        return "raw" if self.images == "raw" else f"jpeg {self.jpeg_quality}"


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
        recording: what becomes of raw cameras' images.
        trajectory_stamp: "zero" starts a trajectory on arrival, "start" stamps it.
        command_interface: what takes the trajectories: "joint_trajectory" for controllers,
            "interbotix" for drivers that know none.
        stream: how the latter streams.
        teleoperation: how leaders are followed.
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
    recording: ImageRecording = field(default_factory=ImageRecording)
    trajectory_stamp: Literal["zero", "start"] = "zero"
    command_interface: Literal["joint_trajectory", "interbotix"] = "joint_trajectory"
    stream: StreamLimits = field(default_factory=StreamLimits)
    teleoperation: TeleoperationLimits = field(default_factory=TeleoperationLimits)
    bringup: Bringup | None = None
    geometry: Geometry | None = None

    def __post_init__(self) -> None:
        """Refuse camera roles, topics and limits that no rig can have."""
        roles = [camera.role for camera in self.cameras]
        if sorted(roles) != sorted(CAMERA_ROLES):
            raise ValueError(
                f"cameras: need each of {', '.join(CAMERA_ROLES)} once, found {', '.join(roles)}"
            )
        arms = self.arms.values()
        drivers = [arm.driver for arm in arms if arm.driver is not None]
        topics = [camera.topic for camera in self.cameras]
        topics += dict.fromkeys(arm.joint_states for arm in arms)
        topics += [output.topic for output in self.outputs]
        topics += [topic for each in drivers for topic in (each.joint_group, each.joint_single)]
        topics += [arm.leader.joint_states for arm in arms if arm.leader is not None]
        if len(set(topics)) != len(topics):
            raise ValueError("cameras and arms: two of them share a topic")
        left, right = arms
        both = sorted({*left.state_names} & {*right.state_names})
        if left.joint_states == right.joint_states and both:
            raise ValueError(
                f"both arms' joint states come on '{left.joint_states}', and a joint of each is "
                f"called '{both[0]}'; give them names of their own, or each arm a topic"
            )
        if self.command_interface == "interbotix":
            if len(drivers) < len(ARMS):
                raise ValueError("command_interface: interbotix needs each arm's driver block")
            per_arm = [tuple(range(ARM_DIM)), tuple(range(ARM_DIM, STATE_DIM))]
            if [output.columns for output in self.outputs] != per_arm:
                raise ValueError(
                    "command_interface: interbotix takes one trajectory per arm, its gripper among "
                    "the joints"
                )
        for block in (
            self.rates,
            self.observation,
            self.gate,
            self.tracking,
            self.stream,
            self.teleoperation,
        ):
            for key, value in vars(block).items():
                if not math.isfinite(value) or value < 0 or (value == 0 and key not in OFF_AT_0):
                    raise ValueError(f"{key}: {value} must be above 0")

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """The controllers that trajectories go to, in the order of the 14-vector."""
        arms = self.arms.values()
        topics = [topic for arm in arms for topic in arm.trajectories]
        joints = [name for arm in arms for name in arm.names]
        found = []
        for topic in dict.fromkeys(topics):
            columns = tuple(i for i, each in enumerate(topics) if each == topic)
            names = tuple(joints[i] for i in columns)
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(
                    f"two joints on '{topic}' are called '{twice[0]}'; give each a name of its "
                    f"own, such as 'left_{twice[0]}', or each arm a topic"
                )
            only_grippers = all(i in GRIPPER_INDICES for i in columns)
            moved = [i for i in columns if only_grippers or i not in GRIPPER_INDICES]
            sides = {ARMS[i // ARM_DIM] for i in moved}
            side = sides.pop() if len(sides) == 1 else ""
            name = side or "arms"
            if only_grippers:
                name = f"{side}_gripper" if side else "grippers"
            found.append(Output(name, topic, names, columns))
        return tuple(found)

    def with_images(self, images: Literal["jpeg", "raw"]) -> RigSpec:
        """Return the rig with raw cameras' images recorded so."""
        return replace(self, recording=replace(self.recording, images=images))

    def executing(self, rows: int, dt: float) -> RigSpec:
        """Return the rig as it executes chunks of another length and rate than its file says.

        Limits in rad/s, rad/s^2 and s stay what they are.

        Args:
            rows: per chunk.
            dt: seconds between them.

        Raises:
            ConfigError: no rig that moves takes such chunks.
        """
        for name, value, (low, high), unit in (
            ("rows per chunk", float(rows), RANGES["rates"]["chunk_steps"], ""),
            ("rate", 1.0 / dt, RANGES["rates"]["control"], " Hz"),
        ):
            if not low <= value <= high:
                raise ConfigError(
                    f"rig '{self.name}': a chunk's {name} of {value:g}{unit} is outside {low:g} to "
                    f"{high:g}{unit}"
                )
        return replace(self, rates=replace(self.rates, control=1.0 / dt, chunk_steps=rows))

    def command(self, positions: Array) -> Array:
        """Return (K, 14) targets in policy units as the drivers take them."""
        left, right = np.hsplit(positions, len(ARMS))
        return np.hstack([self.arms.left.command(left), self.arms.right.command(right)])

    def command_speed(self, velocities: Array) -> Array:
        """Return (K, 14) velocities in policy units per second as the drivers take them."""
        sent: Array = velocities.copy()
        sent[:, GRIPPER_INDICES] *= [arm.gripper.command_stroke for arm in self.arms.values()]
        return sent

    def commanded(self, sent: Array) -> Array:
        """Return the (K, 14) targets in policy units for which the drivers' (K, 14) were sent."""
        grippers = [arm.gripper for arm in self.arms.values()]
        positions: Array = sent.copy()
        positions[:, GRIPPER_INDICES] -= [gripper.command_closed for gripper in grippers]
        positions[:, GRIPPER_INDICES] /= [gripper.command_stroke for gripper in grippers]
        return positions

    @property
    def led(self) -> bool:
        """Whether both arms have leaders."""
        return all(arm.leader is not None for arm in self.arms.values())

    @property
    def leaders_move(self) -> bool:
        """Whether both leaders can be moved by their own torque."""
        leaders = [arm.leader for arm in self.arms.values()]
        return all(leader is not None and leader.driver is not None for leader in leaders)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """The 14 names "left/waist" … "right/gripper"."""
        return tuple(f"{side}/{name}" for side, arm in self.arms.items() for name in arm.names)

    @property
    def lower(self) -> Array:
        """(14,) lower limits, policy units."""
        return np.concatenate([[*arm.lower, 0.0] for arm in self.arms.values()])

    @property
    def upper(self) -> Array:
        """(14,) upper limits, policy units."""
        return np.concatenate([[*arm.upper, 1.0] for arm in self.arms.values()])

    @property
    def max_velocity(self) -> Array:
        """(14,) speed limits, policy units per second."""
        return np.concatenate(
            [[*arm.max_velocity, arm.gripper.max_velocity] for arm in self.arms.values()]
        )

    @property
    def max_acceleration(self) -> Array:
        """(14,) limits of acceleration [rad/s^2]; infinite for grippers, and where there is none.

        A gripper's servo limits its own current, and a target may jump by half a stroke.
        """
        free = (math.inf,) * ARM_DIM
        return np.concatenate(
            [[*(arm.max_acceleration or free)[:ARM_JOINTS], math.inf] for arm in self.arms.values()]
        )

    @property
    def tick(self) -> Array:
        """(14,) one count of each motor's encoder, policy units.

        A gripper's motor turns 1 to 2 rad from closed to open. Where the rig file does not tell how
        far, because it is commanded in another unit than angles, it is taken to turn 1.
        """
        grippers = [arm.gripper for arm in self.arms.values()]
        turns = [abs(g.command_stroke) if g.command_unit == "angle" else 1.0 for g in grippers]
        return np.concatenate([[*(vx300s.TICK,) * ARM_JOINTS, vx300s.TICK / t] for t in turns])


def load_rig(name_or_path: str, folder: Path) -> RigSpec:
    """Load a rig that is to move, by the name of a file in ``folder`` or by a YAML file's path.

    Unlike a rig in a bag, it must keep to the limits of its arms' model.

    Raises:
        ConfigError: no such rig (with the nearest name), or the file is wrong (with the key).
    """
    path = named_file(name_or_path, folder)
    rig = load_config(RigSpec, path)
    try:
        _check_ranges(rig)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; correct the rig file") from None
    return rig


def _check_ranges(rig: RigSpec) -> None:
    """Raise ValueError for what lies outside what the arms can do, or a limit may be."""

    def check(where: str, value: float, allowed: tuple[float, float], whose: str = "") -> None:
        low, high = allowed
        if not low <= value <= high:
            raise ValueError(f"{where}: {value:g} is outside {low:g} to {high:g}{whose}")

    for name, ranges in RANGES.items():
        block = getattr(rig, name)
        if block is None:
            raise ValueError(
                f"key '{name}' is missing: copy it from config/rigs and measure what it asks for"
            )
        for key, allowed in ranges.items():
            check(f"{name}: {key}", getattr(block, key), allowed)
    if rig.gate.ramp_in and round(rig.gate.ramp_in * rig.rates.control) < 1:
        raise ValueError(f"gate: ramp_in: {rig.gate.ramp_in} s is less than a row")
    for side, arm in rig.arms.items():
        where = f"arms: {side}"
        if arm.max_acceleration is None:
            raise ValueError(
                f"{where}: key 'max_acceleration' is missing: copy it from config/rigs"
            )
        for index, joint in enumerate(vx300s.JOINTS):
            reach = (vx300s.LOWER[index], vx300s.UPPER[index])
            model = ", the vx300s's; yours may be narrower"
            for key, values, allowed, whose in (
                ("lower", arm.lower, reach, model),
                ("upper", arm.upper, reach, model),
                ("max_velocity", arm.max_velocity, (0.05, vx300s.MAX_VELOCITY), ""),
                ("max_acceleration", arm.max_acceleration, MAX_ACCELERATION, ""),
            ):
                check(f"{where}: {key}[{index}] ({joint})", values[index], allowed, whose)
        for key, allowed in GRIPPER_RANGES.items():
            check(f"{where}: gripper: {key}", getattr(arm.gripper, key), allowed)
        if arm.gripper.crank is not None:
            for key, value in vars(arm.gripper.crank).items():
                check(f"{where}: gripper: crank: {key}", value, (0.005, 0.1))
        if arm.leader is not None:
            for key in ("closed", "open"):
                check(f"{where}: leader: {key}", getattr(arm.leader, key), (-7.0, 7.0))
        if arm.driver is not None:
            for index, value in enumerate(arm.driver.parked):
                check(f"{where}: driver: parked[{index}]", value, (-math.pi, math.pi))
    assert rig.geometry is not None
    for side in ARMS:
        base: Base = getattr(rig.geometry.bases, side)
        where = f"geometry: bases: {side}"
        for axis, value in zip("xyz", base.position, strict=True):
            check(f"{where}: position ({axis})", value, (-BASE_DISTANCE, BASE_DISTANCE))
        check(f"{where}: yaw", base.yaw, (-math.tau, math.tau))
