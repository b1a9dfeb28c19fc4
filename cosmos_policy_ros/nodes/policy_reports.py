"""What the policy node says of itself: ``~/state`` and ``/diagnostics``."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from cosmos_policy_ros.msg import PolicyState
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.planning.planner import Planner
from cosmos_policy_ros.planning.workers import Inference
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.clock import MotionClock
from cosmos_policy_ros.rig.latency import LatencyTracker
from cosmos_policy_ros.rig.run import Run
from cosmos_policy_ros.rig.sources import Sources

TEXT_PERIOD = 0.5  # wall s between state messages that differ only in their text's numbers
HEARTBEAT = 0.1  # wall s between states while armed, changed or not, for who waits for them
MOVING = ("executing", "moving")  # phases
_NUMBER = re.compile(r"\d+(\.\d+)?")


class Status(NamedTuple):
    """How things stand; the fields of PolicyState that change."""

    phase: str
    armed: bool
    task: str
    run_id: str
    chunks: int
    refused: int
    executing_until_ns: int
    message: str


class PolicyReports:
    """Publishes the state whenever it changes, and diagnostics when asked."""

    def __init__(
        self,
        node: Node,
        inference: Inference,
        sources: Sources,
        clock: MotionClock,
        engine: str,
        checkpoint: str,
        *,
        identity: str = "",
        heartbeat: bool = False,
    ):
        """Open both topics.

        Args:
            node: which publishes.
            inference: whose state is told.
            sources: whose ages are told.
            clock: by which they are measured.
            engine: what decides.
            checkpoint: its folder.
            identity: of this process; empty if it commands no arms.
            heartbeat: whether the state is told again and again while armed.
        """
        self._node, self._inference, self._sources = node, inference, sources
        self._clock, self._identity = clock, identity
        self._commands, self._command_id = 0, ""
        self._heartbeat = heartbeat
        self._engine, self._checkpoint = engine, checkpoint
        quiet = shell.NO_PUBLISHER_EVENTS
        self._states = node.create_publisher(
            PolicyState, "~/state", shell.LATCHED_PUBLISHER, event_callbacks=quiet
        )
        self._diagnostics = node.create_publisher(
            DiagnosticArray, "/diagnostics", 10, event_callbacks=quiet
        )
        self._last: Status | None = None
        self._last_at = -math.inf

    def close(self) -> None:
        """Close both topics."""
        self._node.destroy_publisher(self._states)
        self._node.destroy_publisher(self._diagnostics)

    def report(
        self,
        run: Run | None,
        motion: TimedChunk | None,
        armed: bool,
        task: str,
        last_outcome: str,
    ) -> None:
        """Publish how things stand, if that has changed.

        A change of nothing but numbers in the text, which may run, is told now and then.

        Args:
            run: the one under way.
            motion: the way to the start pose that the arms are on.
            armed: whether the arms may move.
            task: of the node, told while there is no run.
            last_outcome: how the last run ended, empty before the first.
        """
        status, now = self._status(run, motion, armed, task, last_outcome), time.monotonic()
        due = self._heartbeat and armed and now - self._last_at >= HEARTBEAT
        if status == self._last and not due:
            return
        if self._counts_on(status) and now - self._last_at < TEXT_PERIOD and not due:
            return
        self._publish(status)

    def announce(self, command_id: str) -> None:
        """Name a trajectory that is about to be sent; guard and streamer take no other."""
        self._commands += 1
        self._command_id = command_id
        assert self._last is not None, "arming is reported before anything is sent"
        self._publish(self._last)

    def _publish(self, status: Status) -> None:
        self._last, self._last_at = status, time.monotonic()
        fields: dict[str, Any] = status._asdict()
        until_ns = fields.pop("executing_until_ns")
        until = shell.ns_to_stamp(self._clock.to_ros(until_ns) if until_ns else 0)
        state = PolicyState(executing_until=until, engine=self._engine, **fields)
        state.identity, state.command_id = self._identity, self._command_id
        state.command_count = self._commands
        state.header.stamp = self._node.get_clock().now().to_msg()
        state.checkpoint, state.checkpoint_digest = self._checkpoint, self._inference.info.digest
        self._states.publish(state)

    def _counts_on(self, status: Status) -> bool:
        """Return whether nothing has changed since the last report but numbers in its text."""
        if self._last is None or status[:-1] != self._last[:-1]:
            return False
        return _NUMBER.sub("", status.message) == _NUMBER.sub("", self._last.message)

    def _status(
        self,
        run: Run | None,
        motion: TimedChunk | None,
        armed: bool,
        task: str,
        last_outcome: str,
    ) -> Status:
        if run is not None and self._inference.status == "ready":
            phase, message = run.phase.value, run.message
        elif motion is not None:
            phase, message = "moving", "on the way to the start pose"
        else:
            phases = {"ready": "ready", "failed": "failed", "closed": "unconfigured"}
            phase = phases.get(self._inference.status, "loading")
            message = last_outcome if phase == "ready" else ""
            message = message or self._inference.message
        chunk = run.chunk if run is not None else motion
        return Status(
            phase=phase,
            armed=armed,
            task=run.goal.task if run else task,
            run_id=run.goal.run_id if run else "",
            chunks=run.chunks if run else 0,
            refused=run.refused if run else 0,
            executing_until_ns=chunk.end_ns if chunk and phase in MOVING else 0,
            message=message,
        )

    def diagnose(self, latency: LatencyTracker, warning: str = "") -> None:
        """Publish ages and counts of the inputs, a warning, the inference's state and pace."""
        clock, name = self._node.get_clock(), self._node.get_name()
        now_ns = self._clock.now_ns()
        complaints, counts = self._sources.complaints(now_ns), self._sources.counts()
        complaints += [warning] if warning else []
        inputs = DiagnosticStatus(name=f"{name}: inputs", hardware_id="rig")
        inputs.level = DiagnosticStatus.WARN if complaints else DiagnosticStatus.OK
        inputs.message = "; ".join(complaints) or "all sources fresh"
        inputs.values = [
            KeyValue(key=source, value=f"{counts[source]} received, age {age:.3f} s")
            for source, age in self._sources.ages(now_ns).items()
        ]
        engine = DiagnosticStatus(name=f"{name}: engine", hardware_id="inference")
        engine.level = _level(self._inference.status)
        engine.message = self._inference.message
        engine.values = [KeyValue(key="restarts", value=str(self._inference.restarts))]
        pace = DiagnosticStatus(name=f"{name}: latency", hardware_id="inference")
        pace.message = "of the queries so far, the first after a start left out"
        pace.values = [KeyValue(key=phase, value=text) for phase, text in latency.told().items()]
        array = DiagnosticArray(status=[inputs, engine, pace, *self._workers(name)])
        array.header.stamp = clock.now().to_msg()
        self._diagnostics.publish(array)

    def _workers(self, name: str) -> Iterator[DiagnosticStatus]:
        """Yield the state of each inference process of a search, and how fast they have been."""
        if not isinstance(self._inference, Planner):
            return
        for index, worker in enumerate(self._inference.workers):
            status = DiagnosticStatus(name=f"{name}: worker {index}", hardware_id=worker.title)
            status.level, status.message = _level(worker.status), worker.message
            status.values = [KeyValue(key="restarts", value=str(worker.restarts))]
            yield status
        pace = DiagnosticStatus(name=f"{name}: search", hardware_id="inference")
        pace.message = self._inference.last
        told = self._inference.durations.told()
        pace.values = [KeyValue(key=stage, value=text) for stage, text in told.items()]
        yield pace


def _level(status: str) -> bytes:
    good = status in ("ready", "starting")
    level: bytes = DiagnosticStatus.OK if good else DiagnosticStatus.ERROR
    return level
