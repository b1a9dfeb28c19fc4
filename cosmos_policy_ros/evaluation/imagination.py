"""What checkpoints imagined of rollouts beside what came, as an image (paper, Figure 6)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cosmos_policy_ros.dataset.contact_sheet import tabulate
from cosmos_policy_ros.model.images import ImageArray
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sampler import SampleSpec
from cosmos_policy_ros.model.sequence import Conditioning
from cosmos_policy_ros.training.config import DataConfig
from cosmos_policy_ros.training.dataset_index import DatasetIndex
from cosmos_policy_ros.training.value_evaluation import WindowBatch, read_lots, windows_of

Look = Mapping[str, ImageArray]  # by camera


def imagination_sheet(
    policies: Mapping[str, CosmosPolicy],
    data: DataConfig,
    dataset_index: DatasetIndex,
    *,
    steps: int,
    columns: int = 6,
) -> ImageArray:
    """Draw windows of rollouts: what was seen, what came, and what each checkpoint imagined.

    Args:
        policies: by the name of their row; at least one, all with the same cameras.
        data: names the rollouts.
        dataset_index: of them; the windows are spread evenly over all.
        steps: of denoising.
        columns: most windows.

    Returns:
        An RGB image with a column per window.
    """
    first = next(iter(policies.values()))
    every = windows_of(dataset_index, first)
    spread = np.linspace(0, len(every) - 1, min(columns, len(every))).astype(int)
    chosen = [every[index] for index in spread]
    lots = {
        name: list(read_lots(each, data, dataset_index, chosen, 1))
        for name, each in policies.items()
    }
    windows = next(iter(lots.values()))
    looks = {
        "seen": [_seen(batch, first) for batch in windows],
        "came": [_seen(batch, first, later=True) for batch in windows],
    }
    looks |= {
        name: [_imagined(batch, policies[name], steps) for batch in lots[name]] for name in lots
    }
    return tabulate(
        [_head(batch, first) for batch in windows],
        {
            f"{camera}, {name}": [look[camera] for look in row]
            for camera in first.checkpoint.layout.cameras
            for name, row in looks.items()
        },
    )


def _head(batch: WindowBatch, policy: CosmosPolicy) -> str:
    (pick,) = batch.batch.picks
    return f"{batch.source.pool}, {pick.start * policy.checkpoint.config.dt:.0f} s"


def _seen(batch: WindowBatch, policy: CosmosPolicy, later: bool = False) -> Look:
    cameras = policy.checkpoint.layout.cameras
    images = batch.batch.images[0].numpy()
    half = images[len(cameras) :] if later else images[: len(cameras)]
    return dict(zip(cameras, half, strict=True))


def _imagined(batch: WindowBatch, policy: CosmosPolicy, steps: int) -> Look:
    prompt = batch.source.prompt
    scene = Conditioning(prompt, _seen(batch, policy), batch.clean)
    (look,) = policy.decode_images(
        scene, policy.predict_future(prompt, batch.clean, [SampleSpec(0, steps)])
    )
    return look
