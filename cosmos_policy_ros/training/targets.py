"""A batch as clean latents, with everything that the network is to learn filled in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanCausalConv3d,
    WanResample,
    patchify,
    unpatchify,
)
from torch import Tensor
from torch.nn.functional import conv2d

from cosmos_policy_ros.model.checkpoint import Checkpoint
from cosmos_policy_ros.model.config import LATENT_CHANNELS
from cosmos_policy_ros.model.images import ImageArray, to_model
from cosmos_policy_ros.model.layout import FUTURE, inject, inject_value
from cosmos_policy_ros.model.sequence import encode_known
from cosmos_policy_ros.training.samples import GIGABYTE, Batch

# The video autoencoder as one of single images, and back.
#
# A small one is trained on images, since clips cost six times as much and teach it to let one
# frame see into the next . Its causal convolutions then work in two dimensions,
# by their last tap; afterwards their other taps are zero and their resampling in time is the
# identity, so that the ordinary path over sequences makes of every four equal images the latent
# of one.


@contextmanager
def as_images(vae: AutoencoderKLWan) -> Iterator[None]:
    """Let an autoencoder's causal convolutions work on single images, by their last tap."""
    layers = [module for module in vae.modules() if isinstance(module, WanCausalConv3d)]
    for layer in layers:
        layer.forward = partial(_last_tap, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def encode_images(vae: AutoencoderKLWan, images: Tensor, patch: int) -> Tensor:
    """Map (B, 3, S, S) in [-1, 1] to the posterior's mean (B, 16, s, s), as it comes."""
    folded = patchify(images.unsqueeze(2), patch)  # type: ignore[no-untyped-call]
    moments = vae.quant_conv(vae.encoder(folded))
    return cast(Tensor, moments[:, :LATENT_CHANNELS, 0])


def decode_images(vae: AutoencoderKLWan, latents: Tensor, patch: int) -> Tensor:
    """Map (B, 16, s, s) back to (B, 3, S, S), about [-1, 1]."""
    decoded = vae.decoder(vae.post_quant_conv(latents.unsqueeze(2)))
    return cast(Tensor, unpatchify(decoded, patch)[:, :, 0])  # type: ignore[no-untyped-call]


@torch.no_grad()
def inflate(vae: AutoencoderKLWan) -> None:
    """Let the path over sequences do with every image what was learned of single ones."""
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d):
            module.weight[:, :, :-1] = 0
        if isinstance(module, WanResample) and hasattr(module, "time_conv"):
            conv = module.time_conv
            assert conv.bias is not None
            conv.bias.zero_()
            conv.weight.zero_()
            # Going up every image becomes two, and there are twice as many channels.
            same = torch.eye(conv.in_channels)
            conv.weight[:, :, -1, 0, 0] = same.repeat(conv.out_channels // conv.in_channels, 1)


def is_of_images(vae: AutoencoderKLWan) -> bool:
    """Tell whether an autoencoder has no memory, so that only an image itself counts."""
    layers = [module for module in vae.modules() if isinstance(module, WanCausalConv3d)]
    return not any(bool(layer.weight[:, :, :-1].any()) for layer in layers)


def _last_tap(layer: WanCausalConv3d, x: Tensor) -> Tensor:
    _, width, _, height, *_ = map(int, layer._padding)
    weight = layer.weight[:, :, -1]
    return conv2d(x[:, :, 0], weight, layer.bias, padding=(height, width)).unsqueeze(2)


# Of one call of the autoencoder: four samples of the released models. Small images go several
# times faster side by side; of large ones more would only take memory.
PIXELS_AT_ONCE = 4 * 224**2


class TargetMaker:
    """Encodes images and writes vectors over their frames, as the policy does when it is asked.

    Unlike a query, training encodes the whole sequence, with the images of s' in their places:
    the autoencoder is causal, so each latent depends on all the images before it. One that was
    made of single images (:mod:`training.images`) has no such memory: then each moment's
    images are encoded by themselves, and kept for all the windows that begin or end there.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, cache_gb: float = 0.0) -> None:
        """Bind the autoencoder; ``cache_gb`` of what was encoded is kept in memory."""
        self._checkpoint, self._device = checkpoint, device
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._left = cache_gb * GIGABYTE
        self._at_once = max(PIXELS_AT_ONCE // checkpoint.config.image_size**2, 1)
        # Images that are changed at random are never seen twice, and their steps tell nothing.
        by_moment = bool(cache_gb) and is_of_images(checkpoint.tokenizer.vae)
        self._encoded = self._moments if by_moment else self._windows

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

    def _windows(self, batch: Batch) -> Tensor:
        """Encode whole sequences."""

        def encode(indices: Sequence[int]) -> Tensor:
            images = [self._images(batch, index) for index in indices]
            frames = self._checkpoint.layout.index("value")
            return encode_known(self._checkpoint, images, frames, self._device)

        keys = [(pick.source, pick.start) for pick in batch.picks]
        return torch.stack(self._remembered(keys, encode))

    def _moments(self, batch: Batch) -> Tensor:
        """Put together sequences of what was encoded one moment at a time."""
        cameras = self._checkpoint.layout.cameras
        sources = [pick.source for pick in batch.picks]
        keys = [(s, pick.start) for s, pick in zip(sources, batch.picks, strict=True)]
        keys += list(zip(sources, batch.futures, strict=True))
        count = len(cameras)
        now, later = batch.images[:, :count], batch.images[:, count:]
        images = torch.cat([now, later])  # (2 B, C, S, S, 3)

        def encode(indices: Sequence[int]) -> Tensor:
            chosen = images[list(indices)].flatten(0, 1).numpy()
            latents = self._alone(chosen)
            return latents.view(len(indices), count, *latents.shape[1:])

        moments = self._remembered(keys, encode)
        clean = self._black.repeat(len(batch.picks), 1, 1, 1, 1)
        for index, moment in enumerate(moments):
            sample, is_later = index % len(sources), index >= len(sources)
            for camera, latent in zip(cameras, moment, strict=True):
                frame = self._checkpoint.layout.index((FUTURE if is_later else "") + camera)
                clean[sample, :, frame] = latent
        return clean

    def _alone(self, images: ImageArray) -> Tensor:
        """Map (N, S, S, 3) images to (N, 16, h, w)."""
        tokenizer, patch = self._checkpoint.tokenizer, self._checkpoint.config.vae.patch
        seen = to_model(images, tokenizer.dtype)[0].transpose(0, 1).to(self._device)
        with as_images(tokenizer.vae):
            means = encode_images(tokenizer.vae, seen, patch)
        return tokenizer.normalise(means.unsqueeze(2))[:, :, 0]

    @cached_property
    def _black(self) -> Tensor:
        """Return the latent (1, 16, T, h, w) of a sequence of black images."""
        size, layout = self._checkpoint.config.image_size, self._checkpoint.layout
        black = self._alone(np.zeros((1, size, size, 3), np.uint8))
        return black.unsqueeze(2).repeat(1, 1, layout.count, 1, 1)

    def _remembered(
        self,
        keys: Sequence[tuple[int, int]],
        encode: Callable[[Sequence[int]], Tensor],
    ) -> list[Tensor]:
        """Return what belongs to each key, encoded only where it is not in memory."""
        found = {key: self._kept[key] for key in keys if key in self._kept}
        new = {key: index for index, key in enumerate(keys) if key not in found}
        missing = list(new)
        for first in range(0, len(missing), self._at_once):
            group = missing[first : first + self._at_once]
            encoded = encode([new[key] for key in group])
            found |= dict(zip(group, encoded, strict=True))
        for key in missing:
            size = found[key].numel() * found[key].element_size()
            if size <= self._left:
                self._left -= size
                self._kept[key] = found[key].to("cpu", copy=True)
        return [found[key].to(self._device) for key in keys]

    def _images(self, batch: Batch, index: int) -> dict[str, ImageArray]:
        cameras = self._checkpoint.layout.cameras
        names = [*cameras, *(FUTURE + camera for camera in cameras)]
        return dict(zip(names, batch.images[index].numpy(), strict=True))

    def _rounded(self, vector: Tensor) -> Tensor:
        """Round to the networks' format, which is how the released weights saw every number."""
        return vector.to(self._checkpoint.tokenizer.dtype).float().to(self._device)
