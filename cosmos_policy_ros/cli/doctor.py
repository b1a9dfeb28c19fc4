"""``cosmos doctor``: what this machine lacks, in one table with what to do.

Compiled modules are loaded in processes of their own: one that was built for another NumPy may end
the process that loads it, and says so on standard error at most.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from cosmos_policy_ros.cli.shared import add_root
from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

State = Literal["ok", "look", "bad"]
LEAST_PYTHON, LEAST_TORCH = (3, 10), (2, 6)
COMPILED = ("rclpy", "cv_bridge", "cv2", "simplejpeg", "h5py", "mujoco")
OPTIONAL = ("rclpy", "cv_bridge", "mujoco")  # each command says when it needs one of them
OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-python-headless")
SHARED_MEMORY = Path("/dev") / "shm"
SEGMENT = 32 << 20  # bytes of shared memory per process, as config/fastdds.xml says
PROCESSES = 8  # a graph, its camera drivers and a viewer
CLOCK_OFF = 0.05  # s; ``observation.stamp_ahead`` of the rig files
IMAGE = (480, 640)  # px, where the rig file does not say
JPEG_SHARE = 1 / 8  # of an image's bytes, where it is of a room
LEAST_MINUTES = 30.0  # of recording
PATIENCE = 60.0  # s for another process, which may load gigabytes from a slow disk
DISCOVERY = 2.0  # s
GPU = """
import json, torch
found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda,
    "hip": torch.version.hip, "gpus": [[g.name, g.total_memory] for g in found]}))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        name: of what was looked at.
        state: ok, look (a command may fail) or bad (the graph cannot run).
        found: what there is.
        advice: what to do; empty where nothing is to be done.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Look over this machine: Python, compiled modules, GPU, middleware, clock, disk and cameras.

    The exit code is 1 where the graph cannot run. The table belongs into every bug report.
    """
    add_root(parser)
    parser.add_argument("--rig", default="sim", help="a rig file's name or path (sim)")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    rig = load_rig(options.rig, config_folder("rigs"))
    worst: set[str] = set()
    for finding in findings(rig, options.root.expanduser()):
        print(f"{finding.state:<5}{finding.name:<14}{finding.found}", flush=True)
        if finding.advice:
            print(f"{'':<19}-> {finding.advice}", flush=True)
        worst.add(finding.state)
    return int("bad" in worst)


def findings(rig: RigSpec, root: Path) -> Iterator[Finding]:
    """Yield what was found, one after another: some take seconds."""
    yield python(sys.version_info[:2], Path(sys.executable))
    for name in COMPILED:
        yield compiled(name)
    yield opencv({name: version for name in OPENCV if (version := installed(name))})
    yield gpu(_ask(GPU), bool(shutil.which("nvidia-smi")))
    yield middleware(os.environ)
    usage = shutil.disk_usage(SHARED_MEMORY)
    yield shared_memory(usage.total, usage.free)
    yield clock(_run)
    yield disk(rig, root)
    yield from cameras(rig)


def python(version: tuple[int, ...], executable: Path) -> Finding:
    """Look at the interpreter."""
    found = f"{'.'.join(map(str, version))} at {executable}"
    if version < LEAST_PYTHON:
        return Finding("Python", "bad", found, "3.10 or newer is needed: PYTHON=… scripts/setup")
    return Finding("Python", "ok", found)


def compiled(name: str, executable: str = sys.executable) -> Finding:
    """Load a compiled module beside the NumPy that there is."""
    program = f"import numpy, {name} as x; print(getattr(x, '__version__', ''), numpy.__version__)"
    if name == "cv_bridge":  # its extension is loaded when the first image is converted
        program = (
            "import numpy; from cv_bridge.boost.cv_bridge_boost import getCvType; "
            "print('', numpy.__version__)"
        )
    done = _run([executable, "-c", program])
    if done.returncode == 0:
        version, _, numpy = done.stdout.rpartition(" ")
        return Finding(name, "ok", f"{version} with NumPy {numpy}".strip())
    lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
    absent = f"No module named '{name}'" in lines[-1]
    if absent and name in OPTIONAL:
        return Finding(name, "look", "not installed", _absent(name))
    if "_ARRAY_API" in done.stderr or "compiled using NumPy 1" in done.stderr:
        advice = "it was built with NumPy 1: source ROS and run scripts/setup, which takes NumPy 1"
        return Finding(name, "bad", "cannot be loaded beside this NumPy", advice)
    return Finding(name, "bad", lines[-1][:150], "run scripts/setup")


def _absent(name: str) -> str:
    return {
        "rclpy": "for the nodes: source ROS and run scripts/setup, or . scripts/env.sh",
        "cv_bridge": "only for rare image encodings: install ros-<distro>-cv-bridge",
        "mujoco": "only for the simulated rig: scripts/setup brings it",
    }[name]


def opencv(found: Mapping[str, str]) -> Finding:
    """Look for several copies of OpenCV, which overwrite each other's files."""
    told = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(found) > 1:
        surplus = [name for name in found if name != OPENCV[-1]]
        return Finding(
            "OpenCV",
            "bad",
            f"{told} in one place",
            f"pip uninstall {' '.join(surplus)}, then "
            f"pip install --force-reinstall --no-deps {OPENCV[-1]}",
        )
    return Finding("OpenCV", "ok", told or "the distro's")


def installed(name: str) -> str:
    """Return a distribution's version, "" where it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def gpu(asked: subprocess.CompletedProcess[str], driver: bool) -> Finding:
    """Look at torch and the GPUs that it sees.

    Args:
        asked: what the program GPU answered.
        driver: an NVIDIA driver is installed.
    """
    if asked.returncode != 0:
        said = (asked.stderr.strip().splitlines() or [f"ended with {asked.returncode}"])[-1]
        return Finding("torch", "bad", said[:150], "run scripts/setup")
    told: dict[str, Any] = json.loads(asked.stdout)
    version = str(told["version"])
    built = f"CUDA {told['cuda']}" if told["cuda"] else f"ROCm {told['hip']}" if told["hip"] else ""
    gpus = ", ".join(f"{name} ({memory / 2**30:.0f} GiB)" for name, memory in told["gpus"])
    found = f"{version}, {f'for {built}' if built else 'for the CPU'}, {gpus or 'no GPU'}"
    if tuple(map(int, version.split(".")[:2])) < LEAST_TORCH:
        return Finding("torch", "bad", found, "2.6 or newer is needed: run scripts/setup")
    if driver and not told["cuda"]:
        return Finding(
            "torch",
            "look",
            found,
            "there is an NVIDIA driver: put a CUDA build of torch into "
            ".venv with pip; scripts/setup keeps it",
        )
    if built and not gpus:
        return Finding("torch", "look", found, "a GPU needs its driver; the CPU is used")
    return Finding("torch", "ok", found)


def middleware(variables: Mapping[str, str]) -> Finding:
    """Look at the ROS distro, the middleware and who may talk to the graph."""
    try:
        from cosmos_policy_ros.nodes.graph import environment, exposure
    except ModuleNotFoundError:  # a plain `pip install` leaves them out
        advice = "only for running a graph: scripts/setup in a clone"
        return Finding("middleware", "look", "this installation has no nodes", advice)
    chosen = variables.get("RMW_IMPLEMENTATION") or "rmw_fastrtps_cpp"
    distro = variables.get("ROS_DISTRO") or "from wheels"
    reach = exposure({**variables, **environment(variables=variables)})
    found = f"ROS {distro}, {chosen}; {reach}"
    if not chosen.startswith("rmw_fastrtps"):
        advice = "only Fast DDS is tested here, and has the profile for large images"
        return Finding("middleware", "look", found, advice)
    return Finding("middleware", "ok", found)


def shared_memory(total: int, free: int) -> Finding:
    """Look at the space for images between processes, in bytes."""
    found = f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB free in /dev/shm"
    if free < SEGMENT:
        return Finding(
            "shared memory",
            "bad",
            found,
            "each process needs 32 MiB: `fastdds shm clean` removes "
            "what dead ones left; a container needs --ipc=host or --shm-size=1g",
        )
    if free < SEGMENT * PROCESSES:
        return Finding(
            "shared memory",
            "look",
            found,
            f"{PROCESSES} processes need "
            f"{SEGMENT * PROCESSES >> 20} MiB; a container needs --ipc=host or --shm-size=1g",
        )
    return Finding("shared memory", "ok", found)


def clock(run: Callable[[Sequence[str]], subprocess.CompletedProcess[str]]) -> Finding:
    """Ask who keeps the clock, and how far off it is.

    Args:
        run: runs a command.
    """
    tracking = run(["chronyc", "-n", "-c", "tracking"])
    fields = tracking.stdout.strip().split(",")
    if tracking.returncode == 0 and len(fields) > 13:
        # Fields 5 and 14 of its report: seconds off, and "Normal" or "Not synchronised".
        off = abs(float(fields[4]))
        found = f"chrony, {off * 1e3:.3f} ms off {fields[1]}"
        if fields[13] != "Normal":
            return Finding(
                "clock", "look", f"chrony: {fields[13].lower()}", "see `chronyc sources`"
            )
        if off > CLOCK_OFF:
            advice = f"above {CLOCK_OFF * 1e3:.0f} ms cameras of other machines are refused: wait"
            return Finding("clock", "look", found, advice)
        return Finding("clock", "ok", found)
    kept = run(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if kept.returncode == 0 and kept.stdout.strip() == "yes":
        return Finding(
            "clock",
            "ok",
            "synchronised by NTP",
            "with cameras or arms on other machines install "
            "chrony on all: it slews where others step",
        )
    return Finding(
        "clock",
        "look",
        "not synchronised",
        "with cameras or arms on other machines install chrony "
        "on all; stamps more than 50 ms ahead are refused",
    )


def disk(rig: RigSpec, root: Path) -> Finding:
    """Say how long the disk of the episodes lasts."""
    place = root.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    rate = 0.0
    for camera in rig.cameras:
        height, width = camera.size[:2] or IMAGE
        raw = camera.transport == "raw" and rig.recording.images == "raw"
        share = 1.0 if raw else JPEG_SHARE
        rate += height * width * 3 * share * rig.rates.cameras
    minutes = free / rate / 60
    found = f"{free / 1e9:.0f} GB free in {place}, {minutes:.0f} minutes of rig {rig.name}"
    if not os.access(place, os.W_OK):
        return Finding("disk", "bad", f"{place} may not be written to", "give another --root")
    if minutes < LEAST_MINUTES:
        return Finding("disk", "look", found, "remove episodes with `cosmos episodes purge`")
    return Finding("disk", "ok", found)


def cameras(rig: RigSpec) -> Iterator[Finding]:
    """Look for the rig's cameras among the topics that there are."""
    try:
        import rclpy
    except ImportError:
        return
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("doctor", context=context)
    try:
        time.sleep(DISCOVERY)
        topics = dict(node.get_topic_names_and_types())
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)
    topics.pop("/parameter_events", None)
    topics.pop("/rosout", None)
    if not topics:
        yield Finding(
            "cameras",
            "look",
            "no topic of any node is seen",
            "nothing runs, or in another domain "
            "or range: the line 'middleware' says which this shell takes part in",
        )
        return
    for camera in rig.cameras:
        yield camera_topic(camera.role, camera.topic, camera.transport, topics)


def camera_topic(
    role: str, topic: str, transport: str, topics: Mapping[str, Sequence[str]]
) -> Finding:
    """Hold a camera of the rig file against the topics that there are and their types."""
    name = "/" + topic.lstrip("/")
    kind = {"raw": "sensor_msgs/msg/Image", "compressed": "sensor_msgs/msg/CompressedImage"}
    if name not in topics:
        like = did_you_mean(name, topics)
        return Finding(
            role,
            "look",
            f"{name}: has no publisher and no subscriber{like}",
            "start the camera driver, or mend the topic in the rig file",
        )
    types = list(topics[name])
    if types != [kind[transport]]:
        return Finding(
            role,
            "bad",
            f"{name} is {', '.join(types)}",
            f"transport {transport} of the rig file wants {kind[transport]}",
        )
    return Finding(role, "ok", f"{name}, {types[0]}")


def _ask(program: str) -> subprocess.CompletedProcess[str]:
    return _run([sys.executable, "-c", program])


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command; one that is absent or hangs has failed."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
