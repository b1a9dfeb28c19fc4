"""A batch as clean latents, with everything that the network is to learn filled in."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_policy_ros.model.checkpoint import Checkpoint
from cosmos_policy_ros.model.images import Picture
from cosmos_policy_ros.model.injection import inject, inject_value
from cosmos_policy_ros.model.layout import FUTURE
from cosmos_policy_ros.model.sequence import encode_known
from cosmos_policy_ros.training.samples import GIGABYTE, Batch

# Of one call of the autoencoder: four samples of the released models. Small pictures go several
# times faster side by side; of large ones more would only take memory.
PIXELS_AT_ONCE = 4 * 224**2


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
        self._at_once = max(PIXELS_AT_ONCE // checkpoint.config.image_size**2, 1)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return (B, 16, T, h, w) float32."""
        clean = self._encoded(batch)
        layout, shape = self._checkpoint.layout, self._checkpoint.config.frame_shape
        for name, vector in (
            ("proprio", batch.proprio),
            ("action", batch.actions),
            (f"{FUTURE}proprio", batch.future_proprio),
        ):
            clean[:, :, layout.index(name)] = inject(self._rounded(vector), shape)
        clean[:, :, layout.index("value")] = inject_value(self._rounded(batch.value), shape)
        return clean

    def _encoded(self, batch: Batch) -> Tensor:
        keys = [(pick.source, pick.start) for pick in batch.picks]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        new = {key: index for index, key in enumerate(keys) if key not in found}
        missing = list(new)
        for group in (
            missing[i : i + self._at_once] for i in range(0, len(missing), self._at_once)
        ):
            pictures = [self._pictures(batch, new[key]) for key in group]
            frames = self._checkpoint.layout.index("value")
            encoded = encode_known(self._checkpoint, pictures, frames, self._device)
            found |= dict(zip(group, encoded, strict=True))
        for key in missing[: max(self._most_kept - len(self._kept), 0)]:
            self._kept[key] = found[key].cpu()
        return torch.stack([found[key].to(self._device) for key in keys])

    def _pictures(self, batch: Batch, index: int) -> dict[str, Picture]:
        cameras = self._checkpoint.layout.cameras
        names = [*cameras, *(FUTURE + camera for camera in cameras)]
        return dict(zip(names, batch.pictures[index].numpy(), strict=True))

    def _rounded(self, vector: Tensor) -> Tensor:
        """Round to the networks' format, which is how the released weights saw every number."""
        return vector.to(self._checkpoint.tokenizer.dtype).float().to(self._device)
