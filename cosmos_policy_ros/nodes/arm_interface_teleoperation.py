"""The arm interface's own commander: followers that track leader arms, as trajectories.

What it sends goes out on the topics on which a policy node's chunks do, is announced to the back
end as theirs are, and comes back to it by the same way: it is watched, braked and recorded alike.
Of a policy node that is armed it borrows the arms: the policy node pauses its run, and stays the
one whose silence holds them and whose word ends it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.msg import ArmInterfaceState
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.arm_interface_leaders import LeaderMover
from cosmos_policy_ros.rig.chunk import BRAKE
from cosmos_policy_ros.rig.clock import SteadyClock
from cosmos_policy_ros.rig.leader_motion import Torque
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.teleoperation import REACH, TELEOPERATION, Phase, Teleoperation

# Phases in which a policy node sends no chunk. One that has lost its model plays its path out.
AT_REST = ("ready", "paused", "loading", "failed")
UNDER_TORQUE = "the leaders are under torque: hold them, and ~/clutch with data: true frees them"


class BackEnd(Protocol):
    """What takes the trajectories."""

    def measured(self, now_ns: int, patience: float | None = None) -> Array | None:
        """Return where (14,) the arms are, policy units; None where that is not known."""
        ...

    def commanded(self, now_ns: int) -> Array | None:
        """Return where (14,) the arms are told to be, policy units; None where nothing was."""
        ...

    def resting(self, now_ns: int) -> bool:
        """Whether no arm is on a path."""
        ...

    def on_policy_state(
        self, identity: str, armed: bool, run_id: str, announced: tuple[int, str], now_ns: int
    ) -> None:
        """Note who commands the arms, and what comes next."""
        ...

    @property
    def unready(self) -> str:
        """Why no trajectory is taken; empty if they are."""
        ...

    @property
    def logic(self) -> Any:
        """Has ``ownership`` and ``reason``."""
        ...


class Teleoperator:
    """Listens to the leaders, and sends the followers after them.

    Attributes:
        logic: decides where the followers are told to be.
    """

    def __init__(
        self,
        node: shell.ManagedNode,
        rig: RigSpec,
        clock: SteadyClock,
        back_end: BackEnd,
        trajectories: Mapping[str, Any],
        report: Callable[[], None],
    ) -> None:
        """Open the leaders' topics and the services.

        Args:
            node: whose they are.
            rig: leaders, followers and limits.
            clock: that arms move by.
            back_end: takes the trajectories.
            trajectories: the followers' publishers, by output.
            report: publishes the node's state.

        Raises:
            RigError: the rig file describes no leaders.
        """
        self.logic = Teleoperation(rig)
        self._mover = LeaderMover(node, rig, clock, report) if rig.leaders_move else None
        self._by_hand = False  # the leaders are not moved to their followers any more
        self.period = 1.0 / rig.teleoperation.rate
        self._node, self._rig, self._clock, self._back_end = node, rig, clock, back_end
        self._ownership = back_end.logic.ownership
        self._identity = f"{node.get_fully_qualified_name()}/{TELEOPERATION}"
        self._trajectories, self._report = trajectories, report
        self._lender = self._policy_phase = ""
        self._sent = 0
        self._led_to: Array | None = None
        # Taken tick by tick, and read while the leaders matter.
        self._states = {
            side: node.create_subscription(
                JointState,
                arm.leader.joint_states,
                lambda _: None,
                QoSProfile(depth=1),
                raw=True,
                callback_group=shell.OnDemand(),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for side, arm in rig.arms.items()
            if arm.leader is not None
        }
        self._newest: dict[str, tuple[bytes, int]] = {}
        node.create_service(SetBool, "~/teleoperate", self._on_teleoperate)
        node.create_service(SetBool, "~/clutch", self._on_clutch)

    @property
    def _off(self) -> bool:
        return self.logic.phase is Phase.OFF

    def on_policy_phase(self, identity: str, phase: str) -> None:
        """Note what the policy node does that has armed the arms."""
        if identity == self._ownership.owner:
            self._policy_phase = phase

    def tick(self) -> None:
        """Send what is due."""
        self._take_states()
        logic, now_ns = self.logic, self._clock.now_ns()
        if self._mover is not None and not self._mover.free:
            self._read_states()
            self._mover.tick(logic.asked(now_ns))
        if self._off:
            return
        self._read_states()
        if reason := self._back_end.logic.reason:
            self._end(f"the arms are held: {reason}", now_ns)
            return
        if self._lender and not self._may_borrow(now_ns):
            return
        if logic.phase is Phase.MATCHING:
            self._match(now_ns)
            return
        patience = self._rig.stream.arm_silence
        before, was = logic.target.copy(), logic.reason
        target = logic.tick(now_ns, self._back_end.measured(now_ns, patience))
        self._led_to = logic.target
        if logic.reason and logic.reason != was:
            self._node.get_logger().error(f"the followers are held: {logic.reason}")
        if target is not None:
            self._send(target, (target - before) / self.period, now_ns)
        elif self._off:
            self._end("", now_ns)
        elif not self._lender:
            self._announce(now_ns, armed=True)

    def come_to_rest(self, reason: str) -> None:
        """Stop following."""
        if not self._off:
            self._end(reason, self._clock.now_ns())

    def fill(self, state: ArmInterfaceState) -> None:
        """Add how things stand to the node's state."""
        state.teleoperation, state.teleoperation_reason = self.logic.phase.value, self.logic.reason
        if self._mover is not None and not self._mover.free:
            state.leaders_hold = True
            if self._off:
                state.teleoperation_reason = UNDER_TORQUE
        if self._led_to is not None:
            state.led_to = self._led_to.tolist()

    def _take_states(self) -> None:
        """Keep what the leaders have reported since the last tick, undecoded."""
        for side, subscription in self._states.items():
            if (message := shell.take(subscription)) is not None:
                self._newest[side] = message, self._clock.now_ns()

    def _read_states(self) -> None:
        """Have the logic know what was kept."""
        for side, (message, heard_ns) in self._newest.items():
            state = deserialize_message(message, JointState)
            self.logic.on_leader(side, state.name, state.position, heard_ns)
        self._newest.clear()

    def _hear(self) -> None:
        """Know what the leaders have reported until now."""
        self._take_states()
        self._read_states()

    def _on_teleoperate(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        self._hear()
        now_ns = self._clock.now_ns()
        try:
            if request.data:
                response.message = self._begin(now_ns)
            else:
                self._stop(now_ns)
                response.message = "the followers are held where they are"
            response.success = True
        except RigError as error:
            response.message = f"refused: {error}"
        self._node.get_logger().info(response.message)
        self._report()
        return response

    def _on_clutch(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._hear()
        try:
            if request.data and self._mover is not None and not self._mover.free:
                self._free_leaders(self._mover)
            else:
                self.logic.clutch(request.data, self._clock.now_ns())
            response.success = True
            response.message = "the leaders are free" if request.data else "following again"
        except RigError as error:
            response.message = f"refused: {error}"
        self._report()
        return response

    # ---------------------------------------------------------------- whose the arms are

    def _begin(self, now_ns: int) -> str:
        """Take the arms, or borrow them; return what happens next.

        Raises:
            RigError: nothing may move, or leaders and followers are too far apart.
        """
        for problem in (self._back_end.logic.reason, self._back_end.unready):
            if problem:
                raise RigError(problem)
        if not self._node.active:
            raise RigError("this node is not active")
        if self.logic.phase not in (Phase.OFF, Phase.MATCHING) and not self.logic.resting:
            raise RigError("the followers track the leaders already")
        measured = self._back_end.measured(now_ns)
        if measured is None:
            raise RigError("a follower is silent; is its driver running?")
        held = self._mover is not None and not self._mover.free
        self._by_hand = False
        if self._mover is not None and held:
            self._free_leaders(self._mover)
        self._lender = self._ownership.owner.removeprefix(self._identity)
        pose = measured if self._off else self.logic.target
        apart = self._mover is not None and bool(self.logic.apart(pose, now_ns))
        if self._lender or held or apart:
            if self._off:
                self._led_to = None
            gives_way = "the policy node gives way; " if self._lender else ""
            todo = "bring the leaders to their followers, and hold them still"
            if held:
                todo = "hold the leaders still"
            elif self._mover is not None:
                todo = "the leaders move to their followers where they are apart: keep clear"
            self._match(now_ns)
            return gives_way + todo
        self.logic.begin(pose, now_ns)
        self._announce(now_ns, armed=True)
        return "the followers track the leaders"

    def _free_leaders(self, mover: LeaderMover) -> None:
        """Take the torque from the leaders; raise RigError while they move."""
        if mover.motion.torque is not Torque.HOLDING:
            raise RigError("the leaders are moving; call again when they rest")
        mover.release()
        self._by_hand = True

    def _match(self, now_ns: int) -> None:
        """Begin to follow once the arms rest and the leaders match their followers."""
        commanded = self._led_to
        if commanded is None and self._lender:
            commanded = self._back_end.commanded(now_ns)
        if commanded is None:
            commanded = self._back_end.measured(now_ns)
        if commanded is None:
            self._end("a follower is silent", now_ns)
        elif not self._lender and self._ownership.owner.removeprefix(self._identity):
            self._end("a policy node has armed the arms", now_ns)
        elif self._lender and self._policy_phase not in AT_REST:
            self.logic.wait("the policy's path is being braked")
        elif not self._back_end.resting(now_ns):
            self.logic.wait("the followers are being braked")
        elif waits_for := self._move_leaders(commanded, now_ns):
            self.logic.wait(waits_for)
        else:
            self.logic.match(commanded, now_ns)
        following = self.logic.phase is Phase.FOLLOWING
        if self._lender:
            self._ownership.lent = following
        elif following or (self._ownership.owner and not self._off):
            self._announce(now_ns, armed=True)

    def _move_leaders(self, followers: Array, now_ns: int) -> str:
        """Have leaders with torque go to their (14,) followers; return what that waits for."""
        mover = self._mover
        if mover is None:
            return ""
        if mover.free:
            silent = self.logic.asked(now_ns) is None
            if self._by_hand or silent or not self.logic.apart(followers, now_ns):
                return ""
            self._by_hand = True
            mover.move(self.logic.asked, followers)
        if mover.motion.torque is Torque.CHANGING:
            return "the leaders' torque is being switched: keep clear"
        if mover.motion.torque is Torque.MOVING:
            return "the leaders go to their followers by themselves: keep clear"
        stopped = mover.motion.problem
        there = f"the leaders were stopped ({stopped})" if stopped else "the leaders are there"
        return f"{there}: take both in hand, then begin again (~/teleoperate, the page's Lead)"

    def _may_borrow(self, now_ns: int) -> bool:
        """Return whether the policy node still lends the arms; end it where it does not."""
        if self.logic.phase is Phase.STOPPING:
            return True
        if self._ownership.owner != self._lender:
            self._stop(now_ns)
        elif self.logic.phase is not Phase.MATCHING and not self._ownership.lent:
            self._end("the policy node commands the arms", now_ns)
        elif self.logic.phase is not Phase.MATCHING and self._policy_phase not in AT_REST:
            self._node.get_logger().error("teleoperation ends: the policy node goes on")
            self._stop(now_ns)
        else:
            return True
        return not self._off

    def _stop(self, now_ns: int) -> None:
        """Bring the followers to rest, and be off."""
        if self.logic.phase is Phase.MATCHING:
            self._end("", now_ns)
        elif not self._off:
            self.logic.stop()
            if self._off:
                self._end("", now_ns)

    def _end(self, reason: str, now_ns: int) -> None:
        """Be off, here and now."""
        if reason:
            self._node.get_logger().error(f"teleoperation has ended: {reason}")
        self.logic.end(reason)
        if self._mover is not None:
            self._mover.stop()
        self._ownership.lent = False
        if not self._lender:
            self._announce(now_ns, armed=False)
        self._lender = ""

    # ---------------------------------------------------------------- what is sent

    def _announce(self, now_ns: int, *, armed: bool) -> None:
        chunk_id = self._chunk_id()
        if self._lender:
            self._ownership.announce(chunk_id)
        else:
            announced = (self._sent, chunk_id)
            self._back_end.on_policy_state(self._identity, armed, TELEOPERATION, announced, now_ns)

    def _chunk_id(self) -> str:
        brake = BRAKE if self.logic.phase is Phase.STOPPING else ""
        return f"{TELEOPERATION}/{self._sent}{brake}"

    def _send(self, target: Array, velocity: Array, now_ns: int) -> None:
        self._sent += 1
        self._announce(now_ns, armed=True)
        positions = self._rig.command(target[None])[0]
        speeds = self._rig.command_speed(velocity[None])[0]
        sec, nanosec = divmod(round(REACH * self.period * NS_PER_S), NS_PER_S)
        for output in self._rig.outputs:
            columns = list(output.columns)
            point = JointTrajectoryPoint(
                positions=array("d", positions[columns]), velocities=array("d", speeds[columns])
            )
            point.time_from_start.sec, point.time_from_start.nanosec = sec, nanosec
            message = JointTrajectory(joint_names=list(output.joints), points=[point])
            message.header.frame_id = self._chunk_id()
            if self._rig.trajectory_stamp == "start":
                message.header.stamp = self._node.get_clock().now().to_msg()
            self._trajectories[output.name].publish(message)
