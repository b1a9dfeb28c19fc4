"""What moves the weights: AdamW, Muon for the blocks' matrices if asked, and a moving average."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.config import OptimiserConfig

# Muon: momentum whose matrices are made orthogonal before they are applied.
#
# Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). Torch has
# one, which works in bfloat16; on a CPU that can only emulate it, that costs four times what this
# one does, a third of a small network's training step. Nor does it know matrices that several
# processes share: here each makes the whole matrix orthogonal and applies its own share.


# Coefficients of the iteration's odd polynomial: steepest at zero among those that stay near one.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
EPSILON = 1e-7


class Muon(torch.optim.Optimizer):
    """Steps matrices along their orthogonalised Nesterov momentum."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        """Take (rows, columns) parameters.

        Raises:
            ValueError: one of them is no matrix.
        """
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"]]
        if odd := [shape for shape in shapes if len(shape) != 2]:
            raise ValueError(f"Muon is for matrices; a parameter has the shape {odd[0]}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take one step; ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for (rows, columns), parameters in alike.items():
                momenta = self._momentum(parameters, group["momentum"])
                directions = orthogonalise(torch.stack([_whole(each) for each in momenta]))
                # Tall matrices would otherwise move less per row.
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                steps = list(map(_shared_like, directions, parameters))
                torch._foreach_add_(parameters, steps, alpha=-rate)

    def _momentum(self, parameters: Sequence[Tensor], momentum: float) -> tuple[Tensor, ...]:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return tuple(torch._foreach_lerp(gradients, buffers, momentum))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of (n, rows, columns) matrices near 1; five Newton-Schulz steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=EPSILON)[:, None, None]
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x


def _whole(matrix: Tensor) -> Tensor:
    return matrix.full_tensor() if isinstance(matrix, DTensor) else matrix


def _shared_like(matrix: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return matrix
    mesh = parameter.device_mesh
    everywhere = [Replicate() for _ in range(mesh.ndim)]
    copies = DTensor.from_local(matrix, mesh, everywhere, run_check=False)
    return copies.redistribute(placements=parameter.placements)


BLOCKS = "blocks."  # how the names of the layers between embedding and output begin
# What an optimiser remembers of a parameter.
MOMENTS = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq"), Muon: ("momentum_buffer",)}


class Optimisers:
    """One optimiser per kind of parameter, behind one learning rate."""

    def __init__(self, network: Transformer, config: OptimiserConfig, device: torch.device) -> None:
        """Take every parameter that is trained."""
        self._config = config
        self.parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        matrices = {
            name: parameter
            for name, parameter in self.parameters.items()
            if config.matrix_rate and name.startswith(BLOCKS) and parameter.ndim == 2
        }
        adamw = torch.optim.AdamW(
            [p for name, p in self.parameters.items() if name not in matrices],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=device.type == "cuda",
        )
        self._parts: list[tuple[torch.optim.Optimizer, float]] = [(adamw, 1.0)]
        if matrices:
            muon = Muon(
                matrices.values(), config.matrix_rate, weight_decay=config.matrix_weight_decay
            )
            self._parts.append((muon, config.matrix_rate / config.learning_rate))

    def step(self, rate: float) -> None:
        """Take a step at AdamW's ``rate``, Muon's in proportion, and forget the gradients."""
        for part, times in self._parts:
            for group in part.param_groups:
                group["lr"] = rate * times
            part.step()
            part.zero_grad(set_to_none=True)

    def begin_after(self, step: int) -> None:
        """Remember nothing, as if ``step`` steps had been taken; :meth:`moments` can be filled."""
        for part, _ in self._parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    empty = {m: torch.zeros_like(parameter) for m in MOMENTS[type(part)]}
                    part.state[parameter] = {"step": torch.tensor(float(step)), **empty}

    def moments(self) -> dict[str, Tensor]:
        """Return what is remembered, by "<moment>.<parameter>"."""
        names = {parameter: name for name, parameter in self.parameters.items()}
        return {
            f"{moment}.{names[parameter]}": part.state[parameter][moment]
            for part, _ in self._parts
            for group in part.param_groups
            for parameter in group["params"]
            for moment in MOMENTS[type(part)]
        }


class Average:
    """A moving average of the weights: steadier than the last ones, and better for it.

    Attributes:
        tensors: by the parameters' names; this process's fraction of each.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        """Begin with the weights as they are; ``decay`` per step."""
        self._parameters, self._decay = parameters, decay
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps; the first ones are soon forgotten."""
        decay = min(self._decay, (1 + step) / (10 + step))
        weights = list(self._parameters.values())
        torch._foreach_lerp_(list(self.tensors.values()), weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network have the averaged weights for a while."""
        kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._fill(self.tensors)
        try:
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])


# The learning rate over the steps.


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Return the learning rate of a step, from 0, as in the released trainer.

    Linear up, linear down, and then a sharp drop to what it stays at: at ``decay_steps`` itself it
    is still what it was lowered to, as in the released code.
    """
    warm, end = config.warmup_steps, config.decay_steps
    if step < warm:
        factor = config.start_factor + (1 - config.start_factor) * step / warm
    elif warm < end and step <= end:  # without a way down it drops at once
        factor = 1 + (config.decayed_factor - 1) * (step - warm) / (end - warm)
    else:
        factor = config.final_factor
    return factor * config.learning_rate
