"""What every node of this package shares: parameters, start, clean end, stamps."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.action import ActionServer
from rclpy.callback_groups import CallbackGroup
from rclpy.duration import Duration
from rclpy.exceptions import ParameterException, ParameterUninitializedException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.lifecycle import (
    LifecycleNode,
    LifecyclePublisher,
    LifecycleState,
    TransitionCallbackReturn,
)
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock

from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.nodes.options import AUTOSTART, Option
from cosmos_policy_ros.rig.clock import MotionClock, SimulatedClock, SteadyClock

try:
    from rclpy.event_handler import PublisherEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks

FAREWELL = 1.0  # wall s for readers to take what an ending node has published, a brake above all
# State topics: a reader that joins late still gets the newest state.
LATCHED = QoSProfile(
    depth=1,
    reliability=QoSReliabilityPolicy.RELIABLE,
    durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
)
# Their publishers keep more: a state overwritten before a slow reader has it is lost to the bag.
LATCHED_PUBLISHER = QoSProfile(
    depth=100,
    reliability=QoSReliabilityPolicy.RELIABLE,
    durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
)
# Readers that follow what each state announces keep as many.
LATCHED_EVERY = LATCHED_PUBLISHER


# rclpy gives every entity a handler per QoS event and rebuilds its wait set of them at every wake:
# a third of a busy node's time. Kept where an operator needs the warning, dropped elsewhere.
NO_PUBLISHER_EVENTS = PublisherEventCallbacks(use_default_callbacks=False)


def declare(node: Node, options: Sequence[Option]) -> None:
    """Declare parameters, with descriptions and ranges."""
    types = {
        int: Parameter.Type.INTEGER,
        float: Parameter.Type.DOUBLE,
    }
    for option in options:
        descriptor = ParameterDescriptor(description=option.description)
        if option.low is not None and option.high is not None:
            if option.kind is float:
                bounds = FloatingPointRange(
                    from_value=float(option.low), to_value=float(option.high)
                )
                descriptor.floating_point_range = [bounds]
            else:
                whole = IntegerRange(from_value=int(option.low), to_value=int(option.high), step=1)
                descriptor.integer_range = [whole]
        default: Any = option.default
        node.declare_parameter(
            option.name, types[default] if isinstance(default, type) else default, descriptor
        )


def value_of(node: Node, name: str) -> Any:
    """Return a parameter's value, None for one that is not set."""
    try:
        return node.get_parameter(name).value
    except ParameterUninitializedException:
        return None


def stamp_to_ns(stamp: Time) -> int:
    """Return a message stamp in nanoseconds."""
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def ns_to_stamp(nanoseconds: int) -> Time:
    """Return nanoseconds as a message stamp."""
    return Time(sec=nanoseconds // NS_PER_S, nanosec=nanoseconds % NS_PER_S)


CLOCK_DEPTH = 1000  # messages; none is to be lost, since the time between two is looked at


class OnDemand(CallbackGroup):
    """Of subscriptions that wake no executor: their messages are taken when they are wanted.

    At 100 Hz waking costs rclpy more than all that a node may do with the messages.
    """

    def can_execute(self, entity: Any) -> bool:
        """Return False: an executor is never to call."""
        return False

    def beginning_execution(self, entity: Any) -> bool:
        """Return False: an executor is never to call."""
        return False

    def ending_execution(self, entity: Any) -> None:
        """Do nothing: no execution has begun."""


def take(subscription: Any) -> Any:
    """Return the next message that waits for an executor, bytes of a raw subscription, or None."""
    with subscription.handle:
        taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
    return None if taken is None else taken[0]


class ClockTopic:
    """The node's own reader of ``/clock``; rclpy's skips what comes faster than it is taken."""

    def __init__(self, node: Node) -> None:
        """Subscribe; a clock that is published best effort needs ``qos_overrides``."""
        self._waiting: list[int] = []
        self._subscription = node.create_subscription(
            Clock,
            "/clock",
            self._keep,
            QoSProfile(depth=CLOCK_DEPTH),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def take(self) -> list[int]:
        """Return the times that have come since the last call [ns]."""
        for _ in range(CLOCK_DEPTH):
            message = take(self._subscription)
            if message is None:
                break
            self._keep(message)
        waiting, self._waiting = self._waiting, []
        return waiting

    def _keep(self, message: Clock) -> None:
        self._waiting.append(stamp_to_ns(message.clock))


def motion_clock(node: Node) -> MotionClock:
    """Return the clock that arms move by."""
    if node.get_parameter("use_sim_time").value:
        return SimulatedClock(ClockTopic(node).take)
    clock = node.get_clock()
    return SteadyClock(lambda: int(clock.now().nanoseconds))


# A parameter of another type or out of range, an argument that is none, a keystore without a key.
OPERATORS_MISTAKES = (ParameterException, _rclpy.RCLError, _rclpy.UnknownROSArgsError)


class ManagedNode(LifecycleNode, ABC):
    """A lifecycle node whose subclasses only say what they set up and how they come to rest.

    Whatever ROS entity was made since the node was configured is destroyed when it is cleaned up,
    and when configuring fails half way.

    Attributes:
        configured: whether it is set up.
        active: whether it is active.
    """

    def __init__(self, name: str, parameters: Sequence[Option], **options: Any) -> None:
        """Declare the parameters; everything else happens when the node is configured.

        Args:
            name: of the node.
            parameters: its own; ``autostart`` is added.
            options: of rclpy's node, such as ``parameter_overrides``.
        """
        super().__init__(name, **options)
        self.configured = self.active = False
        declare(self, (*parameters, AUTOSTART))
        self._declared = {option.name: option for option in parameters}
        self.add_on_set_parameters_callback(self._check_parameters)

    @abstractmethod
    def set_up(self) -> None:
        """Read the parameters and connect; raise CosmosPolicyError for an operator's mistake."""

    def tear_down(self) -> None:
        """End what is no ROS entity: threads, processes; also of a set-up that failed half way."""

    def come_to_rest(self, reason: str) -> None:
        """Leave nothing moving and no file half written; publishers still speak."""

    def report(self) -> None:
        """Publish the node's state."""

    def close(self) -> None:
        """Come to rest and end; called before the ROS context ends."""
        if self.configured:
            self.come_to_rest(f"the {self._title} was shut down")
            self.active = False
            self.report()
            self.tear_down()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Set up; a set-up that fails half way leaves nothing behind."""
        self._before = set(self._entities())

        def configure() -> None:
            try:
                self.set_up()
            except BaseException:
                self._release()
                raise
            self.configured = True

        return self._attempt(configure) or super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let the node act."""
        self.active = True
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Come to rest, then act no more."""

        def deactivate() -> None:
            self.come_to_rest(f"the {self._title} was deactivated")
            self.active = False
            self.report()

        return self._attempt(deactivate) or super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Disconnect."""
        return self._attempt(self._release) or super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Come to rest from any state."""
        return self._attempt(self.close) or super().on_shutdown(state)

    def _check_parameters(self, changed: Sequence[Any]) -> SetParametersResult:
        """Refuse what could not be taken up: parameters are read when the node is configured."""
        for parameter in changed:
            if (option := self._declared.get(parameter.name)) is None:
                continue
            if self.configured:
                return SetParametersResult(
                    successful=False,
                    reason=f"{option.name} is read when {self.get_name()} is configured: "
                    "deactivate it and clean it up first",
                )
            try:
                option.check(parameter.value)
            except CosmosPolicyError as error:
                return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    @property
    def _title(self) -> str:
        return self.get_name().replace("_", " ")

    def _attempt(self, work: Callable[[], None]) -> TransitionCallbackReturn | None:
        """Return what a transition that failed returns, None for success.

        rclpy swallows what a transition raises, so it is logged here.
        """
        try:
            work()
        except CosmosPolicyError as error:
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().fatal(f"a bug in {self.get_name()}:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR
        return None

    def _entities(self) -> dict[Any, Callable[[Any], Any]]:
        """Return every entity of the node and what destroys it, action servers first."""
        # The other waitables belong to publishers and subscriptions.
        actions = (each for each in self.waitables if isinstance(each, ActionServer))
        found: dict[Any, Callable[[Any], Any]] = dict.fromkeys(actions, ActionServer.destroy)
        for publisher in self.publishers:
            managed = isinstance(publisher, LifecyclePublisher)
            found[publisher] = (
                self.destroy_lifecycle_publisher if managed else self.destroy_publisher
            )
        found |= dict.fromkeys(self.subscriptions, self.destroy_subscription)
        found |= dict.fromkeys(self.services, self.destroy_service)
        found |= dict.fromkeys(self.clients, self.destroy_client)
        found |= dict.fromkeys(self.timers, self.destroy_timer)
        return found | dict.fromkeys(self.guards, self.destroy_guard_condition)

    def _release(self) -> None:
        self.configured = False
        self.tear_down()
        for entity, destroy in self._entities().items():
            if entity not in self._before:
                destroy(entity)


def bring_up(node: ManagedNode) -> ManagedNode:
    """With parameter ``autostart``, configure and activate the node without a manager.

    Raises:
        SystemExit: a transition failed; the node has logged why, and there is no more to say.
    """
    if node.get_parameter("autostart").value:
        for trigger in (node.trigger_configure, node.trigger_activate):
            if trigger() != TransitionCallbackReturn.SUCCESS:
                node.destroy_node()
                sys.exit(1)
    return node


def main(make_node: Callable[[], Any]) -> None:
    """Run a node until Ctrl-C or SIGTERM; then let it finish cleanly, while it can still publish.

    The node's ``close()`` is called before the ROS context ends: rclpy's own signal handlers would
    end the context first, and neither a braking trajectory nor a farewell would get out.

    Raises:
        SystemExit: the node cannot be started, for a reason that has been printed.
    """
    ending: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        ending.append(number)

    node = executor = None
    try:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        signal.signal(signal.SIGINT, end)
        signal.signal(signal.SIGTERM, end)
        node = make_node()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not ending and rclpy.ok():
            executor.spin_once(timeout_sec=0.1)
    except (CosmosPolicyError, *OPERATORS_MISTAKES) as error:
        if node is not None and not isinstance(error, CosmosPolicyError):
            raise  # it has started, so this is a bug, and its traceback is needed
        print(f"error: {error}{_of_security(error)}", file=sys.stderr)
        sys.exit(1)
    finally:
        if node is not None:
            node.close()
            _until_received(node)
        if executor is not None:
            executor.shutdown()  # left to the garbage collector it may complain of a dead context
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


def _of_security(error: Exception) -> str:
    """Return what ROS leaves out when a node's key is missing, as the end of a sentence."""
    if not isinstance(error, _rclpy.RCLError) or os.environ.get("ROS_SECURITY_ENABLE") != "true":
        return ""
    keystore = os.environ.get("ROS_SECURITY_KEYSTORE") or "not set"
    return (
        f"; ROS_SECURITY_ENABLE is true: does ROS_SECURITY_KEYSTORE ({keystore}) have a key for "
        "this node? See doc/how-to/secure-the-network.md"
    )


def _until_received(node: Node) -> None:
    """Wait until every reader has what was published: it lies in memory that ends with us."""
    deadline = time.monotonic() + FAREWELL
    for publisher in node.publishers:
        left = max(0.0, deadline - time.monotonic())
        publisher.wait_for_all_acked(Duration(seconds=left))
