"""A checkpoint folder into memory, or one error that says what is wrong with it.

A folder is ``config.yaml`` + ``dataset_statistics.json`` + ``text.safetensors``, and the weights
``transformer.safetensors`` + ``vae.safetensors``, as ``cosmos convert`` makes it.
Without the weights both networks are filled from a fixed seed: everything runs as with a trained
checkpoint, and the arms go nowhere useful.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import CheckpointError, ConfigError
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.model import files, transformer_keys, vae_keys
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.layout import Layout, layout_named
from cosmos_policy_ros.model.statistics import Statistics, load_statistics
from cosmos_policy_ros.model.text import TextTable, load_text
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.model.weights import read_weights

RANDOM_WEIGHTS_SEED = 0


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; the networks are in evaluation mode and take no gradients.

    Attributes:
        path: its folder.
        digest: sha256 (hex) over its files.
        config: its ``config.yaml``.
        layout: its latent frames.
        statistics: ranges of actions and proprioception.
        text: the prompts it knows.
        transformer: the diffusion transformer.
        tokenizer: the video autoencoder.
        random_weights: True when the folder has no weights, or those of the autoencoder alone:
            nothing that it does was learned.
    """

    path: Path
    digest: str
    config: CheckpointConfig
    layout: Layout
    statistics: Statistics
    text: TextTable
    transformer: Transformer
    tokenizer: Tokenizer
    random_weights: bool


def load_checkpoint(
    path: str | Path, device: torch.device | str = "cpu", *, unfinished: bool = False
) -> Checkpoint:
    """Read a checkpoint folder whole.

    Args:
        path: the folder.
        device: where the networks go, in torch's names.
        unfinished: whether the autoencoder may be there alone, for a training to begin with; the
            transformer is random then.

    Raises:
        CheckpointError: files are missing or truncated, or do not fit together; names the file
            and the tensors or keys.
    """
    folder = Path(path)
    digest = files.digest(folder, unfinished=unfinished)
    config = read_config(folder)
    trained = files.has_weights(folder)
    precision = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    with reading(folder / files.CONFIG, "networks of these sizes", CheckpointError):
        transformer, tokenizer = (
            _read_networks(config, folder) if trained else _random_networks(config, precision)
        )
    if not trained and (folder / files.VAE).is_file():
        tokenizer = _read_tokenizer(config, folder)  # all that was trained so far
    for network in (transformer, tokenizer):
        network.to(device=device, dtype=precision).eval().requires_grad_(False)
    return Checkpoint(
        path=folder,
        digest=digest,
        config=config,
        layout=layout_named(config.layout),
        statistics=load_statistics(
            folder / files.STATISTICS, config.action_dims, config.proprio_dims
        ),
        text=load_text(folder / files.TEXT, config.text_tokens, config.transformer.text_width),
        transformer=transformer,
        tokenizer=tokenizer,
        random_weights=not trained,
    )


def read_config(folder: Path) -> CheckpointConfig:
    """Read a checkpoint's ``config.yaml`` alone; raises CheckpointError."""
    try:
        return load_config(CheckpointConfig, folder / files.CONFIG)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _random_networks(
    config: CheckpointConfig, precision: torch.dtype
) -> tuple[Transformer, Tokenizer]:
    """Make both networks with reproducible random weights; leaves torch's own seed as it was."""
    before = torch.get_default_dtype()
    # In the format they will have: in float32 first, the 2B network would take twice the memory.
    torch.set_default_dtype(precision)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_WEIGHTS_SEED)
            return Transformer(config.transformer), Tokenizer(config.vae)
    finally:
        torch.set_default_dtype(before)


def _read_networks(config: CheckpointConfig, folder: Path) -> tuple[Transformer, Tokenizer]:
    # On the meta device no random weights are made only to be thrown away: 8 GB and half a minute
    # for the 2B network.
    with torch.device("meta"):
        transformer = Transformer(config.transformer)
    file = folder / files.TRANSFORMER
    transformer_keys.load_weights(transformer, read_weights(file), str(file))
    return transformer, _read_tokenizer(config, folder)


def _read_tokenizer(config: CheckpointConfig, folder: Path) -> Tokenizer:
    with torch.device("meta"):
        tokenizer = Tokenizer(config.vae)
    file = folder / files.VAE
    vae_keys.load_weights(tokenizer.vae, read_weights(file), config.vae.blocks, str(file))
    return tokenizer


# Where the networks run, and how fast: the device, and the compiled transformer.


AUTO = "auto"
Backend = str | Callable[..., Any]  # of torch.compile
# Of one function: policy, world model and value function, each cut short at the end or not, with
# one sample or several. torch gives up compiling beyond it.
VARIANTS = 64


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``, in torch's words; "auto" is the first GPU, or the CPU.

    Raises:
        ConfigError: it cannot be used here.
    """
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device '{name}' cannot be used ({reason}); try device:=auto or device:=cpu"
        ) from error


def compile_forward(network: Transformer, backend: Backend = "inductor") -> Callable[..., Tensor]:
    """Return the network's forward pass compiled by torch; on a GPU also recorded as CUDA graphs.

    The compiler fuses operations, so results differ by rounding. It works at the first call of each
    variant, for minutes with the 2B network, and only then it is known whether it can.
    """
    torch._dynamo.config.recompile_limit = VARIANTS
    graphs = network.device.type == "cuda" and backend == "inductor"
    compiled = torch.compile(
        network.forward, backend=backend, mode="reduce-overhead" if graphs else None
    )

    def forward(*args: Any) -> Tensor:
        # A graph writes its result to the same memory again; the denoiser has used up the last one.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        result: Tensor = compiled(*args)
        return result

    return forward
