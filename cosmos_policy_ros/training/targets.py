"""A batch as clean latents, with everything that the network is to learn filled in.

Also the video autoencoder as one of single images. A small one is trained on images, since clips
cost six times as much and teach it to let one frame see into the next. Its causal convolutions then
work in two dimensions, by their last tap; afterwards :func:`inflate` makes their other taps zero
and the resampling in time the identity, so that the ordinary path over sequences makes the latent
of one image of every four equal ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import cast

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

from cosmos_policy_ros.core.units import GIGABYTE
from cosmos_policy_ros.model.checkpoint import Checkpoint
from cosmos_policy_ros.model.config import LATENT_CHANNELS
from cosmos_policy_ros.model.images import to_model
from cosmos_policy_ros.model.layout import FUTURE, inject, inject_value
from cosmos_policy_ros.model.sequence import encode_known
from cosmos_policy_ros.training.batch import Batch

# Of one call of the autoencoder: four samples of the released models. Small images go several
# times faster side by side; of large ones more would only take memory.
MAX_PIXELS = 4 * 224**2


class TargetMaker:
    """Encodes images and writes vectors over their frames, as the policy does for a query.

    Unlike a query, training encodes the whole sequence, with the images of s' in their places:
    the autoencoder is causal, so each latent depends on all the images before it. One that was
    trained on single images has no such memory: then each moment's images are encoded by
    themselves, and kept for all the windows that begin or end there.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, cache_gb: float = 0.0) -> None:
        """Bind the autoencoder; ``cache_gb`` of latents are kept in memory."""
        self._checkpoint, self._device = checkpoint, device
        self._cache: dict[tuple[int, int], Tensor] = {}
        self._bytes_left = cache_gb * GIGABYTE
        self._at_once = max(MAX_PIXELS // checkpoint.config.image_size**2, 1)
        # A cached moment is known by its step, so a cache is refused where images are augmented.
        self._by_moment = bool(cache_gb) and is_of_images(checkpoint.tokenizer.vae)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return (B, 16, T, h, w) float32."""
        clean = self._encode_moments(batch) if self._by_moment else self._encode_windows(batch)
        layout, shape = self._checkpoint.layout, self._checkpoint.config.frame_shape
        dtype = self._checkpoint.tokenizer.dtype

        def rounded(vector: Tensor) -> Tensor:
            # To the networks' format, which is how the released weights saw every number.
            return vector.to(dtype).float().to(self._device)

        for name, vector in (
            ("proprio", batch.proprio),
            ("action", batch.actions),
            (f"{FUTURE}proprio", batch.future_proprio),
        ):
            clean[:, :, layout.index(name)] = inject(rounded(vector), shape)
        clean[:, :, layout.index("value")] = inject_value(rounded(batch.value), shape)
        return clean

    def _encode_windows(self, batch: Batch) -> Tensor:
        """Encode whole sequences."""
        layout = self._checkpoint.layout
        names = [*layout.cameras, *(FUTURE + camera for camera in layout.cameras)]

        def encode(samples: Sequence[int]) -> Tensor:
            images = [dict(zip(names, batch.images[i], strict=True)) for i in samples]
            return encode_known(self._checkpoint, images, layout.index("value"), self._device)

        keys = [(window.entry, window.start) for window in batch.windows]
        return torch.stack(self._cached(keys, encode))

    def _encode_moments(self, batch: Batch) -> Tensor:
        """Assemble sequences from the latents of single moments."""
        layout, size = self._checkpoint.layout, len(batch.windows)
        cameras = layout.cameras
        entries = [window.entry for window in batch.windows]
        keys = [(window.entry, window.start) for window in batch.windows]
        keys += list(zip(entries, batch.futures, strict=True))
        images = torch.cat(batch.images.chunk(2, dim=1))  # (2 B, C, S, S, 3)

        def encode(moments: Sequence[int]) -> Tensor:
            latents = self._encode_images(images[list(moments)].flatten(0, 1))
            return latents.view(len(moments), len(cameras), *latents.shape[1:])

        moments = self._cached(keys, encode)
        clean = self._black.repeat(size, 1, 1, 1, 1)
        for prefix, latents in (("", moments[:size]), (FUTURE, moments[size:])):
            frames = [layout.index(prefix + camera) for camera in cameras]
            clean[:, :, frames] = torch.stack(latents).transpose(1, 2)
        return clean

    def _encode_images(self, images: Tensor) -> Tensor:
        """Map (N, S, S, 3) uint8 images to (N, 16, h, w)."""
        tokenizer, patch = self._checkpoint.tokenizer, self._checkpoint.config.vae.patch
        pixels = to_model(images.to(self._device), tokenizer.dtype)[0].transpose(0, 1)
        with as_images(tokenizer.vae):
            means = encode_images(tokenizer.vae, pixels, patch)
        return tokenizer.normalise(means.unsqueeze(2))[:, :, 0]

    @cached_property
    def _black(self) -> Tensor:
        """The latent (1, 16, T, h, w) of a sequence of black images."""
        size = self._checkpoint.config.image_size
        black = self._encode_images(torch.zeros((1, size, size, 3), dtype=torch.uint8))
        return black.unsqueeze(2).repeat(1, 1, self._checkpoint.layout.count, 1, 1)

    def _cached(
        self, keys: Sequence[tuple[int, int]], encode: Callable[[Sequence[int]], Tensor]
    ) -> list[Tensor]:
        """Return each key's latents; ``encode`` makes those that are not in memory, by index."""
        found = {key: self._cache[key] for key in keys if key in self._cache}
        new = {key: index for index, key in enumerate(keys) if key not in found}
        missing = list(new)
        for first in range(0, len(missing), self._at_once):
            group = missing[first : first + self._at_once]
            encoded = encode([new[key] for key in group])
            found |= dict(zip(group, encoded, strict=True))
        for key in missing:
            size = found[key].numel() * found[key].element_size()
            if size <= self._bytes_left:
                self._bytes_left -= size
                self._cache[key] = found[key].to("cpu", copy=True)
        return [found[key].to(self._device) for key in keys]


# ---------------------------------------------------------------- an autoencoder of single images


@contextmanager
def as_images(vae: AutoencoderKLWan) -> Iterator[None]:
    """Let an autoencoder's causal convolutions work on single images, by their last tap."""

    def last_tap(layer: WanCausalConv3d, x: Tensor) -> Tensor:
        _, width, _, height, *_ = map(int, layer._padding)
        weight = layer.weight[:, :, -1]
        return conv2d(x[:, :, 0], weight, layer.bias, padding=(height, width)).unsqueeze(2)

    layers = [module for module in vae.modules() if isinstance(module, WanCausalConv3d)]
    for layer in layers:
        layer.forward = partial(last_tap, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def encode_images(vae: AutoencoderKLWan, images: Tensor, patch: int) -> Tensor:
    """Map (B, 3, S, S) in [-1, 1] to the posterior's mean (B, 16, s, s), not normalised."""
    folded = patchify(images.unsqueeze(2), patch)  # type: ignore[no-untyped-call]
    moments = vae.quant_conv(vae.encoder(folded))
    return cast(Tensor, moments[:, :LATENT_CHANNELS, 0])


def decode_images(vae: AutoencoderKLWan, latents: Tensor, patch: int) -> Tensor:
    """Map (B, 16, s, s) back to (B, 3, S, S), about [-1, 1]."""
    decoded = vae.decoder(vae.post_quant_conv(latents.unsqueeze(2)))
    return cast(Tensor, unpatchify(decoded, patch)[:, :, 0])  # type: ignore[no-untyped-call]


@torch.no_grad()
def inflate(vae: AutoencoderKLWan) -> None:
    """Make the path over sequences do with every image what was learned from single ones."""
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
    """Return whether an autoencoder encodes every image by itself, as :func:`inflate` makes it."""
    layers = [module for module in vae.modules() if isinstance(module, WanCausalConv3d)]
    return not any(bool(layer.weight[:, :, :-1].any()) for layer in layers)
