"""The newest images for the operator's page: of the cameras, and of the imagined futures.

Nothing is looked at or encoded while no browser shows it; the middleware receives it all the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.episodes.topics import future_topic
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.panel.server import Picture
from cosmos_policy_ros.rig.images import decode_image
from cosmos_policy_ros.rig.jpeg import JPEG_BEGIN, to_jpeg
from cosmos_policy_ros.rig.observation import fingerprint
from cosmos_policy_ros.rig.spec import Camera, RigSpec

SHOWN_QUALITY = 80  # of a JPEG for the eye alone
# s since an image that differed from the one before: as many as a good camera's may have, and when
# the operator is to look at the cable.
LATE, STALE = 0.2, 0.5
DEPTH = 2  # messages: only the newest is shown
# A page may lose an image, and a slow one must not have a camera's driver send anything again.
QOS = QoSProfile(depth=DEPTH, reliability=QoSReliabilityPolicy.BEST_EFFORT)


class PanelCameras:
    """Reads the rig's cameras on demand. Used by the server's thread, but for the constructor."""

    def __init__(self, node: Node, rig: RigSpec) -> None:
        """Subscribe, waking no executor; QoS can be overridden per topic."""
        self._sources = {camera.role: _CameraSource(node, camera, rig) for camera in rig.cameras}
        self._futures = {
            f"imagined/{camera.role}": _FutureSource(node, camera.role) for camera in rig.cameras
        }

    def look(self, *, imagined: bool = True) -> Mapping[str, Picture]:
        """Return the newest image of every source that has sent one, with or without futures."""
        found: dict[str, Picture] = {}
        for name, source in (self._sources | (self._futures if imagined else {})).items():
            if (picture := source.look()) is not None:
                found[name] = picture
        return found


class _Source:
    """One topic, of which only the newest message is looked at."""

    def __init__(self, node: Node, kind: Any, topic: str) -> None:
        self.topic, self._kind = topic, kind
        self._number, self._jpeg, self._note = 0, b"", ""
        self._subscription = node.create_subscription(
            kind,
            topic,
            lambda _: None,
            QOS,
            callback_group=shell.OnDemand(),
            raw=True,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def newest(self) -> Any:
        """Return the newest message that has come since the last call, None if there is none."""
        data = None
        for _ in range(2 * DEPTH):
            if (taken := shell.take(self._subscription)) is None:
                break
            data = taken
        return None if data is None else deserialize_message(data, self._kind)

    def show(self, message: Any, *, grey: bool = False) -> None:
        """Keep a message as JPEG; one that is not readable says so instead."""
        try:
            if hasattr(message, "format") and bytes(message.data[:2]) == JPEG_BEGIN:
                self._jpeg = bytes(message.data)
            else:
                image = decode_image(message, self.topic, grey=grey)
                self._jpeg = to_jpeg(image, SHOWN_QUALITY)
            self._note = ""
            self._number += 1
        except ObservationError as error:
            self._note = str(error)


class _CameraSource(_Source):
    """A camera, and since when its image has been the same."""

    def __init__(self, node: Node, camera: Camera, rig: RigSpec) -> None:
        raw = camera.transport == "raw"
        super().__init__(node, Image if raw else CompressedImage, camera.topic)
        self._grey, self._watch_frozen = camera.grey, rig.observation.frozen_after > 0
        self._fingerprint: int | None = None
        self._changed = 0.0  # monotonic s

    def look(self) -> Picture | None:
        message, now = self.newest(), time.monotonic()
        if message is not None:
            seen = fingerprint(message)
            if seen != self._fingerprint or not self._watch_frozen:
                self._fingerprint = seen
                self._changed = now
                self.show(message, grey=self._grey)
        if not self._number and not self._note:
            return None
        age = now - self._changed
        freshness = "fresh" if age < LATE else "late" if age < STALE else "stale"
        note = {"age": round(age, 2), "freshness": freshness, "problem": self._note}
        return Picture(self._number, self._jpeg, note)


class _FutureSource(_Source):
    """What the policy imagines of a camera at the end of the chunk under way."""

    def __init__(self, node: Node, role: str) -> None:
        super().__init__(node, Image, future_topic(role))
        self._chunk = ""

    def look(self) -> Picture | None:
        if (message := self.newest()) is not None:
            self.show(message)
            self._chunk = message.header.frame_id.rpartition("/")[2]
        if not self._number:
            return None
        return Picture(self._number, self._jpeg, {"chunk": self._chunk, "problem": self._note})
