"""From noise to a clean latent: the released sampler, noise levels 80 to 4.

The last evaluation's estimate is the answer; the noise level is never taken to zero. Between
evaluations a second-order exponential Adams-Bashforth step ("2ab") runs over -ln sigma, in float64
around a float32 network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from cosmos_policy_ros.errors import ConfigError
from cosmos_policy_ros.model.config import Numerics

SIGMA_MAX = 80.0
SIGMA_MIN = 4.0
RHO = 7.0  # curvature of the Karras schedule

Denoise = Callable[[Tensor, Tensor], Tensor]


def schedule(steps: int, numerics: Numerics) -> tuple[float, ...]:
    """Return the noise level of every evaluation of the network for ``steps`` requested ones.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"{steps} denoising steps asked for, at least 1 is needed")
    evaluations = count_evaluations(steps, numerics)
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    intervals = max(evaluations - 1, 1)
    return tuple((high + i / intervals * (low - high)) ** RHO for i in range(evaluations))


def count_evaluations(steps: int, numerics: Numerics) -> int:
    """Return how often the network really runs.

    The released code holds back one step for the final estimate and then takes the rest, 1, for the
    one-step special case: two steps are one. The paper's two steps are two.
    """
    if numerics == "released" and steps == 2:
        return 1
    return steps


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Return the noise (len(seeds), *shape) float32 that sampling starts from, of level 80.

    Each seed draws alone from NumPy's legacy generator, so the noise of a seed is the same on every
    machine, at every query and in every batch.

    Raises:
        ConfigError: a seed outside 0 ... 2**32 - 1.
    """
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ConfigError(
                f"noise seed {seed} lies outside 0 ... {2**32 - 1}, NumPy's range; choose another"
            )
    drawn = [np.random.RandomState(s).standard_normal(shape).astype(np.float32) for s in seeds]
    return torch.from_numpy(np.stack(drawn)) * SIGMA_MAX


def sample(
    denoise: Denoise, noise: Tensor, sigmas: Sequence[float], last: Denoise | None = None
) -> Tensor:
    """Run the sampler.

    Args:
        denoise: maps (noisy (B, ...) float32, sigma (B,) float32) to the clean estimate.
        noise: (B, ...) float32 of level ``sigmas[0]``.
        sigmas: the level of every evaluation, falling.
        last: used for the last evaluation instead of ``denoise``, whose estimate is the answer:
            it may leave out what nobody reads.

    Returns:
        (B, ...) float32, the last estimate.
    """
    state = noise.double()
    previous: tuple[Tensor, float] | None = None
    for sigma, following in pairwise(sigmas):
        estimate = _evaluate(denoise, state, sigma).double()
        state = two_step(state, estimate, previous, sigma, following)
        previous = (estimate, sigma)
    return _evaluate(last or denoise, state, sigmas[-1])


def two_step(
    state: Tensor,
    estimate: Tensor,
    previous: tuple[Tensor, float] | None,
    sigma: float,
    following: float,
) -> Tensor:
    """Take one step of the 2ab solver from ``sigma`` down to ``following``.

    Exact for an estimate that is linear in -ln sigma; the first step, without ``previous`` (an
    estimate and its level), for a constant one.
    """
    h = math.log(sigma / following)
    decay = math.exp(-h)
    step = decay * state + (1 - decay) * estimate
    if previous is None:
        return step
    before, sigma_before = previous
    r = math.log(sigma_before / sigma) / h
    phi_1 = (1 - decay) / h
    phi_2 = (1 - phi_1) / h
    return step + h * (phi_2 / r) * (estimate - before)


def _evaluate(denoise: Denoise, state: Tensor, sigma: float) -> Tensor:
    levels = torch.full((state.shape[0],), sigma, dtype=torch.float32, device=state.device)
    return denoise(state.float(), levels)
