"""What the network learns from a sample: the clean latent behind a noisy one, where its role says.

One network learns three things at once, and only the mask tells them apart (Cosmos Policy paper,
joint training): the policy from demonstrations, the world model and the value function from
rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cosmos_policy_ros.model.config import Numerics, Preconditioning
from cosmos_policy_ros.model.denoiser import estimate_clean
from cosmos_policy_ros.model.layout import Layout, Mode, ValueMode

Role = Literal["policy", "world_model", "value"]
# Maps (latent, timestep, known, text) to the prediction, like ``Transformer.forward``.
Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NoiseConfig:
    """How noise levels are drawn: log-normal, and now and then uniform over the high ones.

    Attributes:
        log_mean, log_std: of ln sigma.
        uniform_share: of the samples that draw from the uniform part.
        uniform_low, uniform_high: its bounds.
        lowest: none is drawn below, before what ``numerics`` makes of it. 0 is as in the paper;
            levels that no query ever visits are a waste of a small network's training.
    """

    log_mean: float = math.log(4.0)
    log_std: float = 1.2
    uniform_share: float = 0.3
    uniform_low: float = 1.0
    uniform_high: float = 85.0
    lowest: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= self.uniform_low:
            raise ValueError(
                f"lowest: {self.lowest} must be from 0 to uniform_low, {self.uniform_low}"
            )
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share: {self.uniform_share} lies outside 0 ... 1")
        if not 0 < self.uniform_low < self.uniform_high:
            raise ValueError(
                f"uniform_low: {self.uniform_low} must be above 0 and below uniform_high, "
                f"{self.uniform_high}"
            )
        if not self.log_std > 0:
            raise ValueError(f"log_std: {self.log_std} must be above 0")


def draw_sigmas(
    count: int, frames: int, config: NoiseConfig, numerics: Numerics, generator: torch.Generator
) -> Tensor:
    """Draw one noise level per sample, shared by all its frames.

    "released": times the square root of the number of latent frames, which the paper does not
    mention; the uniform part then reaches 282 for eleven frames.

    Returns:
        (count,) float32.
    """
    normal = _normal(count, config, generator) * config.log_std + config.log_mean
    width = config.uniform_high - config.uniform_low
    uniform = torch.rand(count, generator=generator) * width + config.uniform_low
    picks = torch.rand(count, generator=generator) < config.uniform_share
    sigma = torch.where(picks, uniform, normal.exp())
    return sigma * math.sqrt(frames) if numerics == "released" else sigma


def _normal(count: int, config: NoiseConfig, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers, none that means a level below the lowest."""
    if not config.lowest:
        return torch.randn(count, generator=generator)
    least = torch.tensor((math.log(config.lowest) - config.log_mean) / config.log_std)
    below = torch.special.ndtr(least)
    share = torch.rand(count, generator=generator)
    drawn: Tensor = torch.special.ndtri(below + (1 - below) * share)
    return drawn.clamp(min=least)


def mode_of(role: Role, value: ValueMode) -> Mode:
    """Return the mask's mode of a role; value samples are conditioned as ``value`` says."""
    return value if role == "value" else role


def counted_frames(
    layout: Layout, role: Role, value: ValueMode, *, auxiliary: bool
) -> tuple[bool, ...]:
    """Return, per frame, whether a sample's loss counts there.

    With ``auxiliary`` targets everything generated counts, as in the paper and as released: a
    policy sample also teaches future and value, a world model sample also teaches the value. Value
    samples count the value alone, even where others are generated along. Without (the paper's
    ablation) each role counts its own target only.
    """
    own: dict[Role, tuple[str, ...]] = {
        "policy": ("action",),
        "world_model": layout.future,
        "value": ("value",),
    }
    if role == "value" or not auxiliary:
        return tuple(name in own[role] for name in layout.frames)
    return tuple(not known for known in layout.mask(mode_of(role, value)))


class FrameErrors(NamedTuple):
    """How far off the estimate is, per sample and frame; exactly 0 in known frames.

    Attributes:
        losses: (B, T) squared error, weighted to be that of the velocity.
        l1: (B, T) absolute error, by which the paper tells how far a training came. No gradient.
    """

    losses: Tensor
    l1: Tensor


def frame_errors(
    network: Network,
    preconditioning: Preconditioning,
    clean: Tensor,
    known: Tensor,
    text: Tensor,
    sigma: Tensor,
    noise: Tensor,
) -> FrameErrors:
    """Ask the network for the clean latent behind a noisy one and compare.

    Frames that are neither known nor counted are noised like the others; nothing is dropped.

    Args:
        network: the transformer.
        preconditioning: what its output means.
        clean: (B, 16, T, H, W) float32 targets, vectors injected.
        known: (B, T) bool, the masks of the samples' roles.
        text: (B, L, D) prompt embeddings.
        sigma: (B,) float32.
        noise: (B, 16, T, H, W) standard normal.
    """
    noisy = clean + sigma.view(-1, 1, 1, 1, 1) * noise
    estimate = estimate_clean(network, preconditioning, noisy, sigma, clean, known, text)
    weight = ((1 + sigma) / sigma) ** 2
    off = estimate - clean
    squared = off.square().mean(dim=(1, 3, 4))
    return FrameErrors(weight[:, None] * squared, off.detach().abs().mean(dim=(1, 3, 4)))


def total_loss(losses: Tensor, weights: Tensor, scale: float = 10.0) -> Tensor:
    """Return the loss of a batch: ``scale`` times the mean over *all* frames of what counts.

    Args:
        losses: (B, T).
        weights: (B, T); 0 where a frame does not count.
        scale: NVIDIA's; it moves nothing but the gradient's clipping.
    """
    return scale * torch.where(weights > 0, weights * losses, 0.0).mean()
