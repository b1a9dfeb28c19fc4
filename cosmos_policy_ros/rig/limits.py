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
    """

    image_age: float
    state_age: float
    camera_skew: float
    frozen_after: float
    state_timeout: float
    image_timeout: float = 0.5  # rig files and bags from before this key lack it


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
        ahead: how far ahead of the clock a report or an observation may be stamped [s].
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
    ahead: float = 0.05


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
