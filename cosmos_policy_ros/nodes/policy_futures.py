"""What the policy imagines, shown: one picture per camera and decision on ``~/future/<camera>``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future as Answer
from typing import Any

from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image

from cosmos_policy_ros.errors import WorkerError
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.convert import picture_to_message
from cosmos_policy_ros.planning.tasks import Depict, Pictures
from cosmos_policy_ros.planning.workers import Inference
from cosmos_policy_ros.rig.decision import Decision, Query
from cosmos_policy_ros.rig.spec import RigSpec


class PolicyFutures:
    """Has imagined futures decoded while the arms move, and publishes the pictures.

    They are for people's eyes: nothing waits for them, and nothing rests on them.
    """

    def __init__(
        self, node: LifecycleNode, rig: RigSpec, inference: Inference, wake: Callable[[], None]
    ) -> None:
        """Open the topics; ``wake`` is called from a thread when :meth:`publish` has work."""
        self._node, self._inference, self._wake = node, inference, wake
        self._decoded: deque[tuple[int, str, Pictures]] = deque()
        self._publishers: dict[str, Any] = {
            camera.role: node.create_lifecycle_publisher(
                Image, f"~/future/{camera.role}", 10, event_callbacks=shell.NO_PUBLISHER_EVENTS
            )
            for camera in rig.cameras
        }

    def close(self) -> None:
        """Close the topics."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)

    def ask(self, query: Query, decision: Decision, chunk_id: str) -> None:
        """Have a decision's future decoded, if it imagined one."""
        if decision.imagined is None:
            return

        def done(answer: Answer[Pictures]) -> None:
            error = answer.exception()
            if error is None:
                self._decoded.append((query.observation.stamp_ns, chunk_id, answer.result()))
                self._wake()
            elif not isinstance(error, WorkerError):  # what befell a process is told elsewhere
                self._node.get_logger().warning(f"no imagined pictures of {chunk_id}: {error}")

        self._inference.submit(Depict(query, decision.imagined)).add_done_callback(done)

    def publish(self) -> None:
        """Publish what has been decoded; called in the executor's thread."""
        while self._decoded:
            stamp_ns, chunk_id, pictures = self._decoded.popleft()
            for role, publisher in self._publishers.items():
                if role in pictures:
                    publisher.publish(picture_to_message(pictures[role], stamp_ns, chunk_id))
