"""The graph as data: which nodes, with which parameters. The launch file and the demo both read it.

Imports no ROS, so that a launch file on any distro and a plain script can use it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cosmos_policy_ros.rig.share import config_folder, share_folder
from cosmos_policy_ros.rig.spec import load_rig

Value = bool | int | float | str
# Fast DDS profiles in config/. Who holds the arms when another process is killed must not share
# memory with it: fastdds_udp.xml says why.
LARGE_IMAGES, NO_SHARED_MEMORY = "fastdds.xml", "fastdds_udp.xml"
NO_SHARED_MEMORY_LOCALHOST = "fastdds_udp_localhost.xml"


@dataclass(frozen=True)
class NodeProcess:
    """One node: its executable (and name), its parameter file, and what overrides the file.

    Its Fast DDS profile is one of config/.
    """

    executable: str
    parameter_file: Path
    parameters: dict[str, Value]
    profile: str = LARGE_IMAGES


@dataclass(frozen=True)
class GraphOptions:
    """What one may choose when starting the graph; the launch file's arguments.

    Attributes:
        rig: name in config/rigs, or a YAML file.
        task: name in config/tasks, or a YAML file.
        engine: cosmos, demonstrator, or auto.
        checkpoint: folder of engine cosmos; empty for the rig's default.
        devices: torch devices of engine cosmos, "auto" for GPUs; a search runs on all of them.
        planning: direct, or a search: a name in config/planning or a YAML file.
        planner: checkpoint that imagines and appraises in a search; empty for the policy's own.
        deadline: wall seconds that a search may take; 0 as the task says.
        ray: address of a Ray cluster to search on; empty for processes here.
        compiled: compile its transformer.
        numerics: released, paper, or checkpoint: as its config says.
        denoising_steps: 0 as the checkpoint says.
        execution: blocking, overlap (ask while the arms move) or auto.
        boundary: of chunks asked for in motion: condition or blend.
        seed: base noise seed of the policy.
        dry_run: everything but the arms: trajectories go to ~/preview, and nothing is recorded.
        root: folder of the episodes.
        record: start the recorder.
        images: raw, or jpeg for a tenth of the disk.
        compression: of the bags' chunks, none or zstd.
        scene_seed: places the simulated objects.
        stepped: simulated rig without a wall clock, for tests.
        width, height: simulated pictures [px]; 0 for the parameter file's.
    """

    rig: str = "sim"
    task: str = "transfer_cube"
    engine: str = "auto"
    checkpoint: str = ""
    devices: str = "auto"
    planning: str = "direct"
    planner: str = ""
    deadline: float = 0.0
    ray: str = ""
    compiled: bool = False
    numerics: str = "checkpoint"
    denoising_steps: int = 0
    execution: str = "blocking"
    boundary: str = "condition"
    seed: int = 195
    dry_run: bool = False
    root: str = "rollouts"
    record: bool = True
    images: str = "raw"
    compression: str = "none"
    scene_seed: int = 0
    stepped: bool = False
    width: int = 0
    height: int = 0


def node_processes(options: GraphOptions) -> tuple[NodeProcess, ...]:
    """Return the nodes to start, the rig first.

    Raises:
        ConfigError: the rig does not exist or its file is wrong.
    """
    rig = load_rig(options.rig, config_folder("rigs"))
    shared: dict[str, Value] = {"rig": options.rig, "use_sim_time": options.stepped}
    policy: dict[str, Value] = {
        "task": options.task,
        "engine": options.engine,
        "checkpoint": options.checkpoint,
        "devices": options.devices,
        "planning": options.planning,
        "planner": options.planner,
        "deadline": options.deadline,
        "ray": options.ray,
        "compiled": options.compiled,
        "numerics": options.numerics,
        "denoising_steps": options.denoising_steps,
        "execution": options.execution,
        "boundary": options.boundary,
        "seed": options.seed,
        "dry_run": options.dry_run,
        "self_check": not options.stepped,  # nothing is fresh while no time passes
        "keeper": "none" if options.stepped else "auto",
    }
    nodes = [_process("policy_node", {**shared, **policy})]
    if options.record and not options.dry_run:  # what moves nothing is no rollout
        recorder: dict[str, Value] = {
            "root": options.root,
            "images": options.images,
            "compression": options.compression,
        }
        nodes.append(_process("recorder_node", {**shared, **recorder}))
    if not options.dry_run and not options.stepped:
        keeper = "arm_streamer_node" if rig.sink == "interbotix" else "arm_guard_node"
        nodes.insert(0, _process(keeper, {"rig": options.rig}, NO_SHARED_MEMORY))
    if rig.kind == "sim":
        scene: dict[str, Value] = {
            "rig": options.rig,
            "task": options.task,
            "seed": options.scene_seed,
            "stepped": options.stepped,
        }
        size = {"width": options.width, "height": options.height}
        scene |= {name: pixels for name, pixels in size.items() if pixels}
        nodes.insert(0, _process("sim_rig_node", scene))
    return tuple(nodes)


def environment(profile: str = LARGE_IMAGES) -> dict[str, str]:
    """Return the environment a node needs: its Fast DDS profile, unless a foreign one is set.

    Where the graph is to keep to this machine, rmw would give every node shared memory: one that
    must have none is told so by a profile that keeps to this machine, and not by rmw's variables.
    """
    # Fast DDS 2 (Humble, Jazzy) ignores the new name; Fast DDS 3 warns about the old one.
    old = os.environ.get("ROS_DISTRO") in ("humble", "jazzy")
    name = "FASTRTPS_DEFAULT_PROFILES_FILE" if old else "FASTDDS_DEFAULT_PROFILES_FILE"
    ours, given = share_folder() / "config", os.environ.get(name, "")
    if given and Path(given).resolve().parent != ours.resolve():
        return {name: given}
    local = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_LOCALHOST_ONLY": "1"}
    if profile == NO_SHARED_MEMORY and local.items() & os.environ.items():
        rmw_does_nothing = dict(zip(local, ("SYSTEM_DEFAULT", "0"), strict=True))
        return {name: str(ours / NO_SHARED_MEMORY_LOCALHOST), **rmw_does_nothing}
    return {name: str(ours / profile)}


def _process(
    executable: str, parameters: dict[str, Value], profile: str = LARGE_IMAGES
) -> NodeProcess:
    file = config_folder("params") / f"{executable}.yaml"
    return NodeProcess(executable, file, parameters, profile)
