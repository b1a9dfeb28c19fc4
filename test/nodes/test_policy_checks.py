"""Who listens and who speaks on the topics that move the arms, asked of the real wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import rclpy
from helpers.waiting import wait_for
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.topics import POLICY_NODE, RECORDER_NODE
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.policy_reports import PolicyChecks
from cosmos_policy_ros.rig.observation import SensorBuffer
from cosmos_policy_ros.rig.self_check import Check
from cosmos_policy_ros.rig.spec import load_rig

RIG = load_rig("sim", config_folder("rigs"))
TOPICS = [output.topic for output in RIG.outputs]
WATCHDOG = "arm_interface_node"


class Wire:
    """A policy node's checks, and other nodes that come and go."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.node = self.join(POLICY_NODE)
        watchdog = SimpleNamespace(needed=True, node_name=WATCHDOG, silence=lambda: "")
        inputs = SimpleNamespace(sources=SensorBuffer(RIG), subscriptions=[])
        self.checks = PolicyChecks(
            self.node,
            RIG,
            inputs,  # type: ignore[arg-type]
            shell.motion_clock(self.node),
            watchdog=watchdog,  # type: ignore[arg-type]
            warnings=(),
            dry=False,
            trained_on=(480, 640),
        )
        self.sources = inputs.sources

    def join(self, name: str) -> Node:
        node = rclpy.create_node(name)
        self._stack.callback(node.destroy_node)
        return node

    def listen(self, name: str, topics: list[str]) -> None:
        node = self.join(name)
        for topic in topics:
            node.create_subscription(JointTrajectory, topic, lambda _: None, 10)

    def check(self, what: str) -> Check:
        (found,) = (check for check in self.checks.run() if check.what == what)
        return found

    def until(self, what: str, found: str) -> None:
        wait_for(lambda: found in self.check(what).found, lambda: self.check(what).found)


@pytest.fixture
def wire() -> Iterator[Wire]:
    with ExitStack() as stack:
        yield Wire(stack)


def test_whoever_only_looks_on_is_no_controller(wire: Wire) -> None:
    for name in (RECORDER_NODE, WATCHDOG):
        wire.listen(name, TOPICS)
    count = wire.node.count_subscribers
    wait_for(lambda: all(count(topic) == 2 for topic in TOPICS), lambda: "both to be heard of")
    check = wire.check("listeners")
    assert not check.passed
    assert check.found == f"no listener on {', '.join(TOPICS)}"
    wire.listen("left_controller", TOPICS[:1])
    wire.until("listeners", f"no listener on {TOPICS[1]}")
    wire.listen("right_controller", TOPICS[1:])
    wire.until("listeners", "what is sent is taken")


def test_the_watchdog_may_speak_and_nothing_else(wire: Wire) -> None:
    def speak(node: Any) -> None:
        node.create_publisher(JointTrajectory, TOPICS[0], 10)

    speak(wire.node)
    speak(wire.join(WATCHDOG))
    wait_for(lambda: wire.node.count_publishers(TOPICS[0]) == 2, lambda: "both publishers")
    assert wire.check("alone").passed
    speak(wire.join(WATCHDOG))  # its twin
    wire.until("alone", f"{WATCHDOG} on {TOPICS[0]}")


def test_cameras_of_another_aspect_ratio_than_the_checkpoints(wire: Wire) -> None:
    def show(height: int, width: int) -> Check:
        for camera in RIG.cameras:
            data = bytes(3 * height * width)
            image = SimpleNamespace(
                encoding="rgb8", height=height, width=width, step=3 * width, data=data
            )
            wire.sources.add_image(camera.role, image, 0)
        return wire.check("images")

    assert not wire.check("images").passed
    assert show(240, 320).passed
    wide = show(180, 320)
    assert not wide.passed and "primary 180x320, +33% in width" in wide.found


def test_a_image_that_cannot_be_used_is_named(wire: Wire) -> None:
    torn = SimpleNamespace(format="jpeg", data=b"\xff\xd8\xff")
    wire.sources.add_image("primary", torn, 0)
    check = wire.check("images")
    assert not check.passed and f"{RIG.cameras[2].topic}: 3 bytes of 'jpeg'" in check.found
