"""``cosmos train-autoencoder``: a small video autoencoder for images of one's own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cosmos_policy_ros.cli.shared import parse
from cosmos_policy_ros.core.config import load_changed, named_file
from cosmos_policy_ros.core.errors import CosmosPolicyError, TrainingError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.model import files
from cosmos_policy_ros.training.autoencoder import AutoencoderConfig, train_autoencoder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos train-autoencoder``; returns the exit code."""
    options = _parse(arguments)
    try:
        file = named_file(options.config, config_folder("autoencoder"))
        config = load_changed(AutoencoderConfig, file, options.set)
        output = options.output.expanduser()
        if (output / files.VAE).exists():
            raise TrainingError(f"{output}: holds an autoencoder; give another folder")
        output.mkdir(parents=True, exist_ok=True)
        errors = train_autoencoder(config, output)
    except (CosmosPolicyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{output}: L1 {errors.l1:.4f} on held-out images ({errors.moving:.4f} where they move); "
        f"the cameras' mean images have {errors.mean_image:.4f} ({errors.mean_image_moving:.4f})"
    )
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cosmos train-autoencoder",
        description="Train a small video autoencoder on the images of recorded episodes.",
    )
    parser.add_argument("config", help="a YAML file, or a name in config/autoencoder (tiny)")
    parser.add_argument(
        "--output", type=Path, required=True, help="the checkpoint folder to make, to train from"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the config"
    )
    return parse(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
