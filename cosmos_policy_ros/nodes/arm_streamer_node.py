"""The arm streamer: trajectories in, goals for Interbotix' drivers out, fifty times a second.

A thin shell around ``rig.streamer``. It stands where a rig with ros2_control has a trajectory
controller per arm; the policy node cannot tell the difference, but for the heartbeat between them.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from cosmos_policy_ros.core.errors import ConfigError, RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.msg import PolicyState, StreamerState
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.convert import trajectory_points
from cosmos_policy_ros.nodes.shell import Parameter
from cosmos_policy_ros.rig.arms import ARM_JOINTS, Arm
from cosmos_policy_ros.rig.clock import SteadyClock
from cosmos_policy_ros.rig.spec import RigSpec, load_rig
from cosmos_policy_ros.rig.streamer import Streamer
from cosmos_policy_ros.srv import PrepareArms

# What one arm's Interbotix driver is asked and told besides goals: its modes and its torque.
#
# Its services answer with nothing, whether they did what they were asked or not, so everything is
# asked for again afterwards; and a driver in the middle of its start-up answers late or never.


PATIENCE = 5.0  # wall s for one answer; setting a mode writes to every motor
ARM_MODE, GRIPPER_MODE = "position", "current_based_position"
PROFILE = "velocity"  # with limits of 0 there is none: goals are followed as they come
# Modes in which a gripper's goal is read in the unit of the rig file.
GRIPPER_MODES = {
    "angle": ("current_based_position", "position", "ext_position"),
    "linear": ("linear_position",),
}


class DriverServices:
    """One arm's driver."""

    def __init__(self, node: Node, side: str, arm: Arm) -> None:
        """Make the clients.

        Raises:
            ConfigError: the vendor's messages are not installed.
        """
        assert arm.driver is not None
        kinds = _vendor().srv
        self._node, self._side, self._arm = node, side, arm
        self._group = arm.driver.group
        name = arm.driver.services
        self._info: Any = node.create_client(kinds.RobotInfo, f"{name}/get_robot_info")
        self._modes: Any = node.create_client(kinds.OperatingModes, f"{name}/set_operating_modes")
        self._torque: Any = node.create_client(kinds.TorqueEnable, f"{name}/torque_enable")
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)

    def close(self) -> None:
        """Destroy the clients."""
        for client in (self._info, self._modes, self._torque):
            self._node.destroy_client(client)

    async def unready(self) -> str:
        """Return why the gripper would misread its goals; empty if it would not."""
        gripper = self._arm.gripper
        wanted = GRIPPER_MODES.get(gripper.command_unit)
        if wanted is None:
            return ""
        try:
            mode = await self._mode("single", gripper.joint)
        except RigError as error:
            return f"the {self._side} gripper's mode is not known: {error}"
        if mode in wanted:
            return ""
        return (
            f"the {self._side} gripper is in mode '{mode}', in which a goal in the unit "
            f"'{gripper.command_unit}' means something else; call ~/prepare_arms with the arms "
            "folded, or start the drivers with another mode file"
        )

    async def prepare(self) -> None:
        """Set the modes, then the torque; and look whether it was done.

        Raises:
            RigError: something was not, or the driver does not answer.
        """
        gripper = self._arm.gripper.joint
        unit = self._arm.gripper.command_unit
        gripper_mode = GRIPPER_MODE if unit != "linear" else "linear_position"
        for kind, name, mode in (
            ("group", self._group, ARM_MODE),
            ("single", gripper, gripper_mode),
        ):
            await self._ask(self._modes, cmd_type=kind, name=name, mode=mode, profile_type=PROFILE)
            found = await self._mode(kind, name)
            if found != mode:
                raise RigError(f"the {self._side} {name} is in mode '{found}', not '{mode}'")
        for kind, name in (("group", self._group), ("single", gripper)):
            await self._ask(self._torque, cmd_type=kind, name=name, enable=True)

    async def _mode(self, kind: str, name: str) -> str:
        answer = await self._ask(self._info, cmd_type=kind, name=name)
        return str(answer.mode)

    async def _ask(self, client: Any, **fields: Any) -> Any:
        if not client.service_is_ready():
            raise RigError(f"{client.srv_name} is not there; is the {self._side} driver running?")
        answer = client.call_async(client.srv_type.Request(**fields))

        def give_up() -> None:
            if not answer.done():
                client.remove_pending_request(answer)
                answer.set_exception(
                    RigError(f"{client.srv_name} gave no answer for {PATIENCE:g} s")
                )

        timer = self._node.create_timer(PATIENCE, give_up, clock=self._steady)
        try:
            return await answer
        finally:
            self._node.destroy_timer(timer)


def driver_messages() -> tuple[Any, Any]:
    """Return Interbotix' JointGroupCommand and JointSingleCommand.

    Raises:
        ConfigError: the vendor's messages are not installed.
    """
    kinds = _vendor().msg
    return kinds.JointGroupCommand, kinds.JointSingleCommand


def _vendor() -> Any:
    try:
        import interbotix_xs_msgs.msg
        import interbotix_xs_msgs.srv
    except ImportError as error:
        raise ConfigError(
            f"interbotix_xs_msgs cannot be imported ({error}); source the Interbotix workspace, or "
            "set command_interface: joint_trajectory in the rig file and run a controller per arm"
        ) from error
    return interbotix_xs_msgs


STATE_PERIOD = 0.1  # wall s; the policy node takes the state for a heartbeat
PARAMETERS = (
    Parameter("rig", "interbotix_1", "rig description: a name in config/rigs or a YAML file"),
    Parameter("policy_state", "policy_node/state", "topic on which the policy node is alive"),
    Parameter("autostart", True, "configure and activate at start, without a lifecycle manager"),
)


class ArmStreamerNode(LifecycleNode):
    """Lifecycle node ``arm_streamer_node``; sends nothing before the first trajectory."""

    def __init__(self) -> None:
        """Declare the parameters; everything else happens when it is configured."""
        super().__init__("arm_streamer_node")
        shell.declare(self, PARAMETERS)
        self._streamer: Streamer | None = None
        self._active = self._asking = False

    # ---------------------------------------------------------------- lifecycle

    @shell.transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the rig, find the driver's messages, connect."""
        self._rig = rig = load_rig(self.get_parameter("rig").value, config_folder("rigs"))
        if rig.command_interface != "interbotix":
            raise ConfigError(
                f"rig '{rig.name}' has command_interface: {rig.command_interface}; its "
                "controllers take the trajectories themselves, and nothing is to be streamed"
            )
        self._group, self._single = driver_messages()
        self._motion_clock = SteadyClock(lambda: int(self.get_clock().now().nanoseconds))
        self._streamer = Streamer(rig)
        self._streamer.unready = "the grippers' modes are not known yet"
        self._connect(rig)
        return super().on_configure(state)

    @shell.transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let trajectories through."""
        self._active = True
        return super().on_activate(state)

    @shell.transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Brake, and refuse what comes."""
        self._come_to_rest("the arm streamer was deactivated")
        self._active = False
        return super().on_deactivate(state)

    @shell.transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Disconnect."""
        for timer in self._ticking, self._telling, self._diagnosing:
            self.destroy_timer(timer)
        self.destroy_service(self._preparing)
        for driver in self._drivers.values():
            driver.close()
        for subscription in self._listening:
            self.destroy_subscription(subscription)
        goals = [publisher for both in self._goals.values() for publisher in both]
        for publisher in (*goals, self._states, self._diagnostics):
            self.destroy_publisher(publisher)
        self._streamer = None
        return super().on_cleanup(state)

    @shell.transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Do the same from any state."""
        self.close()
        return super().on_shutdown(state)

    def close(self) -> None:
        """Brake while goals still get out; called before the ROS context ends."""
        self._come_to_rest("the arm streamer was shut down")

    def _come_to_rest(self, reason: str) -> None:
        """Brake here and now: the executor will not call the timer again."""
        streamer = self._streamer
        if streamer is None:
            return
        streamer.hold(reason)
        while not streamer.resting:
            time.sleep(1.0 / self._rig.stream.rate)
            self._tick()
        self._tell()

    def _connect(self, rig: RigSpec) -> None:
        options = QoSOverridingOptions.with_default_policies()
        qos, quiet = QoSProfile(depth=10), shell.NO_PUBLISHER_EVENTS
        self._goals: dict[str, tuple[Any, Any]] = {}
        # First: an executor hears subscriptions in their order, and what comes is announced.
        topic = self.get_parameter("policy_state").value
        self._listening: list[Any] = [
            self.create_subscription(PolicyState, topic, self._on_policy_state, shell.LATCHED_EVERY)
        ]
        for side, arm in rig.arms.items():
            assert arm.driver is not None
            self._goals[side] = (
                self.create_publisher(
                    self._group, arm.driver.joint_group, qos, qos_overriding_options=options
                ),
                self.create_publisher(
                    self._single, arm.driver.joint_single, qos, qos_overriding_options=options
                ),
            )
            for kind, topic, hear in (
                (JointTrajectory, arm.trajectory, self._on_trajectory(side)),
                (JointState, arm.joint_states, self._on_joint_state(side)),
            ):
                self._listening.append(
                    self.create_subscription(kind, topic, hear, qos, qos_overriding_options=options)
                )
        self._states = self.create_publisher(
            StreamerState, "~/state", shell.LATCHED_PUBLISHER, event_callbacks=quiet
        )
        self._diagnostics = self.create_publisher(
            DiagnosticArray, "/diagnostics", 10, event_callbacks=quiet
        )
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._ticking = self.create_timer(1.0 / rig.stream.rate, self._tick, clock=steady)
        self._telling = self.create_timer(STATE_PERIOD, self._tell, clock=steady)
        self._diagnosing = self.create_timer(1.0, self._diagnose, clock=steady)
        self._drivers = {side: DriverServices(self, side, arm) for side, arm in rig.arms.items()}
        # Not _services: rclpy keeps its own list under that name.
        self._preparing = self.create_service(
            PrepareArms,
            "~/prepare_arms",
            self._prepare,
            # Of its own: while it waits for the drivers, nothing else of its group is called.
            callback_group=MutuallyExclusiveCallbackGroup(),
        )

    # ---------------------------------------------------------------- in

    def _on_policy_state(self, message: PolicyState) -> None:
        streamer = self._streamer
        assert streamer is not None
        owner = streamer.ownership.owner
        try:
            streamer.on_policy_state(
                message.identity,
                # An inactive streamer is as good as a disarmed policy node: nothing may move.
                message.armed and self._active,
                message.run_id,
                (message.command_count, message.command_id),
                self._motion_clock.now_ns(),
            )
        except RigError as error:
            self.get_logger().error(f"refused a trajectory: {error}")
            self._tell()
        if streamer.ownership.owner != owner:
            self._tell()

    def _on_joint_state(self, side: str) -> Callable[[JointState], None]:
        def keep(message: JointState) -> None:
            assert self._streamer is not None
            now_ns = self._motion_clock.now_ns()
            self._streamer.on_joint_state(side, message.name, message.position, now_ns)

        return keep

    def _on_trajectory(self, side: str) -> Callable[[JointTrajectory], None]:
        def accept(message: JointTrajectory) -> None:
            assert self._streamer is not None
            stamp_ns = shell.stamp_to_ns(message.header.stamp)
            receipt = self._motion_clock.receipt(stamp_ns)
            try:
                self._streamer.on_trajectory(
                    side,
                    message.header.frame_id,
                    message.joint_names,
                    trajectory_points(message),
                    receipt.stamped_ns if stamp_ns else 0,
                    receipt.received_ns,
                )
            except RigError as error:
                self.get_logger().error(f"{side} arm refused a trajectory: {error}")
                self._tell()

        return accept

    # ---------------------------------------------------------------- the drivers' modes

    async def _look_at_modes(self) -> None:
        """Learn whether goals mean what they should.

        Not while the arms are in use: the driver reads no joints while it answers.
        """
        streamer = self._streamer
        if streamer is None or self._asking or (streamer.armed and not streamer.unready):
            return
        self._asking = True
        try:
            found = [await driver.unready() for driver in self._drivers.values()]
        finally:
            self._asking = False
        streamer.unready = "; ".join(each for each in found if each)

    async def _prepare(
        self, request: PrepareArms.Request, response: PrepareArms.Response
    ) -> PrepareArms.Response:
        try:
            self._check_may_prepare(request.confirm)
            for driver in self._drivers.values():
                await driver.prepare()
            await self._look_at_modes()
            response.success = True
            response.message = "modes set, torque on: the arms hold"
        except RigError as error:
            response.message = f"refused: {error}"
        self.get_logger().info(response.message)
        return response

    def _check_may_prepare(self, confirm: bool) -> None:
        assert self._streamer is not None
        if not confirm:
            raise RigError("joints sag for a moment; give confirm: true with somebody looking")
        if self._streamer.armed:
            raise RigError("the policy node is armed; disarm it first")
        for side, arm in self._rig.arms.items():
            assert arm.driver is not None
            measured = self._streamer.arms[side].measured
            if measured is None:
                raise RigError(f"{arm.joint_states} is silent; is the driver running?")
            shoulder, elbow = arm.driver.parked
            if measured[1] > shoulder or measured[2] < elbow:
                raise RigError(
                    f"the {side} arm is not folded: {arm.joints[1]} {measured[1]:.2f} rad must be "
                    f"below {shoulder:g}, {arm.joints[2]} {measured[2]:.2f} above {elbow:g}"
                )

    # ---------------------------------------------------------------- out

    def _tick(self) -> None:
        streamer = self._streamer
        assert streamer is not None
        before, refusal = streamer.reason, streamer.refusal
        for side, goal in streamer.tick(self._motion_clock.now_ns()).items():
            arm = self._rig.arms[side]
            assert arm.driver is not None
            group, single = self._goals[side]
            group.publish(
                self._group(name=arm.driver.group, cmd=array("f", goal[:ARM_JOINTS].tolist()))
            )
            single.publish(self._single(name=arm.gripper.joint, cmd=float(goal[ARM_JOINTS])))
        if streamer.reason != before:
            self.get_logger().error(f"the arms are held: {streamer.reason}")
        if streamer.refusal != refusal:
            self.get_logger().error(f"refused a trajectory: {streamer.refusal}")
        if (streamer.reason, streamer.refusal) != (before, refusal):
            self._tell()

    def _tell(self) -> None:
        streamer = self._streamer
        assert streamer is not None
        arms = streamer.arms.values()
        counts = [arm.stream.counts for arm in arms]
        state = StreamerState(
            armed=streamer.armed,
            owner=streamer.ownership.owner,
            holding=bool(streamer.reason),
            reason=streamer.reason or streamer.unready or self._inactive,
            arms=list(streamer.arms),
            streaming=[not arm.stream.silent for arm in arms],
            goals=[each.ticks for each in counts],
            late=[each.late for each in counts],
            latest=[each.latest for each in counts],
            slipped=[each.slipped for each in counts],
            limited=[each.limited for each in counts],
            accepted=[arm.accepted for arm in arms],
            refused=[arm.refused for arm in arms],
            refusal=streamer.refusal,
        )
        state.header.stamp = self.get_clock().now().to_msg()
        self._states.publish(state)

    @property
    def _inactive(self) -> str:
        return "" if self._active else "the arm streamer is not active"

    def _diagnose(self) -> None:
        assert self.executor is not None
        self.executor.create_task(self._look_at_modes)
        assert self._streamer is not None
        statuses = []
        for side, arm in self._streamer.arms.items():
            counts = arm.stream.counts
            driver = self._rig.arms[side].driver
            assert driver is not None
            name = f"{self.get_name()}: {side} arm"
            status = DiagnosticStatus(name=name, hardware_id=driver.services)
            level, status.message = self._judge(arm.complaint, counts.late)
            status.level = level
            told = {"late": counts.late, "latest [s]": f"{counts.latest:.3f}"}
            told |= {"slipped [s]": f"{counts.slipped:.3f}", "held back": counts.limited}
            status.values = [KeyValue(key=key, value=str(value)) for key, value in told.items()]
            statuses.append(status)
        array_message = DiagnosticArray(status=statuses)
        array_message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array_message)

    def _judge(self, complaint: str, late: int) -> tuple[bytes, str]:
        assert self._streamer is not None
        if self._streamer.reason:
            return DiagnosticStatus.ERROR, f"held: {self._streamer.reason}"
        if complaint:
            return DiagnosticStatus.WARN, complaint
        if late:
            return DiagnosticStatus.WARN, "goals have come late: this machine is too busy"
        return DiagnosticStatus.OK, "steady"


def make_node() -> LifecycleNode:
    """Create the node and, with ``autostart``, bring it up."""
    return shell.bring_up(ArmStreamerNode())


def main() -> None:
    """Entry point of ``ros2 run cosmos_policy_ros arm_streamer_node``."""
    shell.main(make_node)
