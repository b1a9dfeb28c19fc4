"""A window of an episode as the network takes it, in what order, and its augmentation."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import DataLoader, Dataset

from cosmos_policy_ros.core.errors import ObservationError, RolloutError, TrainingError
from cosmos_policy_ros.core.units import GIGABYTE
from cosmos_policy_ros.model.config import CheckpointConfig, Numerics
from cosmos_policy_ros.model.images import CROP_AREA, ImageArray, centre_crop, enlarge
from cosmos_policy_ros.model.statistics import Statistics
from cosmos_policy_ros.training.batch import Batch, Sample, WindowRef, collate
from cosmos_policy_ros.training.config import DataConfig, ObjectiveConfig, Strength
from cosmos_policy_ros.training.dataset_index import DatasetIndex, Mixture
from cosmos_policy_ros.training.prepared_images import Moment, PreparedImages, moment_of

MAX_ATTEMPTS = 20  # windows tried for one slot; so many in a row say that all are bad


class BatchSlot(NamedTuple):
    """A sample's place: the optimiser's step, and 0 to batch - 1 over all processes."""

    step: int
    place: int


@dataclass
class SampleMaker(Dataset[Sample]):
    """Makes the sample of any :class:`BatchSlot` from the bags.

    Attributes:
        dataset_index: the episodes.
        mixture: draws a slot's window.
        batch: samples per step.
        config: of the checkpoint: sizes.
        statistics: ranges to normalise by.
        data: augmentation and cache.
        objective: what a value is.
        prepared: images that need not be read from the bags; None: all are.
    """

    dataset_index: DatasetIndex
    mixture: Mixture
    batch: int
    config: CheckpointConfig
    statistics: Statistics
    data: DataConfig
    objective: ObjectiveConfig
    prepared: PreparedImages | None = None
    _cache: OrderedDict[tuple[int, int], Moment] = field(default_factory=OrderedDict)
    _cached_bytes: int = 0

    def __getitem__(self, slot: BatchSlot) -> Sample:
        """Return a sample; where its window cannot be read, another one of the same role.

        Raises:
            TrainingError: none of many windows can be read.
        """
        reasons: list[str] = []
        for attempt in range(MAX_ATTEMPTS):
            window = self.mixture.draw(slot.step, slot.place, self.batch, attempt)
            try:
                return self.make(window, tuple(reasons))
            except (ObservationError, RolloutError) as error:
                path = self.dataset_index.entries[window.entry].windows.path
                reasons.append(f"{path.name}, step {window.start}: {error}")
        raise TrainingError(
            f"{MAX_ATTEMPTS} windows in a row cannot be read, the last one of {reasons[-1]}; "
            f"'cosmos episodes verify' tells what is damaged"
        )

    def make(self, window: WindowRef, replaced: tuple[str, ...] = ()) -> Sample:
        """Return the sample of a window.

        Raises:
            ObservationError: one of its two moments is not usable.
            RolloutError: the bag is damaged there.
        """
        entry = self.dataset_index.entries[window.entry]
        windows, chunk_steps = entry.windows, self.config.chunk_steps
        future = windows.future(window.start, chunk_steps)
        now = self._moment(window.entry, window.start)
        later = self._moment(window.entry, future)
        images = np.concatenate([now.images, later.images])
        random = np.random.default_rng(window.seed)
        augmentation = draw_augmentation(self.data.augmentation, random)
        if augmentation is not None:
            images = apply_augmentation(augmentation, images)
        actions = self.statistics.actions.normalise(windows.chunk(window.start, chunk_steps))
        proprio = self.statistics.proprio
        prompts = [entry.prompt]
        if entry.pool != "failure":
            # Each once, or one that is listed twice would be drawn twice as often.
            others = self.data.prompt_augmentation.get(entry.prompt, ())
            prompts = list(dict.fromkeys([*prompts, *others]))
        return Sample(
            window=window,
            prompt=prompts[int(random.integers(len(prompts)))],
            images=images,
            proprio=proprio.normalise(now.state).astype(np.float32),
            actions=actions.ravel().astype(np.float32),
            future_proprio=proprio.normalise(later.state).astype(np.float32),
            value=value_target(
                0.0 if entry.worthless is not None and entry.worthless[future] else entry.score,
                len(windows) - 1 - future,
                self.objective.discount,
                self.objective.numerics,
            ),
            future=future,
            replaced=replaced,
        )

    def _moment(self, index: int, step: int) -> Moment:
        """Return images and state of an episode's step, from memory or disk if they are there."""
        key = (index, step)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        entry = self.dataset_index.entries[index]
        moment = self.prepared.moment(entry, step) if self.prepared is not None else None
        if moment is None:
            moment = moment_of(entry, step, self.config)
        if self.data.augmentation == "none":
            cropped = [centre_crop(image) for image in torch.from_numpy(moment.images)]
            moment = moment._replace(images=torch.stack(cropped).numpy())
        limit = self.data.cache_gb * GIGABYTE / max(self.data.workers, 1)
        if moment.images.nbytes <= limit:
            self._cache[key] = moment
            self._cached_bytes += moment.images.nbytes
        while self._cached_bytes > limit:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.images.nbytes
        return moment


def value_target(score: float, steps_left: int, discount: float, numerics: Numerics) -> float:
    """Return the training target of a state's value: its discounted return, as -1 to 1.

    The reward comes at the end only: the return is discount ** steps_left * reward. "paper": the
    reward is the score, so a half done task is worth half. "released": the code divides the return
    by the reward again, so that every score above zero counts as full success.

    Args:
        score: of the episode, in [0, 1]; 1 for a demonstration.
        steps_left: control steps from the state to the last one of the episode; 0 at the end.
        discount: per control step, in (0, 1]; 0.998 for ALOHA.
        numerics: which of the two.

    Raises:
        ValueError: an argument outside its range.
    """
    if not 0 <= score <= 1:
        raise ValueError(
            f"score {score} lies outside 0 ... 1; an operator's 0-100 is divided by 100"
        )
    if steps_left < 0:
        raise ValueError(f"{steps_left} steps left; the state lies behind the episode's end")
    if not 0 < discount <= 1:
        raise ValueError(f"discount {discount} lies outside 0 ... 1, without 0")
    reward = score if numerics == "paper" else float(score > 0)
    return 2 * discount**steps_left * reward - 1


# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class Shard:
    """The slots of every step that are this process's, in micro-batches.

    Attributes:
        batch: samples per step over all processes.
        micro_batch: at once; the last of a step may be smaller.
        rank, world: of the process.
        first_step, steps: of the optimiser: from, and up to (not including).
    """

    batch: int
    micro_batch: int
    rank: int
    world: int
    first_step: int
    steps: int

    def slots(self, step: int) -> list[list[BatchSlot]]:
        """Return the micro-batches of a step."""
        own, size = self.batch // self.world, self.micro_batch
        slots = [BatchSlot(step, place) for place in range(self.rank * own, (self.rank + 1) * own)]
        return [slots[first : first + size] for first in range(0, own, size)]

    def __iter__(self) -> Iterator[list[BatchSlot]]:
        for step in range(self.first_step, self.steps):
            yield from self.slots(step)


def load(maker: SampleMaker, shard: Shard) -> Iterator[Batch]:
    """Yield this process's micro-batches, read ahead by ``data.workers`` processes."""
    workers = maker.data.workers
    loader = DataLoader(
        maker,
        batch_sampler=shard,
        num_workers=workers,
        collate_fn=collate,
        # Forking a process that has a GPU, or threads, is asking for a hang.
        multiprocessing_context="spawn" if workers else None,
    )
    return iter(loader)


# ---------------------------------------------------------------- augmentation
#
# As the released trainer does with torchvision: a crop of 90 % of the area, if strong a rotation by
# up to five degrees, then brightness, contrast, saturation and hue, the same for all images of a
# sample. Frames without an image stay black. At test time a centre crop stands for all of it.

MAX_ANGLE = 5.0  # degrees; "strong" only
MAX_HUE = 0.05  # of a full turn of the colour circle
# How far the factors of brightness, contrast and saturation may be from 1.
JITTER = {"standard": (0.2, 0.2, 0.2), "strong": (0.3, 0.4, 0.5)}
GREY = torch.tensor([0.2989, 0.587, 0.114])  # weights of red, green and blue


class Augmentation(NamedTuple):
    """One draw.

    Attributes:
        top, left: position of the crop, 0 to 1.
        angle: degrees, counter-clockwise.
        brightness, contrast, saturation: factors.
        hue: fraction of a full turn.
    """

    top: float
    left: float
    angle: float
    brightness: float
    contrast: float
    saturation: float
    hue: float


def draw_augmentation(strength: Strength, random: np.random.Generator) -> Augmentation | None:
    """Draw an augmentation; None for "none"."""
    if strength == "none":
        return None
    angle = random.uniform(-MAX_ANGLE, MAX_ANGLE) if strength == "strong" else 0.0
    brightness, contrast, saturation = (
        random.uniform(1 - most, 1 + most) for most in JITTER[strength]
    )
    top, left, hue = random.random(), random.random(), random.uniform(-MAX_HUE, MAX_HUE)
    return Augmentation(top, left, angle, brightness, contrast, saturation, hue)


def apply_augmentation(augmentation: Augmentation, images: ImageArray) -> ImageArray:
    """Change (N, S, S, 3) uint8 images, all in the same way."""
    a, size = augmentation, images.shape[1]
    window = round(size * math.sqrt(CROP_AREA))
    room = size - window + 1
    pixels = torch.tensor(images).permute(0, 3, 1, 2)
    pixels = enlarge(pixels, int(a.top * room), int(a.left * room), window)
    if a.angle:
        # About the centre; what comes in from outside is black.
        cos, sin = math.cos(math.radians(a.angle)), math.sin(math.radians(a.angle))
        rotation = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(pixels), -1, -1)
        grid = affine_grid(rotation, list(pixels.shape), align_corners=False)
        rotated = grid_sample(pixels.float(), grid, mode="nearest", align_corners=False)
        pixels = rotated.to(torch.uint8)
    pixels = _blend(pixels, torch.zeros(()), a.brightness)
    # The mean is each image's own: how dark it is, not how dark its neighbours are.
    pixels = _blend(pixels, _grey(pixels).float().mean((1, 2, 3), keepdim=True), a.contrast)
    pixels = _blend(pixels, _grey(pixels), a.saturation)
    shifted = []
    for image in pixels.permute(0, 2, 3, 1).numpy():
        hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + 360 * a.hue) % 360
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        # The last level as wide as the others, as torchvision counts them.
        shifted.append((rgb.clip(0, 1) * 255.999).astype(np.uint8))
    return np.stack(shifted)


def _blend(pixels: Tensor, other: Tensor, factor: float) -> Tensor:
    """Mix another image in, or take it away; levels are truncated, not rounded."""
    mixed = factor * pixels.float() + (1 - factor) * other.float()
    return mixed.clamp(0, 255).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    return (pixels.float() * GREY.view(3, 1, 1)).sum(1, keepdim=True).to(torch.uint8)
