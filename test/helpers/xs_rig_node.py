"""The simulated rig behind Interbotix' topics: what a stock ALOHA looks like from outside.

A program: run in place of ``sim_rig_node``.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.xs_sdk import XsSdk
from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand
from interbotix_xs_msgs.srv import OperatingModes, RobotInfo, TorqueEnable

from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.sim_rig_node import SimRigNode
from cosmos_policy_ros.rig.arms import ARM_DIM, Arm
from cosmos_policy_ros.sim.rig import JointSample


class XsRigNode(SimRigNode):
    """A driver per arm in front of the physics; trajectories are nobody's business here."""

    def __init__(self) -> None:
        self._drivers: dict[str, XsSdk] = {}
        super().__init__()

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
