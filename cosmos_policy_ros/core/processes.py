"""How processes end and share the cores: with their parent, and after those that move the arms."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that started it ends.

    Even when that is killed, and even while this process is in the middle of something.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def yield_to_control(niceness: int, *, all_threads: bool = False) -> None:
    """Let this thread, and those that it starts, run after the threads that watch the arms.

    For what computes for a second at a time. Without it, two busy cores keep a node from its
    heartbeats, and the arms are held. A thread that yields more already goes on doing so: only root
    may take that back. ``all_threads`` are those that this process has now.
    """
    threads = [threading.get_native_id()]
    if all_threads:
        threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    for thread in threads:
        with suppress(ProcessLookupError):  # it has just ended
            if os.getpriority(os.PRIO_PROCESS, thread) < niceness:
                os.setpriority(os.PRIO_PROCESS, thread, niceness)
