"""The policy node's topics: sensors in, trajectories and what explains them out, and its pace."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future as Answer
from typing import Any

import cv2  # noqa: F401  # decodes; loaded with the node, not while a query waits
import numpy as np
from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory

from cosmos_policy_ros.core.errors import WorkerError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.inference.spec import DecodeImages, Images
from cosmos_policy_ros.msg import Decision as DecisionMsg
from cosmos_policy_ros.msg import GateResult as GateResultMsg
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.convert import (
    TrajectoryMessages,
    decision_to_message,
    gate_result_to_message,
    image_to_message,
)
from cosmos_policy_ros.nodes.policy_watchdog import WatchdogMonitor
from cosmos_policy_ros.planning.scheduler import Inference
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES
from cosmos_policy_ros.rig.chunk import BRAKE, ChunkTransition, TimedChunk
from cosmos_policy_ros.rig.clock import MotionClock
from cosmos_policy_ros.rig.command_check import CommandCheck
from cosmos_policy_ros.rig.decision import Decision, Query
from cosmos_policy_ros.rig.observation import SensorBuffer
from cosmos_policy_ros.rig.ownership import HOLD
from cosmos_policy_ros.rig.run import LATE
from cosmos_policy_ros.rig.safety_gate import GateResult
from cosmos_policy_ros.rig.spec import Camera, RigSpec
from cosmos_policy_ros.rig.tracking import StillnessWatch, TrackingMonitor, deviation

# Reliable, since without the shipped Fast DDS profile a best-effort reader of large images loses
# most of them; five deep, since a reader of one loses up to half without the profile.
CAMERA_QOS = QoSProfile(depth=5)
JOINT_STATE_QOS = QoSProfile(depth=10)


class PolicyInputs:
    """Feeds ``sources`` from the cameras and arms of a rig.

    Attributes:
        sources: the newest of everything.
        on_joint_state: called with the arm after each of its joint states, a rejected one too;
            does nothing until set.
        subscriptions: of cameras and arms.
    """

    def __init__(self, node: Node, rig: RigSpec, clock: MotionClock) -> None:
        """Subscribe; QoS can be overridden per topic by ``qos_overrides`` parameters."""
        self.sources, self._clock = SensorBuffer(rig), clock
        self.on_joint_state: Callable[[str], None] = lambda arm: None
        self._node = node
        self.subscriptions = [self._camera(camera) for camera in rig.cameras]
        self.subscriptions += [
            self._subscribe(JointState, arm.joint_states, self._keep_joints(side), JOINT_STATE_QOS)
            for side, arm in rig.arms.items()
        ]

    def _subscribe(
        self, kind: Any, topic: str, keep: Callable[[Any], None], qos: QoSProfile
    ) -> Any:
        options = QoSOverridingOptions.with_default_policies()
        return self._node.create_subscription(
            kind, topic, keep, qos, qos_overriding_options=options
        )

    def _camera(self, camera: Camera) -> Any:
        def keep(message: Any) -> None:
            stamp_ns = shell.stamp_to_ns(message.header.stamp)
            self.sources.add_image(camera.role, message, stamp_ns, self._clock.receipt(stamp_ns))

        kind = Image if camera.transport == "raw" else CompressedImage
        return self._subscribe(kind, camera.topic, keep, CAMERA_QOS)

    def _keep_joints(self, side: str) -> Callable[[Any], None]:
        def keep(message: Any) -> None:
            stamp_ns = shell.stamp_to_ns(message.header.stamp)
            receipt = self._clock.receipt(stamp_ns)
            self.sources.add_joint_state(side, message.name, message.position, stamp_ns, receipt)
            self.on_joint_state(side)

        return keep


class PolicyFutures:
    """Publishes each decision's predicted images on ``~/future/<camera>``, decoded in motion.

    For people to look at: nothing waits for them.
    """

    def __init__(
        self, node: LifecycleNode, rig: RigSpec, inference: Inference, wake: Callable[[], None]
    ) -> None:
        """Open the topics; ``wake`` is called from a thread when :meth:`publish` has work."""
        self._node, self._inference, self._wake = node, inference, wake
        self._decoded: deque[tuple[int, str, Images]] = deque()
        self._publishers: dict[str, Any] = {
            camera.role: node.create_lifecycle_publisher(
                Image, f"~/future/{camera.role}", 10, event_callbacks=shell.NO_PUBLISHER_EVENTS
            )
            for camera in rig.cameras
        }

    def ask(self, query: Query, decision: Decision, chunk_id: str) -> None:
        """Have a decision's future decoded, if it imagined one."""
        if decision.imagined is None:
            return

        def done(answer: Answer[Images]) -> None:
            error = answer.exception()
            if error is None:
                self._decoded.append((query.observation.stamp_ns, chunk_id, answer.result()))
                self._wake()
            elif not isinstance(error, WorkerError):  # what befell a process is told elsewhere
                self._node.get_logger().warning(f"no imagined images of {chunk_id}: {error}")

        self._inference.submit(DecodeImages(query, decision.imagined)).add_done_callback(done)

    def publish(self) -> None:
        """Publish what has been decoded; called in the executor's thread."""
        while self._decoded:
            stamp_ns, chunk_id, images = self._decoded.popleft()
            for role, publisher in self._publishers.items():
                if role in images:
                    publisher.publish(image_to_message(images[role], stamp_ns, chunk_id))


# s in which a watchdog that says it holds brings the arms to rest; in which arms on a slow path are
# off it then; and in which a node that was kept waiting hears of the arms again (0.8 to 1.0 seen).
WATCHDOG_BRAKES, OFF_SLOW_PATH, HEARD_AGAIN = 0.4, 1.0, 3.0
OFF_PATH = 0.05  # rad; arms that rest so far off a path that goes on do not follow it


class PolicyOutput:
    """The only place where trajectories leave the node, each after a last check.

    Attributes:
        armed: without it nothing is sent to an arm.
        path: what was sent last; None before anything was.
        tracking: whether the arms follow it.
        stillness: whether they move at all.
    """

    def __init__(
        self,
        node: LifecycleNode,
        rig: RigSpec,
        watchdog: WatchdogMonitor,
        sources: SensorBuffer,
        clock: MotionClock,
        announce: Callable[[str], None],
        *,
        dry: bool,
    ) -> None:
        """Open the topics: those of the arms, or in a dry run ``~/preview/<output>``.

        ``announce`` names a trajectory by its id before it is sent.
        """
        self.armed = False
        self.path: TimedChunk | None = None
        self.tracking, self.stillness = TrackingMonitor(rig), StillnessWatch()
        # Why the arms are to be held as soon as it is known where they are, and since when.
        self._owed, self._owed_ns = "", 0
        self._node, self._rig, self._watchdog = node, rig, watchdog
        self._sources, self._clock, self._announce, self._dry = sources, clock, announce, dry
        self._check, self._holds = CommandCheck.of_rig(rig), 0
        self._messages = TrajectoryMessages(rig)
        options = QoSOverridingOptions.with_default_policies()
        self._trajectories = [
            node.create_lifecycle_publisher(
                JointTrajectory,
                f"~/preview/{output.name}" if dry else output.topic,
                10,
                qos_overriding_options=options,
            )
            for output in rig.outputs
        ]
        quiet = shell.NO_PUBLISHER_EVENTS
        self._decisions = node.create_lifecycle_publisher(
            DecisionMsg, "~/decision", 10, event_callbacks=quiet
        )
        self._gate_results = node.create_lifecycle_publisher(
            GateResultMsg, "~/gate_result", 10, event_callbacks=quiet
        )

    def watch(self) -> None:
        """Look where armed arms are, and hold them if that was waited for; called all the time."""
        measured = self.measured()
        if measured is None:
            return
        self.stillness.add(self._clock.now_ns(), measured)
        if self._owed and not self._seen_to_hold():
            self.hold(self._owed)

    def disarm(self) -> None:
        """Send nothing any more; what moved has been stopped before, or is held now."""
        if self._owed and not self._seen_at_rest():
            # The last chance: a pose of half a second ago is one that the arms come from.
            self.hold(self._owed, self._rig.observation.state_timeout)
            if self._owed:
                limit = self._rig.observation.state_timeout
                self._node.get_logger().error(
                    f"{self._owed}; the arms have not reported for {limit:g} s, so no hold of ours "
                    "was sent: use the emergency stop if they move"
                )
        self.armed, self._owed = False, ""

    def trust(self) -> None:
        """Begin anew with arms that have been disarmed: something else may have moved them."""
        self.path, self._owed = None, ""
        self.tracking.clear()
        self.stillness.clear()

    def led(self, pose: NDArray[np.float64]) -> None:
        """Note that the arms have been led to a (14,) pose: a hold keeps the grip there."""
        now_ns, speeds = self._clock.now_ns(), self._rig.max_velocity
        self.path = TimedChunk.hold("", now_ns, self._rig.rates.dt, pose, pose, speeds)
        self.tracking.clear()

    def measured(self, oldest: float = 0.0) -> NDArray[np.float64] | None:
        """Return where (14,) the arms are now, None where that is not known.

        Args:
            oldest: seconds; 0 for as old as an observation may be.
        """
        age = self._sources.state_age(self._clock.now_ns())
        known = age <= (oldest or self._rig.observation.state_age)
        return self._sources.measured() if known else None

    def move(self, chunk: TimedChunk) -> str:
        """Send a chunk that the gate has passed.

        Returns:
            Why the arms were held where they are instead, empty if it was sent.
        """
        if not self.armed:  # disarming has already stopped what moved
            self._node.get_logger().error(f"chunk {chunk.chunk_id} withheld: the arms are disarmed")
            return "the arms are disarmed"
        wrong = self._watchdog.holding() or self._wrong(chunk, self._commanded(chunk))
        if wrong:
            return self.hold(f"chunk {chunk.chunk_id} was not sent: {wrong}")
        self._send(chunk)
        return ""

    def brake(self, brake: TimedChunk) -> str:
        """Bring moving arms to rest along their path, or where they are if they are not on it.

        Returns:
            Why they are held off their path, empty if they are not.
        """
        if not self.armed:
            return ""
        if elsewhere := self._watchdog.holding():
            self._owe(elsewhere)
            self.watch()
            return elsewhere
        commanded, measured, off = self._commanded(brake), self.measured(), ""
        if measured is not None and not self._dry:
            far = self._check.far(commanded, measured)
            if len(far):  # a joint that is stuck is not to be driven any further
                brake, commanded = brake.holding(far.tolist(), measured), commanded.copy()
                commanded[:, far] = measured[far]
                names = ", ".join(self._rig.joint_names[i] for i in far)
                off = f"{names} held where measured, off the path that was braked"
        if wrong := self._wrong(brake, commanded):
            return self.hold(f"the path could not be braked: {wrong}")
        self._send(brake)
        return off

    def hold(self, reason: str, oldest: float = 0.0) -> str:
        """Hold the arms where they are measured, the grippers as they grip.

        Where that is not known the arms are held once it is: an old pose would move them.

        Args:
            reason: told to the operator.
            oldest: pose [s] to hold them at; 0 for as old as an observation may be.

        Returns:
            The reason.
        """
        if not self.armed:
            return reason
        measured = self.measured(oldest)
        if measured is None:
            self._owe(reason)
            return reason
        now_ns, pose, grippers = self._clock.now_ns(), measured.copy(), list(GRIPPER_INDICES)
        told = pose if self.path is None else self.path.sample(now_ns)
        pose[grippers] = np.clip(told[grippers], 0.0, 1.0)
        if len(self._check.far(told, pose)):  # the controllers are not where we believe
            told = pose
        self._holds, self._owed = self._holds + 1, ""
        self._node.get_logger().error(f"{reason}; the arms are held where they are")
        self._send(
            TimedChunk.hold(
                f"{HOLD}/{self._holds}{BRAKE}",
                now_ns,
                self._rig.rates.dt,
                told,
                pose,
                self._rig.max_velocity,
            )
        )
        return reason

    def _seen_to_hold(self) -> bool:
        """Return whether a hold of ours need not be sent, or not yet.

        A watchdog's report that it holds is not enough: the arms have to be seen to come to rest.
        """
        if not self._watchdog.holding():
            return False
        if self._seen_at_rest():
            self._owed = ""
            return True
        patience = HEARD_AGAIN
        if self.stillness.moving:
            patience = WATCHDOG_BRAKES
        elif self.stillness.still:
            patience = OFF_SLOW_PATH
        return self._clock.now_ns() - self._owed_ns < patience * NS_PER_S

    def _seen_at_rest(self) -> bool:
        """Return whether the arms are seen to rest, and not only to follow a slow path of ours."""
        path, measured, now_ns = self.path, self._sources.measured(), self._clock.now_ns()
        if not self.stillness.still or measured is None:
            return False
        lag_ns = round(self._rig.tracking.lag * NS_PER_S)
        if path is None or now_ns - lag_ns >= path.end_ns:
            return True
        lately = np.stack([path.sample(now_ns - ago) for ago in range(0, lag_ns + 1, lag_ns // 6)])
        return bool(np.delete(deviation(measured, lately), GRIPPER_INDICES).max() > OFF_PATH)

    def _owe(self, reason: str) -> None:
        if not self._owed:
            self._owed, self._owed_ns = reason, self._clock.now_ns()

    def _commanded(self, chunk: TimedChunk) -> NDArray[np.float64]:
        """Return (n, 14) where the arms were commanded to be of late, the newest last."""
        path, sent_ns = self.path, chunk.sent_ns
        if path is None or sent_ns >= path.end_ns or self.tracking.commanded is None:
            return chunk.start[None]
        return np.vstack([self.tracking.commanded, path.sample(sent_ns)])

    def _wrong(self, chunk: TimedChunk, commanded: NDArray[np.float64]) -> str:
        """Return what the last check says of a chunk; in a dry run the arms need not follow."""
        return self._check.problem(
            chunk.positions,
            np.array(chunk.times_ns()) / NS_PER_S,
            commanded,
            velocities=chunk.velocities,
            measured=None if self._dry else self.measured(),
        )

    def _send(self, chunk: TimedChunk) -> None:
        self._announce(chunk.chunk_id)
        messages = self._messages.fill(chunk, self._clock.to_ros(chunk.sent_ns))
        for publisher, message in zip(self._trajectories, messages, strict=True):
            publisher.publish(message)
        self.path = chunk

    def decided(
        self,
        decision: Decision,
        query: Query,
        run_id: str,
        chunk_id: str,
        phases: Mapping[str, float],
    ) -> None:
        """Tell what was decided."""
        self._decisions.publish(decision_to_message(decision, query, run_id, chunk_id, phases))

    def judged(
        self, result: GateResult, transition: ChunkTransition | None, chunk_id: str, ros_ns: int
    ) -> None:
        """Tell what the gate said of it, and how it meets the path before it."""
        message = gate_result_to_message(result, transition, chunk_id, ros_ns, self._rig)
        self._gate_results.publish(message)
        if result.rule == LATE:
            self._node.get_logger().warning(f"chunk {chunk_id}: {result.message}")
        elif not result.accepted:
            self._node.get_logger().error(f"chunk {chunk_id} refused: {result.message}")
        elif result.message:
            self._node.get_logger().warning(f"chunk {chunk_id}: {result.message}")
        elif transition is not None:
            self._node.get_logger().info(f"chunk {chunk_id}: {transition}")


POLL_PERIOD = 0.02  # wall s; half a control step. The poll waits for the next joint state after it
# Wall s without a poll. More than POLL_PERIOD and two samples of a 50 Hz driver, so that it rests
# while the joint states come; a tenth of the 0.5 s after which a silent arm brakes a chunk.
SILENCE = 0.05


class PollScheduler:
    """Calls ``poll`` at most every POLL_PERIOD on joint states, at least every SILENCE.

    Every tick of a timer makes rclpy rebuild its wait set, which at 50 ticks a second cost more
    than all that the node does with its messages; joint states wake it anyway. A timer takes over
    when none comes, on wall time: a run whose rig has died must still brake, be cancelled and end.
    A poll waits for a joint state of every arm: a node that was kept waiting takes messages topic
    by topic, and between the first arm's and the second's the second would look dead.
    """

    def __init__(self, node: Node, arms: Iterable[str], poll: Callable[[], None]) -> None:
        """Begin with a rig of these arms; ``poll`` runs in the node's executor."""
        self._arms, self._poll = frozenset(arms), poll
        self._heard: set[str] = set()  # since the last poll
        self._polled = -math.inf
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        # It ticks without a run too: rclpy resumes a waiting action only when something wakes its
        # executor.
        self._timer = node.create_timer(SILENCE, self._tick, clock=steady)

    def on_joint_state(self, arm: str) -> None:
        """Poll if it is time and every arm has spoken since the last one."""
        self._heard.add(arm)
        if self._heard == self._arms and time.monotonic() - self._polled >= POLL_PERIOD:
            self._timer.reset()
            self._tick()

    def _tick(self) -> None:
        self._polled = time.monotonic()
        self._heard.clear()
        self._poll()
