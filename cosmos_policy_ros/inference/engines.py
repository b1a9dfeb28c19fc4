"""Engines by name: what the launch argument ``engine`` selects."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from cosmos_policy_ros.inference.search_engine import SearchEngine
from cosmos_policy_ros.inference.spec import Admit, EngineSpec, Footprint
from cosmos_policy_ros.inference.tasks import Decide, DecodeImages, Engine
from cosmos_policy_ros.model.checkpoint import choose_device, read_config
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.policy import TOKENS_AT_ONCE, CosmosPolicy
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.rig.decision import EngineInfo, Policy

# A policy asked directly, as an engine.


class DirectEngine:
    """A policy asked for its one answer."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def info(self) -> EngineInfo:
        """The policy's own."""
        return self._policy.info

    def answer(self, task: object) -> object:
        """Decide, or depict what a decision imagined. Raises CosmosPolicyError: it cannot."""
        if isinstance(task, Decide):
            return self._policy.decide(task.query)
        if isinstance(task, DecodeImages):
            from cosmos_policy_ros.inference.search_engine import decode_images
            from cosmos_policy_ros.model.policy import CosmosPolicy

            assert isinstance(self._policy, CosmosPolicy), "nobody else imagines"
            return decode_images(self._policy, task)
        raise TypeError(f"a policy has no task {type(task).__name__}")


# Builds the cosmos engine: counts its memory first, then loads one checkpoint or two.


# Numbers per token and unit of width that a block holds at once: residual stream, queries, keys and
# values, the MLP's four and their activations. An estimate.
NUMBERS_PER_TOKEN = 16
RUNTIME = int(0.6e9)  # bytes: what torch takes on a device before any model


def load_cosmos(spec: EngineSpec, admit: Admit) -> Engine:
    """Load the policy, and the world model where there is one of its own.

    Raises:
        CheckpointError: a folder is not a checkpoint, the two do not fit together, or do not fit
            into memory.
        ConfigError: no such device, or wrong numbers.
    """
    torch.set_num_threads(spec.threads)
    admit(footprint(spec))
    policy = _load(spec, spec.checkpoint)
    if spec.search is None:
        return DirectEngine(policy)
    return SearchEngine(
        policy,
        _load(spec, spec.world_model) if spec.world_model else policy,
        spec.search.candidate_batch,
    )


def footprint(spec: EngineSpec) -> Footprint:
    """Return the memory that an engine needs, from its checkpoints' configs alone.

    Raises:
        CheckpointError, ConfigError: no such checkpoint, no such device.
    """
    device = choose_device(spec.device)
    folders = {"policy": spec.checkpoint}
    if spec.search is not None and spec.world_model:
        folders["world_model"] = spec.world_model
    configs = {role: read_config(Path(folder)) for role, folder in folders.items()}
    needs = {role: _weights(config) for role, config in configs.items()}
    needs["working space"] = max(_working_space(config, spec) for config in configs.values())
    needs["runtime"] = RUNTIME
    return Footprint(str(device), needs, _free(device))


def _load(spec: EngineSpec, folder: str) -> CosmosPolicy:
    return CosmosPolicy.load(
        folder,
        device=spec.device,
        threads=spec.threads,
        compiled=spec.compiled,
        denoising_steps=spec.denoising_steps,
        numerics=spec.numerics,
    )


def _weights(config: CheckpointConfig) -> int:
    with torch.device("meta"):
        networks = Transformer(config.transformer), Tokenizer(config.vae)
    count = sum(p.numel() for network in networks for p in network.parameters())
    return count * _bytes(config)


def _working_space(config: CheckpointConfig, spec: EngineSpec) -> int:
    """Return bytes of activations at the largest batch."""
    width = config.transformer.heads * config.transformer.head_dim
    tokens = config.tokens
    if spec.search is not None:
        most = spec.search.candidate_batch * max(spec.search.futures, spec.search.values)
        tokens = min(most * tokens, max(TOKENS_AT_ONCE, tokens))
    return tokens * width * NUMBERS_PER_TOKEN * _bytes(config)


def _bytes(config: CheckpointConfig) -> int:
    return 2 if config.precision == "bfloat16" else 4


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    # What can be had without swapping, the page cache included.
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def load_engine(spec: EngineSpec, admit: Admit = lambda footprint: None) -> Engine:
    """Build an engine in this process.

    The imports are here because each pulls in a large library (torch, MuJoCo) that the other
    engine and the node's own process do without.

    Args:
        spec: which one.
        admit: asked for the memory before a model is loaded.

    Raises:
        CosmosPolicyError: the checkpoint or the assets are missing or wrong, or do not fit.
    """
    if spec.engine == "demonstrator":
        from cosmos_policy_ros.sim.demonstrator import Demonstrator

        return DirectEngine(Demonstrator(gripper=spec.gripper))
    pass

    return load_cosmos(spec, admit)
