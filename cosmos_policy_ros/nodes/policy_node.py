"""The policy node: observation → chunk → gate → one timed trajectory per arm.

A thin shell. The run's logic is ``rig.run``, the gates are ``rig.sources`` and ``rig.gate``, the
model lives in worker processes (``planning.workers``). Everything here happens in the executor's
one thread, so there is nothing to lock; the worker thread only wakes it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future as Answer
from typing import Any, NamedTuple

from rclpy.action import ActionServer, CancelResponse
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from cosmos_policy_ros.action import RunTask
from cosmos_policy_ros.errors import ConfigError, CosmosPolicyError, RigError, WorkerError
from cosmos_policy_ros.msg import Decision as DecisionMsg
from cosmos_policy_ros.msg import Verdict as VerdictMsg
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.convert import (
    TrajectoryMessages,
    decision_to_message,
    verdict_to_message,
)
from cosmos_policy_ros.nodes.policy_checks import PolicyChecks
from cosmos_policy_ros.nodes.policy_futures import PolicyFutures
from cosmos_policy_ros.nodes.policy_inputs import PolicyInputs
from cosmos_policy_ros.nodes.policy_pace import Pace
from cosmos_policy_ros.nodes.policy_parameters import (
    PARAMETERS,
    PolicySettings,
    read_settings,
    warnings,
)
from cosmos_policy_ros.nodes.policy_reports import PolicyReports
from cosmos_policy_ros.nodes.policy_streamer import StreamerWatch
from cosmos_policy_ros.planning.engine_spec import EngineLoader
from cosmos_policy_ros.planning.engines import load_engine
from cosmos_policy_ros.planning.tasks import Decide
from cosmos_policy_ros.planning.workers import Inference, start_inference
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.decision import Decision, Query
from cosmos_policy_ros.rig.gate import SafetyGate
from cosmos_policy_ros.rig.run import Goal, Outcome, Phase, Run
from cosmos_policy_ros.rig.self_check import Check, failures, table
from cosmos_policy_ros.rig.share import config_folder
from cosmos_policy_ros.rollouts.task import choose_prompt, load_task


class _Asked(NamedTuple):
    """A query under way; monotonic seconds of when its observation began and when it was sent."""

    query: Query
    started: float
    sent: float


class PolicyNode(LifecycleNode):
    """Lifecycle node ``policy_node``; disarmed at start."""

    def __init__(self, load: EngineLoader = load_engine) -> None:
        """Declare the parameters; everything else happens when it is configured."""
        super().__init__("policy_node")
        shell.declare(self, PARAMETERS)
        self._load = load
        self._settings: PolicySettings | None = None
        self._inference: Inference | None = None
        self._run: Run | None = None
        self._ended: Future[Outcome] | None = None
        self._goal_handle: Any = None
        self._active = self._armed = False
        self._commanded: Any = None
        self._answers: deque[tuple[_Asked, Answer[Decision], float]] = deque()
        self._asked: _Asked | None = None
        self._last_outcome = ""

    # ---------------------------------------------------------------- lifecycle

    @shell.transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters, connect, start loading the engine."""
        self._settings = settings = read_settings(self)
        warned = warnings(settings)
        for warning in warned:
            self.get_logger().warning(warning)
        self._inputs = PolicyInputs(self, settings.rig)
        self._gate = SafetyGate(settings.rig)
        self._trajectory_messages = TrajectoryMessages(settings.rig)
        self._wake = self.create_guard_condition(self._take_answers)
        engine = settings.engine
        self._inference = start_inference(
            engine, settings.devices, settings.worker, self._wake.trigger, self._load, settings.ray
        )
        self._reports = PolicyReports(
            self,
            self._inference,
            self._inputs.sources,
            engine.engine,
            engine.checkpoint,
            heartbeat=settings.rig.sink == "interbotix",
        )
        self._streamer = StreamerWatch(self, settings.rig, settings.streamer_state)
        self._checks = PolicyChecks(
            self, settings.rig, self._inputs, streamer=self._streamer.node_name, warnings=warned
        )
        self._connect(settings)
        return super().on_configure(state)

    @shell.transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let the trajectory publishers speak; the arms stay disarmed."""
        self._active = True
        return super().on_activate(state)

    @shell.transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Brake and disarm while the trajectory publishers still speak."""
        self._stop("stopped", "the node was deactivated")
        self._armed = self._active = False
        return super().on_deactivate(state)

    @shell.transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Disconnect and end the worker."""
        self._disconnect()
        return super().on_cleanup(state)

    @shell.transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Do the same from any state."""
        self.close()
        return super().on_shutdown(state)

    def close(self) -> None:
        """Brake, end the run and the worker; called before the ROS context ends."""
        self._stop("stopped", "the node was shut down")
        self._armed = False
        if self._inference is not None:
            self._report()
            self._inference.close()

    def _connect(self, settings: PolicySettings) -> None:
        assert self._inference is not None
        options = QoSOverridingOptions.with_default_policies()
        self._trajectories = [
            self.create_lifecycle_publisher(
                JointTrajectory, arm.trajectory, 10, qos_overriding_options=options
            )
            for arm in settings.rig.arms.values()
        ]
        quiet = shell.NO_PUBLISHER_EVENTS
        self._decisions = self.create_lifecycle_publisher(
            DecisionMsg, "~/decision", 10, event_callbacks=quiet
        )
        self._verdicts = self.create_lifecycle_publisher(
            VerdictMsg, "~/verdict", 10, event_callbacks=quiet
        )
        self._futures = PolicyFutures(self, settings.rig, self._inference, self._wake.trigger)
        self._pace = Pace(self, settings.rig.arms.keys(), self._poll)
        self._inputs.on_joint_state = self._pace.on_joint_state
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnosing = self.create_timer(1.0, self._diagnose, clock=steady)
        # Not _services: rclpy keeps its own list under that name, parameters and lifecycle in it.
        self._served = [
            self.create_service(SetBool, "~/arm", self._on_arm),
            self.create_service(Trigger, "~/stop", self._on_stop),
            self.create_service(Trigger, "~/self_check", self._on_self_check),
        ]
        self._action = ActionServer(
            self,
            RunTask,
            "~/run_task",
            execute_callback=self._execute,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            result_timeout=900,  # s; the distros' defaults differ from 10 to 900
        )

    def _disconnect(self) -> None:
        if self._inference is not None:
            self._inference.close()
            self._inference = None
        self._action.destroy()
        self._pace.close()
        self.destroy_timer(self._diagnosing)
        for service in self._served:
            self.destroy_service(service)
        for publisher in [*self._trajectories, self._decisions, self._verdicts]:
            self.destroy_publisher(publisher)
        self._inputs.close()
        self._streamer.close()
        self._futures.close()
        self._reports.close()
        self.destroy_guard_condition(self._wake)

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    # ---------------------------------------------------------------- the run

    def _poll(self) -> None:
        run = self._run
        if run is not None and self._inference is not None:
            if self._goal_handle.is_cancel_requested:
                self._stop("cancelled", "the goal was cancelled")
            elif self._inference.status == "failed":
                self._stop("fault", self._inference.message)
            elif complaint := self._streamer.complaint():
                self._stop("fault", complaint)
            elif self._inference.status == "ready" or run.phase is Phase.EXECUTING:
                started = time.monotonic()
                effect = run.poll(self._now_ns(), started)
                if isinstance(effect, TimedChunk):
                    self.get_logger().warning(run.message)
                    self._publish_chunk(effect)
                elif effect is not None:
                    self._ask(effect, started)
                if run.outcome is not None:
                    self._end_run(run.outcome)
        self._report()

    def _ask(self, query: Query, started: float) -> None:
        assert self._inference is not None
        self._asked = asked = _Asked(query, started, time.monotonic())

        def done(answer: Answer[Decision]) -> None:
            self._answers.append((asked, answer, time.monotonic()))
            self._wake.trigger()

        self._inference.submit(Decide(query)).add_done_callback(done)

    def _take_answers(self) -> None:
        self._futures.publish()
        while self._answers:
            asked, answer, ready = self._answers.popleft()
            run = self._run
            if run is None or asked is not self._asked:
                continue  # its run was stopped meanwhile: the result is dropped, nothing moves
            error = answer.exception()
            if error is None:
                self._act(run, asked, answer.result(), ready)
            elif isinstance(error, CosmosPolicyError):
                self.get_logger().error(f"query failed, the arms hold: {error}")
                assert self._inference is not None
                recoverable = isinstance(error, WorkerError) and self._inference.status != "failed"
                run.query_failed(error, recoverable)
            else:
                raise error
            if run.outcome is not None:
                self._end_run(run.outcome)
        self._report()

    def _act(self, run: Run, asked: _Asked, decision: Decision, ready: float) -> None:
        """Judge a decision and, if it passes, move; then tell what was decided and why."""
        assert self._settings is not None
        query, started, sent = asked
        now_ns = self._now_ns()
        chunk_id = f"{run.goal.run_id}/{run.chunks}"
        verdict, chunk = run.answer(decision, now_ns)
        if chunk is not None:
            self._publish_chunk(chunk)
        published = time.monotonic()
        phases = {"observe": sent - started, **decision.phases}
        phases["transfer"] = ready - sent - sum(decision.phases.values())
        phases["publish"] = published - ready
        rig = self._settings.rig
        self._decisions.publish(
            decision_to_message(decision, query, run.goal.run_id, chunk_id, phases)
        )
        if self._settings.futures:
            self._futures.ask(query, decision, chunk_id)
        self._verdicts.publish(verdict_to_message(verdict, chunk_id, now_ns, rig))
        if chunk is None:
            self.get_logger().error(f"chunk {chunk_id} refused: {verdict.message}")
        feedback = RunTask.Feedback(chunk=run.chunks, phase=run.phase.value, message=run.message)
        feedback.seconds = (now_ns - self._run_started_ns) / shell.NS
        feedback.latency = published - started
        self._goal_handle.publish_feedback(feedback)

    def _publish_chunk(self, chunk: TimedChunk) -> None:
        assert self._settings is not None
        if not self._armed:  # the last line of defence; disarming has already stopped the run
            self.get_logger().error(f"chunk {chunk.chunk_id} withheld: the arms are disarmed")
            return
        messages = self._trajectory_messages.fill(chunk)
        for publisher, message in zip(self._trajectories, messages, strict=True):
            publisher.publish(message)

    def _stop(self, outcome: str, message: str) -> None:
        if self._run is None:
            return
        if brake := self._run.stop(self._now_ns(), outcome, message):
            self._publish_chunk(brake)
        assert self._run.outcome is not None
        self._end_run(self._run.outcome)

    def _end_run(self, outcome: Outcome) -> None:
        assert self._run is not None
        assert self._ended is not None
        self._last_outcome = f"run ended ({outcome.outcome}): {outcome.message}"
        # Two lines of code: rclpy refuses two severities from one.
        if outcome.success:
            self.get_logger().info(self._last_outcome)
        else:
            self.get_logger().error(self._last_outcome)
        self._commanded = self._run.commanded(self._now_ns() + shell.NS * 3600)
        self._run = self._asked = None
        if not self._ended.done():
            self._ended.set_result(outcome)

    # ---------------------------------------------------------------- services and the action

    async def _execute(self, handle: Any) -> RunTask.Result:
        """Serve one goal; waits without blocking the executor."""
        try:
            goal = self._accept(bytes(handle.goal_id.uuid).hex(), handle.request)
        except CosmosPolicyError as error:
            self.get_logger().error(f"run refused: {error}")
            handle.abort()
            return RunTask.Result(outcome="refused", message=str(error))
        assert self._settings is not None
        self._goal_handle, self._ended = handle, Future(executor=self.executor)
        self._run_started_ns = self._now_ns()
        self._run = run = Run(
            goal,
            self._settings.rig,
            self._inputs.sources,
            self._gate,
            self._settings.run,
            self._commanded,
        )
        self.get_logger().info(f"run {goal.run_id}: {goal.task}, prompt '{goal.prompt}'")
        outcome = await self._ended
        assert outcome is not None
        if outcome.outcome == "cancelled":
            handle.canceled()
        elif outcome.success:
            handle.succeed()
        else:
            handle.abort()
        return RunTask.Result(
            success=outcome.success,
            outcome=outcome.outcome,
            message=outcome.message,
            chunks=run.chunks,
            refused=run.refused,
            seconds=(self._now_ns() - self._run_started_ns) / shell.NS,
            idle_seconds=run.idle_ns / shell.NS,
            run_id=goal.run_id,
        )

    def _accept(self, run_id: str, request: RunTask.Goal) -> Goal:
        """Return the goal in full, or raise CosmosPolicyError with what stands against it."""
        assert self._settings is not None
        assert self._inference is not None
        if self._run is not None:
            raise ConfigError(
                f"run {self._run.goal.run_id} is under way; cancel it or call ~/stop first"
            )
        if not self._armed:
            raise ConfigError("the arms are disarmed; call ~/arm with data: true first")
        if self._inference.status == "failed":
            raise WorkerError(f"the engine is not available: {self._inference.message}")
        if complaint := self._streamer.complaint():
            raise RigError(complaint)
        if not (math.isfinite(request.time_limit) and request.time_limit >= 0):
            raise ConfigError(f"time_limit {request.time_limit} s must be finite, 0 or more")
        task = self._settings.task
        if request.task:
            task = load_task(request.task, config_folder("tasks"))
        return Goal(
            run_id=run_id,
            task=task.name,
            prompt=choose_prompt(task, request.prompt),
            time_limit=request.time_limit or task.time_limit,
            chunk_limit=request.chunk_limit,
            seed=request.seed or self._settings.seed,
            deadline=self._settings.deadline or task.deadline,
        )

    def _on_arm(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data and not self._active:
            response.message = "refused: the node is not active; activate it first"
            return response
        assert self._settings is not None
        if request.data and self._settings.self_check and (against := failures(self._check())):
            response.message = f"refused: {against}"
            return response
        if not request.data:
            self._stop("stopped", "the arms were disarmed")
        if request.data != self._armed:
            # What the arms were last told is stale once somebody else may have moved them.
            self._commanded = None
        self._armed = request.data
        response.success = True
        response.message = "armed: arms may move" if self._armed else "disarmed: nothing is sent"
        self.get_logger().info(response.message)
        self._report()
        return response

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        running = self._run is not None
        self._stop("stopped", "~/stop was called")
        self._armed = False
        response.success = True
        response.message = "stopped and disarmed" if running else "nothing was running; disarmed"
        self._report()
        return response

    def _on_self_check(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        checks = self._check()
        response.success, response.message = not failures(checks), table(checks)
        return response

    def _check(self) -> list[Check]:
        checks = self._checks.run()
        self.get_logger().info(f"self-check\n{table(checks)}")
        return checks

    # ---------------------------------------------------------------- reports

    def _diagnose(self) -> None:
        self._checks.count()
        self._reports.diagnose()

    def _report(self) -> None:
        """Tell how things stand, if that has changed."""
        assert self._settings is not None
        self._reports.report(self._run, self._armed, self._settings.task.name, self._last_outcome)


def make_node(load: EngineLoader = load_engine) -> LifecycleNode:
    """Create the node and, with ``autostart``, bring it up."""
    return shell.bring_up(PolicyNode(load))


def main() -> None:
    """Entry point of ``ros2 run cosmos_policy_ros policy_node``."""
    shell.main(make_node)
