"""What checkpoints imagined of rollouts beside what came, as a picture (paper, Figure 6)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cosmos_policy_ros.dataset.contact_sheet import tabulate
from cosmos_policy_ros.model.images import Picture
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sampler import Draw
from cosmos_policy_ros.model.sequence import Scene
from cosmos_policy_ros.training.config import DataConfig
from cosmos_policy_ros.training.dataset_index import Census
from cosmos_policy_ros.training.value_evaluation import Lot, read_lots, windows_of

Look = Mapping[str, Picture]  # by camera


def imagination_sheet(
    policies: Mapping[str, CosmosPolicy],
    data: DataConfig,
    census: Census,
    *,
    steps: int,
    columns: int = 6,
) -> Picture:
    """Draw windows of rollouts: what was seen, what came, and what each checkpoint imagined.

    Args:
        policies: by the name of their row; at least one, all with the same cameras.
        data: names the rollouts.
        census: of them; the windows are spread evenly over all.
        steps: of denoising.
        columns: most windows.

    Returns:
        An RGB picture with a column per window.
    """
    first = next(iter(policies.values()))
    every = windows_of(census, first)
    spread = np.linspace(0, len(every) - 1, min(columns, len(every))).astype(int)
    chosen = [every[index] for index in spread]
    lots = {name: list(read_lots(each, data, census, chosen, 1)) for name, each in policies.items()}
    windows = next(iter(lots.values()))
    looks = {
        "seen": [_seen(lot, first) for lot in windows],
        "came": [_seen(lot, first, later=True) for lot in windows],
    }
    looks |= {name: [_imagined(lot, policies[name], steps) for lot in lots[name]] for name in lots}
    return tabulate(
        [_head(lot, first) for lot in windows],
        {
            f"{camera}, {name}": [look[camera] for look in row]
            for camera in first.checkpoint.layout.cameras
            for name, row in looks.items()
        },
    )


def _head(lot: Lot, policy: CosmosPolicy) -> str:
    (pick,) = lot.batch.picks
    return f"{lot.source.pool}, {pick.start * policy.checkpoint.config.dt:.0f} s"


def _seen(lot: Lot, policy: CosmosPolicy, later: bool = False) -> Look:
    cameras = policy.checkpoint.layout.cameras
    pictures = lot.batch.pictures[0].numpy()
    half = pictures[len(cameras) :] if later else pictures[: len(cameras)]
    return dict(zip(cameras, half, strict=True))


def _imagined(lot: Lot, policy: CosmosPolicy, steps: int) -> Look:
    prompt = lot.source.prompt
    scene = Scene(prompt, _seen(lot, policy), lot.clean)
    (look,) = policy.depict(scene, policy.imagine(prompt, lot.clean, [Draw(0, steps)]))
    return look
