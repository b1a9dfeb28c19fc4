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
from cosmos_policy_ros.model.sampler import SampleSpec
from cosmos_policy_ros.training.config import DataConfig, MixtureConfig, ObjectiveConfig
from cosmos_policy_ros.training.dataset_index import DatasetIndex, EpisodeEntry
from cosmos_policy_ros.training.mixture import Mixture, WindowRef
from cosmos_policy_ros.training.samples import Batch, SampleMaker, collate
from cosmos_policy_ros.training.targets import TargetMaker

AT_ONCE = 16  # windows


@dataclass(frozen=True)
class WindowBatch:
    """Windows of an episode side by side.

    Attributes:
        source: the episode.
        batch: its windows.
        clean: (B, 16, T, h, w), all that was seen, done and came.
    """

    source: EpisodeEntry
    batch: Batch
    clean: Tensor


@dataclass(frozen=True)
class ValueEvaluation:
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


def evaluate_values(
    policy: CosmosPolicy,
    data: DataConfig,
    dataset_index: DatasetIndex,
    mode: ValueMode,
    *,
    steps: int,
) -> ValueEvaluation:
    """Imagine and value what followed in scored episodes, chunk after chunk.

    Args:
        policy: a checkpoint; as a world model it should have been trained for ``mode``.
        data: names scored episodes that it did not learn from.
        dataset_index: of them.
        mode: what values are conditioned on.
        steps: of denoising.
    """
    layout = policy.checkpoint.layout
    cameras = [layout.index(FUTURE + camera) for camera in layout.cameras]
    succeeded: list[bool] = []
    true: list[float] = []
    imagined: list[float] = []
    errors: list[float] = []
    for batch in read_lots(policy, data, dataset_index, windows_of(dataset_index, policy), AT_ONCE):
        prompt, clean = batch.source.prompt, batch.clean
        draws = [SampleSpec(number, steps) for number in range(len(clean))]
        future = policy.predict_future(prompt, clean, draws)
        true += policy.predict_value(prompt, clean, draws, mode)
        imagined += policy.predict_value(prompt, future, draws, mode)
        off = (future[:, :, cameras] - clean[:, :, cameras]).abs().mean(dim=(1, 2, 3, 4))
        errors += off.tolist()
        succeeded += [batch.source.pool == "success"] * len(clean)
    return ValueEvaluation(
        np.array(succeeded, dtype=bool), np.array(true), np.array(imagined), float(np.mean(errors))
    )


def windows_of(dataset_index: DatasetIndex, policy: CosmosPolicy) -> list[WindowRef]:
    """Return windows a chunk apart, of all episodes."""
    every = policy.checkpoint.config.chunk_steps
    return [
        WindowRef("world_model", index, int(start), 0)
        for index, source in enumerate(dataset_index.sources)
        for start in source.starts[::every]
    ]


def read_lots(
    policy: CosmosPolicy,
    data: DataConfig,
    dataset_index: DatasetIndex,
    windows: Sequence[WindowRef],
    at_once: int,
) -> Iterator[WindowBatch]:
    """Read windows as a checkpoint takes them; what is damaged is left out.

    Args:
        policy: whose sizes and autoencoder they are for.
        data: names the episodes.
        dataset_index: of them.
        windows: those of one episode together.
        at_once: most windows in a batch.
    """
    checkpoint = policy.checkpoint
    mixture = Mixture(dataset_index, MixtureConfig(policy=0.0, world_model=0.5, value=0.5), 0)
    config, statistics = checkpoint.config, checkpoint.statistics
    maker = SampleMaker(dataset_index, mixture, 1, config, statistics, data, ObjectiveConfig())
    targets = TargetMaker(checkpoint, policy.device)
    for index, picks in groupby(windows, key=lambda pick: pick.source):
        readable = []
        for pick in picks:
            with suppress(ObservationError, RolloutError):
                readable.append(maker.make(pick))
        for first in range(0, len(readable), at_once):
            batch = collate(readable[first : first + at_once])
            yield WindowBatch(dataset_index.sources[index], batch, targets(batch))
