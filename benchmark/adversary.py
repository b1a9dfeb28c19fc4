"""A drill: random clocks, strangers, stuck joints, wrong stamps, kills and stops, on real nodes.

    . scripts/env.sh
    python benchmark/adversary.py --scenarios 500 --seed 0
    python benchmark/adversary.py --seed 0 --only 52 74 --times 5    # those that it has printed

Real nodes over DDS in real time on the simulated rig, in turn through trajectory controllers and
through the stand-in of the stock drivers, asking at rest and in motion. A scenario is a context
of the arms, a fault at a random moment of it, and what an operator or the kernel does next. Counted
is what no scenario may make happen: a row that is sent past a limit or begins far from the arm, an
arm that is faster than its limit, arms that go on moving. The same seed makes the same scenarios;
what the machine's load makes of them differs.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import Any

import rclpy
from rclpy.signals import SignalHandlerOptions

sys.path.insert(0, str(Path(__file__).parents[1] / "test"))

from cosmos_policy_ros.msg import ArmInterfaceState, PolicyState
from helpers.realtime import RealTimeGraph, wrongly_sent
from helpers.stub_engine import Seed
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.nodes import shell
from cosmos_policy_ros.nodes.graph import environment, request_to_keep_to_machine

PER_GRAPH = 25  # scenarios before it is started anew, in another way
# s from the last act until the arms must rest: half a second to notice, a brake of 0.4, and what a
# busy machine's messages take.
REST = 1.5
MEASURING = 1.1  # of the speed limit
STRANGER = "stranger"
SITUATIONS = ("in a chunk", "on the way to the start", "while braking", "at rest")
ENDINGS = ("stop", "stop", "disarm", "pause", "kill", "nothing")
# Faults that hold armed arms by themselves; only the waists are told to move.
MUST_HOLD = re.compile("clock|stranger|stuck .*waist")


@dataclass(frozen=True)
class Scenario:
    """What happens; ``value`` is the fault's."""

    context: str
    after: float  # s into it
    fault: str
    value: Any
    then: float  # s after the fault
    ending: str

    def __str__(self) -> str:
        """Return it in one line."""
        return (
            f"{self.context} +{self.after:.2f} s: {self.fault} {self.value}, "
            f"then {self.ending} +{self.then:.2f} s"
        )


def draw(rng: random.Random) -> Scenario:
    """Return a random scenario."""
    fault = rng.choice(
        ("clock", "clock", "clock", "stranger", "stuck", "stamps", "silent", "stray", "nothing")
    )
    side, joint = rng.choice(("left", "right")), rng.choice(("waist", "shoulder", "elbow"))
    magnitude = 0.06 * (3600 / 0.06) ** rng.random()
    value: Any = {
        "clock": rng.choice((-1, 1)) * magnitude,
        "stranger": (rng.choice(("", STRANGER, "copy")), side, rng.uniform(-1.5, 1.5)),
        "stuck": f"joint_stuck:{side}/{joint}",
        "stamps": f"stamps_off:{side}={rng.choice((-1, 1)) * magnitude:.3f}",
        "silent": f"joints_{rng.choice(('silent', 'nan', 'minus_pi'))}:{side}",
        "stray": rng.choice(("watchdog holds", "watchdog idle", "disarmed node", "armed node")),
        "nothing": "",
    }[fault]
    return Scenario(
        rng.choice(SITUATIONS),
        rng.uniform(0.0, 1.5),
        fault,
        value,
        rng.uniform(0.0, 0.6),
        rng.choice(ENDINGS),
    )


class Drill:
    """One running graph, and scenario after scenario on it."""

    def __init__(self, folder: Path, *, streamed: bool, execution: str) -> None:
        self.graph = RealTimeGraph(folder, streamed=streamed, stub=True, execution=execution)
        self.began = 0.0  # monotonic s, the scenario
        self._strangers: list[Any] = []  # publishers
        self._foreign: list[JointTrajectory] = []

    def ready(self) -> None:
        """Disarm, undo all faults, wait for arms at rest, arm."""
        graph, node = self.graph, self.graph.client.node
        graph.faults()
        graph.wall.set(0.0)
        graph.client.arm(False)
        for each in self._strangers:
            node.destroy_publisher(each)
        self._strangers.clear()
        self._foreign.clear()
        graph.wait(lambda: not graph.moving(0.3), "the arms to rest")
        graph.arm()
        graph.sent.clear()
        graph.goals.clear()

    def play(self, scenario: Scenario) -> list[str]:
        """Play a scenario; return what must not have happened."""
        graph = self.graph
        self.ready()
        self.began = time.monotonic()
        self._situate(scenario.context)
        time.sleep(scenario.after if scenario.context != "while braking" else 0.2)
        self._fault(scenario)
        time.sleep(scenario.then)
        self._end(scenario.ending)
        acted = time.monotonic()
        found = []
        if scenario.ending != "nothing" or MUST_HOLD.search(str(scenario)):
            if not self._rests(acted + REST + 1.0 * (scenario.ending == "nothing")):
                found.append("the arms go on moving")
        else:
            time.sleep(0.5)
        found += wrongly_sent(graph, self._foreign)
        limit = float(graph.rig.max_velocity[:6].max()) * MEASURING
        # Through plain controllers a stranger moves the arms until the arm interface has ended it.
        if graph.streamed or scenario.fault != "stranger":
            fastest = graph.fastest(self.began)
            if fastest > limit:
                found.append(f"an arm joint was at {fastest:.2f} rad/s (limit {limit:.2f})")
        if scenario.ending == "kill":
            graph.client.policy_state = None
            graph.restart("policy_node")
            graph.client.policy_ready(60.0)
        return found

    def _rests(self, by: float) -> bool:
        while time.monotonic() < by:
            if not self.graph.moving(0.3, 0.02):
                return True
            time.sleep(0.02)
        return False

    def _situate(self, context: str) -> None:
        graph = self.graph
        if context == "at rest":
            return
        if context == "on the way to the start":
            graph.client.call(Trigger, "policy_node/go_to_start")
            return
        graph.client.start_run(chunk_limit=20, seed=int(Seed.FAST))
        with suppress(CosmosPolicyError):
            graph.wait(graph.moving, "an arm to move", 5.0)
        if context == "while braking":
            time.sleep(0.3)
            graph.client.pause()

    def _fault(self, scenario: Scenario) -> None:
        graph, value = self.graph, scenario.value
        if scenario.fault == "clock":
            graph.wall.set(value)
        elif scenario.fault == "stranger":
            self._intrude(*value)
        elif scenario.fault == "stray":
            self._stray(value)
        elif scenario.fault != "nothing":
            graph.faults(value)

    def _intrude(self, called: str, side: str, offset: float) -> None:
        graph, node = self.graph, self.graph.client.node
        output = next(each for each in graph.rig.outputs if each.name == side)
        publisher = node.create_publisher(JointTrajectory, output.topic, 10)
        self._strangers.append(publisher)
        # Whoever has not found it yet takes its trajectory later, perhaps after a stop.
        everybody = 3 - graph.streamed  # the arms' controllers, the arm interface, and we
        with suppress(CosmosPolicyError):
            graph.wait(
                lambda: publisher.get_subscription_count() >= everybody, "it to be found", 2.0
            )
        message = JointTrajectory(joint_names=list(output.joints))
        sent = [m for _, name, m in graph.sent if name == side]
        message.header.frame_id = called
        if called == "copy":  # of the newest of ours: as if it came twice
            message.header.frame_id = sent[-1].header.frame_id if sent else ""
        pose = graph.pose(side)
        point = JointTrajectoryPoint(positions=[float(pose[0] + offset), *map(float, pose[1:])])
        point.positions.append(0.0)
        point.time_from_start.sec = 2
        message.points = [point]
        self._foreign.append(message)
        publisher.publish(message)

    def _stray(self, kind: str) -> None:
        graph, node, state = self.graph, self.graph.client.node, self.graph.client.policy_state
        assert state is not None
        if kind.startswith("watchdog"):
            cls = ArmInterfaceState
            topic, holds = f"{graph.watchdog_name}/state", kind == "watchdog holds"
            message = cls(
                armed=holds,
                owner=state.identity if holds else "",
                holding=holds,
                reason="stray" if holds else "",
            )
        else:
            cls, topic = PolicyState, "policy_node/state"
            message = PolicyState(armed=kind == "armed node", identity="other", phase="ready")
        publisher = node.create_publisher(cls, topic, shell.LATCHED_PUBLISHER)
        self._strangers.append(publisher)
        with suppress(CosmosPolicyError):
            graph.wait(lambda: publisher.get_subscription_count() >= 1, "it to be found", 2.0)
        for _ in range(3):
            publisher.publish(message)
            time.sleep(0.02)

    def _end(self, ending: str) -> None:
        client = self.graph.client
        acts: dict[str, Callable[[], object]] = {
            "stop": client.stop,
            "disarm": lambda: client.arm(False),
            "pause": client.pause,
            "kill": lambda: os.kill(self.graph.pid("policy_node"), signal.SIGKILL),
            "nothing": lambda: None,
        }
        acts[ending]()


@contextmanager
def drill(number: int) -> Iterator[Drill]:
    """Run a graph, each in another of the four ways."""
    ways = [
        (False, "synchronous"),
        (True, "synchronous"),
        (False, "asynchronous"),
        (True, "asynchronous"),
    ]
    streamed, execution = ways[number % len(ways)]
    with tempfile.TemporaryDirectory() as folder:
        running = Drill(Path(folder), streamed=streamed, execution=execution)
        try:
            yield running
        except BaseException:
            print(running.graph.log("policy_node")[-3000:], file=sys.stderr)
            raise
        finally:
            running.graph.close()


def main() -> None:
    """Print every violation, then the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenarios", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", default=[], metavar="NUMBER")
    parser.add_argument("--times", type=int, default=1, help="that each is played")
    arguments = parser.parse_args()
    os.environ.setdefault("ROS_DOMAIN_ID", "58")
    os.environ |= request_to_keep_to_machine()
    os.environ |= environment()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    rng = random.Random(arguments.seed)  # noqa: S311
    numbers = arguments.only or range(arguments.scenarios)
    drawn = [draw(rng) for _ in range(max(numbers, default=-1) + 1)]
    faults: Counter[str] = Counter()
    violations: Counter[str] = Counter()
    fastest, began = 0.0, time.monotonic()
    for graph, played in groupby(numbers, lambda number: number // PER_GRAPH):
        with drill(graph) as running:
            for number in chain.from_iterable(repeat(each, arguments.times) for each in played):
                scenario = drawn[number]
                for what in running.play(scenario):
                    violations[what.split(":")[0].split(" ", 2)[0]] += 1
                    print(f"{number}: {scenario}: {what}", flush=True)
                if scenario.fault != "stranger":
                    fastest = max(fastest, running.graph.fastest(running.began))
                faults[scenario.fault] += 1
    told = ", ".join(f"{count} {name}" for name, count in faults.most_common())
    load = Path("/proc/loadavg").read_text().split()[0]
    minutes = (time.monotonic() - began) / 60
    print(f"{faults.total()} scenarios in {minutes:.0f} min, load {load}: {told}")
    print(f"violations: {sum(violations.values())}; fastest arm joint {fastest:.2f} rad/s")
    rclpy.shutdown()
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
