"""The arm guard: holds arms behind trajectory controllers when the policy node falls silent.

A thin shell around ``rig.guard``. The arm streamer does the same for drivers that take no
trajectories; this one only speaks when it is needed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos_policy_ros.core.errors import ConfigError, ObservationError, RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.msg import GuardState, PolicyState
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.convert import trajectory_points
from cosmos_policy_ros.nodes.shell import Parameter
from cosmos_policy_ros.rig.clock import SteadyClock
from cosmos_policy_ros.rig.guard import BrakeTrajectory, Guard
from cosmos_policy_ros.rig.observation import read_arm
from cosmos_policy_ros.rig.spec import Output, load_rig

TICK_PERIOD = 0.02  # wall s
STATE_TICKS = 5  # between two states; the policy node takes the state for a heartbeat
PARAMETERS = (
    Parameter("rig", "sim", "rig description: a name in config/rigs or a YAML file"),
    Parameter("policy_state", "policy_node/state", "topic on which the policy node is alive"),
    Parameter("autostart", True, "configure and activate at start, without a lifecycle manager"),
)


class _Arm(NamedTuple):
    """The newest joint state of an arm, as it came, and when it was taken."""

    message: bytes = b""
    received_ns: int = -(2**62)


class ArmGuardNode(LifecycleNode):
    """Lifecycle node ``arm_guard_node``; sends nothing while the policy node lives."""

    def __init__(self) -> None:
        """Declare the parameters; everything else happens when it is configured."""
        super().__init__("arm_guard_node")
        shell.declare(self, PARAMETERS)
        self._active = False

    # ---------------------------------------------------------------- lifecycle

    @shell.transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the rig and listen to what its controllers are sent."""
        self._rig = rig = load_rig(self.get_parameter("rig").value, config_folder("rigs"))
        if rig.command_interface != "joint_trajectory":
            raise ConfigError(
                f"rig '{rig.name}' has command_interface: {rig.command_interface}; its arm "
                "streamer holds the arms itself"
            )
        self._motion_clock = SteadyClock(lambda: int(self.get_clock().now().nanoseconds))
        self._arms = dict.fromkeys(rig.arms.keys(), _Arm())
        self._guard, self._holds, self._ticks = Guard(rig, self._measured), 0, 0
        options, qos = QoSOverridingOptions.with_default_policies(), QoSProfile(depth=10)
        quiet = shell.NO_PUBLISHER_EVENTS
        self._trajectories = {
            output.name: self.create_publisher(
                JointTrajectory, output.topic, qos, qos_overriding_options=options
            )
            for output in rig.outputs
        }
        # First: an executor hears subscriptions in their order, and what comes is announced.
        topic = self.get_parameter("policy_state").value
        self._listening = [
            self.create_subscription(PolicyState, topic, self._on_policy_state, shell.LATCHED_EVERY)
        ]
        self._listening += [
            self.create_subscription(
                JointTrajectory,
                output.topic,
                self._on_trajectory(output),
                qos,
                qos_overriding_options=options,
            )
            for output in rig.outputs
        ]
        # They are only read when an arm must be held where it is.
        self._joint_states = {
            side: self.create_subscription(
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
        self._listening += self._joint_states.values()
        self._states = self.create_publisher(
            GuardState, "~/state", shell.LATCHED_PUBLISHER, event_callbacks=quiet
        )
        self._diagnostics = self.create_publisher(
            DiagnosticArray, "/diagnostics", 10, event_callbacks=quiet
        )
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._ticking = self.create_timer(TICK_PERIOD, self._tick, clock=steady)
        self._diagnosing = self.create_timer(1.0, self._diagnose, clock=steady)
        return super().on_configure(state)

    @shell.transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stand by."""
        self._active = True
        return super().on_activate(state)

    @shell.transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold what moves and stand by no more; its state tells the policy node."""
        self._send(self._guard.hold("the arm guard was deactivated", self._motion_clock.now_ns()))
        self._active = False
        self._tell()
        return super().on_deactivate(state)

    @shell.transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Disconnect."""
        for timer in self._ticking, self._diagnosing:
            self.destroy_timer(timer)
        for subscription in self._listening:
            self.destroy_subscription(subscription)
        for publisher in (*self._trajectories.values(), self._states, self._diagnostics):
            self.destroy_publisher(publisher)
        return super().on_cleanup(state)

    @shell.transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Nothing is left to do."""
        return super().on_shutdown(state)

    def close(self) -> None:
        """Hold what moves while trajectories still get out; called before the ROS context ends."""
        if self._active:
            self._send(self._guard.hold("the arm guard was shut down", self._motion_clock.now_ns()))
            self._tell()

    # ---------------------------------------------------------------- in

    def _on_policy_state(self, message: PolicyState) -> None:
        before = self._guard.ownership.owner
        self._send(
            self._guard.on_policy_state(
                message.identity,
                message.armed,
                message.run_id,
                (message.command_count, message.command_id),
                self._motion_clock.now_ns(),
            )
        )
        if self._guard.ownership.owner != before:
            self._tell()

    def _on_trajectory(self, output: Output) -> Callable[[JointTrajectory], None]:
        def follow(message: JointTrajectory) -> None:
            stamp_ns = shell.stamp_to_ns(message.header.stamp)
            receipt = self._motion_clock.receipt(stamp_ns)
            before = self._guard.reason
            try:
                holds = self._guard.on_trajectory(
                    output.name,
                    message.header.frame_id,
                    message.joint_names,
                    trajectory_points(message),
                    receipt.stamped_ns if stamp_ns else 0,
                    receipt.received_ns,
                )
            except RigError as error:
                self.get_logger().error(f"no path on {output.topic}: {error}")
                return
            self._send(holds)
            self._tell_reason(before)

        return follow

    def _take_arms(self) -> None:
        """Keep what the arms have reported since the last tick, undecoded."""
        for side, subscription in self._joint_states.items():
            if (message := shell.take(subscription)) is not None:
                self._arms[side] = _Arm(message, self._motion_clock.now_ns())

    def _measured(self, now_ns: int) -> NDArray[np.float64] | None:
        """Return where (14,) the arms are, policy units; None where that is not known."""
        self._take_arms()
        poses = []
        for side, spec in self._rig.arms.items():
            arm = self._arms[side]
            if now_ns - arm.received_ns > self._rig.observation.state_age * NS_PER_S:
                return None
            try:
                state = deserialize_message(arm.message, JointState)
                poses.append(read_arm(spec, state.name, state.position))
            except ObservationError as error:
                self.get_logger().error(f"{spec.joint_states}: {error}", throttle_duration_sec=1.0)
                return None
        return np.concatenate(poses)

    # ---------------------------------------------------------------- out

    def _tick(self) -> None:
        if not self._active:
            return
        self._take_arms()
        before = self._guard.reason
        self._send(self._guard.tick(self._motion_clock.now_ns()))
        self._tell_reason(before)
        self._ticks += 1
        if self._ticks % STATE_TICKS == 0:
            self._tell()

    def _tell_reason(self, before: str) -> None:
        reason = self._guard.reason
        if reason and reason != before:
            self.get_logger().error(f"the arms are held: {reason}")
            self._tell()

    def _send(self, holds: Mapping[str, BrakeTrajectory]) -> None:
        if not self._active:
            return
        for output, hold in holds.items():
            message = JointTrajectory(joint_names=list(hold.joints))
            message.header.frame_id = hold.chunk_id
            if self._rig.trajectory_stamp == "start":
                message.header.stamp = self.get_clock().now().to_msg()
            for each in hold.points:
                point = JointTrajectoryPoint(
                    positions=array("d", each.positions), velocities=array("d", each.velocities)
                )
                point.time_from_start.sec, point.time_from_start.nanosec = divmod(
                    each.time_from_start_ns, NS_PER_S
                )
                message.points.append(point)
            self._trajectories[output].publish(message)
            self._holds += 1

    def _tell(self) -> None:
        reason = self._guard.reason or ("" if self._active else "it is not active")
        owner = self._guard.ownership.owner
        state = GuardState(armed=bool(owner), owner=owner, reason=reason, holds=self._holds)
        state.holding = self._guard.holding
        state.header.stamp = self.get_clock().now().to_msg()
        self._states.publish(state)

    def _diagnose(self) -> None:
        reason = self._guard.reason
        status = DiagnosticStatus(name=f"{self.get_name()}: arms", hardware_id="rig")
        status.level = DiagnosticStatus.ERROR if reason else DiagnosticStatus.OK
        status.message = f"held: {reason}" if reason else "standing by"
        status.values = [KeyValue(key="holds", value=str(self._holds))]
        told = DiagnosticArray(status=[status])
        told.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(told)


def make_node() -> LifecycleNode:
    """Create the node and, with ``autostart``, bring it up."""
    return shell.bring_up(ArmGuardNode())


def main() -> None:
    """Entry point of ``ros2 run cosmos_policy_ros arm_guard_node``."""
    shell.main(make_node)
