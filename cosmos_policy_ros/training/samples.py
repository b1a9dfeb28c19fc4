"""A window of an episode as the network takes it, and batches of them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import DataLoader, Dataset

from cosmos_policy_ros.core.errors import ObservationError, RolloutError, TrainingError
from cosmos_policy_ros.model.config import CheckpointConfig, Numerics
from cosmos_policy_ros.model.images import CROP_AREA, ImageArray, centre_crop, enlarge
from cosmos_policy_ros.model.layout import LAYOUTS
from cosmos_policy_ros.model.sequence import check_state, reduce_images
from cosmos_policy_ros.model.statistics import Statistics
from cosmos_policy_ros.training.config import DataConfig, ObjectiveConfig, Role, Strength
from cosmos_policy_ros.training.dataset_index import DatasetIndex
from cosmos_policy_ros.training.mixture import Mixture, WindowRef

# Random changes to a sample's images, the same for all of them.
#
# What the released trainer does with torchvision, drawn and applied here: a crop of 90 % of the
# area, for ALOHA a turn by up to five degrees, then brightness, contrast, saturation and hue.
# Frames that hold no image stay black. At test time a centre crop stands for all of it.


MOST_TURNED = 5.0  # degrees; "strong" only
MOST_HUE = 0.05  # of a full turn of the colour circle
# How far the factors of brightness, contrast and saturation may be from 1.
JITTER = {"standard": (0.2, 0.2, 0.2), "strong": (0.3, 0.4, 0.5)}
GREY = torch.tensor([0.2989, 0.587, 0.114])  # shares of red, green and blue


class Augmentation(NamedTuple):
    """One draw.

    Attributes:
        top, left: of the crop's corner, in shares of the room it has.
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
    angle = random.uniform(-MOST_TURNED, MOST_TURNED) if strength == "strong" else 0.0
    brightness, contrast, saturation = (
        random.uniform(1 - most, 1 + most) for most in JITTER[strength]
    )
    return Augmentation(
        top=random.random(),
        left=random.random(),
        angle=angle,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=random.uniform(-MOST_HUE, MOST_HUE),
    )


def apply_augmentation(augmentation: Augmentation, images: ImageArray) -> ImageArray:
    """Change (N, S, S, 3) uint8 images, all in the same way."""
    a, size = augmentation, images.shape[1]
    window = round(size * math.sqrt(CROP_AREA))
    room = size - window + 1
    pixels = torch.tensor(images).permute(0, 3, 1, 2)
    pixels = enlarge(pixels, int(a.top * room), int(a.left * room), window)
    if a.angle:
        pixels = _turn(pixels, a.angle)
    pixels = _blend(pixels, torch.zeros(()), a.brightness)
    # The mean is each image's own: how dark it is, not how dark its neighbours are.
    pixels = _blend(pixels, _grey(pixels).float().mean((1, 2, 3), keepdim=True), a.contrast)
    pixels = _blend(pixels, _grey(pixels), a.saturation)
    turned = [_shift_hue(image, a.hue) for image in pixels.permute(0, 2, 3, 1).numpy()]
    return np.stack(turned)


def _turn(pixels: Tensor, degrees: float) -> Tensor:
    """Turn (N, 3, S, S) about the centre; what comes in from outside is black."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    where = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(pixels), -1, -1)
    grid = affine_grid(where, list(pixels.shape), align_corners=False)
    turned = grid_sample(pixels.float(), grid, mode="nearest", align_corners=False)
    return turned.to(torch.uint8)


def _blend(pixels: Tensor, other: Tensor, factor: float) -> Tensor:
    """Mix in, or take away, another image; numbers are cut off, not rounded."""
    mixed = factor * pixels.float() + (1 - factor) * other.float()
    return mixed.clamp(0, 255).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    return (pixels.float() * GREY.view(3, 1, 1)).sum(1, keepdim=True).to(torch.uint8)


def _shift_hue(image: ImageArray, turn: float) -> ImageArray:
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    # The last level as wide as the others, as torchvision counts them.
    return (rgb.clip(0, 1) * 255.999).astype(np.uint8)


# What a state was worth: the discounted return of an episode, as the value frame holds it.


def value_target(score: float, steps_left: int, discount: float, numerics: Numerics) -> float:
    """Return the training target of a state's value.

    The reward comes at the end only: the return is discount ** steps_left * reward. "paper": the
    reward is the score, so a half done task is worth half. "released": the code divides the return
    by the reward again, so that every score above zero counts as full success.

    Args:
        score: of the episode, in [0, 1]; 1 for a demonstration.
        steps_left: control steps from the state to the last one of the episode; 0 at the end.
        discount: per control step, in (0, 1]; 0.998 for ALOHA.
        numerics: which of the two.

    Returns:
        A number in [-1, 1]; -1 for a failure, 1 for a success at its end.

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


GIGABYTE = 1e9
MOST_ATTEMPTS = 20  # windows tried for one place of a batch; so many in a row say that all are bad


class BatchSlot(NamedTuple):
    """Where a sample stands: the optimiser's step, and 0 to batch - 1 over all processes."""

    step: int
    place: int


@dataclass(frozen=True)
class Sample:
    """One training example.

    Attributes:
        pick: its window, role and seed.
        prompt: the task in words.
        images: (2 C, S, S, 3) uint8: the cameras now, then at s', in the layout's order.
        proprio, future_proprio: (p,) float32, normalised.
        actions: (K d,) float32, normalised, time-major.
        value: the return of s' in [-1, 1].
        future: the step of s'.
        replaced: why earlier picks for this place could not be read.
    """

    pick: WindowRef
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

    picks: tuple[WindowRef, ...]
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
        return tuple(pick.role for pick in self.picks)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The samples' seeds."""
        return tuple(pick.seed for pick in self.picks)


class _Look(NamedTuple):
    images: ImageArray  # (C, S, S, 3)
    state: NDArray[np.float64]


@dataclass
class SampleMaker(Dataset[Sample]):
    """Makes the sample at any :class:`BatchSlot`, from the bags.

    Attributes:
        dataset_index: the episodes.
        mixture: says which window is where.
        batch: samples per step.
        config: of the checkpoint: sizes.
        statistics: ranges to normalise by.
        data: augmentation and cache.
        objective: what a value is.
    """

    dataset_index: DatasetIndex
    mixture: Mixture
    batch: int
    config: CheckpointConfig
    statistics: Statistics
    data: DataConfig
    objective: ObjectiveConfig
    _kept: OrderedDict[tuple[int, int], _Look] = field(default_factory=OrderedDict)
    _kept_bytes: int = 0

    def __getitem__(self, place: BatchSlot) -> Sample:
        """Return a sample; where its window cannot be read, another one of the same role.

        Raises:
            TrainingError: nor can any of many others.
        """
        reasons: list[str] = []
        for attempt in range(MOST_ATTEMPTS):
            pick = self.mixture.pick(place.step, place.place, self.batch, attempt)
            try:
                return self.make(pick, tuple(reasons))
            except (ObservationError, RolloutError) as error:
                path = self.dataset_index.sources[pick.source].windows.episode.path
                reasons.append(f"{path.name}, step {pick.start}: {error}")
        raise TrainingError(
            f"{MOST_ATTEMPTS} windows in a row cannot be read, the last one of {reasons[-1]}; "
            f"'cosmos episodes verify' tells what is damaged"
        )

    def make(self, pick: WindowRef, replaced: tuple[str, ...] = ()) -> Sample:
        """Return the sample of a pick.

        Raises:
            ObservationError: one of its two moments is not usable.
            RolloutError: the bag is damaged there.
        """
        source = self.dataset_index.sources[pick.source]
        windows, steps = source.windows, self.config.chunk_steps
        future = windows.future(pick.start, steps)
        now, later = self._look(pick.source, pick.start), self._look(pick.source, future)
        actions = windows.chunk(pick.start, steps)
        proprio = self.statistics.proprio
        images = np.concatenate([now.images, later.images])
        change = draw_augmentation(self.data.augmentation, np.random.default_rng(pick.seed))
        if change is not None:
            images = apply_augmentation(change, images)
        return Sample(
            pick=pick,
            prompt=source.prompt,
            images=images,
            proprio=proprio.normalise(now.state).astype(np.float32),
            actions=self.statistics.actions.normalise(actions).ravel().astype(np.float32),
            future_proprio=proprio.normalise(later.state).astype(np.float32),
            value=self._value(source.score, len(windows) - 1 - future),
            future=future,
            replaced=replaced,
        )

    def _value(self, score: float, steps_left: int) -> float:
        objective = self.objective
        return value_target(score, steps_left, objective.discount, objective.numerics)

    def _look(self, source: int, step: int) -> _Look:
        """Return what was seen at a step, from memory if it is there."""
        key = (source, step)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        windows = self.dataset_index.sources[source].windows
        observation = windows.observe(int(windows.steps.times_ns[step]))
        check_state(observation.state, self.config.proprio_dims)
        reduced = reduce_images(observation, self.config)
        images = [reduced[role] for role in LAYOUTS[self.config.layout].cameras]
        if self.data.augmentation == "none":
            images = [centre_crop(image) for image in images]
        look = _Look(np.stack(images), observation.state)
        self._keep(key, look)
        return look

    def _keep(self, key: tuple[int, int], look: _Look) -> None:
        limit = self.data.cache_gb * GIGABYTE / max(self.data.workers, 1)
        if look.images.nbytes > limit:
            return
        self._kept[key] = look
        self._kept_bytes += look.images.nbytes
        while self._kept_bytes > limit:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.images.nbytes


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples side by side."""

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))

    return Batch(
        picks=tuple(sample.pick for sample in samples),
        prompts=tuple(sample.prompt for sample in samples),
        images=stacked("images"),
        proprio=stacked("proprio"),
        actions=stacked("actions"),
        future_proprio=stacked("future_proprio"),
        value=torch.tensor([sample.value for sample in samples], dtype=torch.float32),
        futures=tuple(sample.future for sample in samples),
        replaced=tuple(reason for sample in samples for reason in sample.replaced),
    )


@dataclass(frozen=True)
class Shard:
    """Which places of every step are this process's, in micro-batches.

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

    def places(self, step: int) -> list[list[BatchSlot]]:
        """Return the micro-batches of a step."""
        own = self.batch // self.world
        mine = [BatchSlot(step, place) for place in range(self.rank * own, (self.rank + 1) * own)]
        size = self.micro_batch
        return [mine[first : first + size] for first in range(0, own, size)]

    def __iter__(self) -> Iterator[list[BatchSlot]]:
        for step in range(self.first_step, self.steps):
            yield from self.places(step)


def load(maker: SampleMaker, share: Shard) -> Iterator[Batch]:
    """Yield this process's micro-batches, read ahead by ``data.workers`` processes."""
    workers = maker.data.workers
    loader = DataLoader(
        maker,
        batch_sampler=share,
        num_workers=workers,
        collate_fn=collate,
        # Forking a process that has a GPU, or threads, is asking for a hang.
        multiprocessing_context="spawn" if workers else None,
    )
    return iter(loader)
