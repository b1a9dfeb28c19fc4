"""Fast DDS profiles: for large images, and without shared memory for who holds the arms.

Who writes to a killed process's shared memory may wait a second for its lock.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from helpers.waiting import shared_memory_of, wait_for

from cosmos_policy_ros.nodes.graph import (
    LARGE_IMAGES,
    NO_SHARED_MEMORY,
    GraphOptions,
    environment,
    node_processes,
)
from cosmos_policy_ros.nodes.processes import NodeProcesses
from cosmos_policy_ros.rig.share import share_folder


@pytest.mark.parametrize(
    ("rig", "keeper"), [("sim", "arm_guard_node"), ("interbotix_1", "arm_streamer_node")]
)
@pytest.mark.parametrize(("range_", "only"), [("OFF", "0"), ("LOCALHOST", "0"), ("OFF", "1")])
def test_who_holds_the_arms_shares_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, range_: str, only: str, rig: str, keeper: str
) -> None:
    # OFF leaves the transports alone, as SUBNET does on a rig, and meets nobody.
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", range_)
    monkeypatch.setenv("ROS_LOCALHOST_ONLY", only)
    nodes = node_processes(GraphOptions(rig=rig, root=str(tmp_path)))
    apart = tuple(n for n in nodes if n.executable in (keeper, "recorder_node"))
    with NodeProcesses(apart, tmp_path / "log") as processes:
        pids = {n.executable: processes.pid(n.executable) for n in apart}
        for name, pid in pids.items():
            wait_for(lambda pid=pid: udp_sockets(pid), f"{name} to be on the network")
        wait_for(lambda: shared_memory_of(pids["recorder_node"]), "the recorder's shared memory")
        assert not shared_memory_of(pids[keeper])
        processes.check()


def test_a_profile_of_your_own_is_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = environment()
    monkeypatch.delenv(name)
    monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE")
    monkeypatch.delenv("ROS_LOCALHOST_ONLY")
    shipped = {p: environment(p)[name] for p in (LARGE_IMAGES, NO_SHARED_MEMORY)}
    assert shipped == {p: str(share_folder() / "config" / p) for p in shipped}
    monkeypatch.setenv(name, str(share_folder() / "test/../config" / LARGE_IMAGES))
    assert environment(NO_SHARED_MEMORY)[name] == shipped[NO_SHARED_MEMORY]
    monkeypatch.setenv(name, "/lab/profile.xml")
    assert environment(LARGE_IMAGES) == environment(NO_SHARED_MEMORY) == {name: "/lab/profile.xml"}


def udp_sockets(pid: int) -> set[str]:
    """Return the UDP sockets that a process has open."""
    sockets = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(str(file.readlink()).removeprefix("socket:").strip("[]"))
    table = Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]
    return sockets & {line.split()[9] for line in table}
