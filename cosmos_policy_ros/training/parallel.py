"""The processes of a training run, and how they share one network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun
from torch.utils.checkpoint import checkpoint

try:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    GPUS_ONLY = False
except ImportError:  # torch 2.5 has it under its first name
    from torch.distributed._composable.fsdp import (  # type: ignore[attr-defined]
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
    )

    GPUS_ONLY = True

from cosmos_policy_ros.core.errors import CosmosPolicyError, TrainingError
from cosmos_policy_ros.model.checkpoint import choose_device
from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.config import RunConfig

T = TypeVar("T")
MEETING = "COSMOS_POLICY_MEETING"  # variable: the file through which one machine's processes meet


def launch_processes(count: int, program: str, arguments: Sequence[str]) -> int:
    """Run ``torchrun``, which starts a module once per process; return the exit code.

    On one machine they meet by files: ``--standalone`` listens on all interfaces, and so does any
    rendezvous by TCP, whatever address it is given.
    """
    # Where the backends then listen for each other; and torchrun opens no store beside the file.
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with TemporaryDirectory(prefix="cosmos_policy_train_") as folder:
        os.environ[MEETING] = f"{folder}/processes"
        launcher = ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file"]
        launcher += ["--rdzv-endpoint", f"{folder}/launcher"]
        launcher += ["--nproc-per-node", str(count), "-m", program, *arguments]
        try:
            torchrun(launcher)
        except ChildFailedError:  # its own words are on the screen
            return 1
        except SignalException as ended:
            return 128 + int(ended.sigval)
    return 0


@dataclass(frozen=True)
class DistContext:
    """All processes of a run, seen from this one.

    Attributes:
        rank: this process's number, from 0.
        size: the number of processes.
        device: this process's own.
        objects: a group of all processes for Python objects and barriers.
        savers: a group of all processes for resume points, which are written while they train: two
            threads that took turns in one group would wait for each other for ever.
    """

    rank: int
    size: int
    device: torch.device
    objects: Any
    savers: Any

    @property
    def first(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Add up over all processes, in place."""
        dist.all_reduce(tensor)
        return tensor

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """Return in all processes what ``make`` returns in the first, or raise its error."""
        box: list[Any] = [None]
        if self.first:
            try:
                box = [make()]
            except CosmosPolicyError as error:
                box = [error]
        dist.broadcast_object_list(box, group=self.objects)
        if isinstance(box[0], CosmosPolicyError):
            raise box[0]
        result: T = box[0]
        return result

    def wait(self) -> None:
        """Wait for all processes."""
        dist.barrier(self.objects)


@contextmanager
def joined(device_name: str) -> Iterator[DistContext]:
    """Join the processes that ``torchrun`` started, or be the only one."""
    device = choose_device(device_name)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if meeting := os.environ.get(MEETING):
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, f"file://{meeting}", rank=rank, world_size=size)
    elif "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        objects, savers = dist.new_group(backend="gloo"), dist.new_group(backend="gloo")
        yield DistContext(dist.get_rank(), dist.get_world_size(), device, objects, savers)
    finally:
        dist.destroy_process_group()


def check_sharing(run: RunConfig, size: int) -> None:
    """Raise TrainingError if ``size`` processes cannot share batches or weights."""
    if run.batch % size:
        raise TrainingError(
            f"run.batch: {run.batch} samples cannot be shared by {size} processes; take a multiple"
        )
    if size > run.shard_size and size % run.shard_size:
        raise TrainingError(
            f"run.shard_size: {size} processes are no whole number of groups of {run.shard_size}; "
            f"set it to the GPUs per node"
        )


def shard_network(network: Transformer, world: DistContext, run: RunConfig) -> None:
    """Shard weights, gradients and optimiser over the processes (FSDP2), in place.

    More processes than ``shard_size`` hold several copies and exchange gradients only between them.
    The arithmetic runs in ``run.precision`` on copies of the float32 weights.

    Raises:
        TrainingError: this torch shards and converts on GPUs only.
    """
    if run.activation_checkpointing:
        for block in network.blocks:
            block.forward = partial(  # type: ignore[method-assign]
                checkpoint, block.forward, use_reentrant=False
            )
    if world.size == 1 and run.precision == "float32":
        return  # nothing to share and nothing to convert
    if GPUS_ONLY and world.device.type == "cpu":
        raise TrainingError(
            f"torch {torch.__version__} shares and converts weights on GPUs only; on a CPU take "
            f"2.6 or newer, or one process and run.precision: float32"
        )
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


def exchange_gradients(network: Transformer, *, now: bool) -> None:
    """Say whether the next backward pass ends with an exchange between processes."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)
