"""Who yields the processor to whom."""

from __future__ import annotations

import os
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


ALL = """
import os, threading, time
from cosmos_policy_ros.core.processes import yield_to_control
threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
yield_to_control(19, all_threads=True)
print(*{os.getpriority(os.PRIO_PROCESS, int(each)) for each in os.listdir("/proc/self/task")})
"""


def test_threads_that_were_started_before_yield_too() -> None:
    done = subprocess.run([sys.executable, "-c", ALL], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["19"]


@pytest.mark.parametrize("more", [0, 10, 15])
def test_a_thread_and_its_children_yield_never_less_than_before(more: int) -> None:
    """Only root may take back what ``nice`` gave away: others would end with an error."""
    command = [sys.executable, "-c", WORK, str(more)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before = min(os.getpriority(os.PRIO_PROCESS, 0) + more, 19)
    assert [int(each) for each in done.stdout.split()] == [max(before, 10)] * 2 + [before]
