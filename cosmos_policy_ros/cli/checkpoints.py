"""``cosmos convert`` and ``cosmos embed-prompts``: checkpoint folders from published weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import CheckpointError
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.convert import (
    EMA_PREFIX,
    Parts,
    convert,
    find_parts,
    hub_download,
    shipped_config,
)
from cosmos_policy_ros.model.text import add_prompts, t5_encoder


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Turn published or fine-tuned Cosmos Policy weights into a checkpoint folder.

    Nothing in the files is executed.
    """
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
    parser.set_defaults(run=_convert, interrupted="interrupted: nothing was written")


def _convert(options: argparse.Namespace) -> int:
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
    _print(f"done: {target} (digest {digest[:12]}). Use it with checkpoint:={target}")
    return 0


def _print(line: str) -> None:
    print(line, flush=True)


def add_embed_prompts(parser: argparse.ArgumentParser) -> None:
    """Add prompts to a checkpoint folder with the language model T5-11B."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint folder")
    parser.add_argument("--device", default="cpu", help="torch device of the language model")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="exact wording of a task")
    parser.set_defaults(run=_embed_prompts)


def _embed_prompts(options: argparse.Namespace) -> int:
    missing = files.describe_missing(options.checkpoint)
    if missing:
        raise CheckpointError(missing)
    config = load_config(CheckpointConfig, options.checkpoint / files.CONFIG)
    encoder = t5_encoder(options.device, config.text_tokens)
    added = add_prompts(options.checkpoint, options.prompts, encoder)
    for prompt in dict.fromkeys(options.prompts):
        print(f"{'added' if prompt in added else 'already there'}: {prompt}")
    return 0
