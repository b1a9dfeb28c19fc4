"""Which window every sample of every batch is, and in which role: a function of seed and place.

Nothing is remembered from one batch to the next, so a run that is resumed, or spread over more
processes, sees the same samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import TrainingError
from cosmos_policy_ros.training.config import MixtureConfig, Role
from cosmos_policy_ros.training.dataset_index import DatasetIndex, Pool


class WindowRef(NamedTuple):
    """One sample: a window of an episode, its role, and the seed of all that is random in it."""

    role: Role
    source: int
    start: int
    seed: int


class _Cell(NamedTuple):
    role: Role
    share: float
    pools: tuple[Pool, ...]


class Mixture:
    """Draws picks."""

    def __init__(self, dataset_index: DatasetIndex, config: MixtureConfig, seed: int) -> None:
        """Divide the roles' shares among the pools.

        Raises:
            TrainingError: a role has a share, and no episode to learn it from.
        """
        self._seed, self._exact = seed, config.draw == "exact"
        cells = _cells(dataset_index, config)
        self._roles = [cell.role for cell in cells]
        shares = np.array([cell.share for cell in cells])
        self._edges = np.cumsum(shares / shares.sum())
        self._windows = [_windows(dataset_index, cell.pools) for cell in cells]
        self.shares = {
            role: float(sum(c.share for c in cells if c.role == role) / shares.sum())
            for role in dict.fromkeys(self._roles)
        }

    def pick(self, step: int, place: int, batch: int, attempt: int = 0) -> WindowRef:
        """Return the sample at ``place`` of ``batch`` in a step.

        Args:
            step: of the optimiser, from 0.
            place: 0 to ``batch`` - 1, over all processes.
            batch: samples per step.
            attempt: another window in the same role, where the first could not be read.
        """
        draw = np.random.default_rng([self._seed, step, place, attempt])
        cell = self._cell(step, place, batch, draw.random())
        sources, starts = self._windows[cell]
        chosen = int(draw.integers(len(starts)))
        seed = int(draw.integers(2**63 - 1))
        return WindowRef(self._roles[cell], int(sources[chosen]), int(starts[chosen]), seed)

    def _cell(self, step: int, place: int, batch: int, chance: float) -> int:
        if self._exact:
            # Evenly spread over the shares; shifted anew in each step, so that a fraction of half a
            # sample has one in every second batch.
            shift = np.random.default_rng([self._seed, step]).random()
            chance = (place + shift) / batch
        return min(int(np.searchsorted(self._edges, chance, side="right")), len(self._roles) - 1)


def _cells(dataset_index: DatasetIndex, config: MixtureConfig) -> list[_Cell]:
    def there(*pools: Pool) -> bool:
        return any(dataset_index.pool(pool) for pool in pools)

    succeeded: tuple[Pool, ...] = ("success",)
    if config.demonstrations_as_rollouts:
        succeeded = ("success", "demonstration")
    halves: list[tuple[float, tuple[Pool, ...]]] = [
        (config.success_fraction, succeeded),
        (1 - config.success_fraction, ("failure",)),
    ]
    # One pool that is empty leaves all to the other.
    filled = [(share, pools) for share, pools in halves if share and there(*pools)]
    whole = sum(share for share, _ in filled)
    cells = []
    if config.policy:
        if not there("demonstration"):
            raise TrainingError(_lacking("policy", "demonstrations"))
        cells.append(_Cell("policy", config.policy, ("demonstration",)))
    roles: Sequence[tuple[Role, float]] = (
        ("world_model", config.world_model),
        ("value", config.value),
    )
    for role, share in roles:
        if not share:
            continue
        if not filled:
            raise TrainingError(_lacking(role, "rollouts"))
        cells += [_Cell(role, share * part / whole, pools) for part, pools in filled]
    return cells


def _windows(
    dataset_index: DatasetIndex, pools: Sequence[Pool]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return every window of some pools: its source's index and its first step."""
    chosen = [index for pool in pools for index in dataset_index.pool(pool)]
    starts = [dataset_index.sources[index].starts for index in chosen]
    sources = [np.full(len(s), index, np.int64) for index, s in zip(chosen, starts, strict=True)]
    return np.concatenate(sources), np.concatenate(starts)


def _lacking(role: str, episodes: str) -> str:
    return (
        f"mixture.{role} asks for a fraction of the batch, but there are no {episodes} to learn it "
        f"from; add some to data.{episodes}, or set mixture.{role}: 0"
    )
