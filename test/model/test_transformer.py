"""Pins our transformer to diffusers' on the same weights, and every shortcut to the long way."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.cosmos_oracle import REAL, twin_of
from torch import Tensor

from cosmos_policy_ros.model.config import TransformerConfig
from cosmos_policy_ros.model.transformer import CachedTransformer, Transformer, collapse_padding

SMALL = TransformerConfig(
    layers=2,
    heads=2,
    head_dim=24,
    mlp_ratio=2.0,
    adaln_rank=8,
    text_width=12,
    patch=(1, 2, 2),
    max_size=(16, 16, 16),
    rope_scale=(1.0, 3.0, 3.0),
)
WANTED = (2, 4)

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def random_network(config: TransformerConfig) -> Transformer:
    """Random norms too: ones would hide a norm that is forgotten."""
    torch.manual_seed(0)
    network = Transformer(config).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def network() -> Transformer:
    return random_network(SMALL)


def inputs(config: TransformerConfig, batch: int = 2, grid: tuple[int, ...] = (5, 4, 4)) -> Inputs:
    """Samples differ in noise level, mask and text."""
    draw = torch.Generator().manual_seed(3)
    latent = torch.randn(batch, 16, *grid, generator=draw)
    known = torch.rand(batch, grid[0], generator=draw) < 0.5
    sigmas = torch.rand(batch, 1, generator=draw)
    text = torch.randn(batch, 3, config.text_width, generator=draw)
    return latent, torch.where(known, 0.0, sigmas), known, text


@pytest.mark.parametrize(
    ("changes", "batch", "grid"),
    [
        ({}, 1, (5, 4, 4)),
        ({}, 3, (5, 4, 6)),
        ({"layers": 1, "heads": 3, "head_dim": 32, "mlp_ratio": 4.0}, 2, (3, 6, 4)),
        ({"layers": 4, "head_dim": 18, "adaln_rank": 3, "text_width": 7}, 2, (11, 2, 2)),
        ({"patch": (1, 4, 4), "rope_scale": (2.0, 1.0, 3.0)}, 2, (4, 8, 4)),
        ({"patch": (1, 1, 2), "head_dim": 44}, 2, (2, 3, 4)),
    ],
)
def test_equals_diffusers(
    changes: dict[str, object], batch: int, grid: tuple[int, int, int]
) -> None:
    network = random_network(dataclasses.replace(SMALL, **changes))  # type: ignore[arg-type]
    oracle = twin_of(network)
    sample = inputs(network.config, batch, grid)
    torch.testing.assert_close(network(*sample), oracle(*sample), rtol=0, atol=1e-5)


def test_equals_diffusers_at_the_released_width() -> None:
    network = random_network(dataclasses.replace(REAL, layers=1))
    oracle = twin_of(network)
    sample = inputs(network.config, 1, (4, 4, 4))
    found = network(*sample)
    assert found.std() > 0.1
    torch.testing.assert_close(found, oracle(*sample), rtol=0, atol=1e-5)


def test_released_exponents_are_rounded() -> None:
    """bfloat16 buffers were what NVIDIA's weights were trained with."""
    rounded = Transformer(dataclasses.replace(REAL, layers=1, heads=1)).pos_embedder
    assert rounded.dim_spatial_range.shape == (21,) and rounded.dim_temporal_range.shape == (22,)
    found = rounded.dim_spatial_range[[1, 7, 14, 15]].tolist()
    assert found == pytest.approx([0.04760742, 0.33398438, 0.66796875, 0.71484375], abs=1e-8)
    assert rounded.periods == pytest.approx([10_000, 31_694.02, 31_694.02], abs=0.01)
    exact = Transformer(dataclasses.replace(REAL, layers=1, heads=1)).pos_embedder
    exact.dim_spatial_range.copy_(torch.arange(21) / 21)
    exact.dim_temporal_range.copy_(torch.arange(22) / 22)
    cosines, sines = (rounded((11, 14, 14)) - exact((11, 14, 14))).abs().amax(dim=(1, 2, 3, 4))
    assert 0.005 < max(float(cosines), float(sines)) < 0.0094


def test_buffers_survive_half_precision() -> None:
    rotation = Transformer(SMALL).pos_embedder
    before = rotation((2, 3, 3))
    assert torch.equal(rotation.bfloat16()((2, 3, 3)), before)


def test_prepared_text_and_timesteps_change_nothing(network: Transformer) -> None:
    latent, timestep, known, text = inputs(SMALL)
    long_way = network(latent, timestep, known, text)
    prepared = (network.modulation(timestep), network.read(text))
    assert torch.equal(network(latent, prepared[0], known, prepared[1]), long_way)


def test_shared_text_and_timesteps_serve_a_batch(network: Transformer) -> None:
    latent, timestep, known, text = inputs(SMALL)
    one = network(latent, timestep[:1], known[:1], text[:1])
    same = network(
        *(x.expand(2, *x.shape[1:]) for x in (latent, timestep[:1], known[:1], text[:1]))
    )
    torch.testing.assert_close(one, same, rtol=0, atol=1e-6)
    shared = (network.modulation(timestep[:1]), network.read(text[:1]))
    torch.testing.assert_close(
        network(latent, shared[0], known[:1], shared[1]), one, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("given", [(0, 1, 2), (2, 3, 4)])
def test_frames_that_are_left_out_take_no_part(
    network: Transformer, given: tuple[int, ...]
) -> None:
    """A stretch of the sequence is a shorter sequence: only distances in time count."""
    latent, timestep, known, text = inputs(SMALL)
    frames = list(given)
    shorter = network(latent[:, :, frames], timestep[:, frames], known[:, frames], text)
    found = network(latent, timestep, known, text, given[1:], given=given)
    torch.testing.assert_close(found[:, :, frames[1:]], shorter[:, :, 1:])
    left_out = [frame for frame in range(5) if frame not in given[1:]]
    assert found[:, :, left_out].isnan().all()


def test_frames_on_either_side_of_what_is_left_out_keep_their_distance(
    network: Transformer,
) -> None:
    latent, timestep, known, text = inputs(SMALL)
    frames = [0, 3]
    closer = network(latent[:, :, frames], timestep[:, frames], known[:, frames], text)
    found = network(latent, timestep, known, text, frames, given=frames)
    assert (found[:, :, frames] - closer).abs().max() > 1e-4


@pytest.mark.parametrize("wanted", [(2, 4), (0,), (4, 1, 3), (0, 1, 2, 3, 4)])
def test_only_wanted_frames_come_out(network: Transformer, wanted: tuple[int, ...]) -> None:
    sample = inputs(SMALL)
    everything, some = network(*sample), network(*sample, wanted)
    for frame in range(5):
        if frame in wanted:
            difference = (some[:, :, frame] - everything[:, :, frame]).abs().max()
            assert difference < 1e-6
        else:
            assert some[:, :, frame].isnan().all(), "what was not computed must not be read"


def test_cached_equals_plain(network: Transformer) -> None:
    """Samples with their own noise levels in one batch, as in an ensemble."""
    latent, timestep, known, text = inputs(SMALL, batch=3)
    cached = CachedTransformer(network)
    for times in (timestep, timestep[:1].expand(3, -1), timestep.roll(1, 0)):
        found = cached(latent, cached.prepare(times), known, text, WANTED)
        expected = network(latent, times, known, text, WANTED)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, equal_nan=True)


def test_cache_computes_each_prompt_and_timestep_once(
    network: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent, timestep, known, text = inputs(SMALL)
    cached = CachedTransformer(network)
    memory = cached.read("fold shirt", lambda _: text[0])
    first = cached(latent, cached.prepare(timestep), known, memory)
    assert cached.read("put candy in bag", lambda _: text[1]).keys.ne(memory.keys).any()

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Transformer, "modulation", refuse)
    monkeypatch.setattr(Transformer, "read", refuse)
    assert cached.read("fold shirt", lambda _: text[0]) is memory
    assert torch.equal(cached(latent, cached.prepare(timestep), known, memory), first)


def test_cache_is_bounded(network: Transformer) -> None:
    latent, timestep, known, text = inputs(SMALL, batch=1)
    cached = CachedTransformer(network)
    for step in range(20):
        times = (torch.arange(timestep.numel()) / timestep.numel() + step).view_as(timestep)
        cached(latent, cached.prepare(times), known, text)
        cached.read(str(step), lambda _: text[0])
    assert cached._modulation.cache_info().currsize == 64 and len(cached._texts) == 16
    assert str(step) in cached._texts and "0" not in cached._texts


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str
)
def test_padding_collapses_exactly(dtype: torch.dtype, tolerance: float) -> None:
    network = random_network(SMALL).to(dtype)
    latent, timestep, known, _ = inputs(SMALL)
    latent = latent.to(dtype)
    text = torch.randn(2, 512, 12, generator=torch.Generator().manual_seed(4), dtype=dtype)
    text[0, 9:] = 0
    text[1, 20:] = 0
    text[1, 3] = 0  # a zero between tokens stays a token
    short, bias = collapse_padding(text)
    assert short.shape == (2, 32, 12) and bias is not None and bias.shape == (2, 1, 1, 32)
    long_way = network(latent, timestep, known, text)
    found = network(latent, timestep, known, network.read(short, bias))
    assert found.dtype == dtype
    torch.testing.assert_close(found, long_way, rtol=0, atol=tolerance)
    cut = network(latent, timestep, known, text[:, :32])
    assert (cut - long_way).abs().max() > 1e-2, "the padding must matter for this to be a test"


def test_collapsed_padding_keeps_its_weight_in_half_precision() -> None:
    """A single bias rounded to bfloat16 would weigh up to 1.6 per cent too little or too much."""
    for used in range(0, 400, 7):
        text = torch.zeros(1, 512, 4, dtype=torch.bfloat16)
        text[0, :used] = 1
        short, bias = collapse_padding(text)
        assert bias is not None and bias.dtype == torch.bfloat16
        assert short.shape[1] % 16 == 0 and short.shape[1] < used + 20
        assert not bias[..., :used].any()
        weight = bias[..., used:].double().exp().sum()
        assert float(weight) == pytest.approx(512 - used, rel=2e-6)


@pytest.mark.parametrize("used", [0, 12, 13, 28, 29, 32])
def test_little_padding_is_left_alone(used: int) -> None:
    text = torch.zeros(1, 32, 4)
    text[0, :used] = 1
    short, bias = collapse_padding(text)
    if used <= 12:
        assert short.shape[1] == 16 and bias is not None
        assert float(bias.exp().sum()) == pytest.approx(32)
    else:
        assert short is text and bias is None


def test_every_input_matters(network: Transformer) -> None:
    latent, timestep, known, text = inputs(SMALL, batch=1)
    base = network(latent, timestep, known, text)
    later = timestep.clone()
    later[0, 2] += 0.5
    marked = known.clone()
    marked[0, 2] ^= True
    for changed in (
        network(latent + 1, timestep, known, text),
        network(latent, later, known, text),
        network(latent, timestep, marked, text),
        network(latent, timestep, known, text + 1),
    ):
        assert (changed - base).abs().max() > 1e-3


def test_batch_members_do_not_meet(network: Transformer) -> None:
    sample = inputs(SMALL)
    together = network(*sample)
    for i in range(2):
        alone = network(*(x[i : i + 1] for x in sample))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)


def test_every_parameter_learns() -> None:
    """Also with activation checkpointing, as the trainer runs it."""
    network = random_network(SMALL).requires_grad_(True)
    sample = inputs(SMALL)
    network(*sample).square().mean().backward()
    plain = {name: p.grad for name, p in network.named_parameters()}
    for name, grad in plain.items():
        assert grad is not None and grad.abs().max() > 0, name
    assert not plain["x_embedder.proj.1.weight"][:, 68:].any(), "the padding mask is always zero"

    network.zero_grad()
    for block in network.blocks:
        wrap(block)
    network(*sample).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, plain[name]), name  # type: ignore[arg-type]


def wrap(block: torch.nn.Module) -> None:
    inner = block.forward
    block.forward = lambda *given: torch.utils.checkpoint.checkpoint(  # type: ignore[method-assign]
        inner, *given, use_reentrant=False
    )


def test_gradient_is_the_functions() -> None:
    network = random_network(dataclasses.replace(SMALL, layers=1, heads=1, head_dim=18)).double()
    latent, timestep, known, text = inputs(SMALL, 1, (2, 2, 2))
    latent = latent.double().requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda x: network(x, timestep, known, text)[:, :2], (latent,), fast_mode=True
    )


def test_half_precision_returns_the_latents_format(network: Transformer) -> None:
    half = random_network(SMALL).bfloat16()
    assert half.dtype == torch.bfloat16
    sample = inputs(SMALL)
    found = half(*sample)
    assert found.dtype == torch.float32
    error = (found - network(*sample)).pow(2).mean().sqrt()
    assert 0 < error < 0.02 * found.std()
