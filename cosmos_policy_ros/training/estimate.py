"""What a run will need, before it begins: memory and time, from counted operations."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.layout import LAYOUTS, first_image
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.config import TrainingConfig

GB = 1e9
FLOAT32 = 4  # bytes
# Of a matrix product's speed that a whole training step reaches: a rule of thumb.
EFFICIENCY = 0.4
# Numbers per token and width that a block keeps for its backward pass: its own input and output,
# the inputs of ten linear layers, attention, and the hidden layer four times as wide.
KEPT_PER_BLOCK = 30
PROBE = 2048  # rows and columns of the product that is timed


@dataclass(frozen=True)
class Estimate:
    """Per process.

    Attributes:
        parameters: of the network.
        state_gb: weights, gradients and optimiser.
        activation_gb: of one micro-batch.
        flops_per_sample: of one training sample, encoding included.
        device_flops: per second, of a matrix product measured here and now.
        hours: of the whole run.
    """

    parameters: int
    state_gb: float
    activation_gb: float
    flops_per_sample: float
    device_flops: float
    hours: float

    def lines(self) -> list[str]:
        """Return it for people."""
        return [
            f"network: {self.parameters / 1e6:,.1f} million parameters",
            f"memory per process: about {self.state_gb:.1f} GB of weights, gradients and "
            f"optimiser, and {self.activation_gb:.1f} GB of activations",
            f"one sample: {self.flops_per_sample / 1e12:.3g} TFLOP, encoding included",
            f"this device: {self.device_flops / 1e12:.3g} TFLOP/s in a matrix product; at "
            f"{EFFICIENCY:.0%} of it the run takes {_duration(self.hours)}",
        ]


def estimate(
    config: TrainingConfig, model: CheckpointConfig, processes: int, device: torch.device
) -> Estimate:
    """Count what a run does and time what the device can."""
    run = config.run
    with torch.device("meta"):
        network, tokenizer = Transformer(model.transformer), Tokenizer(model.vae)
    parameters = sum(p.numel() for p in network.parameters())
    shards = min(processes, run.shard_size)
    trained = parameters if config.lora is None else 0  # adapters are small change
    state = FLOAT32 * (parameters + 3 * trained) / shards  # gradient and two moments
    width = model.transformer.heads * model.transformer.head_dim
    bytes_each = 2 if run.precision == "bfloat16" else FLOAT32
    per_block = model.tokens * width * bytes_each * run.micro_batch
    layers = model.transformer.layers
    kept = layers + KEPT_PER_BLOCK if run.activation_checkpointing else layers * KEPT_PER_BLOCK
    passes = 4 if run.activation_checkpointing else 3  # the backward pass costs two
    flops = passes * _forward(network, model) + _encoding(tokenizer, model)
    speed = _measure(device, torch.bfloat16 if run.precision == "bfloat16" else torch.float32)
    samples = run.steps * run.batch / processes
    return Estimate(
        parameters=parameters,
        state_gb=state / GB,
        activation_gb=per_block * kept / GB,
        flops_per_sample=flops,
        device_flops=speed,
        hours=samples * flops / (speed * EFFICIENCY) / 3600,
    )


def _forward(network: Transformer, model: CheckpointConfig) -> float:
    layout = LAYOUTS[model.layout]
    channels, height, width = model.frame_shape
    latent = torch.empty(1, channels, layout.count, height, width, device="meta")
    timestep = torch.empty(1, layout.count, device="meta")
    text = torch.empty(1, model.text_tokens, model.transformer.text_width, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(latent, timestep, timestep > 0, text)
    return float(counter.get_total_flops())


def _encoding(tokenizer: Tokenizer, model: CheckpointConfig) -> float:
    """Count what is encoded per sample: the images behind those that are always black."""
    layout, size = LAYOUTS[model.layout], model.image_size
    black = first_image(layout.index(layout.cameras[0]))
    images = first_image(layout.index("value")) - black
    video = torch.empty(1, 3, images, size, size, device="meta")
    with torch.no_grad():
        tokenizer.encode_after_black(video, black)  # the second time, what is black is kept
        with FlopCounterMode(display=False) as counter:
            tokenizer.encode_after_black(video, black)
    return float(counter.get_total_flops())


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating point operations per second of a matrix product."""
    matrix = torch.randn(PROBE, PROBE, device=device).to(dtype)
    float((matrix @ matrix)[0, 0])  # warm up
    began = time.perf_counter()
    rounds = 3
    for _ in range(rounds):
        product = matrix @ matrix
    float(product[0, 0])
    return rounds * 2 * PROBE**3 / (time.perf_counter() - began)


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{max(hours * 60, 1):.0f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:.0f} days"
