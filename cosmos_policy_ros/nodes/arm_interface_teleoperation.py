"""The arm interface's own commander: followers that track leader arms, as trajectories.

What it sends goes out on the topics on which a policy node's chunks do, is announced to the back
end as theirs are, and comes back to it by the same way: it is watched, braked and recorded alike.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.msg import ArmInterfaceState
from cosmos_policy_ros.nodes.shell import ManagedNode
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES
from cosmos_policy_ros.rig.clock import SteadyClock
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.teleoperation import Phase, Teleoperation

RUN = "teleoperation"  # how the ids of its trajectories begin
# Ticks in which an arm gets to its target: one that is late does not stop in between.
REACH = 2


class BackEnd(Protocol):
    """What takes the trajectories."""

    def measured(self, now_ns: int, patience: float | None = None) -> Array | None:
        """Return where (14,) the arms are, policy units; None where that is not known."""
        ...

    def on_policy_state(
        self, identity: str, armed: bool, run_id: str, announced: tuple[int, str], now_ns: int
    ) -> None:
        """Note who commands the arms, and what comes next."""
        ...

    @property
    def unready(self) -> str:
        """Why no trajectory is taken; empty if they are."""
        ...

    @property
    def logic(self) -> Any:
        """Has ``ownership`` and ``reason``."""
        ...


class Teleoperator:
    """Listens to the leaders, and sends the followers after them.

    Attributes:
        logic: decides where the followers are told to be.
    """

    def __init__(
        self, node: ManagedNode, rig: RigSpec, clock: SteadyClock, back_end: BackEnd
    ) -> None:
        """Open the leaders' topics and the services.

        Raises:
            RigError: the rig file describes no leaders.
        """
        self.logic = Teleoperation(rig)
        self.period = 1.0 / rig.teleoperation.rate
        self._node, self._rig, self._clock, self._back_end = node, rig, clock, back_end
        self._identity = f"{node.get_fully_qualified_name()}/{RUN}"
        self._sent = 0
        options, qos = QoSOverridingOptions.with_default_policies(), QoSProfile(depth=10)
        self._trajectories = {
            output.name: node.create_publisher(
                JointTrajectory, output.topic, qos, qos_overriding_options=options
            )
            for output in rig.outputs
        }
        for side, arm in rig.arms.items():
            assert arm.leader is not None
            node.create_subscription(
                JointState,
                arm.leader.joint_states,
                self._on_leader(side),
                qos,
                qos_overriding_options=options,
            )
        node.create_service(SetBool, "~/teleoperate", self._on_teleoperate)
        node.create_service(SetBool, "~/clutch", self._on_clutch)

    @property
    def commands(self) -> bool:
        """Whether the arms are this one's."""
        return self.logic.phase is not Phase.OFF

    def tick(self) -> None:
        """Send what is due."""
        if not self.commands:
            return
        now_ns = self._clock.now_ns()
        if reason := self._back_end.logic.reason:
            self._end(now_ns, f"the arms are held: {reason}")
            return
        patience = self._rig.stream.arm_silence
        measured = self._back_end.measured(now_ns, patience)
        if measured is None:
            self.logic.hold(f"a follower has been silent for {patience:g} s")
        openings = np.zeros(2) if measured is None else measured[list(GRIPPER_INDICES)]
        before, was = self.logic.target.copy(), self.logic.reason
        target = self.logic.tick(now_ns, openings)
        assert target is not None
        if self.logic.reason and self.logic.reason != was:
            self._node.get_logger().error(f"the followers are held: {self.logic.reason}")
        self._send(target, (target - before) / self.period, now_ns)

    def come_to_rest(self, reason: str) -> None:
        """Stop following."""
        if self.commands:
            self._end(self._clock.now_ns(), reason)

    def fill(self, state: ArmInterfaceState) -> None:
        """Add how things stand to the node's state."""
        state.teleoperation, state.teleoperation_reason = self.logic.phase.value, self.logic.reason

    def _on_leader(self, side: str) -> Callable[[JointState], None]:
        def keep(message: JointState) -> None:
            now_ns = self._clock.now_ns()
            self.logic.on_leader(side, message.name, message.position, now_ns)

        return keep

    def _on_teleoperate(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        now_ns = self._clock.now_ns()
        try:
            if request.data:
                self._begin(now_ns)
                response.message = "the followers track the leaders"
            else:
                self._end(now_ns, "")
                response.message = "the followers are held where they are"
            response.success = True
        except RigError as error:
            response.message = f"refused: {error}"
        self._node.get_logger().info(response.message)
        return response

    def _on_clutch(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        try:
            self.logic.clutch(request.data, self._clock.now_ns())
            response.success = True
            response.message = "the leaders are free" if request.data else "following again"
        except RigError as error:
            response.message = f"refused: {error}"
        return response

    def _begin(self, now_ns: int) -> None:
        """Take the arms. Raises RigError: they are someone else's, or leaders are too far off."""
        owner = self._back_end.logic.ownership.owner
        if owner and owner != self._identity:
            raise RigError("the policy node is armed; disarm it first")
        if not self._node.active:
            raise RigError("this node is not active")
        if self._back_end.unready:
            raise RigError(self._back_end.unready)
        measured = self._back_end.measured(now_ns)
        if measured is None:
            raise RigError("a follower is silent; is its driver running?")
        self.logic.begin(self.logic.target if self.commands else measured, now_ns)
        self._announce(now_ns, armed=True)

    def _end(self, now_ns: int, reason: str) -> None:
        if reason:
            self._node.get_logger().error(f"teleoperation has ended: {reason}")
        self.logic.end()
        self._announce(now_ns, armed=False)

    def _announce(self, now_ns: int, *, armed: bool) -> None:
        self._back_end.on_policy_state(
            self._identity, armed, RUN, (self._sent, f"{RUN}/{self._sent}"), now_ns
        )

    def _send(self, target: Array, velocity: Array, now_ns: int) -> None:
        self._sent += 1
        self._announce(now_ns, armed=True)
        positions = self._rig.command(target[None])[0]
        speeds = self._rig.command_speed(velocity[None])[0]
        sec, nanosec = divmod(round(REACH * self.period * NS_PER_S), NS_PER_S)
        for output in self._rig.outputs:
            columns = list(output.columns)
            point = JointTrajectoryPoint(
                positions=array("d", positions[columns]), velocities=array("d", speeds[columns])
            )
            point.time_from_start.sec, point.time_from_start.nanosec = sec, nanosec
            message = JointTrajectory(joint_names=list(output.joints), points=[point])
            message.header.frame_id = f"{RUN}/{self._sent}"
            if self._rig.trajectory_stamp == "start":
                message.header.stamp = self._node.get_clock().now().to_msg()
            self._trajectories[output.name].publish(message)
