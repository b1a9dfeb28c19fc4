"""Waiting for a condition instead of sleeping, and what the kernel says of processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 60.0  # s; a test that waits this long has failed, however busy the machine


def wait_for(condition: Callable[[], object], what: str | Callable[[], str]) -> None:
    """Return when the condition is true; fail the test, saying ``what``, when it never is."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            text = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {PATIENCE:g} s in vain for {text}")
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    """Return whether a process exists and is more than a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def shared_memory_of(pid: int) -> set[Path]:
    """Return Fast DDS' segments that a process has mapped, others' too."""
    mapped = {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    return {Path(x) for x in mapped if x.startswith("/dev/shm/fastdds_") and "_port" not in x}
