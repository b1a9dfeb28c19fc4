"""Pins that what real publishers send, recorded as it comes over the wire, can be imported.

Only a middleware puts its own words before and behind a message's bytes; a bag that a test writes
has none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from helpers.episodes import RIG, START_NS, noise
from helpers.foreign_bags import Made, Message, foreign_types, write_bag
from helpers.foreign_episode import Take, rig_file, teleoperated, told, windows_of
from helpers.waiting import wait_for
from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rosbags.typesys.store import Typestore
from sensor_msgs.msg import Image, JointState

from cosmos_policy_ros.episodes.store import EpisodeStore

STEPS = 30
STEP_NS = 40_000_000


class Recorder:
    """Publishes, waits for each message to come back over the wire, and keeps its bytes."""

    def __init__(self, node: Node) -> None:
        self.node, self.messages, self.now_ns = node, list[Message](), START_NS
        self._publishers: dict[str, Any] = {}

    def __call__(self, topic: str, message: Any) -> None:
        """Publish and record; what begins with a header is stamped."""
        kind = type(message)
        msgtype = f"{kind.__module__.partition('.')[0]}/msg/{kind.__name__}"
        if topic not in self._publishers:
            qos = QoSProfile(depth=10)
            self._publishers[topic] = self.node.create_publisher(kind, topic, qos)

            def keep(cdr: bytes) -> None:
                self.messages.append(Message(topic, msgtype, self.now_ns, bytes(cdr)))

            self.node.create_subscription(kind, topic, keep, qos, raw=True)
            wait_for(
                lambda: self._publishers[topic].get_subscription_count(), f"{topic} on the wire"
            )
        if hasattr(message, "header"):
            stamp = message.header.stamp
            stamp.sec, stamp.nanosec = divmod(self.now_ns, 10**9)
        count = len(self.messages)
        self._publishers[topic].publish(message)

        def came() -> bool:
            rclpy.spin_once(self.node, timeout_sec=0.1)
            return len(self.messages) > count

        wait_for(came, f"a message on {topic}")


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    node = Node("others_recorder")
    yield Recorder(node)
    node.destroy_node()


@pytest.mark.parametrize("form", ["mcap", "sqlite3 without definitions"])
def test_what_comes_over_the_wire_is_imported(
    tmp_path: Path, store: EpisodeStore, types: Typestore, recorder: Recorder, form: str
) -> None:
    rig = teleoperated()
    for step in range(STEPS):
        recorder.now_ns = START_NS + step * STEP_NS
        goal = told(step * 40)
        for index, arm in enumerate(rig.arms.values()):
            names = [*arm.names, arm.gripper.finger_joint]
            position = [*goal[index * 7 : index * 7 + 7], 0.026 + step / 2000]
            recorder(f"/{arm.joint_states}", JointState(name=names, position=position))
        for camera in RIG.cameras:
            pixels = noise(camera.role, step)
            image = Image(height=8, width=8, encoding="rgb8", step=24, data=pixels.tobytes())
            recorder(f"/{camera.topic}", image)
        for index, arm in enumerate(rig.arms.values()):
            sent = arm.command(goal[None, index * 7 : index * 7 + 7])[0]
            driver = arm.driver
            assert driver is not None
            group = JointGroupCommand(name="arm", cmd=sent[:6].tolist())
            recorder(f"/{driver.joint_group}", group)
            recorder(f"/{driver.joint_single}", JointSingleCommand(name="gripper", cmd=sent[6]))
    take = Take(store, Made(foreign_types(types)), tmp_path)
    path = write_bag(tmp_path / "run", recorder.messages, take.make.types, form)
    done = take.bag(path, rig=rig_file(tmp_path / "rigs", rig))
    assert done.quality.go, done.quality.text
    windows = windows_of(done)
    # Seen at a step, and told at its end.
    wanted = np.stack([told(step * 40) for step in range(1, STEPS)])
    np.testing.assert_allclose(windows.steps.actions, wanted, atol=1e-6)
    for step in range(STEPS - 1):
        seen = windows.observe(int(windows.steps.times_ns[step]))
        np.testing.assert_allclose(seen.state[:6], told(step * 40)[:6])
        assert np.array_equal(seen.images["primary"], noise("primary", step))
