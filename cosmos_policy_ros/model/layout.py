"""Which latent frame of the sequence is what, and which frames a query already knows.

The sequence is one short "video": a blank frame that belongs to a single image, then frames of four
images each, because the video autoencoder compresses time by four after its first image (Cosmos
Policy paper, section on latent injection; frame tables of the three released checkpoints).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cosmos_policy_ros.errors import CheckpointError
from cosmos_policy_ros.rig.config import did_you_mean

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
