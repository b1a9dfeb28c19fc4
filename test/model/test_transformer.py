"""Pins our wrapper to diffusers' own forward and to the tensors of the released 2B network."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.transformers import transformer_cosmos
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from torch import Tensor, nn

from cosmos_policy_ros.model.config import TransformerConfig
from cosmos_policy_ros.model.transformer import Transformer

SMALL = TransformerConfig(
    layers=2,
    heads=2,
    head_dim=24,
    mlp_ratio=2.0,
    adaln_rank=8,
    text_width=12,
    patch=(1, 2, 2),
    max_size=(8, 8, 8),
    rope_scale=(1.0, 3.0, 3.0),
    learned_position=False,
)
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
    learned_position=False,
)


def nearest(mask: Tensor, size: list[int], interpolation: str) -> Tensor:
    return nn.functional.interpolate(mask, size=size, mode=interpolation)


# What diffusers calls of torchvision, for the padding mask.
TORCHVISION = SimpleNamespace(
    functional=SimpleNamespace(resize=nearest), InterpolationMode=SimpleNamespace(NEAREST="nearest")
)


@pytest.fixture(scope="module")
def network() -> Transformer:
    torch.manual_seed(0)
    return Transformer(SMALL).eval().requires_grad_(False)


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    latent = torch.randn(batch, 16, 5, 4, 4, generator=draw)
    known = torch.tensor([[True, True, False, False, True]]).expand(batch, -1)
    timestep = torch.where(known, 0.0, torch.tensor([[0.9], [0.8]])[:batch])
    return latent, timestep, known, torch.randn(batch, 3, 12, generator=draw)


def diffusers_twin(network: Transformer) -> CosmosTransformer3DModel:
    """Make the network as the public converter does: the padding mask is diffusers' own."""
    twin = CosmosTransformer3DModel(
        in_channels=17,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=12,
        adaln_lora_dim=8,
        max_size=(8, 8, 8),
        patch_size=(1, 2, 2),
        rope_scale=(1.0, 3.0, 3.0),
        concat_padding_mask=True,
        extra_pos_embed_type=None,
    )
    twin.load_state_dict(network.core.state_dict(), strict=True)
    return twin.eval().requires_grad_(False)


def twin_forward(network: Transformer, epsilon: float) -> Tensor:
    twin = diffusers_twin(network)
    for block in twin.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q.eps = attention.norm_k.eps = epsilon
    latent, timestep, known, text = inputs(2)
    (prediction,) = twin(
        hidden_states=latent,
        timestep=timestep[:, None, :, None, None],
        encoder_hidden_states=text,
        condition_mask=known[:, None, :, None, None].float().expand(2, 1, 5, 4, 4),
        padding_mask=torch.zeros(1, 1, 32, 32),
        return_dict=False,
    )
    return prediction


def test_equals_diffusers_but_for_the_norm_epsilon(
    network: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer_cosmos, "transforms", TORCHVISION, raising=False)
    found = network(*inputs(2))
    assert torch.equal(found, twin_forward(network, epsilon=1e-6))
    assert not torch.equal(found, twin_forward(network, epsilon=1e-5))


def test_batch_members_do_not_meet(network: Transformer) -> None:
    latent, timestep, known, text = inputs(2)
    together = network(latent, timestep, known, text)
    for i in range(2):
        row = slice(i, i + 1)
        alone = network(latent[row], timestep[row], known[row], text[row])
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-5)


def test_one_text_serves_a_batch_of_candidates(network: Transformer) -> None:
    latent, timestep, known, text = inputs(2)
    one = network(latent, timestep, known, text[:1])
    same = network(latent, timestep, known, text[:1].expand(2, -1, -1))
    torch.testing.assert_close(one, same, rtol=0, atol=1e-5)


def test_every_input_matters(network: Transformer) -> None:
    latent, timestep, known, text = inputs(1)
    base = network(latent, timestep, known, text)
    later = timestep.clone()
    later[0, 2] = 0.5
    for changed in (
        network(latent + 1, timestep, known, text),
        network(latent, later, known, text),
        network(latent, timestep, ~known, text),
        network(latent, timestep, known, text + 1),
    ):
        assert (changed - base).abs().max() > 1e-3


def test_2b_network_has_the_released_tensors() -> None:
    """On the meta device: shapes without the 4 GB."""
    with torch.device("meta"):
        network = Transformer(REAL)
        prediction = network(
            torch.empty(1, 16, 11, 28, 28),
            torch.empty(1, 11),
            torch.empty(1, 11, dtype=torch.bool),
            torch.empty(1, 512, 1024),
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in network.core.state_dict().items()}
    assert prediction.shape == (1, 16, 11, 28, 28)
    assert sum(p.numel() for p in network.parameters()) == 1_956_413_440
    assert len(shapes) == 574 - 7, "all but three position buffers and four counters"
    assert shapes["patch_embed.proj.weight"] == (2048, 72)
    assert shapes["transformer_blocks.27.attn2.to_k.weight"] == (2048, 1024)
    assert shapes["transformer_blocks.0.norm1.linear_2.weight"] == (6144, 256)
    assert shapes["proj_out.weight"] == (64, 2048)
