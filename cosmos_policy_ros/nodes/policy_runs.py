"""The policy node's runs: the action, the queries, the answers, and the way to the start pose.

The run's logic is ``rig.run``. Everything here happens in the executor's one thread, so there is
nothing to lock; the worker thread only wakes it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future as Answer
from typing import Any, NamedTuple

from rclpy.action import ActionServer, CancelResponse
from rclpy.lifecycle import LifecycleNode
from rclpy.task import Future

from cosmos_policy_ros.action import RunTask
from cosmos_policy_ros.core.errors import ConfigError, CosmosPolicyError, RigError, WorkerError
from cosmos_policy_ros.core.task import choose_prompt, load_named_task
from cosmos_policy_ros.core.units import NS_PER_S, SEEDS
from cosmos_policy_ros.inference.spec import Decide
from cosmos_policy_ros.nodes.policy_parameters import PolicySettings
from cosmos_policy_ros.nodes.policy_topics import PolicyFutures, PolicyOutput
from cosmos_policy_ros.nodes.policy_watchdog import WatchdogMonitor
from cosmos_policy_ros.planning.scheduler import Inference
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.clock import MotionClock
from cosmos_policy_ros.rig.decision import Decision, Query
from cosmos_policy_ros.rig.execution import InferenceScheduler, LatencyTracker
from cosmos_policy_ros.rig.observation import SensorBuffer
from cosmos_policy_ros.rig.run import Goal, Outcome, Phase, Run
from cosmos_policy_ros.rig.safety_gate import GateContext, SafetyGate, start_motion
from cosmos_policy_ros.rig.tracking import STILL_FOR

NODES_SEED = -1  # in a goal: what the parameter says, as RunTask.action has it


class _Asked(NamedTuple):
    """A query under way; monotonic seconds of when its observation began and when it was sent."""

    query: Query
    started: float
    sent: float


class PolicyRuns:
    """One run at a time, or one motion.

    Attributes:
        run: the one under way, or None.
        motion: the way to the start pose that the arms are on, or None.
        ended: outcome of the last run; empty before the first.
        told: how the last run ended, or why the arms are held, for people; empty before either.
        latched: why nothing moves before the arms have been disarmed and armed again; empty while
            that is not so.
        latency: of the queries so far.
    """

    def __init__(
        self,
        node: LifecycleNode,
        settings: PolicySettings,
        sources: SensorBuffer,
        inference: Inference,
        output: PolicyOutput,
        watchdog: WatchdogMonitor,
        clock: MotionClock,
        wake: Callable[[], None],
    ) -> None:
        """Serve the action; ``wake`` makes the executor call :meth:`take_answers`."""
        self.run: Run | None = None
        self.motion: TimedChunk | None = None
        self.ended = self.told = self.latched = ""
        self._clock = clock
        self._node, self._settings, self._sources = node, settings, sources
        self._inference, self._output, self._watchdog = inference, output, watchdog
        self._gate = SafetyGate(settings.rig)
        self.latency = LatencyTracker()
        self._restarts = 0
        self._ended: Future[Outcome] | None = None
        self._goal_handle: Any = None
        self._commanded: Any = None
        self._answers: deque[tuple[_Asked, Answer[Decision], float]] = deque()
        self._asked: _Asked | None = None
        self._wake = wake
        self._futures = PolicyFutures(node, settings.rig, inference, wake)
        self._action = ActionServer(
            node,
            RunTask,
            "~/run_task",
            execute_callback=self._execute,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            result_timeout=900,  # s; the distros' defaults differ from 10 to 900
        )

    # ---------------------------------------------------------------- what moves

    def poll(self) -> None:
        """Do what is due."""
        self._watchdog.wake(self._output.armed)
        if self._output.armed:
            self._give_way()
            self._output.watch()
            if jump := self._clock.jump():
                self.latch(jump)
        if self.motion is not None:
            self._watch_motion(self.motion)
        run = self.run
        if run is None:
            return
        if self._goal_handle.is_cancel_requested:
            self.stop("cancelled", "the goal was cancelled")
        elif self._inference.status == "failed":
            self.stop("fault", self._inference.message)
        elif problem := self._watchdog.problem():
            self.stop("fault", problem)
        elif self._inference.status == "ready" or run.phase is Phase.EXECUTING:
            started = time.monotonic()
            ready = self._inference.status == "ready"
            effect = run.poll(self._clock.now_ns(), started, ready=ready)
            if isinstance(effect, TimedChunk):
                self._asked = None  # what is being answered is of no use any more
                self._node.get_logger().warning(run.message)
                self._brake(effect, run.message)
            elif effect is not None:
                self._ask(effect, started)
            self._end_if_over(run)

    def _give_way(self) -> None:
        """Move nothing while a person leads the arms, and go on from where they have been led."""
        moves = self.motion is not None or (self.run is not None and not self.run.paused)
        if self._watchdog.led and moves:
            self._node.get_logger().info(f"{self.pause()}: {self._watchdog.led}")
        pose = self._watchdog.led_to
        if pose is None or self._watchdog.silence():
            return
        now_ns = self._clock.now_ns()
        self._output.led(pose)
        self._commanded = pose
        told = self._watchdog.led or "a person has led the arms; ~/pause with data: false goes on"
        if self.run is not None:
            self.run.led(pose, now_ns, f"paused: {told}")
        if not self._watchdog.led:
            self._watchdog.led_to = None

    def stop(self, outcome: str, message: str) -> bool:
        """Bring to rest whatever moves and end the run; return whether there was anything to stop.

        Arms that move although nothing of ours is under way are held where they are.
        """
        now_ns, run, brake = self._clock.now_ns(), self.run, None
        if self.motion is not None:
            self._brake_motion(self.motion, now_ns, self._settings.run.brake_seconds)
            return True
        if run is not None:
            brake = run.stop(now_ns, outcome, message)
            if brake is not None:
                self._brake(brake)
            self._end_if_over(run)
        if brake is None and self._output.armed and self._moves():
            self._output.hold(message)
            self.forget_commanded()
            return True
        return run is not None

    def latch(self, reason: str) -> None:
        """Hold the arms until they are disarmed and armed again; the first reason is kept."""
        if self.latched:
            return
        self.latched = reason
        self._node.get_logger().error(f"the arms are held: {reason}; disarm them to go on")
        self.stop("fault", reason)
        if self._watchdog.led:
            self._output.hold(reason)
        self.told = f"held: {reason}; disarm, then arm, to go on"

    def unlatch(self) -> None:
        """Go on: the arms have been disarmed, or are about to be armed."""
        self.latched = ""
        self._output.trust()
        self._clock.trust()

    def pause(self) -> str:
        """Bring the arms to rest on their path; a run goes on when it is resumed.

        Returns:
            What happens next, for the operator.

        Raises:
            RigError: nothing is under way.
        """
        now_ns = self._clock.now_ns()
        if self.motion is not None:
            self._brake_motion(self.motion, now_ns, self._settings.run.brake_seconds)
            return "the way to the start pose is over: the arms hold; ~/go_to_start goes on"
        if self.run is None:
            raise RigError("no run is under way")
        self._asked = None  # an answer that comes now is of what was seen before the pause
        if brake := self.run.pause(now_ns):
            self._brake(brake)
        return "paused: the arms hold; call ~/pause with data: false to go on"

    def resume(self) -> None:
        """Go on with a fresh observation.

        Raises:
            RigError: there is no run, or a person leads the arms.
        """
        if self.run is None:
            raise RigError("no run is under way")
        if self._watchdog.led:
            raise RigError(self._watchdog.led)
        self.run.resume()

    def go_to_start(self, speed: float) -> float:
        """Move both arms to their start pose, the fastest joint at ``speed`` [rad/s].

        Returns:
            Seconds that it takes.

        Raises:
            RigError: the arms are disarmed, in use, silent, or the gate refused.
        """
        if not self._output.armed:
            raise RigError("the arms are disarmed; call ~/arm with data: true first")
        if self.run is not None or self.motion is not None:
            raise RigError("the arms are in use; call ~/stop first")
        if problem := self.latched or self._watchdog.problem() or self._watchdog.led:
            raise RigError(problem)
        measured, now_ns = self._sources.measured(), self._clock.now_ns()
        if measured is None:
            raise RigError("the arms have sent no joint states: are their drivers running?")
        held = measured if self._commanded is None else self._commanded
        now = GateContext(held, measured, state_age=self._sources.state_age(now_ns))
        motion = start_motion(self._settings.rig, self._gate, now, now_ns, speed)
        if wrong := self._output.move(motion):
            self.latch(wrong)
            raise RigError(wrong)
        self.motion = motion
        self._output.tracking.clear()
        return (motion.end_ns - now_ns) / NS_PER_S

    def forget_commanded(self) -> None:
        """Take the arms as they stand from now on: something else may have moved them."""
        self._commanded = None

    def _moves(self) -> bool:
        """Return whether an arm joint moves although nothing of ours is under way."""
        path = self._output.path
        ours = path is not None and self._clock.now_ns() < path.end_ns + STILL_FOR * NS_PER_S
        return not ours and self._output.stillness.moving

    def _brake(self, brake: TimedChunk, why: str = "") -> None:
        """Bring the arms to rest; held off their path, they may not go on from there."""
        if off_path := self._output.brake(brake):
            self.forget_commanded()
            self.latch(f"{why}; {off_path}" if why else off_path)

    def _watch_motion(self, motion: TimedChunk) -> None:
        now_ns, measured = self._clock.now_ns(), self._output.measured()
        tracking = self._output.tracking
        tracking.add(now_ns, motion.sample(now_ns))
        lags = (
            None if measured is None or self._settings.dry_run else tracking.check(now_ns, measured)
        )
        if problem := self._watchdog.problem():
            self._node.get_logger().error(f"the way to the start pose is over: {problem}")
            self._brake_motion(motion, now_ns, self._settings.run.brake_seconds)
            self.forget_commanded()
        elif lags is not None:
            self.latch(lags.message)
        elif lost := self._sources.stale_source(now_ns, cameras=False):
            self._node.get_logger().error(f"{lost}: braked, the arms hold")
            self._brake_motion(motion, now_ns, self._settings.rig.rates.loss_brake)
        elif now_ns >= motion.end_ns:
            self._end_motion(motion)

    def _brake_motion(self, motion: TimedChunk, now_ns: int, seconds: float) -> None:
        brake = motion.brake(now_ns, seconds)
        self._end_motion(brake)
        self._brake(brake)

    def _end_motion(self, last: TimedChunk) -> None:
        self.motion = None
        elsewhere = self._settings.dry_run or self._watchdog.held()
        self._commanded = None if elsewhere else last.positions[-1]

    # ---------------------------------------------------------------- queries and answers

    def _ask(self, query: Query, started: float) -> None:
        self._asked = asked = _Asked(query, started, time.monotonic())

        def done(answer: Answer[Decision]) -> None:
            self._answers.append((asked, answer, time.monotonic()))
            self._wake()

        self._inference.submit(Decide(query)).add_done_callback(done)

    def take_answers(self) -> None:
        """Act on what has been answered, in the executor's thread."""
        self._futures.publish()
        while self._answers:
            asked, answer, ready = self._answers.popleft()
            run = self.run
            if run is None or asked is not self._asked or self._watchdog.held():
                continue  # its run was stopped or paused meanwhile, or is about to be
            error = answer.exception()
            if error is None:
                self._act(run, asked, answer.result(), ready)
            elif isinstance(error, CosmosPolicyError):
                self._node.get_logger().error(f"query failed: {error}")
                recoverable = isinstance(error, WorkerError) and self._inference.status != "failed"
                run.query_failed(error, recoverable)
            else:
                raise error
            self._end_if_over(run)

    def _act(self, run: Run, asked: _Asked, decision: Decision, ready: float) -> None:
        """Judge a decision and, if it passes, move; then tell what was decided and why."""
        query, started, sent = asked
        now_ns = self._clock.now_ns()
        chunk_id = f"{run.goal.run_id}/{run.chunks}"
        result, chunk = run.answer(decision, now_ns)
        if chunk is not None and (wrong := self._output.move(chunk)):
            run.fault(wrong)
        published = time.monotonic()
        phases = {"observe": sent - started, **decision.phases}
        phases["transfer"] = ready - sent - sum(decision.phases.values())
        phases["publish"] = published - ready
        self._note_latency(now_ns - query.observation.seen_ns, phases)
        self._output.decided(decision, query, run.goal.run_id, chunk_id, phases)
        if self._settings.futures:
            self._futures.ask(query, decision, chunk_id)
        self._output.judged(result, run.transition, chunk_id, self._clock.to_ros(now_ns))
        feedback = RunTask.Feedback(chunk=run.chunks, phase=run.phase.value, message=run.message)
        feedback.seconds = (now_ns - self._run_started_ns) / NS_PER_S
        feedback.latency = published - started
        self._goal_handle.publish_feedback(feedback)

    def _note_latency(self, answered_ns: int, phases: dict[str, float]) -> None:
        """Note how long a query took: on the arms' clock until the answer, then to publish it."""
        if self._restarts != self._inference.restarts:
            self._restarts = self._inference.restarts
            self.latency.restarted()
        self.latency.add(answered_ns / NS_PER_S + phases["publish"], phases)

    def _end_if_over(self, run: Run) -> None:
        outcome = run.outcome
        if outcome is None or run is not self.run:
            return
        assert self._ended is not None
        self.ended = outcome.outcome
        self.told = f"run ended ({outcome.outcome}): {outcome.message}"
        # Two lines of code: rclpy refuses two severities from one.
        if outcome.success:
            self._node.get_logger().info(self.told)
        else:
            self._node.get_logger().error(self.told)
        elsewhere = self._watchdog.held() or outcome.latched or self.latched
        later_ns = self._clock.now_ns() + 3600 * NS_PER_S  # when its path has ended
        self._commanded = None if elsewhere else run.commanded(later_ns)
        self.run = self._asked = None
        if not self._ended.done():
            self._ended.set_result(outcome)
        if outcome.latched:
            self.latch(outcome.message)

    # ---------------------------------------------------------------- the action

    async def _execute(self, handle: Any) -> RunTask.Result:
        """Serve one goal; waits without blocking the executor."""
        try:
            goal = self._accept(bytes(handle.goal_id.uuid).hex(), handle.request)
        except CosmosPolicyError as error:
            self._node.get_logger().error(f"run refused: {error}")
            handle.abort()
            return RunTask.Result(outcome="refused", message=str(error))
        settings = self._settings
        self._goal_handle, self._ended = handle, Future(executor=self._node.executor)
        self._run_started_ns = self._clock.now_ns()
        self.run = run = Run(
            goal,
            settings.rig,
            self._sources,
            self._gate,
            settings.run,
            self._commanded,
            dry=settings.dry_run,
            scheduler=InferenceScheduler(settings.execution, settings.rig.rates, self.latency),
            tracking=self._output.tracking,
        )
        self._node.get_logger().info(f"run {goal.run_id}: {goal.task}, prompt '{goal.prompt}'")
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
            seconds=(self._clock.now_ns() - self._run_started_ns) / NS_PER_S,
            idle_seconds=run.idle_ns / NS_PER_S,
            run_id=goal.run_id,
        )

    def _accept(self, run_id: str, request: RunTask.Goal) -> Goal:
        """Return the goal in full, or raise CosmosPolicyError with what stands against it."""
        if self.run is not None:
            raise ConfigError(
                f"run {self.run.goal.run_id} is under way; cancel it or call ~/stop first"
            )
        if self.motion is not None:
            raise RigError("the arms are on their way to the start pose; wait, or call ~/stop")
        if not self._output.armed:
            raise ConfigError("the arms are disarmed; call ~/arm with data: true first")
        if self._inference.status == "failed":
            raise WorkerError(f"the engine is not available: {self._inference.message}")
        if problem := self.latched or self._watchdog.problem() or self._watchdog.led:
            raise RigError(problem)
        if not (math.isfinite(request.time_limit) and request.time_limit >= 0):
            raise ConfigError(f"time_limit {request.time_limit} s must be finite, 0 or more")
        settings = self._settings
        seed = settings.seed if request.seed == NODES_SEED else request.seed
        if not 0 <= seed < SEEDS:
            raise ConfigError(
                f"seed {seed} must be from 0 to {SEEDS - 1}, or {NODES_SEED} for the node's own"
            )
        task = settings.task
        if request.task and request.task != task.name:
            task = load_named_task(request.task).task
        return Goal(
            run_id=run_id,
            task=task.name,
            prompt=choose_prompt(task, request.prompt),
            time_limit=request.time_limit or task.time_limit,
            chunk_limit=request.chunk_limit,
            seed=seed,
            deadline=settings.deadline or task.deadline,
        )
