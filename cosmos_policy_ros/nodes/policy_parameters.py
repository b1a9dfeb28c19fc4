"""The policy node's parameters, read once when it is configured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rclpy.node import Node

from cosmos_policy_ros.core.config import did_you_mean, load_config, named_file
from cosmos_policy_ros.core.errors import CheckpointError, ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import Task, load_task
from cosmos_policy_ros.inference.spec import ENGINES, EngineSpec, SearchConfig
from cosmos_policy_ros.inference.worker import WorkerLimits
from cosmos_policy_ros.model.config import CheckpointConfig, Numerics
from cosmos_policy_ros.model.files import CONFIG, STATISTICS, describe_missing, has_weights
from cosmos_policy_ros.model.statistics import compare_with_rig, describe_unused, load_statistics
from cosmos_policy_ros.nodes.shell import Parameter
from cosmos_policy_ros.planning.scheduler import parse_devices
from cosmos_policy_ros.rig.arms import STATE_DIM
from cosmos_policy_ros.rig.execution import Execution, Mode, TransitionMode
from cosmos_policy_ros.rig.run import RunLimits
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

AS_TRAINED = "checkpoint"
SEEDS = 2**32  # of NumPy's generator, which the noise is drawn from
DIRECT = "direct"
TINY_CHECKPOINT = "tiny_random"
RELEASED_CHECKPOINT = "nvidia/Cosmos-Policy-ALOHA-Predict2-2B"

PARAMETERS = (
    Parameter("rig", "sim", "rig description: a name in config/rigs or a YAML file"),
    Parameter("task", "transfer_cube", "task: a name in config/tasks or a YAML file"),
    Parameter(
        "engine",
        "auto",
        "what decides: cosmos, demonstrator, or auto (cosmos on a real rig, demonstrator on a "
        "simulated one)",
    ),
    Parameter(
        "checkpoint",
        "",
        "checkpoint folder of engine cosmos; empty: the tiny one for a simulated rig, the released "
        "one for a real rig",
    ),
    Parameter(
        "devices",
        "auto",
        "engine cosmos: torch devices like cuda:0,cuda:1 or cpu,cpu. A search runs on all of them, "
        "auto being every GPU; without one the first is used, auto being a GPU where there is one",
    ),
    Parameter(
        "planning",
        DIRECT,
        "engine cosmos: direct, or how to search for the best of several chunks: a name in "
        "config/planning or a YAML file",
    ),
    Parameter(
        "world_model",
        "",
        "checkpoint folder that imagines and appraises in a search; empty: the policy's own",
    ),
    Parameter(
        "deadline",
        0.0,
        "wall s that a search may take, the arms holding; 0: as the task says",
        0.0,
        3600.0,
    ),
    Parameter(
        "ray",
        "",
        "search on a Ray cluster: its address, auto, or local to start one; empty: processes here",
    ),
    Parameter("compiled", False, "engine cosmos: compile the transformer; minutes at start"),
    Parameter(
        "numerics",
        AS_TRAINED,
        "engine cosmos: where NVIDIA's code and the paper differ, follow released or paper; "
        "checkpoint: as its config says",
    ),
    Parameter("denoising_steps", 0, "engine cosmos: steps; 0: as the checkpoint says", 0, 1000),
    Parameter("threads", 1, "torch threads on a CPU; more than one delays the node", 1, 256),
    Parameter(
        "futures",
        True,
        "engine cosmos: show what is imagined on ~/future/<camera>; decoding it takes an inference "
        "process a while, during which the arms move",
    ),
    Parameter("seed", 195, "base noise seed when the goal gives none", 0, SEEDS - 1),
    Parameter("observation_timeout", 10.0, "wall s to wait for a usable observation", 0.1, 600.0),
    Parameter("brake_seconds", 0.4, "s to bring a moving arm to rest on a stop", 0.04, 2.0),
    Parameter("start_timeout", 600.0, "wall s for the model to load", 1.0, 7200.0),
    Parameter("query_timeout", 60.0, "wall s for one task of a model, then it hangs", 0.1, 3600.0),
    Parameter("dry_run", False, "send trajectories to ~/preview/<output> and nothing to the arms"),
    Parameter(
        "execution",
        "synchronous",
        "synchronous: the next chunk is asked for when the arms rest, as in the paper; "
        "asynchronous: while "
        "they move, whenever the answer can come in time; auto: while they move if no pause is "
        "left then, by the latencies measured, else as blocking",
    ),
    Parameter(
        "transition",
        "condition",
        "of chunks asked for in motion: condition has the policy begin with what the arms are "
        "committed to; blend only goes over from the old path to the new one",
    ),
    Parameter("blend_seconds", 0.2, "s of going over from the old path to the new one", 0.0, 1.0),
    Parameter("start_speed", 0.5, "rad/s of the fastest joint on ~/go_to_start", 0.05, 1.0),
    Parameter("self_check", True, "arm only when all of ~/self_check passes"),
    Parameter(
        "watchdog",
        "arm_interface_node",
        "node that holds the arms should this one fall silent; none where no time passes",
    ),
    Parameter("restarts", 3, "times a dead inference process is started again", 0, 100),
)


@dataclass(frozen=True)
class PolicySettings:
    """Everything the node needs, validated."""

    rig: RigSpec
    task: Task
    engine: EngineSpec
    devices: tuple[str, ...]
    ray: str
    worker: WorkerLimits
    run: RunLimits
    seed: int
    deadline: float
    futures: bool
    watchdog: str
    self_check: bool
    dry_run: bool
    start_speed: float
    execution: Execution


def read_settings(node: Node) -> PolicySettings:
    """Turn the node's parameters into settings.

    Raises:
        ConfigError: an unknown rig, task, engine or numerics.
        CheckpointError: the checkpoint is not there; names what is needed.
    """

    def value(name: str):  # type: ignore[no-untyped-def]
        return node.get_parameter(name).value

    rig = load_rig(value("rig"), config_folder("rigs"))
    engine, search = value("engine"), read_search(value("planning"))
    if engine == "auto":
        engine = "cosmos" if rig.kind == "real" or search is not None else "demonstrator"
    _one_of("engine", engine, (*ENGINES, "auto"))
    numerics = value("numerics")
    _one_of("numerics", numerics, (*get_args(Numerics), AS_TRAINED))
    if engine == "demonstrator" and rig.kind != "sim":
        raise ConfigError(
            f"engine demonstrator knows only the simulated rig, this is '{rig.name}'; "
            "use engine:=cosmos with a checkpoint"
        )
    if engine != "cosmos" and search is not None:
        raise ConfigError(f"planning {value('planning')} needs engine cosmos, not {engine}")
    devices, world_model = parse_devices(value("devices")), value("world_model") if search else ""
    return PolicySettings(
        rig=rig,
        task=load_task(value("task"), config_folder("tasks")),
        engine=EngineSpec(
            engine=engine,
            checkpoint=str(_checkpoint(value("checkpoint"), rig)) if engine == "cosmos" else "",
            device=devices[0],
            threads=value("threads"),
            compiled=value("compiled"),
            numerics=None if numerics == AS_TRAINED else numerics,
            denoising_steps=value("denoising_steps") or None,
            search=search,
            world_model=str(_checkpoint(world_model, rig)) if world_model else "",
            gripper=rig.arms.left.gripper,
        ),
        devices=devices,
        ray=value("ray"),
        worker=WorkerLimits(value("start_timeout"), value("query_timeout"), value("restarts")),
        run=RunLimits(value("observation_timeout"), value("brake_seconds")),
        seed=value("seed"),
        deadline=value("deadline"),
        futures=value("futures"),
        watchdog=value("watchdog"),
        self_check=value("self_check"),
        dry_run=value("dry_run"),
        start_speed=value("start_speed"),
        execution=Execution(
            mode=_one_of("execution", value("execution"), get_args(Mode)),
            transition=_one_of("transition", value("transition"), get_args(TransitionMode)),
            blend_rows=round(value("blend_seconds") / rig.rates.dt),
            searches=search is not None,
        ),
    )


def _one_of(name: str, found: str, choices: Sequence[str]) -> Any:
    """Return a choice, or raise ConfigError with the nearest one."""
    if found not in choices:
        raise ConfigError(f"{name} '{found}' is not one{did_you_mean(found, choices)}")
    return found


def read_search(name: str) -> SearchConfig | None:
    """Return the search called ``name``, None for direct.

    Raises:
        ConfigError: no such search (with the nearest name), a wrong key or value.
    """
    if name == DIRECT:
        return None
    return load_config(SearchConfig, named_file(name, config_folder("planning")))


def warnings(settings: PolicySettings) -> tuple[str, ...]:
    """Return what the operator should know: idle devices, a checkpoint that does not fit the rig.

    Raises:
        CheckpointError: its statistics cannot be read.
    """
    if settings.engine.engine != "cosmos":
        return ()
    idle = settings.devices[1:] if settings.engine.search is None else ()
    found = [f"planning is direct: {', '.join(idle)} stay idle"] if idle else []
    if settings.ray:
        found.append("Ray's processes listen on this machine's network, not on loopback only")
    statistics = load_statistics(
        Path(settings.engine.checkpoint) / STATISTICS, STATE_DIM, STATE_DIM
    )
    if unused := describe_unused(statistics):
        found.append(unused)
    return (*found, *compare_with_rig(statistics, settings.rig))


def trained_on(settings: PolicySettings) -> tuple[int, ...]:
    """Return rows and columns of the images that the checkpoint was trained on; empty if none.

    Raises:
        ConfigError: its config cannot be read.
    """
    folder = Path(settings.engine.checkpoint)
    if settings.engine.engine != "cosmos" or not has_weights(folder):
        return ()
    return load_config(CheckpointConfig, folder / CONFIG).trained_on


def _checkpoint(given: str, rig: RigSpec) -> Path:
    """Return the checkpoint's folder: as given, by name in config/models, or the rig's default."""
    name = given or (TINY_CHECKPOINT if rig.kind == "sim" else RELEASED_CHECKPOINT)
    shipped = config_folder("models") / name
    path = shipped if shipped.is_dir() else Path(name).expanduser()
    if missing := describe_missing(path):
        hint = "" if given else f"rig '{rig.name}' needs a checkpoint, give checkpoint:=FOLDER; "
        raise CheckpointError(hint + missing)
    return path
