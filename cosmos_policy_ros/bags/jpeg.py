"""Raw images as JPEG on their way into the bag: a tenth of the disk, no longer bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.rig.images import decode_image
from cosmos_policy_ros.rig.spec import GREY, RigSpec

ImageArray = NDArray[np.uint8] | bytes
"""(H, W, 3) RGB, or a whole JPEG file."""
JPEG_BEGIN = b"\xff\xd8"
SUFFIX = "/compressed"  # image_transport's
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JPEG_QUALITY = 95
FORMAT = "rgb8; jpeg compressed bgr8"  # as image_transport spells it


def is_jpeg(data: bytes) -> bool:
    """Return whether this is a JPEG file from its first to its last marker."""
    return data.startswith(JPEG_BEGIN) and data.rstrip(b"\0").endswith(b"\xff\xd9")


def jpeg_topic(topic: Topic) -> Topic:
    """Return the topic under which the JPEGs of an ``Image`` topic are recorded, or the topic."""
    if topic.msgtype != IMAGE:
        return topic
    return replace(topic, name=topic.name + SUFFIX, msgtype=COMPRESSED)


def rig_of_bag(rig: RigSpec, jpeg: bool) -> RigSpec:
    """Return the rig as a bag shows it: with compressed cameras where images became JPEG."""
    if not jpeg:
        return rig
    cameras = tuple(
        replace(camera, topic=camera.topic + SUFFIX, transport="compressed")
        if camera.transport == "raw"
        else camera
        for camera in rig.cameras
    )
    return replace(rig, cameras=cameras)


def to_jpeg(rgb: NDArray[np.uint8], quality: int = JPEG_QUALITY, *, grey: bool = False) -> bytes:
    """Return (H, W, 3) RGB as a JPEG file, of one channel if ``grey``; ``quality`` is 1 to 100."""
    pixels = rgb[..., 0] if grey else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return jpeg.tobytes()


def to_compressed(types: Typestore, cdr: bytes, quality: int) -> bytes:
    """Turn a serialised ``Image`` into a serialised ``CompressedImage`` with the same header.

    Raises:
        RolloutError: an unknown encoding, or sizes that do not fit.
    """
    try:
        message: Any = types.deserialize_cdr(cdr, IMAGE)
        grey = message.encoding == GREY  # and stays so, or it would be read as a colour image
        rgb = decode_image(message, "the camera", grey=grey)
    except Exception as error:
        raise RolloutError(
            f"an image cannot become a JPEG: {error}; or record with images:=raw"
        ) from error
    compressed = types.types[COMPRESSED](
        header=message.header,
        format=f"{GREY}; jpeg compressed " if grey else FORMAT,
        data=np.frombuffer(to_jpeg(rgb, quality, grey=grey), np.uint8),
    )
    return bytes(types.serialize_cdr(compressed, COMPRESSED))
