"""One step of the optimiser: the gradients of its micro-batches, and the weights moved by them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.batch import Batch
from cosmos_policy_ros.training.loss import JointLoss, LossMeter
from cosmos_policy_ros.training.optimisers import Optimisers
from cosmos_policy_ros.training.parallel import DistContext, exchange_gradients


def add_gradients(
    network: Transformer,
    joint_loss: JointLoss,
    batch: Batch,
    meter: LossMeter,
    fraction: float,
    world: DistContext,
    *,
    last: bool,
) -> None:
    """Add a micro-batch's gradients to those of the step.

    Args:
        network: sharded over the processes of ``world``, or whole.
        joint_loss: of the samples.
        batch: this process's next micro-batch.
        meter: takes its losses in.
        fraction: of the step's samples, those of all processes, that are in ``batch``.
        world: the processes.
        last: whether it is the step's last one in this process; only then are gradients exchanged.
    """
    exchange_gradients(network, now=last)
    loss = joint_loss.loss(network, batch, meter, fraction)
    # FSDP averages gradients over the processes; the step's are to be summed.
    torch.autograd.backward(loss * world.size)


def move_weights(optimisers: Optimisers, rate: float, clip_norm: float) -> Tensor:
    """Clip the gradients, take a step at AdamW's ``rate``, and return the gradients' norm ()."""
    parameters = list(optimisers.parameters.values())
    for parameter in parameters:
        if parameter.grad is not None:
            gradient = parameter.grad
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            # As released: a gradient that is no number moves nothing.
            torch.nan_to_num_(local, nan=0.0, posinf=0.0, neginf=0.0)
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimisers.step(rate)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
