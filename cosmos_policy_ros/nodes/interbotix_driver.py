"""One arm's Interbotix driver, as its services are asked.

They answer with nothing, whether they did what they were asked or not, so everything is asked for
again afterwards; and a driver in the middle of its start-up answers late or never.
"""

from __future__ import annotations

from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from cosmos_policy_ros.core.errors import ConfigError, RigError

PATIENCE = 5.0  # wall s for one answer; setting a mode writes to every motor
ARM_MODE = "position"
PROFILE = "velocity"  # with limits of 0 there is none: goals are followed as they come


def vendor() -> Any:
    """Return the driver's messages and services.

    Raises:
        ConfigError: they are not installed.
    """
    try:
        import interbotix_xs_msgs.msg
        import interbotix_xs_msgs.srv
    except ImportError as error:
        raise ConfigError(
            f"interbotix_xs_msgs cannot be imported ({error}); source the Interbotix workspace. "
            "Without it, set command_interface: joint_trajectory in the rig file and run a "
            "controller per arm; and leave driver out of its leaders"
        ) from error
    return interbotix_xs_msgs


class DriverServices:
    """One arm's driver; what is asked raises RigError where it answers late or not at all."""

    def __init__(self, node: Node, arm: str, services: str) -> None:
        """Make the clients.

        Args:
            node: that asks.
            arm: what the arm is called in messages, e.g. "left".
            services: their namespace.

        Raises:
            ConfigError: the vendor's messages are not installed.
        """
        kinds = vendor().srv
        self._node, self._arm = node, arm
        self._info: Any = node.create_client(kinds.RobotInfo, f"{services}/get_robot_info")
        self._modes: Any = node.create_client(
            kinds.OperatingModes, f"{services}/set_operating_modes"
        )
        self._torque: Any = node.create_client(kinds.TorqueEnable, f"{services}/torque_enable")
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)

    async def mode(self, kind: str, name: str) -> str:
        """Return the mode of a group or a single motor."""
        answer = await self.ask(self._info, cmd_type=kind, name=name)
        return str(answer.mode)

    async def set_mode(self, kind: str, name: str, mode: str) -> None:
        """Set a mode, and look whether it was set; raise RigError if not."""
        await self.ask(self._modes, cmd_type=kind, name=name, mode=mode, profile_type=PROFILE)
        found = await self.mode(kind, name)
        if found != mode:
            raise RigError(f"the {self._arm} {name} is in mode '{found}', not '{mode}'")

    async def torque(self, kind: str, name: str, *, enable: bool) -> None:
        """Switch the torque."""
        await self.ask(self._torque, cmd_type=kind, name=name, enable=enable)

    async def ask(self, client: Any, **fields: Any) -> Any:
        """Call a service."""
        if not client.service_is_ready():
            raise RigError(f"{client.srv_name} is not there; is the {self._arm} driver running?")
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
