"""The policy node's ear for the arm streamer, where the rig has one."""

from __future__ import annotations

import time

from rclpy.node import Node

from cosmos_policy_ros.msg import StreamerState
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.rig.spec import RigSpec


class StreamerWatch:
    """Knows whether what is published reaches the arms.

    Attributes:
        node_name: of the streamer.
    """

    def __init__(self, node: Node, rig: RigSpec, topic: str, *, dry: bool) -> None:
        """Listen, if trajectories are streamed; else, or in a dry run, nothing is to be known."""
        self._node, self._topic = node, topic
        self.node_name = topic.rsplit("/", 2)[-2]
        self._patience = rig.stream.heartbeat_timeout
        self._heard: float | None = None
        self._reason = ""
        self._subscription = None
        if rig.sink == "interbotix" and not dry:
            self._subscription = node.create_subscription(
                StreamerState, topic, self._hear, shell.LATCHED
            )

    def close(self) -> None:
        """Listen no more."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)

    @property
    def needed(self) -> bool:
        """Whether trajectories are streamed at all."""
        return self._subscription is not None

    def silence(self) -> str:
        """Return since when the streamer has not been heard of, empty if it has."""
        if not self.needed:
            return ""
        if self._heard is None:
            return f"the arm streamer has not been heard of on {self._topic}: is it running?"
        age = time.monotonic() - self._heard
        if age > self._patience:
            return f"the arm streamer was last heard of {age:.2f} s ago; start it again"
        return ""

    def complaint(self) -> str:
        """Return why the arms would not follow, empty if they would."""
        held = f"the arm streamer holds the arms: {self._reason}" if self._reason else ""
        return self.silence() or held

    def _hear(self, message: StreamerState) -> None:
        self._heard, self._reason = time.monotonic(), message.reason
