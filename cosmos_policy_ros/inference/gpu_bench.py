"""What ``cosmos gpu-check`` measures with: checkpoints with random weights, laps, and its rows."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cosmos_policy_ros.model.random_checkpoint import write_config, write_weights

NEEDS_GPU = "needs a GPU"
CUT_SHORT = "cut short"  # the name of a section's last row where memory ran out
REACH = 1.57  # rad: joints of the random checkpoints range over half a turn
SMALL: dict[str, Any] = {
    "precision": "float32",  # a CPU may have to emulate bfloat16
    "image_size": 64,
    "transformer": {"layers": 2, "heads": 2, "head_dim": 64, "text_width": 64, "adaln_rank": 16},
    "vae": {"base_width": 8},
}
# The released width and autoencoder, in two of 28 layers: float32 arithmetic fits any card.
WIDE: dict[str, Any] = {"precision": "float32", "transformer": {"layers": 2}}
Size = Literal["full", "small"]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        section: right, fast, memory or steady.
        name: what was measured.
        value: None where it could not be.
        unit: of the value.
        limit: the largest value that is right.
        aim: what it should be, where nothing is wrong otherwise.
        remark: what it means, or why there is no value.
        figures: further numbers by name, for the JSON file.
    """

    section: str
    name: str
    value: float | None
    unit: str = ""
    limit: float | None = None
    aim: float | None = None
    remark: str = ""
    figures: dict[str, float] | None = None

    @property
    def wrong(self) -> bool:
        """Whether a number is not what it must be."""
        if self.limit is None or self.value is None:
            return False
        return not self.value <= self.limit  # not a number is wrong, too


@dataclass(frozen=True)
class Bench:
    """A device and where its checkpoints lie.

    Attributes:
        device: what is measured.
        folder: for checkpoints; 4.2 GB at the released size.
        size: "full" is the released network, "small" one that a CPU runs in seconds.
    """

    device: torch.device
    folder: Path
    size: Size

    def __post_init__(self) -> None:
        torch.set_num_threads(1)  # as a policy does: two that share busy cores wait for each other

    @property
    def is_gpu(self) -> bool:
        """Whether there is what a GPU has: graphs, its own memory, clocks."""
        return self.device.type == "cuda"

    @property
    def gpus(self) -> int:
        """How many GPUs there are."""
        return torch.cuda.device_count() if self.is_gpu else 0

    def collect(self) -> None:
        """Give back the device's memory that nothing refers to any more."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def write(self, name: str, changes: dict[str, Any]) -> tuple[Path, int]:
        """Write a checkpoint with random weights; return its folder and their bytes."""
        folder = self.folder / name
        folder.mkdir()
        write_config(folder, changes, REACH)
        return folder, write_weights(folder, self.device)

    def wait(self) -> None:
        """Wait until the device has done what it was asked."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], laps: int = 5) -> float:
        """Return the median of some laps; one before them is not counted."""
        work()
        laps_taken = []
        for _ in range(laps):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            laps_taken.append(time.perf_counter() - start)
        return statistics.median(laps_taken)


def guarded(section: str, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """Yield rows until the device has no memory for one; the last one then says so."""
    try:
        yield from rows()
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        yield Row(section, CUT_SHORT, None, remark=f"no memory for the rest: {reason}")


def describe_device(device: torch.device) -> dict[str, str]:
    """Return what figures depend on besides the code."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        name = card.name
        memory = f"{card.total_memory / 2**30:.0f} GiB, compute {card.major}.{card.minor}"
    else:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        name = f"CPU {models[0]}" if models else "CPU"
        memory = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return {
        "device": name,
        "of it": memory,
        "torch": f"{torch.__version__} ({built}), cuDNN {cudnn}",
    }


def tera_flops(work: Callable[[], object]) -> float:
    """Return the floating-point operations of matrix products, attention and convolutions [10^12].

    ``work`` must not play a recorded graph, which is one operation to torch.
    """
    decomposed = _Decomposed()  # type: ignore[no-untyped-call]
    with FlopCounterMode(display=False) as counter, decomposed:
        work()
    return float(counter.get_total_flops()) / 1e12


class _Decomposed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes composite operations apart, which torch 2.5 leaves whole in inference mode.

    Its counter knows no linear layer, only matrix products.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        parts = func.decompose(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if parts is NotImplemented else parts
