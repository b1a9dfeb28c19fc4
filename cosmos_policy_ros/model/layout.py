"""Which latent frame of the sequence is what, and which frames a query already knows.

The sequence is one short "video": a blank frame that belongs to a single image, then frames of four
images each, because the video autoencoder compresses time by four after its first image (Cosmos
Policy paper, section on latent injection; frame tables of the three released checkpoints).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import CheckpointError

if TYPE_CHECKING:  # a node reads layouts without torch
    from torch import Tensor

ValueMode = Literal["value_sas", "value_s", "value_q"]
Mode = Literal["policy", "world_model"] | ValueMode

IMAGES_PER_FRAME = 4
FUTURE = "future_"


@dataclass(frozen=True)
class Layout:
    """The order of the latent frames of one robot.

    Attributes:
        name: "aloha", "robocasa" or "libero".
        cameras: camera roles in the order of their frames.
    """

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

    @property
    def image_count(self) -> int:
        """Number of images of the whole sequence: 41 for 11 frames, 33 for 9."""
        return images_of(self.count)

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


def first_image(frame: int) -> int:
    """Return the index of the first image behind latent frame ``frame``."""
    return 0 if frame == 0 else 1 + IMAGES_PER_FRAME * (frame - 1)


def images_of(frames: int) -> int:
    """Return how many images the first ``frames`` latent frames are made of."""
    return first_image(frames)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("aloha", ("left_wrist", "right_wrist", "primary")),
        Layout("robocasa", ("wrist", "primary", "secondary")),
        Layout("libero", ("wrist", "primary")),
    )
}


def layout_named(name: str) -> Layout:
    """Look a layout up.

    Raises:
        CheckpointError: there is no layout of that name.
    """
    if name not in LAYOUTS:
        raise CheckpointError(f"there is no frame layout '{name}'{did_you_mean(name, LAYOUTS)}")
    return LAYOUTS[name]


# Vectors as latent frames: how actions, proprioception and values enter and leave the sequence.
#
# A vector is written over and over until the frame's volume is full; the last copy is cut off
# where the volume ends. Reading averages the whole copies only, as the released checkpoints do, so
# the cut copy never weighs on an action (Cosmos Policy paper, latent injection).


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
