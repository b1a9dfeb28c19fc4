"""Faster ways to run the same networks, and what each of them changes in the results.

========================  ===========  =================================================
way                       where        changes
========================  ===========  =================================================
:class:`CudaGraphs`       CUDA         nothing: the same kernels, started at once
:func:`attention`         CUDA         rounding: another kernel sums in another order
:func:`channels_last`     CUDA         rounding, likewise
:func:`compile_blocks`    if asked     rounding: fewer roundings between fused operations
:func:`quantise`          if asked     weights by up to 1/16 of themselves (three bits)
========================  ===========  =================================================

"If asked" are the node's parameters ``compiled`` and ``fp8_weights``. ``cosmos gpu-check`` measures
all of them on the card at hand.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from cosmos_policy_ros.core.disk_cache import cache_folder
from cosmos_policy_ros.model.tokenizer import Tokenizer
from cosmos_policy_ros.model.transformer import Transformer

# A direct policy plays 2, a search some 10: its three stages, by how many candidates go together.
GRAPHS_KEPT = 32
# Of one compiled function: with one sample or several, each cut short at the end or not. torch
# gives up compiling beyond it.
VARIANTS = 64
HOPPER = 9  # compute capability from which NVIDIA's own attention (cuDNN) is the fastest

# What torch says where a backend does not take a call in the first place.
DECLINED = ("No available kernel", "No viable backend")

# torch 2.5 takes a list as what is allowed, in an order of its own.
TAKES_ORDER = "set_priority" in inspect.signature(sdpa_kernel).parameters
IN_ORDER: dict[str, Any] = {"set_priority": True} if TAKES_ORDER else {}

Run: TypeAlias = Callable[..., tuple[Tensor, ...]]


class _Recorded(NamedTuple):
    inputs: tuple[Tensor, ...]  # what is played reads these
    play: Callable[[], object]
    outputs: tuple[Tensor, ...]  # and writes these
    run: Run  # holds the constants that were recorded by their addresses


class CudaGraphs:
    """Plays functions of tensors as CUDA graphs: thousands of kernels, started by one call.

    A function is recorded when it is first called with inputs of these shapes, and must then depend
    on nothing but its inputs and constants that it holds itself. Graphs share their working memory,
    so only one may play at a time. Where a recording fails, everything runs as it is from then on,
    and :attr:`failure` says why.
    """

    def __init__(self, device: torch.device) -> None:
        self.failure = ""
        self._device = device
        self._recorded: OrderedDict[tuple[object, ...], _Recorded] = OrderedDict()
        self._pool: Any = None

    def __call__(self, run: Run, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what ``run(*inputs)`` does."""
        if self.failure:
            return run(*inputs)
        key = (run, *((tuple(each.shape), each.dtype) for each in inputs))
        recorded = self._recorded.get(key)
        if recorded is None:
            static = tuple(each.clone() for each in inputs)
            try:
                recorded = _Recorded(static, *self._record(run, static), run)
            # A driver has many ways to refuse, and none that matters for the result.
            except Exception as error:
                self.forget()
                self.failure = f"{type(error).__name__}: {first_line(error)}"
                return run(*inputs)
            self._recorded[key] = recorded
            if len(self._recorded) > GRAPHS_KEPT:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        for static_input, given in zip(recorded.inputs, inputs, strict=True):
            static_input.copy_(given, non_blocking=True)
        recorded.play()
        # The next graph writes where this one did.
        return tuple(each.clone() for each in recorded.outputs)

    def forget(self) -> None:
        """Drop all recordings and begin anew."""
        self._recorded.clear()
        self.failure = ""

    def _record(
        self, run: Run, inputs: tuple[Tensor, ...]
    ) -> tuple[Callable[[], object], tuple[Tensor, ...]]:
        """Return what plays ``run`` on these very tensors, and where its results then are."""
        beside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(beside):  # kernels are loaded, constants made and kept
            run(*inputs)
        torch.cuda.current_stream(self._device).wait_stream(beside)
        torch.cuda.synchronize(self._device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = run(*inputs)
        return graph.replay, outputs


@lru_cache
def attention_order(device: torch.device) -> tuple[SDPBackend, ...]:
    """Return a GPU's attention backends from the fastest to the one that always works.

    A fixed order and not a measured one, so that a machine answers a seed the same way every day.
    A backend that takes a call and then fails on it, as versions of cuDNN do, is left out.
    """
    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    hopper = torch.cuda.get_device_capability(device)[0] >= HOPPER
    fast = (cudnn, flash) if hopper else (flash, cudnn)
    fused = (*fast, SDPBackend.EFFICIENT_ATTENTION)
    return (*(each for each in fused if not _breaks(each, device)), SDPBackend.MATH)


def _breaks(backend: SDPBackend, device: torch.device) -> bool:
    """Try a backend on the shapes of both of a block's attentions, to itself and to the text."""
    queries = torch.zeros(2, 2, 64, 128, dtype=torch.bfloat16, device=device)
    text = torch.zeros(1, 2, 16, 128, dtype=torch.bfloat16, device=device).expand(2, -1, -1, -1)
    bias = torch.zeros(1, 1, 1, 16, dtype=torch.bfloat16, device=device)
    for keys, mask in ((queries, None), (text, bias)):
        try:
            with sdpa_kernel(backend):
                functional.scaled_dot_product_attention(queries, keys, keys, attn_mask=mask)
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            if not str(error).startswith(DECLINED):
                return True
    return False


@contextlib.contextmanager
def attention(device: torch.device) -> Iterator[None]:
    """Let attention within the block use the first backend that can do it; a CPU has one anyway."""
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel(list(attention_order(device)), **IN_ORDER):
        yield


def attention_backend(queries: Tensor, keys: Tensor, bias: Tensor | None = None) -> str:
    """Return the name of the backend that :func:`attention` takes for (B, A, N, d) tensors."""
    with attention(queries.device):
        chosen = torch._fused_sdp_choice(queries, keys, keys, attn_mask=bias)
    return SDPBackend(chosen).name.removesuffix("_ATTENTION").lower()


def channels_last(tokenizer: Tokenizer) -> None:
    """Lay out the autoencoder's convolutions with channels fastest, as tensor cores take them."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    with torch.inference_mode(False):  # else no later gradient could pass them
        for parameter in tokenizer.parameters():
            if parameter.ndim in formats:
                parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])


def compile_blocks(network: Transformer, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the transformer's blocks, at their first calls.

    They are alike: one is compiled, for one sample and for several, with all frames and with those
    that are read at the end. What the compiler makes is kept on disk, so that later starts find it.
    """
    if backend == "inductor":
        keep_compiled()
    limit = (
        "recompile_limit"
        if hasattr(torch._dynamo.config, "recompile_limit")
        else "cache_size_limit"
    )
    setattr(torch._dynamo.config, limit, VARIANTS)
    for block in network.blocks:
        block.compile(backend=backend, fullgraph=True)


def uncompile_blocks(network: Transformer) -> None:
    """Let the blocks run as they are again."""
    for block in network.blocks:
        block._compiled_call_impl = None


def keep_compiled() -> None:
    """Have torch keep what it compiles where a reboot leaves it, unless it was told a place.

    Torch's own place is in the folder of temporary files.
    """
    own = Path(tempfile.gettempdir()) / "torchinductor_"
    # torch writes its own choice there when it is imported.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(own)).startswith(str(own)):
        folder = cache_folder("compiled")
        with contextlib.suppress(OSError):  # nowhere to write: torch's own place will do
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    # The defaults of later versions.
    torch._inductor.config.fx_graph_cache = True
    torch._functorch.config.enable_autograd_cache = True


LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Fp8Linear(nn.Module):
    """A linear layer whose weights are 8-bit floats, with a scale per output.

    Each call turns them back into the input's format, so this saves memory, not time.
    """

    weight: Tensor  # (out, in) float8_e4m3fn
    scale: Tensor  # (out, 1)

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / LARGEST
        self.register_buffer("weight", (weight.float() / scale).to(torch.float8_e4m3fn))
        self.register_buffer("scale", scale.to(weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return functional.linear(x, self.weight.to(x.dtype) * self.scale)


def quantise(network: Transformer) -> None:
    """Keep the blocks' attention and MLP weights, 0.8 of all, in 8 bits; in place."""
    for block in network.blocks:
        for part in (block.self_attn, block.cross_attn, block.mlp):
            for name, layer in list(part.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(part, name, Fp8Linear(layer))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), "")
