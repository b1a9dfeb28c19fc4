"""Where the networks run, and how fast: the device, and the compiled transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cosmos_policy_ros.errors import ConfigError
from cosmos_policy_ros.model.transformer import Transformer

AUTO = "auto"
Backend = str | Callable[..., Any]  # of torch.compile
# Of one function: policy, world model and value function, each cut short at the end or not, with
# one sample or several. torch gives up compiling beyond it.
VARIANTS = 64


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``, in torch's words; "auto" is the first GPU, or the CPU.

    Raises:
        ConfigError: it cannot be used here.
    """
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device '{name}' cannot be used ({reason}); try device:=auto or device:=cpu"
        ) from error


def compile_forward(network: Transformer, backend: Backend = "inductor") -> Callable[..., Tensor]:
    """Return the network's forward pass compiled by torch; on a GPU also recorded as CUDA graphs.

    The compiler fuses operations, so results differ by rounding. It works at the first call of each
    variant, for minutes with the 2B network, and only then it is known whether it can.
    """
    torch._dynamo.config.recompile_limit = VARIANTS
    graphs = network.device.type == "cuda" and backend == "inductor"
    compiled = torch.compile(
        network.forward, backend=backend, mode="reduce-overhead" if graphs else None
    )

    def forward(*args: Any) -> Tensor:
        # A graph writes its result to the same memory again; the denoiser has used up the last one.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        result: Tensor = compiled(*args)
        return result

    return forward
