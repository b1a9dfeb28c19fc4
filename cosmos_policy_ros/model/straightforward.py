"""The released algorithm, built from diffusers' classes, with nothing that makes it faster.

Tests, benchmarks and ``cosmos gpu-check`` hold ours against it. All 41 images are encoded and all
41 decoded, every evaluation of the transformer predicts every frame from all 512 text positions,
and nothing is kept from one evaluation or query to the next. The sampler and the reading of actions
are written down once more, so that a mistake in ours shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.transformers.transformer_cosmos import (
    CosmosRotaryPosEmbed,
    CosmosTransformer3DModel,
)
from numpy.typing import NDArray
from torch import Tensor

from cosmos_policy_ros.model import images
from cosmos_policy_ros.model.checkpoint import Checkpoint
from cosmos_policy_ros.model.config import TransformerConfig
from cosmos_policy_ros.model.sequence import image_sequence, inject_proprio, prepare_images
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.model.weight_names import diffusers_name
from cosmos_policy_ros.rig.decision import Query

SIGMA_MAX, SIGMA_MIN, RHO = 80.0, 4.0, 7.0
NOT_IMAGES = ("blank", "proprio", "action", "future_proprio")  # before decoding: what they were


class Straightforward:
    """Shares the weights of a checkpoint, in its number format."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        with torch.device("meta"):  # no weights of their own
            self._network = DiffusersTransformer(checkpoint.config.transformer)
            vae = AutoencoderKLWan.from_config(  # type: ignore[no-untyped-call]
                checkpoint.tokenizer.vae.config
            )
        network = checkpoint.transformer
        self._network.core.load_state_dict(diffusers_names(network), strict=True, assign=True)
        self._network.core.rope = _RoundedRope(checkpoint)
        vae.load_state_dict(checkpoint.tokenizer.vae.state_dict(), strict=True, assign=True)
        self._vae = vae.eval().requires_grad_(False)
        layout, self._device = checkpoint.layout, network.device
        known = [name in ("blank", *layout.state) for name in layout.frames]
        self._known = torch.tensor(known, device=self._device)

    @property
    def network(self) -> DiffusersTransformer:
        """The transformer, called like ours."""
        return self._network

    def preprocess(self, query: Query) -> tuple[dict[str, Tensor], Tensor]:
        """Return the images and the (1, 512, D) prompt embedding."""
        text = self._checkpoint.text.embedding(query.prompt).unsqueeze(0).to(self._device)
        text = text.to(self._checkpoint.transformer.dtype)
        return prepare_images(query.observation, self._checkpoint), text

    def encode(self, pictures: Mapping[str, Tensor]) -> Tensor:
        """Return (1, 16, T, h, w): every frame's images, nothing injected."""
        sequence = image_sequence(self._checkpoint.layout, pictures, self._checkpoint.layout.count)
        video = images.to_model(sequence, self._vae.dtype)
        mode = self._vae.encode(video).latent_dist.mode()
        mean, scale = self._latent_scale()
        return cast(Tensor, (mode - mean) * scale).float()

    def inject(self, encoded: Tensor, query: Query) -> Tensor:
        """Return the encoded images with the proprioception in its frame."""
        clean = encoded.clone()
        inject_proprio(self._checkpoint, clean, query.observation)
        return clean

    def evaluate(self, noisy: Tensor, sigma: float, clean: Tensor, text: Tensor) -> Tensor:
        """Estimate the clean latent (1, 16, T, h, w) of all frames."""
        t = sigma / (1 + sigma)
        known = self._known.view(1, 1, -1, 1, 1)
        fed = torch.where(known, clean, (1 - t) * noisy)
        timestep = torch.where(self._known, 0.0, t).bfloat16().float().unsqueeze(0)
        dtype = self._checkpoint.transformer.dtype
        velocity = self._network(fed.to(dtype), timestep, self._known.unsqueeze(0), text).float()
        return torch.where(known, clean, (1 - t) * noisy - t * velocity)

    def denoise(self, clean: Tensor, text: Tensor, seed: int, steps: int | None = None) -> Tensor:
        """Return the sampler's last estimate, all frames; ``steps``: the checkpoint's or others."""
        noise = np.random.RandomState(seed).standard_normal(tuple(clean.shape))
        x = (torch.from_numpy(noise.astype(np.float32)) * SIGMA_MAX).double().to(self._device)
        sigmas = self._sigmas(steps or self._checkpoint.config.denoising_steps)
        before: tuple[Tensor, float] | None = None
        for sigma, following in pairwise(sigmas):
            estimate = self.evaluate(x.float(), sigma, clean, text).double()
            h = math.log(sigma / following)
            phi_1 = (1 - math.exp(-h)) / h
            change = phi_1 * estimate
            if before is not None:
                ratio = math.log(before[1] / sigma) / h
                change = change + (1 - phi_1) / h / ratio * (estimate - before[0])
            x = math.exp(-h) * x + h * change
            before = (estimate, sigma)
        return self.evaluate(x.float(), sigmas[-1], clean, text)

    def extract(self, latent: Tensor) -> tuple[NDArray[np.float64], float]:
        """Return the chunk (K, d) in policy units and the value in [0, 1]."""
        config, layout = self._checkpoint.config, self._checkpoint.layout
        numbers = config.chunk_steps * config.action_dims
        volume = latent[0, :, layout.index("action")].flatten().cpu().numpy()
        copies = [volume[i : i + numbers] for i in range(0, volume.size - numbers + 1, numbers)]
        mean = np.mean(copies, axis=0).reshape(config.chunk_steps, config.action_dims)
        span = self._checkpoint.statistics.actions
        chunk = (mean.astype(np.float64) + 1) / 2 * (span.high - span.low) + span.low
        value = (float(latent[0, :, layout.index("value")].mean()) + 1) / 2
        return chunk, min(max(value, 0.0), 1.0)

    def decode(self, latent: Tensor, encoded: Tensor) -> Tensor:
        """Return all images (1, 3, 41, H, W), what is no image replaced by what was encoded."""
        shown = latent.clone()
        for name in NOT_IMAGES:
            frame = self._checkpoint.layout.index(name)
            shown[:, :, frame] = encoded[:, :, frame]
        mean, scale = self._latent_scale()
        return cast(Tensor, self._vae.decode(shown.to(self._vae.dtype) / scale + mean).sample)

    def _sigmas(self, steps: int) -> list[float]:
        high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
        return [float(level**RHO) for level in np.linspace(high, low, steps)]

    def _latent_scale(self) -> tuple[Tensor, Tensor]:
        config = self._checkpoint.config.vae
        constants = (config.latent_mean, config.latent_std)
        mean, std = (
            torch.tensor(each, dtype=self._vae.dtype, device=self._device).view(1, -1, 1, 1, 1)
            for each in constants
        )
        return mean, 1 / std


class DiffusersTransformer:
    """diffusers' Cosmos transformer made to compute what NVIDIA's does; called like ours.

    With the epsilon of NVIDIA's query and key norms, and timesteps per frame. The padding mask's
    channel of zeros is given as an input, because diffusers makes it with torchvision and for
    batches of one only.
    """

    def __init__(self, config: TransformerConfig) -> None:
        """Make it with weights of its own, which are to be replaced."""
        self.core = CosmosTransformer3DModel(
            in_channels=18,
            out_channels=16,
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            num_layers=config.layers,
            mlp_ratio=config.mlp_ratio,
            text_embed_dim=config.text_width,
            adaln_lora_dim=config.adaln_rank,
            max_size=config.max_size,
            patch_size=config.patch,
            rope_scale=config.rope_scale,
            concat_padding_mask=False,
            extra_pos_embed_type=None,
        )
        for block in self.core.transformer_blocks:
            for attention in (block.attn1, block.attn2):
                attention.norm_q.eps = attention.norm_k.eps = 1e-6
        self.core.eval().requires_grad_(False)

    def __call__(self, latent: Tensor, timestep: Tensor, known: Tensor, text: Tensor) -> Tensor:
        """Predict (B, 16, T, H, W); see :meth:`Transformer.forward`."""
        condition = known[:, None, :, None, None].to(latent.dtype).expand_as(latent[:, :1])
        (prediction,) = self.core(
            hidden_states=torch.cat([latent, condition, torch.zeros_like(condition)], dim=1),
            timestep=timestep[:, None, :, None, None],
            encoder_hidden_states=text,
            return_dict=False,
        )
        assert isinstance(prediction, Tensor)
        return prediction


def diffusers_names(network: Transformer) -> dict[str, Tensor]:
    """Return the network's tensors as diffusers' class has them, which computes the positions'."""
    return {
        diffusers_name(name): tensor
        for name, tensor in network.state_dict().items()
        if not name.startswith("pos_embedder.")
    }


class _RoundedRope(CosmosRotaryPosEmbed):
    """diffusers' rotary position with the exponents that the released network was trained with.

    diffusers computes them in float32; the released network rounded them to bfloat16. The powers
    are taken here the way diffusers does: a stretched base to the power of an exponent.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config.transformer
        scale = config.rope_scale
        super().__init__(config.head_dim, config.max_size, config.patch, rope_scale=scale)  # type: ignore[arg-type]

    def forward(self, hidden_states: Tensor, fps: int | None = None) -> tuple[Tensor, Tensor]:
        assert fps is None, "the released network knows no frame rate"
        sizes = [n // p for n, p in zip(hidden_states.shape[2:], self.patch_size, strict=True)]
        dims = (self.dim_t, self.dim_h, self.dim_w)
        factors = (self.t_ntk_factor, self.h_ntk_factor, self.w_ntk_factor)
        device = hidden_states.device
        along = [torch.arange(n, device=device).float() for n in sizes]
        positions = torch.meshgrid(*along, indexing="ij")
        angles = []
        for position, dim, factor in zip(positions, dims, factors, strict=True):
            exponent = (torch.arange(0, dim, 2, device=device) / dim).bfloat16().float()
            frequency = 1.0 / (1e4 * factor) ** exponent
            angles.append(position.flatten().unsqueeze(1) * frequency)
        whole = torch.cat(angles * 2, dim=1)
        return whole.cos(), whole.sin()
