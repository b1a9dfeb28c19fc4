"""The graph as data: which nodes, with which parameters. The launch file and the demo both read it.

Imports no ROS, so that a launch file on any distro and a plain script can use it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.core.paths import config_folder, executable, package_share
from cosmos_policy_ros.core.processes import end_with_parent
from cosmos_policy_ros.nodes.options import NODES, NONE, RIG, Value, check_arguments
from cosmos_policy_ros.rig.spec import load_rig

# Fast DDS profiles in config/. Who holds the arms when another process is killed must not share
# memory with it: fastdds_udp.xml says why.
LARGE_IMAGES, NO_SHARED_MEMORY = "fastdds.xml", "fastdds_udp.xml"
# The same for a graph that keeps to this machine.
LOOPBACK = {
    LARGE_IMAGES: "fastdds_localhost.xml",
    NO_SHARED_MEMORY: "fastdds_udp_localhost.xml",
}
REACH, OLD_REACH = "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY"  # the latter is Humble's
PEERS = "ROS_STATIC_PEERS"


@dataclass(frozen=True)
class NodeProcess:
    """One node: its executable (and name), its parameter file, and what overrides the file.

    Its Fast DDS profile is one of config/.
    """

    executable: str
    parameter_file: Path
    parameters: dict[str, Value]
    profile: str = LARGE_IMAGES

    @property
    def enclave(self) -> str:
        """Its name in ``config/sros2/policy.xml``; without SROS2 a name only."""
        return f"/cosmos_policy/{self.executable}"


def node_processes(**options: Value) -> tuple[NodeProcess, ...]:
    """Return the nodes to start, the rig first.

    Args:
        options: arguments of the launch file by name; what is left out is as each node's parameter
            file says, or its default.

    Raises:
        ConfigError: no such option or rig, or a value that it cannot have.
    """
    check_arguments(options)
    rig = load_rig(str(options.get("rig", RIG.default)), config_folder("rigs"))
    stepped, dry_run = options.get("stepped", False), options.get("dry_run", False)

    def process(name: str, profile: str = LARGE_IMAGES, **more: Value) -> NodeProcess:
        taken = {o.name: o.kind(options[o.name]) for o in NODES[name] if o.name in options}
        file = config_folder("params") / f"{name}.yaml"
        return NodeProcess(name, file, taken | more, profile)

    nodes = [process("policy_node", use_sim_time=stepped)]
    if stepped:  # nothing is fresh, no watchdog is awake and nothing is urgent while no time passes
        nodes[0].parameters.update(self_check=False, watchdog=NONE, niceness=0)
    if options.get("record", True) and not dry_run:  # what moves nothing is no rollout
        nodes.append(process("recorder_node", use_sim_time=stepped))
    if not dry_run and not stepped:
        nodes.insert(0, process("arm_interface_node", NO_SHARED_MEMORY))
    if rig.kind == "sim":
        nodes.insert(0, process("sim_rig_node"))
    if options.get("panel", False):
        records = bool(options.get("record", True)) and not dry_run
        nodes.append(process("operator_panel", record=records))
    return tuple(nodes)


def environment(
    profile: str = LARGE_IMAGES, variables: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return what a node's environment needs beyond ``variables``, by default this process' own.

    That is its Fast DDS profile, unless a foreign one is set. The graph keeps to this machine by
    profiles of its own, since with rmw's LOCALHOST every socket is open to the network all the
    same; it takes part in the network when the environment asks for that, by
    ROS_AUTOMATIC_DISCOVERY_RANGE=SUBNET, ROS_STATIC_PEERS or ROS_DISCOVERY_SERVER. On Humble it
    keeps to this machine only when asked, by ROS_LOCALHOST_ONLY=1: Fast DDS 2.6 lets no node on
    loopback talk to a driver that another shell has started on the network.
    """
    given = os.environ if variables is None else variables
    if not _is_fast_dds(given):
        return {}
    name, folder = _profile_variable(given), package_share() / "config"
    if foreign := _foreign_profile(given):
        return {name: foreign}
    if _keeps_to_machine(given):
        found = {name: str(folder / LOOPBACK[profile]), REACH: "SYSTEM_DEFAULT"}
        # Any other value than none makes Jazzy warn.
        return found | ({OLD_REACH: ""} if given.get(OLD_REACH) else {})
    found = {name: str(folder / profile)}
    return found | ({REACH: "SUBNET"} if _is_on_loopback(given) and PEERS in given else {})


def request_to_keep_to_machine(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variable that asks for a graph on this machine only.

    Args:
        variables: of which the distro is told; by default this process' own.
    """
    given = os.environ if variables is None else variables
    # Jazzy warns about Humble's variable, which Humble alone needs.
    return {OLD_REACH: "1"} if given.get("ROS_DISTRO") == "humble" else {REACH: "LOCALHOST"}


def exposure(variables: Mapping[str, str] | None = None) -> str:
    """Return one line on which machines may talk to a process with these variables.

    Args:
        variables: its environment; by default this process' own.
    """
    given = os.environ if variables is None else variables
    place = f"domain {given.get('ROS_DOMAIN_ID') or 0}"
    advice = "see doc/how-to/secure-the-network.md"
    secured = {"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce"}
    if secured.items() <= given.items():
        return f"{place}: SROS2 admits only enclaves of {given.get('ROS_SECURITY_KEYSTORE')}"
    if given.get(REACH) == "OFF":
        return f"{place}: talks to no other process ({REACH}=OFF)"
    anyone = "any machine that reaches them may arm and run the robot"
    if _is_fast_dds(given) and (foreign := _foreign_profile(given)):
        return (
            f"{place}: the Fast DDS profile {foreign} says on which interfaces it listens; unless "
            f"they are loopback, {anyone}; {advice}"
        )
    if _is_on_loopback(given):
        return (
            f"{place}: keeps to this machine; {REACH}=SUBNET at start lets other machines take "
            f"part; {advice}"
        )
    keeps = "=".join(*request_to_keep_to_machine(given).items())
    return (
        f"{place}: listens on all interfaces, and {anyone}; with {keeps} the launch file keeps the "
        f"graph to this machine; {advice}"
    )


def _is_fast_dds(given: Mapping[str, str]) -> bool:
    return (given.get("RMW_IMPLEMENTATION") or "rmw_fastrtps_cpp").startswith("rmw_fastrtps")


def _profile_variable(given: Mapping[str, str]) -> str:
    # Fast DDS 2 (Humble, Jazzy) ignores the new name; Fast DDS 3 warns about the old one.
    old = given.get("ROS_DISTRO") in ("humble", "jazzy")
    return "FASTRTPS_DEFAULT_PROFILES_FILE" if old else "FASTDDS_DEFAULT_PROFILES_FILE"


def _foreign_profile(given: Mapping[str, str]) -> str:
    """Return the profile that is set, "" for none or one of ours."""
    file = given.get(_profile_variable(given), "")
    ours = (package_share() / "config").resolve()
    return file if file and Path(file).resolve().parent != ours else ""


def _is_on_loopback(given: Mapping[str, str]) -> bool:
    """Whether a process with these variables has a loopback profile that rmw leaves alone."""
    profile = Path(given.get(_profile_variable(given), "")).name
    ours = profile in LOOPBACK.values() and not _foreign_profile(given)
    return _is_fast_dds(given) and ours and not _asks_rmw_for_loopback(given)


def _keeps_to_machine(given: Mapping[str, str]) -> bool:
    """Whether a graph that is started with these variables is to keep to this machine."""
    if given.get(PEERS) or given.get("ROS_DISCOVERY_SERVER"):
        return False
    if given.get(REACH) == "SYSTEM_DEFAULT":  # ours, from another call, or the operator's own word
        return _is_on_loopback(given) or _asks_rmw_for_loopback(given)
    unsaid = not given.get(REACH) and not given.get(OLD_REACH)
    return (unsaid and given.get("ROS_DISTRO") != "humble") or _asks_rmw_for_loopback(given)


def _asks_rmw_for_loopback(given: Mapping[str, str]) -> bool:
    return given.get(REACH) == "LOCALHOST" or given.get(OLD_REACH) == "1"


PATIENCE = 15.0  # s for a node to finish its bag or its model after SIGINT


class NodeProcesses:
    """The running nodes; a context manager that ends them whatever happens."""

    def __init__(self, nodes: Sequence[NodeProcess], logs: Path) -> None:
        """Start every node, its output in ``logs/<node>.log``."""
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for node in nodes:
                self._running[node.executable] = _start(node, logs)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> NodeProcesses:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def pid(self, name: str) -> int:
        """Return the process id of a node."""
        return self._running[name].pid

    def exit_code(self, name: str) -> int | None:
        """Return a node's exit code, negative for a signal; None while it runs."""
        return self._running[name].poll()

    def log(self, name: str) -> str:
        """Return what a node has printed so far."""
        return (self._logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def check(self) -> None:
        """Raise CosmosPolicyError, with its last words, when a node has ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                words = self.log(name).strip().splitlines()[-5:]
                raise CosmosPolicyError(
                    f"{name} ended with exit code {process.returncode}: " + " / ".join(words)
                )

    def close(self) -> None:
        """Ask every node to finish, then make sure; safe to call twice."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + PATIENCE
        for process in self._running.values():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _start(node: NodeProcess, logs: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, str(executable(node.executable)), "--ros-args"]
    arguments += ["--enclave", node.enclave, "--params-file", str(node.parameter_file)]
    for name, value in node.parameters.items():
        arguments += ["-p", f"{name}:={json.dumps(value)}"]
    with (logs / f"{node.executable}.log").open("wb") as output:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment(node.profile) | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C in the terminal is ours to pass on, in order
            preexec_fn=partial(end_with_parent, signal.SIGINT),
        )
