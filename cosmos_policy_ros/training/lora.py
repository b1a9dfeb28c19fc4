"""Low-rank adapters: a small network's worth of weights learns beside a frozen large one.

Merged into the weights when a checkpoint is written, so what comes out is a checkpoint like any
other (LoRA; the fields are those that the released config has, and leaves off).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from cosmos_policy_ros.core.errors import TrainingError
from cosmos_policy_ros.training.config import LoraConfig

DOWN, UP = "lora_down", "lora_up"


class LoraLinear(nn.Linear):
    """A linear layer without bias whose weight is frozen, with an adapter beside it."""

    def __init__(self, linear: nn.Linear, config: LoraConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight.requires_grad_(False)
        self.register_parameter("bias", None)
        self.scale = config.alpha / config.rank
        self.lora_down = nn.Parameter(linear.weight.new_empty(config.rank, self.in_features))
        # Zero, so that the network begins as it was.
        self.lora_up = nn.Parameter(linear.weight.new_zeros(self.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        change = functional.linear(functional.linear(x, self.lora_down), self.lora_up)
        return functional.linear(x, self.weight) + self.scale * change


def add_adapters(network: nn.Module, config: LoraConfig, seed: int) -> None:
    """Freeze a network and put an adapter beside each layer that the config names.

    Raises:
        TrainingError: a name that is none of the network's layers'.
    """
    network.requires_grad_(False)
    found = set()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the same adapters in every process
        for parent in list(network.modules()):
            for name, layer in list(parent.named_children()):
                if name in config.targets and isinstance(layer, nn.Linear):
                    setattr(parent, name, LoraLinear(layer, config))
                    found.add(name)
    if missing := set(config.targets) - found:
        raise TrainingError(
            f"lora.targets: the network has no linear layer called {', '.join(sorted(missing))}; "
            f"take some of q_proj, k_proj, v_proj, output_proj, layer1, layer2"
        )


def merged(tensors: Mapping[str, Tensor], config: LoraConfig | None) -> dict[str, Tensor]:
    """Return a network's tensors with the adapters in the weights; without any, as they are."""
    kept = {n: t for n, t in tensors.items() if not n.endswith((DOWN, UP))}
    if config is None:
        return kept
    for name, up in tensors.items():
        if name.endswith(UP):
            layer = name.removesuffix(UP)
            change = up.float() @ tensors[layer + DOWN].float()
            weight = kept[layer + "weight"]
            kept[layer + "weight"] = weight + (config.alpha / config.rank * change).to(weight.dtype)
    return kept
