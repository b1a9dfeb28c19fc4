"""The policy node's view of its watchdog, the arm interface: it holds the arms in its place."""

from __future__ import annotations

import time

import numpy as np
from rclpy.node import Node

from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.msg import ArmInterfaceState
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.rig.spec import RigSpec

TITLE = "the arm interface"


class WatchdogMonitor:
    """Knows whether the arms would follow, and whether they would be held.

    Attributes:
        node_name: of the watchdog.
        needed: whether there has to be one.
        led: why the arms are not to be moved, since a person leads them, or is about to; empty
            while none does.
        led_to: (14,) where a person has led the arms of an armed policy node, policy units; None
            before that, and as soon as the policy node has set it so.
    """

    def __init__(
        self,
        node: Node,
        rig: RigSpec,
        watchdog: str | None,
        *,
        identity: str = "",
        dry: bool = False,
    ) -> None:
        """Listen, unless ``dry``: then nothing moves, and no watchdog is needed.

        Args:
            node: which listens.
            rig: how long a watchdog may be silent.
            watchdog: its node's name, None to do without.
            identity: of this process; a watchdog that holds for another one does not count.
            dry: whether nothing goes to the arms.
        """
        self.node_name = watchdog or ""
        self.needed = watchdog is not None and not dry
        self._topic = f"{self.node_name}/state"
        self._patience = rig.stream.heartbeat_timeout
        self._heard: float | None = None
        self._awake = time.monotonic()
        self._identity, self._armed, self._other = identity, False, False
        self._reason = self._overslept = ""
        self._holding = False
        self.led = ""
        self.led_to: Array | None = None
        if self.needed:
            node.create_subscription(ArmInterfaceState, self._topic, self._hear, shell.LATCHED)

    def wake(self, armed: bool) -> None:
        """Note that the node runs: an armed one that did not for too long was not waited for."""
        self._armed = armed
        if not armed:
            self._overslept, self.led_to = "", None
        elif oversleeping := self._oversleeping():
            self._overslept = oversleeping
        self._awake = time.monotonic()

    def silence(self) -> str:
        """Return since when the watchdog has not been heard of, empty if it has."""
        if not self.needed:
            return ""
        if self._heard is None:
            return f"{TITLE} has not been heard of on {self._topic}: is it running?"
        if self._other and not self._armed:
            if self.led:
                return self.led
            return f"{TITLE} guards another policy node; disarm or end that one"
        age = time.monotonic() - self._heard
        if age > self._patience:
            return f"{TITLE} was last heard of {age:.2f} s ago; start it again"
        return ""

    def held(self) -> str:
        """Return why the arms are where the watchdog holds them, empty while they follow.

        A brake of ours would then begin where they are not.
        """
        if not self.needed:
            return ""
        if self._reason:
            return f"{TITLE} holds the arms: {self._reason}"
        return self._overslept or self._oversleeping()

    def holding(self) -> str:
        """Return why the arms are elsewhere than on our path, empty while they may be on it.

        A watchdog with a reason has stopped nothing yet: one that was deactivated holds nothing.
        """
        return self.held() if self._holding else self._overslept or self._oversleeping()

    def problem(self) -> str:
        """Return why nothing is to be moved, empty if the arms would follow and be held."""
        return self.held() or self.silence()

    def _oversleeping(self) -> str:
        asleep = time.monotonic() - self._awake
        if not self.needed or asleep <= self._patience:
            return ""
        return f"this node was kept waiting for {asleep:.2f} s, and {TITLE} holds the arms"

    def _hear(self, message: ArmInterfaceState) -> None:
        # An armed node's watchdog knows that it is armed; any other state is a stranger's, or old.
        if self._armed and message.owner != self._identity:
            return
        was_led, self.led = self.led, ""
        if message.teleoperation not in ("", "off"):
            self.led = "a person leads the arms; end that first: ~/teleoperate with data: false"
        if message.owner == self._identity and (was_led or self.led) and len(message.led_to):
            self.led_to = np.array(message.led_to)
        # One that holds for a policy node that has died goes over to the next that is armed.
        foreign = message.owner not in ("", self._identity)
        self._other = foreign and not message.reason
        if foreign:
            self._heard, self._reason, self._holding = time.monotonic(), "", False
            return
        self._heard, self._reason = time.monotonic(), message.reason
        self._holding = message.holding
