"""Images to latents and back: diffusers' Wan autoencoder with the normalisation of the policy.

Both directions are causal in time: the first n latent frames depend on the first 1 + 4 (n - 1)
images only. So a query encodes the images it conditions on and none behind them, keeps what the
network remembers of the black ones that every query begins with, and decodes up to the last frame
that is wanted. The causal memory travels as a value instead of living on diffusers' module, so any
number of threads may encode and decode at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanCausalConv3d,
    WanRMS_norm,
    patchify,
    unpatchify,
)
from torch import Tensor, nn
from torch.nn.functional import normalize

from cosmos_policy_ros.model.config import LATENT_CHANNELS, SPACE, VaeConfig
from cosmos_policy_ros.model.layout import IMAGES_PER_FRAME

WINDOW = 16  # images encoded at once behind the first one, as NVIDIA's code does
CPU_WINDOW = 4  # the fewest, as diffusers does: less memory, and 3 to 20 % less time at 224 px
BLACK = -1.0
EPSILON = 1e-12  # least length, as torch has it


class Tokenizer(nn.Module):
    """The video autoencoder."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels = 3 * config.patch**2
        self.vae = AutoencoderKLWan(
            base_dim=config.base_width,
            z_dim=LATENT_CHANNELS,
            dim_mult=list(config.multipliers),
            num_res_blocks=config.blocks,
            temperal_downsample=list(config.halve_time),
            latents_mean=list(config.latent_mean),
            latents_std=list(config.latent_std),
            in_channels=channels,
            out_channels=channels,
            patch_size=config.patch if config.patch > 1 else None,
            scale_factor_spatial=SPACE,
        )
        for module in self.vae.modules():
            if isinstance(module, WanRMS_norm):
                module.__class__ = _Norm
            elif isinstance(module, nn.SiLU):
                module.inplace = True  # always behind a norm, whose result nothing else reads
        self._patch = config.patch
        self._mean = config.latent_mean
        self._std = config.latent_std
        self._kept_constants: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}
        # The latents of black images, and what the encoder remembers of them.
        self._black: dict[tuple[object, ...], tuple[Tensor, list[Any]]] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights, in which all the arithmetic runs."""
        return cast(torch.dtype, self.vae.dtype)

    def encode(self, video: Tensor) -> Tensor:
        """Map (B, 3, 1 + 4 n, H, W) in [-1, 1] to (B, 16, 1 + n, H / 8, W / 8) float32.

        The posterior's mean, never a sample of it. Constants are rounded to the weights' format
        like in training; only the result is float32.
        """
        return self._encode(video, _no_memory(self.vae.encoder))

    def encode_after_black(self, video: Tensor, black: int) -> Tensor:
        """Encode ``black`` black images and then ``video``; the black ones only the first time.

        What is kept takes 269 MiB in float32 for the released network at 224 px, half in bfloat16.
        Off the CPU the windows are cut elsewhere than in :meth:`encode`: a last bit may differ
        where another convolution kernel is chosen.

        Args:
            video: (B, 3, 4 n, H, W) in [-1, 1], the images behind the black ones.
            black: how many images come before, 1 + 4 m.

        Returns:
            (B, 16, 1 + m + n, h, w) float32, the latents of all.
        """
        batch, channels, _, *size = video.shape
        key = (batch, black, *size, self.dtype, video.device)
        if key not in self._black:
            shape = (batch, channels, black, *size)
            memory = _no_memory(self.vae.encoder)
            # Not as inference tensors, which would be of no use to a later call with gradients.
            with torch.inference_mode(False), torch.no_grad():
                images = torch.full(shape, BLACK, dtype=self.dtype, device=video.device)
                self._black[key] = self._encode(images, memory), memory
        latent, memory = self._black[key]
        return torch.cat([latent, self._encode(video, list(memory))], dim=2)

    def normalise(self, mean: Tensor) -> Tensor:
        """Map the posterior's mean (B, 16, n, h, w) to what the network is given, float32."""
        shift, scale = self._constants(mean.device)
        return ((mean - shift) * scale).float()

    def forget(self) -> None:
        """Drop what is kept of black images; needed after writing other weights in place."""
        self._black.clear()

    def decode(self, latent: Tensor) -> Tensor:
        """Map (B, 16, 1 + n, h, w) back to (B, 3, 1 + 4 n, 8 h, 8 w) float32 in [-1, 1]."""
        return torch.cat(self._decode(latent, range(latent.shape[2])), dim=2)

    def decode_first_images(self, latent: Tensor, frames: Sequence[int]) -> Tensor:
        """Decode the first image of each wanted frame; nothing behind the last one is decoded.

        Args:
            latent: (B, 16, T, h, w).
            frames: indices of latent frames, at least one.

        Returns:
            (B, 3, len(frames), 8 h, 8 w) float32 in [-1, 1], in the order of ``frames``.
        """
        wanted = sorted(set(frames))
        firsts = [images[:, :, :1] for images in self._decode(latent, wanted)]
        decoded = dict(zip(wanted, firsts, strict=True))
        return torch.cat([decoded[frame] for frame in frames], dim=2)

    def _apply(self, fn: Any, recurse: bool = True) -> Tokenizer:
        self.forget()
        return cast(Tokenizer, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def _encode(self, video: Tensor, memory: list[Any]) -> Tensor:
        """Encode the images behind those that ``memory`` stands for.

        The entries of ``memory``, the last inputs of every causal convolution, are replaced; no
        tensor in it is written to.
        """
        first = 1 if memory[0] is None else 0  # a video's first image is a latent frame by itself
        if (video.shape[2] - first) % IMAGES_PER_FRAME:
            raise ValueError(
                f"{video.shape[2] - first} images are no whole number of latent frames"
            )
        window = CPU_WINDOW if video.device.type == "cpu" else WINDOW
        windows = [video[:, :, i : i + window] for i in range(first, video.shape[2], window)]
        means = []
        for images in [video[:, :, :1], *windows] if first else windows:
            folded = patchify(images.to(self.dtype), self._patch)  # type: ignore[no-untyped-call]
            moments = self.vae.encoder(folded, feat_cache=memory, feat_idx=[0])
            # One by one: a CPU may take another kernel for more frames, and round otherwise.
            means.append(self.vae.quant_conv(moments)[:, :LATENT_CHANNELS])
        return self.normalise(torch.cat(means, dim=2))

    def _decode(self, latent: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """Return the images (B, 3, 1 or 4, H, W) float32 of the ``wanted`` frames, ascending."""
        shift, scale = self._constants(latent.device)
        scaled = latent.to(self.dtype) / scale + shift
        memory = _no_memory(self.vae.decoder)
        images = []
        for frame in range(max(wanted) + 1):
            decoded = self.vae.decoder(
                self.vae.post_quant_conv(scaled[:, :, frame : frame + 1]),
                feat_cache=memory,
                feat_idx=[0],
                first_chunk=frame == 0,
            )
            if frame in wanted:
                unfolded = unpatchify(decoded, self._patch)  # type: ignore[no-untyped-call]
                images.append(unfolded.clamp(-1, 1).float())
        return images

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the latents' mean and one over their standard deviation.

        In half precision that quotient is rounded, and to multiply by the deviation would not undo
        it: the decoder was trained behind a division by the same rounded number.
        """
        key = (self.dtype, device)
        if key not in self._kept_constants:  # to copy them anew would wait for the device
            shape = (1, LATENT_CHANNELS, 1, 1, 1)
            with torch.inference_mode(False):
                mean = torch.tensor(self._mean, dtype=self.dtype, device=device)
                std = torch.tensor(self._std, dtype=self.dtype, device=device)
                self._kept_constants[key] = mean.view(shape), (1 / std).view(shape)
        return self._kept_constants[key]


class _Norm(WanRMS_norm):
    """The norm as the policy was trained with: all of it in the weights' format.

    Some versions of diffusers normalise half precision in float32, which moves the latents by as
    much as half precision itself does.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return cast(Tensor, _directions(x) * self.scale * self.gamma + self.bias)
        # The same in place: new memory costs as much here as the arithmetic. The bias is 0.
        return _directions(x).mul_(self.scale).mul_(self.gamma)


def _directions(x: Tensor) -> Tensor:
    """Divide (B, C, ...) by its length over the channels."""
    if x.dtype != torch.float32:
        return normalize(x, dim=1)  # half precision takes no copy faster
    # Channels side by side: on a CPU their norm is taken 4 to 8 times faster, copy included.
    lengths: Tensor = torch.linalg.vector_norm(x.movedim(1, -1).contiguous(), dim=-1)
    return x / lengths.clamp_min(EPSILON).unsqueeze(1)


def _no_memory(network: nn.Module) -> list[Any]:
    """Return the memory before the first image: an empty entry per causal convolution."""
    return [None for module in network.modules() if isinstance(module, WanCausalConv3d)]
