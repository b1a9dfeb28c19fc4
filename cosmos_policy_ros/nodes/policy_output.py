"""What the policy node says to the arms, and what it tells of why."""

from __future__ import annotations

from collections.abc import Mapping

from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions
from trajectory_msgs.msg import JointTrajectory

from cosmos_policy_ros.msg import Decision as DecisionMsg
from cosmos_policy_ros.msg import Verdict as VerdictMsg
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.convert import (
    TrajectoryMessages,
    decision_to_message,
    verdict_to_message,
)
from cosmos_policy_ros.nodes.policy_keeper import KeeperWatch
from cosmos_policy_ros.rig.boundary import Boundary
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.decision import Decision, Query
from cosmos_policy_ros.rig.gate import Verdict
from cosmos_policy_ros.rig.run import LATE
from cosmos_policy_ros.rig.spec import RigSpec


class PolicyOutput:
    """The only place where trajectories leave the node.

    Attributes:
        armed: without it nothing is sent to an arm.
    """

    def __init__(
        self, node: LifecycleNode, rig: RigSpec, keeper: KeeperWatch, *, dry: bool
    ) -> None:
        """Open the topics; those of the arms, or in a dry run ``~/preview/<output>`` instead."""
        self._node, self._rig, self._keeper = node, rig, keeper
        self._messages = TrajectoryMessages(rig)
        self.armed = False
        options = QoSOverridingOptions.with_default_policies()
        self._trajectories = [
            node.create_lifecycle_publisher(
                JointTrajectory,
                f"~/preview/{output.name}" if dry else output.topic,
                10,
                qos_overriding_options=options,
            )
            for output in rig.outputs
        ]
        quiet = shell.NO_PUBLISHER_EVENTS
        self._decisions = node.create_lifecycle_publisher(
            DecisionMsg, "~/decision", 10, event_callbacks=quiet
        )
        self._verdicts = node.create_lifecycle_publisher(
            VerdictMsg, "~/verdict", 10, event_callbacks=quiet
        )

    def close(self) -> None:
        """Close the topics."""
        for publisher in [*self._trajectories, self._decisions, self._verdicts]:
            self._node.destroy_publisher(publisher)

    def move(self, chunk: TimedChunk) -> None:
        """Send a chunk that the gate has passed, or a brake along such a chunk's path."""
        if not self.armed:  # the last line of defence; disarming has already stopped what moved
            self._node.get_logger().error(f"chunk {chunk.chunk_id} withheld: the arms are disarmed")
            return
        if held := self._keeper.held():
            self._node.get_logger().error(f"chunk {chunk.chunk_id} withheld: {held}")
            return
        messages = self._messages.fill(chunk)
        for publisher, message in zip(self._trajectories, messages, strict=True):
            publisher.publish(message)

    def decided(
        self,
        decision: Decision,
        query: Query,
        run_id: str,
        chunk_id: str,
        phases: Mapping[str, float],
    ) -> None:
        """Tell what was decided."""
        self._decisions.publish(decision_to_message(decision, query, run_id, chunk_id, phases))

    def judged(
        self, verdict: Verdict, boundary: Boundary | None, chunk_id: str, now_ns: int
    ) -> None:
        """Tell what the gate said of it, and how it meets the path before it."""
        message = verdict_to_message(verdict, boundary, chunk_id, now_ns, self._rig)
        self._verdicts.publish(message)
        if verdict.rule == LATE:
            self._node.get_logger().warning(f"chunk {chunk_id}: {verdict.message}")
        elif not verdict.accepted:
            self._node.get_logger().error(f"chunk {chunk_id} refused: {verdict.message}")
        elif boundary is not None:
            self._node.get_logger().info(f"chunk {chunk_id}: {boundary}")
