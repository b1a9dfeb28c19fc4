"""Prompt embeddings: computed once per checkpoint, looked up by the exact prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cosmos_policy_ros.errors import CheckpointError
from cosmos_policy_ros.rig.config import did_you_mean


@dataclass(frozen=True)
class TextTable:
    """The prompts a checkpoint knows.

    Attributes:
        path: the file it came from, for messages.
        embeddings: per prompt (tokens, width). Padding positions are zero and belong to it: they
            take part in attention, as they did in training.
    """

    path: Path
    embeddings: Mapping[str, Tensor]

    def embedding(self, prompt: str) -> Tensor:
        """Return the (tokens, width) embedding of exactly this prompt.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        if prompt not in self.embeddings:
            raise CheckpointError(
                f"{self.path}: no embedding for the prompt '{prompt}'"
                f"{did_you_mean(prompt, self.embeddings)}"
            )
        return self.embeddings[prompt]


def load_text(path: Path, tokens: int, width: int) -> TextTable:
    """Read a safetensors file whose tensor names are the prompts.

    Raises:
        CheckpointError: unreadable, empty, a wrong shape or a number that is not finite.
    """
    try:
        embeddings = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from error
    if not embeddings:
        raise CheckpointError(f"{path}: holds no prompt; each tensor's name is a prompt")
    for prompt, embedding in embeddings.items():
        if embedding.shape != (tokens, width):
            raise CheckpointError(
                f"{path}: the embedding of '{prompt}' has shape {tuple(embedding.shape)}, but the "
                f"checkpoint's config asks for ({tokens}, {width})"
            )
        if not torch.isfinite(embedding).all():
            raise CheckpointError(f"{path}: the embedding of '{prompt}' is not finite")
    return TextTable(path, embeddings)


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
