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
    DecodeImages,
    Images,
    Latents,
    PredictFuture,
    PredictValue,
    SampleActions,
    SampledActions,
    SearchInfo,
)
from cosmos_policy_ros.model.config import Numerics
from cosmos_policy_ros.model.policy import RANDOM_WEIGHTS, CosmosPolicy
from cosmos_policy_ros.model.sampler import SampleSpec, count_evaluations, ensemble
from cosmos_policy_ros.model.sequence import Conditioning, step_ahead
from cosmos_policy_ros.rig.decision import Query


class SearchEngine:
    """A policy that proposes and a world model that imagines and appraises; one may be both."""

    def __init__(self, policy: CosmosPolicy, world_model: CosmosPolicy, batch: int = 1) -> None:
        """Take both and rehearse, so that the first decision neither waits nor guesses.

        Args:
            policy: proposes.
            world_model: imagines and appraises.
            batch: candidates per task, for the rehearsal.

        Raises:
            CheckpointError: the two do not fit together.
        """
        check_pair(policy, world_model)
        self._policy, self._planner = policy, world_model
        self._seen: tuple[str, str] | None = None
        self._scene: Conditioning | None = None
        self._pace = self._rehearse(batch)

    @property
    def info(self) -> SearchInfo:
        """Both digests and warnings, and how long a step takes."""
        config, world_model = self._policy.checkpoint.config, self._planner.checkpoint
        random_weights = self._policy.checkpoint.random_weights or world_model.random_weights
        return SearchInfo(
            digest=self._policy.checkpoint.digest,
            warning="; ".join(dict.fromkeys(filter(None, self._warnings()))),
            planner_digest=world_model.digest,
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
            ObservationError: an image or the state is missing or unusable.
        """
        if isinstance(task, SampleActions):
            return self._sample_actions(task)
        if isinstance(task, PredictFuture):
            return self._predict_future(task)
        if isinstance(task, PredictValue):
            return self._predict_value(task)
        if isinstance(task, DecodeImages):
            return decode_images(self._planner, task)
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

    def _sample_actions(self, task: SampleActions) -> SampledActions:
        config, layout = self._policy.checkpoint.config, self._policy.checkpoint.layout
        committed = task.query.committed if task.after is None else None
        if task.after is None:
            scene = self._look(task.query)
        else:
            after = self._tensor(task.after)
            ahead = step_ahead(layout, after, config.numerics)
            scene = Conditioning(task.query.prompt, {}, ahead)
        draws = [SampleSpec(seed, config.denoising_steps) for seed in task.seeds]
        latents = self._policy.sample_actions(scene, draws, committed=committed)
        return SampledActions(_array(latents), self._policy.chunks(latents, committed))

    def _predict_future(self, task: PredictFuture) -> Latents:
        """Predict every candidate's futures. Member i draws its noise from the seed + i."""
        numerics = self._planner.checkpoint.config.numerics
        draws = _members(task.seeds, task.futures, task.steps, numerics)
        repeated = self._tensor(task.latents).repeat_interleave(task.futures, dim=0)
        found = self._planner.predict_future(task.prompt, repeated, draws)
        futures: Latents = _array(found).reshape(len(task.seeds), task.futures, *found.shape[1:])
        return futures

    def _predict_value(self, task: PredictValue) -> tuple[tuple[float, ...], ...]:
        """Predict every candidate's values. The noise is the candidate's, whichever future."""
        numerics = self._planner.checkpoint.config.numerics
        draws = _members(task.seeds, task.values, task.steps, numerics)
        repeated = self._tensor(task.latents).repeat_interleave(task.values, dim=0)
        found = self._planner.predict_value(task.prompt, repeated, draws, task.mode)
        return tuple(found[i : i + task.values] for i in range(0, len(found), task.values))

    def _look(self, query: Query) -> Conditioning:
        """Encode what is seen, once for all the proposals about it."""
        seen = (query.prompt, query.observation.digest())
        if self._scene is None or seen != self._seen:
            self._seen, self._scene = (
                seen,
                self._policy.encode_observation(query.prompt, query.observation),
            )
        return self._scene

    def _tensor(self, latents: Latents) -> Tensor:
        return torch.tensor(latents, device=self._policy.device)

    def _rehearse(self, batch: int) -> dict[str, float]:
        """Do every stage with one step on an empty scene, twice; return the second's seconds."""
        config, layout = self._policy.checkpoint.config, self._policy.checkpoint.layout
        prompt, search = next(iter(self._planner.checkpoint.text.embeddings)), SearchConfig()
        shape = config.frame_shape
        empty = np.zeros((batch, shape[0], layout.count, *shape[1:]), np.float32)
        seeds = tuple(range(batch))
        own = next(iter(self._policy.checkpoint.text.embeddings))
        scene = Conditioning(own, {}, self._tensor(empty[:1]))
        stages: dict[str, Callable[[], object]] = {
            "sample_actions": lambda: self._policy.sample_actions(
                scene, [SampleSpec(s, 1) for s in seeds]
            ),
            "predict_future": lambda: self._predict_future(
                PredictFuture(prompt, empty, seeds, search.futures, 1)
            ),
            "predict_value": lambda: self._predict_value(
                PredictValue(prompt, empty, seeds, search.values, 1, "value_s")
            ),
        }
        return {name: _second_time(stage, self._policy.device) for name, stage in stages.items()}


def check_pair(policy: CosmosPolicy, world_model: CosmosPolicy) -> None:
    """Refuse two checkpoints that do not speak of the same latents; raises CheckpointError."""
    mine, theirs = policy.checkpoint, world_model.checkpoint
    for name in ("layout", "image_size", "chunk_steps", "action_dims", "proprio_dims", "numerics"):
        one, other = getattr(mine.config, name), getattr(theirs.config, name)
        if one != other:
            raise CheckpointError(
                f"{mine.path} proposes with {name} {one}, {theirs.path} would imagine with "
                f"{other}; a world model must be made from the policy"
            )


def decode_images(world_model: CosmosPolicy, task: DecodeImages) -> Images:
    """Decode an imagined future into its images, by camera role.

    Raises:
        CosmosPolicyError: there is no memory for it; decoding takes more than anything else, and
            what is for people's eyes must not cost the process.
    """
    try:
        return _decode_images(world_model, task)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise CosmosPolicyError(
            "there is no memory to decode an imagined future; set futures: false, or leave the "
            f"device to this process alone ({str(error).splitlines()[0]})"
        ) from error


def _decode_images(world_model: CosmosPolicy, task: DecodeImages) -> Images:
    scene = world_model.encode_observation(task.query.prompt, task.query.observation)
    latents = torch.tensor(task.latents, device=world_model.device)
    futures = world_model.decode_images(scene, latents)
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


def _members(
    seeds: Sequence[int], members: int, steps: int, numerics: Numerics
) -> list[SampleSpec]:
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
