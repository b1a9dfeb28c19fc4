"""The processes of a training run, and how they share one network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from cosmos_policy_ros.core.errors import CosmosPolicyError, TrainingError
from cosmos_policy_ros.model.checkpoint import choose_device
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.config import RunConfig, TrainingConfig

T = TypeVar("T")
# The variable with the file by which the processes of one machine meet.
MEETING = "COSMOS_POLICY_MEETING"


@dataclass(frozen=True)
class DistContext:
    """All processes, seen from this one.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        device: this process's own.
        talkers: the same processes, exchanging words instead of numbers.
        savers: the same processes, writing a resume point while they train. A group of its own:
            two threads that took turns in one would wait for each other for ever.
    """

    rank: int
    size: int
    device: torch.device
    talkers: Any
    savers: Any

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def total(self, numbers: Tensor) -> Tensor:
        """Return the sum over all processes."""
        dist.all_reduce(numbers)
        return numbers

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """Return what the first process makes of it, in all; its error is everybody's."""
        box: list[Any] = [None]
        if self.first:
            try:
                box = [make()]
            except CosmosPolicyError as error:
                box = [error]
        dist.broadcast_object_list(box, group=self.talkers)
        if isinstance(box[0], CosmosPolicyError):
            raise box[0]
        result: T = box[0]
        return result

    def wait(self) -> None:
        """Wait for all processes."""
        dist.barrier(self.talkers)


@contextmanager
def joined(device_name: str) -> Iterator[DistContext]:
    """Join the other processes that ``torchrun`` started, or be alone."""
    launched = "RANK" in os.environ
    device = choose_device(device_name)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if meeting := os.environ.get(MEETING):
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, f"file://{meeting}", rank=rank, world_size=size)
    elif launched:
        dist.init_process_group(backend)
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        talkers, savers = dist.new_group(backend="gloo"), dist.new_group(backend="gloo")
        yield DistContext(dist.get_rank(), dist.get_world_size(), device, talkers, savers)
    finally:
        dist.destroy_process_group()


def check_sharing(config: TrainingConfig, size: int) -> None:
    """Refuse numbers that do not divide each other.

    Raises:
        TrainingError: says which.
    """
    run = config.run
    if run.batch % size:
        raise TrainingError(
            f"run.batch: {run.batch} samples cannot be shared by {size} processes; take a multiple"
        )
    if size > run.shard_size and size % run.shard_size:
        raise TrainingError(
            f"run.shard_size: {size} processes are no whole number of groups of {run.shard_size}; "
            f"set it to the GPUs per node"
        )


def share_network(network: Transformer, world: DistContext, run: RunConfig) -> None:
    """Spread weights, gradients and optimiser over the processes (FSDP2), in place.

    More processes than ``shard_size`` hold several copies and exchange gradients only between them.
    The arithmetic runs in ``run.precision`` on copies of the float32 weights.
    """
    if run.activation_checkpointing:
        for block in network.blocks:
            block.forward = partial(  # type: ignore[method-assign]
                checkpoint, block.forward, use_reentrant=False
            )
    if world.size == 1 and run.precision == "float32":
        return  # nothing to share and nothing to convert
    shards = min(world.size, run.shard_size)
    shape, names = (world.size // shards, shards), ("copies", "shards")
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=names)
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if run.precision == "bfloat16" else None,
        reduce_dtype=torch.float32,
        # The rotary position must stay in float32.
        cast_forward_inputs=False,
    )
    mesh = mesh if shape[0] > 1 else mesh["shards"]
    for part in (*network.blocks, network):
        fully_shard(part, mesh=mesh, mp_policy=policy)


def exchange_gradients(network: Transformer, now: bool) -> None:
    """Say whether the next backward pass ends with an exchange; not before a step's last one."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)
