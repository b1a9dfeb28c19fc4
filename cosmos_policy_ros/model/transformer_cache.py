"""The transformer for inference: what does not change between evaluations is computed once.

- A prompt's keys and values are the same in every evaluation and query.
- Where a token stands, and so how it is rotated, depends on the size of the latent only.
- A timestep's modulation depends on nothing but the weights, and a sampler visits few timesteps.
- The zeros that pad a prompt to its 512 positions all have the same key and value, zero, because
  nothing has a bias. A few of them with a bias on their logits weigh as much as all.

None of it changes the mathematics.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from cosmos_policy_ros.model.transformer import Memory, Modulation, Transformer

K = TypeVar("K")
V = TypeVar("V")

KEY_MULTIPLE = 16  # kept text positions: one shape for most prompts, and aligned for GPU kernels
KEPT_PADS = 4  # at least; as many leave an error of 1e-6 of their weight in bfloat16
ROUNDING_MARGIN = 0.97  # more than a bfloat16 logit below 8 can be rounded by

PROMPTS_KEPT = 16  # 7 MB each for the 2B network
SIZES_KEPT = 4  # of latents; a checkpoint has one
TIMESTEPS_KEPT = 64  # 1 MB each for the 2B network; the released samplers visit 21


class CachedTransformer:
    """A transformer whose weights do not change any more, called like the transformer itself.

    Not re-entrant. Text comes from :meth:`read`.
    """

    def __init__(self, network: Transformer, forward: Callable[..., Tensor] | None = None) -> None:
        """Bind the network; ``forward`` is another way of doing the same forward pass."""
        self.network = network
        self._forward = forward or network
        self._memories: OrderedDict[str, Memory] = OrderedDict()
        self._modulations: OrderedDict[float, Modulation] = OrderedDict()
        self._rotations: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    @torch.no_grad()
    def read(self, prompt: str, embed: Callable[[str], Tensor]) -> Memory:
        """Return a prompt's keys and values; ``embed`` makes its (L, D) embedding when new."""

        def make() -> Memory:
            embedding = embed(prompt).to(self.network.device)
            return self.network.read(*collapse_padding(embedding.unsqueeze(0)))

        return _recall(self._memories, prompt, make, PROMPTS_KEPT)

    @torch.no_grad()
    def __call__(
        self,
        latent: Tensor,
        timestep: Tensor,
        known: Tensor,
        text: Tensor | Memory,
        wanted: Sequence[int] | None = None,
    ) -> Tensor:
        """Predict like :meth:`Transformer.forward`.

        Samples may differ in their timesteps. Give ``timestep`` on the CPU: it is read here, and
        from another device that would wait until all that was asked of it before is done.
        """
        rows = timestep.tolist()
        if all(row == rows[0] for row in rows):
            rows = rows[:1]
        modulations = [[self._modulation(t, latent.device) for t in row] for row in rows]
        when = Modulation(
            torch.cat([torch.cat([m.blocks for m in row], dim=1) for row in modulations]),
            torch.cat([torch.cat([m.final for m in row], dim=1) for row in modulations]),
        )
        prediction: Tensor = self._forward(
            latent, when, known.to(latent.device), text, wanted, self._rotation(latent)
        )
        return prediction

    def _rotation(self, latent: Tensor) -> Tensor:
        size = tuple(latent.shape[2:])
        return _recall(self._rotations, size, lambda: self.network.rotate(latent), SIZES_KEPT)

    def _modulation(self, timestep: float, device: torch.device) -> Modulation:
        """Return one timestep's modulation; computed alone, so that it never depends on others."""
        return _recall(
            self._modulations,
            timestep,
            lambda: self.network.modulation(torch.tensor([[timestep]], device=device)),
            TIMESTEPS_KEPT,
        )


def collapse_padding(text: Tensor) -> tuple[Tensor, Tensor | None]:
    """Drop most of the zeros behind each prompt.

    Args:
        text: (B, L, D) prompt embeddings, padded with zeros.

    Returns:
        (B, n, D) embeddings and (B, 1, 1, n) biases of their logits, with which attention gives
        the same; or the text itself and None, where there is too little to drop.
    """
    tokens = text.shape[1]
    positions = torch.arange(1, tokens + 1, device=text.device)
    used = (text.any(dim=2) * positions).amax(dim=1).tolist()  # per sample, the last token's place
    kept = math.ceil((max(used) + KEPT_PADS) / KEY_MULTIPLE) * KEY_MULTIPLE
    if kept >= tokens:
        return text, None
    biases = [[0.0] * count + _shares(tokens - count, kept - count, text.dtype) for count in used]
    bias = torch.tensor(biases, dtype=text.dtype, device=text.device)
    return text[:, :kept], bias[:, None, None, :]


def _shares(pads: int, kept: int, dtype: torch.dtype) -> list[float]:
    """Return the biases with which ``kept`` zero keys weigh as much as ``pads`` without.

    One key with bias ln(pads) would do, were it not for its rounding: in bfloat16 it costs one per
    cent. So each takes a little less than what is left, and the last one all of that.
    """
    biases = []
    left = float(pads)
    for margin in [ROUNDING_MARGIN] * (kept - 1) + [1.0]:
        logit = math.log(left * margin) if left > 0 else -math.inf
        biases.append(torch.tensor(logit, dtype=dtype).item())
        left -= math.exp(biases[-1])
    return biases


def _recall(kept: OrderedDict[K, V], key: K, make: Callable[[], V], limit: int) -> V:
    """Return what is kept under ``key``, made when new; the longest unused gives way."""
    if key not in kept:
        kept[key] = make()
        if len(kept) > limit:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
