"""The policy node's parameters, read once when it is configured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.node import Node

from cosmos_policy_ros.core.config import load_config, named_file
from cosmos_policy_ros.core.errors import CheckpointError, ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import Task, load_task
from cosmos_policy_ros.inference.remote_config import exposure, load_remote
from cosmos_policy_ros.inference.spec import EngineSpec, SearchConfig
from cosmos_policy_ros.inference.worker import WorkerLimits
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.files import CONFIG, STATISTICS, describe_missing, has_weights
from cosmos_policy_ros.model.statistics import compare_with_rig, describe_unused, load_statistics
from cosmos_policy_ros.nodes.options import DEFAULT, NONE, POLICY
from cosmos_policy_ros.nodes.shell import value_of
from cosmos_policy_ros.planning.scheduler import parse_devices
from cosmos_policy_ros.rig.arms import STATE_DIM
from cosmos_policy_ros.rig.execution import Execution
from cosmos_policy_ros.rig.run import RunLimits
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

MAY_BE_NONE = {o.name for o in POLICY if o.default in (DEFAULT, NONE)} | {"watchdog"}
REMOTE_SLACK = 10.0  # s beyond a remote's own deadlines after which its process counts as hung
TINY_CHECKPOINT = "tiny_random"
RELEASED_CHECKPOINT = "nvidia/Cosmos-Policy-ALOHA-Predict2-2B"


@dataclass(frozen=True)
class PolicySettings:
    """Everything the node needs, validated; ``rig`` executes chunks as the engine makes them."""

    rig: RigSpec
    task: Task
    engine: EngineSpec
    devices: tuple[str, ...]
    ray: str | None
    worker: WorkerLimits
    run: RunLimits
    seed: int
    deadline: float | None
    futures: bool
    watchdog: str | None
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
    options = {option.name: option for option in POLICY}

    def value(name: str) -> Any:
        """Return a parameter's value, None where something else decides or it is done without."""
        found = value_of(node, name)
        if found is not None:
            options[name].check(found)
        return None if name in MAY_BE_NONE and found in (DEFAULT, NONE) else found

    rig = load_rig(value("rig"), config_folder("rigs"))
    if images := value("images"):
        rig = rig.with_images(images)
    planning, numerics = value("planning"), value("numerics")
    search = None
    if planning is not None:
        search = load_config(SearchConfig, named_file(planning, config_folder("planning")))
    remote = None
    if (url := value("remote")) is not None:
        remote = load_remote(url, value("remote_config"))
        rig = remote.executing(rig)
    engine: Any = value("engine")
    if engine is None and remote is not None:
        engine = "remote"
    if (engine == "remote") != (remote is not None):
        raise ConfigError(
            "engine remote needs the URL of a policy server: give remote:=openpi://127.0.0.1:8000"
            if remote is None
            else f"remote {remote.url} needs engine remote, not {engine}"
        )
    real = rig.kind == "real"
    engine = engine or ("cosmos" if real or search is not None else "demonstrator")
    if engine == "demonstrator" and rig.kind != "sim":
        raise ConfigError(
            f"engine demonstrator knows only the simulated rig, this is '{rig.name}'; "
            "use engine:=cosmos with a checkpoint"
        )
    if engine != "cosmos" and search is not None:
        raise ConfigError(f"planning {planning} needs engine cosmos, not {engine}")
    devices, world_model = parse_devices(value("devices")), value("world_model") if search else None
    return PolicySettings(
        rig=rig,
        task=load_task(value("task"), config_folder("tasks")),
        engine=EngineSpec(
            engine=engine,
            checkpoint=str(_checkpoint(value("checkpoint"), rig)) if engine == "cosmos" else "",
            device=devices[0],
            threads=value("threads"),
            niceness=value("niceness"),
            compiled=value("compiled"),
            fp8_weights=value("fp8_weights"),
            numerics=numerics,
            denoising_steps=value("denoising_steps"),
            search=search,
            world_model=str(_checkpoint(world_model, rig)) if world_model else None,
            gripper=rig.arms.left.gripper,
            remote=remote,
        ),
        devices=devices,
        ray=value("ray"),
        worker=WorkerLimits(
            value("start_timeout"),
            value("query_timeout") if remote is None else remote.longest + REMOTE_SLACK,
            value("restarts"),
        ),
        run=RunLimits(value("observation_timeout"), value("brake_seconds")),
        seed=value("seed"),
        deadline=value("deadline"),
        futures=value("futures"),
        watchdog=value("watchdog"),
        self_check=value("self_check"),
        dry_run=value("dry_run"),
        start_speed=value("start_speed"),
        execution=Execution(
            mode=value("execution"),
            transition=value("transition"),
            blend_rows=round(value("blend_seconds") / rig.rates.dt),
            searches=search is not None,
        ),
    )


def warnings(settings: PolicySettings) -> tuple[str, ...]:
    """Return what the operator should know: idle devices, a checkpoint that does not fit the rig.

    Raises:
        CheckpointError: its statistics cannot be read.
    """
    if (remote := settings.engine.remote) is not None:
        unknown = f"which checkpoint {remote.url} has is unknown, as told by the server"
        return tuple(filter(None, (unknown, exposure(remote))))
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


def _checkpoint(given: str | None, rig: RigSpec) -> Path:
    """Return the checkpoint's folder: as given, by name in config/models, or the rig's default."""
    name = given or (TINY_CHECKPOINT if rig.kind == "sim" else RELEASED_CHECKPOINT)
    shipped = config_folder("models") / name
    path = shipped if shipped.is_dir() else Path(name).expanduser()
    if missing := describe_missing(path):
        hint = "" if given else f"rig '{rig.name}' needs a checkpoint, give checkpoint:=FOLDER; "
        raise CheckpointError(hint + missing)
    return path
