"""Shares are exact in every batch, or right on the average; nothing depends on what came before."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_policy_ros.core.errors import TrainingError
from cosmos_policy_ros.training.batch import WindowRef
from cosmos_policy_ros.training.config import MixtureConfig
from cosmos_policy_ros.training.dataset_index import DatasetIndex, Mixture, Pool


class FakeCensus(DatasetIndex):
    """Two episodes per pool, of 10 and 30 windows."""

    def __init__(self, *pools: Pool) -> None:
        from types import SimpleNamespace

        sources: list[Any] = [
            SimpleNamespace(pool=pool, starts=np.arange(n)) for pool in pools for n in (10, 30)
        ]
        super().__init__(tuple(sources), (), (), 0)


ALL: tuple[Pool, ...] = ("demonstration", "success", "failure")
PLANNING = {"policy": 0.1, "world_model": 0.45, "value": 0.45}


def batch(mixture: Mixture, step: int, size: int) -> list[WindowRef]:
    return [mixture.draw(step, place, size) for place in range(size)]


def roles(picks: list[WindowRef]) -> dict[str, int]:
    return dict(Counter(pick.role for pick in picks))


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({}, {"policy": 100, "world_model": 50, "value": 50}),
        (PLANNING, {"policy": 20, "world_model": 90, "value": 90}),
        ({"policy": 1.0, "world_model": 0.0, "value": 0.0}, {"policy": 200}),
        ({"value": 0.0, "world_model": 0.5}, {"policy": 100, "world_model": 100}),
    ],
)
def test_exact_shares_hold_in_every_batch(shares: Any, expected: dict[str, int]) -> None:
    mixture = Mixture(FakeCensus(*ALL), MixtureConfig(**shares), 0)
    for step in range(5):
        assert roles(batch(mixture, step, 200)) == expected


@given(step=st.integers(0, 10**6), size=st.integers(1, 40))
def test_a_small_batch_is_less_than_one_sample_off(step: int, size: int) -> None:
    mixture = Mixture(FakeCensus(*ALL), MixtureConfig(**PLANNING), 1)
    found = roles(batch(mixture, step, size))
    for role, share in PLANNING.items():
        assert abs(found.get(role, 0) - share * size) < 1 + 1e-9


@pytest.mark.parametrize("draw", ["exact", "expected"])
def test_shares_hold_on_the_average(draw: Any) -> None:
    mixture = Mixture(FakeCensus(*ALL), MixtureConfig(**PLANNING, draw=draw), 2)
    found = Counter(pick.role for step in range(1500) for pick in batch(mixture, step, 3))
    for role, share in PLANNING.items():
        assert found[role] / 4500 == pytest.approx(share, abs=0.03)  # four standard errors
    counts = {tuple(sorted(roles(batch(mixture, step, 20)).items())) for step in range(50)}
    assert (len(counts) == 1) == (draw == "exact")


def test_rollouts_are_half_successes_half_failures_however_many_there_are() -> None:
    dataset_index = FakeCensus("demonstration", "failure", "success", "failure")
    config = MixtureConfig(**PLANNING, demonstrations_as_rollouts=False)
    picks = batch(Mixture(dataset_index, config, 3), 0, 2000)
    pools = Counter((p.role, dataset_index.entries[p.entry].pool) for p in picks)
    assert pools == {
        ("policy", "demonstration"): 200,
        **{
            (role, pool): 450
            for role in ("world_model", "value")
            for pool in ("success", "failure")
        },
    }


def test_demonstrations_stand_in_for_successes_in_a_base() -> None:
    dataset_index = FakeCensus("demonstration")
    picks = batch(Mixture(dataset_index, MixtureConfig(), 4), 0, 100)
    assert roles(picks) == {"policy": 50, "world_model": 25, "value": 25}


def test_every_window_of_a_pool_comes_and_they_come_alike() -> None:
    mixture = Mixture(FakeCensus("demonstration"), MixtureConfig(), 5)
    found = Counter((p.entry, p.start) for step in range(100) for p in batch(mixture, step, 40))
    assert len(found) == 40
    assert min(found.values()) > 60
    assert max(found.values()) < 145  # 100 each on the average


def test_a_pick_depends_on_seed_and_place_alone() -> None:
    one, other = (Mixture(FakeCensus(*ALL), MixtureConfig(), 6) for _ in range(2))
    assert batch(one, 7, 16)[::-1] == [other.draw(7, place, 16) for place in reversed(range(16))]
    assert batch(one, 7, 16) != batch(one, 8, 16)
    assert batch(one, 7, 16) != batch(Mixture(FakeCensus(*ALL), MixtureConfig(), 7), 7, 16)
    first, second = (one.draw(7, 3, 16, attempt) for attempt in (0, 1))
    assert first.role == second.role
    assert first.seed != second.seed


@pytest.mark.parametrize(
    ("pools", "shares", "message"),
    [
        (("success",), {}, "mixture.policy .* no demonstrations"),
        (("demonstration",), {"demonstrations_as_rollouts": False}, "world_model .* no rollouts"),
    ],
)
def test_a_role_without_episodes_is_refused(pools: Any, shares: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Mixture(FakeCensus(*pools), MixtureConfig(**shares), 0)
