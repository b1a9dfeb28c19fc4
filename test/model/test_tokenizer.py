"""Pins that leaving out images that are not needed changes no latent, and the latents' scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cosmos_policy_ros.model import tokenizer as module
from cosmos_policy_ros.model.config import VaeConfig
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.tokenizer import Tokenizer

MEAN = tuple(0.1 * i for i in range(16))
STD = tuple(1 + 0.5 * i for i in range(16))
SMALL = {
    "patched": VaeConfig(8, (1, 2, 4), 1, (True, True), 2, MEAN, STD),
    "like Wan": VaeConfig(8, (1, 2, 2, 2), 2, (False, True, True), 1, MEAN, STD),
    "time first": VaeConfig(8, (1, 1, 2, 2), 1, (True, True, False), 1, MEAN, STD),
}
BLACK = 5  # images before the first camera's, in every layout


@pytest.fixture(scope="module", params=SMALL)
def single(request: pytest.FixtureRequest) -> Tokenizer:
    return made(SMALL[request.param])


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def small(request: pytest.FixtureRequest, single: Tokenizer) -> Iterator[Tokenizer]:
    yield single.to(request.param)
    single.to(torch.float32)


def made(config: VaeConfig) -> Tokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Tokenizer(config).eval().requires_grad_(False)


def film(seed: int, images: int = 41) -> Tensor:
    """Return (1, 3, images, 16, 16) in [-1, 1] that starts black."""
    draw = torch.Generator().manual_seed(seed)
    video = torch.rand(1, 3, images, 16, 16, generator=draw) * 2 - 1
    video[:, :, :BLACK] = -1
    return video


def reference(tokenizer: Tokenizer, video: Tensor) -> Tensor:
    """Encode with diffusers' own loop, four images at a time."""
    raw = tokenizer.vae.encode(video.to(tokenizer.dtype)).latent_dist.mean
    mean, std = (torch.tensor(c, dtype=tokenizer.dtype).view(1, 16, 1, 1, 1) for c in (MEAN, STD))
    return ((raw - mean) * (1 / std)).float()


@pytest.mark.parametrize("window", [4, 16])
@torch.inference_mode()
def test_prefix_is_bit_equal_to_the_whole(
    small: Tokenizer, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the windows of a CPU and of other devices."""
    monkeypatch.setattr(module, "CPU_WINDOW", window)
    whole = small.encode(film(5))
    assert whole.shape == (1, 16, 11, 2, 2) and whole.dtype == torch.float32
    assert torch.equal(small.encode(film(5)[:, :, :17]), whole[:, :, :5])


@torch.inference_mode()
def test_windows_of_sixteen_agree_with_diffusers_windows_of_four(
    single: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for window in (4, 16):
        monkeypatch.setattr(module, "CPU_WINDOW", window)
        whole = single.encode(film(5))
        assert float(whole.std()) > 1e-3, "latents without content would agree with anything"
        torch.testing.assert_close(whole, reference(single, film(5)), atol=3e-6, rtol=0)


@torch.inference_mode()
def test_black_start_is_encoded_once_and_changes_nothing(
    small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit-equal with windows of four, whose cuts the start shares; else to the last bits."""
    small.forget()
    rounding = 3e-6 if small.dtype == torch.float32 else 0.02
    for window, tolerance in ((4, 0.0), (16, rounding)):
        monkeypatch.setattr(module, "CPU_WINDOW", window)
        for seed in (1, 2):
            video = film(seed, 17)
            found = small.encode_after_black(video[:, :, BLACK:], BLACK)
            torch.testing.assert_close(found, small.encode(video), atol=tolerance, rtol=0)
    torch.testing.assert_close(found, reference(small, video), atol=rounding, rtol=0)
    assert len(small._black) == 1


@torch.inference_mode()
def test_what_is_kept_of_a_black_start_is_not_written_to(small: Tokenizer) -> None:
    small.forget()
    first = small.encode_after_black(film(1, 17)[:, :, BLACK:], BLACK)
    ((_, memory),) = small._black.values()
    copies = [None if m is None else m.clone() for m in memory]
    small.encode_after_black(film(2, 17)[:, :, BLACK:], BLACK)
    assert torch.equal(small.encode_after_black(film(1, 17)[:, :, BLACK:], BLACK), first)
    for before, after in zip(copies, memory, strict=True):
        assert before is after or (before is not None and torch.equal(before, after))
    assert sum(m is not None for m in copies) > 5


def test_black_start_survives_a_change_of_format_size_and_batch() -> None:
    tokenizer = made(SMALL["patched"])
    video = film(1, 9)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        tokenizer.to(dtype)
        for batch in (video, video.repeat(2, 1, 1, 1, 1), video.repeat(1, 1, 1, 2, 1)):
            with torch.inference_mode():
                found = tokenizer.encode_after_black(batch[:, :, BLACK:], BLACK)
                expected = tokenizer.encode(batch)
            torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    with torch.no_grad():
        tokenizer.vae.encoder.conv_in.weight.mul_(2)
    tokenizer.forget()
    found = tokenizer.encode_after_black(video[:, :, BLACK:], BLACK)
    torch.testing.assert_close(found, tokenizer.encode(video), atol=3e-6, rtol=0)


@torch.inference_mode()
def test_decoding_is_causal_too(small: Tokenizer) -> None:
    latent = torch.randn(1, 16, 4, 2, 2, generator=torch.Generator().manual_seed(6))
    images = small.decode(latent)
    assert images.shape == (1, 3, 13, 16, 16) and images.dtype == torch.float32
    assert float(images.abs().max()) <= 1
    assert torch.equal(small.decode(latent[:, :, :2]), images[:, :, :5])
    expected = images[:, :, [5, 0, 5]]
    assert torch.equal(small.decode_first_images(latent, [2, 0, 2]), expected)


@torch.inference_mode()
def test_decoding_equals_diffusers(small: Tokenizer) -> None:
    latent = torch.randn(1, 16, 3, 2, 2, generator=torch.Generator().manual_seed(6)) * 3
    mean, std = (torch.tensor(c, dtype=small.dtype).view(1, 16, 1, 1, 1) for c in (MEAN, STD))
    expected = small.vae.decode(latent.to(small.dtype) / (1 / std) + mean).sample.float()
    tolerance = 1e-5 if small.dtype == torch.float32 else 0.02
    torch.testing.assert_close(small.decode(latent), expected, atol=tolerance, rtol=0)


@torch.inference_mode()
def test_the_decoder_is_given_what_the_released_one_is(small: Tokenizer) -> None:
    """The latents were multiplied by the deviation: in half precision up to 21 levels too far."""
    latent = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(6)) * 3
    given: list[Tensor] = []
    hook = small.vae.post_quant_conv.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    try:
        small.decode(latent)
    finally:
        hook.remove()
    mean, std = (torch.tensor(c, dtype=small.dtype).view(1, 16, 1, 1, 1) for c in (MEAN, STD))
    (found,) = given
    assert torch.equal(found, latent.to(small.dtype) / (1 / std) + mean)


@torch.inference_mode()
def test_frames_behind_the_last_wanted_one_are_not_decoded(
    single: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    decoder = single.vae.decoder
    single.vae.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        single.decode_first_images(torch.zeros(1, 16, 11, 2, 2), [1, 3])
    finally:
        decoder._forward_pre_hooks.clear()
    assert len(calls) == 4


@torch.inference_mode()
def test_latents_are_normalised_and_come_back(tiny: CosmosPolicy) -> None:
    tokenizer = tiny.checkpoint.tokenizer
    config = dataclasses.replace(tiny.checkpoint.config.vae, latent_mean=MEAN, latent_std=STD)
    scaled = Tokenizer(config).eval()
    scaled.load_state_dict(tokenizer.state_dict())
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(8))
    raw, found = tokenizer.encode(video), scaled.encode(video)
    mean, std = (torch.tensor(c).view(1, 16, 1, 1, 1) for c in (MEAN, STD))
    torch.testing.assert_close(found, (raw - mean) / std)
    torch.testing.assert_close(scaled.decode(found), tokenizer.decode(raw), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_norm_rounds_like_the_released_one() -> None:
    """All in bfloat16, whatever the version of diffusers does: x / |x| is rounded, then scaled."""
    norm = made(SMALL["patched"]).bfloat16().vae.decoder.norm_out
    x = torch.randn(1, 8, 2, 3, 3, generator=torch.Generator().manual_seed(1)).bfloat16() * 7
    length = x.float().square().sum(1, keepdim=True).sqrt().bfloat16()
    expected = (x / length) * 8**0.5 * norm.gamma
    assert torch.equal(norm(x), expected)


def test_norm_in_float32_equals_torchs_with_its_gradient() -> None:
    """Also where all channels are 0, and of a length that torch takes for 0."""
    norm = made(SMALL["patched"]).vae.decoder.norm_out
    x = torch.randn(2, 8, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    x[0, :, 0, 0, 0], x[0, :, 0, 1, 1] = 0, 1e-14
    x.requires_grad_()
    expected = torch.nn.functional.normalize(x, dim=1) * 8**0.5 * norm.gamma
    torch.testing.assert_close(norm(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), expected)
    sloped = torch.linspace(-1, 1, x.numel()).view_as(x)
    found, wanted = (torch.autograd.grad((y * sloped).sum(), x)[0] for y in (norm(x), expected))
    torch.testing.assert_close(found, wanted)


def test_broken_group_of_four_is_refused() -> None:
    with pytest.raises(ValueError, match="6 images are no whole number of latent frames"):
        made(SMALL["patched"]).encode(film(1, 7))
