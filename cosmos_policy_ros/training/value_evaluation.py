"""How a checkpoint imagines and values rollouts that it did not learn from, window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.model.layout import FUTURE, ValueMode
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sampler import Draw
from cosmos_policy_ros.training.config import DataConfig, MixtureConfig, ObjectiveConfig
from cosmos_policy_ros.training.dataset_index import Census, Source
from cosmos_policy_ros.training.mixture import Mixture, Pick
from cosmos_policy_ros.training.samples import Batch, SampleMaker, collate
from cosmos_policy_ros.training.targets import TargetMaker

AT_ONCE = 16  # windows


@dataclass(frozen=True)
class Lot:
    """Windows of an episode side by side.

    Attributes:
        source: the episode.
        batch: its windows.
        clean: (B, 16, T, h, w), all that was seen, done and came.
    """

    source: Source
    batch: Batch
    clean: Tensor


@dataclass(frozen=True)
class Appraisal:
    """How a checkpoint appraises windows of rollouts whose end is known.

    Attributes:
        succeeded: per window, whether its episode did.
        true, imagined: per window, the value of the future that came, and of the one imagined from
            what was seen and done.
        world_l1: mean absolute error of the imagined cameras' latents, whose scale is 1.
    """

    succeeded: NDArray[np.bool_]
    true: NDArray[np.float64]
    imagined: NDArray[np.float64]
    world_l1: float

    @property
    def auc_true(self) -> float | None:
        """How often a window of a success is valued above one of a failure, by what came."""
        return auc(self.true, self.succeeded)

    @property
    def auc_imagined(self) -> float | None:
        """The same by what was imagined."""
        return auc(self.imagined, self.succeeded)


def auc(values: NDArray[np.float64], succeeded: NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve, ties counting half; None where all ended alike."""
    good, bad = values[succeeded], values[~succeeded]
    if not len(good) or not len(bad):
        return None
    above = (good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean()
    return float(above)


def appraise(
    policy: CosmosPolicy,
    data: DataConfig,
    census: Census,
    mode: ValueMode,
    *,
    steps: int,
) -> Appraisal:
    """Imagine and value what followed in scored episodes, chunk after chunk.

    Args:
        policy: a checkpoint; as a planner it should have been trained for ``mode``.
        data: names scored episodes that it did not learn from.
        census: of them.
        mode: what values are conditioned on.
        steps: of denoising.
    """
    layout = policy.checkpoint.layout
    cameras = [layout.index(FUTURE + camera) for camera in layout.cameras]
    succeeded: list[bool] = []
    true: list[float] = []
    imagined: list[float] = []
    errors: list[float] = []
    for lot in read_lots(policy, data, census, windows_of(census, policy), AT_ONCE):
        prompt, clean = lot.source.prompt, lot.clean
        draws = [Draw(number, steps) for number in range(len(clean))]
        future = policy.imagine(prompt, clean, draws)
        true += policy.appraise(prompt, clean, draws, mode)
        imagined += policy.appraise(prompt, future, draws, mode)
        off = (future[:, :, cameras] - clean[:, :, cameras]).abs().mean(dim=(1, 2, 3, 4))
        errors += off.tolist()
        succeeded += [lot.source.pool == "success"] * len(clean)
    return Appraisal(
        np.array(succeeded, dtype=bool), np.array(true), np.array(imagined), float(np.mean(errors))
    )


def windows_of(census: Census, policy: CosmosPolicy) -> list[Pick]:
    """Return windows a chunk apart, of all episodes."""
    every = policy.checkpoint.config.chunk_steps
    return [
        Pick("world_model", index, int(start), 0)
        for index, source in enumerate(census.sources)
        for start in source.starts[::every]
    ]


def read_lots(
    policy: CosmosPolicy, data: DataConfig, census: Census, windows: Sequence[Pick], at_once: int
) -> Iterator[Lot]:
    """Read windows as a checkpoint takes them; what is damaged is left out.

    Args:
        policy: whose sizes and autoencoder they are for.
        data: names the episodes.
        census: of them.
        windows: those of one episode together.
        at_once: most windows in a lot.
    """
    checkpoint = policy.checkpoint
    mixture = Mixture(census, MixtureConfig(policy=0.0, world_model=0.5, value=0.5), 0)
    config, statistics = checkpoint.config, checkpoint.statistics
    maker = SampleMaker(census, mixture, 1, config, statistics, data, ObjectiveConfig())
    targets = TargetMaker(checkpoint, policy.device)
    for index, picks in groupby(windows, key=lambda pick: pick.source):
        readable = []
        for pick in picks:
            with suppress(ObservationError, RolloutError):
                readable.append(maker.make(pick))
        for first in range(0, len(readable), at_once):
            batch = collate(readable[first : first + at_once])
            yield Lot(census.sources[index], batch, targets(batch))
