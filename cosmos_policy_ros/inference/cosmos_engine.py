"""The cosmos engine: counts its memory, loads its networks, does a search's tasks in batches.

A candidate's seed is its own: the same chunk and values come out on any worker.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cosmos_policy_ros.core.errors import CheckpointError, CosmosPolicyError
from cosmos_policy_ros.inference.spec import (
    STAGES,
    Admit,
    Decide,
    DecodeImages,
    Engine,
    EngineSpec,
    Footprint,
    Images,
    Latents,
    PerturbActions,
    PredictFuture,
    PredictValue,
    SampleActions,
    SampledActions,
    SearchConfig,
    SearchInfo,
    Stage,
    Task,
)
from cosmos_policy_ros.model.acceleration import quantise
from cosmos_policy_ros.model.checkpoint import choose_device
from cosmos_policy_ros.model.config import CheckpointConfig, read_config
from cosmos_policy_ros.model.draws import SampleSpec, count_evaluations, ensemble
from cosmos_policy_ros.model.files import CONFIG
from cosmos_policy_ros.model.policy import RANDOM_WEIGHTS, TOKENS_AT_ONCE, CosmosPolicy
from cosmos_policy_ros.model.sequence import Conditioning, step_ahead
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.rig.decision import EngineInfo

# Numbers per token and unit of width that a block holds at once: residual stream, queries, keys and
# values, the MLP's four and their activations. An estimate.
NUMBERS_PER_TOKEN = 16
RUNTIME = int(0.6e9)  # bytes: what torch takes on a device before any model


def load_cosmos(spec: EngineSpec, admit: Admit) -> Engine:
    """Load the policy, and the world model where there is one of its own.

    Raises:
        CheckpointError: no checkpoint, two that do not fit together, or too little memory.
        ConfigError: no such device, or wrong numbers.
    """
    torch.set_num_threads(spec.threads)
    admit(footprint(spec))

    def load(folder: str) -> CosmosPolicy:
        return CosmosPolicy.load(
            folder,
            device=spec.device,
            threads=spec.threads,
            compiled=spec.compiled,
            fp8_weights=spec.fp8_weights,
            denoising_steps=spec.denoising_steps,
            numerics=spec.numerics,
        )

    policy = load(spec.checkpoint)
    if spec.search is None:
        return CosmosEngine(policy)
    world_model = load(spec.world_model) if spec.world_model else policy
    return SearchEngine(policy, world_model, spec.search, compiled=spec.compiled)


def footprint(spec: EngineSpec) -> Footprint:
    """Return the memory that an engine needs, from its checkpoints' configs alone."""
    device = choose_device(spec.device)
    folders = {"policy": spec.checkpoint}
    if spec.search is not None and spec.world_model:
        folders["world_model"] = spec.world_model
    needs, working_space = {}, 0
    for role, folder in folders.items():
        weights, activations = _memory(read_config(Path(folder) / CONFIG), spec)
        needs[role], working_space = weights, max(working_space, activations)
    needs |= {"working space": working_space, "runtime": RUNTIME}
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0])
    else:  # what can be had without swapping, the page cache included
        meminfo = Path("/proc/meminfo").read_text().splitlines()
        available = [line.split()[1] for line in meminfo if line.startswith("MemAvailable:")]
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        free = int(available[0]) * 1024 if available else pages
    return Footprint(str(device), needs, free)


def _memory(config: CheckpointConfig, spec: EngineSpec) -> tuple[int, int]:
    """Return the bytes of a checkpoint's weights, and of its activations at the largest batch."""
    with torch.device("meta"):
        networks = Transformer(config.transformer), Tokenizer(config.vae)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    for network in networks:
        network.to(dtype)
    if spec.fp8_weights:
        quantise(networks[0])
    tensors = [t for network in networks for t in (*network.parameters(), *network.buffers())]
    width = config.transformer.heads * config.transformer.head_dim
    tokens, search = config.tokens, spec.search
    if search is not None:
        most = search.candidate_batch * max(search.futures, search.values)
        tokens = min(most * tokens, max(TOKENS_AT_ONCE, tokens))
    activations = tokens * width * NUMBERS_PER_TOKEN * dtype.itemsize
    return sum(t.numel() * t.itemsize for t in tensors), activations


class CosmosEngine:
    """A checkpoint that is asked for its one answer."""

    def __init__(self, policy: CosmosPolicy) -> None:
        self._policy = policy

    @property
    def info(self) -> EngineInfo:
        """The policy's own."""
        return self._policy.info

    def answer(self, task: Task) -> object:
        """Answer a query, or decode an imagined future. Raises CosmosPolicyError."""
        if isinstance(task, Decide):
            return self._policy.decide(task.query)
        if isinstance(task, DecodeImages):
            return decode_images(self._policy, task)
        raise TypeError(f"a policy has no task {type(task).__name__}")


class SearchEngine:
    """A policy that samples actions and a world model that predicts; one may be both."""

    def __init__(
        self,
        policy: CosmosPolicy,
        world_model: CosmosPolicy,
        search: SearchConfig,
        *,
        compiled: bool = False,
    ) -> None:
        """Rehearse a batch of ``search``, so that the first decision neither waits nor guesses.

        Raises CheckpointError when the two do not fit together.
        """
        check_pair(policy, world_model)
        self._policy, self._world_model = policy, world_model
        self._seen: tuple[tuple[str, str], Conditioning] | None = None  # prompt, digest, latents
        # Where every length of a run is prepared by itself, all of them are; a CPU prepares none.
        whole = compiled or policy.device.type == "cuda"
        self._pace = self._rehearse(search, whole)

    @property
    def info(self) -> SearchInfo:
        """Both digests and warnings, and how long a step takes."""
        mine, theirs = self._policy.checkpoint, self._world_model.checkpoint
        warnings = [self._policy.info.warning, self._world_model.info.warning]
        if not mine.statistics.equals(theirs.statistics):
            warnings.append(
                f"{theirs.path} scales actions or states otherwise than {mine.path} "
                "(dataset_statistics.json): what it imagines is for slightly other actions"
            )
        return SearchInfo(
            digest=mine.digest,
            warning="; ".join(dict.fromkeys(filter(None, warnings))),
            world_model_digest=theirs.digest,
            dt=mine.config.dt,
            numerics=mine.config.numerics,
            denoising_steps=mine.config.denoising_steps,
            evaluations=count_evaluations(mine.config.denoising_steps, mine.config.numerics),
            note=RANDOM_WEIGHTS if mine.random_weights or theirs.random_weights else "",
            pace=self._pace,
        )

    def answer(self, task: Task) -> object:
        """Do one task. Raises CheckpointError: unknown prompt; ObservationError: unusable query."""
        if isinstance(task, SampleActions):
            return self._sample_actions(task)
        if isinstance(task, PerturbActions):
            committed, seeds = task.query.committed, task.seeds
            latents = self._policy.perturb_actions(
                self._tensor(task.latents), seeds, task.distance, committed
            )
            chunks, unknown = self._policy.chunks(latents, committed), (math.nan,) * len(seeds)
            return SampledActions(latents.cpu().numpy(), chunks, unknown, unknown)
        if isinstance(task, DecodeImages):
            return decode_images(self._world_model, task)
        if isinstance(task, Decide):
            raise TypeError("a search has no task Decide")
        numerics, members = self._world_model.checkpoint.config.numerics, len(task.members)
        # The draws are the candidate's, whichever future is valued.
        all_draws = (ensemble(s, task.ensemble, task.steps, numerics) for s in task.seeds)
        draws = [each[member] for each in all_draws for member in task.members]
        repeated = self._tensor(task.latents).repeat_interleave(members, dim=0)
        if isinstance(task, PredictFuture):
            futures = self._world_model.predict_future(task.prompt, repeated, draws)
            return futures.reshape(len(task.seeds), members, *futures.shape[1:]).cpu().numpy()
        values = self._world_model.predict_value(
            task.prompt, repeated, draws, task.mode, task.frames
        )
        return tuple(values[i : i + members] for i in range(0, len(values), members))

    def _sample_actions(self, task: SampleActions) -> SampledActions:
        query, checkpoint = task.query, self._policy.checkpoint
        config, committed = checkpoint.config, None
        if task.after is not None:
            after = step_ahead(checkpoint.layout, self._tensor(task.after), config.numerics)
            scene = Conditioning(query.prompt, {}, after)
        else:
            committed, key = query.committed, (query.prompt, query.observation.digest())
            if self._seen is None or self._seen[0] != key:  # once for all proposals about it
                encoded = self._policy.encode_observation(query.prompt, query.observation)
                self._seen = key, encoded
            scene = self._seen[1]
        draws = [SampleSpec(seed, config.denoising_steps) for seed in task.seeds]
        latents, variances = self._policy.sample_actions_and_variance(
            scene, draws, task.futures, committed
        )
        chunks, values = self._policy.chunks(latents, committed), self._policy.values(latents)
        return SampledActions(latents.cpu().numpy(), chunks, values, tuple(variances.tolist()))

    def _tensor(self, latents: Latents) -> Tensor:
        return torch.tensor(latents, device=self._policy.device)

    def _rehearse(self, search: SearchConfig, whole: bool) -> dict[str, float]:
        """Do every stage on an empty scene, twice; return the second's seconds per step.

        With all its steps, if ``whole``, else with one.
        """
        checkpoint, seeds = self._policy.checkpoint, tuple(range(search.candidate_batch))
        channels, *size = checkpoint.config.frame_shape
        empty = np.zeros((len(seeds), channels, checkpoint.layout.count, *size), np.float32)
        own = next(iter(checkpoint.text.embeddings))
        prompt = next(iter(self._world_model.checkpoint.text.embeddings))
        scene = Conditioning(own, {}, self._tensor(empty[:1]))
        steps = {
            stage: search.steps(stage, checkpoint.config.denoising_steps) if whole else 1
            for stage in STAGES
        }
        draws = [SampleSpec(seed, steps["sample_actions"]) for seed in seeds]
        every = tuple(range(search.futures)), search.futures
        future = PredictFuture(prompt, empty, seeds, *every, steps["predict_future"])
        every = tuple(range(search.values)), search.values
        value = PredictValue(
            prompt, empty, seeds, *every, steps["predict_value"], search.value, search.value_frames
        )
        stages: dict[Stage, Callable[[], object]] = {
            "sample_actions": lambda: self._policy.sample_actions(scene, draws),
            "predict_future": lambda: self.answer(future),
            "predict_value": lambda: self.answer(value),
        }
        pace: dict[str, float] = {}
        for name, work in stages.items():
            work()  # the first time pays for memory, kernels, recordings and the compiler
            start = time.perf_counter()
            work()
            if self._policy.device.type == "cuda":
                torch.cuda.synchronize(self._policy.device)
            pace[name] = (time.perf_counter() - start) / steps[name]
        return pace


def check_pair(policy: CosmosPolicy, world_model: CosmosPolicy) -> None:
    """Refuse two checkpoints whose latents mean different things; raises CheckpointError."""
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

    Raises CosmosPolicyError when there is no memory for it: decoding takes more than anything else,
    and what is for people's eyes must not cost the process.
    """
    try:
        scene = world_model.encode_observation(task.query.prompt, task.query.observation)
        latents = torch.tensor(task.latents, device=world_model.device)
        futures = world_model.decode_images(scene, latents)
        return {
            role: np.stack([each[role] for each in futures]).mean(axis=0).round().astype(np.uint8)
            for role in futures[0]
        }
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise CosmosPolicyError(
            "there is no memory to decode an imagined future; set futures: false, or leave the "
            f"device to this process alone ({str(error).splitlines()[0]})"
        ) from error
