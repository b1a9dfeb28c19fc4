"""What a run will need, before it begins: data, memory and time, from counted operations."""

from __future__ import annotations

import time

import torch

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import choose_device
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.text import load_text
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.config import TrainingConfig
from cosmos_policy_ros.training.dataset_index import Mixture, index_episodes
from cosmos_policy_ros.training.flops import encoding_flops, forward_flops
from cosmos_policy_ros.training.parallel import check_sharing
from cosmos_policy_ros.training.prepared_images import describe_prepared
from cosmos_policy_ros.training.start import start_folder

FLOAT32 = 4  # bytes
# Of a matrix product's speed that a whole training step reaches: a rule of thumb.
EFFICIENCY = 0.4
# Numbers per token and width that a block keeps for its backward pass: its own input and output,
# the inputs of ten linear layers, attention, and the hidden layer four times as wide.
KEPT_PER_BLOCK = 30


def describe_run(config: TrainingConfig, processes: int) -> list[str]:
    """Index the data, count what a run does and time what the device can; return lines to print.

    Raises:
        CosmosPolicyError: something is wrong with data, checkpoint or config.
    """
    run, folder = config.run, start_folder(config.start.checkpoint)
    check_sharing(run, processes)
    model = load_config(CheckpointConfig, folder / files.CONFIG)
    text = load_text(folder / files.TEXT, model.text_tokens, model.transformer.text_width)
    dataset_index = index_episodes(config.data, model, text)
    mixture = Mixture(dataset_index, config.mixture, run.seed)

    with torch.device("meta"):
        network = Transformer(model.transformer)
    parameters = sum(p.numel() for p in network.parameters())
    trained = parameters if config.lora is None else 0  # adapters are small change
    # Weights; gradients and two moments of what is trained.
    state = FLOAT32 * (parameters + 3 * trained) / min(processes, run.shard_size)
    width = model.transformer.heads * model.transformer.head_dim
    bytes_each = 2 if run.precision == "bfloat16" else FLOAT32
    per_block = model.tokens * width * bytes_each * run.micro_batch
    layers = model.transformer.layers
    kept = layers + KEPT_PER_BLOCK if run.activation_checkpointing else layers * KEPT_PER_BLOCK
    passes = 4 if run.activation_checkpointing else 3  # the backward pass costs two
    flops = passes * forward_flops(model) + encoding_flops(model)
    dtype = torch.bfloat16 if run.precision == "bfloat16" else torch.float32
    speed = _measure_flops(choose_device(run.device), dtype)
    hours = run.steps * run.batch / processes * flops / (speed * EFFICIENCY) / 3600
    if hours < 1:
        duration = f"{max(hours * 60, 1):.0f} min"
    else:
        duration = f"{hours:.1f} h" if hours < 100 else f"{hours / 24:.0f} days"
    return [
        *dataset_index.lines(config.start.statistics),
        *describe_prepared(config.data, model, dataset_index.entries),
        mixture.describe(run.batch),
        f"network: {parameters / 1e6:,.1f} million parameters",
        f"memory per process: about {state / 1e9:.1f} GB of weights, gradients and "
        f"optimiser, and {per_block * kept / 1e9:.1f} GB of activations",
        f"one sample: {flops / 1e12:.3g} TFLOP, encoding included",
        f"this device: {speed / 1e12:.3g} TFLOP/s in a matrix product; at "
        f"{EFFICIENCY:.0%} of it the run takes {duration}",
    ]


def _measure_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating point operations per second of a matrix product."""
    size, rounds = 2048, 3
    matrix = torch.randn(size, size, device=device).to(dtype)
    float((matrix @ matrix)[0, 0])  # warm up
    began = time.perf_counter()
    for _ in range(rounds):
        product = matrix @ matrix
    float(product[0, 0])
    return rounds * 2 * size**3 / (time.perf_counter() - began)
