"""Which latent frame of the sequence is what, what a query already knows, and vectors as frames.

The sequence is one short "video": a blank frame that belongs to a single image, then frames of four
images each, because the video autoencoder compresses time by four after its first image (Cosmos
Policy paper, section on latent injection; frame tables of the three released checkpoints).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from cosmos_policy_ros.core.errors import CheckpointError

if TYPE_CHECKING:  # a node reads layouts without torch
    from torch import Tensor

ValueMode = Literal["value_sas", "value_s", "value_q"]
Mode = Literal["policy", "world_model"] | ValueMode
ValueFrames = Literal["all", "known"]

IMAGES_PER_FRAME = 4
FUTURE = "future_"


@dataclass(frozen=True)
class Layout:
    """The order of the latent frames of one robot; ``cameras`` are roles in that order."""

    name: str
    cameras: tuple[str, ...]

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the current state's frames: proprioception, then the cameras."""
        return ("proprio", *self.cameras)

    @property
    def future(self) -> tuple[str, ...]:
        """Names of the same frames one chunk later."""
        return tuple(FUTURE + name for name in self.state)

    @property
    def frames(self) -> tuple[str, ...]:
        """Every frame's name, in order: 11 for ALOHA and RoboCasa, 9 for LIBERO."""
        return ("blank", *self.state, "action", *self.future, "value")

    @property
    def count(self) -> int:
        """Number of latent frames."""
        return len(self.frames)

    def index(self, frame: str) -> int:
        """Return the index of the frame called ``frame``."""
        return self.frames.index(frame)

    def mask(self, mode: Mode) -> tuple[bool, ...]:
        """Return, per frame, whether ``mode`` conditions on it (True) or generates it (False).

        - policy: state known; action, future and value are generated together.
        - world_model: state and action known; future and value are generated.
        - value_sas: V(s, a, s'), all known but the value.
        - value_s: V(s'), only the future state known. State and action stay in the sequence as
          noise: dropping them would change what the network attends to.
        - value_q: Q(s, a), conditioned like the world model; only its value frame is read.
        """
        known: dict[str, tuple[str, ...]] = {
            "policy": self.state,
            "world_model": (*self.state, "action"),
            "value_sas": (*self.state, "action", *self.future),
            "value_s": self.future,
            "value_q": (*self.state, "action"),
        }
        if mode not in known:
            raise ValueError(f"mode '{mode}' is not one of {', '.join(known)}")
        return tuple(name == "blank" or name in known[mode] for name in self.frames)

    def needed(self, mode: ValueMode) -> tuple[int, ...]:
        """Return the frames that a value is conditioned on, and its own."""
        known = self.mask(mode)
        return tuple(i for i, name in enumerate(self.frames) if known[i] or name == "value")


LAYOUTS = {
    "aloha": Layout("aloha", ("left_wrist", "right_wrist", "primary")),
    "robocasa": Layout("robocasa", ("wrist", "primary", "secondary")),
    "libero": Layout("libero", ("wrist", "primary")),
}


def first_image(frame: int) -> int:
    """Return the index of the first image behind latent frame ``frame``.

    It is also how many images the frames before it are made of: 41 for all 11, 33 for 9.
    """
    return 0 if frame == 0 else 1 + IMAGES_PER_FRAME * (frame - 1)


def inject(vector: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Write a vector over and over until a latent frame is full; the last copy is cut off there.

    Args:
        vector: (..., n) normalised numbers. A chunk (K, d) is flattened time-major beforehand.
        shape: (C, H, W) of one latent frame; filled row-major, channel slowest.

    Returns:
        (..., C, H, W), same dtype.
    """
    length, volume = vector.shape[-1], prod(shape)
    _check_volume(volume, length, shape)
    copies = -(-volume // length)
    tiled = vector.repeat(*(1,) * (vector.ndim - 1), copies)[..., :volume]
    return tiled.reshape(*vector.shape[:-1], *shape)


def extract(frame: Tensor, length: int) -> Tensor:
    """Read a vector (..., length) back from (..., C, H, W): the float32 mean of its copies.

    The cut-off copy is left out, as in the released code, so that it weighs on no action.
    """
    flat = frame.float().flatten(-3)
    volume = flat.shape[-1]
    _check_volume(volume, length, frame.shape[-3:])
    copies = volume // length
    whole = flat[..., : copies * length]
    return whole.reshape(*whole.shape[:-1], copies, length).mean(-2)


def inject_value(value: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Fill a frame (..., C, H, W) with one number each of ``value`` (...), in [-1, 1]."""
    return inject(value.unsqueeze(-1), shape)


def extract_value(frame: Tensor) -> Tensor:
    """Read a frame (..., C, H, W) as a value in [0, 1]: the mean of all its numbers, rescaled."""
    return ((extract(frame, 1).squeeze(-1) + 1) / 2).clamp(0, 1)


def _check_volume(volume: int, length: int, shape: tuple[int, ...]) -> None:
    if volume < length:
        raise CheckpointError(
            f"a latent frame of {'x'.join(map(str, shape))} holds {volume} numbers, too few for a "
            f"vector of {length}; use larger images or a shorter chunk"
        )
