"""Raw images as JPEG on their way into the bag, as the policy looked at them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.rig.images import as_jpeg
from cosmos_policy_ros.rig.jpeg import JPEG_BEGIN
from cosmos_policy_ros.rig.spec import RigSpec

ImageArray = NDArray[np.uint8] | bytes
"""(H, W, 3) RGB, or a whole JPEG file."""
SUFFIX = "/compressed"  # image_transport's
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


def is_jpeg(data: bytes) -> bool:
    """Return whether this is a JPEG file from its first to its last marker."""
    return data.startswith(JPEG_BEGIN) and data.rstrip(b"\0").endswith(b"\xff\xd9")


def jpeg_topic(topic: Topic) -> Topic:
    """Return the topic under which the JPEGs of an ``Image`` topic are recorded, or the topic."""
    if topic.msgtype != IMAGE:
        return topic
    return replace(topic, name=topic.name + SUFFIX, msgtype=COMPRESSED)


def rig_of_bag(rig: RigSpec, jpeg: bool) -> RigSpec:
    """Return the rig as a bag shows it: with compressed cameras where images became JPEG.

    What is left of raw cameras was recorded, and seen, as it came.
    """
    rig = rig.with_images("raw")
    if not jpeg:
        return rig
    cameras = tuple(
        replace(camera, topic=camera.topic + SUFFIX, transport="compressed")
        if camera.transport == "raw"
        else camera
        for camera in rig.cameras
    )
    return replace(rig, cameras=cameras)


def to_compressed(types: Typestore, cdr: bytes, quality: int) -> bytes:
    """Turn a serialised ``Image`` into a serialised ``CompressedImage`` with the same header.

    Raises:
        RolloutError: an unknown encoding, or sizes that do not fit.
    """
    try:
        message: Any = types.deserialize_cdr(cdr, IMAGE)
        jpeg = as_jpeg(message, "the camera", quality)
    except Exception as error:
        raise RolloutError(
            f"an image cannot become a JPEG: {str(error).rstrip('.')}; or record with images:=raw"
        ) from error
    compressed = types.types[COMPRESSED](
        header=message.header,
        format=jpeg.format,
        data=np.frombuffer(jpeg.data, np.uint8),
    )
    return bytes(types.serialize_cdr(compressed, COMPRESSED))
