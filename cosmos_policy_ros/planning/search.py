"""Best-of-N: propose, imagine what follows, appraise it, for all candidates at once.

Two checkpoints take part, which may be one: the policy proposes, the planner imagines and appraises
(Cosmos Policy paper, planning; facts, §7). A candidate's seed is its own: whoever computes it, and
beside whom, it comes out the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.model.layout import ValueMode
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.model.sampler import Draw, count_evaluations, ensemble
from cosmos_policy_ros.model.sequence import Scene, step_ahead
from cosmos_policy_ros.planning.values import Aggregation, aggregate

Combination = Literal["last", "average"]


@dataclass(frozen=True)
class SearchConfig:
    """How candidates are appraised; the defaults are the released evaluation's.

    Attributes:
        futures: predictions of each candidate's future.
        future_steps: denoising steps of a future.
        values: predictions of each future's value.
        value_steps: denoising steps of a value.
        value: what it is conditioned on, as the planner was trained; Q(s, a) needs no future.
        aggregation: of all values of a candidate.
        depth: chunks ahead; beyond the first the policy goes on from what was imagined.
        combination: of the depths' values: the last one's, or their average.
    """

    futures: int = 3
    future_steps: int = 5
    values: int = 5
    value_steps: int = 5
    value: ValueMode = "value_s"
    aggregation: Aggregation = "majority_mean"
    depth: int = 1
    combination: Combination = "average"

    def __post_init__(self) -> None:
        for name in ("futures", "future_steps", "values", "value_steps", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.value == "value_q" and self.depth > 1:
            raise ValueError("depth: Q(s, a) imagines no future to go on from; take value_s")
        count = self.values * (1 if self.value == "value_q" else self.futures)
        if self.aggregation == "lcb" and count < 2:
            raise ValueError("aggregation: one value has no standard deviation; take average")


@dataclass(frozen=True)
class Appraised:
    """A candidate and what became of it.

    Attributes:
        seed: its own.
        action: (1, 16, T, h, w) the proposal's latent, from which its chunk is read.
        values: every prediction, in [0, 1], future by future; of the first depth.
        value: their aggregate, over all depths.
        spread: standard deviation of ``values``.
        imagined: (1, 16, T, h, w) the future that took all its steps; None for Q(s, a).
    """

    seed: int
    action: Tensor
    values: tuple[float, ...]
    value: float
    spread: float
    imagined: Tensor | None


def search(
    policy: CosmosPolicy,
    planner: CosmosPolicy,
    scene: Scene,
    seeds: Sequence[int],
    config: SearchConfig,
) -> list[Appraised]:
    """Appraise one candidate per seed, in the seeds' order.

    The values of a candidate do not depend on the others, but for the rounding of larger batches.

    Raises:
        CheckpointError: a checkpoint does not know the prompt.
    """
    settings = policy.checkpoint.config
    draws = [Draw(seed, settings.denoising_steps) for seed in seeds]
    actions = latents = policy.propose(scene, draws)
    by_depth: list[list[tuple[float, ...]]] = []
    first: Tensor | None = None
    for depth in range(config.depth):
        if depth:
            ahead = step_ahead(policy.checkpoint.layout, latents, settings.numerics)
            latents = torch.cat(
                [
                    policy.propose(Scene(scene.prompt, scene.pictures, one), [draw])
                    for one, draw in zip(torch.split(ahead, 1), draws, strict=True)
                ]
            )
        futures = _imagine(planner, scene.prompt, latents, seeds, config)
        by_depth.append(_appraise(planner, scene.prompt, futures, seeds, config))
        # The last member's: it took all the steps.
        latents = futures[config.futures - 1 :: config.futures]
        if first is None and config.value != "value_q":
            first = latents
    return [
        Appraised(
            seed=seed,
            action=actions[index : index + 1],
            values=by_depth[0][index],
            value=_combined([found[index] for found in by_depth], config, settings.numerics),
            spread=float(np.std(by_depth[0][index])),
            imagined=None if first is None else first[index : index + 1],
        )
        for index, seed in enumerate(seeds)
    ]


def evaluations(steps: int, config: SearchConfig, numerics: Numerics) -> int:
    """Return how often the networks run for one candidate; 61 for the released evaluation."""
    futures = ensemble(0, config.futures, config.future_steps, numerics)
    values = ensemble(0, config.values, config.value_steps, numerics)
    of_a_future = sum(count_evaluations(draw.steps, numerics) for draw in values)
    own = count_evaluations(steps, numerics)
    if config.value == "value_q":
        return own + of_a_future
    imagined = sum(count_evaluations(draw.steps, numerics) for draw in futures)
    return config.depth * (own + imagined + len(futures) * of_a_future)


def _imagine(
    planner: CosmosPolicy,
    prompt: str,
    latents: Tensor,
    seeds: Sequence[int],
    config: SearchConfig,
) -> Tensor:
    """Return every candidate's futures, one after the other; for Q(s, a) the candidates as often.

    Member i of a candidate's ensemble draws its noise from the candidate's seed + i.
    """
    if config.value == "value_q":
        return latents
    numerics = planner.checkpoint.config.numerics
    draws = [
        draw
        for seed in seeds
        for draw in ensemble(seed, config.futures, config.future_steps, numerics)
    ]
    return planner.imagine(prompt, latents.repeat_interleave(config.futures, dim=0), draws)


def _appraise(
    planner: CosmosPolicy,
    prompt: str,
    futures: Tensor,
    seeds: Sequence[int],
    config: SearchConfig,
) -> list[tuple[float, ...]]:
    """Return every candidate's values. The noise is the candidate's, whichever future it is."""
    numerics = planner.checkpoint.config.numerics
    each = len(futures) // len(seeds)
    draws = [
        draw
        for seed in seeds
        for _ in range(each)
        for draw in ensemble(seed, config.values, config.value_steps, numerics)
    ]
    repeated = futures.repeat_interleave(config.values, dim=0)
    values = planner.appraise(prompt, repeated, draws, config.value)
    count = each * config.values
    return [tuple(values[i * count : (i + 1) * count]) for i in range(len(seeds))]


def _combined(
    by_depth: Sequence[Sequence[float]], config: SearchConfig, numerics: Numerics
) -> float:
    found = [aggregate(values, config.aggregation, numerics) for values in by_depth]
    return found[-1] if config.combination == "last" else math.fsum(found) / len(found)
