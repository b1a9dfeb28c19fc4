"""Pictures to latents and back: diffusers' Wan autoencoder with the normalisation of the policy.

Encoding is causal in time, so the first n latent frames depend on the first 1 + 4 (n - 1) pictures
only: a query encodes the pictures it conditions on and none behind them, bit for bit the same.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn

from cosmos_policy_ros.model.config import LATENT_CHANNELS, SPACE, VaeConfig


class Tokenizer(nn.Module):
    """The video autoencoder. Not re-entrant: diffusers keeps the causal state on the module."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels = 3 * config.patch**2
        self.vae = AutoencoderKLWan(
            base_dim=config.base_width,
            z_dim=LATENT_CHANNELS,
            dim_mult=list(config.multipliers),
            num_res_blocks=config.blocks,
            temperal_downsample=list(config.halve_time),
            latents_mean=list(config.latent_mean),
            latents_std=list(config.latent_std),
            in_channels=channels,
            out_channels=channels,
            patch_size=config.patch if config.patch > 1 else None,
            scale_factor_spatial=SPACE,
        )
        self._mean = config.latent_mean
        self._std = config.latent_std

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights, in which all the arithmetic runs."""
        return cast(torch.dtype, self.vae.dtype)

    def encode(self, video: Tensor) -> Tensor:
        """Map (B, 3, 1 + 4 n, H, W) in [-1, 1] to (B, 16, 1 + n, H / 8, W / 8) float32.

        The posterior's mean, never a sample of it. Constants are rounded to the weights' format
        like in training; only the result is float32.
        """
        posterior = self.vae.encode(video.to(self.dtype)).latent_dist
        mean, std = self._constants(video.device)
        return cast(Tensor, ((posterior.mean - mean) * (1 / std)).float())

    def decode(self, latent: Tensor) -> Tensor:
        """Map (B, 16, 1 + n, h, w) back to (B, 3, 1 + 4 n, 8 h, 8 w) float32 in [-1, 1]."""
        mean, std = self._constants(latent.device)
        video = self.vae.decode(latent.to(self.dtype) * std + mean).sample
        return cast(Tensor, video.float())

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        shape = (1, LATENT_CHANNELS, 1, 1, 1)
        mean = torch.tensor(self._mean, dtype=self.dtype, device=device)
        std = torch.tensor(self._std, dtype=self.dtype, device=device)
        return mean.view(shape), std.view(shape)
