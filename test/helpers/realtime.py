"""The whole graph in real time on the simulated rig: its operator, and what its arms are told."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from cosmos_policy_ros.msg import ArmInterfaceState
from helpers.stock_rig import RIG_PROGRAM, patient_rig, set_modes, stock_rig
from helpers.waiting import PATIENCE
from helpers.wall_clock import WallClock
from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from cosmos_policy_ros.core.errors import CosmosPolicyError, ObservationError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.nodes import graph, shell
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.graph import NodeProcess, NodeProcesses, node_processes
from cosmos_policy_ros.rig.observation import read_arm
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

STUB = Path(__file__).with_name("stub_policy_node.py")


class Seen(NamedTuple):
    """One joint state: when it came (monotonic s), and the positions of the six joints."""

    at: float
    positions: np.ndarray


WINDOW = 10  # joint states
WORDS = 1500  # characters of a node's output that are shown of a test that failed
EARLY = 1.0  # s of the two that a chunk takes
# rad between the first row of a trajectory and where its arm is: what the arms lag behind, and half
# a second at 1.9 rad/s on a busy machine.
REACH = 1.0


class RealTimeGraph:
    """A running graph; a context manager that ends it.

    Attributes:
        wall: the nodes' wall clock.
        sent: (monotonic s, output, message) of every trajectory, a stranger's too.
        goals: (monotonic s, side, message) of every goal of a streamer's.
        poses: by side, the joint states.
        watchdog: the newest state of guard or streamer.
    """

    def __init__(
        self,
        folder: Path,
        *,
        streamed: bool = False,
        patient: bool = False,
        stub: bool = False,
        **options: Any,
    ) -> None:
        """Start it and wait until the engine is loaded.

        Args:
            folder: logs go there.
            streamed: behind the stand-in of Interbotix' drivers instead of controllers.
            patient: with the widest limits on what is late.
            stub: let ``helpers.stub_engine`` decide.
            options: of the graph.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.wall, self.streamed = WallClock(folder), streamed
        rig = "sim"
        if streamed or patient:
            rig = str(stock_rig(folder) if streamed else patient_rig(folder))
        self.rig: RigSpec = load_rig(rig, config_folder("rigs"))
        shipped = graph.executable
        special = {"sim_rig_node": RIG_PROGRAM} if streamed else {}
        special |= {"policy_node": STUB} if stub else {}

        def program(name: str) -> Path:
            return self.wall.program(name, special.get(name, shipped(name)))

        self._program, self._folder = program, folder
        small = {"width": 64, "height": 48, "images": "raw"}  # JPEG leaves no red of so few pixels
        nodes = node_processes(**{"rig": rig, "record": False} | small | options)
        self._nodes = {node.executable: node for node in nodes}
        self._running: list[NodeProcesses] = []
        self._pids: dict[str, NodeProcesses] = {}
        self._start(*nodes)
        self._connect()
        try:
            self.client.policy_ready(PATIENCE)
            if streamed:
                set_modes(self.client)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RealTimeGraph:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the operator, then the nodes."""
        self.client.close()
        for nodes in self._running:
            nodes.close()

    # ---------------------------------------------------------------- processes

    def _start(self, *nodes: NodeProcess) -> None:
        with patch.object(graph, "executable", self._program):
            started = NodeProcesses(nodes, self._folder / f"log{len(self._running)}")
        self._running.append(started)
        self._pids |= {node.executable: started for node in nodes}

    def restart_policy_node(self) -> None:
        """Start it again after it was killed, and wait until the engine is loaded.

        Fast DDS may take a shared-memory port that is in use with the killed process' own, and the
        next one is never heard. Then the operator and the policy node begin once more.
        """
        self.client.policy_state = None
        self._start(self._nodes["policy_node"])
        try:
            self.client.policy_ready(PATIENCE)
        except CosmosPolicyError as error:
            print(f"{error}; its log:\n{self.log('policy_node')}")
            self._pids["policy_node"].close()
            self.client.close()
            self._start(self._nodes["policy_node"])
            self._connect()
            self.client.policy_ready(PATIENCE)

    def pid(self, name: str) -> int:
        """Return the process id of a node."""
        return self._pids[name].pid(name)

    def log(self, name: str) -> str:
        """Return what a node has printed since it was started last."""
        return self._pids[name].log(name)

    def last_words(self) -> dict[str, str]:
        """Return what each node has printed last, by its name and whether it still runs."""
        found = {}
        for name, nodes in self._pids.items():
            code = nodes.exit_code(name)
            state = "runs" if code is None else f"ended with exit code {code}"
            found[f"{name} {state}"] = nodes.log(name)[-WORDS:]
        return found

    # ---------------------------------------------------------------- the wire

    def _connect(self) -> None:
        self.client = GraphClient("operator")
        node = self.client.node
        self.sent: deque[tuple[float, str, Any]] = deque(maxlen=1000)
        self.goals: deque[tuple[float, str, Any]] = deque(maxlen=4000)
        self.poses: dict[str, deque[Seen]] = {}
        self.watchdog = ArmInterfaceState()

        def keep_watchdog(message: Any) -> None:
            self.watchdog = message

        node.create_subscription(
            ArmInterfaceState, "arm_interface_node/state", keep_watchdog, shell.LATCHED
        )

        def keep(into: deque[tuple[float, str, Any]], name: str) -> Callable[[Any], None]:
            return lambda message: into.append((time.monotonic(), name, message))

        for output in self.rig.outputs:
            node.create_subscription(
                JointTrajectory, output.topic, keep(self.sent, output.name), 100
            )
        for side, arm in self.rig.arms.items():
            self.poses[side] = deque(maxlen=3000)
            node.create_subscription(JointState, arm.joint_states, self._keep_pose(side), 100)
            if self.streamed:
                assert arm.driver is not None
                for command, topic in (
                    (JointGroupCommand, arm.driver.joint_group),
                    (JointSingleCommand, arm.driver.joint_single),
                ):
                    node.create_subscription(command, topic, keep(self.goals, side), 500)

    def _keep_pose(self, side: str) -> Callable[[JointState], None]:
        def keep(message: JointState) -> None:
            with suppress(ObservationError):  # a fault that was asked for
                read_arm(self.rig.arms[side], message.name, message.position)
                self.poses[side].append(Seen(time.monotonic(), np.array(message.position[:6])))

        return keep

    # ---------------------------------------------------------------- the arms

    def pose(self, side: str = "left") -> np.ndarray:
        """Return where an arm is."""
        return self.poses[side][-1].positions

    def moving(self, window: float = 0.1, least: float = 0.01) -> bool:
        """Return whether a joint has gone further than ``least`` rad in the last seconds."""
        since = time.monotonic() - window
        tails = [[s.positions for s in list(p) if s.at >= since] for p in self.poses.values()]
        return any(len(t) > 1 and np.ptp(np.array(t), axis=0).max() > least for t in tails)

    def fastest(self, since: float) -> float:
        """Return the highest speed [rad/s] of any arm joint, on average over WINDOW samples.

        By the rig's time: a sample is a hundredth of a second of it, however late it comes. A servo
        that is told goals one by one goes in jerks, so that its speed of a moment says little.
        """
        found = [0.0]
        for poses in self.poses.values():
            path = np.array([seen.positions for seen in list(poses) if seen.at >= since])
            if len(path) > WINDOW:
                moved = np.abs(path[WINDOW:] - path[:-WINDOW])
                found.append(float(moved.max()) * self.rig.rates.joint_states / WINDOW)
        return max(found)

    def faults(self, *faults: str) -> None:
        """Replace the simulated rig's faults."""
        parameter = Parameter("faults", value=list(faults) or [""]).to_parameter_msg()
        self.client.call(SetParameters, "sim_rig_node/set_parameters", parameters=[parameter])

    # ---------------------------------------------------------------- the operator

    def wait(self, condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        """Wait for a condition."""
        return self.client.wait_until(condition, timeout, what)

    def arm(self) -> None:
        """Arm as soon as the self-check passes and the watchdog follows."""
        self.client.arm_when_ready(PATIENCE)
        self.wait(
            lambda: self.watchdog.armed and not self.watchdog.reason, "the watchdog to follow"
        )

    def start(self, **goal: Any) -> Any:
        """Arm, run, and wait until an arm moves early in a chunk; return the goal's handle.

        Where a busy machine keeps a node waiting the arms are held; then it is begun again.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            self.arm()
            handle = self.client.start_run(**{"chunk_limit": 20, **goal})
            result = handle.get_result_async()
            self.wait(lambda result=result: result.done() or self._sets_out(), "an arm to move")
            if not result.done():
                return handle
            if time.monotonic() > deadline:
                raise AssertionError(f"no arm moved: {result.result().result.message}")
            self.client.arm(False)

    def _sets_out(self) -> bool:
        early = bool(self.sent) and time.monotonic() - self.sent[-1][0] < EARLY
        return early and self.moving()

    def said(self) -> str:
        """Return the policy node's last message."""
        state = self.client.policy_state
        return "" if state is None else str(state.message)


def wrongly_sent(graph: RealTimeGraph, strangers: Sequence[JointTrajectory] = ()) -> list[str]:
    """Return what nodes of ours sent to the arms past a limit, or far from where the arm was."""
    found = []
    for at, name, message in list(graph.sent):
        called = message.header.frame_id
        if message in strangers:
            continue
        columns = list(next(o.columns for o in graph.rig.outputs if o.name == name))
        rows = np.zeros((len(message.points), 14))
        rows[:, columns] = [point.positions for point in message.points]
        found += _past_limits(graph.rig, rows, columns, f"{name} {called}")
        arm = np.array([seen.positions for seen in list(graph.poses[name]) if seen.at <= at + 0.1])
        off = np.abs(rows[0, columns[:6]] - arm[-1]).max()
        if off > REACH:
            found.append(f"{name} {called}: begins {off:.2f} rad from the arm")
    for _, side, message in list(graph.goals):
        command = message.cmd
        first = 0 if side == "left" else 7
        columns = [first + 6] if isinstance(command, float) else list(range(first, first + 6))
        rows = np.zeros((1, 14))
        rows[0, columns] = command
        found += _past_limits(graph.rig, rows, columns, f"goal of {side}")
    return found


def _past_limits(rig: RigSpec, rows: np.ndarray, columns: list[int], what: str) -> list[str]:
    policy = rig.commanded(rows)[:, columns]
    low, high = rig.lower[columns] - 1e-3, rig.upper[columns] + 1e-3
    if not np.isfinite(policy).all() or (policy < low).any() or (policy > high).any():
        return [f"{what}: rows from {policy.min():.3f} to {policy.max():.3f} leave the limits"]
    return []
