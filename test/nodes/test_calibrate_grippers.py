"""The walk through open and close, as an operator does it; the rig file is one that loads."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rclpy.node import Node
from sensor_msgs.msg import JointState

from cosmos_policy_ros.core.paths import config_folder, executable
from cosmos_policy_ros.rig.spec import load_rig

CLOSED, OPEN = {"left": 0.5, "right": 0.6}, {"left": 1.7, "right": 1.8}  # rad
RIG = load_rig("interbotix_1", config_folder("rigs"))


class Arms:
    """Both arms' drivers, as far as their grippers go."""

    def __init__(self) -> None:
        self.angles = dict(CLOSED)
        self._node, self._ending = Node("drivers"), threading.Event()
        self._topics = {
            side: self._node.create_publisher(JointState, arm.joint_states, 10)
            for side, arm in RIG.arms.items()
        }
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._node.destroy_node()

    def _publish(self) -> None:
        while not self._ending.wait(0.02):
            for side, topic in self._topics.items():
                names = [*RIG.arms.left.joints, "gripper"]
                topic.publish(JointState(name=names, position=[0.0] * 6 + [self.angles[side]]))


@contextmanager
def calibrating(output: Path) -> Iterator[Any]:
    with subprocess.Popen(
        [sys.executable, str(executable("cosmos")), "calibrate-grippers", "--output", str(output)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process
        process.kill()


def until(process: Any, words: str) -> str:
    said = ""
    while words not in said:
        letter = process.stdout.read(1)
        assert letter, f"ended without saying '{words}': {said}"
        said += letter
    return said


@pytest.fixture
def arms() -> Iterator[Arms]:
    arms = Arms()
    yield arms
    arms.close()


def enter(process: Any) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def test_both_grippers_are_measured_and_written(arms: Arms, tmp_path: Path) -> None:
    output = tmp_path / "ours.yaml"
    with calibrating(output) as process:
        until(process, "close both grippers")
        enter(process)
        until(process, "open both grippers")
        arms.angles = dict(OPEN)
        enter(process)
        until(process, f"written: {output}")
        assert process.wait(20) == 0
    rig = load_rig(str(output), tmp_path)
    assert rig.name == "ours"
    for side, arm in rig.arms.items():
        assert arm.gripper.command_closed == pytest.approx(CLOSED[side], abs=1e-3)
        assert arm.gripper.command_open == pytest.approx(OPEN[side], abs=1e-3)
        before = RIG.arms[side]
        assert replace(arm, gripper=before.gripper) == before
    assert replace(rig, name=RIG.name, arms=RIG.arms) == RIG, "everything else is as it was"


def test_without_drivers_nothing_is_written(tmp_path: Path) -> None:
    output = tmp_path / "ours.yaml"
    with calibrating(output) as process:
        until(process, "error: nothing came on follower_left/joint_states, follower_right/joint_st")
        assert process.wait(20) == 1
    assert not output.exists()


def test_a_rig_file_that_is_there_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "ours.yaml"
    output.write_text("mine")
    with calibrating(output) as process:
        until(process, "is there already; give another --output")
        assert process.wait(20) == 1
    assert output.read_text() == "mine"
