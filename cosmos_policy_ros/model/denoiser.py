"""One question to the network: what is the clean latent behind this noisy one?

Holds the preconditioning (what the network is fed and what its output means) and the conditioning
(what a query knows already). Known frames are given clean and unscaled with timestep 0 and a mark
in the mask channel, and come back exactly as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_policy_ros.model.config import Preconditioning
from cosmos_policy_ros.model.transformer import Transformer


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
        network: the transformer.
        preconditioning: what its output means.
        clean: (B, 16, T, H, W) float32; only its known frames are ever read.
        known: (T,) bool, the mask of the mode.
        text: (B, L, D) prompt embedding.
    """

    network: Transformer
    preconditioning: Preconditioning
    clean: Tensor
    known: Tensor
    text: Tensor

    def __call__(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Estimate the clean latent.

        Args:
            noisy: (B, 16, T, H, W) float32.
            sigma: (B,) float32 noise level of each sample.

        Returns:
            (B, 16, T, H, W) float32; known frames equal ``clean``.
        """
        factors = scales(self.preconditioning, sigma)
        known = self.known.view(1, 1, -1, 1, 1)
        batched = self.known.expand(noisy.shape[0], -1)
        prediction = self.network(
            torch.where(known, self.clean, _per_sample(factors.into) * noisy),
            torch.where(batched, 0.0, factors.timestep[:, None]),
            batched,
            self.text,
        )
        estimate = _per_sample(factors.skip) * noisy + _per_sample(factors.out) * prediction
        return torch.where(known, self.clean, estimate)


def _per_sample(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1, 1)
