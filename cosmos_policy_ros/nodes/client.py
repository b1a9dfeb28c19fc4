"""The operator's side of the graph, as plain calls: arm, run, record, score, step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import rclpy
from rcl_interfaces.srv import GetParameters
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node, NodeNameNonExistentError
from std_srvs.srv import SetBool, Trigger

from cosmos_policy_ros.action import RunTask
from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.episodes.topics import POLICY_NODE, RECORDER_NODE, SIM_RIG_NODE
from cosmos_policy_ros.msg import PolicyState, RigState
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.options import Value
from cosmos_policy_ros.nodes.reconfigure import reconfiguration
from cosmos_policy_ros.srv import EndEpisode, ResetRig, ScoreEpisode, StartEpisode, StepRig

T = TypeVar("T")
# Wall s after which a node is asked again whether it has found us.
INTRODUCTION = 0.5


class GraphClient:
    """Talks to a running graph from a plain thread; ``alive`` may raise to end every wait.

    Attributes:
        node: its ROS node, for further subscriptions (made before they are needed).
        policy_state: the policy node's newest state, None before the first.
        rig_state: the simulated rig's newest state, None before the first.
    """

    def __init__(self, name: str, alive: Callable[[], None] = lambda: None) -> None:
        """Join the graph; ROS must be initialised."""
        self.node = Node(name)
        self.policy_state: PolicyState | None = None
        self.rig_state: RigState | None = None
        self._alive = alive
        # Made early, and so known to the policy node when it answers any: no stop waits for that.
        self._clients: dict[str, Any] = {
            f"{POLICY_NODE}/{service}": self.node.create_client(kind, f"{POLICY_NODE}/{service}")
            for service, kind in (("arm", SetBool), ("pause", SetBool), ("stop", Trigger))
        }
        self._introduced: set[str] = set()
        node, latched = self.node, shell.LATCHED
        node.create_subscription(PolicyState, f"{POLICY_NODE}/state", self._keep_policy, latched)
        node.create_subscription(RigState, f"{SIM_RIG_NODE}/state", self._keep_rig, latched)
        self._run: Any = ActionClient(node, RunTask, f"{POLICY_NODE}/run_task")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="client", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the graph."""
        self._ending.set()
        self._thread.join()
        self._executor.shutdown()
        self._run.destroy()  # it holds on to the node, whose name would stay taken
        self.node.destroy_node()

    def wait_until(self, condition: Callable[[], T | None], timeout: float, what: str) -> T:
        """Return the condition's first true value.

        Raises:
            CosmosPolicyError: it stayed false for ``timeout`` wall seconds; says ``what``.
        """
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            self._alive()
            if time.monotonic() > deadline:
                state = self.policy_state.message if self.policy_state else "none"
                raise CosmosPolicyError(
                    f"waited {timeout:g} s for {what}; the policy node's last message: {state}"
                )
            time.sleep(0.005)
        return value

    def call(self, kind: Any, name: str, /, timeout: float = 30.0, **fields: Any) -> Any:
        """Call a service and return its response, whether it says success or not."""
        return self._call(kind, name, kind.Request(**fields), timeout)

    def _call(self, kind: Any, name: str, request: Any, timeout: float) -> Any:
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        self.wait_until(client.service_is_ready, timeout, f"service {name}")
        self._introduce(name, timeout)
        return self._result(client.call_async(request), timeout, f"{name}'s answer")

    def policy_ready(self, timeout: float) -> None:
        """Wait until the engine is loaded."""
        self.wait_until(
            lambda: self.policy_state is not None and self.policy_state.phase != "loading",
            timeout,
            "the engine to load",
        )

    def arm(self, on: bool = True) -> Any:
        """Arm or disarm."""
        return self.call(SetBool, f"{POLICY_NODE}/arm", data=on)

    def arm_when_ready(self, timeout: float) -> None:
        """Arm as soon as the self-check passes.

        Raises:
            CosmosPolicyError: not within ``timeout`` wall seconds; says why not.
        """
        deadline = time.monotonic() + timeout
        while not (answer := self.arm()).success:
            if time.monotonic() > deadline:
                raise CosmosPolicyError(f"not armed for {timeout:g} s: {answer.message}")
            time.sleep(0.2)

    def stop(self) -> Any:
        """Stop and disarm."""
        return self.call(Trigger, f"{POLICY_NODE}/stop")

    def pause(self, on: bool = True) -> Any:
        """Pause, or go on."""
        return self.call(SetBool, f"{POLICY_NODE}/pause", data=on)

    def reconfigure(self, node: str, values: Mapping[str, Value], timeout: float) -> None:
        """Give an active lifecycle node other parameters, and activate it again.

        Raises:
            CosmosPolicyError: it did not take them; says what to look at.
        """
        for step in reconfiguration(values):
            answer = self._call(step.kind, f"{node}/{step.service}", step.request, timeout)
            if problem := step.problem(node, answer):
                raise CosmosPolicyError(problem)

    def start_run(self, on_feedback: Callable[[Any], None] = lambda _: None, **goal: Any) -> Any:
        """Send a goal; returns its handle."""
        self.wait_until(self._run.server_is_ready, 30.0, "action run_task")
        self._introduce(f"{POLICY_NODE}/run_task/_action/send_goal", 30.0)
        # From the executor's own thread: rclpy 9 swaps the future once the goal is out, and an
        # answer that comes in between is never seen.
        sending = self._executor.create_task(
            lambda: self._run.send_goal_async(
                RunTask.Goal(**goal), feedback_callback=lambda m: on_feedback(m.feedback)
            )
        )
        future = self._result(sending, 30.0, "the goal to be sent")
        return self._result(future, 30.0, "the goal's acceptance")

    def finish_run(self, handle: Any, timeout: float) -> RunTask.Result:
        """Wait for a run's result."""
        return self._result(handle.get_result_async(), timeout, "the run's result").result

    def start_episode(self, **fields: Any) -> Any:
        """Begin recording."""
        return self.call(StartEpisode, f"{RECORDER_NODE}/start_episode", **fields)

    def stop_episode(self, **fields: Any) -> Any:
        """End recording."""
        return self.call(EndEpisode, f"{RECORDER_NODE}/stop_episode", **fields)

    def discard_episode(self, **fields: Any) -> Any:
        """Mark an episode as discarded."""
        return self.call(EndEpisode, f"{RECORDER_NODE}/discard_episode", **fields)

    def score_episode(self, **fields: Any) -> Any:
        """Score an episode, 0 to 100."""
        return self.call(ScoreEpisode, f"{RECORDER_NODE}/score_episode", **fields)

    def reset_rig(self, task: str, seed: int, prompt: str = "") -> Any:
        """Put the simulated rig's arms and objects back."""
        return self.call(ResetRig, f"{SIM_RIG_NODE}/reset", task=task, seed=seed, prompt=prompt)

    def step(self, periods: int = 1) -> RigState:
        """Advance a stepped rig; returns its state."""
        response = self.call(StepRig, f"{SIM_RIG_NODE}/step", timeout=120.0, periods=periods)
        if not response.success:
            raise CosmosPolicyError(f"the simulated rig did not step: {response.message}")
        return response.state

    def _introduce(self, service: str, timeout: float) -> None:
        """Return when the node that offers a service has found our clients of it.

        That we have found the service does not say so, and a server drops the answer to a client
        that it has not found within 0.1 s. Clients are found in the order they were made in: when
        a harmless question of a later one has been answered, theirs will be too.
        """
        if service in self._introduced:
            return
        ours = tuple(self._clients)
        node, offered = self.wait_until(
            lambda: self._offerer(service), timeout, f"the node of service {service}"
        )
        name = f"{node}/get_parameters"
        asking: Any = self.node.create_client(GetParameters, name)
        try:
            self.wait_until(asking.service_is_ready, timeout, f"service {name}")
            asked: list[tuple[float, Any]] = []

            def answered() -> bool:
                if not asked or time.monotonic() - asked[-1][0] > INTRODUCTION:
                    asked.append((time.monotonic(), asking.call_async(GetParameters.Request())))
                return any(future.done() for _, future in asked)

            self.wait_until(answered, timeout, f"{name}'s answer")
        finally:
            self.node.destroy_client(asking)
        known = {each for each in ours if self.node.resolve_service_name(each) in offered}
        self._introduced |= {service} | known

    def _offerer(self, service: str) -> tuple[str, set[str]] | None:
        """Return the node that offers a service and all that it offers, by their full names."""
        wanted = self.node.resolve_service_name(service)
        for name, namespace in self.node.get_node_names_and_namespaces():
            try:
                found = self.node.get_service_names_and_types_by_node(name, namespace)
            except NodeNameNonExistentError:  # it has just left
                continue
            offered = {each for each, _ in found}
            if wanted in offered:
                return f"{namespace.rstrip('/')}/{name}", offered
        return None

    def _keep_policy(self, message: PolicyState) -> None:
        self.policy_state = message

    def _keep_rig(self, message: RigState) -> None:
        self.rig_state = message

    def _result(self, future: Any, timeout: float, what: str) -> Any:
        self.wait_until(future.done, timeout, what)
        return future.result()

    def _spin(self) -> None:
        while not self._ending.is_set() and rclpy.ok():
            self._executor.spin_once(timeout_sec=0.05)
