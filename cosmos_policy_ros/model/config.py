"""What a checkpoint's ``config.yaml`` says: sizes, names and sampler settings, nothing learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cosmos_policy_ros.core.config import did_you_mean, load_config
from cosmos_policy_ros.core.errors import CheckpointError, ConfigError
from cosmos_policy_ros.model.layout import LAYOUTS

LATENT_CHANNELS = 16
SPACE = 8  # pixels per latent cell and axis
SIGMA_MAX, SIGMA_MIN = 80.0, 4.0  # noise levels of the released sampler, first and last
# Far beyond any published network; a file that asks for more would be built until memory ends.
MOST, MOST_LAYERS = 1 << 16, 1000
MAX_JPEG_QUALITY = 95  # above it Pillow switches parts of the compression off

# Rows and columns [px] of the cameras that NVIDIA's checkpoints were trained on, by layout.
CAMERA_SIZES = {"aloha": (480, 640), "robocasa": (224, 224), "libero": (256, 256)}

Preconditioning = Literal["rectified_flow", "x0"]
Numerics = Literal["released", "paper"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the diffusion transformer, in the names of the Cosmos papers.

    Attributes:
        layers: blocks.
        heads: attention heads.
        head_dim: numbers per head; the width is heads * head_dim.
        mlp_ratio: width of the hidden layer over the width of the block.
        adaln_rank: rank of the adaptive layer norm's low-rank path.
        text_width: numbers per text token.
        patch: latent cells per token along time, height and width.
        max_size: largest latent grid along time, height and width.
        rope_scale: context extension of the rotary position along time, height and width.
    """

    layers: int
    heads: int
    head_dim: int
    mlp_ratio: float
    adaln_rank: int
    text_width: int
    patch: tuple[int, ...]
    max_size: tuple[int, ...]
    rope_scale: tuple[float, ...]

    def __post_init__(self) -> None:
        _size("layers", self.layers, MOST_LAYERS)
        for name in ("heads", "head_dim", "adaln_rank", "text_width"):
            _size(name, getattr(self, name))
        for name in ("patch", "max_size", "rope_scale"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} needs three entries: time, height, width")
        for name in ("patch", "max_size"):
            for value in getattr(self, name):
                _size(name, value)
        _positive("mlp_ratio", self.mlp_ratio)
        _positive("rope_scale", min(self.rope_scale))
        if self.patch[0] != 1:
            raise ValueError(f"patch[0] is {self.patch[0]}; a token never spans two frames: use 1")
        if self.head_dim < 18 or self.head_dim % 2:
            raise ValueError(
                f"head_dim is {self.head_dim}; the rotary position needs an even number of at "
                f"least 18 to give every axis two frequencies"
            )


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of the video autoencoder, and the scale of its latents.

    Attributes:
        base_width: channels of the first layer.
        multipliers: channels of each stage over ``base_width``; one more than ``halve_time``.
        blocks: residual blocks per stage.
        halve_time: which of the stages' space-halvings halve time as well. Two must.
        patch: pixels folded into channels before the first layer, per axis. 1 folds none.
        latent_mean: per latent channel, subtracted when encoding.
        latent_std: per latent channel, divided by when encoding.
    """

    base_width: int
    multipliers: tuple[int, ...]
    blocks: int
    halve_time: tuple[bool, ...]
    patch: int
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]

    def __post_init__(self) -> None:
        _size("blocks", self.blocks, MOST_LAYERS)
        for name in ("base_width", "patch"):
            _size(name, getattr(self, name))
        if not self.multipliers:
            raise ValueError("multipliers needs entries of at least 1")
        for value in self.multipliers:
            _size("multipliers", value, MOST_LAYERS)
        if len(self.multipliers) != len(self.halve_time) + 1:
            raise ValueError("multipliers needs exactly one entry more than halve_time")
        if sum(self.halve_time) != 2:
            raise ValueError(f"halve_time has {sum(self.halve_time)} true entries, needs two")
        if self.patch * 2 ** len(self.halve_time) != SPACE:
            raise ValueError(
                f"patch {self.patch} and {len(self.halve_time)} halvings compress space by "
                f"{self.patch * 2 ** len(self.halve_time)}, needs {SPACE}"
            )
        for name in ("latent_mean", "latent_std"):
            if len(getattr(self, name)) != LATENT_CHANNELS:
                raise ValueError(f"{name} needs {LATENT_CHANNELS} entries, one per latent channel")
        _positive("latent_std", min(self.latent_std))


@dataclass(frozen=True)
class CheckpointConfig:
    """The whole ``config.yaml``.

    Attributes:
        layout: name of the frame layout: aloha, robocasa or libero.
        image_size: pixels per side of the model's square images.
        chunk_steps: K, rows of an action chunk.
        action_dims: d, numbers per row.
        proprio_dims: numbers of the proprioceptive state.
        dt: seconds between two rows.
        denoising_steps: N of the sampler in policy mode.
        preconditioning: what the network's output means; "x0" is the clean latent itself,
            "rectified_flow" the velocity from it to the noise.
        numerics: "released" repeats what NVIDIA's code does, "paper" what the paper says.
        precision: number format of both networks.
        text_tokens: positions of a prompt embedding, padding included.
        transformer: its sizes.
        vae: its sizes.
        sigma_min: level of the sampler's last evaluation, above 0 and below 80; 4 as released.
            There a frame holds 17 copies of each action number, and the noise of their mean is 1; a
            small frame with one copy needs a level as low for proposals to differ as much.
        smoothing: rows of the window in which a parabola is fitted to each chunk, odd; 0 for the
            chunk as generated, as released.
        flip_images: turn the cameras' images, which are upside down as simulators render them.
        jpeg_quality: 1 to 95, of the JPEG that the training images were stored as, to be repeated
            on every camera's image; None for images that never were JPEG.
        camera_size: rows and columns [px] of the training images before they were squeezed to a
            square; only their ratio matters. Empty for :data:`CAMERA_SIZES` of the layout.
    """

    layout: str
    image_size: int
    chunk_steps: int
    action_dims: int
    proprio_dims: int
    dt: float
    denoising_steps: int
    preconditioning: Preconditioning
    numerics: Numerics
    precision: Precision
    text_tokens: int
    transformer: TransformerConfig
    vae: VaeConfig
    sigma_min: float = SIGMA_MIN
    smoothing: int = 0
    flip_images: bool = False
    jpeg_quality: int | None = None
    camera_size: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(
                f"layout '{self.layout}' is not known{did_you_mean(self.layout, LAYOUTS)}"
            )
        for name in ("chunk_steps", "action_dims", "proprio_dims", "text_tokens"):
            _size(name, getattr(self, name))
        _size("denoising_steps", self.denoising_steps, MOST_LAYERS)
        if self.smoothing and (self.smoothing < 3 or self.smoothing % 2 == 0):
            raise ValueError(
                f"smoothing is {self.smoothing} rows, must be 0, or odd and at least 3"
            )
        _positive("dt", self.dt)
        if not 0 < self.sigma_min < SIGMA_MAX:
            raise ValueError(
                f"sigma_min is {self.sigma_min}, must be above 0 and below {SIGMA_MAX:g}"
            )
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= MAX_JPEG_QUALITY:
            raise ValueError(
                f"jpeg_quality is {self.jpeg_quality}, must be 1 to {MAX_JPEG_QUALITY}; leave it "
                f"out for images that were never JPEG"
            )
        if self.camera_size and (len(self.camera_size) != 2 or min(self.camera_size) < 1):
            raise ValueError(
                f"camera_size is {list(self.camera_size)}, must be rows and columns of at least 1 "
                f"px, or left out for {list(CAMERA_SIZES[self.layout])}"
            )
        for axis, patch in zip(("height", "width"), self.transformer.patch[1:], strict=True):
            if not 0 < self.image_size <= MOST or self.image_size % (SPACE * patch):
                raise ValueError(
                    f"image_size is {self.image_size} px, must be a positive multiple of "
                    f"{SPACE * patch} ({SPACE} px per latent cell, {patch} cells per token "
                    f"along the {axis})"
                )
        _, height, width = self.frame_shape
        grid = (LAYOUTS[self.layout].count, height, width)
        if any(n > limit for n, limit in zip(grid, self.transformer.max_size, strict=True)):
            raise ValueError(
                f"the latent grid {grid} exceeds transformer max_size {self.transformer.max_size}"
            )
        volume = LATENT_CHANNELS * height * width
        if volume < self.chunk_steps * self.action_dims:
            raise ValueError(
                f"a latent frame of {volume} numbers cannot hold a chunk of "
                f"{self.chunk_steps} x {self.action_dims}"
            )

    @property
    def trained_on(self) -> tuple[int, int]:
        """Rows and columns [px] of the cameras' images in training."""
        rows, columns = self.camera_size or CAMERA_SIZES[self.layout]
        return rows, columns

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent frame."""
        side = self.image_size // SPACE
        return (LATENT_CHANNELS, side, side)

    @property
    def tokens(self) -> int:
        """Tokens of one sample: 2156 for ALOHA and RoboCasa, 1764 for LIBERO."""
        _, height, width = self.frame_shape
        _, high, wide = self.transformer.patch
        return LAYOUTS[self.layout].count * (height // high) * (width // wide)


def _size(name: str, value: int, most: int = MOST) -> None:
    if not 1 <= value <= most:
        raise ValueError(f"{name} is {value}, must be at least 1 and at most {most}")


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}, must be positive")


def read_config(path: Path) -> CheckpointConfig:
    """Read a ``config.yaml``; raises CheckpointError, naming the key."""
    try:
        return load_config(CheckpointConfig, path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
