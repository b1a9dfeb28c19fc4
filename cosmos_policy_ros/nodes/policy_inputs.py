"""The policy node's subscriptions: messages are kept as they are until a query needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image, JointState

from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.rig.clock import MotionClock
from cosmos_policy_ros.rig.sources import Sources
from cosmos_policy_ros.rig.spec import Camera, RigSpec

# Reliable, since without the shipped Fast DDS profile a best-effort reader of large images loses
# most of them; five deep, since a reader of one loses up to half without the profile.
CAMERA_QOS = QoSProfile(depth=5)
JOINT_STATE_QOS = QoSProfile(depth=10)


class PolicyInputs:
    """Feeds ``sources`` from the cameras and arms of a rig.

    Attributes:
        sources: the newest of everything.
        on_joint_state: called with the arm after each of its joint states, a rejected one too;
            does nothing until set.
        subscriptions: of cameras and arms.
    """

    def __init__(self, node: Node, rig: RigSpec, clock: MotionClock) -> None:
        """Subscribe; QoS can be overridden per topic by ``qos_overrides`` parameters.

        Args:
            node: which subscribes.
            rig: its cameras and arms.
            clock: by which ages are measured.
        """
        self.sources, self._clock = Sources(rig), clock
        self.on_joint_state: Callable[[str], None] = lambda arm: None
        self._node = node
        self.subscriptions = [self._camera(camera) for camera in rig.cameras]
        self.subscriptions += [
            self._subscribe(JointState, arm.joint_states, self._keep_joints(side), JOINT_STATE_QOS)
            for side, arm in rig.arms.items()
        ]

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in self.subscriptions:
            self._node.destroy_subscription(subscription)

    def _subscribe(
        self, kind: Any, topic: str, keep: Callable[[Any], None], qos: QoSProfile
    ) -> Any:
        options = QoSOverridingOptions.with_default_policies()
        return self._node.create_subscription(
            kind, topic, keep, qos, qos_overriding_options=options
        )

    def _camera(self, camera: Camera) -> Any:
        def keep(message: Any) -> None:
            stamp_ns = shell.stamp_to_ns(message.header.stamp)
            self.sources.add_image(camera.role, message, stamp_ns, self._clock.receipt(stamp_ns))

        kind = Image if camera.transport == "raw" else CompressedImage
        return self._subscribe(kind, camera.topic, keep, CAMERA_QOS)

    def _keep_joints(self, side: str) -> Callable[[Any], None]:
        def keep(message: Any) -> None:
            stamp_ns = shell.stamp_to_ns(message.header.stamp)
            receipt = self._clock.receipt(stamp_ns)
            self.sources.add_joint_state(side, message.name, message.position, stamp_ns, receipt)
            self.on_joint_state(side)

        return keep
