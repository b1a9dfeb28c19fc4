"""Waiting for a condition instead of sleeping, and what the kernel says of processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

LISTENING = "0A"  # of TCP, in /proc/net/tcp
# No such process, and one that ended between opening a file of /proc and reading it.
GONE = (FileNotFoundError, ProcessLookupError)
# Of Fast DDS' segments of shared memory: from 3 on, and before.
SEGMENTS = ("/dev/shm/fastdds_", "/dev/shm/fastrtps_")
PATIENCE = 60.0  # s; a test that waits this long has failed, however busy the machine


def wait_for(
    condition: Callable[[], object], what: str | Callable[[], str], seconds: float = PATIENCE
) -> None:
    """Return when the condition is true; fail the test, saying ``what``, when it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            text = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {seconds:g} s in vain for {text}")
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    """Return whether a process exists and is more than a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except GONE:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def shared_memory_of(pid: int) -> set[Path]:
    """Return Fast DDS' segments that a process has mapped, others' too."""
    mapped = {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    return {Path(x) for x in mapped if x.startswith(SEGMENTS) and "_port" not in x}


def sockets(pid: int) -> Iterator[str]:
    """Yield a process's UDP sockets and listening TCP sockets, such as "udp 127.0.0.1:7410"."""
    own = set()
    with suppress(*GONE):  # it has ended
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(*GONE):  # closed meanwhile
                own.add(str(file.readlink()).removeprefix("socket:").strip("[]"))
        for kind in ("udp", "udp6", "tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
                fields = line.split()
                address, _, port = fields[1].partition(":")
                if fields[9] in own and (kind.startswith("udp") or fields[3] == LISTENING):
                    words = (address[i : i + 8] for i in range(0, len(address), 8))
                    raw = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
                    yield f"{kind} {ip_address(raw)}:{int(port, 16)}"


def is_on_loopback(socket: str) -> bool:
    """Return whether only this machine reaches what :func:`sockets` has found."""
    return ip_address(socket.split()[1].rpartition(":")[0]).is_loopback


def family(pid: int) -> list[int]:
    """Return the process ids of a process and all it has started."""
    found = [pid]
    with suppress(*GONE):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found
