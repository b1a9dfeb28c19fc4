"""Pins the released sampler: noise levels, the N = 2 quirk, the noise of a seed, the 2ab solver."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.model.config import SIGMA_MAX
from cosmos_policy_ros.model.draws import SampleSpec, count_evaluations, ensemble
from cosmos_policy_ros.model.sampler import (
    initial_noise,
    plan,
    sample,
    schedule,
    step_weights,
    two_step,
)

TABLE = {
    1: [80],
    2: [80],
    3: [80, 20.972, 4],
    4: [80, 33.734, 12.595, 4],
    5: [80, 42.291, 20.972, 9.618, 4],
    10: [80, 60.695, 45.529, 33.734, 24.662, 17.767, 12.595, 8.771, 5.989, 4],
}


@pytest.mark.parametrize("steps", TABLE)
def test_released_noise_levels(steps: int) -> None:
    assert schedule(steps, "released") == pytest.approx(TABLE[steps], abs=5e-4)


def test_two_steps_are_one_as_released_and_two_in_the_paper() -> None:
    assert count_evaluations(2, "released") == 1
    assert schedule(2, "paper") == pytest.approx([80, 4])
    assert schedule(3, "paper", 0.5)[::2] == pytest.approx([80, 0.5])
    for steps in (1, 3, 10):
        assert schedule(steps, "paper") == schedule(steps, "released")


@pytest.mark.parametrize(("steps", "evaluations"), [(1, 1), (2, 1), (3, 3), (10, 10)])
def test_network_runs_as_often_as_counted(steps: int, evaluations: int) -> None:
    seen: list[float] = []

    def denoise(noisy: Tensor, sigma: Tensor, samples: Sequence[int]) -> Tensor:
        assert noisy.dtype == sigma.dtype == torch.float32
        assert sigma.shape == noisy.shape[:1]
        seen.append(float(sigma[0]))
        return torch.full_like(noisy, float(len(seen)))

    result = sample(denoise, torch.zeros(2, 3), plan([schedule(steps, "released")] * 2, "cpu"))
    assert len(seen) == evaluations == count_evaluations(steps, "released")
    assert seen[-1] == pytest.approx(80 if evaluations == 1 else 4)
    assert result.unique().tolist() == [evaluations], "the last estimate is the answer"


def test_state_is_kept_in_float64() -> None:
    seen: list[Tensor] = []

    def denoise(noisy: Tensor, sigma: Tensor, samples: Sequence[int]) -> Tensor:
        seen.append(noisy)
        return torch.zeros_like(noisy)

    noise = initial_noise([3], (1000,))
    first, second, _ = sigmas = schedule(3, "released")
    sample(denoise, noise, plan([sigmas], "cpu"))
    assert torch.equal(seen[1], (noise.double() * math.exp(-math.log(first / second))).float())


def test_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="0 denoising steps"):
        schedule(0, "released")


# The released sampler's own answers (NVlabs/cosmos-policy 18a2acc, run on a CPU) to ``toy`` below,
# for the noise of seed 195.
RELEASED = {
    1: [0.4995013, -1.1202102, -0.9049907, 0.6747513, 0.1645263, -0.2762612],
    2: [0.4995013, -1.1202102, -0.9049907, 0.6747513, 0.1645263, -0.2762612],
    3: [0.9908564, -1.1936016, -1.0926342, 0.7768036, 0.5416615, -0.1153697],
    4: [1.0059216, -1.1987666, -1.1226149, 0.7727956, 0.4972218, -0.1209743],
    5: [0.9980258, -1.2050608, -1.1274017, 0.7648988, 0.4893254, -0.1237031],
    10: [0.9912626, -1.2057468, -1.1239632, 0.7586546, 0.4873681, -0.1265229],
}


def toy(noisy: Tensor, sigma: Tensor, samples: Sequence[int]) -> Tensor:
    return torch.tanh(noisy / sigma.view(-1, 1)) + 0.25 * torch.sin(noisy / 7)


@pytest.mark.parametrize("steps", RELEASED)
def test_answers_of_the_released_sampler(steps: int) -> None:
    found = sample(toy, initial_noise([195], (6,)), plan([schedule(steps, "released")], "cpu"))
    # Some are above 1, where the last bit is 1.2e-7, and CPUs differ in it.
    torch.testing.assert_close(found, torch.tensor([RELEASED[steps]]), rtol=0, atol=2.5e-7)


def gaussian(noisy: Tensor, sigma: Tensor, samples: Sequence[int]) -> Tensor:
    """Estimate the mean of unit normal data behind unit noise of level sigma."""
    return noisy / (1 + sigma.view(-1, 1) ** 2)


def test_linear_toy_converges_to_the_closed_form_at_second_order() -> None:
    """Unit normal data has an exact path: the state shrinks with sqrt(1 + sigma^2)."""
    noise = torch.tensor([[SIGMA_MAX]])
    at_four = SIGMA_MAX * math.sqrt(17 / (1 + SIGMA_MAX**2))
    exact = at_four / 17
    errors = [
        abs(float(sample(gaussian, noise, plan([schedule(steps, "released")], "cpu"))) - exact)
        for steps in (11, 21, 41)
    ]
    assert errors[2] < 1e-3 * exact
    assert 3 < errors[0] / errors[1] < 5.5
    assert 3 < errors[1] / errors[2] < 5.5


def test_step_is_exact_for_an_estimate_linear_in_log_sigma() -> None:
    """Of the path dx/dl = D(l) - x with l = -ln sigma and D = a + b l, started at its solution."""
    a, b = 0.3, -0.7

    def estimate(sigma: float) -> Tensor:
        return torch.tensor(a - b * math.log(sigma), dtype=torch.float64)

    def path(sigma: float) -> Tensor:
        return estimate(sigma) - b + 0.05 * sigma

    before = estimate(60.0).view(1)
    weights = torch.tensor([step_weights(60.0, 30.0, 10.0)], dtype=torch.float64)
    found = two_step(path(30.0).view(1), estimate(30.0).view(1), before, weights)
    torch.testing.assert_close(found, path(10.0).view(1), rtol=1e-12, atol=1e-12)


def test_first_step_is_exact_for_a_constant_estimate() -> None:
    start, constant = torch.tensor([[40.0], [0.5]], dtype=torch.float64)
    weights = torch.tensor([step_weights(80.0, 20.0)], dtype=torch.float64)
    found = two_step(start, constant, None, weights)
    assert float(found) == pytest.approx(0.5 + (40.0 - 0.5) / 4, rel=1e-12)


def test_noise_of_the_released_default_seed() -> None:
    noise = initial_noise([195], (16, 11, 8, 8)) / 80
    expected = torch.tensor([0.96968484, -1.85996591, -1.36480671, 0.60063182])
    torch.testing.assert_close(noise.flatten()[:4], expected, rtol=0, atol=1e-6)
    assert noise.dtype == torch.float32


def test_a_seed_has_the_same_noise_in_every_batch() -> None:
    batch = initial_noise([195, 7, 196], (4, 3))
    for row, seed in enumerate((195, 7, 196)):
        assert torch.equal(batch[row : row + 1], initial_noise([seed], (4, 3)))
    assert not torch.equal(batch[0], batch[2])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_outside_numpys_range_is_named(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed {seed} lies outside"):
        initial_noise([seed], (2,))


def test_members_of_a_batch_keep_to_their_own_schedules() -> None:
    """Whatever their order; each bit for bit as if it were alone."""
    seeds, steps = [1, 2, 3, 4, 5, 6], [5, 1, 3, 2, 10, 3]
    schedules = [schedule(count, "paper") for count in steps]
    asked: list[tuple[int, ...]] = []

    def denoise(noisy: Tensor, sigma: Tensor, samples: Sequence[int]) -> Tensor:
        asked.append(tuple(samples))
        return toy(noisy, sigma, samples)

    together = sample(denoise, initial_noise(seeds, (5,)), plan(schedules, "cpu"))
    for row, seed in enumerate(seeds):
        alone = sample(toy, initial_noise([seed], (5,)), plan([schedules[row]], "cpu"))
        assert torch.equal(together[row : row + 1], alone), f"seed {seed}, {steps[row]} steps"
    assert asked == [
        (0, 1, 2, 3, 4, 5),
        (0, 2, 3, 4, 5),
        (0, 2, 4, 5),
        *[(0, 4)] * 2,
        *[(4,)] * 5,
    ]


def test_an_evaluation_is_cut_short_only_when_it_is_the_last_for_all_in_it() -> None:
    def last(noisy: Tensor, sigma: Tensor, samples: Sequence[int]) -> Tensor:
        assert list(samples) == [0, 2]
        return torch.full_like(noisy, 9.0)

    schedules = [schedule(steps, "released") for steps in (3, 1, 3)]
    found = sample(toy, initial_noise([1, 2, 3], (5,)), plan(schedules, "cpu"), last=last)
    assert (found[[0, 2]] == 9).all() and (found[1] != 9).all()


def test_released_ensembles_spread_their_steps() -> None:
    """And the second of five takes one step, like the first: two steps are one."""
    assert ensemble(195, 3, 5, "released") == (
        SampleSpec(195, 1),
        SampleSpec(196, 3),
        SampleSpec(197, 5),
    )
    steps = [draw.steps for draw in ensemble(7, 5, 5, "released")]
    assert steps == [1, 2, 3, 4, 5]
    assert [count_evaluations(n, "released") for n in steps] == [1, 1, 3, 4, 5]
    assert ensemble(7, 1, 5, "released") == (SampleSpec(7, 5),)


def test_ensembles_of_the_paper_take_all_steps() -> None:
    assert ensemble(195, 3, 5, "paper") == (
        SampleSpec(195, 5),
        SampleSpec(196, 5),
        SampleSpec(197, 5),
    )


def test_an_empty_ensemble_is_refused() -> None:
    with pytest.raises(ValueError, match="0 members"):
        ensemble(195, 0, 5, "paper")
