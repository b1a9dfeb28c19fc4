"""Prompt embeddings: computed once per checkpoint, looked up by the exact prompt.

A prompt is a handful of tokens, padded to 512 with exact zeros that take part in attention. Files
hold the tokens only; :meth:`TextTable.embedding` pads them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import pad

from cosmos_policy_ros import __version__
from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import CheckpointError, ConfigError
from cosmos_policy_ros.core.files import replace_text, replacing
from cosmos_policy_ros.core.untrusted import check_file, parse_json, read_text, reading, shown
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.config import read_config


@dataclass(frozen=True)
class TextTable:
    """The prompts a checkpoint knows."""

    path: Path  # of its file, for messages
    embeddings: Mapping[str, Tensor]  # per prompt (n, width), without the padding behind its tokens
    tokens: int  # positions of a prompt, padding included

    def embedding(self, prompt: str) -> Tensor:
        """Return the (tokens, width) embedding of exactly this prompt.

        Padding positions are zero and belong to it: they take part in attention, as in training.
        """
        if prompt not in self.embeddings:
            raise CheckpointError(
                f"{self.path}: no embedding for the prompt '{prompt}'"
                f"{did_you_mean(prompt, self.embeddings)}"
            )
        embedding = self.embeddings[prompt]
        return pad(embedding, (0, 0, 0, self.tokens - len(embedding)))


def load_text(path: Path, tokens: int, width: int) -> TextTable:
    """Read a safetensors file whose tensor names are the prompts."""
    with reading(path, "safetensors", CheckpointError):
        check_file(path)
        embeddings = load_file(path)
    if not embeddings:
        raise CheckpointError(f"{path}: holds no prompt; each tensor's name is a prompt")
    check_embeddings(embeddings, tokens, width, str(path))
    return TextTable(path, embeddings, tokens)


def save_text(path: Path, embeddings: Mapping[str, Tensor]) -> None:
    """Write (L, width) embeddings without their padding; the file is replaced in one step."""
    trimmed = {}
    for prompt, embedding in embeddings.items():
        used = embedding.any(dim=1).nonzero()
        trimmed[prompt] = embedding[: int(used.max()) + 1 if len(used) else 0].contiguous()
    try:
        with replacing(path) as draft:
            draft.write_bytes(save(trimmed))  # save_file would hide it from other users
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error


def check_embeddings(
    embeddings: Mapping[str, Tensor], tokens: int, width: int, source: str
) -> None:
    """Check every (n, width) embedding, padded or not, against the config."""
    for name, embedding in embeddings.items():
        prompt = shown(name)
        shape = tuple(embedding.shape)
        if len(shape) != 2 or shape[0] > tokens or shape[1] != width:
            raise CheckpointError(
                f"{source}: the embedding of '{prompt}' has shape {shape}, but the checkpoint's "
                f"config asks for ({tokens}, {width}), or fewer rows where padding is left out"
            )
        if not torch.isfinite(embedding).all():
            raise CheckpointError(f"{source}: the embedding of '{prompt}' is not finite")
        if not embedding.any():
            raise CheckpointError(f"{source}: the embedding of '{prompt}' is nothing but zeros")


# New prompts for a converted checkpoint: what ``cosmos embed-prompts`` does. The language model is
# needed here only, once per prompt, and not on the robot.

LANGUAGE_MODEL = "google-t5/t5-11b"

# Maps a prompt to (n, width), one row per token and none for padding.
Encoder = Callable[[str], Tensor]


def add_prompts(folder: Path, prompts: Sequence[str], encoder: Encoder) -> tuple[str, ...]:
    """Embed prompts, in the exact wordings of task files, and add them to a checkpoint folder.

    Its ``text.safetensors`` is replaced in one step, after every prompt has been embedded; prompts
    that it knows already stay.

    Returns:
        The prompts that were added.

    Raises:
        CheckpointError: the folder is no checkpoint, or an embedding does not fit its config.
    """
    missing = files.describe_missing(folder)
    if missing:
        raise CheckpointError(missing)
    config = read_config(folder / files.CONFIG)
    tokens, width = config.text_tokens, config.transformer.text_width
    known = load_text(folder / files.TEXT, tokens, width).embeddings
    fresh = {
        p: encoder(p).to("cpu", torch.bfloat16) for p in dict.fromkeys(prompts) if p not in known
    }
    check_embeddings(fresh, tokens, width, LANGUAGE_MODEL)
    if fresh:
        save_text(folder / files.TEXT, {**known, **fresh})
        provenance = folder / files.PROVENANCE
        try:
            if provenance.is_file():
                history = parse_json(read_text(provenance))
                history.setdefault("prompts_added", []).extend(
                    {"prompt": p, "encoder": LANGUAGE_MODEL, "version": __version__} for p in fresh
                )
                replace_text(provenance, json.dumps(history, indent=2) + "\n")
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{provenance}: the prompts were added, but this history cannot be continued: "
                f"{error}"
            ) from error
    return tuple(fresh)


def t5_encoder(device: str, tokens: int) -> Encoder:
    """Load T5-11B's encoder: 19 GB in float32, downloaded on first use."""
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
