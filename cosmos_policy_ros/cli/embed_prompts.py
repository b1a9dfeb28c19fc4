"""``cosmos embed-prompts``: new prompts for a converted checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cosmos_policy_ros.cli.shared import parse
from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import CheckpointError, CosmosPolicyError
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.text import add_prompts, t5_encoder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos embed-prompts``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="cosmos embed-prompts",
        description="Add prompts to a checkpoint folder with the language model T5-11B.",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint folder")
    parser.add_argument("--device", default="cpu", help="torch device of the language model")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="exact wording of a task")
    options = parse(parser, arguments)
    try:
        missing = files.describe_missing(options.checkpoint)
        if missing:
            raise CheckpointError(missing)
        config = load_config(CheckpointConfig, options.checkpoint / files.CONFIG)
        encoder = t5_encoder(options.device, config.text_tokens)
        added = add_prompts(options.checkpoint, options.prompts, encoder)
    except CosmosPolicyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for prompt in dict.fromkeys(options.prompts):
        print(f"{'added' if prompt in added else 'already there'}: {prompt}")
    return 0
