"""Who yields the processor to whom."""

from __future__ import annotations

import subprocess
import sys

import pytest

WORK = """
import os, sys, threading
from cosmos_policy_ros.core.processes import yield_to_control
os.nice(int(sys.argv[1]))
def niceness(): return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
found = []
def work():
    yield_to_control(10)
    child = threading.Thread(target=lambda: found.append(niceness()))
    child.start()
    child.join()
    found.append(niceness())
worker = threading.Thread(target=work)
worker.start()
worker.join()
print(*found, niceness())
"""


@pytest.mark.parametrize(("before", "yields"), [(0, 10), (10, 10), (15, 15)])
def test_a_thread_and_its_children_yield_never_less_than_before(before: int, yields: int) -> None:
    """Only root may take back what ``nice`` gave away: others would end with an error."""
    command = [sys.executable, "-c", WORK, str(before)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(yields), str(yields), str(before)]
