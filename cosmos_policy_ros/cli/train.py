"""``cosmos train`` and ``cosmos train-autoencoder``: checkpoints from episodes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cosmos_policy_ros.cli.shared import add_config
from cosmos_policy_ros.core.config import load_changed, load_yaml, named_file, to_plain
from cosmos_policy_ros.core.errors import TrainingError
from cosmos_policy_ros.core.files import replace_text
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.training.config import TrainingConfig

# In the log folder: what the run was started with, every default spelled out.
CONFIG = "config.yaml"
PROGRAM = "cosmos_policy_ros.cli.cosmos"
# What may differ when a run is gone on with: none of it changes a step that was done.
FREE = {
    *(f"run.{key}" for key in ("steps", "save_every", "keep", "validation_windows", "device")),
    *(f"run.{key}" for key in ("threads", "micro_batch", "shard_size", "activation_checkpointing")),
    *(f"data.{key}" for key in ("workers", "prepared_gb", "cache_gb", "latent_cache_gb")),
}


def add_train(parser: argparse.ArgumentParser) -> None:
    """Fine-tune a Cosmos Policy checkpoint on recorded episodes."""
    add_config(parser, "training")
    parser.add_argument("--output", type=Path, help="the checkpoint folder to make")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    parser.add_argument("--processes", type=int, default=1, help="on this machine, one per GPU (1)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print data, memory and time, and end"
    )
    parser.add_argument(
        "--prepare-only",
        action="store_true",
        help="prepare images (data.prepared_gb) on this machine, and end; for runs under torchrun, "
        "which prepare none themselves",
    )

    def run(options: argparse.Namespace) -> int:
        if options.dry_run:
            from cosmos_policy_ros.training.estimate import describe_run

            config = read_config(options.config, options.set)
            print("\n".join(describe_run(config, options.processes)))
        elif options.prepare_only:
            _prepare(read_config(options.config, options.set))
        elif options.output is None:
            parser.error("--output is needed: the checkpoint folder to make")
        elif "RANK" in os.environ:  # one of several, started by launch_processes or torchrun
            _train(read_config(options.config, options.set), options.output, options.resume)
        else:
            config = read_config(options.config, options.set)
            if config.data.prepared_gb:
                _prepare(config)
            if options.processes > 1:
                from cosmos_policy_ros.training.parallel import launch_processes

                return launch_processes(options.processes, PROGRAM, options.arguments)
            _train(config, options.output, options.resume)
        return 0

    parser.set_defaults(run=run)


def read_config(name: str, changes: Sequence[str] = ()) -> TrainingConfig:
    """Read a config and change single keys, such as ``run.steps=100``.

    Raises:
        ConfigError: no such file or key, or a value that is none.
    """
    return load_changed(TrainingConfig, named_file(name, config_folder("training")), changes)


def _prepare(config: TrainingConfig) -> None:
    from cosmos_policy_ros.training.prepared_images import prepare_run

    print(prepare_run(config), flush=True)


def _train(config: TrainingConfig, output: Path, resume: bool) -> None:
    from cosmos_policy_ros.training.parallel import joined
    from cosmos_policy_ros.training.trainer import LOG, Trainer

    output = output.expanduser()
    with joined(config.run.device) as world:
        world.broadcast_from_rank0(lambda: _open(config, output, output / LOG / CONFIG, resume))
        Trainer(config, output, world).run()


def _open(config: TrainingConfig, output: Path, remembered: Path, resume: bool) -> None:
    """Make the output folder, or make sure that the one there is the same run's."""
    now = to_plain(config)
    if remembered.is_file():
        if not resume:
            raise TrainingError(f"{output}: holds a run; --resume goes on with it")
        before = _flat(load_yaml(remembered))
        changed = [
            f"{key} was {before.get(key)!r}, is {value!r}"
            for key, value in _flat(now).items()
            if before.get(key) != value and key not in FREE
        ]
        if changed:
            raise TrainingError(
                f"{output}: the run in there was another one: {'; '.join(changed)}; give the same "
                f"config, or another --output"
            )
    elif output.is_dir() and any(output.iterdir()):
        raise TrainingError(f"{output}: exists and is no run of this program; give a new folder")
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        replace_text(remembered, yaml.safe_dump(now, sort_keys=False))
    except OSError as error:
        raise TrainingError(f"{output}: cannot be made: {error}") from error


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        inner = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def add_train_autoencoder(parser: argparse.ArgumentParser) -> None:
    """Train a small video autoencoder on the images of recorded episodes."""
    add_config(parser, "autoencoder")
    parser.add_argument(
        "--output", type=Path, required=True, help="the checkpoint folder to make, to train from"
    )
    parser.set_defaults(run=_train_autoencoder)


def _train_autoencoder(options: argparse.Namespace) -> int:
    from cosmos_policy_ros.model import files
    from cosmos_policy_ros.training.autoencoder import AutoencoderConfig, train_autoencoder

    file = named_file(options.config, config_folder("autoencoder"))
    config = load_changed(AutoencoderConfig, file, options.set)
    output = options.output.expanduser()
    if (output / files.VAE).exists():
        raise TrainingError(f"{output}: holds an autoencoder; give another folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        errors = train_autoencoder(config, output)
    except OSError as error:
        raise TrainingError(f"{output}: cannot be written: {error}") from error
    print(
        f"{output}: L1 {errors.l1:.4f} on held-out images ({errors.moving:.4f} where they move); "
        f"the cameras' mean images have {errors.mean_image:.4f} ({errors.mean_image_moving:.4f})"
    )
    return 0
