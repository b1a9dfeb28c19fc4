"""LIBERO itself: the published sample, pictures that are drawn rarely, and trials in any order."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.environments.benchmark import Benchmark, examine, judge, load_anchor
from cosmos_policy_ros.environments.environment import EnvironmentProcess, Scene
from cosmos_policy_ros.evaluation.benchmark_room import BenchmarkConfig, list_prompts
from cosmos_policy_ros.evaluation.contenders import Contender
from cosmos_policy_ros.evaluation.evaluate import evaluate
from cosmos_policy_ros.model.checkpoint import load_checkpoint
from cosmos_policy_ros.rig.observation import Observation

Opening = Callable[..., EnvironmentProcess]
TINY = "libero_tiny_random"
ROWS = np.random.default_rng(0).uniform(-0.7, 0.7, (3, 16, 7))


def follow(environment: EnvironmentProcess, scene: Scene) -> list[Observation]:
    environment.reset(scene, 195)
    seen = [environment.observe()]
    for rows in ROWS:
        environment.execute(rows)
        seen.append(environment.observe())
    return seen


def assert_same(one: list[Observation], other: list[Observation]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.state, b.state)
        for role, image in a.images.items():
            assert np.array_equal(image, b.images[role]), role


def test_the_published_sample_is_met_to_the_last_bit(opened: Opening, libero: Benchmark) -> None:
    environment = opened(libero)
    told = examine(libero, environment)
    anchor = load_anchor(config_folder("benchmarks") / libero.anchor)
    verdict = judge(anchor, environment.observe())
    assert verdict.exact
    assert verdict.state == 0.0
    assert "mujoco 3.3.2" in told
    # The next initial state is another one, so that this is no accident.
    environment.reset(Scene(anchor.suite, anchor.task, anchor.trial + 1), anchor.seed)
    assert np.abs(environment.observe().state - np.array(anchor.state)).max() > 1e-3


def test_pictures_drawn_rarely_are_those_drawn_always(opened: Opening, libero: Benchmark) -> None:
    scene = Scene("libero_spatial", "2", 1)
    rarely, always = opened(libero), opened(libero, full="Libero")
    first, second = follow(rarely, scene), follow(always, scene)
    assert_same(first, second)
    assert rarely.cpu < always.cpu


def test_trials_may_come_in_any_order(opened: Opening, libero: Benchmark) -> None:
    one, other = Scene("libero_spatial", "2", 1), Scene("libero_goal", "0", 4)
    environment = opened(libero)
    first = follow(environment, one)
    second = follow(environment, other)
    assert_same(follow(environment, one), first)
    fresh = opened(libero)
    assert_same(follow(fresh, other), second)


def test_an_episode_of_a_random_network(tmp_path: Path) -> None:
    config = BenchmarkConfig(
        "libero",
        (Contender("random", checkpoint=TINY),),
        suites=("libero_spatial",),
        tasks=("0",),
        trials=1,
        environment=os.environ["COSMOS_BENCHMARK_ENVIRONMENT"],
        processes=0,
    )
    (result,) = evaluate(config, tmp_path)
    assert (result.crashed, result.outcome) == (False, "step_limit")
    assert (result.steps, result.chunks, result.seconds) == (220, 14, pytest.approx(11.0))


def test_the_random_checkpoint_knows_every_prompt() -> None:
    config = BenchmarkConfig(
        "libero",
        (Contender("random", checkpoint=TINY),),
        trials=1,
        environment=os.environ["COSMOS_BENCHMARK_ENVIRONMENT"],
    )
    prompts = list_prompts(config)
    assert len(prompts) == 40
    import torch

    known = load_checkpoint(config_folder("models") / TINY, torch.device("cpu")).text.embeddings
    assert set(known) == set(prompts)
