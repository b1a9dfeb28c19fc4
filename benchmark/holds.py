"""How long the arms go on after something failed, through both sinks.

    . scripts/env.sh
    python benchmark/holds.py                     # or some of the failures, by name

The whole graph in real time on the simulated rig under the demonstrator: once with a trajectory
controller per arm and the arm interface beside them, once behind the stand-in of the stock drivers
(``test/helpers``) with the arm interface in front. Every failure comes in mid-chunk, or while the
right arm follows a leader that is led. Printed is the time from it until the right arm rests, the
arm's own inertia included, and what was said of it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import rclpy
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool

sys.path.insert(0, str(Path(__file__).parents[1] / "test"))

from cosmos_policy_ros.msg import ArmInterfaceState
from cosmos_policy_ros.srv import LeadArms
from helpers.graph import worker_of
from helpers.stock_rig import RIG_PROGRAM, punctual_rig, set_modes, stock_rig

from cosmos_policy_ros.nodes import graph, shell
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.graph import (
    NodeProcesses,
    environment,
    node_processes,
    request_to_keep_to_machine,
)

WATCHDOG = "arm_interface_node"
MOVING, RESTING = 0.15, 0.02  # rad/s of the fastest joint, over WINDOW
WINDOW, REST_FOR = 0.05, 0.5  # s
PATIENCE = 60.0  # s


class Bench:
    """A running graph and what its right arm does."""

    def __init__(self, folder: Path, command_interface: str) -> None:
        streamed = command_interface == "interbotix"
        rig = str(stock_rig(folder) if streamed else punctual_rig(folder))
        nodes = node_processes(rig=rig, width=64, height=48, record=False)
        shipped = graph.executable

        def program(name: str) -> Path:
            return RIG_PROGRAM if streamed and name == "sim_rig_node" else shipped(name)

        with patch.object(graph, "executable", program):
            self.nodes = NodeProcesses(nodes, folder / "log")
        self.client = GraphClient("bench")
        self._seen: deque[tuple[float, np.ndarray]] = deque(maxlen=2000)
        self._lock = threading.Lock()
        self.client.node.create_subscription(
            JointState, "follower_right/joint_states", self._keep, 10
        )
        self.watchdog = WATCHDOG
        self._held = ""
        self.client.node.create_subscription(
            ArmInterfaceState,
            f"{WATCHDOG}/state",
            self._keep_reason,
            shell.LATCHED,
        )
        self.client.policy_ready(PATIENCE)
        if streamed:
            set_modes(self.client)
        self.fault("")  # a first call takes longer, and is not what is measured

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.nodes.close()

    def run(self) -> None:
        """Arm, send a goal, wait until the right arm moves in its first chunk."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self.client.arm_when_ready(PATIENCE)
            handle = self.client.start_run(chunk_limit=20)
            result = handle.get_result_async()
            while not result.done():
                if (self.speeds(WINDOW)[-1:] > MOVING).any():
                    return
                time.sleep(0.005)
            if time.monotonic() > deadline:  # its watchdog may not have been ready
                raise SystemExit(result.result().result.message)

    def lead(self) -> None:
        """Have the arms led, and wait until the right one moves."""
        deadline = time.monotonic() + PATIENCE
        why = ""
        while time.monotonic() < deadline:
            why = self._led_to_move()
            if not why:
                return
            self.let_go()
            time.sleep(0.1)
        raise SystemExit(f"the right arm was not led: {why}")

    def _led_to_move(self) -> str:
        """Have the arms led once, from rest; return why the right one does not move."""
        if problem := self.leaders(rest=True):
            return problem
        self.until_rest(time.monotonic())
        if problem := self.teleoperate(True) or self.leaders(seed=3):
            return problem
        until = time.monotonic() + PATIENCE / 6
        while time.monotonic() < until and not self._held:
            if (self.speeds(WINDOW)[-1:] > MOVING).any():
                return ""
            time.sleep(0.005)
        return self._held or f"it did not move within {PATIENCE / 6:.0f} s"

    def leaders(self, **fields: Any) -> str:
        """Have hands lead the leaders, or let them rest; return what kept them from it."""
        service = "sim_rig_node/lead"
        return refusal(service, self.client.call(LeadArms, service, timeout=PATIENCE, **fields))

    def teleoperate(self, on: bool) -> str:
        """Begin or end teleoperation; return why that was refused."""
        service = f"{self.watchdog}/teleoperate"
        return refusal(service, self.client.call(SetBool, service, data=on))

    def let_go(self) -> None:
        """End teleoperation."""
        if problem := self.teleoperate(False):
            raise SystemExit(problem)

    def clutch(self) -> None:
        """Free the leaders."""
        service = f"{self.watchdog}/clutch"
        if problem := refusal(service, self.client.call(SetBool, service, data=True)):
            raise SystemExit(problem)

    def thaw(self, seconds: float) -> float:
        """Freeze the right leader for so long; return when it was let go."""
        self.fault("leader_frozen:right")
        time.sleep(seconds)
        at = time.monotonic()
        self.fault("")
        return at

    def speeds(self, window: float) -> np.ndarray:
        """Return the fastest joint's speed at each joint state that is a window behind another."""
        with self._lock:
            seen = list(self._seen)
        times = np.array([at for at, _ in seen])
        if len(times) < 2 or times[-1] - times[0] < window:
            return np.zeros(0)
        poses = np.array([pose for _, pose in seen])
        before = np.searchsorted(times, times - window, side="right") - 1
        known = before >= 0
        moved = np.abs(poses[known] - poses[before[known]]).max(axis=1)
        return np.asarray(moved / (times[known] - times[before[known]]))

    def until_rest(self, began: float) -> float:
        """Return after how many seconds the arm rests for good."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            time.sleep(0.05)
            speeds = self.speeds(WINDOW)
            with self._lock:
                times = np.array([at for at, _ in self._seen])[-len(speeds) :]
            moving = np.flatnonzero(speeds > RESTING)
            last = times[moving[-1]] if len(moving) else began
            if times[-1] - max(last, began) > REST_FOR:
                return max(float(last - began), 0.0)
        return float("nan")

    def fault(self, text: str) -> None:
        """Have the simulated rig fail."""
        value = Parameter("faults", value=[text]).to_parameter_msg()
        self.client.call(SetParameters, "sim_rig_node/set_parameters", parameters=[value])

    def kill(self, node: str, number: signal.Signals) -> None:
        """Send a node a signal."""
        os.kill(self.nodes.pid(node), number)

    def kill_worker(self) -> None:
        """Kill the process in which the model lives."""
        worker = worker_of(self.nodes.pid("policy_node"))
        assert worker is not None
        os.kill(worker, signal.SIGKILL)

    def said(self) -> str:
        """Return who held the arms, in their words."""
        if self._held:
            return self._held
        state = self.client.policy_state
        return str(state.message) if state is not None else "-"

    def _keep_reason(self, message: ArmInterfaceState) -> None:
        self._held = message.reason or message.teleoperation_reason

    def _keep(self, message: JointState) -> None:
        with self._lock:
            self._seen.append((time.monotonic(), np.array(message.position[:6])))


def refusal(service: str, answer: Any) -> str:
    """Return what a service answered that did not do it; empty if it did."""
    return "" if answer.success else f"{service}: {answer.message}"


FAILURES: dict[str, Callable[[Bench], object]] = {
    "~/stop": lambda b: b.client.stop(),
    "~/arm false": lambda b: b.client.arm(False),
    "left arm silent": lambda b: b.fault("joints_silent:left"),
    "left arm reads -pi": lambda b: b.fault("joints_minus_pi:left"),
    "left arm reads NaN": lambda b: b.fault("joints_nan:left"),
    "a camera silent": lambda b: b.fault("camera_silent:primary"),
    "a camera frozen": lambda b: b.fault("camera_frozen:primary"),
    "a camera 0.3 s late": lambda b: b.fault("camera_delay:primary=0.3"),
    "cameras 0.08 s apart": lambda b: b.fault("camera_delay:primary=0.08"),
    "inference process killed": lambda b: b.kill_worker(),
    "policy node stopped (SIGSTOP)": lambda b: b.kill("policy_node", signal.SIGSTOP),
    "policy node killed": lambda b: b.kill("policy_node", signal.SIGKILL),
    "policy node ended (SIGINT)": lambda b: b.kill("policy_node", signal.SIGINT),
    "arm interface killed": lambda b: b.kill(b.watchdog, signal.SIGKILL),
}
LED: dict[str, Callable[[Bench], object]] = {
    "let go": lambda b: b.let_go(),
    "clutch, and it sticks while the hands go on": lambda b: b.clutch(),
    "leader silent": lambda b: b.fault("leader_silent:right"),
    "leader frozen": lambda b: b.fault("leader_frozen:right"),
    "leader comes back, frozen for 2 s": lambda b: b.thaw(2.0),
    "leader reads NaN": lambda b: b.fault("leader_nan:right"),
    "leader reads -pi": lambda b: b.fault("leader_minus_pi:right"),
    "leader jumps by 0.9 rad": lambda b: b.fault("leader_jump:right=0.9"),
    "follower silent": lambda b: b.fault("joints_silent:left"),
    "follower's joint stuck": lambda b: b.fault("joint_stuck:right/shoulder"),
    "arm interface killed while leading": lambda b: b.kill(b.watchdog, signal.SIGKILL),
    "arm interface stopped (SIGSTOP)": lambda b: b.kill(b.watchdog, signal.SIGSTOP),
}
"""What fails while an arm is led."""


def measure(command_interface: str, failure: str) -> tuple[float, str]:
    """Return seconds to rest, and what was said of it."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), command_interface)
        try:
            (bench.lead if failure in LED else bench.run)()
            began = time.monotonic()
            at = (FAILURES | LED)[failure](bench)
            seconds = bench.until_rest(at if isinstance(at, float) else began)
            said = bench.said()
        finally:
            if "SIGSTOP" in failure:
                for node in ("policy_node", bench.watchdog):
                    bench.kill(node, signal.SIGCONT)
            bench.close()
    return seconds, said


def main() -> None:
    """Print the table."""
    os.environ |= {"ROS_DOMAIN_ID": "59", **request_to_keep_to_machine()}
    os.environ |= environment()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    print("| failure | command interface | at rest after | said |\n|---|---|---|---|")
    for failure in sys.argv[1:] or FAILURES | LED:
        for command_interface in ("joint_trajectory", "interbotix"):
            seconds, said = measure(command_interface, failure)
            print(f"| {failure} | {command_interface} | {seconds:.2f} s | {said} |", flush=True)
    rclpy.shutdown()


if __name__ == "__main__":
    main()
