"""The batched search is the serial procedure of the released code, candidate by candidate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sampler import Draw
from cosmos_policy_ros.model.sequence import Scene
from cosmos_policy_ros.planning.search import SearchConfig, evaluations, search
from cosmos_policy_ros.rig.observation import Observation
from cosmos_policy_ros.rig.share import config_folder

PROMPT = "transfer the red cube"
TINY = config_folder("models") / "tiny_random"
ROUNDING = 2e-4  # of a value; batches of another size take other kernels, over many steps


def load(numerics: Numerics) -> CosmosPolicy:
    return CosmosPolicy.load(TINY, numerics=numerics, denoising_steps=3)


@pytest.fixture(scope="module", params=["released", "paper"])
def policy(request: pytest.FixtureRequest) -> CosmosPolicy:
    return load(request.param)


def scene_of(policy: CosmosPolicy) -> Scene:
    random = np.random.default_rng(0)
    images = {
        role: random.integers(0, 256, (64, 64, 3), np.uint8)
        for role in ("left_wrist", "right_wrist", "primary")
    }
    statistics = policy.checkpoint.statistics.proprio
    state = (statistics.low + statistics.high) / 2
    return policy.look(PROMPT, Observation(1, images, state, {}))


def serial(policy: CosmosPolicy, scene: Scene, seed: int) -> tuple[list[float], torch.Tensor]:
    """Appraise one candidate the literal way: a future, its values, the next future."""
    released = policy.checkpoint.config.numerics == "released"
    future_steps = [1, 3, 5] if released else [5, 5, 5]
    value_steps = [1, 2, 3, 4, 5] if released else [5] * 5
    action = policy.propose(scene, [Draw(seed, 3)])
    values: list[float] = []
    for i, steps in enumerate(future_steps):
        future = policy.imagine(PROMPT, action, [Draw(seed + i, steps)])
        for j, more in enumerate(value_steps):
            values += policy.appraise(PROMPT, future, [Draw(seed + j, more)], "value_s")
    return values, action


def test_the_batched_search_is_the_serial_one(policy: CosmosPolicy) -> None:
    scene = scene_of(policy)
    found = search(policy, policy, scene, [195, 196, 200], SearchConfig())
    assert [candidate.seed for candidate in found] == [195, 196, 200]
    for candidate in found:
        values, action = serial(policy, scene, candidate.seed)
        np.testing.assert_allclose(candidate.values, values, atol=ROUNDING)
        mine, theirs = policy.chunks(candidate.action), policy.chunks(action)
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
        assert candidate.imagined is not None
        assert len(candidate.values) == 15
        assert candidate.spread == pytest.approx(np.std(values), abs=ROUNDING)


def test_a_candidate_does_not_depend_on_its_company(policy: CosmosPolicy) -> None:
    scene = scene_of(policy)
    config = SearchConfig(futures=2, values=2)
    together = search(policy, policy, scene, [195, 196, 197, 198], config)
    for index, seed in enumerate((195, 196, 197, 198)):
        (alone,) = search(policy, policy, scene, [seed], config)
        np.testing.assert_allclose(together[index].values, alone.values, atol=ROUNDING)
        assert together[index].value == pytest.approx(alone.value, abs=ROUNDING)


def test_depth_goes_on_from_what_was_imagined(policy: CosmosPolicy) -> None:
    scene = scene_of(policy)
    flat = SearchConfig(futures=1, values=2, aggregation="average")
    last = SearchConfig(futures=1, values=2, aggregation="average", depth=2, combination="last")
    both = SearchConfig(futures=1, values=2, aggregation="average", depth=2)
    (one,), (deep,), (mean,) = (
        search(policy, policy, scene, [195], config) for config in (flat, last, both)
    )
    assert deep.values == one.values == mean.values
    torch.testing.assert_close(deep.action, one.action, rtol=0, atol=0, equal_nan=True)
    assert mean.value == pytest.approx((one.value + deep.value) / 2)
    assert deep.value != one.value


def test_q_needs_no_future(policy: CosmosPolicy) -> None:
    scene = scene_of(policy)
    (found,) = search(policy, policy, scene, [195], SearchConfig(value="value_q", values=3))
    assert len(found.values) == 3
    assert found.imagined is None


@pytest.mark.parametrize(
    ("numerics", "config", "expected"),
    [
        ("released", SearchConfig(), 61),
        ("paper", SearchConfig(), 100),
        ("released", SearchConfig(futures=1, values=1), 20),
        ("released", SearchConfig(value="value_q"), 24),
        ("paper", SearchConfig(depth=3), 300),
    ],
)
def test_evaluations_are_counted(numerics: Numerics, config: SearchConfig, expected: int) -> None:
    assert evaluations(10, config, numerics) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"futures": 0}, "futures: 0 must be at least 1"),
        ({"value": "value_q", "depth": 2}, "imagines no future"),
        ({"aggregation": "lcb", "futures": 1, "values": 1}, "no standard deviation"),
    ],
)
def test_impossible_searches_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**changes)
