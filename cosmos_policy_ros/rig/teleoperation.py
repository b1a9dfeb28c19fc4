"""Followers that track the leaders which a person moves, within the limits of everything else.

Tick by tick a (14,) target: where the leaders are, as far as the arms may go there in one tick. It
begins only where leaders and followers agree, goes over without a jump, and holds on doubt: a
leader that is silent, reads nothing, or jumps further than a hand moves it, links that would come
too close, a follower that does not follow, a loop that was kept waiting. A state machine without
ROS or threads; its clock is never set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from cosmos_policy_ros.core.errors import ObservationError, RigError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import ARM_JOINTS, ARMS, GRIPPER_INDICES, STATE_DIM, Leader
from cosmos_policy_ros.rig.collision import CollisionModel
from cosmos_policy_ros.rig.observation import joint_positions
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.tracking import TrackingMonitor

TELEOPERATION = "teleoperation"
"""How the ids of its targets begin; a number follows. The engine of an episode that it made."""
REACH = 2  # ticks in which an arm gets to its target: one that is late does not stop in between


def led_tick(chunk_id: str) -> int | None:
    """Return the number of a teleoperation's target, None for any other trajectory."""
    name, _, number = chunk_id.partition("/")
    return int(number) if name == TELEOPERATION and number.isdecimal() else None


class Phase(Enum):
    """What the followers do."""

    OFF = "off"
    MATCHING = "matching"  # nothing, until leaders and followers agree
    FOLLOWING = "following"
    CLUTCHED = "clutched"  # held, while the leaders are free
    HELD = "held"  # until it is begun anew
    STOPPING = "stopping"  # to be off as soon as they are at rest


@dataclass
class _LeaderState:
    """What one leader has said.

    Attributes:
        pose: (7,) in the follower's policy units; None before it has reported.
        heard_ns: when that was.
        problem: what was wrong with its last report; empty if nothing was.
    """

    pose: Array | None = None
    heard_ns: int = 0
    problem: str = ""


def follower_pose(leader: Leader, names: Sequence[str], values: Array) -> Array:
    """Return (7,) what a leader's joint state asks of its follower, policy units.

    Args:
        leader: how it is read.
        names: of the seven joints that count, in order: six and the gripper.
        values: (7,) as reported [rad].
    """
    pose = np.array(values, np.float64)
    pose[:ARM_JOINTS] = np.array(leader.signs) * pose[:ARM_JOINTS] + np.array(leader.offsets)
    pose[ARM_JOINTS] = (pose[ARM_JOINTS] - leader.closed) / (leader.open - leader.closed)
    return pose


def leader_pose(leader: Leader, pose: Array) -> Array:
    """Return (7,) what a leader reads that asks ``pose`` (7,) of its follower, policy units."""
    read: Array = np.array(pose, np.float64)
    read[:ARM_JOINTS] = (read[:ARM_JOINTS] - np.array(leader.offsets)) * np.array(leader.signs)
    read[ARM_JOINTS] = leader.closed + read[ARM_JOINTS] * (leader.open - leader.closed)
    return read


class Teleoperation:
    """Decides tick by tick where the followers are told to be.

    Attributes:
        phase: see :class:`Phase`.
        reason: why they are held, not led yet, or no longer; empty otherwise.
    """

    def __init__(self, rig: RigSpec) -> None:
        """Begin off.

        Raises:
            RigError: the rig file describes no leaders.
        """
        leaders = {side: arm.leader for side, arm in rig.arms.items()}
        if missing := [side for side, leader in leaders.items() if leader is None]:
            raise RigError(
                f"rig '{rig.name}' has no leader for its {' and '.join(missing)} arm; describe it "
                "under leader in the rig file, or move the arms otherwise"
            )
        self.phase, self.reason = Phase.OFF, ""
        self._rig, self._limits = rig, rig.teleoperation
        self._specs = {side: leader for side, leader in leaders.items() if leader is not None}
        self._leaders = {side: _LeaderState() for side in ARMS}
        self._collisions = None if rig.geometry is None else CollisionModel(rig.geometry)
        self._dt = 1.0 / self._limits.rate
        self._speed = rig.max_velocity * rig.gate.velocity_scale
        # A gripper's servo limits its own current: it may be told any speed at once.
        self._acceleration = np.minimum(rig.max_acceleration, self._speed / self._dt)
        self._tracking = TrackingMonitor(rig)
        self._target, self._velocity = np.zeros((2, STATE_DIM))
        self._began_ns = self._ticked_ns = self._apart_ns = 0

    @property
    def target(self) -> Array:
        """The last (14,) target, policy units."""
        return self._target

    @property
    def resting(self) -> bool:
        """Whether every further target is the last one."""
        return self.phase is not Phase.FOLLOWING and not self._velocity.any()

    def on_leader(
        self, side: str, names: Sequence[str], positions: Sequence[float], now_ns: int
    ) -> None:
        """Note a leader's joint state; one that is not to be trusted counts as silence."""
        leader, known = self._leaders[side], self._specs[side]
        arm = self._rig.arms[side]
        try:
            values = joint_positions(known.names or arm.names, names, positions)
        except ObservationError as error:
            leader.problem = str(error)
            return
        pose = follower_pose(known, arm.names, values)
        if leader.pose is not None and self.phase is Phase.FOLLOWING:
            seconds = max((now_ns - leader.heard_ns) / NS_PER_S, 1.0 / self._limits.rate)
            moved = np.abs(pose - leader.pose)[:ARM_JOINTS]
            joint = int(np.argmax(moved))
            if moved[joint] > self._limits.hand_speed * seconds:
                self.hold(
                    f"leader {side}/{arm.names[joint]} jumped by {moved[joint]:.2f} rad in "
                    f"{seconds:.3f} s, a hand moves it at {self._limits.hand_speed:g} rad/s at "
                    "most: look at its servo"
                )
        leader.pose, leader.heard_ns, leader.problem = pose, now_ns, ""

    def asked(self, now_ns: int) -> Array | None:
        """Return the (14,) pose that the leaders ask for, None while one is silent."""
        return None if self._silence(now_ns) else self._asked()

    def apart(self, followers: Array, now_ns: int) -> str:
        """Return which joints of leaders and followers are too far apart, "" for none.

        Args:
            followers: (14,) where they are, or are commanded to be, policy units.
            now_ns: now.
        """
        if silent := self._silence(now_ns):
            return silent
        limits = np.full(STATE_DIM, self._limits.match)
        limits[GRIPPER_INDICES] = self._limits.gripper_match
        off = self._asked() - followers
        far = np.flatnonzero(np.abs(off) > limits)
        if not len(far):
            return ""
        told = []
        for joint in far:
            unit = "strokes" if joint in GRIPPER_INDICES else "rad"
            told.append(
                f"{self._rig.joint_names[joint]} by {off[joint]:+.2f} {unit} (limit "
                f"{limits[joint]:g})"
            )
        return f"leaders are off their followers: {', '.join(told)}; move the leaders there"

    def begin(self, followers: Array, now_ns: int) -> None:
        """Follow from where the followers are.

        Args:
            followers: (14,) where they are commanded to be; at rest where they are measured.
            now_ns: now.

        Raises:
            RigError: a leader is silent, or too far from its follower; nothing changes.
        """
        if refusal := self.apart(followers, now_ns):
            raise RigError(refusal)
        self.phase, self.reason = Phase.FOLLOWING, ""
        self._target, self._velocity = followers.copy(), np.zeros(STATE_DIM)
        self._began_ns = self._ticked_ns = now_ns
        self._tracking.clear()

    def match(self, followers: Array, now_ns: int) -> None:
        """Begin once leaders and followers agree; called again and again until they do.

        They have to agree for as long as the ramp: a leader that only swings past leads no arm.

        Args:
            followers: (14,) where they are commanded to be.
            now_ns: now.
        """
        if self.phase is not Phase.MATCHING or not self._apart_ns:
            self.phase, self._apart_ns = Phase.MATCHING, now_ns
        if apart := self.apart(followers, now_ns):
            self.reason, self._apart_ns = apart, now_ns
        elif now_ns - self._apart_ns < self._limits.ramp * NS_PER_S:
            self.reason = "leaders and followers agree: hold them still"
        else:
            self.begin(followers, now_ns)

    def clutch(self, engaged: bool, now_ns: int) -> None:
        """Hold the followers while the leaders are moved elsewhere, or follow again.

        Raises:
            RigError: there is nothing to hold, or leaders and followers are too far apart.
        """
        if self.phase not in (Phase.FOLLOWING, Phase.CLUTCHED):
            raise RigError(f"teleoperation is {self.phase.value}; begin it first")
        if engaged:
            self.phase = Phase.CLUTCHED
        elif self.phase is Phase.CLUTCHED:
            self.begin(self._target, now_ns)

    def hold(self, reason: str) -> None:
        """Stay where the followers are commanded to be until it is begun anew."""
        if self.phase in (Phase.FOLLOWING, Phase.CLUTCHED):
            self.phase, self.reason = Phase.HELD, reason

    def wait(self, reason: str) -> None:
        """Match later, for a reason."""
        self.phase, self.reason, self._apart_ns = Phase.MATCHING, reason, 0

    def stop(self) -> None:
        """Bring the followers to rest, then be off."""
        self.phase, self.reason = Phase.STOPPING, ""
        if self.resting:
            self.end()

    def end(self, reason: str = "") -> None:
        """Fall silent; a reason, where it was not asked for, is kept until it is begun anew."""
        self.phase, self.reason = Phase.OFF, reason
        self._velocity = np.zeros(STATE_DIM)

    def tick(self, now_ns: int, measured: Array | None) -> Array | None:
        """Return the (14,) target of this moment, None while nothing is to be sent.

        Args:
            now_ns: now.
            measured: (14,) where the followers are, None where that is not known.
        """
        if self.phase in (Phase.OFF, Phase.MATCHING):
            return None
        waited_ns, self._ticked_ns = now_ns - self._ticked_ns, now_ns
        if measured is None:
            self.hold("a follower is silent: is its driver running?")
            measured = np.zeros(STATE_DIM)
        else:
            self._tracking.add(now_ns, self._target)
            if deviation := self._tracking.check(now_ns, measured):
                self.hold(deviation.message)
        if self.phase is Phase.FOLLOWING:
            if waited_ns > self._limits.silence * NS_PER_S:
                self.hold(f"this node was kept waiting for {waited_ns / NS_PER_S:.2f} s")
            elif silent := self._silence(now_ns):
                self.hold(silent)
        if self.resting:
            if self.phase is Phase.STOPPING:
                self.end()
            return None
        wanted = self._wanted(now_ns) if self.phase is Phase.FOLLOWING else np.zeros(STATE_DIM)
        self._move(wanted, measured[list(GRIPPER_INDICES)])
        return self._target

    def _wanted(self, now_ns: int) -> Array:
        """Return the (14,) speeds that lead to the leaders, each joint able to stop there."""
        off = np.clip(self._asked(), self._rig.lower, self._rig.upper) - self._target
        since = (now_ns - self._began_ns) / NS_PER_S
        pace = min((since + self._dt) / self._limits.ramp, 1.0)
        stopping = np.sqrt(2 * self._acceleration * np.abs(off))
        speed = np.minimum.reduce([pace * self._speed, stopping, np.abs(off) / self._dt])
        return np.asarray(np.sign(off) * speed)

    def _move(self, wanted: Array, openings: Array) -> None:
        """Take the next target at the speeds that are wanted, as far as the arms may and can."""
        change = self._acceleration * self._dt
        speed = self._velocity + np.clip(wanted - self._velocity, -change, change)
        if not speed.any():
            self._velocity = speed
            return
        target = np.clip(self._target + speed * self._dt, self._rig.lower, self._rig.upper)
        rows, speeds = np.stack([self._target, target]), np.stack([self._velocity, speed])
        near = None
        if self._collisions is not None:
            near = self._collisions.approach(rows, speeds, self._dt, openings)
        if near is not None:
            # At once: whatever the arms do instead would have to be looked at, too.
            self._velocity = np.zeros(STATE_DIM)
            self.hold(
                f"{' and '.join(near.between)} would come to {1000 * near.distance:.0f} mm of each "
                f"other; allowed is {1000 * near.limit:.0f} mm: lead them apart, and begin anew"
            )
            return
        self._target, self._velocity = target, speed

    def _asked(self) -> Array:
        poses = [leader.pose for leader in self._leaders.values()]
        return np.concatenate([pose for pose in poses if pose is not None])

    def _silence(self, now_ns: int) -> str:
        """Return which leader should have been heard of and was not, "" for none."""
        for side, leader in self._leaders.items():
            topic = self._specs[side].joint_states
            age = (now_ns - leader.heard_ns) / NS_PER_S
            if leader.pose is None:
                return f"{topic} is silent: {leader.problem or 'is the leader driver running?'}"
            if not 0 <= age <= self._limits.silence:
                tail = f": {leader.problem}" if leader.problem else ""
                return (
                    f"{topic}: last good state is {age:.2f} s old (limit {self._limits.silence:g} "
                    f"s){tail}"
                )
        return ""
