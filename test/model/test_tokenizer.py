"""Pins that encoding only the known frames changes nothing, and the scale of the latents."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from cosmos_policy_ros.model.config import VaeConfig
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.tokenizer import Tokenizer

MEAN = tuple(0.1 * i for i in range(16))
STD = tuple(1 + 0.5 * i for i in range(16))


@pytest.fixture(scope="module")
def tokenizer(tiny: CosmosPolicy) -> Tokenizer:
    return tiny.checkpoint.tokenizer


@pytest.fixture(scope="module")
def video() -> Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.rand(1, 3, 41, 16, 16, generator=draw) * 2 - 1


@torch.inference_mode()
def test_prefix_is_bit_equal_to_the_whole(tokenizer: Tokenizer, video: Tensor) -> None:
    whole = tokenizer.encode(video)
    assert whole.shape == (1, 16, 11, 2, 2) and whole.dtype == torch.float32
    assert torch.equal(tokenizer.encode(video[:, :, :17]), whole[:, :, :5])


@torch.inference_mode()
def test_decoding_is_causal_too(tokenizer: Tokenizer) -> None:
    latent = torch.randn(1, 16, 4, 2, 2, generator=torch.Generator().manual_seed(6))
    pictures = tokenizer.decode(latent)
    assert pictures.shape == (1, 3, 13, 16, 16)
    assert float(pictures.abs().max()) <= 1
    assert torch.equal(tokenizer.decode(latent[:, :, :2]), pictures[:, :, :5])


@torch.inference_mode()
def test_latents_are_normalised_and_come_back(tokenizer: Tokenizer, tiny: CosmosPolicy) -> None:
    config = dataclasses.replace(tiny.checkpoint.config.vae, latent_mean=MEAN, latent_std=STD)
    scaled = Tokenizer(config).eval()
    scaled.load_state_dict(tokenizer.state_dict())
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(8))
    raw, found = tokenizer.encode(video), scaled.encode(video)
    mean, std = (torch.tensor(c).view(1, 16, 1, 1, 1) for c in (MEAN, STD))
    torch.testing.assert_close(found, (raw - mean) / std)
    torch.testing.assert_close(scaled.decode(found), tokenizer.decode(raw), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_half_precision_runs_and_returns_float32(tokenizer: Tokenizer, tiny: CosmosPolicy) -> None:
    half = Tokenizer(tiny.checkpoint.config.vae)
    half.load_state_dict(tokenizer.state_dict())
    half = half.bfloat16().eval()
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(8))
    found = half.encode(video)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, tokenizer.encode(video), atol=0.05, rtol=0.1)


def test_wan_autoencoder_has_the_released_tensors() -> None:
    """On the meta device: shapes without the half GB."""
    wan = VaeConfig(96, (1, 2, 4, 4), 2, (False, True, True), 1, (0.0,) * 16, (1.0,) * 16)
    with torch.device("meta"):
        network = Tokenizer(wan)
    assert sum(p.numel() for p in network.parameters()) == 126_892_531
    assert len(network.vae.state_dict()) == 194
