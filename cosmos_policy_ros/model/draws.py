"""Runs of the sampler: their seeds, their steps, and how often the network runs for them.

Apart from the sampler, so that a search can be planned and counted without torch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cosmos_policy_ros.model.config import Numerics


class SampleSpec(NamedTuple):
    """One run of the sampler: the seed of its noise, and how many steps are asked of it."""

    seed: int
    steps: int


def count_evaluations(steps: int, numerics: Numerics) -> int:
    """Return how often the network runs.

    The released code holds back one step for the final estimate and then takes the rest, 1, for the
    one-step special case: two steps are one. The paper's two steps are two.
    """
    if numerics == "released" and steps == 2:
        return 1
    return steps


def ensemble(seed: int, members: int, steps: int, numerics: Numerics) -> tuple[SampleSpec, ...]:
    """Return the draws with which one candidate's future or value is predicted several times.

    Member i draws its noise from ``seed + i``. In the paper each takes all ``steps``; the released
    code spreads them evenly from 1 to ``steps``, rounded down: only the last member takes all. One
    member alone takes all of them, as in the released commands, which say that it is no ensemble;
    told that it is one, the released code would give it a single step (ask for ``steps`` of 1).
    """
    if members < 1:
        raise ValueError(f"an ensemble of {members} members asked for, at least 1 is needed")
    counts = [steps] * members
    if numerics == "released" and members > 1:
        counts = np.linspace(1, steps, members).astype(int).tolist()
    return tuple(SampleSpec(seed + i, count) for i, count in enumerate(counts))
