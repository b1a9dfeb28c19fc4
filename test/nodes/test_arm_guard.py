"""Controllers play out what they were sent; the arm guard ends it when the policy node is gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cosmos_policy_ros.msg import GuardState
from helpers.waiting import PATIENCE
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from cosmos_policy_ros.errors import CosmosPolicyError
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.graph import GraphOptions, node_processes
from cosmos_policy_ros.nodes.processes import NodeProcesses
from cosmos_policy_ros.rig.guard import HOLD
from cosmos_policy_ros.rig.outputs import Output
from cosmos_policy_ros.rig.share import config_folder
from cosmos_policy_ros.rig.spec import load_rig

RIG = load_rig("sim", config_folder("rigs"))


class Loop:
    """The running graph in real time, its operator, and what its arms were told and did."""

    def __init__(self, folder: Path) -> None:
        options = GraphOptions(width=64, height=48, record=False)
        self.processes = NodeProcesses(node_processes(options), folder / "log")
        self.client = GraphClient("operator", lambda: None)
        self.state = GuardState()
        self.sent: dict[str, list[Any]] = {output.name: [] for output in RIG.outputs}
        self.sent_at = 0.0  # monotonic s, the last of them
        self.poses: dict[str, list[np.ndarray]] = {side: [] for side, _ in RIG.arms.items()}
        try:
            self._listen()
            self.client.policy_ready(PATIENCE)
        except BaseException:
            self.close()  # what is left running would be the next test's graph too
            raise

    def _listen(self) -> None:
        node = self.client.node

        def keep_state(message: GuardState) -> None:
            self.state = message

        node.create_subscription(GuardState, "arm_guard_node/state", keep_state, shell.LATCHED)
        for output in RIG.outputs:
            node.create_subscription(JointTrajectory, output.topic, self._keep_sent(output), 100)
        for side, arm in RIG.arms.items():
            node.create_subscription(JointState, arm.joint_states, self._keep(side), 100)

    def _keep_sent(self, output: Output) -> Callable[[JointTrajectory], None]:
        def keep(message: JointTrajectory) -> None:
            self.sent[output.name].append(message)
            self.sent_at = time.monotonic()

        return keep

    def _keep(self, side: str) -> Callable[[JointState], None]:
        return lambda message: self.poses[side].append(np.array(message.position[:6]))

    def close(self) -> None:
        self.client.close()
        self.processes.close()

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        try:
            return self.client.wait_until(condition, PATIENCE, what)
        except CosmosPolicyError as error:
            sent = {name: [each.header.frame_id for each in s] for name, s in self.sent.items()}
            raise AssertionError(f"{error}; sent: {sent}; the guard: {self.state}") from error

    def start(self) -> Any:
        """Arm, run, and wait until an arm moves in the first half of a chunk."""
        self.client.arm_when_ready(PATIENCE)
        handle = self.client.start_run(chunk_limit=20)
        self.wait(lambda: self.moving() and time.monotonic() - self.sent_at < 1.0, "an arm to move")
        return handle

    def moving(self) -> bool:
        """Whether a joint has gone more than a hundredth of a radian in the last tenth of a s."""
        tails = [np.array(poses[-10:]) for poses in self.poses.values()]
        return any(len(tail) == 10 and np.ptp(tail, axis=0).max() > 0.01 for tail in tails)

    def holds(self) -> list[str]:
        """Return which outputs the guard has sent a hold."""
        return [
            name
            for name, sent in self.sent.items()
            if any(each.header.frame_id.endswith(HOLD) for each in sent)
        ]


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    loop = Loop(tmp_path)
    yield loop
    loop.close()


def test_a_policy_node_that_is_stopped_and_wakes_again_moves_nothing(loop: Loop) -> None:
    handle = loop.start()
    policy = loop.processes.pid("policy_node")
    os.kill(policy, signal.SIGSTOP)
    try:
        loop.wait(lambda: loop.state.reason, "the guard to hold")
        loop.wait(lambda: len(loop.holds()) == len(RIG.outputs), "a hold for every controller")
        loop.wait(lambda: not loop.moving(), "the arms to rest")
        began = {name: len(sent) for name, sent in loop.sent.items()}
        time.sleep(2.5)  # longer than what was left of the chunk: it would ask for the next
    finally:
        os.kill(policy, signal.SIGCONT)
    result = loop.client.finish_run(handle, PATIENCE)
    assert result.outcome == "fault"
    assert "the arm guard holds the arms" in result.message
    refused = loop.client.finish_run(loop.client.start_run(chunk_limit=1), PATIENCE)
    assert refused.outcome == "refused"
    assert {name: len(sent) for name, sent in loop.sent.items()} == began, "something was sent"
    assert not loop.moving()
    assert loop.client.arm(False).success
    loop.wait(lambda: not loop.state.reason, "the latch to be released")
    loop.start()


def test_without_the_guard_a_run_ends_and_none_begins(loop: Loop) -> None:
    handle = loop.start()
    os.kill(loop.processes.pid("arm_guard_node"), signal.SIGKILL)
    result = loop.client.finish_run(handle, PATIENCE)
    assert result.outcome == "fault"
    assert "the arm guard was last heard of" in result.message
    loop.wait(lambda: not loop.moving(), "the arms to rest")
    assert "refused: keeper: the arm guard was last heard of" in loop.client.arm().message
