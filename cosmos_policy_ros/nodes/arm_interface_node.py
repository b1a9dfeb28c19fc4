"""The arm interface: follows what the policy node sends the arms, and holds them when it must.

Two back ends, by the rig's command interface: beside trajectory controllers (ros2_control) it only
speaks when the policy node falls silent or is not alone; to Interbotix' drivers, which take no
usable trajectories, it streams goals. The policy node cannot tell the difference.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos_policy_ros.core.errors import ObservationError, RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.msg import ArmInterfaceState, PolicyState
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.arm_interface_interbotix import InterbotixBackEnd, Received
from cosmos_policy_ros.nodes.arm_interface_teleoperation import Teleoperator
from cosmos_policy_ros.nodes.convert import trajectory_points
from cosmos_policy_ros.nodes.options import ARM_INTERFACE
from cosmos_policy_ros.rig.clock import SteadyClock
from cosmos_policy_ros.rig.controller_brakes import BrakeTrajectory, ControllerBrakes
from cosmos_policy_ros.rig.observation import read_arm
from cosmos_policy_ros.rig.spec import Output, RigSpec, load_rig

STATE_PERIOD = 0.1  # wall s; the policy node takes the state for a heartbeat


class _JointStates(NamedTuple):
    """The newest joint states of an arm, as they came, and when they were taken."""

    message: bytes = b""
    received_ns: int = -(2**62)


class ControllerBackEnd:
    """Beside trajectory controllers: silent until the arms must be held.

    Attributes:
        logic: decides when, and what is sent.
        period: wall seconds between two ticks.
    """

    period = 0.02
    unready = ""  # why no trajectory is taken: there is nothing that could be

    def __init__(
        self,
        node: shell.ManagedNode,
        rig: RigSpec,
        clock: SteadyClock,
        trajectories: Mapping[str, Any],
    ) -> None:
        """Open the topics of the arms' joint states; ``trajectories`` are the controllers' own."""
        self._node, self._rig, self._clock = node, rig, clock
        self.logic = ControllerBrakes(rig, self.measured)
        self.commanded, self.resting = self.logic.commanded, self.logic.resting
        self._sent = 0
        self._newest = dict.fromkeys(rig.arms.keys(), _JointStates())
        options = QoSOverridingOptions.with_default_policies()
        self._trajectories = trajectories
        # Only read when an arm must be held where it is.
        self._joint_states = {
            side: node.create_subscription(
                JointState,
                arm.joint_states,
                lambda _: None,
                QoSProfile(depth=1),
                raw=True,
                callback_group=shell.OnDemand(),
                qos_overriding_options=options,
            )
            for side, arm in rig.arms.items()
        }

    def on_policy_state(
        self, identity: str, armed: bool, run_id: str, announced: tuple[int, str], now_ns: int
    ) -> None:
        """Note a policy node's state; see :meth:`Ownership.on_state`."""
        self._send(self.logic.on_policy_state(identity, armed, run_id, announced, now_ns))

    def on_trajectory(self, received: Received) -> None:
        """Follow what a controller was sent; raise RigError where no controller would take it."""
        self._send(self.logic.on_trajectory(*received))

    def tick(self, now_ns: int) -> None:
        """Send what is due."""
        if self._node.active:
            self._take_joint_states()
            self._send(self.logic.tick(now_ns))

    def come_to_rest(self, reason: str) -> None:
        """Hold what moves."""
        self._send(self.logic.hold(reason, self._clock.now_ns()))

    def fill(self, state: ArmInterfaceState) -> None:
        """Add what only this back end knows to the node's state."""
        state.holding, state.holds = self.logic.holding, self._sent

    def diagnose(self) -> list[DiagnosticStatus]:
        """Return how things stand."""
        reason = self.logic.reason
        status = DiagnosticStatus(name=f"{self._node.get_name()}: arms", hardware_id="rig")
        status.level = DiagnosticStatus.ERROR if reason else DiagnosticStatus.OK
        status.message = f"held: {reason}" if reason else "standing by"
        status.values = [KeyValue(key="holds", value=str(self._sent))]
        return [status]

    def _take_joint_states(self) -> None:
        """Keep what the arms have reported since the last tick, undecoded."""
        for side, subscription in self._joint_states.items():
            if (message := shell.take(subscription)) is not None:
                self._newest[side] = _JointStates(message, self._clock.now_ns())

    def measured(self, now_ns: int, patience: float | None = None) -> NDArray[np.float64] | None:
        """Return where (14,) the arms are, policy units; None where that is not known.

        ``patience`` is the age [s] that a joint state may have; None for the rig's ``state_age``.
        """
        oldest = self._rig.observation.state_age if patience is None else patience
        self._take_joint_states()
        poses = []
        for side, arm in self._rig.arms.items():
            newest = self._newest[side]
            if now_ns - newest.received_ns > oldest * NS_PER_S:
                return None
            try:
                state = deserialize_message(newest.message, JointState)
                poses.append(read_arm(arm, state.name, state.position))
            except ObservationError as error:
                self._node.get_logger().error(
                    f"{arm.joint_states}: {error}", throttle_duration_sec=1.0
                )
                return None
        return np.concatenate(poses)

    def _send(self, brakes: Mapping[str, BrakeTrajectory]) -> None:
        if not self._node.active:
            return
        for output, brake in brakes.items():
            message = JointTrajectory(joint_names=list(brake.joints))
            message.header.frame_id = brake.chunk_id
            if self._rig.trajectory_stamp == "start":
                message.header.stamp = self._node.get_clock().now().to_msg()
            for each in brake.points:
                point = JointTrajectoryPoint(
                    positions=array("d", each.positions), velocities=array("d", each.velocities)
                )
                point.time_from_start.sec, point.time_from_start.nanosec = divmod(
                    each.time_from_start_ns, NS_PER_S
                )
                message.points.append(point)
            self._trajectories[output].publish(message)
            self._sent += 1


class ArmInterfaceNode(shell.ManagedNode):
    """Lifecycle node ``arm_interface_node``; sends nothing before the policy node arms the arms."""

    def __init__(self) -> None:
        """Declare the parameters; everything else happens when it is configured."""
        super().__init__("arm_interface_node", ARM_INTERFACE)

    def set_up(self) -> None:
        """Read the rig and follow what its arms are sent."""
        self._rig = rig = load_rig(self.get_parameter("rig").value, config_folder("rigs"))
        self._motion_clock = SteadyClock(lambda: int(self.get_clock().now().nanoseconds))
        qos, options = QoSProfile(depth=10), QoSOverridingOptions.with_default_policies()
        # First: an executor hears subscriptions in their order, and what comes is announced.
        self.create_subscription(
            PolicyState,
            self.get_parameter("policy_state").value,
            self._on_policy_state,
            shell.LATCHED_EVERY,
        )
        for output in rig.outputs:
            self.create_subscription(
                JointTrajectory,
                output.topic,
                self._on_trajectory(output),
                qos,
                qos_overriding_options=options,
            )
        streamed = rig.command_interface == "interbotix"
        trajectories = {
            output.name: self.create_publisher(
                JointTrajectory, output.topic, qos, qos_overriding_options=options
            )
            for output in (rig.outputs if rig.led or not streamed else ())
        }
        self._back_end: InterbotixBackEnd | ControllerBackEnd
        if streamed:
            self._back_end = InterbotixBackEnd(self, rig, self._motion_clock)
        else:
            self._back_end = ControllerBackEnd(self, rig, self._motion_clock, trajectories)
        self._teleoperator = None
        if rig.led:
            self._teleoperator = Teleoperator(
                self, rig, self._motion_clock, self._back_end, trajectories, self.report
            )
        quiet = shell.NO_PUBLISHER_EVENTS
        self._states = self.create_publisher(
            ArmInterfaceState, "~/state", shell.LATCHED_PUBLISHER, event_callbacks=quiet
        )
        self._diagnostics = self.create_publisher(
            DiagnosticArray, "/diagnostics", 10, event_callbacks=quiet
        )
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(self._back_end.period, self._tick, clock=steady)
        if self._teleoperator is not None:
            self.create_timer(self._teleoperator.period, self._follow_leaders, clock=steady)
        self.create_timer(STATE_PERIOD, self.report, clock=steady)
        self.create_timer(1.0, self._diagnose, clock=steady)

    def come_to_rest(self, reason: str) -> None:
        """Hold what moves, here and now: the executor may call no timer again."""
        if self._teleoperator is not None:
            self._teleoperator.come_to_rest(reason)
        self._back_end.come_to_rest(reason)

    def report(self) -> None:
        """Publish whether the arms follow, are held, and why."""
        logic = self._back_end.logic
        owner = logic.ownership.owner
        state = ArmInterfaceState(armed=bool(owner), owner=owner, reason=logic.reason)
        state.refusal = logic.refusal
        self._back_end.fill(state)
        if self._teleoperator is not None:
            self._teleoperator.fill(state)
        if not state.reason and not self.active:
            state.reason = "it is not active"
        state.header.stamp = self.get_clock().now().to_msg()
        self._states.publish(state)

    def _on_policy_state(self, message: PolicyState) -> None:
        now_ns = self._motion_clock.now_ns()
        announced = (message.command_count, message.command_id)
        with self._reporting():
            self._back_end.on_policy_state(
                message.identity, message.armed, message.run_id, announced, now_ns
            )
        if self._teleoperator is not None:
            self._teleoperator.on_policy_phase(message.identity, message.phase)

    def _on_trajectory(self, output: Output) -> Callable[[JointTrajectory], None]:
        def follow(message: JointTrajectory) -> None:
            stamp_ns = shell.stamp_to_ns(message.header.stamp)
            receipt = self._motion_clock.receipt(stamp_ns)
            received = (
                output.name,
                message.header.frame_id,
                message.joint_names,
                trajectory_points(message),
                receipt.stamped_ns if stamp_ns else 0,
                receipt.received_ns,
            )
            with self._reporting():
                self._back_end.on_trajectory(received)

        return follow

    def _follow_leaders(self) -> None:
        assert self._teleoperator is not None
        with self._reporting():
            self._teleoperator.tick()

    def _tick(self) -> None:
        with self._reporting():
            self._back_end.tick(self._motion_clock.now_ns())

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Log and publish at once what changes meanwhile."""
        logic = self._back_end.logic
        _, reason, refusal, _ = before = self._said()
        refused = False
        try:
            yield
        except RigError:
            refused = True
        if logic.reason and logic.reason != reason:
            self.get_logger().error(f"the arms are held: {logic.reason}")
        if refused or logic.refusal != refusal:
            self.get_logger().error(f"refused a trajectory: {logic.refusal}")
        if refused or before != self._said():
            self.report()

    def _said(self) -> tuple[str, str, str, str]:
        """Return what is published at once when it changes."""
        logic = self._back_end.logic
        phase = "" if self._teleoperator is None else self._teleoperator.logic.phase.value
        return logic.ownership.owner, logic.reason, logic.refusal, phase

    def _diagnose(self) -> None:
        array_message = DiagnosticArray(status=self._back_end.diagnose())
        array_message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array_message)


def make_node() -> shell.ManagedNode:
    """Create the node and, with ``autostart``, bring it up."""
    return shell.bring_up(ArmInterfaceNode())


def main() -> None:
    """Entry point of ``ros2 run cosmos_policy_ros arm_interface_node``."""
    shell.main(make_node)
