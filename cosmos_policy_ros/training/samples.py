"""A window of an episode as the network takes it, and batches of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cosmos_policy_ros.errors import ObservationError, RolloutError, TrainingError
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.images import Picture, centre_crop
from cosmos_policy_ros.model.layout import layout_named
from cosmos_policy_ros.model.sequence import check_state, reduce_pictures
from cosmos_policy_ros.model.statistics import Statistics
from cosmos_policy_ros.training.augmentation import apply_augmentation, draw_augmentation
from cosmos_policy_ros.training.census import Census
from cosmos_policy_ros.training.config import DataConfig, ObjectiveConfig
from cosmos_policy_ros.training.mixture import Mixture, Pick
from cosmos_policy_ros.training.objective import Role
from cosmos_policy_ros.training.returns import value_target

GIGABYTE = 1e9
MOST_ATTEMPTS = 20  # windows tried for one place of a batch; so many in a row say that all are bad


class Place(NamedTuple):
    """Where a sample stands: the optimiser's step, and 0 to batch - 1 over all processes."""

    step: int
    place: int


@dataclass(frozen=True)
class Sample:
    """One training example.

    Attributes:
        pick: its window, role and seed.
        prompt: the task in words.
        pictures: (2 C, S, S, 3) uint8: the cameras now, then at s', in the layout's order.
        proprio, future_proprio: (p,) float32, normalised.
        actions: (K d,) float32, normalised, time-major.
        value: the return of s' in [-1, 1].
        future: the step of s'.
        replaced: why earlier picks for this place could not be read.
    """

    pick: Pick
    prompt: str
    pictures: Picture
    proprio: NDArray[np.float32]
    actions: NDArray[np.float32]
    future_proprio: NDArray[np.float32]
    value: float
    future: int
    replaced: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Samples side by side; fields as those of :class:`Sample`, with B in front."""

    picks: tuple[Pick, ...]
    prompts: tuple[str, ...]
    pictures: Tensor
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
    pictures: Picture  # (C, S, S, 3)
    state: NDArray[np.float64]


@dataclass
class SampleMaker(Dataset[Sample]):
    """Makes the sample at any :class:`Place`, from the bags.

    Attributes:
        census: the episodes.
        mixture: says which window is where.
        batch: samples per step.
        config: of the checkpoint: sizes.
        statistics: ranges to normalise by.
        data: augmentation and cache.
        objective: what a value is.
    """

    census: Census
    mixture: Mixture
    batch: int
    config: CheckpointConfig
    statistics: Statistics
    data: DataConfig
    objective: ObjectiveConfig
    _kept: OrderedDict[tuple[int, int], _Look] = field(default_factory=OrderedDict)
    _kept_bytes: int = 0

    def __getitem__(self, place: Place) -> Sample:
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
                path = self.census.sources[pick.source].windows.episode.path
                reasons.append(f"{path.name}, step {pick.start}: {error}")
        raise TrainingError(
            f"{MOST_ATTEMPTS} windows in a row cannot be read, the last one of {reasons[-1]}; "
            f"'episodes verify' tells what is damaged"
        )

    def make(self, pick: Pick, replaced: tuple[str, ...] = ()) -> Sample:
        """Return the sample of a pick.

        Raises:
            ObservationError: one of its two moments is not usable.
            RolloutError: the bag is damaged there.
        """
        source = self.census.sources[pick.source]
        windows, steps = source.windows, self.config.chunk_steps
        future = windows.future(pick.start, steps)
        now, later = self._look(pick.source, pick.start), self._look(pick.source, future)
        actions = windows.chunk(pick.start, steps)
        proprio = self.statistics.proprio
        pictures = np.concatenate([now.pictures, later.pictures])
        change = draw_augmentation(self.data.augmentation, np.random.default_rng(pick.seed))
        if change is not None:
            pictures = apply_augmentation(change, pictures)
        return Sample(
            pick=pick,
            prompt=source.prompt,
            pictures=pictures,
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
        windows = self.census.sources[source].windows
        observation = windows.observe(int(windows.steps.times_ns[step]))
        check_state(observation.state, self.config.proprio_dims)
        reduced = reduce_pictures(observation, self.config)
        pictures = [reduced[role] for role in layout_named(self.config.layout).cameras]
        if self.data.augmentation == "none":
            pictures = [centre_crop(picture) for picture in pictures]
        look = _Look(np.stack(pictures), observation.state)
        self._keep(key, look)
        return look

    def _keep(self, key: tuple[int, int], look: _Look) -> None:
        limit = self.data.cache_gb * GIGABYTE / max(self.data.workers, 1)
        if look.pictures.nbytes > limit:
            return
        self._kept[key] = look
        self._kept_bytes += look.pictures.nbytes
        while self._kept_bytes > limit:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.pictures.nbytes


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples side by side."""

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))

    return Batch(
        picks=tuple(sample.pick for sample in samples),
        prompts=tuple(sample.prompt for sample in samples),
        pictures=stacked("pictures"),
        proprio=stacked("proprio"),
        actions=stacked("actions"),
        future_proprio=stacked("future_proprio"),
        value=torch.tensor([sample.value for sample in samples], dtype=torch.float32),
        futures=tuple(sample.future for sample in samples),
        replaced=tuple(reason for sample in samples for reason in sample.replaced),
    )


@dataclass(frozen=True)
class Share:
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

    def places(self, step: int) -> list[list[Place]]:
        """Return the micro-batches of a step."""
        own = self.batch // self.world
        mine = [Place(step, place) for place in range(self.rank * own, (self.rank + 1) * own)]
        size = self.micro_batch
        return [mine[first : first + size] for first in range(0, own, size)]

    def __iter__(self) -> Iterator[list[Place]]:
        for step in range(self.first_step, self.steps):
            yield from self.places(step)


def load(maker: SampleMaker, share: Share) -> Iterator[Batch]:
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
