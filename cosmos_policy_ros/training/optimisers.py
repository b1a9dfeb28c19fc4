"""What moves the weights: AdamW, Muon for the blocks' matrices if asked, and a moving average."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.config import OptimiserConfig


class Optimisers:
    """One optimiser per kind of parameter, behind one learning rate.

    Attributes:
        parameters: all that are trained, by name.
    """

    def __init__(self, network: Transformer, config: OptimiserConfig, device: torch.device) -> None:
        """Take every parameter that is trained."""
        self.parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        matrices = {
            name: parameter
            for name, parameter in self.parameters.items()
            if config.matrix_rate and name.startswith("blocks.") and parameter.ndim == 2
        }
        adamw = torch.optim.AdamW(
            [p for name, p in self.parameters.items() if name not in matrices],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=device.type == "cuda",
        )
        self._parts: list[tuple[torch.optim.Optimizer, float, tuple[str, ...]]] = [
            (adamw, 1.0, ("exp_avg", "exp_avg_sq"))
        ]
        if matrices:
            muon = Muon(
                matrices.values(), config.matrix_rate, weight_decay=config.matrix_weight_decay
            )
            factor = config.matrix_rate / config.learning_rate
            self._parts.append((muon, factor, ("momentum_buffer",)))

    def step(self, rate: float) -> None:
        """Take a step at AdamW's ``rate``, Muon's in proportion, and forget the gradients."""
        for part, factor, _ in self._parts:
            for group in part.param_groups:
                group["lr"] = rate * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def begin_after(self, step: int) -> None:
        """Set all moments to 0 after ``step`` steps, so that :meth:`moments` can be filled."""
        for part, _, moments in self._parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    empty = {moment: torch.zeros_like(parameter) for moment in moments}
                    part.state[parameter] = {"step": torch.tensor(float(step)), **empty}

    def moments(self) -> dict[str, Tensor]:
        """Return the optimisers' state, by "<moment>.<parameter>"."""
        names = {parameter: name for name, parameter in self.parameters.items()}
        return {
            f"{moment}.{names[parameter]}": part.state[parameter][moment]
            for part, _, moments in self._parts
            for group in part.param_groups
            for parameter in group["params"]
            for moment in moments
        }


class Muon(torch.optim.Optimizer):
    """Steps matrices along their orthogonalised Nesterov momentum.

    Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). Torch's
    own gets a small network just as far, but works in bfloat16: on CPUs that emulate it, it takes
    17 times (AVX2) or 3 times (AVX-512) as long as this one, and with AMX 0.6 times
    (``benchmark/training.py muon``). A matrix that is sharded over processes is orthogonalised
    whole in each.
    """

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
                    if "momentum_buffer" not in self.state[parameter]:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            for (rows, columns), parameters in alike.items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                buffers = [self.state[p]["momentum_buffer"] for p in parameters]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                momenta = torch._foreach_lerp(gradients, buffers, group["momentum"])
                whole = [m.full_tensor() if isinstance(m, DTensor) else m for m in momenta]
                steps = map(_shard_like, orthogonalise(torch.stack(whole)), parameters)
                # Tall matrices would otherwise move less per row.
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(steps), alpha=-rate)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of (n, rows, columns) matrices near 1; five Newton-Schulz steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    # Coefficients of an odd polynomial: the steepest at zero among those that stay near one.
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _shard_like(matrix: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return matrix
    mesh = parameter.device_mesh
    copies = DTensor.from_local(matrix, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return copies.redistribute(placements=parameter.placements)


class Average:
    """A moving average of the weights: steadier than the last ones, and better for it.

    Attributes:
        tensors: by the parameters' names; this process's shard of each.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        """Begin with the present weights; ``decay`` per step."""
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
        """Give the network the averaged weights within the block."""
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


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Return the learning rate of a step, from 0, as in the released trainer.

    Linear up, linear down, and then a sharp drop to the final rate, which begins only after
    ``decay_steps`` itself, as in the released code.
    """
    warm, end = config.warmup_steps, config.decay_steps
    if step < warm:
        factor = config.start_factor + (1 - config.start_factor) * step / warm
    elif warm < end and step <= end:  # without a way down it drops at once
        factor = 1 + (config.decayed_factor - 1) * (step - warm) / (end - warm)
    else:
        factor = config.final_factor
    return factor * config.learning_rate
