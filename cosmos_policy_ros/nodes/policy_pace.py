"""When the policy node polls: along with its joint states, and by itself once they fall silent.

Every tick of a timer makes rclpy rebuild its wait set, which at 50 ticks a second cost more than
all that the node does with its messages. Joint states wake it anyway, so the poll rides on them.
A watchdog that every poll winds up again takes over when none comes: a run whose rig has died must
still brake, hold, be cancelled and end. Wall time paces both, since the rig's may stand still.

It waits for a joint state of every arm: a node that the machine kept waiting takes what waits for
it topic by topic, and between the first arm's and the second's the second would look dead.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

POLL_PERIOD = 0.02  # wall s; half a control step. The poll waits for the next joint state after it
# Wall s without a poll. More than POLL_PERIOD and two samples of a 50 Hz driver, so that it rests
# while the joint states come; a tenth of the 0.5 s after which a silent arm brakes a chunk.
SILENCE = 0.05


class Pace:
    """Calls ``poll`` at most every POLL_PERIOD on joint states, at least every SILENCE anyhow."""

    def __init__(self, node: Node, arms: Iterable[str], poll: Callable[[], None]) -> None:
        """Begin with a rig of these arms; ``poll`` runs in the node's executor."""
        self._node, self._arms, self._poll = node, frozenset(arms), poll
        self._heard: set[str] = set()  # since the last poll
        self._polled = -math.inf
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        # It ticks without a run too: rclpy resumes a waiting action only when something wakes its
        # executor.
        self._watchdog = node.create_timer(SILENCE, self._tick, clock=steady)

    def close(self) -> None:
        """End; after this :meth:`on_joint_state` must not be called."""
        self._node.destroy_timer(self._watchdog)

    def on_joint_state(self, arm: str) -> None:
        """Poll if it is time and every arm has spoken since the last one."""
        self._heard.add(arm)
        if self._heard == self._arms and time.monotonic() - self._polled >= POLL_PERIOD:
            self._watchdog.reset()
            self._tick()

    def _tick(self) -> None:
        self._polled = time.monotonic()
        self._heard.clear()
        self._poll()
