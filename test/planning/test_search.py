"""The search is the serial procedure of the released code, candidate by candidate."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.search import PROMPT, TINY, query_of

from cosmos_policy_ros.core.errors import (
    CheckpointError,
    ConfigError,
    CosmosPolicyError,
    WorkerError,
)
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.inference.cosmos_engine import SearchEngine, check_pair
from cosmos_policy_ros.inference.spec import DecodeImages, SearchConfig, SearchInfo, parse_search
from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.model.draws import SampleSpec
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.planning.deadline import price
from cosmos_policy_ros.planning.search import run_search

ROUNDING = 2e-4  # of a value; batches of another size take other kernels, over many steps


def load(numerics: Numerics) -> CosmosPolicy:
    return CosmosPolicy.load(TINY, numerics=numerics, denoising_steps=3)


@pytest.fixture(scope="module", params=["released", "paper"])
def policy(request: pytest.FixtureRequest) -> CosmosPolicy:
    return load(request.param)


# Where the numerics make no difference to what is tested.
RELEASED = pytest.mark.parametrize("policy", ["released"], indirect=True)


@pytest.fixture(scope="module")
def engine(policy: CosmosPolicy) -> SearchEngine:
    return SearchEngine(policy, policy, SearchConfig())


@cache
def serial(
    policy: CosmosPolicy, seed: int, world_model: CosmosPolicy | None = None
) -> tuple[list[float], torch.Tensor]:
    """Value one candidate the literal way: a future, its values, the next future."""
    world_model = world_model or policy
    scene = policy.encode_observation(PROMPT, query_of(policy).observation)
    released = policy.checkpoint.config.numerics == "released"
    future_steps = [1, 3, 5] if released else [5, 5, 5]
    value_steps = [1, 2, 3, 4, 5] if released else [5] * 5
    action = policy.sample_actions(scene, [SampleSpec(seed, 3)])
    values: list[float] = []
    for i, steps in enumerate(future_steps):
        future = world_model.predict_future(PROMPT, action, [SampleSpec(seed + i, steps)])
        for j, more in enumerate(value_steps):
            values += world_model.predict_value(
                PROMPT, future, [SampleSpec(seed + j, more)], "value_s"
            )
    return values, action


@pytest.mark.parametrize("batch", [1, 2])
def test_the_search_is_the_serial_one(
    policy: CosmosPolicy, engine: SearchEngine, batch: int
) -> None:
    config = SearchConfig(candidates=3, candidate_batch=batch)
    decision = run_search(engine, query_of(policy), config)
    assert [candidate.seed for candidate in decision.candidates] == [195, 196, 197]
    for index, candidate in enumerate(decision.candidates):
        values, action = serial(policy, candidate.seed)
        np.testing.assert_allclose(candidate.values, values, atol=ROUNDING)
        assert len(candidate.values) == 15
        assert candidate.spread == pytest.approx(np.std(values), abs=ROUNDING)
        if index == decision.chosen:
            np.testing.assert_allclose(decision.positions, policy.chunks(action)[0], atol=1e-6)
    best = max(candidate.value for candidate in decision.candidates)
    assert decision.candidates[decision.chosen].value == best


def test_the_policy_proposes_and_the_planner_does_the_rest(
    policy: CosmosPolicy, planning_checkpoint: Path
) -> None:
    numerics = policy.checkpoint.config.numerics
    world_model = CosmosPolicy.load(planning_checkpoint, numerics=numerics)
    decision = run_search(
        SearchEngine(policy, world_model, SearchConfig()),
        query_of(policy),
        SearchConfig(candidates=1),
    )
    (candidate,) = decision.candidates
    values, action = serial(policy, candidate.seed, world_model)
    np.testing.assert_allclose(candidate.values, values, atol=ROUNDING)
    np.testing.assert_allclose(decision.positions, policy.chunks(action)[0], atol=1e-6)
    alone, _ = serial(policy, candidate.seed)
    assert np.abs(np.array(values) - alone).max() > 10 * ROUNDING, "two different networks"
    assert decision.checkpoint_digest == policy.checkpoint.digest
    assert decision.world_model_digest == world_model.checkpoint.digest != policy.checkpoint.digest


@RELEASED
def test_a_candidate_does_not_depend_on_how_many_there_are(
    policy: CosmosPolicy, engine: SearchEngine
) -> None:
    config = SearchConfig(candidates=4, futures=2, values=2)
    together = run_search(engine, query_of(policy), config)
    for candidate in together.candidates:
        query = replace(query_of(policy), seed=candidate.seed)
        alone = run_search(engine, query, replace(config, candidates=1))
        assert alone.candidates[0] == candidate  # to the last bit


@RELEASED
def test_depth_goes_on_from_what_was_imagined(policy: CosmosPolicy, engine: SearchEngine) -> None:
    flat = SearchConfig(candidates=2, futures=1, values=2, aggregation="average")
    last = replace(flat, depth=2)
    both = replace(last, combination="average")
    one, deep, mean = (run_search(engine, query_of(policy), c) for c in (flat, last, both))
    for a, b, c in zip(one.candidates, deep.candidates, mean.candidates, strict=True):
        assert a.values == b.values == c.values
        assert c.value == pytest.approx((a.value + b.value) / 2)
        assert a.value != b.value, "the last depth counts, as released"


@RELEASED
def test_q_needs_no_future(policy: CosmosPolicy, engine: SearchEngine) -> None:
    config = SearchConfig(candidates=2, value="value_q", values=3)
    decision = run_search(engine, query_of(policy), config)
    assert [len(candidate.values) for candidate in decision.candidates] == [3, 3]
    assert decision.imagined is None


@RELEASED
def test_a_tie_keeps_the_base_seed(policy: CosmosPolicy, engine: SearchEngine) -> None:
    # Everything above 0.05, or everything below: a vote of all or nothing, the same for both.
    config = SearchConfig(candidates=2, aggregation="success_vote", futures=1, values=1)
    decision = run_search(engine, query_of(policy), config)
    first, second = decision.candidates
    assert first.value == second.value in (0.0, 1.0)
    assert decision.chosen == 0
    assert "the base seed 195 is kept: none is valued above" in decision.reason


@RELEASED
def test_the_average_of_all_futures_can_be_shown(
    policy: CosmosPolicy, engine: SearchEngine
) -> None:
    """As the released planning command does; nothing gave that."""
    query, config = query_of(policy), SearchConfig(candidates=2, futures=2, values=2)
    last = run_search(engine, query, config)
    average = run_search(engine, query, replace(config, shown="average"))
    assert last.imagined is not None and average.imagined is not None
    assert last.candidates == average.candidates
    np.testing.assert_array_equal(last.imagined, average.imagined[-1:])
    each = [engine.answer(DecodeImages(query, average.imagined[i : i + 1])) for i in range(2)]
    shown = engine.answer(DecodeImages(query, average.imagined))
    assert isinstance(shown, dict)
    assert {role: image.shape for role, image in shown.items()} == dict.fromkeys(
        ("left_wrist", "right_wrist", "primary"), (64, 64, 3)
    )
    for role, image in shown.items():
        expected = np.mean([images[role] for images in each], axis=0).round()  # type: ignore[index]
        assert image.dtype == np.uint8 and len(np.unique(image)) > 1
        np.testing.assert_array_equal(image, expected)


@RELEASED
def test_an_image_without_memory_costs_no_process(
    policy: CosmosPolicy, engine: SearchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore.")

    query = query_of(policy)
    decision = run_search(engine, query, SearchConfig(candidates=1, futures=1, values=2))
    assert decision.imagined is not None
    monkeypatch.setattr(policy, "decode_images", full)
    with pytest.raises(CosmosPolicyError, match=r"set futures: false.*20\.00 GiB") as caught:
        engine.answer(DecodeImages(query, decision.imagined))
    # After one of these the process would be started again.
    assert not isinstance(caught.value, WorkerError)


def test_a_decision_bears_its_search(policy: CosmosPolicy, engine: SearchEngine) -> None:
    config = SearchConfig(candidates=1, futures=1, values=2, candidate_batch=3)
    decision = run_search(engine, query_of(policy), config)
    assert parse_search(decision.search, "a decision") == config
    assert decision.numerics == policy.checkpoint.config.numerics
    assert decision.checkpoint_digest == decision.world_model_digest == policy.checkpoint.digest
    assert decision.reason.startswith("random weights, nothing was learned; ")


def test_two_checkpoints_must_speak_of_the_same_latents() -> None:
    with pytest.raises(CheckpointError, match="proposes with numerics released"):
        check_pair(load("released"), load("paper"))


def test_every_preset_is_a_search() -> None:
    presets = sorted((config_folder("planning")).glob("*.yaml"))
    assert len(presets) >= 3
    for preset in presets:
        parse_search(preset.read_text(), str(preset))
    released = parse_search((config_folder("planning") / "best_of_8.yaml").read_text(), "it")
    assert released == SearchConfig()


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
    info = SearchInfo(numerics=numerics, evaluations=10)
    config = replace(config, candidates=2)
    spent = price(config, info)
    assert sum(each.evaluations for each in spent.values()) == 2 * expected
    assert spent["sample_actions"] == (2 * config.depth, 2 * config.depth * 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"futures": 0}, "futures: 0 must be at least 1"),
        ({"candidate_batch": 0}, "batch: 0 must be at least 1"),
        ({"value": "value_q", "depth": 2}, "imagines no future"),
        ({"aggregation": "lcb", "futures": 1, "values": 1}, "no standard deviation"),
    ],
)
def test_impossible_searches_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**changes)


def test_a_wrong_key_of_a_search_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'candidates'"):
        parse_search("candidate: 8", "my.yaml")
