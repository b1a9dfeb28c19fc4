"""What the network learns: the clean latent behind a noisy one, in the frames of a sample's role.

One network learns three things at once, and only masks tell them apart (Cosmos Policy paper, joint
training): the policy from demonstrations, the world model and the value function from rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from cosmos_policy_ros.model.checkpoint import Checkpoint
from cosmos_policy_ros.model.config import Numerics, Preconditioning
from cosmos_policy_ros.model.denoiser import estimate_clean, level
from cosmos_policy_ros.model.layout import FUTURE, Layout, Mode, ValueMode
from cosmos_policy_ros.training.batch import Batch
from cosmos_policy_ros.training.config import NoiseConfig, ObjectiveConfig, Role
from cosmos_policy_ros.training.targets import TargetMaker

# Maps (latent, timestep, known, text) to the prediction, like ``Transformer.forward``.
Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ROLES: tuple[Role, ...] = get_args(Role)


class JointLoss:
    """Turns micro-batches into losses."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        objective: ObjectiveConfig,
        targets: TargetMaker,
        device: torch.device,
    ) -> None:
        """Lay out every role's masks."""
        self._checkpoint, self._objective = checkpoint, objective
        self._targets, self._device = targets, device
        layout, value = checkpoint.layout, objective.value
        self._known = {role: layout.mask(mode_of(role, value)) for role in ROLES}
        self._weights = {}
        for role in ROLES:
            counted = counted_frames(layout, role, value, auxiliary=objective.auxiliary)
            pairs = zip(layout.frames, counted, strict=True)
            self._weights[role] = [objective.weights.of(frame) * counts for frame, counts in pairs]

    def loss(self, network: Network, batch: Batch, meter: LossMeter, fraction: float) -> Tensor:
        """Return the loss of a micro-batch, times its ``fraction`` of the step's samples."""
        clean = self._targets(batch)
        known = torch.tensor([self._known[role] for role in batch.roles], device=self._device)
        weights = torch.tensor([self._weights[role] for role in batch.roles], device=self._device)
        sigma, noise = self.draw_noise(batch, tuple(clean.shape[1:]))
        losses, l1 = frame_errors(
            network,
            self._checkpoint.config.preconditioning,
            clean,
            known,
            self.prompt_embeddings(batch),
            sigma,
            noise,
        )
        loss = fraction * total_loss(losses, weights, self._objective.loss_scale)
        meter.add(batch.roles, ~known, losses, l1, loss)
        return loss

    def draw_noise(self, batch: Batch, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Draw noise levels (B,) and noise (B, *shape), each sample's from its own seed."""
        objective, frames = self._objective, shape[1]
        sigmas, noises = [], []
        for window in batch.windows:
            source = torch.Generator().manual_seed(window.seed)
            sigmas.append(draw_sigmas(1, frames, objective.noise, objective.numerics, source))
            noises.append(torch.randn(shape, generator=source))
        return torch.cat(sigmas).to(self._device), torch.stack(noises).to(self._device)

    def prompt_embeddings(self, batch: Batch) -> Tensor:
        """Return (B, L, D)."""
        text = self._checkpoint.text
        return torch.stack([text.embedding(prompt) for prompt in batch.prompts]).to(self._device)


def draw_sigmas(
    count: int, frames: int, config: NoiseConfig, numerics: Numerics, generator: torch.Generator
) -> Tensor:
    """Draw one noise level per sample (count,), shared by all its frames.

    "released": times the square root of the number of latent frames, which the paper does not
    mention; the uniform part then reaches 282 for eleven frames.
    """
    if config.lowest:
        # A normal distribution without what means a level below the lowest.
        least = torch.tensor((math.log(config.lowest) - config.log_mean) / config.log_std)
        below = torch.special.ndtr(least)
        quantile = below + (1 - below) * torch.rand(count, generator=generator)
        normal = torch.special.ndtri(quantile).clamp(min=least)
    else:
        normal = torch.randn(count, generator=generator)
    width = config.uniform_high - config.uniform_low
    uniform = torch.rand(count, generator=generator) * width + config.uniform_low
    from_uniform = torch.rand(count, generator=generator) < config.uniform_fraction
    log_normal = (normal * config.log_std + config.log_mean).exp()
    sigma = torch.where(from_uniform, uniform, log_normal)
    return sigma * math.sqrt(frames) if numerics == "released" else sigma


def mode_of(role: Role, value: ValueMode) -> Mode:
    """Return the mode of a role's mask; value samples are conditioned as ``value`` says."""
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


def frame_errors(
    network: Network,
    preconditioning: Preconditioning,
    clean: Tensor,
    known: Tensor,
    text: Tensor,
    sigma: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
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

    Returns:
        (B, T) squared errors, weighted to be those of the velocity, and (B, T) absolute errors
        without gradient, which the paper reports. Both are exactly 0 in known frames.
    """
    noisy = clean + sigma.view(-1, 1, 1, 1, 1) * noise
    at = level(preconditioning, sigma, known)
    estimate = estimate_clean(network, at, noisy, clean, text)
    weight = ((1 + sigma) / sigma) ** 2
    error = estimate - clean
    squared = error.square().mean(dim=(1, 3, 4))
    return weight[:, None] * squared, error.detach().abs().mean(dim=(1, 3, 4))


def total_loss(losses: Tensor, weights: Tensor, scale: float = 10.0) -> Tensor:
    """Return the loss of a batch: ``scale`` times the mean over *all* frames of what counts.

    Args:
        losses: (B, T).
        weights: (B, T); 0 where a frame does not count.
        scale: NVIDIA's; it moves nothing but the gradient's clipping.
    """
    return scale * torch.where(weights > 0, weights * losses, 0.0).mean()


class LossMeter:
    """Sums over samples, which processes can add up.

    Attributes:
        errors: (2, R, T) float64: per role and frame the sum of absolute errors, and the count of
            samples.
        losses: (T,) float64: per frame, of all samples that generate it, whether it counts or not.
        loss: (1,) float64.
    """

    def __init__(self, frames: tuple[str, ...], device: torch.device) -> None:
        self._frames = frames
        self.errors = torch.zeros(2, len(ROLES), len(frames), dtype=torch.float64, device=device)
        self.losses = torch.zeros(len(frames), dtype=torch.float64, device=device)
        self.loss = torch.zeros(1, dtype=torch.float64, device=device)

    def add(
        self, roles: tuple[Role, ...], generated: Tensor, losses: Tensor, l1: Tensor, loss: Tensor
    ) -> None:
        """Add a micro-batch: (B, T) generated frames, losses, absolute errors; its loss."""
        for index, role in enumerate(roles):
            row = ROLES.index(role)
            self.errors[0, row] += torch.where(generated[index], l1[index], 0.0)
            self.errors[1, row] += generated[index]
        self.losses += losses.detach().sum(dim=0)
        self.loss += loss.detach()

    def losses_by_kind(self) -> dict[str, float]:
        """Return the losses summed by the kind of frame: images, or action, proprio and value."""
        sums: dict[str, float] = {}
        for frame, loss in zip(self._frames, self.losses.tolist(), strict=True):
            name = frame.removeprefix(FUTURE)
            kind = name if name in ("action", "proprio", "value") else "images"
            sums[kind] = sums.get(kind, 0.0) + loss
        return sums

    def l1(self) -> dict[str, dict[str, float]]:
        """Return the mean absolute error per role and frame that the role generates."""
        sums, counts = self.errors.cpu()
        return {
            role: {
                frame: float(sums[row, column] / counts[row, column])
                for column, frame in enumerate(self._frames)
                if counts[row, column]
            }
            for row, role in enumerate(ROLES)
            if counts[row].any()
        }
