"""A batch as clean latents, with everything that the network is to learn filled in."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_policy_ros.model.checkpoint import Checkpoint
from cosmos_policy_ros.model.injection import inject, inject_value
from cosmos_policy_ros.model.layout import FUTURE
from cosmos_policy_ros.model.sequence import encode_known
from cosmos_policy_ros.training.samples import GIGABYTE, Batch


class TargetMaker:
    """Encodes pictures and writes vectors over their frames, as the policy does when it is asked.

    Unlike a query, training encodes the whole sequence, with the pictures of s' in their places:
    the autoencoder is causal, so each latent depends on all the pictures before it.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, cache_gb: float = 0.0) -> None:
        """Bind the autoencoder; ``cache_gb`` of encoded windows are kept in memory."""
        self._checkpoint, self._device = checkpoint, device
        self._kept: dict[tuple[int, int], Tensor] = {}
        channels, height, width = checkpoint.config.frame_shape
        bytes_each = 4 * channels * checkpoint.layout.count * height * width
        self._most_kept = int(cache_gb * GIGABYTE / bytes_each)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return (B, 16, T, h, w) float32."""
        clean = torch.cat([self._encoded(batch, index) for index in range(len(batch.picks))])
        layout, shape = self._checkpoint.layout, self._checkpoint.config.frame_shape
        for name, vector in (
            ("proprio", batch.proprio),
            ("action", batch.actions),
            (f"{FUTURE}proprio", batch.future_proprio),
        ):
            clean[:, :, layout.index(name)] = inject(self._rounded(vector), shape)
        clean[:, :, layout.index("value")] = inject_value(self._rounded(batch.value), shape)
        return clean

    def _encoded(self, batch: Batch, index: int) -> Tensor:
        pick = batch.picks[index]
        key = (pick.source, pick.start)
        if key in self._kept:
            return self._kept[key].to(self._device)
        layout = self._checkpoint.layout
        names = [*layout.cameras, *(FUTURE + camera for camera in layout.cameras)]
        pictures = dict(zip(names, batch.pictures[index].numpy(), strict=True))
        encoded = encode_known(self._checkpoint, pictures, layout.index("value"), self._device)
        if len(self._kept) < self._most_kept:
            self._kept[key] = encoded.cpu()
        return encoded

    def _rounded(self, vector: Tensor) -> Tensor:
        """Round to the networks' format, which is how the released weights saw every number."""
        return vector.to(self._checkpoint.tokenizer.dtype).float().to(self._device)
