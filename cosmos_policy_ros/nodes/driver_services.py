"""What one arm's Interbotix driver is asked and told besides goals: its modes and its torque.

Its services answer with nothing, whether they did what they were asked or not, so everything is
asked for again afterwards; and a driver in the middle of its start-up answers late or never.
"""

from __future__ import annotations

from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from cosmos_policy_ros.errors import ConfigError, RigError
from cosmos_policy_ros.rig.arms import Arm

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
            "set sink: joint_trajectory in the rig file and run a controller per arm"
        ) from error
    return interbotix_xs_msgs
