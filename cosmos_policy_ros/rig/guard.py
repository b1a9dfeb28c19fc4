"""Who holds the arms when the policy node falls silent, in front of trajectory controllers.

A controller plays to its end whatever it was sent, for two seconds after its sender has died. The
guard hears what the controllers hear, so that it knows the path they are on, and sends them a brake
along it. Like the streamer it then holds until the policy node says that it is disarmed.

A state machine without ROS, threads or clocks of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cosmos_policy_ros.rig.chunk import NS, braking_share
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryController, TrajectoryPoint

HOLD = "/guard/brake"  # how the ids of its trajectories end


@dataclass(frozen=True)
class Hold:
    """A trajectory that brings one controller's joints to rest along their path.

    Attributes:
        chunk_id: of the trajectory that it ends, and HOLD.
        joints: names, in the order of the points.
        points: in the controller's units; the last one rests.
    """

    chunk_id: str
    joints: tuple[str, ...]
    points: tuple[TrajectoryPoint, ...]


@dataclass
class _Path:
    chunk_id: str
    controller: TrajectoryController


class Guard:
    """Knows which path the arms are on, and ends it when nobody else can.

    Attributes:
        armed: what the policy node last said.
        reason: why the arms are held; empty while all is well.
    """

    def __init__(self, rig: RigSpec) -> None:
        """Begin disarmed, with arms of which nothing is known."""
        self.armed, self.reason = False, ""
        self._patience = rig.stream.heartbeat_timeout
        self._step_ns = round(rig.rates.dt * NS)
        self._rows = round(rig.rates.loss_brake / rig.rates.dt)
        self._paths: dict[str, _Path] = {}
        self._policy_ns = self._ticked_ns = 0
        self._excused = False

    def hear_policy(self, armed: bool, steady_ns: int) -> None:
        """Note that the policy node is alive; once it is disarmed, what held the arms is over."""
        self.armed, self._policy_ns = armed, steady_ns
        if not armed:
            self.reason = ""

    def hear_trajectory(
        self,
        output: str,
        chunk_id: str,
        names: Sequence[str],
        points: Sequence[TrajectoryPoint],
        stamp_ns: int,
        now_ns: int,
    ) -> Hold | None:
        """Follow what a controller was sent.

        Args:
            output: which of the rig's outputs.
            chunk_id: of the trajectory.
            names: of its joints, in any order.
            points: as :meth:`TrajectoryController.accept` takes them.
            stamp_ns: when it starts; 0 is now.
            now_ns: the rig's clock.

        Returns:
            What to send the controller at once: held arms are not to be moved. Else None.

        Raises:
            RigError: no controller would take it; nothing changes.
        """
        if chunk_id.endswith(HOLD):
            return None  # our own
        path = self._paths.get(output)
        # Where an arm was before its first trajectory is known to nobody here, nor needed.
        controller = (
            path.controller
            if path is not None
            else TrajectoryController(names, np.array(points[0].positions if points else ()))
        )
        controller.accept(names, points, stamp_ns, now_ns)
        self._paths[output] = _Path(chunk_id, controller)
        return self._hold(self._paths[output], now_ns) if self.reason else None

    def tick(self, now_ns: int, steady_ns: int) -> dict[str, Hold]:
        """Return what to send to which output, at the moment when the policy node is missed.

        Args:
            now_ns: the rig's clock.
            steady_ns: a monotonic clock, on which the policy node is heard.
        """
        kept_waiting = steady_ns - self._ticked_ns > self._patience * NS / 2
        self._ticked_ns = steady_ns
        # Who was kept waiting has messages waiting, too, and hears them before the next tick.
        self._excused = kept_waiting and not self._excused
        if not self.armed or self.reason or self._excused:
            return {}
        age = (steady_ns - self._policy_ns) / NS
        if age <= self._patience:
            return {}
        self.reason = f"the policy node was last heard of {age:.2f} s ago"
        return {
            output: self._hold(path, now_ns)
            for output, path in self._paths.items()
            if now_ns < path.controller.end_ns
        }

    def _hold(self, path: _Path, now_ns: int) -> Hold:
        points = []
        for row, (travelled, pace) in enumerate(zip(*braking_share(self._rows), strict=True)):
            at_ns = now_ns + round(travelled * self._step_ns)
            positions, velocities = path.controller.state(at_ns)
            points.append(
                TrajectoryPoint(
                    tuple(positions.tolist()),
                    tuple((velocities * pace).tolist()),
                    (row + 1) * self._step_ns,
                )
            )
        names, chunk_id = path.controller.joint_names, f"{path.chunk_id}{HOLD}"
        path.controller.accept(names, points, now_ns, now_ns)
        return Hold(chunk_id, names, tuple(points))
