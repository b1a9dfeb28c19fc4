"""An observation as latent frames, and what predicted frames need before they are decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.model.checkpoint import Checkpoint
from cosmos_policy_ros.model.config import CheckpointConfig, Numerics
from cosmos_policy_ros.model.images import as_stored, centre_crop, reduce, send, to_model
from cosmos_policy_ros.model.layout import FUTURE, LAYOUTS, Layout, first_image, inject
from cosmos_policy_ros.rig.observation import Observation


@dataclass(frozen=True)
class Conditioning:
    """A task, in the words that the checkpoint knows, and the state as the networks see it."""

    prompt: str
    images: Mapping[str, Tensor]  # (S, S, 3) uint8 per camera role, as they were encoded
    clean: Tensor  # (1, 16, T, h, w) float32, the state's frames filled in and the others zero


def prepare_images(observation: Observation, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return each camera's image (S, S, 3) uint8 as the model takes it, by role.

    On the device that the networks are on, which prepares them.
    """
    reduced = reduce_images(observation, checkpoint.config, checkpoint.transformer.device)
    return {role: centre_crop(image) for role, image in reduced.items()}


def reduce_images(
    observation: Observation, config: CheckpointConfig, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return each camera's whole image (S, S, 3), of which training cuts its own crops, by role."""
    cameras = LAYOUTS[config.layout].cameras
    absent = [role for role in cameras if role not in observation.images]
    if absent:
        raise ObservationError(
            f"no image of camera {', '.join(absent)}; the checkpoint needs "
            f"{', '.join(cameras)}, the observation has {', '.join(observation.images) or 'none'}"
        )
    flip, quality = config.flip_images, config.jpeg_quality
    if observation.stored:  # both were done before
        flip, quality = False, None
    stored = {
        role: as_stored(observation.images[role], role, flip=flip, jpeg_quality=quality)
        for role in cameras
    }
    return {role: reduce(image, config.image_size, device) for role, image in stored.items()}


def image_sequence(layout: Layout, images: Mapping[str, Tensor], frames: int) -> Tensor:
    """Lay out the images behind the first ``frames`` latent frames: (1 + 4 (frames - 1), S, S, 3).

    Frames without a camera are black, to be overwritten or generated; a future camera's frame
    repeats the current image unless ``images`` has its own ("future_primary"), as training
    does. All four images of a frame are the same. uint8, on the images' device.
    """
    some = next(iter(images.values()))
    sequence = some.new_zeros((first_image(frames), *some.shape))
    for index, name in enumerate(layout.frames[:frames]):
        image = images.get(name, images.get(name.removeprefix(FUTURE)))
        if image is not None:
            sequence[first_image(index) : first_image(index + 1)] = image
    return sequence


def encode_known(
    checkpoint: Checkpoint,
    images: Sequence[Mapping[str, Tensor]],
    frames: int,
    device: torch.device | str,
) -> Tensor:
    """Encode the first ``frames`` frames of B sequences and leave the others zero, never read.

    Every sequence begins with the same black frames: the tokenizer keeps what it makes of them, and
    only the images behind them are encoded. ``images`` are per sequence, for
    :func:`image_sequence`; the result is (B, 16, T, H, W) float32.
    """
    layout, tokenizer = checkpoint.layout, checkpoint.tokenizer
    black = first_image(layout.index(layout.cameras[0]))
    sequences = [image_sequence(layout, each, frames)[black:] for each in images]
    videos = torch.cat([to_model(each.to(device), tokenizer.dtype) for each in sequences])
    channels, height, width = checkpoint.config.frame_shape
    clean = torch.zeros((len(videos), channels, layout.count, height, width), device=device)
    clean[:, :, :frames] = tokenizer.encode_after_black(videos, black)
    return clean


def inject_proprio(checkpoint: Checkpoint, clean: Tensor, observation: Observation) -> None:
    """Write the normalised proprioception over its frame of ``clean``, in place.

    Rounded to the networks' format first, as in training.
    """
    check_state(observation.state, checkpoint.config.proprio_dims)
    normalised = torch.from_numpy(checkpoint.statistics.proprio.normalise(observation.state))
    rounded = send(normalised.to(checkpoint.tokenizer.dtype).float(), clean.device)
    frame = checkpoint.layout.index("proprio")
    clean[:, :, frame] = inject(rounded, checkpoint.config.frame_shape)


def check_state(state: NDArray[np.float64], dims: int) -> None:
    """Refuse a state that is not ``dims`` finite numbers; raises ObservationError."""
    if state.shape != (dims,) or not np.isfinite(state).all():
        raise ObservationError(
            f"the state has shape {state.shape} and values {np.array2string(state, precision=3)}; "
            f"the checkpoint needs {dims} finite numbers"
        )


def restore_placeholders(checkpoint: Checkpoint, scene: Conditioning, latents: Tensor) -> Tensor:
    """Return latents (B, 16, T, h, w) that can be decoded: without the vectors written into them.

    Frames that hold numbers instead of images get back the black placeholders that they were
    encoded from. The autoencoder is causal, so these depend on the camera images before them, and
    the value's frame, behind every image, does not matter.
    """
    layout = checkpoint.layout
    vectors = [layout.index(name) for name in ("blank", "proprio", "action", "future_proprio")]
    black = encode_known(checkpoint, [scene.images], max(vectors) + 1, latents.device)
    restored = latents.clone()
    restored[:, :, vectors] = black[:, :, vectors]
    return restored


def step_ahead(layout: Layout, latents: Tensor, numerics: Numerics) -> Tensor:
    """Make the predicted future of each latent its current state, to search a chunk deeper.

    "paper": all of it. "released": the images only; the released code writes the measured
    proprioception over the predicted one. Frames behind the state are zero, not known yet.
    """
    ahead = torch.zeros_like(latents)
    kept = ("blank", "proprio") if numerics == "released" else ("blank",)
    for name in ("blank", *layout.state):
        source = name if name in kept else FUTURE + name
        ahead[:, :, layout.index(name)] = latents[:, :, layout.index(source)]
    return ahead
