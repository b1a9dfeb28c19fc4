"""The real graph for a test: each node its own process, over DDS, on a rig that steps on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any
from unittest.mock import patch

from cosmos_policy_ros.msg import RecorderState
from diagnostic_msgs.msg import DiagnosticArray
from helpers.waiting import PATIENCE, wait_for
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import Reader

from cosmos_policy_ros.bags.jpeg import SUFFIX, to_compressed
from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.core.paths import config_folder, package_share
from cosmos_policy_ros.episodes.topics import (
    POLICY_NODE,
    RECORDER_NODE,
    SIM_RIG_NODE,
    episode_topics,
)
from cosmos_policy_ros.nodes import graph, shell
from cosmos_policy_ros.nodes.client import GraphClient
from cosmos_policy_ros.nodes.graph import (
    NodeProcess,
    NodeProcesses,
    node_processes,
    request_to_keep_to_machine,
)
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

CHUNK = 50  # periods
# Periods: 0.2 s, so that a policy node two slices behind the wire is within every limit of an age.
SLICE = 5
POLICY_STATE, DECISION = f"/{POLICY_NODE}/state", f"/{POLICY_NODE}/decision"
GATE_RESULT = f"/{POLICY_NODE}/gate_result"
RIG_STATE = f"/{SIM_RIG_NODE}/state"
HELPERS = Path(__file__).parent
# What a graph runs in place of shipped programs, by what is asked for.
BRISK = {
    "policy_node": HELPERS / "brisk_policy_node.py",
    "recorder_node": HELPERS / "brisk_recorder_node.py",
}
STUBS = BRISK | {"policy_node": HELPERS / "stub_policy_node.py"}
FORKING = BRISK | {"policy_node": HELPERS / "forking_policy_node.py"}
# More than a test publishes on any topic.
DEPTH = 5000

Cdr = dict[str, list[bytes]]


def isolate() -> dict[str, str]:
    """Return the environment that keeps a test run's graph apart from every other one.

    Domains 60 and up are the demo's, and from 101 on a domain's ports may be taken by the kernel.
    """
    return {
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 59),
        **request_to_keep_to_machine(),
    }


class Wire:
    """Keeps every message of an episode's topics, as the bytes that came over the wire."""

    def __init__(self, node: Any, rig: RigSpec) -> None:
        self.types: dict[str, Any] = {}
        self.cdr: Cdr = {}
        self.forgotten: Cdr = {}
        for topic in episode_topics(rig):
            package, _, kind = topic.msgtype.split("/")
            qos = QoSProfile(depth=DEPTH)
            if kind in ("PolicyState", "RigState"):
                qos.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL
            name = node.resolve_topic_name(topic.name)
            self.types[name] = getattr(import_module(f"{package}.msg"), kind)
            self.cdr[name] = []
            node.create_subscription(self.types[name], name, self.cdr[name].append, qos, raw=True)

    def forget(self) -> None:
        """Start afresh."""
        for topic, messages in self.cdr.items():
            self.forgotten.setdefault(topic, []).extend(messages)
            messages.clear()

    def newest(self, topic: str) -> Any:
        """Return a topic's newest message, a forgotten one if need be, or None."""
        messages = self.cdr[topic] or self.forgotten.get(topic)
        return deserialize_message(messages[-1], self.types[topic]) if messages else None

    def read(self, topic: str) -> list[Any]:
        """Return a topic's messages."""
        return [deserialize_message(cdr, self.types[topic]) for cdr in tuple(self.cdr[topic])]


@dataclass
class Recorded:
    """An episode: its finished bag, and what came over the wire meanwhile.

    ``as_jpeg`` are the topics of raw images by what the bag calls them as JPEG.
    """

    id: str
    path: Path = Path()
    wire: Cdr = field(default_factory=dict)
    before: Cdr = field(default_factory=dict)
    as_jpeg: Mapping[str, str] = field(default_factory=dict)
    jpeg_quality: int = 0

    def check_complete(self) -> None:
        """Hold the bag against the wire, byte for byte.

        What was sent just before may have reached a recorder that was kept waiting just after.
        """
        bag, types = read_bag(self.path), load_types(package_share() / "msg")
        for topic, seen in self.wire.items():
            found, before = bag.get(topic, []), self.before.get(topic, [])
            if topic in self.as_jpeg:
                assert not found, f"{topic} is in the bag and not only its JPEGs"
                found = bag.get(self.as_jpeg[topic], [])
                seen = [to_compressed(types, cdr, self.jpeg_quality) for cdr in seen]
                before = [to_compressed(types, cdr, self.jpeg_quality) for cdr in before]
            late = len(found) - len(seen)
            same = found[max(late, 0) :] == seen
            assert same, f"{topic}: bag has {len(found)}, wire {len(seen)}, and they differ"
            assert found[:late] == before[len(before) - late :], f"{topic}: {late} of no wire"


# Refusals of a recorder that has not met the rig, or the policy node and its task, so far.
NOT_FOUND_YET = ("nobody publishes", "there is no policy node")


class Graph:
    """A running graph and its operator; a context manager that ends it."""

    def __init__(
        self,
        root: Path,
        *,
        stub: bool = False,
        forking: bool = False,
        size: tuple[int, int] = (128, 128),
        rig: str = "sim",
        **policy: Any,
    ) -> None:
        """Start the nodes and wait until the engine is loaded.

        Args:
            root: folder of the episodes; logs go into its ``log``.
            stub: let ``helpers.stub_engine`` decide instead of the demonstrator.
            forking: have the policy node's inference processes forked instead of spawned.
            size: rows and columns of the images [px].
            rig: name or file of a simulated rig.
            policy: parameters of the policy node.
        """
        self.rig = load_rig(rig, config_folder("rigs"))
        self._as_jpeg = {f"/{c.topic}": f"/{c.topic}{SUFFIX}" for c in self.rig.cameras}
        height, width = size
        nodes = node_processes(rig=rig, stepped=True, width=width, height=height, root=str(root))
        programs = STUBS if stub else FORKING if forking else BRISK
        self.processes = start(nodes, root / "log", programs, **policy)
        self.client = GraphClient("operator", self.processes.check)
        try:
            self._listen()
            self.client.policy_ready(PATIENCE)
            found = self.client.node.count_publishers
            topics = set(self.wire.types)
            if policy.get("dry_run"):
                topics -= {f"/{output.topic}" for output in self.rig.outputs}
            self.wait(lambda: all(map(found, topics)), "a publisher of every topic")
            self._until_idle()
            # Its clock is the rig's, so it has found the rig.
            self.wait(lambda: self._diagnosis.header.stamp.sec, "the policy node to find the rig")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Graph:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the operator, then the nodes."""
        self.client.close()
        self.processes.close()

    def _listen(self) -> None:
        node = self.client.node
        self.wire = Wire(node, self.rig)
        self._recorder = RecorderState()
        self._diagnosis = DiagnosticArray()

        def keep_recorder(message: RecorderState) -> None:
            self._recorder = message

        def keep_diagnosis(message: DiagnosticArray) -> None:
            self._diagnosis = message

        latched = shell.LATCHED
        node.create_subscription(RecorderState, f"{RECORDER_NODE}/state", keep_recorder, latched)
        node.create_subscription(DiagnosticArray, "/diagnostics", keep_diagnosis, 10)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for a condition while all nodes live."""
        return self.client.wait_until(condition, PATIENCE, what)

    # ---------------------------------------------------------------- the rig

    def step(self, periods: int) -> Any:
        """Step, and wait until the wire has the rig's newest states; return the rig's time.

        In slices, since a rig that runs ahead of a busy machine makes everything look late.
        """
        for first in range(0, periods, SLICE):
            stamp = self._step(min(SLICE, periods - first))
        return stamp

    def _step(self, periods: int) -> Any:
        stamp = self.client.step(periods).header.stamp
        topics = [RIG_STATE, *(f"/{arm.joint_states}" for arm in self.rig.arms.values())]

        def seen() -> bool:
            newest = [self.wire.newest(topic) for topic in topics]
            return all(message is not None and message.header.stamp == stamp for message in newest)

        self.wait(seen, "the rig's newest states")
        # The wire is this process; a policy node that the machine kept waiting would find that its
        # sources have been silent. Its answer to anything tells that it runs.
        if self.processes.exit_code(POLICY_NODE) is None:
            self.client.call(GetState, f"{POLICY_NODE}/get_state")
        return stamp

    def settle(self) -> None:
        """Step once and wait until the policy node has everything that came of it."""
        stamp = self.step(1)

        def all_new() -> bool:
            if self._diagnosis.header.stamp != stamp:
                return False
            return all(v.value.endswith("age 0.000 s") for v in self._diagnosis.status[0].values)

        self.wait(all_new, "the policy node to have seen the newest of everything")

    def diagnosed(self, *names: str) -> dict[str, Any]:
        """Wait until the policy node has told the state of these parts of it; return them."""

        def told() -> Any:
            found = {s.name.split(": ")[1]: s for s in self._diagnosis.status}
            return found if found.keys() >= set(names) else None

        found: dict[str, Any] = self.wait(told, f"diagnostics of {', '.join(names)}")
        return found

    def set_faults(self, *faults: str) -> None:
        """Replace the simulated rig's faults."""
        parameter = Parameter("faults", value=list(faults) or [""]).to_parameter_msg()
        name = f"{SIM_RIG_NODE}/set_parameters"
        answer = self.client.call(SetParameters, name, parameters=[parameter])
        assert answer.results[0].successful, answer.results[0].reason

    def accepted(self) -> list[int]:
        """Return how many trajectories each controller has taken since the rig's reset."""
        return list(self.client.step(0).accepted)

    def reset(self) -> None:
        """Bring everything back to how it was after the start, whatever a failed test left."""
        self.client.stop()
        self.client.stop_episode()
        self._until_idle()
        self.set_faults()
        assert self.client.reset_rig("", 0).success
        self.settle()
        self.wire.forget()

    # ---------------------------------------------------------------- the policy

    def _until_idle(self) -> None:
        """Wait until the wire has the state that no other follows by itself."""

        def idle() -> bool:
            state = self.wire.newest(POLICY_STATE)
            return state is not None and state.phase == "ready" and not state.armed

        self.wait(idle, "the policy node to be ready and disarmed")

    def run_chunks(self, chunks: int, **goal: Any) -> Any:
        """Run so many chunks to their ends; return the action's result."""
        handle = self.client.start_run(chunk_limit=chunks, **goal)
        for chunk in range(1, chunks + 1):
            self.until_executing(chunk)
            self.step(CHUNK)
        return self.client.finish_run(handle, PATIENCE)

    def until_phase(self, phase: str) -> Any:
        """Wait for a phase of the policy node; return its state."""

        def reached() -> Any:
            state = self.client.policy_state
            return state if state is not None and state.phase == phase else None

        return self.wait(reached, f"phase {phase}")

    def until_executing(self, chunk: int) -> None:
        """Wait until a chunk of this run, counted from 1, has reached both arms."""
        self.wait(
            lambda: self.until_phase("executing").chunks == chunk, f"chunk {chunk} to be executed"
        )
        self.until_sent(f"/{chunk - 1}")

    def until_sent(self, ending: str) -> list[Any]:
        """Wait until all controllers have taken a trajectory whose id ends so; return those."""

        def taken() -> Any:
            sent = self.sent()
            newest = [to[-1] for to in sent if to and to[-1].header.frame_id.endswith(ending)]
            whole = len(newest) == len(sent) and self.accepted() == [*map(len, sent)]
            return newest if whole else None

        return self.wait(taken, f"trajectory …{ending} at all controllers")

    def until_said(self, *words: str) -> None:
        """Wait until a state message of the policy node has held all the words."""

        def said() -> bool:
            texts = [state.message for state in self.wire.read(POLICY_STATE)]
            return any(all(word in text for word in words) for text in texts)

        self.wait(said, f"a state message with {words}")

    def sent(self) -> list[list[Any]]:
        """Return the trajectories since the wire was cleared: left arm's, right arm's."""
        return [self.wire.read(f"/{output.topic}") for output in self.rig.outputs]

    # ---------------------------------------------------------------- the recorder

    def until_recorded(self) -> None:
        """Wait until the recorder has written as many messages of every topic as we have seen."""

        def missing() -> dict[str, tuple[int, int]]:
            state, seen, names = self._recorder, self.wire.cdr, self._as_jpeg
            written = dict(zip(state.topics, state.counts, strict=True))
            pairs = {t: (written.get(names.get(t, t), 0), len(seen[t])) for t in seen}
            return {topic: pair for topic, pair in pairs.items() if pair[0] < pair[1]}

        wait_for(lambda: not missing(), lambda: f"topics (written, published): {missing()}")

    def start_episode(self, **fields: Any) -> Any:
        """Begin recording; discovery on a busy machine may outlast the recorder's patience."""
        answers = []

        def settled() -> bool:
            answers.append(self.client.start_episode(**fields))
            return answers[-1].success or not any(x in answers[-1].message for x in NOT_FOUND_YET)

        wait_for(settled, "the recorder to find the rig")
        assert answers[-1].success, answers[-1].message
        return answers[-1]

    @contextmanager
    def recorded(self, trial: str = "") -> Iterator[Recorded]:
        """Record an episode; what it yields is complete afterwards."""
        self.wire.forget()
        started = self.start_episode(operator_name="ann", seed=7, trial=trial)
        quality = self.rig.recording.jpeg_quality
        episode = Recorded(started.episode_id, as_jpeg=self._as_jpeg, jpeg_quality=quality)
        episode.before = {topic: list(each) for topic, each in self.wire.forgotten.items()}
        yield episode
        self.until_recorded()
        stopped = self.client.stop_episode()
        assert stopped.success, stopped.message
        episode.path = Path(stopped.path)
        episode.wire = {topic: list(messages) for topic, messages in self.wire.cdr.items()}


def read_bag(path: Path) -> Cdr:
    """Return the bytes of every message in a bag by topic, read by rosbags."""
    found: Cdr = {}
    with Reader(path) as reader:
        for connection, _, cdr in reader.messages():
            found.setdefault(connection.topic, []).append(bytes(cdr))
    return found


def start(
    nodes: tuple[NodeProcess, ...],
    logs: Path,
    programs: Mapping[str, Path] = MappingProxyType({}),
    **policy: Any,
) -> NodeProcesses:
    """Start nodes, some by other programs than the shipped ones.

    ``policy`` are parameters of the policy node on top of theirs.
    """
    nodes = tuple(
        replace(n, parameters=n.parameters | policy) if n.executable == "policy_node" else n
        for n in nodes
    )
    shipped = graph.executable

    def program(name: str) -> Path:
        return programs.get(name) or shipped(name)

    with patch.object(graph, "executable", program):
        return NodeProcesses(nodes, logs)


def worker_of(node_pid: int) -> int | None:
    """Return the process id of a policy node's inference process, None while there is none."""
    return next(iter(workers_of(node_pid)), None)


def workers_of(node_pid: int) -> list[int]:
    """Return the process ids of a policy node's inference processes."""
    found = []
    for pid, command in _children(node_pid):
        if b"spawn_main" in command:
            found.append(pid)
        elif b"multiprocessing.forkserver" in command:
            found += [forked for forked, _ in _children(pid)]
    return found


def _children(pid: int) -> list[tuple[int, bytes]]:
    """Return a process's children and their command lines."""
    return [
        (int(child), Path(f"/proc/{child}/cmdline").read_bytes())
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
