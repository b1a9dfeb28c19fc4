"""The folder that comes out: a checkpoint like any other, and a card that says how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from cosmos_policy_ros import __version__
from cosmos_policy_ros.core.errors import TrainingError
from cosmos_policy_ros.core.files import replacing
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import Checkpoint
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.config import LoraConfig
from cosmos_policy_ros.training.lora import merged

CARD = "README.md"


def gather(network: Transformer, lora: LoraConfig | None) -> dict[str, Tensor]:
    """Return the whole network's tensors in the first process's memory, empty in the others'.

    All processes must call it.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    tensors: dict[str, Any] = get_model_state_dict(network, options=options)
    return merged(tensors, lora)


def write_weights(tensors: Mapping[str, Tensor], checkpoint: Checkpoint, folder: Path) -> None:
    """Write the network and, once, the autoencoder in the checkpoint's format.

    Whoever loads the folder meanwhile finds the old network or the new one.

    Raises:
        TrainingError: the disk refused.
    """
    precision = torch.bfloat16 if checkpoint.config.precision == "bfloat16" else torch.float32
    contents: dict[str, Mapping[str, Tensor]] = {files.TRANSFORMER: tensors}
    if not (folder / files.VAE).is_file():
        contents = {files.VAE: checkpoint.tokenizer.vae.state_dict(), **contents}
    for name, content in contents.items():
        write_tensors(content, precision, folder / name)


def write_tensors(tensors: Mapping[str, Tensor], precision: torch.dtype, file: Path) -> None:
    """Write a file whole or not at all, beside a ``config.yaml``.

    Raises:
        TrainingError: the disk refused.
    """
    kept = {k: t.detach().to("cpu", precision).contiguous() for k, t in tensors.items()}
    try:
        with replacing(file) as draft:
            save_file(kept, draft)
            draft.chmod((file.parent / files.CONFIG).stat().st_mode)  # not for the owner alone
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{file}: cannot be written: {error}") from error


def write_rounded(source: Path, target: Path) -> None:
    """Write a checkpoint's weights anew in half precision; they are loaded as before.

    Raises:
        TrainingError: the disk refused.
    """
    for name in files.WEIGHTS:
        write_tensors(load_file(source / name), torch.float16, target / name)


def write_card(folder: Path, metadata: Mapping[str, Any], lines: list[str]) -> None:
    """Write the model card for people and ``provenance.json`` for programs."""
    history = {"trainer": f"cosmos_policy_ros {__version__}", **metadata}
    (folder / files.PROVENANCE).write_text(json.dumps(history, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")
