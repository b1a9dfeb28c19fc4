"""What a node's services wait for, time and disks, beside an executor that goes on meanwhile.

rclpy runs a service as a coroutine where it is one, and turns to other callbacks while it waits.
A future of rclpy's is all that it may wait for, from Humble to Kilted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future


class Background:
    """Makes what would block awaitable.

    Attributes:
        group: for the services and timers that await. In the node's own group, which runs one
            callback at a time, a waiting one would hold up all others.
    """

    def __init__(self, node: Node) -> None:
        """Serve one node."""
        self.group = ReentrantCallbackGroup()
        self._node = node
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._wake = node.create_guard_condition(lambda: None, self.group)

    async def run(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return what a function returns, or raise what it raises; a thread of its own runs it.

        A disk that never answers keeps that thread, not the node; the process ends without it.
        """
        done: Any = Future()

        def work() -> None:
            try:
                done.set_result(function(*arguments, **options))
            except Exception as error:
                done.set_exception(error)
            with suppress(RuntimeError):  # the node has ended meanwhile
                self._wake.trigger()

        threading.Thread(target=work, name="background", daemon=True).start()
        return await done

    async def pause(self, seconds: float) -> None:
        """Wait for some wall seconds."""
        over: Any = Future()
        timer = self._node.create_timer(
            seconds, lambda: over.set_result(None), callback_group=self.group, clock=self._steady
        )
        try:
            await over
        finally:
            self._node.destroy_timer(timer)
