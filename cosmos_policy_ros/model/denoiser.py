"""One question to the network: what is the clean latent behind this noisy one?

Holds the preconditioning (what the network is fed and what its output means) and the conditioning.
Known frames are given clean and unscaled with timestep 0 and a mark in the mask channel, and come
back unchanged. A frame that is known in part stays a noisy one for the network, which was trained
on nothing else; the known part of its estimate is put right after every evaluation, so that the
solver leads the noise there to what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def estimate_clean(
    network: Callable[..., Tensor],
    preconditioning: Preconditioning,
    noisy: Tensor,
    sigma: Tensor,
    clean: Tensor,
    known: Tensor,
    *rest: Any,
) -> Tensor:
    """Ask the network once, as sampling and training both do.

    Args:
        network: called like ``Transformer.forward``.
        preconditioning: of its output.
        noisy: (B, 16, T, H, W) float32.
        sigma: (B,) float32 noise levels.
        clean: (B, 16, T, H, W) float32; only its known frames are given to the network.
        known: (B, T) bool.
        rest: the network's further arguments: the text, and the frames that are wanted.

    Returns:
        (B, 16, T, H, W) float32; known frames equal ``clean``.
    """
    *factors, timestep = scales(preconditioning, sigma)
    into, skip, out = (factor.to(noisy.device).view(-1, 1, 1, 1, 1) for factor in factors)
    mask = known.to(noisy.device)[:, None, :, None, None]
    prediction = network(
        torch.where(mask, clean, into * noisy),
        torch.where(known, 0.0, timestep[:, None]),
        known,
        *rest,
    )
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

    @cached_property
    def generated(self) -> tuple[int, ...]:
        """The frames that are not known."""
        return tuple(frame for frame, known in enumerate(self.known) if not known)

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
            sigma: (B',) float32 noise level of each sample. On the CPU, like everything that the
                network's cache looks up, whatever the device: reading back would wait for it.
            samples: which of the query's B samples these are.
            wanted: the generated frames that will be read, all by default. The last evaluation of
                a query can leave out futures that are not shown.

        Returns:
            (B', 16, T, H, W) float32; known frames equal ``clean``, unwanted ones are NaN.
        """
        known = torch.tensor(self.known).expand(len(samples), -1)
        frames = self.generated if wanted is None else wanted
        clean = self.clean
        if len(clean) != len(samples):
            clean = torch.stack([clean[i] for i in samples])
        estimate = estimate_clean(
            self.network, self.preconditioning, noisy, sigma, clean, known, self.text, frames
        )
        if self.held is not None:
            frame, values, weights = self.held
            estimate[:, :, frame] = torch.lerp(estimate[:, :, frame], values, weights)
        return estimate
