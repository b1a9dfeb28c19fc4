"""How processes end and share the cores: with their parent, and after those that move the arms."""

from __future__ import annotations

import ctypes
import os
import signal
import threading

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that started it ends.

    Even when that is killed, and even while this process is in the middle of something.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def yield_to_control(niceness: int) -> None:
    """Let this thread, and those that it starts, run after the threads that watch the arms.

    For what computes for a second at a time. Without it, two busy cores keep a node from its
    heartbeats, and the arms are held. A thread that yields more already goes on doing so: only root
    may take that back.
    """
    thread = threading.get_native_id()
    if os.getpriority(os.PRIO_PROCESS, thread) < niceness:
        os.setpriority(os.PRIO_PROCESS, thread, niceness)
