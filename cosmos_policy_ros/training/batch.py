"""Samples and batches of them, as data.

Apart from what makes them of bags: a training step is measured where no bag can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmos_policy_ros.model.images import ImageArray
from cosmos_policy_ros.training.config import Role


class WindowRef(NamedTuple):
    """One sample: the window of ``entry`` that begins at ``start``, its role and random seed."""

    role: Role
    entry: int
    start: int
    seed: int


@dataclass(frozen=True)
class Sample:
    """One training example.

    Attributes:
        window: its window, role and seed.
        prompt: the task in words.
        images: (2 C, S, S, 3) uint8: the cameras now, then at s', in the layout's order.
        proprio, future_proprio: (p,) float32, normalised.
        actions: (K d,) float32, normalised, time-major.
        value: the return of s' in [-1, 1].
        future: the step of s'.
        replaced: why earlier windows for this slot could not be read.
    """

    window: WindowRef
    prompt: str
    images: ImageArray
    proprio: NDArray[np.float32]
    actions: NDArray[np.float32]
    future_proprio: NDArray[np.float32]
    value: float
    future: int
    replaced: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Samples side by side; fields as those of :class:`Sample`, with B in front."""

    windows: tuple[WindowRef, ...]
    prompts: tuple[str, ...]
    images: Tensor
    proprio: Tensor
    actions: Tensor
    future_proprio: Tensor
    value: Tensor
    futures: tuple[int, ...]
    replaced: tuple[str, ...]

    @property
    def roles(self) -> tuple[Role, ...]:
        """The samples' roles."""
        return tuple(window.role for window in self.windows)


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples side by side."""

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))

    return Batch(
        windows=tuple(sample.window for sample in samples),
        prompts=tuple(sample.prompt for sample in samples),
        images=stacked("images"),
        proprio=stacked("proprio"),
        actions=stacked("actions"),
        future_proprio=stacked("future_proprio"),
        value=torch.tensor([sample.value for sample in samples], dtype=torch.float32),
        futures=tuple(sample.future for sample in samples),
        replaced=tuple(reason for sample in samples for reason in sample.replaced),
    )
