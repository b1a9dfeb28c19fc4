"""A checkpoint folder into memory, or one error that says what is wrong with it.

A folder is ``config.yaml`` + ``dataset_statistics.json`` + ``text.safetensors``, and the weights
``transformer.safetensors`` + ``vae.safetensors``, as ``cosmos convert`` makes it. Without weights
both networks are random: everything runs, and the arms go nowhere useful.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from cosmos_policy_ros.core.errors import CheckpointError, ConfigError
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.config import CheckpointConfig, read_config
from cosmos_policy_ros.model.layout import LAYOUTS, Layout
from cosmos_policy_ros.model.statistics import Statistics, load_statistics
from cosmos_policy_ros.model.text import TextTable, load_text
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.model.weight_names import load_autoencoder, load_transformer
from cosmos_policy_ros.model.weights import read_weights


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; the networks are in evaluation mode and take no gradients."""

    path: Path  # its folder
    digest: str  # sha256 (hex) over its files
    config: CheckpointConfig
    layout: Layout
    statistics: Statistics
    text: TextTable
    transformer: Transformer
    tokenizer: Tokenizer
    random_weights: bool  # the transformer was not trained: no weights, or the autoencoder's alone


def load_checkpoint(
    path: str | Path, device: torch.device | str = "cpu", *, unfinished: bool = False
) -> Checkpoint:
    """Read a checkpoint folder whole.

    Args:
        path: the folder.
        device: where the networks go, in torch's names.
        unfinished: accept the autoencoder's weights alone, as a training begins with; the
            transformer is random then.

    Raises:
        CheckpointError: files are missing or truncated, or do not fit together; names the file
            and the tensors or keys.
    """
    folder = Path(path)
    digest = files.digest(folder, unfinished=unfinished)
    config = read_config(folder / files.CONFIG)
    trained = files.has_weights(folder)
    precision = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    with reading(folder / files.CONFIG, "networks of these sizes", CheckpointError):
        if trained:
            # On the meta device no random weights are made only to be thrown away: 8 GB and half a
            # minute for the 2B network.
            with torch.device("meta"):
                transformer, tokenizer = Transformer(config.transformer), Tokenizer(config.vae)
            file = folder / files.TRANSFORMER
            load_transformer(transformer, read_weights(file), str(file))
        else:
            transformer, tokenizer = _random_networks(config, precision)
        file = folder / files.VAE
        if file.is_file():
            load_autoencoder(tokenizer, read_weights(file), str(file))
    for network in (transformer, tokenizer):
        network.to(device=device, dtype=precision).eval().requires_grad_(False)
    return Checkpoint(
        path=folder,
        digest=digest,
        config=config,
        layout=LAYOUTS[config.layout],
        statistics=load_statistics(
            folder / files.STATISTICS, config.action_dims, config.proprio_dims
        ),
        text=load_text(folder / files.TEXT, config.text_tokens, config.transformer.text_width),
        transformer=transformer,
        tokenizer=tokenizer,
        random_weights=not trained,
    )


def _random_networks(
    config: CheckpointConfig, precision: torch.dtype
) -> tuple[Transformer, Tokenizer]:
    """Make both networks with reproducible weights; torch's own random state does not change."""
    before = torch.get_default_dtype()
    # In the format they will have: in float32 first, the 2B network would take twice the memory.
    torch.set_default_dtype(precision)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Transformer(config.transformer), Tokenizer(config.vae)
    finally:
        torch.set_default_dtype(before)


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``, in torch's words; "auto" is the first GPU, or the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device '{name}' cannot be used ({reason}); try device:=auto or device:=cpu"
        ) from error
