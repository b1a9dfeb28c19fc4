"""The rig's drivers as a thread: numbered images and joint states by the wall clock."""

from __future__ import annotations

import threading
import time
from array import array
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, JointState

from cosmos_policy_ros.nodes.shell import ns_to_stamp
from cosmos_policy_ros.rig.spec import RigSpec

PERIOD = 0.01  # s; one message of every arm
EVERY_IMAGE = 4  # periods
# Small: bigger ones would fill the recorder's chunks, which are written out when they are full, and
# what was to be seen is that nothing waits in an unfilled one.
WIDTH, HEIGHT = 32, 24  # px
DEPTH = 200  # as the recorder's: what is lost is to be the recorder's loss, not the queue's


@dataclass(frozen=True)
class Sent:
    """A message: its topic, its number there, and when it was sent, monotonic seconds."""

    topic: str
    number: int
    at: float


class NumberedRig:
    """Publishes until it is closed; the number of a message is its ``frame_id``."""

    def __init__(self, rig: RigSpec) -> None:
        self.sent: list[Sent] = []
        self._node = Node("numbered_rig")
        self._images = [
            self._driver(kind, topic)
            for camera in rig.cameras
            for kind, topic in ((Image, camera.topic), (CameraInfo, camera.info_topic))
        ]
        self._arms = [self._driver(JointState, a.joint_states) for a in rig.arms.values()]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="numbered rig", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._node.destroy_node()

    def between(self, start: float, end: float) -> list[Sent]:
        """Return what was sent from one moment to another."""
        return [message for message in tuple(self.sent) if start <= message.at < end]

    def _driver(self, kind: Any, topic: str) -> tuple[Any, Any]:
        message = kind()
        if kind is Image:
            message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH)
            message.data = array("B", bytes(HEIGHT * WIDTH * 3))
        elif kind is JointState:
            message.position = array("d", bytes(8 * 9))
        return self._node.create_publisher(kind, topic, DEPTH), message

    def _run(self) -> None:
        number, due = 0, time.monotonic()
        while not self._ending.is_set():
            for driver in self._arms:
                self._send(driver, number)
            if number % EVERY_IMAGE == 0:
                for driver in self._images:
                    self._send(driver, number // EVERY_IMAGE)
            number += 1
            # A rig that was kept waiting goes on from now, as a sensor does.
            due = max(due + PERIOD, time.monotonic() - PERIOD)
            time.sleep(max(0.0, due - time.monotonic()))

    def _send(self, driver: tuple[Any, Any], number: int) -> None:
        publisher, message = driver
        message.header.stamp = ns_to_stamp(time.time_ns())
        message.header.frame_id = str(number)
        self.sent.append(Sent(publisher.topic_name, number, time.monotonic()))
        publisher.publish(message)
