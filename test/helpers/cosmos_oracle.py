"""The released network's sizes, and ours and diffusers' with the same weights."""

from __future__ import annotations

import torch

from cosmos_policy_ros.model.config import TransformerConfig
from cosmos_policy_ros.model.straightforward import DiffusersTransformer, diffusers_names
from cosmos_policy_ros.model.transformer import Transformer

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


def twin_of(network: Transformer) -> DiffusersTransformer:
    """Give diffusers' class the network's weights, and the network diffusers' exact exponents."""
    oracle = DiffusersTransformer(network.config)
    oracle.core.load_state_dict(diffusers_names(network), strict=True)
    spatial, temporal = network.pos_embedder.exponents(network.config.head_dim)
    for buffer, values in (
        (network.pos_embedder.dim_spatial_range, spatial),
        (network.pos_embedder.dim_temporal_range, temporal),
    ):
        buffer.copy_(torch.arange(len(values)) / len(values))
    return oracle
