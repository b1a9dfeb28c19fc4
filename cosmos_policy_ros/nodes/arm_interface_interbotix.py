"""Interbotix' drivers: the back end of the arm interface that streams goals to them."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import JointState

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.msg import ArmInterfaceState
from cosmos_policy_ros.nodes.interbotix_driver import ARM_MODE, DriverServices, vendor
from cosmos_policy_ros.nodes.shell import ManagedNode
from cosmos_policy_ros.rig.arms import ARM_JOINTS, Arm
from cosmos_policy_ros.rig.clock import SteadyClock
from cosmos_policy_ros.rig.goal_stream import GoalStreamer
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryPoint
from cosmos_policy_ros.srv import PrepareArms

# A trajectory: output, chunk id, joint names, points, start (0: at once) and receipt [ns].
Received = tuple[str, str, Sequence[str], Sequence[TrajectoryPoint], int, int]
GRIPPER_MODE = "current_based_position"
# Modes in which a gripper's goal is read in the unit of the rig file.
GRIPPER_MODES = {
    "angle": ("current_based_position", "position", "ext_position"),
    "linear": ("linear_position",),
}


class FollowerDriver:
    """One follower's driver."""

    def __init__(self, node: Node, side: str, arm: Arm) -> None:
        """Make the clients.

        Raises:
            ConfigError: the vendor's messages are not installed.
        """
        assert arm.driver is not None
        self._side, self._arm, self._group = side, arm, arm.driver.group
        self._services = DriverServices(node, side, arm.driver.services)

    async def unready(self) -> str:
        """Return why the gripper would misread its goals; empty if it would not."""
        gripper = self._arm.gripper
        wanted = GRIPPER_MODES.get(gripper.command_unit)
        if wanted is None:
            return ""
        try:
            mode = await self._services.mode("single", gripper.joint)
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
        await self._services.set_mode("group", self._group, ARM_MODE)
        await self._services.set_mode("single", gripper, gripper_mode)
        for kind, name in (("group", self._group), ("single", gripper)):
            await self._services.torque(kind, name, enable=True)


class InterbotixBackEnd:
    """To Interbotix' drivers: a goal for every joint at the rig's rate, and their modes.

    Attributes:
        logic: decides what the arms are told.
        period: wall seconds between two ticks.
    """

    def __init__(self, node: ManagedNode, rig: RigSpec, clock: SteadyClock) -> None:
        """Find the drivers' messages and connect.

        Raises:
            ConfigError: the vendor's messages are not installed.
        """
        self._node, self._rig, self._clock = node, rig, clock
        messages = vendor().msg
        self._group, self._single = messages.JointGroupCommand, messages.JointSingleCommand
        self.logic, self.period = GoalStreamer(rig), 1.0 / rig.stream.rate
        self.logic.unready = "the grippers' modes are not known yet"
        self._asking = False
        options, qos = QoSOverridingOptions.with_default_policies(), QoSProfile(depth=10)
        self._goals: dict[str, tuple[Any, Any]] = {}
        for side, arm in rig.arms.items():
            assert arm.driver is not None
            self._goals[side] = (
                node.create_publisher(
                    self._group, arm.driver.joint_group, qos, qos_overriding_options=options
                ),
                node.create_publisher(
                    self._single, arm.driver.joint_single, qos, qos_overriding_options=options
                ),
            )
            node.create_subscription(
                JointState,
                arm.joint_states,
                self._on_joint_state(side),
                qos,
                qos_overriding_options=options,
            )
        self._drivers = {side: FollowerDriver(node, side, arm) for side, arm in rig.arms.items()}
        node.create_service(
            PrepareArms,
            "~/prepare_arms",
            self._prepare,
            # Of its own: while it waits for the drivers, nothing else of its group is called.
            callback_group=MutuallyExclusiveCallbackGroup(),
        )

    def on_policy_state(
        self, identity: str, armed: bool, run_id: str, announced: tuple[int, str], now_ns: int
    ) -> None:
        """Note a policy node's state; see :meth:`Ownership.on_state`.

        An inactive node is as good as a disarmed policy node: nothing may move.
        """
        armed = armed and self._node.active
        self.logic.on_policy_state(identity, armed, run_id, announced, now_ns)

    def on_trajectory(self, received: Received) -> None:
        """Follow a trajectory; raise RigError where it is refused."""
        self.logic.on_trajectory(*received)

    def commanded(self, now_ns: int) -> Array | None:
        """Return where (14,) the arms are told to be, policy units; None where nothing was."""
        streams = [arm.stream for arm in self.logic.arms.values()]
        if any(stream.silent for stream in streams):
            return None
        goals = np.concatenate([stream.goal for stream in streams])
        pose: Array = self._rig.commanded(goals[None])[0]
        return pose

    def resting(self, now_ns: int) -> bool:
        """Whether no arm is on a path."""
        return self.logic.resting

    @property
    def unready(self) -> str:
        """Why no trajectory is taken; empty if they are."""
        return self.logic.unready

    def measured(self, now_ns: int, patience: float | None = None) -> Array | None:
        """Return where (14,) the arms are, policy units; None where that is not known.

        ``patience`` is the age [s] that a joint state may have; None for the rig's ``state_age``.
        """
        oldest = self._rig.observation.state_age if patience is None else patience
        poses = []
        for arm in self.logic.arms.values():
            age = (now_ns - arm.heard_ns) / NS_PER_S
            if arm.measured is None or age > oldest:
                return None
            poses.append(arm.measured)
        pose: Array = self._rig.commanded(np.concatenate(poses)[None])[0]
        return pose

    def tick(self, now_ns: int) -> None:
        """Send the goals of this moment."""
        for side, goal in self.logic.tick(now_ns).items():
            arm = self._rig.arms[side]
            assert arm.driver is not None
            group, single = self._goals[side]
            group.publish(
                self._group(name=arm.driver.group, cmd=array("f", goal[:ARM_JOINTS].tolist()))
            )
            single.publish(self._single(name=arm.gripper.joint, cmd=float(goal[ARM_JOINTS])))

    def come_to_rest(self, reason: str) -> None:
        """Brake both arms before this returns."""
        self.logic.hold(reason)
        while not self.logic.resting:
            time.sleep(self.period)
            self.tick(self._clock.now_ns())

    def fill(self, state: ArmInterfaceState) -> None:
        """Add what only this back end knows to the node's state."""
        logic = self.logic
        state.holding = bool(logic.reason)
        state.reason = logic.reason or logic.unready
        state.arms = list(logic.arms)
        for arm in logic.arms.values():
            counts = arm.stream.counts
            state.streaming.append(not arm.stream.silent)
            state.goals.append(counts.ticks)
            state.late.append(counts.late)
            state.latest.append(counts.latest)
            state.slipped.append(counts.slipped)
            state.limited.append(counts.limited)
            state.accepted.append(arm.accepted)
            state.refused.append(arm.refused)

    def diagnose(self) -> list[DiagnosticStatus]:
        """Return how steady the goals are, and have the drivers asked for their modes."""
        assert self._node.executor is not None
        self._node.executor.create_task(self._look_at_modes)
        statuses = []
        for side, arm in self.logic.arms.items():
            counts, driver = arm.stream.counts, self._rig.arms[side].driver
            assert driver is not None
            name = f"{self._node.get_name()}: {side} arm"
            status = DiagnosticStatus(name=name, hardware_id=driver.services)
            if self.logic.reason:
                status.level, status.message = DiagnosticStatus.ERROR, f"held: {self.logic.reason}"
            elif arm.problem:
                status.level, status.message = DiagnosticStatus.WARN, arm.problem
            elif counts.late:
                status.level = DiagnosticStatus.WARN
                status.message = "goals have come late: this machine is too busy"
            else:
                status.level, status.message = DiagnosticStatus.OK, "steady"
            values = {"late": counts.late, "latest [s]": f"{counts.latest:.3f}"}
            values |= {"slipped [s]": f"{counts.slipped:.3f}", "held back": counts.limited}
            status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
            statuses.append(status)
        return statuses

    def _on_joint_state(self, side: str) -> Callable[[JointState], None]:
        def keep(message: JointState) -> None:
            now_ns = self._clock.now_ns()
            self.logic.on_joint_state(side, message.name, message.position, now_ns)

        return keep

    async def _look_at_modes(self) -> None:
        """Learn whether goals mean what they should.

        Not while the arms are in use: the driver reads no joints while it answers.
        """
        if self._asking or (self.logic.armed and not self.logic.unready):
            return
        self._asking = True
        try:
            found = [await driver.unready() for driver in self._drivers.values()]
        finally:
            self._asking = False
        self.logic.unready = "; ".join(each for each in found if each)

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
        self._node.get_logger().info(response.message)
        return response

    def _check_may_prepare(self, confirm: bool) -> None:
        if not confirm:
            raise RigError("joints sag for a moment; give confirm: true while an operator looks on")
        if self.logic.armed:
            raise RigError("the policy node is armed; disarm it first")
        for side, arm in self._rig.arms.items():
            assert arm.driver is not None
            measured = self.logic.arms[side].measured
            if measured is None:
                raise RigError(f"{arm.joint_states} is silent; is the driver running?")
            shoulder, elbow = arm.driver.parked
            if measured[1] > shoulder or measured[2] < elbow:
                raise RigError(
                    f"the {side} arm is not folded: {arm.joints[1]} {measured[1]:.2f} rad must be "
                    f"below {shoulder:g}, {arm.joints[2]} {measured[2]:.2f} above {elbow:g}"
                )
