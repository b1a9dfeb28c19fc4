"""``cosmos convert``: published or fine-tuned weights into a checkpoint folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cosmos_policy_ros.cli.shared import parse
from cosmos_policy_ros.core.errors import CheckpointError, CosmosPolicyError
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.convert import (
    EMA_PREFIX,
    Parts,
    convert,
    find_parts,
    hub_download,
    shipped_config,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos convert``; returns the exit code."""
    options = _parse(arguments)
    try:
        given = Parts(
            weights=options.weights,
            vae=options.vae,
            statistics=options.statistics,
            prompts=options.prompts,
            config=shipped_config(options.config) if options.config else None,
        )
        target = options.target.expanduser()
        if target.exists() and not options.force:  # before anything is downloaded
            raise CheckpointError(f"'{target}' is there already; give another name, or --force")
        parts = find_parts(options.source, given, hub_download)
        digest = convert(parts, target, options.source, options.force, _print, options.ema)
    except CosmosPolicyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        return 130
    _print(f"done: {target} (digest {digest[:12]}). Use it with checkpoint:={target}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cosmos convert",
        description="Turn published or fine-tuned Cosmos Policy weights into a checkpoint folder. "
        "Nothing in the files is executed.",
    )
    releases = ", ".join(release.repository for release in files.RELEASES)
    parser.add_argument("source", help=f"a folder, or a Hugging Face repository: {releases}")
    parser.add_argument("target", type=Path, help="the folder to make")
    parser.add_argument("--force", action="store_true", help="replace the target")
    parser.add_argument("--config", help="kind of model: a name in config/models or a YAML file")
    parser.add_argument(
        "--weights",
        type=Path,
        help=".pt or .safetensors file, index of several, or a folder with one of these or a "
        "distributed checkpoint",
    )
    parser.add_argument(
        "--ema", action="store_true", help=f"take the weights' moving average, {EMA_PREFIX}*"
    )
    parser.add_argument("--vae", type=Path, help="the video autoencoder's file")
    parser.add_argument("--statistics", type=Path, help="the JSON with the ranges")
    parser.add_argument("--prompts", type=Path, help="the pickle with the prompt embeddings")
    return parse(parser, arguments)


def _print(line: str) -> None:
    print(line, flush=True)
