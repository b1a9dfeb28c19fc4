"""New prompts for a converted checkpoint: what ``scripts/embed_prompts`` does.

Needs the language model only here, once per prompt, and not on the robot: the folder can be
prepared on any machine and copied.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cosmos_policy_ros import __version__
from cosmos_policy_ros.errors import CheckpointError, ConfigError, CosmosPolicyError
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.text import check_embeddings, load_text, save_text
from cosmos_policy_ros.rig.config import load_config
from cosmos_policy_ros.rig.untrusted import parse_json, read_text

LANGUAGE_MODEL = "google-t5/t5-11b"
FORMAT = torch.bfloat16  # of every released embedding

# Maps a prompt to (n, width), one row per token and none for padding.
Encoder = Callable[[str], Tensor]


def add_prompts(
    folder: Path, prompts: Sequence[str], encoder: Encoder, encoder_name: str = LANGUAGE_MODEL
) -> tuple[str, ...]:
    """Embed prompts and add them to a checkpoint folder's ``text.safetensors``.

    The table is replaced in one step, and only after every prompt has been embedded. Prompts that
    it knows already are left as they are.

    Args:
        folder: a checkpoint folder, with or without weights.
        prompts: exact wordings, as a task file will give them.
        encoder: the language model.
        encoder_name: how ``provenance.json`` calls it.

    Returns:
        The prompts that were added.

    Raises:
        CheckpointError: the folder is no checkpoint, or an embedding does not fit its config.
    """
    missing = files.describe_missing(folder)
    if missing:
        raise CheckpointError(missing)
    try:
        config = load_config(CheckpointConfig, folder / files.CONFIG)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    tokens, width = config.text_tokens, config.transformer.text_width
    known = load_text(folder / files.TEXT, tokens, width).embeddings
    fresh = {p: encoder(p).to("cpu", FORMAT) for p in dict.fromkeys(prompts) if p not in known}
    check_embeddings(fresh, tokens, width, encoder_name)
    if fresh:
        save_text(folder / files.TEXT, {**known, **fresh})
        _note(folder / files.PROVENANCE, tuple(fresh), encoder_name)
    return tuple(fresh)


def t5_encoder(device: str, tokens: int) -> Encoder:
    """Load T5-11B's encoder: 19 GB in float32, downloaded on first use.

    Raises:
        ConfigError: the package transformers is missing, or the model cannot be had.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            f"embedding a new prompt needs {LANGUAGE_MODEL}, which the package transformers runs; "
            f"install it with: python -m pip install transformers sentencepiece"
        ) from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(LANGUAGE_MODEL)
        model = transformers.T5EncoderModel.from_pretrained(LANGUAGE_MODEL).to(device).eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{LANGUAGE_MODEL} cannot be loaded from Hugging Face or its cache ({error}); it needs "
            f"a network once, and about 20 GB of memory"
        ) from error

    def encode(prompt: str) -> Tensor:
        batch = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=tokens)
        with torch.inference_mode():
            output = model(**batch.to(device)).last_hidden_state
        embedding: Tensor = output[0]
        return embedding

    return encode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``scripts/embed_prompts``; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Add prompts to a checkpoint folder with the language model T5-11B."
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint folder")
    parser.add_argument("--device", default="cpu", help="torch device of the language model")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="exact wording of a task")
    options = parser.parse_args(arguments)
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


def _note(provenance: Path, prompts: Sequence[str], encoder: str) -> None:
    """Append to the folder's history, if it has one."""
    if not provenance.is_file():
        return
    try:
        history = parse_json(read_text(provenance))
        history.setdefault("prompts_added", []).extend(
            {"prompt": p, "encoder": encoder, "version": __version__} for p in prompts
        )
        partial = provenance.with_name(f".{provenance.name}.partial")
        partial.write_text(json.dumps(history, indent=2) + "\n", encoding="utf-8")
        partial.replace(provenance)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{provenance}: the prompts were added, but this history cannot be continued: {error}"
        ) from error
