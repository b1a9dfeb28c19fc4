"""The video autoencoder as one of single pictures, and back.

A small one is trained on pictures, since clips cost six times as much and teach it to let one frame
see into the next (facts, tiny model). Its causal convolutions then work in two dimensions, by their
last tap; afterwards their other taps are zero and their resampling in time is the identity, so that
the ordinary path over sequences makes of every four equal pictures the latent of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanCausalConv3d,
    WanResample,
    patchify,
    unpatchify,
)
from torch import Tensor
from torch.nn.functional import conv2d

from cosmos_policy_ros.model.config import LATENT_CHANNELS


@contextmanager
def as_pictures(vae: AutoencoderKLWan) -> Iterator[None]:
    """Let an autoencoder's causal convolutions work on single pictures, by their last tap."""
    layers = [module for module in vae.modules() if isinstance(module, WanCausalConv3d)]
    for layer in layers:
        layer.forward = partial(_last_tap, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def encode_pictures(vae: AutoencoderKLWan, pictures: Tensor, patch: int) -> Tensor:
    """Map (B, 3, S, S) in [-1, 1] to the posterior's mean (B, 16, s, s), as it comes."""
    folded = patchify(pictures.unsqueeze(2), patch)  # type: ignore[no-untyped-call]
    moments = vae.quant_conv(vae.encoder(folded))
    return cast(Tensor, moments[:, :LATENT_CHANNELS, 0])


def decode_pictures(vae: AutoencoderKLWan, latents: Tensor, patch: int) -> Tensor:
    """Map (B, 16, s, s) back to (B, 3, S, S), about [-1, 1]."""
    decoded = vae.decoder(vae.post_quant_conv(latents.unsqueeze(2)))
    return cast(Tensor, unpatchify(decoded, patch)[:, :, 0])  # type: ignore[no-untyped-call]


@torch.no_grad()
def inflate(vae: AutoencoderKLWan) -> None:
    """Let the path over sequences do with every picture what was learned of single ones."""
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d):
            module.weight[:, :, :-1] = 0
        if isinstance(module, WanResample) and hasattr(module, "time_conv"):
            conv = module.time_conv
            assert conv.bias is not None
            conv.bias.zero_()
            conv.weight.zero_()
            # Going up every picture becomes two, and there are twice as many channels.
            same = torch.eye(conv.in_channels)
            conv.weight[:, :, -1, 0, 0] = same.repeat(conv.out_channels // conv.in_channels, 1)


def is_of_pictures(vae: AutoencoderKLWan) -> bool:
    """Tell whether an autoencoder has no memory, so that only a picture itself counts."""
    layers = [module for module in vae.modules() if isinstance(module, WanCausalConv3d)]
    return not any(bool(layer.weight[:, :, :-1].any()) for layer in layers)


def _last_tap(layer: WanCausalConv3d, x: Tensor) -> Tensor:
    _, width, _, height, *_ = map(int, layer._padding)
    weight = layer.weight[:, :, -1]
    return conv2d(x[:, :, 0], weight, layer.bias, padding=(height, width)).unsqueeze(2)
