"""One question to the network: what is the clean latent behind this noisy one?

Holds the preconditioning (what the network is fed and what its output means) and the conditioning
(what a query knows already). Known frames are given clean and unscaled with timestep 0 and a mark
in the mask channel, and come back exactly as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cosmos_policy_ros.model.config import Preconditioning
from cosmos_policy_ros.model.transformer import Memory, Transformer
from cosmos_policy_ros.model.transformer_cache import CachedTransformer


@dataclass(frozen=True)
class Scales:
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


@dataclass(frozen=True)
class Denoiser:
    """The network bound to one query.

    Attributes:
        network: the transformer, cached or not.
        preconditioning: what its output means.
        clean: (B, 16, T, H, W) float32; only its known frames are ever read.
        known: (T,) bool, the mask of the mode.
        text: (B, L, D) prompt embedding, or what the network's ``read`` made of it.
    """

    network: Transformer | CachedTransformer
    preconditioning: Preconditioning
    clean: Tensor
    known: Tensor
    text: Tensor | Memory

    @cached_property
    def generated(self) -> tuple[int, ...]:
        """The frames that are not known."""
        return tuple(frame for frame, known in enumerate(self.known.tolist()) if not known)

    def __call__(self, noisy: Tensor, sigma: Tensor, wanted: Sequence[int] | None = None) -> Tensor:
        """Estimate the clean latent.

        Args:
            noisy: (B, 16, T, H, W) float32.
            sigma: (B,) float32 noise level of each sample.
            wanted: the generated frames that will be read, all by default. The last evaluation of
                a query can leave out futures that nobody looks at.

        Returns:
            (B, 16, T, H, W) float32; known frames equal ``clean``, unwanted ones are NaN.
        """
        factors = scales(self.preconditioning, sigma)
        known = self.known.view(1, 1, -1, 1, 1)
        batched = self.known.expand(noisy.shape[0], -1)
        prediction = self.network(
            torch.where(known, self.clean, _per_sample(factors.into) * noisy),
            torch.where(batched, 0.0, factors.timestep[:, None]),
            batched,
            self.text,
            self.generated if wanted is None else wanted,
        )
        estimate = _per_sample(factors.skip) * noisy + _per_sample(factors.out) * prediction
        return torch.where(known, self.clean, estimate)


def _per_sample(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1, 1)
