"""The rig without hardware: MuJoCo behind the topics and messages of a stock ALOHA.

Real-time mode follows the wall clock: one thread steps the physics at the joint states' rate, one
draws, and frames that cannot be drawn in time are dropped, never queued. Stepped mode has no wall
clock: ``~/step`` advances whole control periods and publishes ``/clock`` and everything else on the
way, so that two runs with one seed are the same.
"""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import CameraInfo, Image, JointState
from trajectory_msgs.msg import JointTrajectory

from cosmos_policy_ros.core.errors import CosmosPolicyError, RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.processes import yield_to_control
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.msg import RigState
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.convert import trajectory_points
from cosmos_policy_ros.nodes.options import SIM_RIG
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.rig.observation import Observation, read_arm
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.sim.demonstrator import DT, Demonstrator
from cosmos_policy_ros.sim.faults import CameraFeed, Faults, faulty_joints
from cosmos_policy_ros.sim.leaders import SimLeaders
from cosmos_policy_ros.sim.render import Renderer
from cosmos_policy_ros.sim.rig import JointSample, SimRig, Snapshot
from cosmos_policy_ros.srv import LeadArms, ResetRig, StepRig

# The prefix is the driver's camera_name, which ALOHA leaves at its default for all cameras.
CAMERA_FRAME = "camera_color_optical_frame"
# A rig this late has stopped being real time: go on from here instead of racing to catch up.
MAX_LATENESS = 0.5  # s
# A stepped rig runs faster than real time: keep a chunk's 200 joint states for a reader that lags.
QUEUE_DEPTH = 400
DEMONSTRATOR_SEES = (240, 320)  # px
# What a leader's motors read when its driver could not, by fault.
BROKEN_READS = {"leader_nan": math.nan, "leader_minus_pi": -math.pi}
# A stepped rig repeats its time: readers of /clock are best effort and may join between two steps.
CLOCK_PERIOD = 0.1  # wall s
NICENESS = 5  # of the thread that draws: after the physics and the arms, before inference


class SimRigNode(Node):
    """Node ``sim_rig_node``."""

    def __init__(self) -> None:
        """Start the rig.

        Raises:
            CosmosPolicyError: unknown rig or task, bad faults, or EGL is missing.
        """
        super().__init__("sim_rig_node")
        shell.declare(self, SIM_RIG)
        faults = ParameterDescriptor(description="faults, e.g. camera_silent:left_wrist@2.0-5.0")
        self.declare_parameter("faults", [""], faults)
        self._faults = Faults.parse(self._value("faults"))
        self.add_on_set_parameters_callback(self._set_faults)
        self._spec = load_rig(self._value("rig"), config_folder("rigs"))
        self._rig = SimRig(self._value("task"), self._value("scene_seed"), spec=self._spec)
        self._leaders: SimLeaders | None = None
        self._leader_turn = False  # they report half as often as the followers: 50 times a second
        if self._spec.led:
            self._leaders = SimLeaders(self._spec, DT)
        self._period = 0  # control periods since the reset
        self._tick = 1.0 / self._spec.rates.joint_states
        self._ticks_per_period = round(self._spec.rates.joint_states / self._spec.rates.control)
        self._feeds: dict[str, CameraFeed] = {
            camera.role: CameraFeed() for camera in self._spec.cameras
        }
        self._lock = threading.Lock()
        self._stepped: bool = self._value("stepped")
        self._connect()
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        if self._stepped:
            self._renderer = self._make_renderer()
            self.create_service(StepRig, "~/step", self._on_step)
            steady = Clock(clock_type=ClockType.STEADY_TIME)
            self.create_timer(CLOCK_PERIOD, self._publish_clock, clock=steady)
        else:
            self._due = time.monotonic()  # when the rig's time should have come
            self._newest: tuple[Snapshot, int] | None = None
            self._drawable = threading.Condition()
            self._run_thread("physics", self._follow_the_clock)
            self._run_thread("render", self._draw)

    def close(self) -> None:
        """End the threads; called before the ROS context ends."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        if self._stepped:
            self._renderer.close()

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _connect(self) -> None:
        options = QoSOverridingOptions.with_default_policies()
        qos = QoSProfile(depth=QUEUE_DEPTH)

        def publisher(kind: Any, topic: str) -> Any:
            return self.create_publisher(kind, topic, qos, qos_overriding_options=options)

        self._images: dict[str, Any] = {
            c.role: publisher(Image, c.topic) for c in self._spec.cameras
        }
        self._infos: dict[str, Any] = {
            c.role: publisher(CameraInfo, c.info_topic) for c in self._spec.cameras
        }
        arms = self._spec.arms.values()
        self._joints: dict[str, Any] = {
            topic: publisher(JointState, topic)
            for topic in dict.fromkeys(arm.joint_states for arm in arms)
        }
        self._leader_joints: dict[str, Any] = {}
        if self._leaders is not None:
            self._leader_joints = {
                side: publisher(JointState, arm.leader.joint_states)
                for side, arm in self._spec.arms.items()
                if arm.leader is not None
            }
            self.create_service(LeadArms, "~/lead", self._on_lead)
        self._states = self.create_publisher(RigState, "~/state", shell.LATCHED_PUBLISHER)
        self._listen()
        self.create_service(ResetRig, "~/reset", self._on_reset)
        if self._stepped:
            self._clock_publisher = self.create_publisher(ClockMsg, "/clock", qos)

    def _make_renderer(self) -> Renderer:
        return Renderer(
            self._value("task"),
            self._value("height"),
            self._value("width"),
            quality=self._value("render_quality"),
            noise_sigma=self._value("noise"),
        )

    # ---------------------------------------------------------------- commands

    def _listen(self) -> None:
        for output in self._spec.outputs:
            self.create_subscription(
                JointTrajectory,
                output.topic,
                self._trajectory_callback(output.name),
                QoSProfile(depth=10),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )

    def _trajectory_callback(self, output: str) -> Callable[[JointTrajectory], None]:
        def accept(message: JointTrajectory) -> None:
            points = trajectory_points(message)
            stamp_ns = shell.stamp_to_ns(message.header.stamp)
            try:
                with self._lock:
                    arrived_ns = self._rig.time_ns + self._behind_ns()
                    if stamp_ns:
                        stamp_ns += arrived_ns - self._now_ns()
                    elif not self._stepped:
                        stamp_ns = arrived_ns
                    self._rig.command(output, message.joint_names, points, stamp_ns)
            except RigError as error:
                self.get_logger().error(f"controller '{output}' refused a trajectory: {error}")
            self._publish_state()

        return accept

    def _behind_ns(self) -> int:
        """Return how far rig time is behind on a busy machine, where a real controller is not.

        A brake that began where the rig is, not where it should be, would jump ahead on its path.
        """
        return 0 if self._stepped else max(round((time.monotonic() - self._due) * NS_PER_S), 0)

    def _on_reset(self, request: ResetRig.Request, response: ResetRig.Response) -> Any:
        try:
            with self._lock:
                task = request.task or self._rig.task
                self._rig.reset(task, request.seed, prompt=request.prompt)
                self._period = 0
            response.success = True
            asked = f" for '{request.prompt}'" if request.prompt else ""
            response.message = f"{self._rig.task}, seed {request.seed}: objects placed{asked}"
        except RigError as error:
            response.message = str(error)
        self._publish_state()
        return response

    def _on_lead(self, request: LeadArms.Request, response: LeadArms.Response) -> Any:
        assert self._leaders is not None
        with self._lock:
            snapshot, state = self._rig.snapshot(), self._followers()
        if request.rest:
            with self._lock:
                self._leaders.rest(state)
            response.success, response.message = True, "the leaders are with their followers"
            return response
        try:
            with Renderer(self._rig.task, *DEMONSTRATOR_SEES) as renderer:
                images = {"primary": renderer.render(snapshot)["primary"]}
            observation = Observation(snapshot.stamp_ns, images, state, {})
            query = Query(self._rig.task, request.prompt, request.seed, 0, observation)
            rows = Demonstrator(jitter=1.0).plan(query)
        except CosmosPolicyError as error:
            response.message = str(error)
            return response
        with self._lock:
            self._leaders.lead(rows, self._rig.time_ns, request.seed)
        response.success, response.seconds = True, len(rows) * DT
        response.message = f"leads for {response.seconds:.1f} s"
        return response

    def _followers(self) -> NDArray[np.float64]:
        """Return where (14,) the followers are, policy units."""
        poses = []
        for side, arm in self._spec.arms.items():
            sample = self._rig.joint_states(side)
            poses.append(read_arm(arm, sample.names, sample.positions))
        return np.concatenate(poses)

    def _set_faults(self, parameters: list[RosParameter[Any]]) -> SetParametersResult:
        try:
            for parameter in parameters:
                if parameter.name == "faults":
                    self._faults = Faults.parse(parameter.value)
        except CosmosPolicyError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    # ---------------------------------------------------------------- stepped mode

    def _on_step(self, request: StepRig.Request, response: StepRig.Response) -> StepRig.Response:
        try:
            for _ in range(request.periods):
                self._step_period()
            response.success = True
        except RigError as error:
            response.message = str(error)
        response.state = self._state()
        return response

    def _step_period(self) -> None:
        for _ in range(self._ticks_per_period):
            self._advance()
            self._publish_clock()
            self._publish_joints(self._rig.time_ns)
        self._period += 1
        self._publish_images(self._renderer, self._rig.snapshot(), self._rig.time_ns)
        self._publish_state()

    # ---------------------------------------------------------------- real-time mode

    def _run_thread(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except CosmosPolicyError as error:
            self.get_logger().fatal(str(error))

    def _follow_the_clock(self) -> None:
        """Step the physics so that rig time passes as fast as wall time."""
        tick = 0
        while not self._ending.is_set():
            due = self._due + self._tick
            lateness = time.monotonic() - due
            if lateness < 0:
                self._ending.wait(-lateness)
            elif lateness > MAX_LATENESS:
                self.get_logger().warning(
                    f"the simulated rig lost {lateness:.2f} s: this machine is too busy for it; "
                    "use smaller images (width, height)",
                    throttle_duration_sec=5.0,
                )
                due = time.monotonic()
            with self._lock:
                self._advance()
                self._due = due
                stamp_ns = self._now_ns()
                self._publish_joints(stamp_ns)
                tick += 1
                if tick % self._ticks_per_period:
                    continue
                self._period += 1
                snapshot = self._rig.snapshot()
            self._publish_state()
            with self._drawable:
                self._newest = (snapshot, stamp_ns)
                self._drawable.notify()

    def _draw(self) -> None:
        """Draw the newest snapshot, skipping those that came while the last one was drawn."""
        yield_to_control(NICENESS)
        renderer = self._make_renderer()
        while not self._ending.is_set():
            with self._drawable:
                if self._newest is None:
                    self._drawable.wait(timeout=0.1)
                newest, self._newest = self._newest, None
            if newest is not None:
                self._publish_images(renderer, *newest)
        renderer.close()

    # ---------------------------------------------------------------- messages

    def _now_ns(self) -> int:
        return self._rig.time_ns if self._stepped else int(self.get_clock().now().nanoseconds)

    def _advance(self) -> None:
        self._rig.stick(self._faults.stuck_joints(self._since_reset()))
        self._rig.advance(self._tick)

    def _stamp(self, source: str, stamp_ns: int) -> Time:
        """Return a message stamp, wrong if a fault says so."""
        offset = self._faults.stamp_offset(source, self._since_reset())
        return shell.ns_to_stamp(max(stamp_ns + round(offset * NS_PER_S), 0))

    def _since_reset(self) -> float:
        return self._rig.since_reset_ns / NS_PER_S

    def _publish_clock(self) -> None:
        self._clock_publisher.publish(ClockMsg(clock=shell.ns_to_stamp(self._rig.time_ns)))

    def _publish_joints(self, stamp_ns: int) -> None:
        found: dict[str, JointState] = {}
        for side, arm in self._spec.arms.items():
            fault = self._faults.joint_fault(side, self._since_reset())
            sample = faulty_joints(self._sample(side), side, fault)
            if sample is None:
                continue
            message = found.setdefault(arm.joint_states, JointState())
            message.header.stamp = self._stamp(side, stamp_ns)
            message.name = [*message.name, *sample.names]
            message.position = array("d", [*message.position, *sample.positions])
            message.velocity = array("d", [*message.velocity, *sample.velocities])
            message.effort = array("d", bytes(8 * len(message.name)))
        for topic, message in found.items():
            self._joints[topic].publish(message)
        self._leader_turn = not self._leader_turn
        if self._leaders is not None and self._leader_turn:
            self._publish_leaders(self._leaders, stamp_ns)

    def _publish_leaders(self, leaders: SimLeaders, stamp_ns: int) -> None:
        if not leaders.leading:
            leaders.rest(self._spec.commanded(self._rig.targets()[None])[0])
        for side, publisher in self._leader_joints.items():
            arm = self._spec.arms[side]
            faults = self._faults.leader_faults(side, self._since_reset())
            kinds = {fault.kind for fault in faults}
            if "leader_silent" in kinds:
                continue
            positions = leaders.positions(side, self._rig.time_ns, faults)
            for kind in kinds & BROKEN_READS.keys():
                positions[:] = BROKEN_READS[kind]
            assert arm.leader is not None
            message = JointState(name=list(arm.leader.names or arm.names))
            message.header.stamp = shell.ns_to_stamp(stamp_ns)
            message.position = array("d", positions.tolist())
            publisher.publish(message)

    def _sample(self, side: str) -> JointSample:
        return self._rig.joint_states(side)

    def _publish_images(self, renderer: Renderer, snapshot: Snapshot, stamp_ns: int) -> None:
        for role, drawn in renderer.render(snapshot).items():
            fault = self._faults.camera_fault(role, self._since_reset())
            for image, stamp in self._feeds[role].frames(drawn, stamp_ns, fault):
                height, width, _ = image.shape
                message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
                message.header.stamp = self._stamp(role, stamp)
                message.header.frame_id = CAMERA_FRAME
                # Any other way to fill the field is up to two thousand times slower.
                pixels = array("B")
                pixels.frombytes(image.data.cast("B"))
                message.data = pixels
                self._images[role].publish(message)
                self._infos[role].publish(self._camera_info(renderer, role, message))

    def _camera_info(self, renderer: Renderer, role: str, image: Image) -> CameraInfo:
        matrix = renderer.camera_matrix(role)
        info = CameraInfo(
            header=image.header,
            height=image.height,
            width=image.width,
            distortion_model="plumb_bob",
            d=[0.0] * 5,
        )
        info.k = matrix.ravel()
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p[[0, 2, 5, 6, 10]] = matrix[[0, 0, 1, 1, 2], [0, 2, 1, 2, 2]]
        return info

    def _state(self) -> RigState:
        rig = self._rig
        state = RigState(
            task=rig.task,
            seed=rig.seed,
            period=self._period,
            refusal=rig.refusal,
            stages=list(rig.stages),
            reached=rig.reached,
        )
        state.header.stamp = shell.ns_to_stamp(rig.time_ns)
        state.accepted, state.refused = list(rig.accepted.values()), list(rig.refused.values())
        return state

    def _publish_state(self) -> None:
        self._states.publish(self._state())


def main() -> None:
    """Entry point of ``ros2 run cosmos_policy_ros sim_rig_node``."""
    shell.main(SimRigNode)
