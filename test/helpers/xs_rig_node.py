"""The simulated rig behind Interbotix' topics: what a stock ALOHA looks like from outside.

A program: run in place of ``sim_rig_node``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rcl_interfaces.msg import SetParametersResult
from std_srvs.srv import SetBool

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.xs_sdk import XsSdk
from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand
from interbotix_xs_msgs.srv import OperatingModes, RobotInfo, TorqueEnable

from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.sim_rig_node import SimRigNode
from cosmos_policy_ros.rig.arms import ARM_DIM, ARM_JOINTS, Arm, LeaderDriver
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.sim.demonstrator import DT
from cosmos_policy_ros.sim.faults import Fault
from cosmos_policy_ros.sim.leaders import SimLeaders
from cosmos_policy_ros.sim.rig import JointSample


class TorqueLeaders(SimLeaders):
    """Leaders with servos: under torque they go where they are told, otherwise with the hands.

    ``dropped`` [rad] is how far off their followers the hands keep them, until they are moved.
    """

    def __init__(self, rig: RigSpec, dt: float) -> None:
        super().__init__(rig, dt)
        self.goals: dict[str, NDArray[np.float64]] = {}  # by side, of those under torque
        self.dropped = 0.0

    def positions(
        self, side: str, now_ns: int, faults: Sequence[Fault] = ()
    ) -> NDArray[np.float64]:
        found = super().positions(side, now_ns, faults)
        if side in self.goals:
            found[:ARM_JOINTS] = self.goals[side]
        elif not self.leading:
            found[1:3] -= self.dropped
        return found


class XsRigNode(SimRigNode):
    """A driver per arm in front of the physics; trajectories are nobody's business here."""

    def __init__(self) -> None:
        self._drivers: dict[str, XsSdk] = {}
        super().__init__()
        leaders = TorqueLeaders(self._spec, DT)
        for side, arm in self._spec.arms.items():
            if arm.leader is not None and arm.leader.driver is not None:
                self._drive_leader(side, arm.leader.driver, leaders)
        self._leaders = leaders
        self.declare_parameter("dropped", 0.0)
        self.add_on_set_parameters_callback(partial(self._drop, leaders))

    def _drop(self, leaders: TorqueLeaders, parameters: Any) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == "dropped":
                leaders.dropped = parameter.value
        return SetParametersResult(successful=True)

    def _drive_leader(self, side: str, driver: LeaderDriver, leaders: TorqueLeaders) -> None:
        """As a leader's driver: in the right mode its servos go to their last goal with the torque.

        That one is from another day: all joints at 0.
        """
        modes = {"arm": "current"}
        last = np.zeros(ARM_JOINTS)

        def on_goal(message: JointGroupCommand) -> None:
            if modes["arm"] == "position" and message.name == "arm":
                last[:] = message.cmd
                if side in leaders.goals:
                    leaders.goals[side] = last.copy()

        def on_torque(request: Any, response: Any) -> Any:
            if request.enable:
                leaders.goals.setdefault(side, last.copy())
            else:
                last[:] = 0.0
                leaders.goals.pop(side, None)
                leaders.dropped = 0.0  # the hands keep it where it was brought
            return response

        def on_gravity(request: Any, response: Any) -> Any:
            modes["arm"] = "current" if request.data else "position"
            if request.data:
                last[:] = 0.0
                leaders.goals.pop(side, None)
                leaders.dropped = 0.0
            response.success = True
            return response

        def on_modes(request: Any, response: Any) -> Any:
            modes[request.name] = request.mode
            return response

        def on_info(request: Any, response: Any) -> Any:
            response.mode = modes.get(request.name, "")
            return response

        name = driver.services
        self.create_subscription(JointGroupCommand, driver.joint_group, on_goal, 10)
        self.create_service(TorqueEnable, f"{name}/torque_enable", on_torque)
        self.create_service(OperatingModes, f"{name}/set_operating_modes", on_modes)
        self.create_service(RobotInfo, f"{name}/get_robot_info", on_info)
        if driver.gravity_compensation:
            self.create_service(SetBool, driver.gravity_compensation, on_gravity)

    def _listen(self) -> None:
        for side, arm in self._spec.arms.items():
            self._drive(side, arm)

    def _drive(self, side: str, arm: Arm) -> None:
        assert arm.driver is not None
        driver = self._drivers[side] = XsSdk(self._standing(side))
        namespace = arm.joint_states.rsplit("/", 1)[0]
        self.create_subscription(
            JointGroupCommand,
            arm.driver.joint_group,
            lambda m: self._write(side, partial(driver.write_group, m.name, list(m.cmd))),
            10,
        )
        self.create_subscription(
            JointSingleCommand,
            arm.driver.joint_single,
            lambda m: self._write(side, partial(driver.write_single, m.name, m.cmd)),
            10,
        )
        self.create_service(
            OperatingModes, f"{namespace}/set_operating_modes", partial(self._on_modes, driver)
        )
        self.create_service(
            TorqueEnable, f"{namespace}/torque_enable", lambda _request, response: response
        )
        self.create_service(
            RobotInfo, f"{namespace}/get_robot_info", partial(self._on_info, driver)
        )

    def _standing(self, side: str) -> Any:
        return np.array(self._rig.joint_states(side).positions[:ARM_DIM])

    def _on_reset(self, request: Any, response: Any) -> Any:
        answer = super()._on_reset(request, response)
        for side, driver in self._drivers.items():
            driver.goals = self._standing(side)
        return answer

    def _write(self, side: str, write: Any) -> None:
        driver = self._drivers[side]
        said = len(driver.log)
        write()
        for line in driver.log[said:]:
            self.get_logger().error(line)
        with self._lock:
            self._rig.goal(side, driver.goals.copy())

    def _on_modes(self, driver: XsSdk, request: Any, response: Any) -> Any:
        driver.set_mode(request.cmd_type, request.name, request.mode)
        return response

    def _on_info(self, driver: XsSdk, request: Any, response: Any) -> Any:
        response.mode = driver.modes.get("waist" if request.name == "arm" else request.name, "")
        return response

    def _sample(self, side: str) -> JointSample:
        return self._drivers[side].joint_states(super()._sample(side))


if __name__ == "__main__":
    shell.main(XsRigNode)
