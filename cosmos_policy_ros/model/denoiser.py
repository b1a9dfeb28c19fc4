"""One question to the network: what is the clean latent behind this noisy one?

Holds the preconditioning (what the network is fed and what its output means) and the conditioning.
Known frames are given clean and unscaled with timestep 0 and a mark in the mask channel, and come
back unchanged. A frame that is known in part stays a noisy one for the network, which was trained
on nothing else; the known part of its estimate is put right after every evaluation, so that the
solver leads the noise there to what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cosmos_policy_ros.model.config import Preconditioning
from cosmos_policy_ros.model.transformer import CachedTransformer, TextKV, Transformer


class Scales(NamedTuple):
    """Factors at one noise level; the clean latent is skip * noisy + out * prediction."""

    into: Tensor
    skip: Tensor
    out: Tensor
    timestep: Tensor


def scales(preconditioning: Preconditioning, sigma: Tensor) -> Scales:
    """Return the factors for noise levels ``sigma`` (any shape, float32), latents of unit variance.

    "rectified_flow" is what the released checkpoints use: with t = sigma / (1 + sigma) the network
    predicts the velocity noise - clean. "x0" lets a narrow network, which cannot pass the noise
    through, predict the clean latent itself. The timestep is rounded to bfloat16, because the
    released weights never saw another one (0.8 becomes 0.80078125).
    """
    t = sigma / (1 + sigma)
    rounded = t.bfloat16().float()
    if preconditioning == "x0":
        return Scales(1 - t, torch.zeros_like(t), torch.ones_like(t), rounded)
    return Scales(1 - t, 1 - t, -t, rounded)


class Level(NamedTuple):
    """What an evaluation at given noise levels needs, where the network is."""

    factors: Tensor  # (3, B, 1, 1, 1, 1) float32: into, skip, out
    timestep: Any  # (B, T) float32, 0 in known frames; or what the network prepared of it
    known: Tensor  # (B, T) bool


def level(preconditioning: Preconditioning, sigma: Tensor, known: Tensor) -> Level:
    """Return what an evaluation at noise levels ``sigma`` (B,) float32 needs, on their device.

    Known frames, (B, T) bool there, are at timestep 0.
    """
    into, skip, out, timestep = scales(preconditioning, sigma)
    factors = torch.stack((into, skip, out)).view(3, -1, 1, 1, 1, 1)
    return Level(factors, torch.where(known, 0.0, timestep[:, None]), known)


def estimate_clean(
    network: Callable[..., Tensor], at: Level, noisy: Tensor, clean: Tensor, *rest: Any
) -> Tensor:
    """Ask the network once, as sampling and training both do.

    Args:
        network: called like ``Transformer.forward``.
        at: the noise levels and the known frames.
        noisy: (B, 16, T, H, W) float32.
        clean: (B, 16, T, H, W) float32; only its known frames are given to the network.
        rest: the network's further arguments: the text, the frames that are wanted and given.

    Returns:
        (B, 16, T, H, W) float32; known frames equal ``clean``.
    """
    into, skip, out = at.factors
    mask = at.known[:, None, :, None, None]
    prediction = network(torch.where(mask, clean, into * noisy), at.timestep, at.known, *rest)
    return torch.where(mask, clean, skip * noisy + out * prediction)


class InpaintMask(NamedTuple):
    """A generated frame of which a part is known, the same in every sample."""

    frame: int
    values: Tensor  # (16, H, W) float32
    weights: Tensor  # (16, H, W) float32; 1 holds a number exactly, 0 leaves it to the network


@dataclass(frozen=True)
class Denoiser:
    """The network bound to one query."""

    network: Transformer | CachedTransformer
    preconditioning: Preconditioning
    clean: Tensor  # (B, 16, T, H, W) float32; only its known frames are ever read
    known: tuple[bool, ...]  # per frame, the mask of the mode
    text: Tensor | TextKV  # (B, L, D) prompt embedding, or what the network's ``read`` made of it
    held: InpaintMask | None = None
    given: tuple[int, ...] | None = None  # frames that the network sees; None for all
    # By noise levels. A sampler comes back to the same ones, and copies nothing to the device then.
    levels: dict[tuple[float, ...], Level] = field(default_factory=dict)

    @cached_property
    def generated(self) -> tuple[int, ...]:
        """The frames that are not known, of those that the network sees."""
        given = range(len(self.known)) if self.given is None else self.given
        return tuple(frame for frame in given if not self.known[frame])

    def __call__(
        self,
        noisy: Tensor,
        sigma: Tensor,
        samples: Sequence[int],
        wanted: Sequence[int] | None = None,
    ) -> Tensor:
        """Estimate the clean latent.

        Args:
            noisy: (B', 16, T, H, W) float32.
            sigma: (B',) float32 noise level of each sample. On the CPU, whatever the device:
                reading back would wait for it.
            samples: which of the query's B samples these are.
            wanted: the generated frames that will be read, all by default. The last evaluation of
                a query can leave out futures that are not shown.

        Returns:
            (B', 16, T, H, W) float32; known frames equal ``clean``, unwanted ones are NaN.
        """
        frames = self.generated if wanted is None else wanted
        clean = self.clean
        if len(clean) != len(samples):
            clean = torch.stack([clean[i] for i in samples])
        level = self._level(sigma)
        estimate = estimate_clean(self.network, level, noisy, clean, self.text, frames, self.given)
        if self.held is not None:
            frame, values, weights = self.held
            estimate[:, :, frame] = torch.lerp(estimate[:, :, frame], values, weights)
        return estimate

    def _level(self, sigma: Tensor) -> Level:
        key = tuple(sigma.tolist())
        if key not in self.levels:
            known = torch.tensor(self.known).expand(len(sigma), -1)
            factors, timestep, known = level(self.preconditioning, sigma, known)
            device = self.clean.device
            prepared = self.network.prepare(timestep)
            self.levels[key] = Level(factors.to(device), prepared, known.to(device))
        return self.levels[key]
