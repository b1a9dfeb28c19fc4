"""What the ROS path costs: CPU of the inputs, frames lost on the wire, delay of the outputs.

Run, from the package's root::

    . scripts/env.sh
    python benchmark/ros_path.py [--seconds 4] [--rounds 3] [--chunks 50] [--json FILE]

Everything crosses real DDS between processes. A feed publishes three 640x480 rgb8 cameras at 30 Hz
and two joint states at 100 Hz; three parts read it:

``cpu``
    CPU seconds per second of the real, disarmed policy node, which polls at up to 50 Hz, and of two
    nodes that make a 224x224 RGB image of every frame: "converts" with OpenCV's plain resize,
    "prepares" with the filters that the checkpoints need.
    Each runs beside a node with empty callbacks that reads the same messages at the same time:
    other work on the machine slows both, so that their ratio is steadier than either. Means
    little when the machine has no core to spare: a starved node takes several messages per wake.
``loss``
    Numbered frames sent and received per camera, by QoS, with and without the shipped profile.
``publish``
    The policy node's own account of every decision (topic ``~/decision``), engine cosmos with the
    tiny checkpoint cut to one denoising step, inputs at full rate, dry, since the feed's arms stand
    still: two seconds a chunk. ``publish`` in it is the time from the worker thread's having the
    chunk to both trajectories' having been published.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import rclpy  # noqa: E402
import yaml  # noqa: E402
from cosmos_policy_ros.msg import Decision  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from cosmos_policy_ros.core.config import load_yaml  # noqa: E402
from cosmos_policy_ros.core.paths import config_folder  # noqa: E402
from cosmos_policy_ros.nodes.client import GraphClient  # noqa: E402
from cosmos_policy_ros.nodes.graph import (  # noqa: E402
    NodeProcesses,
    environment,
    node_processes,
    request_to_keep_to_machine,
)
from cosmos_policy_ros.rig.spec import load_rig  # noqa: E402

PARTS = ("cpu", "loss", "publish")
PROFILE_NAMES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
READERS = {
    "convert": "converts every frame",
    "prepare": "prepares every frame",
    "ours": "policy node",
}
POLICY_ARGUMENTS = ("--ros-args", "-p", "rig:=sim", "-p", "engine:=demonstrator")
QOS = (  # reliability, the writer's depth, the reader's depth
    ("reliable", 10, 10),
    ("best_effort", 5, 5),  # the sensor_data profile
    ("reliable", 10, 1),  # the policy node's, which wants the newest frame only
)
PATIENCE = 60.0  # s for a process to start, to be discovered, or to send its frames
SETTLE = 1.0  # s after the first messages, before a measurement
GRACE = 1.0  # s for the last frames to arrive

Result = dict[str, Any]


class End:
    """One process of ``_ros_ends.py``; a context manager."""

    def __init__(self, log: Path, role: str, *arguments: str, profile: bool = True) -> None:
        variables = os.environ | environment()
        if not profile:
            for name in PROFILE_NAMES:
                variables.pop(name, None)
        self._role, self._log = role, log / f"{role}.log"
        program = str(Path(__file__).with_name("_ros_ends.py"))
        with self._log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, program, role, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=variables,
                text=True,
            )

    def __enter__(self) -> End:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=PATIENCE)  # closes its input: it ends

    def sample(self) -> Result:
        """Return its counts, CPU seconds and wall clock as of now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._role} ended by itself: {self._words()}")
        sample: Result = json.loads(line)
        return sample

    def wait(self, what: str, feed: End) -> None:
        """Wait for the feed's last frame ("done") or a reader's first messages ("all sources")."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            sent, sample = feed.sample(), self.sample()
            if sample.get("done", all(sample["counts"].values()) and not sample.get("loading")):
                return
            time.sleep(0.1)
        raise SystemExit(
            f"{self._role}: waited {PATIENCE:g} s for {what}; has {sample}, the feed sent {sent}; "
            f"{self._words()}"
        )

    def _words(self) -> str:
        return " / ".join(self._log.read_text(errors="replace").strip().splitlines()[-5:])


def quantiles(values: Sequence[float]) -> Result:
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50": float(p50), "p99": float(p99), "max": max(values), "count": len(values)}


def pair_cpu(role: str, feed: End, log: Path, seconds: float) -> tuple[Result, Result]:
    """Return CPU seconds, and messages, per second of the empty reader and of another one."""
    arguments = POLICY_ARGUMENTS if role == "ours" else ("--depth", "1")
    with End(log, "empty", "--depth", "1") as empty, End(log, role, *arguments) as other:
        pair = (empty, other)
        for reader in pair:
            reader.wait("all sources", feed)
        time.sleep(SETTLE)
        before = [reader.sample() for reader in pair]
        time.sleep(seconds)
        after = [reader.sample() for reader in pair]
    spent = [_spent(*samples) for samples in zip(before, after, strict=True)]
    return spent[0], spent[1]


def _spent(before: Result, after: Result) -> Result:
    wall = after["wall"] - before["wall"]
    received = sum(after["counts"].values()) - sum(before["counts"].values())
    return {"cpu": (after["cpu"] - before["cpu"]) / wall, "messages": received / wall}


def measure_cpu(options: argparse.Namespace, log: Path) -> Result:
    found: dict[str, list[Result]] = {role: [] for role in ("empty", *READERS)}
    ratios: dict[str, list[float]] = {role: [] for role in READERS}
    loads = []
    with End(log, "feed") as feed:
        for _ in range(options.rounds):
            for role in READERS:
                empty, other = pair_cpu(role, feed, log, options.seconds)
                found["empty"].append(empty)
                found[role].append(other)
                ratios[role].append(other["cpu"] / empty["cpu"])
            loads.append(os.getloadavg()[0])
    print(f"\nCPU of the inputs, median of {options.rounds} rounds of {options.seconds:g} s")
    print(f"{'':30}{'of a core':>10}{'messages/s':>12}{'ratio to empty (range)':>27}")
    result: Result = {"load": loads}
    for role, name in {"empty": "empty callbacks", **READERS}.items():
        cpu, rate = (statistics.median(r[k] for r in found[role]) for k in ("cpu", "messages"))
        of_role = ratios.get(role, [1.0])
        result[role] = {"cpu": cpu, "messages": rate, "to_empty": statistics.median(of_role)}
        result[role]["runs"] = found[role]
        print(
            f"{name:30}{cpu:10.1%}{rate:12.0f}{statistics.median(of_role):13.2f}"
            f"  ({min(of_role):.2f} to {max(of_role):.2f})"
        )
    ours, convert, prepare = (result[r]["to_empty"] for r in ("ours", "convert", "prepare"))
    result |= {"to_convert": ours / convert, "to_prepare": ours / prepare}
    print(f"policy node / converts every frame: {result['to_convert']:.2f}")
    print(f"policy node / prepares every frame: {result['to_prepare']:.2f}")
    if max(loads) > (os.cpu_count() or 1):
        print(f"the machine was busy (load up to {max(loads):.1f}): run it again when it is not")
    return result


def lost_frames(qos: tuple[str, int, int], profile: bool, frames: int, log: Path) -> Result:
    """Return frames sent and received per camera under one QoS."""
    reliability, *depths = qos
    sent_as, read_as = (("--reliability", reliability, "--depth", str(d)) for d in depths)
    counted = ("--frames", str(frames), "--warmup", "30")
    with (
        End(log, "numbers", *read_as, profile=profile) as reader,
        End(log, "feed", *sent_as, *counted, profile=profile) as feed,
    ):
        feed.wait("done", feed)
        time.sleep(GRACE)
        sent, received = feed.sample()["counts"], reader.sample()["counts"]
    return {
        "reliability": reliability,
        "depth": depths[1],
        "profile": profile,
        "sent": sent,
        "received": {role: received[role] for role in sent},
    }


def measure_loss(options: argparse.Namespace, log: Path) -> Result:
    print("\nframes lost of those sent")
    roles = [camera.role for camera in load_rig("sim", config_folder("rigs")).cameras]
    print(f"{'':38}" + "".join(f"{role:>17}" for role in roles))
    rows = []
    for qos in QOS:
        for profile in (True, False):
            row = lost_frames(qos, profile, options.frames, log)
            rows.append(row)
            lost = [f"{row['sent'][r] - row['received'][r]} of {row['sent'][r]}" for r in roles]
            name = f"{qos[0]}, keep last {qos[2]}, {'with' if profile else 'no'} profile"
            print(f"{name:38}" + "".join(f"{text:>17}" for text in lost), flush=True)
    return {"rows": rows, "load": os.getloadavg()[0]}


def quick_checkpoint(folder: Path) -> Path:
    """Return the tiny checkpoint with one denoising step; what follows a chunk is the same."""
    copy = folder / "quick"
    shutil.copytree(config_folder("models") / "tiny_random", copy)
    config = load_yaml(copy / "config.yaml") | {"denoising_steps": 1}
    (copy / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return copy


def measure_publish(options: argparse.Namespace, log: Path) -> Result:
    checkpoint = str(quick_checkpoint(log))
    graph = node_processes(engine="cosmos", checkpoint=checkpoint, dry_run=True)
    policy = [node for node in graph if node.executable == "policy_node"]
    phases: list[dict[str, float]] = []
    trajectories: list[str] = []
    rclpy.init()
    with End(log, "feed"), NodeProcesses(policy, log) as processes:
        client = GraphClient("benchmark", processes.check)
        try:
            client.node.create_subscription(
                Decision,
                "policy_node/decision",
                lambda m: phases.append(dict(zip(m.phases, m.phase_seconds, strict=True))),
                options.chunks,
            )
            for output in load_rig("sim", config_folder("rigs")).outputs:
                client.node.create_subscription(
                    JointTrajectory,
                    f"policy_node/preview/{output.name}",
                    lambda m: trajectories.append(m.header.frame_id),
                    options.chunks,
                )
            client.policy_ready(PATIENCE)
            client.arm_when_ready(PATIENCE)
            start = time.monotonic()
            goal = client.start_run(chunk_limit=options.chunks, time_limit=1e6)
            run = client.finish_run(goal, PATIENCE + 4 * options.chunks)
            wall = time.monotonic() - start
            time.sleep(GRACE)
        finally:
            client.close()
    rclpy.shutdown()
    print(f"\ndecisions of the policy node: {run.chunks} chunks in {wall:.0f} s, {run.outcome}")
    if not phases:
        raise SystemExit(f"no decision arrived: {run.message}")
    print(f"{'phase [ms]':30}{'p50':>10}{'p99':>10}{'max':>10}")
    result: Result = {"chunks": run.chunks, "refused": run.refused, "wall": wall}
    for name in phases[0]:
        result[name] = found = quantiles([p[name] for p in phases])
        print(f"{name:30}" + "".join(f"{1e3 * found[k]:10.2f}" for k in ("p50", "p99", "max")))
    print(f"trajectories received: {len(trajectories)} of {2 * run.chunks}")
    return result | {"trajectories": len(trajectories), "load": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=4.0, help="per CPU measurement")
    parser.add_argument("--rounds", type=int, default=3, help="CPU measurements of each reader")
    parser.add_argument("--frames", type=int, default=150, help="per camera and QoS")
    parser.add_argument("--chunks", type=int, default=50)
    parser.add_argument("--domain", type=int, default=os.getpid() % 100 + 1, help="ROS domain")
    parser.add_argument("--json", type=Path, help="also write everything here")
    options = parser.parse_args()
    os.environ["ROS_DOMAIN_ID"] = str(options.domain)
    os.environ |= request_to_keep_to_machine()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ |= environment()
    measure = {"cpu": measure_cpu, "loss": measure_loss, "publish": measure_publish}
    started = time.monotonic()
    result: Result = {"machine": platform.platform(), "cores": os.cpu_count()}
    result["load_before"] = os.getloadavg()
    print(f"{result['cores']} cores, load before {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            result[part] = measure[part](options, Path(folder))
    result["seconds"] = time.monotonic() - started
    print(f"\n{result['seconds']:.0f} s in all, load after {os.getloadavg()[0]:.1f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
