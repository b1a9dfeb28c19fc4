"""What moves the weights: AdamW, Muon for the blocks' matrices if asked, and a moving average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from cosmos_policy_ros.model.transformer import Transformer
from cosmos_policy_ros.training.config import OptimiserConfig
from cosmos_policy_ros.training.muon import Muon

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
        tensors: by the parameters' names; this process's share of each.
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
