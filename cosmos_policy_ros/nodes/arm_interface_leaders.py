"""Leaders that have torque: the arm interface has them go to their followers by themselves."""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable
from typing import Any

from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_srvs.srv import SetBool

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.nodes.interbotix_driver import ARM_MODE, DriverServices, vendor
from cosmos_policy_ros.nodes.shell import ManagedNode
from cosmos_policy_ros.rig.arms import ARM_DIM, ARM_JOINTS, Leader, LeaderDriver
from cosmos_policy_ros.rig.clock import SteadyClock
from cosmos_policy_ros.rig.leader_motion import LeaderMotion, Torque
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.teleoperation import leader_pose


class _Servos:
    """One leader's driver."""

    def __init__(self, node: ManagedNode, side: str, leader: Leader, driver: LeaderDriver) -> None:
        self._leader, self._driver = leader, driver
        self._services = DriverServices(node, f"{side} leader's", driver.services)
        self._goal = vendor().msg.JointGroupCommand
        self._goals = node.create_publisher(
            self._goal,
            driver.joint_group,
            QoSProfile(depth=10),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._gravity: Any = None
        if driver.gravity_compensation:
            self._gravity = node.create_client(SetBool, driver.gravity_compensation)

    def send(self, pose: Array) -> None:
        """Send the (7,) pose of its follower that it is to ask for."""
        joints = leader_pose(self._leader, pose)[:ARM_JOINTS]
        self._goals.publish(self._goal(name=self._driver.group, cmd=array("f", joints.tolist())))

    async def hold(self, pose: Array) -> None:
        """Put it under torque where it is: at the (7,) pose that it asks of its follower."""
        group = self._driver.group
        if self._gravity is not None:
            await self._compensate(False)
        if await self._services.mode("group", group) != ARM_MODE:
            await self._services.set_mode("group", group, ARM_MODE)
        self.send(pose)  # a servo that still has another goal would go there with the torque
        await self._services.torque("group", group, enable=True)

    async def free(self) -> None:
        """Leave it to the hand."""
        if self._gravity is not None:
            await self._compensate(True)
        else:
            await self._services.torque("group", self._driver.group, enable=False)

    async def _compensate(self, on: bool) -> None:
        answer = await self._services.ask(self._gravity, data=on)
        if not answer.success:
            raise RigError(f"{self._driver.gravity_compensation} refuses: {answer.message}")


class LeaderMover:
    """Moves both leaders, and frees them.

    Attributes:
        motion: what they do.
    """

    def __init__(
        self, node: ManagedNode, rig: RigSpec, clock: SteadyClock, report: Callable[[], None]
    ) -> None:
        """Find the drivers.

        Args:
            node: whose they are.
            rig: with leaders that move.
            clock: that arms move by.
            report: publishes the node's state.

        Raises:
            ConfigError: the vendor's messages are not installed.
        """
        self.motion = LeaderMotion(rig)
        self._node, self._clock, self._report = node, clock, report
        self._called_off = False
        self._servos = [
            _Servos(node, side, arm.leader, arm.leader.driver)
            for side, arm in rig.arms.items()
            if arm.leader is not None and arm.leader.driver is not None
        ]

    @property
    def free(self) -> bool:
        """Whether a hand can move them."""
        return self.motion.torque is Torque.OFF

    def move(self, asked: Callable[[int], Array | None], followers: Array) -> None:
        """Move them to their followers.

        Args:
            asked: returns the (14,) pose that they ask for at a time [ns]; None: one is silent.
            followers: (14,) where these are commanded to be.
        """

        async def begin() -> None:
            for index, servos in enumerate(self._servos):
                await servos.hold(_part(self._where(asked), index))
            self.motion.begin(self._where(asked), followers, self._clock.now_ns())

        self._called_off = False
        self._change(begin)

    def _where(self, asked: Callable[[int], Array | None]) -> Array:
        """Return the (14,) pose that they ask for; raise RigError if they must not move."""
        leaders = asked(self._clock.now_ns())
        if self._called_off or leaders is None:
            raise RigError("called off" if self._called_off else "a leader is silent")
        return leaders

    def stop(self) -> None:
        """Move them no further; they stay under torque."""
        self._called_off = True
        self.motion.stop("called off")

    def release(self) -> None:
        """Free them; a person has them in hand."""

        async def free() -> None:
            for servos in self._servos:
                await servos.free()
            self.motion.torque = Torque.OFF

        self._change(free)

    def tick(self, leaders: Array | None) -> None:
        """Send what is due, given the (14,) pose that they ask for; None while one is silent."""
        goal = self.motion.tick(leaders, self._clock.now_ns())
        if goal is None:
            return
        for index, servos in enumerate(self._servos):
            servos.send(_part(goal, index))

    def _change(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Ask the drivers in the background."""
        self.motion.torque, self.motion.problem = Torque.CHANGING, ""

        async def change() -> None:
            try:
                await ask()
            except RigError as error:
                # Some may be under torque: they are not free before all have said so.
                self.motion.torque, self.motion.problem = Torque.HOLDING, str(error)
                self._node.get_logger().error(f"leaders: {error}")
            self._report()

        assert self._node.executor is not None
        self._node.executor.create_task(change)


def _part(pose: Array, index: int) -> Array:
    """Return the (7,) entries of one arm."""
    return pose[index * ARM_DIM :][:ARM_DIM]
