"""The networks behind a search: answers its tasks, each in one batch.

A candidate's seed is its own: whoever computes it, it comes out the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosmos_policy_ros.core.errors import CheckpointError, CosmosPolicyError
from cosmos_policy_ros.inference.spec import SearchConfig
from cosmos_policy_ros.inference.tasks import (
    Appraise,
    Depict,
    Imagine,
    Latents,
    Pictures,
    Propose,
    Proposed,
    SearchInfo,
)
from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.model.policy import RANDOM_WEIGHTS, CosmosPolicy
from cosmos_policy_ros.model.sampler import Draw, count_evaluations, ensemble
from cosmos_policy_ros.model.sequence import Scene, step_ahead
from cosmos_policy_ros.rig.decision import Query


class SearchEngine:
    """A policy that proposes and a planner that imagines and appraises; one may be both."""

    def __init__(self, policy: CosmosPolicy, planner: CosmosPolicy, lot: int = 1) -> None:
        """Take both and rehearse, so that the first decision neither waits nor guesses.

        Args:
            policy: proposes.
            planner: imagines and appraises.
            lot: candidates per task, for the rehearsal.

        Raises:
            CheckpointError: the two do not fit together.
        """
        check_pair(policy, planner)
        self._policy, self._planner = policy, planner
        self._seen: tuple[str, str] | None = None
        self._scene: Scene | None = None
        self._pace = self._rehearse(lot)

    @property
    def info(self) -> SearchInfo:
        """Both digests and warnings, and how long a step takes."""
        config, planner = self._policy.checkpoint.config, self._planner.checkpoint
        random_weights = self._policy.checkpoint.random_weights or planner.random_weights
        return SearchInfo(
            digest=self._policy.checkpoint.digest,
            warning="; ".join(dict.fromkeys(filter(None, self._warnings()))),
            planner_digest=planner.digest,
            dt=config.dt,
            numerics=config.numerics,
            denoising_steps=config.denoising_steps,
            evaluations=count_evaluations(config.denoising_steps, config.numerics),
            note=RANDOM_WEIGHTS if random_weights else "",
            pace=self._pace,
        )

    def answer(self, task: object) -> object:
        """Do one task.

        Raises:
            CheckpointError: a checkpoint does not know the prompt.
            ObservationError: a picture or the state is missing or unusable.
        """
        if isinstance(task, Propose):
            return self._propose(task)
        if isinstance(task, Imagine):
            return self._imagine(task)
        if isinstance(task, Appraise):
            return self._appraise(task)
        if isinstance(task, Depict):
            return depict(self._planner, task)
        raise TypeError(f"a search has no task {type(task).__name__}")

    def _warnings(self) -> Iterator[str]:
        yield self._policy.info.warning
        yield self._planner.info.warning
        mine, theirs = self._policy.checkpoint, self._planner.checkpoint
        if not mine.statistics.equals(theirs.statistics):
            yield (
                f"{theirs.path} scales actions or states otherwise than {mine.path} "
                "(dataset_statistics.json): what it imagines is for slightly other actions"
            )

    def _propose(self, task: Propose) -> Proposed:
        config, layout = self._policy.checkpoint.config, self._policy.checkpoint.layout
        committed = task.query.committed if task.after is None else None
        if task.after is None:
            scene = self._look(task.query)
        else:
            after = self._tensor(task.after)
            ahead = step_ahead(layout, after, config.numerics)
            scene = Scene(task.query.prompt, {}, ahead)
        draws = [Draw(seed, config.denoising_steps) for seed in task.seeds]
        latents = self._policy.propose(scene, draws, committed=committed)
        return Proposed(_array(latents), self._policy.chunks(latents, committed))

    def _imagine(self, task: Imagine) -> Latents:
        """Predict every candidate's futures. Member i draws its noise from the seed + i."""
        numerics = self._planner.checkpoint.config.numerics
        draws = _members(task.seeds, task.futures, task.steps, numerics)
        repeated = self._tensor(task.latents).repeat_interleave(task.futures, dim=0)
        found = self._planner.imagine(task.prompt, repeated, draws)
        futures: Latents = _array(found).reshape(len(task.seeds), task.futures, *found.shape[1:])
        return futures

    def _appraise(self, task: Appraise) -> tuple[tuple[float, ...], ...]:
        """Predict every candidate's values. The noise is the candidate's, whichever future."""
        numerics = self._planner.checkpoint.config.numerics
        draws = _members(task.seeds, task.values, task.steps, numerics)
        repeated = self._tensor(task.latents).repeat_interleave(task.values, dim=0)
        found = self._planner.appraise(task.prompt, repeated, draws, task.mode)
        return tuple(found[i : i + task.values] for i in range(0, len(found), task.values))

    def _look(self, query: Query) -> Scene:
        """Encode what is seen, once for all the proposals about it."""
        seen = (query.prompt, query.observation.digest())
        if self._scene is None or seen != self._seen:
            self._seen, self._scene = seen, self._policy.look(query.prompt, query.observation)
        return self._scene

    def _tensor(self, latents: Latents) -> Tensor:
        return torch.tensor(latents, device=self._policy.device)

    def _rehearse(self, lot: int) -> dict[str, float]:
        """Do every stage with one step on an empty scene, twice; return the second's seconds."""
        config, layout = self._policy.checkpoint.config, self._policy.checkpoint.layout
        prompt, search = next(iter(self._planner.checkpoint.text.embeddings)), SearchConfig()
        shape = config.frame_shape
        empty = np.zeros((lot, shape[0], layout.count, *shape[1:]), np.float32)
        seeds = tuple(range(lot))
        own = next(iter(self._policy.checkpoint.text.embeddings))
        scene = Scene(own, {}, self._tensor(empty[:1]))
        stages: dict[str, Callable[[], object]] = {
            "propose": lambda: self._policy.propose(scene, [Draw(s, 1) for s in seeds]),
            "imagine": lambda: self._imagine(Imagine(prompt, empty, seeds, search.futures, 1)),
            "appraise": lambda: self._appraise(
                Appraise(prompt, empty, seeds, search.values, 1, "value_s")
            ),
        }
        return {name: _second_time(stage, self._policy.device) for name, stage in stages.items()}


def check_pair(policy: CosmosPolicy, planner: CosmosPolicy) -> None:
    """Refuse two checkpoints that do not speak of the same latents; raises CheckpointError."""
    mine, theirs = policy.checkpoint, planner.checkpoint
    for name in ("layout", "image_size", "chunk_steps", "action_dims", "proprio_dims", "numerics"):
        one, other = getattr(mine.config, name), getattr(theirs.config, name)
        if one != other:
            raise CheckpointError(
                f"{mine.path} proposes with {name} {one}, {theirs.path} would imagine with "
                f"{other}; a planner must be made from the policy"
            )


def depict(planner: CosmosPolicy, task: Depict) -> Pictures:
    """Decode an imagined future into its pictures, by camera role.

    Raises:
        CosmosPolicyError: there is no memory for it; decoding takes more than anything else, and
            what is for people's eyes must not cost the process.
    """
    try:
        return _depict(planner, task)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise CosmosPolicyError(
            "there is no memory to decode an imagined future; set futures: false, or leave the "
            f"device to this process alone ({str(error).splitlines()[0]})"
        ) from error


def _depict(planner: CosmosPolicy, task: Depict) -> Pictures:
    scene = planner.look(task.query.prompt, task.query.observation)
    latents = torch.tensor(task.latents, device=planner.device)
    futures = planner.depict(scene, latents)
    return {
        role: np.stack([each[role] for each in futures]).mean(axis=0).round().astype(np.uint8)
        for role in futures[0]
    }


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


def _members(seeds: Sequence[int], members: int, steps: int, numerics: Numerics) -> list[Draw]:
    """Return the ensembles' draws, candidate by candidate."""
    return [draw for seed in seeds for draw in ensemble(seed, members, steps, numerics)]


def _array(latents: Tensor) -> Any:
    return latents.cpu().numpy()


def _second_time(work: Callable[[], object], device: torch.device) -> float:
    work()  # the first time pays for memory and kernels
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
