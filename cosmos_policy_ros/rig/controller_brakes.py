"""Brakes for arms behind trajectory controllers, sent when the policy node cannot send them.

A controller plays to its end whatever it was sent, for two seconds after its sender has died. This
follows the same trajectories, so that it knows the path the controllers are on, and brakes along
it. If something else than the policy node commands an arm, that path is unknown, and the arm is
held where it is measured, until an operator disarms. Arms that are held or have just been disarmed
are watched until they rest: a controller may have taken a stranger's trajectory after the brake.

A state machine without ROS or threads. Its clock is one that is never set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES, STATE_DIM
from cosmos_policy_ros.rig.chunk import BRAKE, braking_fraction
from cosmos_policy_ros.rig.command_check import CommandCheck
from cosmos_policy_ros.rig.ownership import OVERTAKEN, Ownership, describe_stranger
from cosmos_policy_ros.rig.spec import Output, RigSpec
from cosmos_policy_ros.rig.tracking import StillnessWatch
from cosmos_policy_ros.rig.trajectory_controller import (
    TrajectoryController,
    TrajectoryPoint,
    check_start,
)

HOLD = f"/arm_interface{BRAKE}"  # how the ids of its trajectories end
# Holds on one topic that may be on their way back; a stranger at 50 Hz makes two seconds'.
OWN = 100
# s between two ticks, of 0.02, from which messages may lie unread; whatever a rig's patience is.
KEPT_WAITING = 0.15
# s in which arms come to rest that are held or disarmed: a brake of 0.4, and what they lag behind.
REST_WITHIN = 0.8
VIGIL = 2.0  # s for which disarmed arms that have not been seen at rest are looked after


@dataclass(frozen=True)
class BrakeTrajectory:
    """A trajectory that brings one controller's joints to rest.

    Attributes:
        chunk_id: of the trajectory that it ends, and HOLD.
        joints: names, in the order of the points.
        points: in the controller's units; the last one rests.
    """

    chunk_id: str
    joints: tuple[str, ...]
    points: tuple[TrajectoryPoint, ...]


class _Trajectory(NamedTuple):
    chunk_id: str
    names: Sequence[str]
    points: Sequence[TrajectoryPoint]
    start_ns: int
    received_ns: int
    armed: bool  # whether the arms were when it came


@dataclass
class _Path:
    """What one controller is known to follow."""

    output: Output
    check: CommandCheck
    controller: TrajectoryController | None = None  # None before its first trajectory
    chunk_id: str = ""
    recent: deque[Array] = field(default_factory=deque)  # commanded within the arms' lag
    own: deque[BrakeTrajectory] = field(
        default_factory=lambda: deque(maxlen=OWN)
    )  # not come back yet
    pending: list[_Trajectory] = field(default_factory=list)  # not announced yet
    owed: bool = False  # a hold, as soon as it is known where the arm is


class ControllerBrakes:
    """Knows which path the arms are on, and ends it when nothing else can.

    Attributes:
        ownership: whose trajectories are followed.
        reason: why the arms are held; empty while all is well.
        refusal: why no controller would take the last trajectory that none would; else empty.
        holding: whether it has sent what holds them.
    """

    def __init__(self, rig: RigSpec, measured: Callable[[int], Array | None]) -> None:
        """Begin without an owner, with arms of which nothing is known.

        Args:
            rig: outputs and limits.
            measured: returns the (14,) pose that the arms report, policy units, at a time [ns];
                None where it is not known or too old.
        """
        self.ownership = Ownership(rig.stream.heartbeat_timeout)
        self.reason = self.refusal = ""
        self.holding = False
        self._rig, self._measured = rig, measured
        self._patience = rig.stream.heartbeat_timeout
        self._step_ns = round(rig.rates.dt * NS_PER_S)
        self._rows = round(rig.rates.loss_brake / rig.rates.dt)
        self._lag_ns = round(rig.tracking.lag * NS_PER_S)
        self._paths = {
            output.name: _Path(output, CommandCheck.of_output(rig, output))
            for output in rig.outputs
        }
        self._ticked_ns = 0
        self._excused = False
        self._stillness = StillnessWatch()
        self._acted_ns = self._vigil_ns = 0  # when arms began to come to rest; end of the vigil

    def commanded(self, now_ns: int) -> Array | None:
        """Return where (14,) the arms are told to be, policy units; None where nothing was."""
        sent = np.zeros((1, STATE_DIM))
        for path in self._paths.values():
            if path.controller is None:
                return None
            at = dict(zip(path.controller.joint_names, path.controller.sample(now_ns), strict=True))
            sent[0, list(path.output.columns)] = [at[name] for name in path.output.joints]
        pose: Array = self._rig.commanded(sent)[0]
        return pose

    def resting(self, now_ns: int) -> bool:
        """Whether no arm is on a path."""
        paths = [path.controller for path in self._paths.values()]
        return all(path is None or now_ns >= path.end_ns for path in paths)

    def on_policy_state(
        self, identity: str, armed: bool, run_id: str, announced: tuple[int, str], now_ns: int
    ) -> dict[str, BrakeTrajectory]:
        """Note a policy node's state; see :meth:`Ownership.on_state`.

        Returns:
            What to send to which output at once, as for :meth:`on_trajectory`.
        """
        if self.ownership.on_state(identity, armed, run_id, announced, now_ns):
            self.reason, self.holding = "", False
            for path in self._paths.values():
                path.owed = False
            self._stillness.clear()
            self._acted_ns = now_ns
            self._vigil_ns = 0 if self.ownership.armed else now_ns + round(VIGIL * NS_PER_S)
        holds: dict[str, BrakeTrajectory] = {}
        for name, path in self._paths.items():
            for each in [t for t in path.pending if self.ownership.take(name, t.chunk_id)]:
                path.pending.remove(each)
                with suppress(RigError):  # it is in ``refusal``; the others are followed
                    holds |= self._follow(path, each)
        return holds

    def on_trajectory(
        self,
        output: str,
        chunk_id: str,
        names: Sequence[str],
        points: Sequence[TrajectoryPoint],
        start_ns: int,
        now_ns: int,
    ) -> dict[str, BrakeTrajectory]:
        """Follow what a controller was sent, if it is the owner's; else hold the arms.

        Args:
            output: which of the rig's outputs.
            chunk_id: of the trajectory.
            names: of its joints, in any order.
            points: as :meth:`TrajectoryController.accept` takes them.
            start_ns: when it starts; 0 is now.
            now_ns: now.

        Returns:
            What to send to which output at once: held arms are not to be moved.

        Raises:
            RigError: no controller would take it; nothing changes.
        """
        path = self._paths[output]
        armed = self.ownership.armed
        trajectory = _Trajectory(chunk_id, names, points, start_ns, now_ns, armed)
        for own in path.own:
            if own.chunk_id == chunk_id and own.points == tuple(points):
                path.own.remove(own)
                return {}
        if self.ownership.take(output, chunk_id):
            return self._follow(path, trajectory)
        if armed and not self.ownership.may_come(chunk_id):
            return self._hold_against(path, trajectory, now_ns)
        path.pending.append(trajectory)
        return {}

    def tick(self, now_ns: int) -> dict[str, BrakeTrajectory]:
        """Return what to send to which output, when the policy node is missed or is not alone."""
        kept_waiting = now_ns - self._ticked_ns > KEPT_WAITING * NS_PER_S
        self._ticked_ns = now_ns
        self._remember(now_ns)
        # After a wait there are messages waiting, too, and they are heard before the next tick.
        self._excused = kept_waiting and not self._excused
        if self._excused:
            return {}
        for path in self._paths.values():
            late = [t for t in path.pending if now_ns - t.received_ns > OVERTAKEN * NS_PER_S]
            path.pending = path.pending[len(late) :]
            # Disarmed arms are free for other uses, but a stop ends what came before it.
            if strangers := [t for t in late if t.armed]:
                return self._hold_against(path, strangers[-1], now_ns)
        owed = [path for path in self._paths.values() if path.owed]
        if self._restless(now_ns):
            owed = [*self._paths.values()]
        if self.reason or owed:
            return {name: h for p in owed for name, h in self._send(p, now_ns, False).items()}
        if not self.ownership.armed:
            return {}
        age = self.ownership.age(now_ns)
        if age <= self._patience:
            return {}
        self.reason = f"the policy node was last heard of {age:.2f} s ago"
        return self._hold(now_ns)

    def hold(self, reason: str, now_ns: int) -> dict[str, BrakeTrajectory]:
        """Hold arms that move under an owner; return what to send to which output."""
        if not self.ownership.armed or self.reason:
            return {}
        self.reason = reason
        return self._hold(now_ns)

    def _restless(self, now_ns: int) -> bool:
        """Return whether arms move that were to have come to rest by now."""
        if not self.reason and now_ns >= self._vigil_ns:
            return False
        measured = self._measured(now_ns)
        if measured is None:
            return False
        self._stillness.add(now_ns, measured)
        if self._stillness.still:
            self._vigil_ns = 0
        return self._stillness.moving and now_ns - self._acted_ns > REST_WITHIN * NS_PER_S

    def _remember(self, now_ns: int) -> None:
        """Note where the controllers are commanded to be."""
        for path in self._paths.values():
            if path.controller is None:
                continue
            moving = now_ns - self._lag_ns < path.controller.end_ns
            if moving or not path.recent:
                path.recent.append(path.controller.sample(now_ns))
            keep = max(self._lag_ns // self._step_ns * 2, 2) if moving else 1
            while len(path.recent) > keep:
                path.recent.popleft()

    def _follow(self, path: _Path, trajectory: _Trajectory) -> dict[str, BrakeTrajectory]:
        now_ns = trajectory.received_ns
        # Where an arm was before its first trajectory is neither known here nor needed.
        first = trajectory.points[0].positions if trajectory.points else ()
        controller = path.controller or TrajectoryController(
            trajectory.names, np.array(first, dtype=np.float64)
        )
        try:
            check_start(trajectory.start_ns, now_ns)
            controller.accept(trajectory.names, trajectory.points, trajectory.start_ns, now_ns)
        except RigError as error:
            self.refusal = f"{path.output.name}: {error}"
            raise
        path.controller, path.chunk_id = controller, trajectory.chunk_id
        path.recent.append(controller.sample(now_ns))
        return self._send(path, now_ns, True) if self.reason else {}

    def _hold_against(
        self, path: _Path, stranger: _Trajectory, now_ns: int
    ) -> dict[str, BrakeTrajectory]:
        """Hold all arms since one of them follows a trajectory that is not the owner's.

        Arms that have been disarmed since are at rest but for that one.
        """
        if not self.ownership.armed:
            return self._send(path, now_ns, False)
        if not self.reason:
            self.reason = describe_stranger(stranger.chunk_id, path.output.topic)
        return self._hold(now_ns, but=path) | self._send(path, now_ns, False)

    def _hold(self, now_ns: int, but: _Path | None = None) -> dict[str, BrakeTrajectory]:
        self.holding = True
        holds: dict[str, BrakeTrajectory] = {}
        for path in self._paths.values():
            moving = path.controller is not None and now_ns < path.controller.end_ns
            if moving and path is not but:
                holds |= self._send(path, now_ns, True)
        return holds

    def _send(self, path: _Path, now_ns: int, on_path: bool) -> dict[str, BrakeTrajectory]:
        """Return a brake along the known path, or a hold where the arm is measured.

        Where neither can be sent the hold is owed, and sent by a later tick.
        """
        measured = self._measured(now_ns)
        if measured is not None:
            measured = self._rig.command(measured[None])[0, list(path.output.columns)]
        points = self._brake(path, measured, now_ns) if on_path else None
        if points is None and measured is not None:
            points = self._hold_where(path, measured, now_ns)
        path.owed = points is None
        if points is None:
            return {}
        self._acted_ns = now_ns
        names = path.output.joints if path.controller is None else path.controller.joint_names
        hold = BrakeTrajectory(f"{path.chunk_id}{HOLD}", names, tuple(points))
        if path.controller is None:
            path.controller = TrajectoryController(names, np.array(points[0].positions))
        path.controller.accept(names, points, now_ns, now_ns)
        path.own.append(hold)
        return {path.output.name: hold}

    def _brake(
        self, path: _Path, measured: Array | None, now_ns: int
    ) -> list[TrajectoryPoint] | None:
        """Return points that slow down along the path; None if they are not to be trusted."""
        controller = path.controller
        if controller is None:
            return None
        points = []
        for row, (travelled, pace) in enumerate(zip(*braking_fraction(self._rows), strict=True)):
            at_ns = now_ns + round(travelled * self._step_ns)
            positions, velocities = controller.state(at_ns)
            due_ns = (row + 1) * self._step_ns
            points.append(
                TrajectoryPoint(
                    tuple(positions.tolist()), tuple((velocities * pace).tolist()), due_ns
                )
            )
        order = [controller.joint_names.index(name) for name in path.output.joints]
        wrong = path.check.problem(
            np.array([point.positions for point in points])[:, order],
            np.array([point.time_from_start_ns for point in points]) / NS_PER_S,
            np.stack([*path.recent, controller.sample(now_ns)])[:, order],
            velocities=np.array([point.velocities for point in points])[:, order],
            measured=measured,
        )
        return None if wrong else points

    def _hold_where(self, path: _Path, measured: Array, now_ns: int) -> list[TrajectoryPoint]:
        """Return the point where the arm is; a gripper keeps its grip."""
        output, pose, names = path.output, measured.copy(), list(path.output.joints)
        if path.controller is not None:
            names = list(path.controller.joint_names)
            told = path.controller.sample(now_ns)
            for row, column in enumerate(output.columns):
                if column in GRIPPER_INDICES:
                    pose[row] = told[names.index(output.joints[row])]
        grippers = [i for i, column in enumerate(output.columns) if column in GRIPPER_INDICES]
        pose[grippers] = np.clip(pose, path.check.lower, path.check.upper)[grippers]
        pose = pose[[output.joints.index(name) for name in names]]
        return [TrajectoryPoint(tuple(pose.tolist()), (0.0,) * len(pose), self._step_ns)]
