"""The SROS2 policy: a line for everything that the nodes use, and none that they do not.

None was shipped: any machine on the network could arm, run, and speak to the arms.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import pytest
from helpers.waiting import PATIENCE, wait_for

from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.graph import NodeProcesses, node_processes

FILE = package_share() / "config" / "sros2" / "policy.xml"
OURS = ("policy_node", "arm_interface_node", "recorder_node", "sim_rig_node", "operator_panel")
OPERATORS = {"operator", "operator_panel"}  # who may arm, run and stop
# What a node of the graph has, by the names of rclpy and of the policy.
USES = {
    ("publisher", "topic"): "publish",
    ("subscriber", "topic"): "subscribe",
    ("service", "service"): "reply",
    ("client", "service"): "request",
}
Line = tuple[str, str]  # "publish", "/follower_left/…"


def read_policy() -> tuple[dict[str, set[Line]], dict[str, set[Line]]]:
    """Return what each enclave is allowed and denied, by the last part of its path."""
    allowed: dict[str, set[Line]] = defaultdict(set)
    denied: dict[str, set[Line]] = defaultdict(set)
    root = ET.parse(FILE).getroot()  # noqa: S314 - our own file
    assert (root.tag, root.get("version")) == ("policy", "0.2.0")
    for enclave in root.iterfind("enclaves/enclave"):
        (profile,) = enclave.iterfind("profiles/profile")
        name = profile.get("node")
        assert name is not None and profile.get("ns") == "/"
        assert enclave.get("path") == f"/cosmos_policy/{name}"
        for rules in profile:
            assert rules.tag in ("topics", "services", "actions")
            for use, verdict in rules.items():
                lines = {"ALLOW": allowed, "DENY": denied}[verdict]
                for rule in rules:
                    assert rule.tag == rules.tag[:-1] and rule.text
                    lines[name].add((use, rule.text.replace("~", f"/{name}", 1)))
    return allowed, denied


ALLOWED, DENIED = read_policy()


def covers(lines: set[Line], used: Line) -> bool:
    return any(use == used[0] and fnmatchcase(used[1], name) for use, name in lines)


def may(use: str, name: str) -> set[str]:
    """Return the enclaves that may do this."""
    used = (use, name)
    return {
        e for e, lines in ALLOWED.items() if covers(lines, used) and not covers(DENIED[e], used)
    }


def used_by(client: GraphClient, name: str) -> Iterator[Line]:
    """Yield what a running node has, an action as the action and not as its five parts."""
    for (kind, _), use in USES.items():
        found = getattr(client.node, f"get_{kind}_names_and_types_by_node")(name, "/")
        for entity, _ in found:
            action, part, _ = entity.partition("/_action/")
            if part:
                yield ("execute" if use in ("publish", "reply") else "call"), action
            else:
                yield use, entity


def idle_lines(name: str, used: set[Line], absent: tuple[str, ...]) -> set[Line]:
    """Return the lines of an enclave that its node does not use, but of nodes that are absent."""
    idle = {line for line in ALLOWED[name] if not any(covers({line}, u) for u in used)}
    return {line for line in idle if line[1].split("/")[1] not in absent}


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[Line]]:
    """What each node has on the simulated rig, in a recorded run, and on a stock ALOHA's topics.

    Fails when a line of the policy is used in neither.
    """
    found: dict[str, set[Line]] = defaultdict(set)
    folder = tmp_path_factory.mktemp("policy")
    root = str(folder)
    graphs = {
        "sim": node_processes(engine="demonstrator", root=root, panel=True, panel_port=0),
        "stock": node_processes(
            rig="interbotix_1",
            engine="cosmos",
            checkpoint="tiny_random",
            root=root,
            panel=True,
            panel_port=0,
        ),
    }
    for rig, graph in graphs.items():
        nodes = [node.executable for node in graph]
        absent = tuple(name for name in OURS if name not in nodes)
        with NodeProcesses(graph, folder / rig) as processes:
            client = GraphClient("operator", processes.check)
            try:
                client.policy_ready(PATIENCE)
                if rig == "sim":
                    client.arm_when_ready(PATIENCE)
                    assert client.start_episode(task="transfer_cube", operator_name="ann").success
                    client.finish_run(client.start_run(chunk_limit=1), PATIENCE)
                    assert client.stop_episode().success
                    assert client.stop().success
                for name in nodes:
                    # Of the arm interface's lines each rig uses those of one back end.
                    if rig == "stock" or name != "arm_interface_node":
                        wait_until_all_is_used(client, name, found[name], absent)
                for name in (*nodes, "operator"):
                    found[name] |= set(used_by(client, name))
                wait_for_enclaves(client, nodes)
            finally:
                client.close()
    return found


def wait_for_enclaves(client: GraphClient, nodes: Sequence[str]) -> None:
    """Return when every node has told its own; that comes after its topics."""
    expected = {name: f"/cosmos_policy/{name}" for name in nodes}

    def found() -> dict[str, str]:
        everything = client.node.get_node_names_and_namespaces_with_enclaves()
        return {name: enclave for name, _, enclave in everything if name in nodes}

    wait_for(lambda: found() == expected, lambda: f"the nodes' own enclaves, not {found()}")


def wait_until_all_is_used(
    client: GraphClient, name: str, before: set[Line], absent: tuple[str, ...]
) -> None:
    def idle() -> set[Line]:
        return idle_lines(name, before | set(used_by(client, name)), absent)

    wait_for(
        lambda: not idle(), lambda: f"{name} to use these lines of {FILE.name}: {sorted(idle())}"
    )


@pytest.mark.parametrize("name", [*OURS, "operator"])
def test_whatever_a_node_uses_it_may(used: dict[str, set[Line]], name: str) -> None:
    missing = {line for line in used[name] if name not in may(*line)}
    assert not missing, f"{FILE.name}: enclave {name} lacks lines for {sorted(missing)}"


def test_sros2_finds_nothing_but_enclaves_among_the_enclaves() -> None:
    """It takes a comment there for one without a name, and ends with a traceback."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))  # noqa: S314 - our own file
    (enclaves,) = ET.parse(FILE, parser).getroot()  # noqa: S314
    assert {part.tag for part in enclaves} == {"enclave"}


def test_only_those_that_answer_for_the_arms_may_command_them() -> None:
    for side in ("left", "right"):
        trajectory = f"/follower_{side}/arm_controller/joint_trajectory"
        assert may("publish", trajectory) == {"policy_node", "arm_interface_node"}
        for topic in ("joint_group", "joint_single"):
            assert may("publish", f"/follower_{side}/commands/{topic}") == {"arm_interface_node"}
        for service in ("torque_enable", "set_operating_modes"):
            name = f"/follower_{side}/{service}"
            assert may("request", name) == {"arm_interface_node", "drivers"}


def test_only_the_operator_may_arm_run_and_stop() -> None:
    for service in ("arm", "pause", "stop", "go_to_start", "self_check"):
        assert may("request", f"/policy_node/{service}") == OPERATORS
    assert may("call", "/policy_node/run_task") == OPERATORS
    for service in ("teleoperate", "clutch"):
        assert may("request", f"/arm_interface_node/{service}") == OPERATORS
    for node in OURS:
        for service in ("change_state", "set_parameters", "set_parameters_atomically"):
            assert not may("request", f"/{node}/{service}")


def test_each_speaks_under_its_own_name_only() -> None:
    for node in OURS:
        assert may("publish", f"/{node}/state") == {node}
        assert may("reply", f"/{node}/get_state") == {node}
    assert may("execute", "/policy_node/run_task") == {"policy_node"}
    assert not may("publish", "/clock")
