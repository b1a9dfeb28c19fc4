"""What the policy node publishes about itself, and what it checks before arming."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.episodes.topics import RECORDER_NODE
from cosmos_policy_ros.model.statistics import check_images
from cosmos_policy_ros.msg import PolicyState
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.graph import exposure
from cosmos_policy_ros.nodes.policy_topics import PolicyInputs
from cosmos_policy_ros.nodes.policy_watchdog import WatchdogMonitor
from cosmos_policy_ros.planning.scheduler import Inference, SearchScheduler
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.clock import MotionClock
from cosmos_policy_ros.rig.execution import LatencyTracker
from cosmos_policy_ros.rig.observation import SensorBuffer
from cosmos_policy_ros.rig.run import Run
from cosmos_policy_ros.rig.self_check import (
    LEAST_WINDOW,
    Check,
    check_alone,
    check_grippers,
    check_listeners,
    check_pose,
    check_qos,
    check_rates,
    check_sides,
    check_sources,
    check_watchdog,
    failures,
)
from cosmos_policy_ros.rig.spec import RigSpec

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
    outcome: str
    message: str


class PolicyReports:
    """Publishes the state whenever it changes, and diagnostics when asked."""

    def __init__(
        self,
        node: Node,
        inference: Inference,
        sources: SensorBuffer,
        clock: MotionClock,
        engine: str,
        checkpoint: str,
        *,
        images: str,
        identity: str = "",
        heartbeat: bool = False,
    ):
        """Open both topics.

        Args:
            node: whose they are.
            inference: whose health is told.
            sources: the same.
            clock: that arms move by.
            engine: its name.
            checkpoint: as given.
            images: how raw cameras' images are seen, see ``rig.spec.ImageRecording``.
            identity: of this process; empty in a dry run.
            heartbeat: repeat the state while armed.
        """
        self._node, self._inference, self._sources = node, inference, sources
        self._clock, self._identity = clock, identity
        self._commands, self._command_id = 0, ""
        self._heartbeat = heartbeat
        self._engine, self._checkpoint, self._images = engine, checkpoint, images
        quiet = shell.NO_PUBLISHER_EVENTS
        self._states = node.create_publisher(
            PolicyState, "~/state", shell.LATCHED_PUBLISHER, event_callbacks=quiet
        )
        self._diagnostics = node.create_publisher(
            DiagnosticArray, "/diagnostics", 10, event_callbacks=quiet
        )
        self._last: Status | None = None
        self._last_at = -math.inf

    def report(
        self,
        run: Run | None,
        motion: TimedChunk | None,
        armed: bool,
        task: str,
        ended: str,
        told: str,
    ) -> None:
        """Publish how things stand, if that has changed.

        A change of nothing but numbers in the text is published every TEXT_PERIOD.

        Args:
            run: the one under way.
            motion: the way to the start pose that the arms are on.
            armed: whether anything is sent to them.
            task: the node's own.
            ended: outcome of the last run.
            told: how it ended, or why the arms are held, for people.
        """
        status, now = self._status(run, motion, armed, task, ended, told), time.monotonic()
        due = self._heartbeat and armed and now - self._last_at >= HEARTBEAT
        if status == self._last and not due:
            return
        if self._counts_on(status) and now - self._last_at < TEXT_PERIOD and not due:
            return
        self._publish(status)

    def announce(self, command_id: str) -> None:
        """Name a trajectory that is about to be sent; the arm interface takes no other."""
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
        state.images = self._images
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
        ended: str,
        told: str,
    ) -> Status:
        if run is not None and self._inference.status == "ready":
            phase, message = run.phase.value, run.message
        elif motion is not None:
            phase, message = "moving", "on the way to the start pose"
        else:
            phases = {"ready": "ready", "failed": "failed", "closed": "unconfigured"}
            phase = phases.get(self._inference.status, "loading")
            message = told if phase == "ready" else ""
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
            outcome="" if run else ended,
            message=message,
        )

    def diagnose(self, latency: LatencyTracker, warning: str = "") -> None:
        """Publish ages and counts of the inputs, a warning, the inference's state and pace."""
        clock, name = self._node.get_clock(), self._node.get_name()
        now_ns = self._clock.now_ns()
        problems, counts = self._sources.problems(now_ns), self._sources.counts()
        problems += [warning] if warning else []
        inputs = DiagnosticStatus(name=f"{name}: inputs", hardware_id="rig")
        inputs.level = DiagnosticStatus.WARN if problems else DiagnosticStatus.OK
        inputs.message = "; ".join(problems) or "all sources fresh"
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
        pace.values = [KeyValue(key=phase, value=text) for phase, text in latency.summary().items()]
        array = DiagnosticArray(status=[inputs, engine, pace, *self._workers(name)])
        array.header.stamp = clock.now().to_msg()
        self._diagnostics.publish(array)

    def _workers(self, name: str) -> Iterator[DiagnosticStatus]:
        """Yield the state of each inference process of a search, and how fast they have been."""
        if not isinstance(self._inference, SearchScheduler):
            return
        for index, worker in enumerate(self._inference.workers):
            status = DiagnosticStatus(name=f"{name}: worker {index}", hardware_id=worker.title)
            status.level, status.message = _level(worker.status), worker.message
            status.values = [KeyValue(key="restarts", value=str(worker.restarts))]
            yield status
        pace = DiagnosticStatus(name=f"{name}: search", hardware_id="inference")
        pace.message = self._inference.last
        told = self._inference.durations.summary()
        pace.values = [KeyValue(key=stage, value=text) for stage, text in told.items()]
        yield pace


def _level(status: str) -> bytes:
    good = status in ("ready", "starting")
    level: bytes = DiagnosticStatus.OK if good else DiagnosticStatus.ERROR
    return level


UNNAMED = "_NODE_NAME_UNKNOWN_"  # rmw's name of a node that it has not been told of yet
NAMELESS_LOOKS = 3


class PolicyChecks:
    """The self-check before arming: gathers from the wire what ``rig.self_check`` judges."""

    def __init__(
        self,
        node: Node,
        rig: RigSpec,
        inputs: PolicyInputs,
        clock: MotionClock,
        *,
        watchdog: WatchdogMonitor,
        warnings: Sequence[str],
        dry: bool,
        trained_on: Sequence[int] = (),
    ) -> None:
        """Begin to count what comes in."""
        self._dry, self._clock, self._trained_on = dry, clock, tuple(trained_on)
        self._node, self._rig, self._inputs = node, rig, inputs
        self._watchdog, self._warnings = watchdog, tuple(warnings)
        self._nameless = 0
        self._counted: deque[tuple[float, dict[str, int]]] = deque()
        self.count()

    def count(self) -> None:
        """Note how much has come; called now and then, at least every second."""
        now = time.monotonic()
        self._counted.append((now, self._inputs.sources.counts()))
        while len(self._counted) > 1 and now - self._counted[1][0] >= LEAST_WINDOW:
            self._counted.popleft()

    def run(self) -> list[Check]:
        """Look at everything now."""
        sources = self._inputs.sources
        checks = [check_sources(sources.problems(self._clock.now_ns())), check_sides(self._rig)]
        if self._rig.kind == "real":  # a simulated one drops frames on a busy machine, by design
            checks.append(self._rates())
        checks.append(self._images())
        measured = sources.measured()
        checks += [check_pose(self._rig, measured), check_grippers(self._rig, measured)]
        if self._watchdog.needed:
            checks.append(check_watchdog(self._watchdog.node_name, self._watchdog.silence()))
        checks += [check_alone(self._foreign()), check_qos(self._mismatches())]
        if not self._dry:
            checks.append(check_listeners(self._unheard()))
        checks.append(Check("network", True, exposure()))
        # Information: the gate refuses what goes too far.
        fits = "; ".join(self._warnings) or "its statistics are within the rig's limits"
        return [*checks, Check("checkpoint", True, fits)]

    def stranger(self) -> str:
        """Return what else can command the arms, or set their clock; empty if nothing can.

        A publisher is found before its node's name, which may be our own watchdog's: a nameless
        one counts when it is still there a few looks later.
        """
        foreign = {} if self._dry else self._foreign()
        names = [name for each in foreign.values() for name in each]
        self._nameless = self._nameless + 1 if UNNAMED in names else 0
        if not names or (set(names) == {UNNAMED} and self._nameless < NAMELESS_LOOKS):
            return ""
        return failures([check_alone(foreign)])

    def live(self) -> str:
        """Return what is worth a warning at any time; empty if nothing is."""
        measured = self._inputs.sources.measured()
        check = check_grippers(self._rig, measured)
        return "" if measured is None or check.passed else failures([check])

    def _images(self) -> Check:
        try:
            sizes = self._inputs.sources.image_sizes()
        except ObservationError as error:
            return Check("images", False, str(error), "restart the camera's driver")
        return check_images(sizes, self._trained_on, self._rig)

    def _rates(self) -> Check:
        (began, before), counts = self._counted[0], self._inputs.sources.counts()
        new = {name: counts[name] - before[name] for name in counts}
        return check_rates(self._rig, new, time.monotonic() - began)

    def _foreign(self) -> dict[str, list[str]]:
        """Return who else publishes on the topics that move the arms."""
        policy, watchdog = self._node.get_name(), self._watchdog.node_name
        to_us = {policy} if self._streamed and not self._rig.led else {policy, watchdog}
        expected = {output.topic: to_us for output in self._rig.outputs}
        expected |= {topic: {watchdog} for topic in self._driver_topics()}
        foreign = {topic: self._others(topic, names) for topic, names in expected.items()}
        if self._node.get_parameter("use_sim_time").value:
            clocks = [info.node_name for info in self._publishers("/clock")]
            foreign["/clock"] = clocks[1:]
        return foreign

    def _unheard(self) -> list[str]:
        """Return the topics that move the arms and have no listener that could obey."""
        bystanders = {self._node.get_name(), RECORDER_NODE}
        bystanders |= set() if self._streamed else {self._watchdog.node_name}
        topics = [*(output.topic for output in self._rig.outputs), *self._driver_topics()]
        return [topic for topic in topics if not self._listeners(topic) - bystanders]

    @property
    def _streamed(self) -> bool:
        return self._rig.command_interface == "interbotix"

    def _driver_topics(self) -> list[str]:
        """Return the topics of goals that are streamed to drivers."""
        drivers = [arm.driver for arm in self._rig.arms.values() if arm.driver is not None]
        both = [(driver.joint_group, driver.joint_single) for driver in drivers]
        return [topic for topics in both for topic in topics] if self._streamed else []

    def _listeners(self, topic: str) -> set[str]:
        name = self._node.resolve_topic_name(topic)
        return {info.node_name for info in self._node.get_subscriptions_info_by_topic(name)}

    def _others(self, topic: str, expected: set[str]) -> list[str]:
        names = [info.node_name for info in self._publishers(topic)]
        for name in expected & set(names):
            names.remove(name)  # once: a second one of that name is foreign
        return names

    def _mismatches(self) -> list[str]:
        found = []
        for subscription in self._inputs.subscriptions:
            for info in self._publishers(subscription.topic_name):
                compatible, reason = qos_check_compatible(
                    info.qos_profile, subscription.qos_profile
                )
                if compatible == QoSCompatibility.ERROR:
                    found.append(f"{info.node_name} on {subscription.topic_name}: {reason}")
        return found

    def _publishers(self, topic: str) -> Any:
        name = self._node.resolve_topic_name(topic)
        return self._node.get_publishers_info_by_topic(name)
