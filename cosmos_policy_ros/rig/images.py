"""Camera messages into RGB arrays, only when a query needs them.

Works on any object with the fields of ``sensor_msgs/Image`` or ``CompressedImage``: a message
that rclpy delivered and one that was read back from a bag give the same bytes.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.errors import ObservationError

CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
_TO_RGB = {
    "bgr8": cv2.COLOR_BGR2RGB,
    "rgba8": cv2.COLOR_RGBA2RGB,
    "bgra8": cv2.COLOR_BGRA2RGB,
    "mono8": cv2.COLOR_GRAY2RGB,
}


def decode_image(message: Any, source: str) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 RGB. ``rgb8`` without row padding is a view, not a copy.

    Args:
        message: an Image (``encoding``, ``height``, ``width``, ``step``, ``data``) or a
            CompressedImage (``format``, ``data``).
        source: topic, for messages.

    Raises:
        ObservationError: truncated data, unreadable JPEG/PNG, or an encoding that needs cv_bridge
            where cv_bridge is not installed.
    """
    if hasattr(message, "format"):
        return _decompress(message, source)
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        return _through_cv_bridge(message, source)
    height, width, step = int(message.height), int(message.width), int(message.step)
    data = np.frombuffer(message.data, np.uint8)
    if height < 1 or width < 1 or step < width * channels or data.size < height * step:
        raise ObservationError(
            f"{source}: image of {height}x{width} {message.encoding} with rows of {step} bytes "
            f"carries {data.size} bytes, expected {height * max(step, width * channels)}; "
            "mend the camera driver"
        )
    rows = data[: height * step].reshape(height, step)[:, : width * channels]
    image: NDArray[np.uint8] = rows.reshape(height, width, channels)
    if message.encoding == "rgb8":
        return image
    return cv2.cvtColor(image, _TO_RGB[message.encoding])  # type: ignore[return-value]


def _decompress(message: Any, source: str) -> NDArray[np.uint8]:
    data = np.frombuffer(message.data, np.uint8)
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if bgr is None:
        raise ObservationError(
            f"{source}: {data.size} bytes of '{message.format}' are no readable picture; "
            "use JPEG or PNG transport"
        )
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def _through_cv_bridge(message: Any, source: str) -> NDArray[np.uint8]:
    try:
        from cv_bridge import CvBridge  # type: ignore[import-not-found]
    except ImportError:
        raise ObservationError(
            f"{source}: encoding '{message.encoding}' needs cv_bridge, which is not installed; "
            f"set the camera to one of {', '.join(CHANNELS)} or install ros-<distro>-cv-bridge"
        ) from None
    return np.asarray(CvBridge().imgmsg_to_cv2(message, "rgb8"), np.uint8)
