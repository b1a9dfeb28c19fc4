"""From noise to a clean latent: the released sampler, noise levels 80 to 4 (or as configured).

The last evaluation's estimate is the answer; the noise level is never taken to zero. Between
evaluations a second-order exponential Adams-Bashforth step ("2ab") runs over -ln sigma, in float64
around a float32 network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.model.config import SIGMA_MAX, SIGMA_MIN, Numerics
from cosmos_policy_ros.model.draws import count_evaluations

RHO = 7.0  # curvature of the Karras schedule
# Seeds whose noise is kept, 0.55 MB each for the released checkpoints. A search asks for the same
# ones at every query, and NumPy takes 5 ms of a CPU for one.
SEEDS_KEPT = 64

# Maps (noisy (B, ...) float32, their levels (B,) float32 on the CPU, which samples of the batch
# these are) to the clean estimate (B, ...).
Denoise = Callable[[Tensor, Tensor, Sequence[int]], Tensor]


def schedule(steps: int, numerics: Numerics, sigma_min: float = SIGMA_MIN) -> tuple[float, ...]:
    """Return the noise level of every evaluation of the network, from 80 down to ``sigma_min``."""
    if steps < 1:
        raise ValueError(f"{steps} denoising steps asked for, at least 1 is needed")
    evaluations = count_evaluations(steps, numerics)
    low, high = sigma_min ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    intervals = max(evaluations - 1, 1)
    return tuple((high + i / intervals * (low - high)) ** RHO for i in range(evaluations))


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Return the noise (len(seeds), *shape) float32 that sampling starts from, of level 80.

    Each seed draws alone from NumPy's legacy generator, so the noise of a seed is the same on every
    machine, at every query and in every batch.
    """
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ConfigError(
                f"noise seed {seed} lies outside 0 ... {2**32 - 1}, NumPy's range; choose another"
            )
    return torch.stack([_noise(seed, shape) for seed in seeds])


@lru_cache(SEEDS_KEPT)
def _noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    drawn = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(drawn) * SIGMA_MAX


class Turn(NamedTuple):
    """One evaluation of a batch, and the step that follows it.

    Attributes:
        samples: which of the batch are evaluated.
        sigma: (B',) float32 on the CPU, their noise levels.
        staying: rows of ``samples`` that go on afterwards; the others have their answer.
        weights: (len(staying), 3) float64 on the device, of the step that they take.
    """

    samples: tuple[int, ...]
    sigma: Tensor
    staying: tuple[int, ...]
    weights: Tensor


def plan(schedules: Sequence[Sequence[float]], device: torch.device | str) -> tuple[Turn, ...]:
    """Lay out the turns of a batch in which every sample keeps to its own schedule.

    All start together, where their levels are the same; one that has made its last evaluation
    leaves the batch, and the others go on without it. Made before the first turn, with everything
    that a device needs already there: sampling itself then waits for nothing.

    Args:
        schedules: per sample the level of each of its evaluations, falling.
        device: where the samples are.
    """
    turns = []
    samples = tuple(range(len(schedules)))
    for turn in range(max(map(len, schedules))):
        staying = tuple(row for row, i in enumerate(samples) if len(schedules[i]) > turn + 1)
        sigma = torch.tensor([schedules[i][turn] for i in samples], dtype=torch.float32)
        following = tuple(samples[row] for row in staying)
        recent = slice(max(turn - 1, 0), turn + 2)
        weights = [step_weights(*schedules[i][recent]) for i in following]
        table = torch.tensor(weights, dtype=torch.float64).view(-1, 3).to(device)
        turns.append(Turn(samples, sigma, staying, table))
        samples = following
    return tuple(turns)


def sample(
    denoise: Denoise,
    noise: Tensor,
    turns: Sequence[Turn],
    last: Denoise | None = None,
    watch: Callable[[Sequence[int], Tensor], None] | None = None,
) -> Tensor:
    """Run the sampler on a batch.

    Args:
        denoise: the network bound to what is known.
        noise: (B, ...) float32 of the first turn's levels.
        turns: what :func:`plan` laid out for the batch.
        last: used instead of ``denoise`` where an evaluation is the last for every sample in it. A
            sample's last estimate is its answer: it may leave out what is not read.
        watch: is called with every evaluation's samples and their clean estimates.

    Returns:
        (B, ...) float32, the last estimates.
    """
    answers: dict[int, Tensor] = {}
    state, before = noise.double(), None
    for turn in turns:
        ask = denoise if last is None or turn.staying else last
        estimate = ask(state.float(), turn.sigma, turn.samples)
        if watch is not None:
            watch(turn.samples, estimate)
        for row, index in enumerate(turn.samples):
            if row not in turn.staying:
                answers[index] = estimate[row]
        if turn.staying:
            state = _keep(state, turn.staying)
            before = None if before is None else _keep(before, turn.staying)
            estimate = _keep(estimate, turn.staying).double()
            state, before = two_step(state, estimate, before, turn.weights), estimate
    return torch.stack([answers[i] for i in range(len(noise))])


def two_step(state: Tensor, estimate: Tensor, before: Tensor | None, weights: Tensor) -> Tensor:
    """Take one step of the 2ab solver, (B, ...) float64.

    Args:
        state: the noisy latents.
        estimate: the clean estimate there.
        before: the estimate of the step before, or None at the first.
        weights: (B, 3) float64: of the state, the estimate and its change.
    """
    shape = (-1, *(1,) * (state.ndim - 1))
    decay, gain, slope = (column.view(shape) for column in weights.unbind(1))
    step = decay * state + gain * estimate
    return step if before is None else step + slope * (estimate - before)


def step_weights(*sigmas: float) -> tuple[float, float, float]:
    """Return the weights of the state, the estimate and its change in one step of the 2ab solver.

    Exact for an estimate that is linear in -ln sigma; the first step for a constant one.

    Args:
        sigmas: the level before (not in the first step), the present one and the following one.
    """
    *earlier, sigma, following = sigmas
    h = math.log(sigma / following)
    decay = math.exp(-h)
    if not earlier:
        return decay, 1 - decay, 0.0
    r = math.log(earlier[0] / sigma) / h
    phi_1 = (1 - decay) / h
    phi_2 = (1 - phi_1) / h
    return decay, 1 - decay, h * (phi_2 / r)


def _keep(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Keep some rows of a batch; without an index tensor to be sent to a device."""
    return x if len(rows) == len(x) else torch.stack([x[row] for row in rows])
