"""Pins the released sampler: noise levels, the N = 2 quirk, the noise of a seed, the 2ab solver."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cosmos_policy_ros.errors import ConfigError
from cosmos_policy_ros.model.sampler import (
    SIGMA_MAX,
    count_evaluations,
    initial_noise,
    sample,
    schedule,
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
    for steps in (1, 3, 10):
        assert schedule(steps, "paper") == schedule(steps, "released")


@pytest.mark.parametrize(("steps", "evaluations"), [(1, 1), (2, 1), (3, 3), (10, 10)])
def test_network_runs_as_often_as_counted(steps: int, evaluations: int) -> None:
    seen: list[float] = []

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        assert noisy.dtype == sigma.dtype == torch.float32
        assert sigma.shape == noisy.shape[:1]
        seen.append(float(sigma[0]))
        return torch.full_like(noisy, float(len(seen)))

    result = sample(denoise, torch.zeros(2, 3), schedule(steps, "released"))
    assert len(seen) == evaluations == count_evaluations(steps, "released")
    assert seen[-1] == pytest.approx(80 if evaluations == 1 else 4)
    assert result.unique().tolist() == [evaluations], "the last estimate is the answer"


def test_state_is_kept_in_float64() -> None:
    seen: list[Tensor] = []

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        seen.append(noisy)
        return torch.zeros_like(noisy)

    noise = initial_noise([3], (1000,))
    first, second, _ = sigmas = schedule(3, "released")
    sample(denoise, noise, sigmas)
    assert torch.equal(seen[1], (noise.double() * math.exp(-math.log(first / second))).float())


def test_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="0 denoising steps"):
        schedule(0, "released")


def gaussian(noisy: Tensor, sigma: Tensor) -> Tensor:
    """Estimate the mean of unit normal data behind unit noise of level sigma."""
    return noisy / (1 + sigma.view(-1, 1) ** 2)


def test_linear_toy_converges_to_the_closed_form_at_second_order() -> None:
    """Unit normal data has an exact path: the state shrinks with sqrt(1 + sigma^2)."""
    noise = torch.tensor([[SIGMA_MAX]])
    at_four = SIGMA_MAX * math.sqrt(17 / (1 + SIGMA_MAX**2))
    exact = at_four / 17
    errors = [
        abs(float(sample(gaussian, noise, schedule(steps, "released"))) - exact)
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

    previous = (estimate(60.0), 60.0)
    found = two_step(path(30.0), estimate(30.0), previous, 30.0, 10.0)
    torch.testing.assert_close(found, path(10.0), rtol=1e-12, atol=1e-12)


def test_first_step_is_exact_for_a_constant_estimate() -> None:
    start, constant = torch.tensor(40.0, dtype=torch.float64), torch.tensor(0.5).double()
    found = two_step(start, constant, None, 80.0, 20.0)
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


def test_batch_members_do_not_meet() -> None:
    noise = initial_noise([1, 2], (5,))
    sigmas = schedule(5, "released")
    together = sample(gaussian, noise, sigmas)
    apart = torch.cat([sample(gaussian, noise[i : i + 1], sigmas) for i in range(2)])
    assert torch.equal(together, apart)
