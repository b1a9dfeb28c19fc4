"""The whole loop through Interbotix' topics, in real time, and who holds when one falls silent.

The driver is a stand-in with the stock driver's habits; everything else is what runs on a real rig.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from cosmos_policy_ros.msg import ArmInterfaceState
from cosmos_policy_ros.srv import PrepareArms, SelfCheck
from diagnostic_msgs.msg import DiagnosticArray
from helpers.stock_rig import RIG_PROGRAM, SIDES, set_modes, stock_rig
from helpers.waiting import PATIENCE
from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand
from trajectory_msgs.msg import JointTrajectory

from cosmos_policy_ros.nodes import graph, shell
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.graph import NodeProcesses, node_processes
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

STATE = "arm_interface_node/state"


class Loop:
    """The running graph, its operator, and all that was said to the drivers."""

    def __init__(
        self,
        folder: Path,
        *,
        modes: bool = True,
        execution: str = "synchronous",
        gripper: Any = None,
        **driver: Any,
    ) -> None:
        path = stock_rig(folder, gripper, **driver)
        self.rig: RigSpec = load_rig(str(path), folder)
        small = {"width": 64, "height": 48, "images": "raw"}  # JPEG leaves no red of so few pixels
        nodes = node_processes(rig=str(path), record=False, execution=execution, **small)
        shipped = graph.executable

        def program(name: str) -> Path:
            return RIG_PROGRAM if name == "sim_rig_node" else shipped(name)

        with patch.object(graph, "executable", program):
            self.processes = NodeProcesses(nodes, folder / "log")
        self._names = [node.executable for node in nodes]
        self.client = GraphClient("operator", lambda: None)
        try:
            self._listen()
            self.client.policy_ready(PATIENCE)
            self.wait(lambda: self.state.arms, "the arm interface's state")
            if modes:
                set_modes(self.client)
        except BaseException:
            self.close()  # what is left running would be the next test's graph too
            raise

    def _listen(self) -> None:
        self.state = ArmInterfaceState()
        self.goals: dict[str, list[Any]] = {side: [] for side in SIDES}
        self.grippers: dict[str, list[Any]] = {side: [] for side in SIDES}
        self.trajectories: dict[str, list[Any]] = {side: [] for side in SIDES}
        node = self.client.node

        def keep_state(message: ArmInterfaceState) -> None:
            self.state = message

        node.create_subscription(ArmInterfaceState, STATE, keep_state, shell.LATCHED)
        for side, arm in self.rig.arms.items():
            assert arm.driver is not None
            for kind, topic, kept in (
                (JointGroupCommand, arm.driver.joint_group, self.goals),
                (JointSingleCommand, arm.driver.joint_single, self.grippers),
                (JointTrajectory, arm.trajectory, self.trajectories),
            ):
                node.create_subscription(kind, topic, kept[side].append, 2000)

    def close(self) -> None:
        self.client.close()
        self.processes.close()

    def is_whole(self) -> bool:
        """Return whether every node still runs."""
        return all(self.processes.exit_code(name) is None for name in self._names)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        return self.client.wait_until(condition, PATIENCE, what)

    def start(self, **goal: Any) -> Any:
        """Arm and send a goal, once both nodes have heard of each other."""
        self.client.arm_when_ready(PATIENCE)
        self.wait(lambda: self.state.armed and not self.state.reason, "readiness")
        return self.client.start_run(**goal)

    def run(self, **goal: Any) -> Any:
        """Run to the end; return the result, and keep nothing but what was said in this run.

        Where a busy machine keeps a node waiting the arms are held; then it is begun again.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            for kept in (self.goals, self.grippers, self.trajectories):
                for side in SIDES:
                    kept[side].clear()
            self.taken = np.array(self.state.accepted), np.array(self.state.refused)
            result = self.client.finish_run(self.start(**goal), PATIENCE)
            if result.outcome != "fault" or time.monotonic() > deadline:
                return result
            print(f"\nbegun again: {result.message}")
            self._release()

    def counts(self) -> tuple[list[int], list[int]]:
        """Return how many trajectories of this run the arm interface has accepted, and refused."""
        accepted, refused = self.taken
        now = self.state
        return list(now.accepted - accepted), list(now.refused - refused)

    def set_out(self) -> Any:
        """Start, wait until an arm is moved, and begin again as for a run; return the handle."""
        deadline = time.monotonic() + PATIENCE
        while True:
            handle = self.start(chunk_limit=20)
            result = handle.get_result_async()
            self.wait(
                lambda result=result: result.done() or self._is_moving(), "an arm to be moved"
            )
            if not result.done():
                return handle
            if time.monotonic() > deadline:
                raise AssertionError(f"no arm was moved: {result.result().result.message}")
            self._release()

    def _is_moving(self) -> bool:
        tail = [np.array([g.cmd for g in self.goals[side][-4:]]) for side in SIDES]
        return any(len(t) == 4 and np.abs(np.diff(t, axis=0)).max() > 1e-3 for t in tail)

    def _release(self) -> None:
        self.client.arm(False)
        self.wait(lambda: not self.state.reason, "the latch to be released")

    def until_still(self) -> None:
        """Wait until goals come, or have ceased, and none differs from the one before."""

        def still() -> bool:
            return all(
                len({tuple(goal.cmd) for goal in self.goals[side][-25:]})
                == len({goal.cmd for goal in self.grippers[side][-25:]})
                == 1
                for side in SIDES
            )

        self.wait(still, "the arms to be held")


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Loop]]:
    """The loop that tests of the stock rig share, in a list: another one where a test ended it."""
    kept: list[Loop] = []
    yield kept
    for loop in kept:
        loop.close()


@pytest.fixture
def loop(loops: list[Loop], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """The running loop, disarmed and at rest, as if nothing had happened."""
    if not loops:
        loops.append(Loop(tmp_path_factory.mktemp("loop")))
    loop = loops[0]
    assert loop.client.arm(False).success
    loop.wait(lambda: not loop.state.armed and not loop.state.reason, "the arms to be let go")
    for kept in (loop.goals, loop.grippers, loop.trajectories):
        for side in SIDES:
            kept[side].clear()
    yield loop
    if not loop.is_whole():
        loops.remove(loop)
        loop.close()


@pytest.fixture
def alone(loops: list[Loop]) -> None:
    """For a test with a graph of its own: the shared one has ended."""
    while loops:
        loops.pop().close()


def test_a_run_goes_through_the_drivers_goal_by_goal(loop: Loop) -> None:
    result = loop.run(chunk_limit=2)
    assert result.outcome == "chunk_limit", result.message
    assert (result.chunks, result.refused) == (2, 0)
    loop.wait(lambda: loop.counts() == ([2, 2], [0, 0]), "both chunks at both arms")
    loop.until_still()
    step = 1.0 / loop.rig.stream.rate
    for side, arm in loop.rig.arms.items():
        last = loop.trajectories[side][-1].points[-1].positions
        np.testing.assert_allclose(loop.goals[side][-1].cmd, last[:6], atol=1e-6)
        assert loop.grippers[side][-1].cmd == pytest.approx(last[6], abs=1e-6)
        assert {goal.name for goal in loop.goals[side]} == {"arm"}
        assert {goal.name for goal in loop.grippers[side]} == {"gripper"}
        goals = np.array([goal.cmd for goal in loop.goals[side]])
        assert np.abs(np.diff(goals, axis=0)).max() <= max(arm.max_velocity) * step * 1.001
        assert not loop.client.node.count_publishers(f"follower_{side}/commands/joint_trajectory")
    print(f"\nlate {list(loop.state.late)} of {list(loop.state.goals)}, latest {loop.state.latest}")
    assert loop.client.stop().success
    loop.wait(lambda: not any(loop.state.streaming), "the arm interface to let go")


def test_beside_another_commander_the_arms_are_not_armed(loop: Loop) -> None:
    node, driver = loop.client.node, loop.rig.arms.left.driver
    assert driver is not None
    loop.client.arm_when_ready(PATIENCE)
    assert loop.client.stop().success
    other = node.create_publisher(JointGroupCommand, driver.joint_group, 10)
    try:
        loop.wait(lambda: not loop.client.arm().success, "the other commander to be found")
        refusal = loop.client.arm().message
        assert f"alone: operator on {driver.joint_group}" in refusal

        def all_else_passes() -> bool:
            told = loop.client.call(SelfCheck, "policy_node/self_check")
            assert not told.success
            assert "FAIL  alone" in told.message
            return told.message.count("pass  ") == len(told.message.splitlines()) - 1

        loop.wait(all_else_passes, "everything else to pass")  # a busy machine lets things age
    finally:
        node.destroy_publisher(other)
    # Armed before the other was found, they are held until they are disarmed.
    assert loop.client.stop().success
    loop.wait(lambda: loop.client.arm().success, "the other commander to be gone")


def test_a_policy_node_that_hangs_is_noticed_and_its_run_ends(loop: Loop) -> None:
    handle = loop.set_out()
    policy = loop.processes.pid("policy_node")
    os.kill(policy, signal.SIGSTOP)
    try:
        loop.wait(lambda: loop.state.reason, "the arm interface to hold")
        loop.until_still()
    finally:
        os.kill(policy, signal.SIGCONT)
    assert "the policy node was last heard of" in loop.state.reason
    result = loop.client.finish_run(handle, PATIENCE)
    assert result.outcome == "fault"
    assert "the arm interface holds the arms" in result.message
    refused = loop.client.start_run(chunk_limit=1)
    assert loop.client.finish_run(refused, PATIENCE).outcome == "refused"
    assert loop.client.arm(False).success
    loop.wait(lambda: not loop.state.reason, "the latch to be released")


def test_a_streamer_that_is_asked_to_end_brakes_first(loop: Loop) -> None:
    loop.set_out()
    os.kill(loop.processes.pid("arm_interface_node"), signal.SIGINT)
    loop.wait(
        lambda: loop.processes.exit_code("arm_interface_node") is not None,
        "its end",
    )
    assert loop.processes.exit_code("arm_interface_node") == 0
    for side in SIDES:
        steps = np.abs(np.diff([goal.cmd for goal in loop.goals[side][-5:]], axis=0)).max(axis=1)
        assert steps[-1] <= steps.max() / 2, f"{side}: stopped dead: {steps}"
    assert loop.state.reason == "the arm interface node was shut down"


def test_without_the_streamer_a_run_ends(loop: Loop) -> None:
    handle = loop.set_out()
    os.kill(loop.processes.pid("arm_interface_node"), signal.SIGKILL)
    result = loop.client.finish_run(handle, PATIENCE)
    assert result.outcome == "fault"
    assert "the arm interface was last heard of" in result.message
    refusal = loop.client.arm().message
    assert "refused: watchdog: the arm interface was last heard of" in refusal


def test_chunks_that_follow_in_motion_are_one_stream(alone: None, tmp_path: Path) -> None:
    """A new trajectory takes the old one's place between two goals, and nothing jumps."""
    loop = Loop(tmp_path, execution="asynchronous")
    try:
        result = loop.run(time_limit=6.0)
        assert result.outcome == "time_limit", result.message
        assert result.refused == 0 and result.chunks >= 4
        loop.until_still()
        assert loop.counts() == ([result.chunks] * 2, [0, 0]), loop.state.refusal
        for side, arm in loop.rig.arms.items():
            # Who begins at rest is a whole step away from its first row.
            first = [each.points[0].time_from_start.nanosec for each in loop.trajectories[side]]
            assert sum(nanoseconds < 40_000_000 for nanoseconds in first) >= 3, first
            goals = np.array([goal.cmd for goal in loop.goals[side]])
            fastest = max(arm.max_velocity) / loop.rig.stream.rate
            assert np.abs(np.diff(goals, axis=0)).max() <= fastest * 1.001
        print(f"\nidle {result.idle_seconds:.2f} s of {result.seconds:.1f} s")
        print(f"held back {list(loop.state.limited)} of {list(loop.state.goals)} goals")
    finally:
        loop.close()


def test_a_gripper_in_another_mode_is_noticed_and_arms_that_stand_are_not_prepared(
    alone: None, tmp_path: Path
) -> None:
    loop = Loop(tmp_path, modes=False)
    try:
        loop.wait(lambda: "mode 'linear_position'" in loop.state.reason, "the mode to be noticed")
        loop.client.arm_when_ready(PATIENCE)
        refused = loop.client.finish_run(loop.client.start_run(chunk_limit=1), PATIENCE)
        assert refused.outcome == "refused"
        assert "means something else; call ~/prepare_arms" in refused.message
        assert loop.client.stop().success
        loop.wait(lambda: not loop.state.armed, "the arm interface to hear of it")
        prepare = "arm_interface_node/prepare_arms"
        assert "give confirm: true" in loop.client.call(PrepareArms, prepare).message
        standing = loop.client.call(PrepareArms, prepare, confirm=True)
        assert not standing.success
        assert "the left arm is not folded: shoulder -0.96 rad must be below" in standing.message
        set_modes(loop.client)
        loop.wait(lambda: not loop.state.reason, "the mode to be right")
    finally:
        loop.close()


def test_a_rig_file_with_another_grippers_constants_is_noticed(alone: None, tmp_path: Path) -> None:
    """In the self-check, and from then on in the diagnostics."""
    loop = Loop(tmp_path, gripper={"state_closed": 0.035, "state_open": 0.058})
    told: list[str] = []
    loop.client.node.create_subscription(
        DiagnosticArray, "/diagnostics", lambda m: told.extend(s.message for s in m.status), 10
    )
    try:
        fault = "closed is 0 and open is 1 (the gripper block is another gripper's"
        loop.wait(lambda: fault in loop.client.arm().message, "the grippers to be noticed")
        loop.wait(lambda: any(fault in message for message in told), "a warning")
        assert not loop.client.arm().success
    finally:
        loop.close()


def test_folded_arms_are_prepared(alone: None, tmp_path: Path) -> None:
    """The simulated arms cannot fold; a rig file that calls their start pose folded will do."""
    loop = Loop(tmp_path, modes=False, parked=[-0.9, 1.1])
    try:
        loop.wait(lambda: "mode 'linear_position'" in loop.state.reason, "the mode to be noticed")
        done = loop.client.call(PrepareArms, "arm_interface_node/prepare_arms", confirm=True)
        assert done.success, done.message
        loop.wait(lambda: not loop.state.reason, "readiness")
        loop.client.arm_when_ready(PATIENCE)
        loop.wait(lambda: loop.state.armed, "the arm interface to hear of it")
        armed = loop.client.call(PrepareArms, "arm_interface_node/prepare_arms", confirm=True)
        assert "the policy node is armed; disarm it first" in armed.message
    finally:
        loop.close()
