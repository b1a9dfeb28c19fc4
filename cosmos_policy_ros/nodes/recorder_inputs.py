"""The recorder's subscriptions: serialised bytes of everything an episode consists of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSDurabilityPolicy, QoSProfile, qos_check_compatible
from rclpy.qos_overriding_options import QoSOverridingOptions

from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.rollouts.mcap_file import Topic
from cosmos_policy_ros.rollouts.preflight import Traffic

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

# Deep enough for two seconds of a 100 Hz topic while the disk hesitates.
QUEUE_DEPTH = 200

Keep = Callable[[str, int, bytes], None]
Lost = Callable[[str, int], None]


class RecorderInputs:
    """Hands over every message as it came; nothing is decoded or encoded again on its way.

    Attributes:
        traffic: what came lately, whether it was recorded or not.
    """

    def __init__(
        self,
        node: Node,
        topics: Sequence[Topic],
        sensors: Iterable[str],
        clock: Callable[[], int],
        keep: Keep,
        lost: Lost,
    ) -> None:
        """Subscribe.

        Args:
            node: whose executor brings the messages.
            topics: absolute names.
            sensors: those of them whose messages begin with a header that is looked at.
            clock: nanoseconds now, the stamp of a receipt.
            keep: takes topic, stamp and message.
            lost: takes a topic and how many of its messages the middleware lost.
        """
        self.traffic = Traffic()
        self._node, self._clock, self._keep, self._lost = node, clock, keep, lost
        self._sensors = frozenset(sensors)
        self._subscriptions = {topic.name: self._subscribe(topic) for topic in topics}

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)

    def take_all_waiting(self) -> None:
        """Hand over what was sent before the end was asked for: a service call overtakes it."""
        for topic in self._subscriptions:
            self._take_waiting(topic)

    def missing(self) -> tuple[str, ...]:
        """Return the sensors that nobody publishes."""
        return tuple(t for t in sorted(self._sensors) if not self._node.count_publishers(t))

    def incompatible(self) -> tuple[str, ...]:
        """Return what a publisher offers that this recorder cannot take, for people."""
        found = []
        for topic in sorted(self._sensors):
            asked = self._subscriptions[topic].qos_profile
            for publisher in self._node.get_publishers_info_by_topic(topic):
                verdict, reason = qos_check_compatible(publisher.qos_profile, asked)
                if verdict == QoSCompatibility.ERROR:
                    found.append(
                        f"{topic} from {publisher.node_name} does not reach the recorder "
                        f"({reason.strip()}): set qos_overrides in its parameter file"
                    )
        return tuple(found)

    def _subscribe(self, topic: Topic) -> Any:
        package, _, name = topic.msgtype.split("/")
        qos = QoSProfile(depth=QUEUE_DEPTH)
        if topic.msgtype.endswith(("/PolicyState", "/RigState")):
            qos.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL

        def receive(message: bytes) -> None:
            self._receive(topic.name, message)
            # An executor hands over one message per topic and turn, too few for a busy machine.
            self._take_waiting(topic.name)

        def lose(event: Any) -> None:
            self._lost(topic.name, event.total_count_change)

        return self._node.create_subscription(
            getattr(import_module(f"{package}.msg"), name),
            topic.name,
            receive,
            qos,
            raw=True,
            event_callbacks=SubscriptionEventCallbacks(
                message_lost=lose, use_default_callbacks=False
            ),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def _receive(self, topic: str, message: bytes) -> None:
        now_ns = self._clock()
        self.traffic.add(topic, now_ns, message, stamped=topic in self._sensors)
        self._keep(topic, now_ns, message)

    def _take_waiting(self, topic: str) -> None:
        """Hand over what has come on a topic and waits its turn."""
        for _ in range(QUEUE_DEPTH):
            message = shell.take(self._subscriptions[topic])
            if message is None:
                return
            self._receive(topic, message)
