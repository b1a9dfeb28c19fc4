"""Processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that started it ends.

    Even when that is killed, and even while this process is in the middle of something.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
