"""A rig's rates, and the limits of what is done with it; parts of ``config/rigs/*.yaml``."""

from __future__ import annotations

from dataclasses import dataclass

OFF_AT_0 = (
    "frozen_after",
    "image_timeout",
    "joint_overshoot",
    "gripper_overshoot",
    "lead_in",
    "lead_in_jump",
    "brake_seconds",
    "shake",
    "drift",
)


SHAKE_ROWS = 10

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
        "lead_in": (0.0, 1.0),  # s
        "lead_in_jump": (0.0, 0.5),  # rad; with 0.4 s no joint is led faster than 2 rad/s
        "shake": (0.05, 1.0),
        "drift": (0.0, 1.0),  # rad
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
MAX_ACCELERATION = (5.0, 100.0)
"""Of an arm joint [rad/s^2]: MoveIt plans the arm with 5; 157 turns a joint round at full speed
from one row of 40 ms to the next."""
BASE_DISTANCE = 3.0
"""How far a base may stand from the origin along each axis [m]."""


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
        """Seconds to rest once a source is lost: blind, so two control periods and no further."""
        return 2 * self.dt

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
        frozen_after: byte-identical pictures under new stamps for this long mean a frozen camera
            (a real sensor is never noise-free); 0 turns the check off.
        state_timeout: without a good joint state for this long an executing chunk is braked.
        image_timeout: the same for a camera's new pictures; 0 lets a chunk go on without.
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
        velocity_scale: share of each joint's max_velocity a step may use.
        refusals: consecutive refused chunks that end a run.
        result_age: seconds from the observation that a chunk was decided on to its judgement; the
            arms have held meanwhile, the scene may have changed.
        lead_in: seconds in which a chunk that begins off the commanded pose, and no further than
            ``lead_in_jump``, is led over from there; 0 leaves chunks as they are, and
            ``start_jump`` refuses.
        lead_in_jump: of any arm joint [rad].
        shake: root mean square of an arm joint's acceleration over SHAKE_ROWS rows, as a share of
            its max_acceleration; 0 for no limit.
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
    lead_in: float = 0.0
    lead_in_jump: float = 0.0
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

    The heartbeat is the arm guard's too, which stands beside controllers that do.

    Attributes:
        rate: goals per second; the servos interpolate nothing, and below 50 the arms shake.
        heartbeat_timeout: seconds without the policy node, while it is armed, before the arms
            brake; and without the streamer or guard, before a run ends.
        arm_silence: the same for an arm's good joint states, while it is being moved.
        brake_seconds: time in which the arms come to rest along their path; 0 stops them dead.
    """

    rate: float = 50.0
    heartbeat_timeout: float = 0.3
    arm_silence: float = 0.25
    brake_seconds: float = 0.08
