"""Counted operations of matrix products, attention and convolutions, on the meta device.

No memory is taken and no device asked, so the 2B network is counted on any machine, and two
machines count the same whatever kernels they have.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.layout import LAYOUTS, first_image
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.config import LoraConfig
from cosmos_policy_ros.training.loss import frame_errors
from cosmos_policy_ros.training.start import add_adapters


def forward_flops(model: CheckpointConfig, lora: LoraConfig | None = None) -> float:
    """Count one forward pass of the transformer, of one sample; with adapters, if given."""
    latent, timestep, text = _meta_sample(model)
    network = _meta_network(model, lora)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(latent, timestep, timestep > 0, text)
    return float(counter.get_total_flops())


def encoding_flops(model: CheckpointConfig) -> float:
    """Count what is encoded per sample: the images behind those that are always black."""
    layout, size = LAYOUTS[model.layout], model.image_size
    black = first_image(layout.index(layout.cameras[0]))
    images = first_image(layout.index("value")) - black
    video = torch.empty(1, 3, images, size, size, device="meta")
    with torch.device("meta"):
        tokenizer = Tokenizer(model.vae)
    with torch.no_grad():
        tokenizer.encode_after_black(video, black)  # the second time, what is black is kept
        with FlopCounterMode(display=False) as counter:
            tokenizer.encode_after_black(video, black)
    return float(counter.get_total_flops())


def gradient_flops(
    model: CheckpointConfig, lora: LoraConfig | None = None, *, recompute: bool = True
) -> float:
    """Count a sample's way through the transformer and back, as a training goes it.

    Args:
        model: sizes.
        lora: adapters that are trained instead of the weights.
        recompute: whether blocks compute their activations a second time, which is counted, too.
    """
    # Blocks are alike, but the first: behind frozen weights it passes no gradient on. So two say
    # what any number needs, and 28 take half a minute here.
    layers = model.transformer.layers
    shallow = [replace(model, transformer=replace(model.transformer, layers=n)) for n in (1, 2)]
    one, two = (_both_ways(each, lora) for each in shallow)
    flops = one + (layers - 1) * (two - one)
    if recompute:
        one, two = (forward_flops(each, lora) for each in shallow)
        flops += layers * (two - one)
    return flops


def _both_ways(model: CheckpointConfig, lora: LoraConfig | None) -> float:
    latent, _, text = _meta_sample(model)
    network = _meta_network(model, lora)
    with torch.device("meta"):
        known, sigma = torch.zeros(1, latent.shape[2], dtype=torch.bool), torch.ones(1)
    with FlopCounterMode(display=False) as counter:
        losses, _ = frame_errors(
            network, model.preconditioning, latent, known, text, sigma, torch.empty_like(latent)
        )
        torch.autograd.backward(losses.mean())
    return float(counter.get_total_flops())


def _meta_network(model: CheckpointConfig, lora: LoraConfig | None) -> Transformer:
    with torch.device("meta"):
        network = Transformer(model.transformer).train()
    if lora is not None:
        add_adapters(network, lora, seed=0)
    return network


def _meta_sample(model: CheckpointConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return latent (1, 16, T, h, w), timestep (1, T) and text (1, L, D)."""
    channels, height, width = model.frame_shape
    frames = LAYOUTS[model.layout].count
    with torch.device("meta"):
        return (
            torch.empty(1, channels, frames, height, width),
            torch.empty(1, frames),
            torch.empty(1, model.text_tokens, model.transformer.text_width),
        )
