"""diffusers' Cosmos transformer made to compute what NVIDIA's does, as an oracle for ours."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from torch import Tensor

from cosmos_policy_ros.model.config import TransformerConfig
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.model.weight_names import diffusers_name

# The released 2B network of all Cosmos Policy checkpoints.
REAL = TransformerConfig(
    layers=28,
    heads=16,
    head_dim=128,
    mlp_ratio=4.0,
    adaln_rank=256,
    text_width=1024,
    patch=(1, 2, 2),
    max_size=(128, 240, 240),
    rope_scale=(1.0, 3.0, 3.0),
)


class Oracle:
    """diffusers' class with the epsilon of NVIDIA's query and key norms, and per-frame timesteps.

    The padding mask's channel of zeros is given as an input, because diffusers makes it with
    torchvision and for batches of one only.
    """

    def __init__(self, config: TransformerConfig) -> None:
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


def twin_of(network: Transformer) -> Oracle:
    """Give diffusers' class the network's weights, and the network diffusers' exact exponents."""
    oracle = Oracle(network.config)
    oracle.core.load_state_dict(diffusers_names(network), strict=True)
    spatial, temporal = network.pos_embedder.exponents(network.config.head_dim)
    for buffer, values in (
        (network.pos_embedder.dim_spatial_range, spatial),
        (network.pos_embedder.dim_temporal_range, temporal),
    ):
        buffer.copy_(torch.arange(len(values)) / len(values))
    return oracle
