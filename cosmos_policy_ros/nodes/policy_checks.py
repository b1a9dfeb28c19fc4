"""The policy node's self-check: gathers from the wire what ``rig.self_check`` judges."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible

from cosmos_policy_ros.errors import ObservationError
from cosmos_policy_ros.model.rig_check import check_pictures
from cosmos_policy_ros.nodes.graph import exposure
from cosmos_policy_ros.nodes.policy_inputs import PolicyInputs
from cosmos_policy_ros.nodes.policy_keeper import KeeperWatch
from cosmos_policy_ros.rig.clock import MotionClock
from cosmos_policy_ros.rig.self_check import (
    LEAST_WINDOW,
    Check,
    Heard,
    check_alone,
    check_grippers,
    check_keeper,
    check_listeners,
    check_pose,
    check_qos,
    check_rates,
    check_sides,
    check_sources,
    failures,
)
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rollouts.topics import RECORDER_NODE

UNNAMED = "_NODE_NAME_UNKNOWN_"  # rmw's name of a node that it has not been told of yet
NAMELESS_LOOKS = 3


class PolicyChecks:
    """Knows what stands against arming."""

    def __init__(
        self,
        node: Node,
        rig: RigSpec,
        inputs: PolicyInputs,
        clock: MotionClock,
        *,
        keeper: KeeperWatch,
        warnings: Sequence[str],
        dry: bool,
        trained_on: Sequence[int] = (),
    ) -> None:
        """Begin to count.

        Args:
            node: of which the wire is asked.
            rig: what should be there.
            inputs: what comes in.
            clock: by which ages are measured.
            keeper: who may command the arms, too.
            warnings: what does not fit between checkpoint and rig.
            dry: whether nothing goes to the arms.
            trained_on: rows and columns of the checkpoint's training pictures, empty for none.
        """
        self._dry, self._clock, self._trained_on = dry, clock, tuple(trained_on)
        self._node, self._rig, self._inputs = node, rig, inputs
        self._keeper, self._warnings = keeper, tuple(warnings)
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
        checks = [check_sources(sources.complaints(self._clock.now_ns())), check_sides(self._rig)]
        if self._rig.kind == "real":  # a simulated one drops frames on a busy machine, by design
            checks.append(check_rates(self._rig, self._heard()))
        checks.append(self._pictures())
        measured = sources.measured()
        checks += [check_pose(self._rig, measured), check_grippers(self._rig, measured)]
        if self._keeper.needed:
            checks.append(check_keeper(self._keeper.node_name, self._keeper.silence()))
        checks += [check_alone(self._foreign()), check_qos(self._mismatches())]
        if not self._dry:
            checks.append(check_listeners(self._unheard()))
        checks.append(Check("network", True, exposure()))
        # The gate refuses what goes too far, so these are told and stop nobody.
        fits = "; ".join(self._warnings) or "its statistics are within the rig's limits"
        return [*checks, Check("checkpoint", True, fits)]

    def stranger(self) -> str:
        """Return what else can command the arms, or set their clock; empty if nothing can.

        A publisher is found before the name of its node, which may be our own keeper's: a nameless
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

    def _pictures(self) -> Check:
        try:
            sizes = self._inputs.sources.image_sizes()
        except ObservationError as error:
            return Check("pictures", False, str(error), "restart the camera's driver")
        return check_pictures(sizes, self._trained_on, self._rig)

    def _heard(self) -> Heard:
        (began, before), counts = self._counted[0], self._inputs.sources.counts()
        new = {name: counts[name] - before[name] for name in counts}
        return Heard(time.monotonic() - began, new)

    def _foreign(self) -> dict[str, list[str]]:
        """Return who else publishes on the topics that move the arms."""
        policy, keeper = self._node.get_name(), self._keeper.node_name
        to_us = {policy} if self._streamed else {policy, keeper}
        expected = {output.topic: to_us for output in self._rig.outputs}
        expected |= {topic: {keeper} for topic in self._driver_topics()}
        foreign = {topic: self._others(topic, names) for topic, names in expected.items()}
        if self._node.get_parameter("use_sim_time").value:
            clocks = [info.node_name for info in self._publishers("/clock")]
            foreign["/clock"] = clocks[1:]
        return foreign

    def _unheard(self) -> list[str]:
        """Return the topics that move the arms of which nobody takes anything who could."""
        bystanders = {self._node.get_name(), RECORDER_NODE}
        bystanders |= set() if self._streamed else {self._keeper.node_name}
        topics = [*(output.topic for output in self._rig.outputs), *self._driver_topics()]
        return [topic for topic in topics if not self._listeners(topic) - bystanders]

    @property
    def _streamed(self) -> bool:
        return self._rig.sink == "interbotix"

    def _driver_topics(self) -> list[str]:
        """Return what the streamer sends the drivers, where there is one."""
        drivers = [arm.driver for arm in self._rig.arms.values() if arm.driver is not None]
        both = [(driver.joint_group, driver.joint_single) for driver in drivers]
        return [topic for topics in both for topic in topics] if self._streamed else []

    def _listeners(self, topic: str) -> set[str]:
        name = self._node.resolve_topic_name(topic)
        return {info.node_name for info in self._node.get_subscriptions_info_by_topic(name)}

    def _others(self, topic: str, expected: set[str]) -> list[str]:
        names = [info.node_name for info in self._publishers(topic)]
        for name in expected & set(names):
            names.remove(name)  # once: its twin is somebody else
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
