"""Muon, the moving average and who gets which: against their closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.config import OptimiserConfig
from cosmos_policy_ros.training.optimisers import Average, Muon, Optimisers, orthogonalise

from .conftest import TINY

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(8, 8), (24, 6), (6, 24)])
def test_orthogonalised_matrices_keep_their_directions_and_lose_their_sizes(
    shape: tuple[int, int],
) -> None:
    source = torch.Generator().manual_seed(0)
    matrices = torch.randn(5, *shape, generator=source) * torch.logspace(-3, 3, 5)[:, None, None]
    found = orthogonalise(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.linalg.svdvals(found).min() > 0.3
    assert torch.linalg.svdvals(found).max() < 1.3
    # In the directions of the matrix it is diagonal: nothing was turned.
    inner = u.mT @ found @ v.mT.to(found.dtype)
    off = inner - torch.diag_embed(torch.diagonal(inner, dim1=1, dim2=2))
    assert off.abs().max() < 1e-3


def test_it_is_torchs_muon_without_the_rounding_to_bfloat16() -> None:
    """Torch's own works in bfloat16, which is where the tolerance comes from."""
    source = torch.Generator().manual_seed(1)
    shapes = [(12, 12), (12, 12), (32, 8), (8, 32)]
    first = [torch.randn(s, generator=source) for s in shapes]
    ours = [nn.Parameter(p.clone()) for p in first]
    theirs = [nn.Parameter(p.clone()) for p in first]
    steps = (
        Muon(ours, lr=0.1, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, momentum=0.95),
    )
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=source)
            other.grad = mine.grad.clone()
        for step in steps:
            step.step()
    for mine, other, begun in zip(ours, theirs, first, strict=True):
        moved = (mine - begun).norm()
        assert (mine - other).norm() < 0.03 * moved


def test_only_matrices_are_taken() -> None:
    with pytest.raises(ValueError, match=r"has the shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


@pytest.fixture
def network() -> Transformer:
    return Transformer(load_config(CheckpointConfig, TINY / "config.yaml").transformer)


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest(network: Transformer) -> None:
    optimisers = Optimisers(network, OptimiserConfig(matrix_rate=0.02), CPU)
    for parameter in optimisers.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimisers.step(1e-4)
    moments = optimisers.moments()
    momentum = {n.removeprefix("momentum_buffer.") for n in moments if n.startswith("momentum")}
    adam = {n.removeprefix("exp_avg.") for n in moments if n.startswith("exp_avg.")}
    assert momentum | adam == set(optimisers.parameters)
    assert not momentum & adam
    assert "blocks.0.mlp.layer1.weight" in momentum
    assert {"final_layer.linear.weight", "blocks.0.self_attn.q_norm.weight"} <= adam
    assert all(p.grad is None for p in optimisers.parameters.values())


def test_both_rates_keep_their_proportion(network: Transformer) -> None:
    config = OptimiserConfig(learning_rate=1e-3, matrix_rate=0.02, weight_decay=0.0)
    optimisers = Optimisers(network, config, CPU)
    weight = network.blocks[0].self_attn.q_proj.weight
    before = weight.detach().clone()
    for parameter in optimisers.parameters.values():
        parameter.grad = torch.randn(parameter.shape)
    optimisers.step(5e-4)
    moved = (weight - before).detach()
    # A square orthogonal step of rate r has the norm r * sqrt(width), but for the iteration's play.
    assert moved.norm() == pytest.approx(0.01 * 192**0.5, rel=0.2)


def test_the_average_forgets_its_beginning_and_then_its_decay_counts(network: Transformer) -> None:
    parameters = dict(network.named_parameters())
    average = Average(parameters, 0.9)
    weight = network.final_layer.linear.weight
    expected = weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            weight.fill_(step)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(average.tensors["final_layer.linear.weight"], expected)
    with average.applied():
        torch.testing.assert_close(weight.detach(), expected)
    assert (weight == 199).all()
