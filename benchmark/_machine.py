"""What the figures of the model's benchmarks depend on besides the code."""

from __future__ import annotations

from pathlib import Path

import torch


def describe_machine() -> str:
    """Return what the figures depend on besides the code."""
    cpu = Path("/proc/cpuinfo").read_text().split("model name", 1)[1].split(":")[1].splitlines()[0]
    flags = torch.backends.cpu.get_cpu_capability()
    load = Path("/proc/loadavg").read_text().split()[0]
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {cpu.strip()}, {flags}, "
        f"load {load}"
    )
