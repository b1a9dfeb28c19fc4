"""The diffusion transformer, behind the one interface that the denoiser knows.

Today the blocks are diffusers'. Five things differ from what NVIDIA's weights were trained with,
and are put right here: the epsilon of the query and key norms is 1e-6; no frame rate enters the
rotary position; every latent frame has its own timestep; the padding channel is made here, since
diffusers makes it with torchvision (not needed otherwise) and for batches of one only.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from torch import Tensor, nn

from cosmos_policy_ros.model.config import LATENT_CHANNELS, TransformerConfig

MASK_CHANNELS = 2  # condition mask and padding mask, behind the latent's own channels
QK_NORM_EPSILON = 1e-6


class Transformer(nn.Module):
    """Latent frames and their timesteps in, one prediction per latent number out."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.core = CosmosTransformer3DModel(
            in_channels=LATENT_CHANNELS + MASK_CHANNELS,
            out_channels=LATENT_CHANNELS,
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
            extra_pos_embed_type="learnable" if config.learned_position else None,
        )
        for block in self.core.transformer_blocks:
            for attention in (block.attn1, block.attn2):
                attention.norm_q.eps = QK_NORM_EPSILON
                attention.norm_k.eps = QK_NORM_EPSILON

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return cast(torch.dtype, self.core.dtype)

    def forward(self, latent: Tensor, timestep: Tensor, known: Tensor, text: Tensor) -> Tensor:
        """Predict.

        Args:
            latent: (B, 16, T, H, W): clean in known frames, scaled noisy latent in the others.
            timestep: (B, T), 0 in known frames.
            known: (B, T) bool, which frames are conditions.
            text: (B, L, D) prompt embedding.

        Returns:
            (B, 16, T, H, W) float32.
        """
        batch, _, frames, height, width = latent.shape
        condition = known[:, None, :, None, None].to(latent.dtype)
        condition = condition.expand(batch, 1, frames, height, width)
        padding = torch.zeros_like(condition)
        (prediction,) = self.core(
            hidden_states=torch.cat([latent, condition, padding], dim=1).to(self.dtype),
            timestep=timestep[:, None, :, None, None],
            encoder_hidden_states=text.to(self.dtype),
            return_dict=False,
        )
        return cast(Tensor, prediction.float())
