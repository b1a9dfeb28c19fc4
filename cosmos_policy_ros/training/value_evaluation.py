"""How a checkpoint predicts and values rollouts that it did not learn from, window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.model.draws import SampleSpec
from cosmos_policy_ros.model.layout import FUTURE, ValueMode
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.training.batch import Batch, WindowRef, collate
from cosmos_policy_ros.training.config import DataConfig, MixtureConfig, ObjectiveConfig
from cosmos_policy_ros.training.dataset_index import (
    DatasetIndex,
    EpisodeEntry,
    Mixture,
)
from cosmos_policy_ros.training.samples import SampleMaker
from cosmos_policy_ros.training.targets import TargetMaker


@dataclass(frozen=True)
class WindowBatch:
    """Windows of an episode side by side.

    Attributes:
        entry: the episode.
        batch: its windows.
        clean: (B, 16, T, h, w) latents of all that was seen, done and came.
    """

    entry: EpisodeEntry
    batch: Batch
    clean: Tensor


@dataclass(frozen=True)
class ValueEvaluation:
    """How a checkpoint values windows of rollouts whose end is known.

    Attributes:
        succeeded: per window, whether its episode did.
        true, imagined: per window, the value of the future that came, and of the one predicted from
            what was seen and done.
        world_l1: mean absolute error of the predicted cameras' latents, whose scale is 1.
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
        """The same by what was predicted."""
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
    """Predict and value what followed in scored episodes, chunk after chunk.

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
    windows = windows_of(dataset_index, policy)
    for batch in read_batches(policy, data, dataset_index, windows, 16):
        prompt, clean = batch.entry.prompt, batch.clean
        specs = [SampleSpec(number, steps) for number in range(len(clean))]
        future = policy.predict_future(prompt, clean, specs)
        true += policy.predict_value(prompt, clean, specs, mode)
        imagined += policy.predict_value(prompt, future, specs, mode)
        error = (future[:, :, cameras] - clean[:, :, cameras]).abs().mean(dim=(1, 2, 3, 4))
        errors += error.tolist()
        succeeded += [batch.entry.pool == "success"] * len(clean)
    return ValueEvaluation(
        np.array(succeeded, dtype=bool), np.array(true), np.array(imagined), float(np.mean(errors))
    )


def windows_of(dataset_index: DatasetIndex, policy: CosmosPolicy) -> list[WindowRef]:
    """Return windows a chunk apart, of all episodes."""
    every = policy.checkpoint.config.chunk_steps
    return [
        WindowRef("world_model", index, int(start), 0)
        for index, entry in enumerate(dataset_index.entries)
        for start in entry.starts[::every]
    ]


def read_batches(
    policy: CosmosPolicy,
    data: DataConfig,
    dataset_index: DatasetIndex,
    windows: Sequence[WindowRef],
    size: int,
) -> Iterator[WindowBatch]:
    """Read windows as a checkpoint takes them; damaged ones are left out.

    Args:
        policy: whose sizes and autoencoder they are for.
        data: names the episodes.
        dataset_index: of them.
        windows: those of one episode together.
        size: most windows in a batch.
    """
    checkpoint = policy.checkpoint
    mixture = Mixture(dataset_index, MixtureConfig(policy=0.0, world_model=0.5, value=0.5), 0)
    config, statistics = checkpoint.config, checkpoint.statistics
    maker = SampleMaker(dataset_index, mixture, 1, config, statistics, data, ObjectiveConfig())
    targets = TargetMaker(checkpoint, policy.device)
    for index, group in groupby(windows, key=lambda window: window.entry):
        readable = []
        for window in group:
            with suppress(ObservationError, RolloutError):
                readable.append(maker.make(window))
        for first in range(0, len(readable), size):
            batch = collate(readable[first : first + size])
            yield WindowBatch(dataset_index.entries[index], batch, targets(batch))
