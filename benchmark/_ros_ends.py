"""The processes at both ends of the wire, for the benchmarks that start them; not run by hand.

``feed`` stands for the rig: three cameras and two joint states, as separate as a driver is. The
others read what it sends. Each answers a line on its standard input with one line of JSON (counts,
its own CPU time, the wall clock) and ends when the input closes, so none outlives the benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 640, 480  # px; what an ALOHA's cameras send
SIZE = 224  # px; what the released checkpoints take
CAMERA_HZ, JOINT_HZ = 30.0, 100.0
IMAGES = 4  # different ones per camera, so that none looks frozen

READERS = ("numbers", "empty", "convert", "prepare", "ours", "recorder", "plain")
Counts = dict[str, int]


def answer_samples(sample: Callable[[], dict[str, Any]]) -> None:
    """Serve standard input from a thread; when it ends, interrupt this process."""

    def serve() -> None:
        try:
            for _ in sys.stdin:
                times = {"cpu": time.process_time(), "wall": time.monotonic()}
                print(json.dumps({**times, **sample()}), flush=True)
        finally:  # a sample that fails, too: who asked would wait for ever
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=serve, daemon=True).start()


class Feed:
    """Publishes what a rig publishes, at a rig's rates, until told to stop.

    Cameras go out in one burst, the worst case for a receiver's queue.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from rclpy.node import Node
        from sensor_msgs.msg import CompressedImage, Image, JointState

        from cosmos_policy_ros.bags.jpeg import SUFFIX
        from cosmos_policy_ros.core.paths import config_folder
        from cosmos_policy_ros.nodes import shell
        from cosmos_policy_ros.rig.spec import load_rig

        rig = load_rig("sim", config_folder("rigs"))
        self._stamp: Callable[[int], Any] = shell.ns_to_stamp
        self.counts: Counts = {camera.role: 0 for camera in rig.cameras}
        self.done = False
        self._frames = options.frames
        self._left_to_warm = options.warmup if options.frames else 0
        node = self._node = Node("feed")
        image_qos = qos(options.reliability, options.depth)
        kind, suffix = (CompressedImage, SUFFIX) if options.compressed else (Image, "")
        self._cameras: dict[str, tuple[Any, list[Any]]] = {
            c.role: (
                node.create_publisher(kind, c.topic + suffix, image_qos),
                pictures(c.role, options.compressed, options.smooth),
            )
            for c in rig.cameras
        }
        self._arms = [
            (node.create_publisher(JointState, arm.joint_states, 10), joint_state(arm))
            for _, arm in rig.arms.items()
        ]

    def run(self) -> None:
        """Publish on an absolute schedule; a late message is sent at once, none is left out."""
        while self._frames and not all(p.get_subscription_count() for p, _ in self._publishers()):
            time.sleep(0.05)
        start = time.monotonic()
        joints = images = 0
        while not self.done:
            due = min(joints / JOINT_HZ, images / CAMERA_HZ) + start
            time.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic() - start
            if now >= joints / JOINT_HZ:
                joints += 1
                self._publish_joints()
            if now >= images / CAMERA_HZ:
                images += 1
                self._publish_images()
        threading.Event().wait()

    def sample(self) -> dict[str, Any]:
        """Return the frames sent and whether all are."""
        return {"counts": dict(self.counts), "done": self.done}

    def _publishers(self) -> list[Any]:
        return [*self._cameras.values(), *self._arms]

    def _publish_joints(self) -> None:
        for publisher, message in self._arms:
            message.header.stamp = self._stamp(time.time_ns())
            publisher.publish(message)

    def _publish_images(self) -> None:
        warming = self._left_to_warm > 0
        self._left_to_warm -= warming
        stamp = self._stamp(time.time_ns())
        for role, (publisher, messages) in self._cameras.items():
            message = messages[self.counts[role] % IMAGES]
            message.header.stamp = stamp
            message.header.frame_id = "" if warming else str(self.counts[role])
            self.counts[role] += not warming
            publisher.publish(message)
        self.done = 0 < self._frames <= min(self.counts.values())


def qos(reliability: str, depth: int) -> Any:
    from rclpy.qos import QoSProfile, ReliabilityPolicy

    return QoSProfile(depth=depth, reliability=ReliabilityPolicy[reliability.upper()])


def pictures(role: str, compressed: bool, smooth: bool) -> list[Any]:
    """Return images as filled messages, so that the feed itself costs little.

    Noise is the worst that JPEG can be given; ``smooth`` ones are as large as those of a room.
    """
    import cv2
    import numpy as np
    from sensor_msgs.msg import CompressedImage, Image

    from cosmos_policy_ros.rig.images import as_jpeg

    rng = np.random.default_rng(len(role))
    messages = []
    for _ in range(IMAGES):
        message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH)
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        if smooth:
            coarse = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
            pixels = cv2.resize(coarse, (WIDTH, HEIGHT)) // 16 * 15 + pixels // 16
        message.data = array("B", pixels.tobytes())
        if compressed:
            jpeg = as_jpeg(message, role, 95)
            message = CompressedImage(format=jpeg.format, data=array("B", jpeg.data))
        messages.append(message)
    return messages


def joint_state(arm: Any) -> Any:
    """Return what the driver of an arm in its start pose, gripper closed, reports."""
    from sensor_msgs.msg import JointState

    gripper = arm.gripper
    finger = gripper.state_closed
    message = JointState(name=[*arm.joints, gripper.joint, gripper.finger_joint, "right_finger"])
    message.position = array("d", [*arm.start, gripper.command_closed, finger, -finger])
    message.velocity = array("d", bytes(8 * len(message.name)))
    message.effort = array("d", bytes(8 * len(message.name)))
    return message


def converter(role: str) -> Callable[[Any], Any] | None:
    """Return what a reader does to every RGB array, None for nothing. One thread each."""
    if role == "convert":
        import cv2

        cv2.setNumThreads(1)
        return lambda image: cv2.resize(image, (SIZE, SIZE))
    if role == "prepare":
        import torch

        from cosmos_policy_ros.model.images import centre_crop, reduce

        torch.set_num_threads(1)
        return lambda image: centre_crop(reduce(image, SIZE))
    return None


def make_reader(options: argparse.Namespace) -> tuple[Any, Counts]:
    """Return a node with the policy node's subscriptions and what it counts.

    ``empty`` only counts. ``convert`` also makes a 224x224 RGB image of every frame in the
    cheapest way, ``prepare`` in the way that the checkpoints need. ``numbers`` counts the numbered
    frames, under the QoS that is being tried.
    """
    from rclpy.node import Node
    from sensor_msgs.msg import Image, JointState

    from cosmos_policy_ros.core.paths import config_folder
    from cosmos_policy_ros.rig.images import decode_image
    from cosmos_policy_ros.rig.spec import load_rig

    class Reader(Node):
        def close(self) -> None:
            """Nothing to end; the package's main calls it."""

    rig = load_rig("sim", config_folder("rigs"))
    node, counts = Reader(options.role), Counts()
    image_qos = qos(options.reliability, options.depth)
    convert = converter(options.role)

    def subscribe(kind: Any, topic: str, name: str, profile: Any) -> None:
        counts[name] = 0

        def callback(message: Any) -> None:
            if options.role == "numbers" and kind is Image:
                counts[name] += message.header.frame_id != ""
                return
            counts[name] += 1
            if convert is not None and kind is Image:
                convert(decode_image(message, topic))

        node.create_subscription(kind, topic, callback, profile)

    for camera in rig.cameras:
        subscribe(Image, camera.topic, camera.role, image_qos)
    for side, arm in rig.arms.items():
        subscribe(JointState, arm.joint_states, f"{side}/joint_states", 10)
    return node, counts


def make_policy() -> Any:
    """Return the real policy node, disarmed."""
    from cosmos_policy_ros.nodes import shell
    from cosmos_policy_ros.nodes.policy_node import PolicyNode

    node = PolicyNode()
    shell.bring_up(node)
    return node


def make_plain_recorder(folder: Path) -> tuple[Any, Counts]:
    """Return a node that does what a first draft would: rosbags' writer in every callback."""
    from rclpy.node import Node
    from rosbags.rosbag2 import StoragePlugin, Writer
    from sensor_msgs.msg import Image, JointState

    from cosmos_policy_ros.bags.types import load_types
    from cosmos_policy_ros.core.paths import config_folder, package_share
    from cosmos_policy_ros.nodes.recorder_node import QUEUE_DEPTH
    from cosmos_policy_ros.rig.spec import load_rig

    writer = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
    writer.open()
    types = load_types(package_share() / "msg")

    class Plain(Node):
        def close(self) -> None:
            """Finish the bag."""
            writer.close()

    node, counts = Plain("plain"), Counts()

    def subscribe(kind: Any, topic: str) -> None:
        msgtype = f"sensor_msgs/msg/{kind.__name__}"
        connection = writer.add_connection(f"/{topic}", msgtype, typestore=types)
        counts[topic] = 0

        def keep(message: bytes) -> None:
            writer.write(connection, time.time_ns(), message)
            counts[topic] += 1

        node.create_subscription(kind, topic, keep, QUEUE_DEPTH, raw=True)

    rig = load_rig("sim", config_folder("rigs"))
    for camera in rig.cameras:
        subscribe(Image, camera.topic)
    for arm in rig.arms.values():
        subscribe(JointState, arm.joint_states)
    return node, counts


def make_recorder() -> Any:
    """Return the real recorder node; its parameters come with the command line."""
    from cosmos_policy_ros.nodes import shell
    from cosmos_policy_ros.nodes.recorder_node import RecorderNode

    return shell.bring_up(RecorderNode())


def run_feed(options: argparse.Namespace) -> None:
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" had it ignored
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    feed = Feed(options)
    answer_samples(feed.sample)
    with contextlib.suppress(KeyboardInterrupt):
        feed.run()
    rclpy.shutdown()


def run_reader(options: argparse.Namespace) -> None:
    """Spin like the package's nodes do: with their own main."""
    from cosmos_policy_ros.nodes import shell

    def make_node() -> Any:
        if options.role == "ours":
            node = make_policy()
            answer_samples(
                lambda: {
                    "counts": node._inputs.sources.counts(),
                    "loading": node._inference.status == "starting",
                }
            )
        elif options.role == "recorder":
            node = make_recorder()
            answer_samples(lambda: {"counts": {}})
        elif options.role == "plain":
            node, counts = make_plain_recorder(options.folder)
            answer_samples(lambda: {"counts": dict(counts)})
        else:
            node, counts = make_reader(options)
            answer_samples(lambda: {"counts": dict(counts)})
        return node

    shell.main(make_node)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["feed", *READERS])
    parser.add_argument("--reliability", default="reliable")
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--frames", type=int, default=0, help="per camera; 0: no end")
    parser.add_argument("--warmup", type=int, default=0, help="frames before the counted ones")
    parser.add_argument("--folder", type=Path, help="bag of the plain recorder")
    parser.add_argument("--compressed", action="store_true", help="cameras send JPEG, as a driver")
    parser.add_argument("--smooth", action="store_true", help="images as of a room, not noise")
    options, _ = parser.parse_known_args()
    if options.role == "feed":
        run_feed(options)
    else:
        run_reader(options)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
