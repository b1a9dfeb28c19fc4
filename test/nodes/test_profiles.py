"""Fast DDS profiles: for large images, without shared memory for who holds the arms, on loopback.

Who writes to a killed process's shared memory may wait a second for its lock. With rmw's LOCALHOST
only the arm interface kept to loopback; every other node's sockets were open to the network.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from helpers.waiting import PATIENCE, family, is_on_loopback, shared_memory_of, sockets, wait_for
from sensor_msgs.msg import Image

from cosmos_policy_ros.core.paths import config_folder, package_share
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.graph import (
    LARGE_IMAGES,
    LOOPBACK,
    NO_SHARED_MEMORY,
    NodeProcesses,
    environment,
    exposure,
    node_processes,
    request_to_keep_to_machine,
)
from cosmos_policy_ros.rig.spec import load_rig

CONFIG = package_share() / "config"
WATCHDOG = "arm_interface_node"
RANGE, ONLY, PEERS = "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY", "ROS_STATIC_PEERS"
PROFILE, OLD_PROFILE = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"
FOR_GRAPHS = ("FASTDDS_", "FASTRTPS_", "RMW_", "ROS_SECURITY", RANGE, ONLY, PEERS)


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take away whatever says who may talk to a graph."""
    for name in [*os.environ]:
        if name.startswith(FOR_GRAPHS):
            monkeypatch.delenv(name)
    return monkeypatch


# ------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    "given",
    [
        {},
        {RANGE: "LOCALHOST"},
        {ONLY: "1"},
        {RANGE: "SUBNET", ONLY: "1"},  # as Jazzy decides
        {RANGE: "LOCALHOST", ONLY: "0"},
        {PROFILE: str(CONFIG / LARGE_IMAGES)},
        {"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"},
        {"ROS_DISTRO": "jazzy"},
        {"ROS_DISTRO": "humble", ONLY: "1", OLD_PROFILE: str(CONFIG / LARGE_IMAGES)},
    ],
)
@pytest.mark.parametrize("profile", LOOPBACK)
def test_a_graph_keeps_to_this_machine(profile: str, given: dict[str, str]) -> None:
    found = given | environment(profile, given)
    name = OLD_PROFILE if "ROS_DISTRO" in given else PROFILE
    assert found[name] == str(CONFIG / LOOPBACK[profile])
    # Else rmw adds transports that listen on all interfaces.
    assert found[RANGE] == "SYSTEM_DEFAULT" and not found.get(ONLY)
    assert "keeps to this machine" in exposure(found)
    for other in LOOPBACK:  # a node's starter, in such a shell
        assert (found | environment(other, found))[name] == str(CONFIG / LOOPBACK[other])


@pytest.mark.parametrize(
    "given",
    [
        {RANGE: "SUBNET"},
        {RANGE: "SYSTEM_DEFAULT"},
        {ONLY: "0"},  # the way Humble has
        {PEERS: "10.0.0.7"},
        {RANGE: "LOCALHOST", PEERS: "10.0.0.7"},
        {"ROS_DISCOVERY_SERVER": "10.0.0.7:11811"},
    ],
)
def test_other_machines_take_part_when_that_is_asked_for(given: dict[str, str]) -> None:
    found = given | environment(NO_SHARED_MEMORY, given)
    assert found[PROFILE] == str(CONFIG / NO_SHARED_MEMORY)
    assert "listens on all interfaces, and any machine" in exposure(found)


@pytest.mark.parametrize("given", [{RANGE: "SUBNET"}, {PEERS: "10.0.0.7"}])
def test_so_they_do_from_a_shell_of_ours(given: dict[str, str]) -> None:
    """Such a shell keeps to this machine, and says so in rmw's words."""
    variables = environment(variables={}) | given
    found = variables | environment(variables=variables)
    assert (found[PROFILE], found[RANGE]) == (str(CONFIG / LARGE_IMAGES), "SUBNET")


@pytest.mark.parametrize(
    ("distro", "name"), [("", PROFILE), ("kilted", PROFILE), ("jazzy", OLD_PROFILE)]
)
def test_a_profile_of_your_own_is_everybodys(
    unsaid: pytest.MonkeyPatch, distro: str, name: str
) -> None:
    unsaid.setenv("ROS_DISTRO", distro)
    unsaid.setenv(name, "/lab/profile.xml")
    assert environment(LARGE_IMAGES) == environment(NO_SHARED_MEMORY)
    assert environment() == {name: "/lab/profile.xml"}
    assert "the Fast DDS profile /lab/profile.xml says on which interfaces" in exposure()
    # In the same folder by another way.
    unsaid.setenv(name, str(package_share() / "test/../config" / LARGE_IMAGES))
    assert environment()[name] == str(CONFIG / LOOPBACK[LARGE_IMAGES])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, "listens on all interfaces"),
        ({PROFILE: str(CONFIG / LOOPBACK[LARGE_IMAGES]), RANGE: "LOCALHOST"}, "on all interfaces"),
        ({PROFILE: str(CONFIG / LOOPBACK[LARGE_IMAGES]), ONLY: "1"}, "on all interfaces"),
        ({"ROS_DOMAIN_ID": "7"}, "domain 7: listens"),
        ({"ROS_DISTRO": "humble"}, "with ROS_LOCALHOST_ONLY=1 the launch file"),
        ({RANGE: "OFF"}, "talks to no other process"),
        ({"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce"}, "SROS2 admits only"),
        ({"ROS_SECURITY_ENABLE": "true"}, "listens on all interfaces"),  # Permissive
    ],
)
def test_exposure_says_what_a_process_with_these_variables_does(
    given: dict[str, str], said: str
) -> None:
    assert said in exposure(given)


def test_humble_keeps_to_this_machine_only_when_asked() -> None:
    """There no node on loopback talks to a driver that is not: Fast DDS 2.6 drops its address."""
    humble = {"ROS_DISTRO": "humble"}
    assert environment(variables=humble) == {OLD_PROFILE: str(CONFIG / LARGE_IMAGES)}


@pytest.mark.parametrize(
    ("distro", "asked"),
    [("", {RANGE: "LOCALHOST"}), ("jazzy", {RANGE: "LOCALHOST"}), ("humble", {ONLY: "1"})],
)
def test_each_distro_is_asked_by_the_variable_that_it_knows(
    distro: str, asked: dict[str, str]
) -> None:
    """Jazzy prints two warnings about Humble's, and Humble ignores the other."""
    given = {"ROS_DISTRO": distro} if distro else {}
    assert request_to_keep_to_machine(given) == asked
    found = given | asked | environment(variables=given | asked)
    assert "keeps to this machine" in exposure(found)


def test_another_middleware_is_left_alone() -> None:
    assert environment(variables={"RMW_IMPLEMENTATION": "rmw_zenoh_cpp"}) == {}


@pytest.mark.parametrize(
    "given",
    [{}, {RANGE: "SUBNET"}, {PROFILE: "/lab/profile.xml", OLD_PROFILE: "/lab/profile.xml"}],
)
def test_a_shell_says_the_same(unsaid: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name, value in given.items():
        unsaid.setenv(name, value)
    script = f". {package_share()}/scripts/env.sh && env"
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    shell = dict(line.partition("=")[::2] for line in run.stdout.splitlines())
    expected = os.environ | environment()
    names = (PROFILE, OLD_PROFILE, RANGE)
    assert {n: shell.get(n) for n in names} == {n: expected.get(n) for n in names}


# ------------------------------------------------------------------- what the kernel says


@pytest.mark.parametrize(
    ("range_", "only", "rig"),
    [("OFF", "0", "interbotix_1"), ("LOCALHOST", "0", "sim"), ("OFF", "1", "interbotix_1")],
)
def test_who_holds_the_arms_shares_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, range_: str, only: str, rig: str
) -> None:
    # OFF leaves the transports alone, as SUBNET does on a rig, and meets nobody.
    monkeypatch.setenv(RANGE, range_)
    monkeypatch.setenv(ONLY, only)
    nodes = node_processes(rig=rig, root=str(tmp_path))
    apart = tuple(n for n in nodes if n.executable in (WATCHDOG, "recorder_node"))
    with NodeProcesses(apart, tmp_path / "log") as processes:
        pids = {n.executable: processes.pid(n.executable) for n in apart}
        for name, pid in pids.items():
            wait_for(lambda pid=pid: [*sockets(pid)], f"{name} to be on the network")
        wait_for(lambda: shared_memory_of(pids["recorder_node"]), "the recorder's shared memory")
        assert not shared_memory_of(pids[WATCHDOG])
        processes.check()


def test_every_socket_of_the_graph_is_on_loopback(
    tmp_path: Path, unsaid: pytest.MonkeyPatch
) -> None:
    for name, value in request_to_keep_to_machine().items():  # Humble's default is the network
        unsaid.setenv(name, value)
    nodes = node_processes(engine="demonstrator", root=str(tmp_path))
    with NodeProcesses(nodes, tmp_path / "log") as processes:
        client = GraphClient("operator", processes.check)
        try:
            client.policy_ready(PATIENCE)
            pids = {n.executable: processes.pid(n.executable) for n in nodes}
            for name, pid in pids.items():
                wait_for(lambda pid=pid: [*sockets(pid)], f"{name} to be on the network")
            # Endpoints that have found each other open further ones.
            assert client.reset_rig("", 0).success
        finally:
            client.close()
        assert len(pids) == 4
        found = {name: [s for p in family(pid) for s in sockets(p)] for name, pid in pids.items()}
        found["operator"] = [*sockets(os.getpid())]
    beyond = {name: [s for s in all_ if not is_on_loopback(s)] for name, all_ in found.items()}
    assert not any(beyond.values()), beyond


@pytest.mark.skipif(
    os.environ.get("ROS_DISTRO") == "humble", reason="Fast DDS 2.6 lets no loopback node hear it"
)
def test_a_driver_that_listens_to_the_network_is_heard_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers that another shell has started do not keep to this machine."""
    monkeypatch.setenv(RANGE, "SUBNET")
    rig = load_rig("sim", config_folder("rigs"))
    # Images larger than the default segment of shared memory.
    nodes = node_processes(root=str(tmp_path), width=640, height=480)
    driver = tuple(n for n in nodes if n.executable == "sim_rig_node")
    with NodeProcesses(driver, tmp_path / "log") as processes:
        client = GraphClient("operator", processes.check)
        sizes: dict[str, list[int]] = {camera.topic: [] for camera in rig.cameras}
        try:
            for topic, seen in sizes.items():
                client.node.create_subscription(
                    Image, topic, lambda m, seen=seen: seen.append(len(m.data)), 10
                )
            assert client.reset_rig("", 0).success
            wait_for(lambda: all(len(seen) > 20 for seen in sizes.values()), "images")
        finally:
            client.close()
        ours, its = ([*sockets(p)] for p in (os.getpid(), processes.pid("sim_rig_node")))
    assert {size for seen in sizes.values() for size in seen} == {640 * 480 * 3}
    assert all(map(is_on_loopback, ours))
    assert not all(map(is_on_loopback, its))
