"""Vectors as latent frames: how actions, proprioception and values enter and leave the sequence.

A vector is written over and over until the frame's volume is full; the last copy is cut off where
the volume ends. Reading averages the whole copies only, as the released checkpoints do, so the cut
copy never weighs on an action (Cosmos Policy paper, latent injection).
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from cosmos_policy_ros.errors import CheckpointError


def inject(vector: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Spread ``vector`` over a latent frame.

    Args:
        vector: (..., n) normalised numbers. A chunk (K, d) is flattened time-major beforehand.
        shape: (C, H, W) of one latent frame; filled row-major, channel slowest.

    Returns:
        (..., C, H, W), same dtype.

    Raises:
        CheckpointError: the frame is smaller than the vector.
    """
    length = vector.shape[-1]
    volume = _volume_for(length, shape)
    copies = -(-volume // length)
    tiled = vector.repeat(*(1,) * (vector.ndim - 1), copies)[..., :volume]
    return tiled.reshape(*vector.shape[:-1], *shape)


def extract(frame: Tensor, length: int) -> Tensor:
    """Read a vector back: the float32 mean of its whole copies.

    Args:
        frame: (..., C, H, W).
        length: n, how many numbers the vector has.

    Returns:
        (..., n) float32.

    Raises:
        CheckpointError: the frame is smaller than the vector.
    """
    channels, height, width = frame.shape[-3:]
    volume = _volume_for(length, (channels, height, width))
    copies = volume // length
    flat = frame.float().flatten(-3)[..., : copies * length]
    return flat.reshape(*flat.shape[:-1], copies, length).mean(-2)


def inject_value(value: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Fill a frame (..., C, H, W) with one number each of ``value`` (...), in [-1, 1]."""
    return inject(value.unsqueeze(-1), shape)


def extract_value(frame: Tensor) -> Tensor:
    """Read a frame (..., C, H, W) as a value in [0, 1]: the mean of all its numbers, rescaled."""
    return ((extract(frame, 1).squeeze(-1) + 1) / 2).clamp(0, 1)


def _volume_for(length: int, shape: tuple[int, int, int]) -> int:
    volume = prod(shape)
    if volume < length:
        raise CheckpointError(
            f"a latent frame of {'x'.join(map(str, shape))} holds {volume} numbers, too few for a "
            f"vector of {length}; use larger images or a shorter chunk"
        )
    return volume
