"""RoboCasa's adapter on robosuite's own Lift with RoboCasa's robot; kitchens are in no package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cosmos_policy_ros.environments.benchmark import Benchmark, Suite, load_benchmark
from cosmos_policy_ros.environments.environment import EnvironmentProcess, Scene

Opening = Callable[..., EnvironmentProcess]
LIFT = Scene("robosuite", "Lift", 1)
ROWS = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 16, 7))


@pytest.fixture
def lift() -> Benchmark:
    robocasa = load_benchmark("robocasa")
    cameras = {"wrist": "robot0_eye_in_hand", "primary": "agentview", "secondary": "sideview"}
    settings = replace(
        robocasa.settings, robot="PandaOmron", cameras=cameras, scenes=(), image_size=64
    )
    suites = {"robosuite": Suite("Lift", ("Lift",), 40)}
    return replace(robocasa, settings=settings, suites=suites, published=())


def test_a_trial_of_lift(opened: Opening, lift: Benchmark) -> None:
    """7 numbers of the arm become 12; what is drawn rarely is what is drawn always."""
    seen = []
    for environment in (opened(lift), opened(lift, full="RoboCasa")):
        assert environment.reset(LIFT, 195) == "Lift"
        each = [environment.observe()]
        for rows in ROWS:
            assert environment.execute(rows).steps == 16
            each.append(environment.observe())
        # The eight steps that are left before the limit.
        assert environment.execute(ROWS[0]).steps == 8
        seen.append(each)
    assert environment.about["robosuite"] == "1.5.1"
    assert environment.about["mujoco"] == "3.2.6"
    for rarely, always in zip(*seen, strict=True):
        assert rarely.state.shape == (9,)
        assert np.array_equal(rarely.state, always.state)
        for role, image in rarely.images.items():
            assert np.array_equal(image, always.images[role]), role


def test_a_scene_is_that_of_its_trial_and_seed(opened: Opening, lift: Benchmark) -> None:
    environment = opened(lift)

    def state(trial: int, seed: int) -> bytes:
        environment.reset(LIFT._replace(trial=trial), seed)
        return b"".join(image.tobytes() for image in environment.observe().images.values())

    first = state(1, 195)
    assert state(1, 196) != first
    assert state(1, 195) == first
    # As released: the first trial's scene does not depend on the seed.
    assert state(0, 195) == state(0, 196)
