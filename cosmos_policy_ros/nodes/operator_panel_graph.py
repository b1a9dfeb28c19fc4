"""The operator panel's side of the graph: the newest of everything, who is there, and calls.

What comes in is kept by the executor's thread. A call may be awaited in another thread's event
loop: the executor's sends it, since rclpy's clients belong to it.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any

from action_msgs.srv import CancelGoal
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.action import ActionClient
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from std_srvs.srv import SetBool, Trigger

from cosmos_policy_ros.action import RunTask
from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.episodes.topics import (
    ARM_INTERFACE_NODE,
    POLICY_NODE,
    RECORDER_NODE,
    SIM_RIG_NODE,
)
from cosmos_policy_ros.msg import (
    ArmInterfaceState,
    Decision,
    GateResult,
    PolicyState,
    RecorderState,
    RigState,
)
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.options import Value
from cosmos_policy_ros.nodes.reconfigure import reconfiguration
from cosmos_policy_ros.panel.status import (
    TITLES,
    Presence,
    chosen_value,
    describe_decision,
    describe_refusal,
)
from cosmos_policy_ros.srv import EndEpisode, ResetRig, ScoreEpisode, SelfCheck, StartEpisode

PING = 0.4  # wall s between two questions to every node whether it is there
LOST = 1.4  # wall s without an answer after which a node is lost
MOST_VALUES = 500  # of a run; a trial has some 20 chunks
SERVICES: dict[str, tuple[Any, str]] = {
    "arm": (SetBool, POLICY_NODE),
    "pause": (SetBool, POLICY_NODE),
    "stop": (Trigger, POLICY_NODE),
    "go_to_start": (Trigger, POLICY_NODE),
    "self_check": (SelfCheck, POLICY_NODE),
    "run_task/_action/cancel_goal": (CancelGoal, POLICY_NODE),
    "start_episode": (StartEpisode, RECORDER_NODE),
    "stop_episode": (EndEpisode, RECORDER_NODE),
    "discard_episode": (EndEpisode, RECORDER_NODE),
    "score_episode": (ScoreEpisode, RECORDER_NODE),
    "teleoperate": (SetBool, ARM_INTERFACE_NODE),
    "clutch": (SetBool, ARM_INTERFACE_NODE),
    "reset": (ResetRig, SIM_RIG_NODE),
}
# What gives the policy node another contender.
RECONFIGURING: dict[str, tuple[Any, str]] = {
    "change_state": (ChangeState, POLICY_NODE),
    "set_parameters_atomically": (SetParametersAtomically, POLICY_NODE),
}
LOOK = 0.05  # wall s between two looks at whether something waited for has come
ANSWER = 10.0  # wall s that a service may take
STOP_ANSWER = 2.0  # wall s that ~/stop may take: then the operator has to know
RUN_BEGINS = 5.0  # wall s between a goal's acceptance and the policy node's first report of it
TRANSITION = 120.0  # wall s for one step of a lifecycle node; ending a model's processes takes some
READY = 600.0  # wall s for a model to load, the policy node's own start_timeout
SILENT = 30.0  # wall s that a node may be silent while it ends one model and begins another
SET_OUT = 10.0  # wall s between the answer of ~/go_to_start and the first report of the motion
AT_START = 60.0  # wall s for the way to the start pose


class PanelGraph:
    """What the graph says, and how it is asked.

    Attributes:
        policy, recorder, arm_interface, rig: newest state of each node, None before the first.
        decision, refusal: of the run, as the page shows them; None before the first.
        values: seconds since the run began and predicted value, of the run's chunks.
        motions: how often the arms have set out for their start pose.
    """

    def __init__(
        self,
        node: LifecycleNode,
        *,
        records: bool,
        simulated: bool,
        changed: Callable[[], None],
        reconfigures: bool = False,
    ) -> None:
        """Connect.

        Args:
            node: whose executor does the work.
            records: whether the graph is to have a recorder.
            simulated: whether the rig is.
            changed: called in the executor's thread when something new is known.
            reconfigures: whether the policy node is to be given other parameters.
        """
        self.policy: Any = None
        self.recorder: Any = None
        self.arm_interface: Any = None
        self.rig: Any = None
        self.decision: dict[str, Any] | None = None
        self.refusal: dict[str, Any] | None = None
        self.values: list[tuple[float, float]] = []
        self.motions = 0
        self._node, self._changed, self._began = node, changed, 0.0
        self._jobs: deque[Callable[[], None]] = deque()
        self._wake = node.create_guard_condition(self._work)
        self._listen(simulated)
        # The clients that ask whether a node is there come last. A node answers a client once it
        # has found it, and finds them in the order they were made in: one whose answer has come
        # has found all others, and no stop waits for that.
        self._clients: dict[str, tuple[Any, Any, str]] = {
            name: (node.create_client(kind, f"{server}/{name}"), kind, server)
            for name, (kind, server) in (SERVICES | (RECONFIGURING if reconfigures else {})).items()
            if simulated or server != SIM_RIG_NODE
        }
        self._action: Any = ActionClient(node, RunTask, f"{POLICY_NODE}/run_task")
        watched = [POLICY_NODE, ARM_INTERFACE_NODE] + [RECORDER_NODE] * records
        self._watched = {name: _Watched(node, name) for name in watched}
        self._rig_heard: float | None = None
        node.create_timer(PING, self._ping, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def close(self) -> None:
        """Let go of what the node does not destroy by itself."""
        self._action.destroy()

    # ---------------------------------------------------------------- what comes in

    def _listen(self, simulated: bool) -> None:
        def keep(name: str) -> Callable[[Any], None]:
            def store(message: Any) -> None:
                setattr(self, name, message)
                self._changed()

            return store

        subscribe, latched = self._node.create_subscription, shell.LATCHED
        # Every one of them: a run that begins and ends between two looks must be seen.
        subscribe(PolicyState, f"{POLICY_NODE}/state", self._on_policy, shell.LATCHED_EVERY)
        subscribe(RecorderState, f"{RECORDER_NODE}/state", keep("recorder"), latched)
        subscribe(ArmInterfaceState, f"{ARM_INTERFACE_NODE}/state", keep("arm_interface"), latched)
        subscribe(Decision, f"{POLICY_NODE}/decision", self._on_decision, QoSProfile(depth=10))
        subscribe(GateResult, f"{POLICY_NODE}/gate_result", self._on_result, QoSProfile(depth=10))
        if simulated:
            subscribe(RigState, f"{SIM_RIG_NODE}/state", self._on_rig, latched)

    def _on_policy(self, message: PolicyState) -> None:
        before, self.policy = self.policy, message
        if message.phase == "moving" and (before is None or before.phase != "moving"):
            self.motions += 1
        if message.run_id and (before is None or message.run_id != before.run_id):
            self.decision = self.refusal = None
            self.values, self._began = [], time.monotonic()
        self._changed()

    def _on_decision(self, message: Decision) -> None:
        self.decision = describe_decision(message)
        value = chosen_value(message)
        if value is not None and len(self.values) < MOST_VALUES:
            self.values.append((round(time.monotonic() - self._began, 2), value))
        self._changed()

    def _on_result(self, message: GateResult) -> None:
        if not message.accepted:
            self.refusal = describe_refusal(message)
            self._changed()

    def _on_rig(self, message: RigState) -> None:
        self.rig, self._rig_heard = message, time.monotonic()

    # ---------------------------------------------------------------- who is there

    def presence(self) -> dict[str, Presence]:
        """Return for every node whether it is there."""
        found = {name: watched.presence() for name, watched in self._watched.items()}
        if self._rig_heard is not None:
            silent = time.monotonic() - self._rig_heard
            found[SIM_RIG_NODE] = "alive" if silent < LOST else "lost"
        return found

    def inactive(self) -> dict[str, str]:
        """Return the lifecycle state of every node that is there and not active."""
        return {
            name: watched.state
            for name, watched in self._watched.items()
            if watched.presence() == "alive" and watched.state != "active"
        }

    def _ping(self) -> None:
        for watched in self._watched.values():
            watched.ask()

    # ---------------------------------------------------------------- calls

    async def call(self, service: str, timeout: float, **fields: Any) -> Any:
        """Return a service's response, whether it says success or not.

        Args:
            service: a name in :data:`SERVICES`.
            timeout: wall seconds for the answer.
            fields: of the request.

        Raises:
            CosmosPolicyError: there was no answer; says whose.
        """
        client, kind, server = self._clients[service]
        request = kind.Request(**fields)
        return await self._sent(lambda: client.call_async(request), timeout, TITLES[server])

    async def answer(self, service: str, timeout: float = ANSWER, **fields: Any) -> Any:
        """Return a service's response that says success.

        Raises:
            CosmosPolicyError: there was no answer, or it was refused, in the node's own words.
        """
        response = await self.call(service, timeout, **fields)
        if not response.success:
            raise CosmosPolicyError(response.message)
        return response

    async def begin_run(self, **goal: Any) -> None:
        """Return when the policy node reports the run.

        Raises:
            CosmosPolicyError: it refused it, in its words, or did not begin it and was stopped.
        """
        result = asyncio.ensure_future(await self.start_run(ANSWER, **goal))
        deadline = time.monotonic() + RUN_BEGINS
        try:
            while time.monotonic() < deadline:
                if result.done():
                    if result.result().outcome == "refused":
                        raise CosmosPolicyError(result.result().message)
                    return  # it has ended already
                if self.policy is not None and self.policy.run_id:
                    return
                await asyncio.sleep(LOOK)
        finally:
            result.cancel()  # the wait for it, not the run
        # It might begin any moment, with an episode that is discarded now.
        await self.answer("stop", STOP_ANSWER)
        raise CosmosPolicyError(
            f"the policy node had not begun the run after {RUN_BEGINS:g} s and was stopped; "
            "see its log"
        )

    async def go_to_start(self) -> None:
        """Return when the arms have come to rest at their start pose.

        Raises:
            CosmosPolicyError: it was refused, or the arms were disarmed or held on their way.
        """
        before = self.motions
        await self.answer("go_to_start")
        await self._until(
            lambda: self.motions > before, SET_OUT, "has not reported that the arms set out"
        )
        await self._until(
            lambda: self.policy is not None and self.policy.phase != "moving",
            AT_START,
            "has not brought the arms to the start pose",
        )
        if self.policy is None or not self.policy.armed:
            raise CosmosPolicyError("the arms were disarmed on their way to the start pose")
        if self.arm_interface is not None and self.arm_interface.holding:
            raise CosmosPolicyError(
                f"the arms are held on their way to the start pose: {self.arm_interface.reason}"
            )

    async def reconfigure(self, values: Mapping[str, Value]) -> None:
        """Give the policy node other parameters, and return when its model is loaded.

        Raises:
            CosmosPolicyError: it did not take them, is silent, or could not load.
        """
        before = "" if self.policy is None else self.policy.identity
        for step in reconfiguration(values):
            client, title = self._clients[step.service][0], TITLES[POLICY_NODE]
            send = functools.partial(client.call_async, step.request)
            response = await self._sent(send, TRANSITION, title)
            if problem := step.problem(POLICY_NODE, response):
                raise CosmosPolicyError(problem)
        # Its services are new ones, to be found before anything is asked of them.
        await self._until(self._finds_policy, TRANSITION, "has not opened its services")
        await self._until(
            lambda: (
                self.policy is not None
                and self.policy.identity != before
                and self.policy.phase not in ("loading", "unconfigured")
            ),
            READY,
            "has not loaded its model",
        )
        if self.policy.phase == "failed":
            raise CosmosPolicyError(self.policy.message)

    def _finds_policy(self) -> bool:
        asked = [client for client, _, server in self._clients.values() if server == POLICY_NODE]
        ready = all(client.service_is_ready() for client in asked)
        return ready and bool(self._action.server_is_ready())

    async def _until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Return when a condition is true; raise when the policy node is silent before that."""
        deadline, heard = time.monotonic() + timeout, time.monotonic()
        while not condition():
            now = time.monotonic()
            if self._watched[POLICY_NODE].presence() == "alive":
                heard = now
            if now > deadline or now - heard > SILENT:
                limit = timeout if now > deadline else SILENT
                problem = what if now > deadline else "does not answer any more, silent"
                raise CosmosPolicyError(
                    f"{TITLES[POLICY_NODE]} {problem} for {limit:g} s: look at its log"
                )
            await asyncio.sleep(LOOK)

    async def start_run(self, timeout: float, **goal: Any) -> Awaitable[Any]:
        """Send a goal of ``run_task``; returns what can be awaited for its result.

        Raises:
            CosmosPolicyError: the policy node did not answer, or did not take it.
        """
        title = TITLES[POLICY_NODE]
        wanted = RunTask.Goal(**goal)
        handle = await self._sent(lambda: self._action.send_goal_async(wanted), timeout, title)
        if not handle.accepted:
            raise CosmosPolicyError(f"{title} has not taken the run; see its log")

        async def result() -> Any:
            return (await self._sent(handle.get_result_async, None, title)).result

        return result()

    async def _sent(self, send: Callable[[], Any], timeout: float | None, title: str) -> Any:
        """Have the executor's thread send something, and await its answer in this one."""
        answer: Future[Any] = Future()

        def done(future: Any) -> None:
            if not answer.set_running_or_notify_cancel():
                return  # who asked has given up
            if (error := future.exception()) is None:
                answer.set_result(future.result())
            else:
                answer.set_exception(error)

        def job() -> None:
            try:
                send().add_done_callback(done)
            except Exception as error:  # the executor goes on; who asked is told
                answer.set_exception(error)

        self._jobs.append(job)
        self._wake.trigger()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), timeout)
        except (asyncio.TimeoutError, TimeoutError):
            raise CosmosPolicyError(
                f"{title} has not answered for {timeout:g} s: look at its log; if the arms move, "
                "use the emergency stop"
            ) from None

    def _work(self) -> None:
        while self._jobs:
            self._jobs.popleft()()


class _Watched:
    """A node that is asked for its lifecycle state all the time."""

    def __init__(self, node: LifecycleNode, name: str) -> None:
        self._client: Any = node.create_client(GetState, f"{name}/get_state")
        self._asked: Any = None
        self._asked_at = 0.0
        self._heard: float | None = None
        self.state = "unknown"

    def ask(self) -> None:
        """Ask once more; an answer that never comes is not waited for."""
        now = time.monotonic()
        if self._asked is not None and not self._asked.done():
            if now - self._asked_at < LOST:
                return
            self._client.remove_pending_request(self._asked)
            self._asked = None
        if self._client.service_is_ready():
            self._asked, self._asked_at = self._client.call_async(GetState.Request()), now
            self._asked.add_done_callback(self._hear)

    def presence(self) -> Presence:
        """Return whether it answers."""
        if self._heard is None:
            return "absent"
        return "alive" if time.monotonic() - self._heard < LOST else "lost"

    def _hear(self, future: Any) -> None:
        if (response := future.result()) is not None:
            self._heard, self.state = time.monotonic(), response.current_state.label
