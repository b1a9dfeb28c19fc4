"""Prompt embeddings: computed once per checkpoint, looked up by the exact prompt.

A prompt is a handful of tokens, padded to 512 with exact zeros that take part in attention. Files
hold the tokens only; whoever looks a prompt up gets it padded.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cosmos_policy_ros.errors import CheckpointError
from cosmos_policy_ros.rig.config import did_you_mean
from cosmos_policy_ros.rig.untrusted import check_file, reading, shown


@dataclass(frozen=True)
class TextTable:
    """The prompts a checkpoint knows.

    Attributes:
        path: the file it came from, for messages.
        embeddings: per prompt (n, width), its tokens without the padding behind them.
        tokens: positions of a prompt, padding included.
    """

    path: Path
    embeddings: Mapping[str, Tensor]
    tokens: int

    def embedding(self, prompt: str) -> Tensor:
        """Return the (tokens, width) embedding of exactly this prompt.

        Padding positions are zero and belong to it: they take part in attention, as in training.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        if prompt not in self.embeddings:
            raise CheckpointError(
                f"{self.path}: no embedding for the prompt '{prompt}'"
                f"{did_you_mean(prompt, self.embeddings)}"
            )
        return pad(self.embeddings[prompt], self.tokens)


def trim(embedding: Tensor) -> Tensor:
    """Leave out the rows of zeros at the end of (L, width)."""
    used = embedding.ne(0).any(dim=1).nonzero()
    return embedding[: int(used.max()) + 1 if len(used) else 0]


def pad(embedding: Tensor, tokens: int) -> Tensor:
    """Append rows of zeros to (n, width) up to (tokens, width)."""
    padded = embedding.new_zeros((tokens, embedding.shape[1]))
    padded[: len(embedding)] = embedding
    return padded


def load_text(path: Path, tokens: int, width: int) -> TextTable:
    """Read a safetensors file whose tensor names are the prompts.

    Raises:
        CheckpointError: unreadable, empty, a wrong shape or a number that is not finite.
    """
    with reading(path, "safetensors", CheckpointError):
        check_file(path)
        embeddings = load_file(path)
    if not embeddings:
        raise CheckpointError(f"{path}: holds no prompt; each tensor's name is a prompt")
    check_embeddings(embeddings, tokens, width, str(path))
    return TextTable(path, embeddings, tokens)


def save_text(path: Path, embeddings: Mapping[str, Tensor]) -> None:
    """Write (L, width) embeddings without their padding; whoever reads meanwhile sees the old file.

    Raises:
        CheckpointError: cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    trimmed = {prompt: trim(embedding).contiguous() for prompt, embedding in embeddings.items()}
    try:
        partial.write_bytes(save(trimmed))  # save_file would hide it from other users
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise CheckpointError(f"{path}: cannot be written: {error}") from error


def check_embeddings(
    embeddings: Mapping[str, Tensor], tokens: int, width: int, source: str
) -> None:
    """Check every (n, width) embedding, padded or not, against the config.

    Raises:
        CheckpointError: a wrong shape, a number that is not finite, or zeros only.
    """
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


def stand_in_embeddings(prompts: Iterable[str], tokens: int, width: int) -> dict[str, Tensor]:
    """Return a fixed (tokens, width) float32 embedding per prompt, without a language model.

    For small checkpoints that know a handful of prompts: standard normal numbers seeded by the
    prompt's sha256, so that a prompt has the same embedding wherever and whenever it is made.
    """
    table = {}
    for prompt in prompts:
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "little")
        numbers = np.random.RandomState(seed).standard_normal((tokens, width))
        table[prompt] = torch.from_numpy(numbers.astype(np.float32))
    return table
