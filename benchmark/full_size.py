"""One policy call of the full-size network on the CPU: wall time and memory of every phase.

Run: ``python benchmark/full_size.py [--steps N] [--threads N]`` from the package's root.

The released 2B transformer and the Wan autoencoder, random weights in bfloat16. A CPU without
bfloat16 arithmetic emulates it: there the seconds say nothing, the memory does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from _machine import describe_machine  # noqa: E402
from torch import nn  # noqa: E402

from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from cosmos_policy_ros.model.policy import CosmosPolicy  # noqa: E402
from cosmos_policy_ros.model.random_checkpoint import (  # noqa: E402
    PROMPT_TOKENS,
    random_query,
    write_config,
)

LIMIT_GIB = 24.0
SAMPLE_EVERY = 0.02  # s; a phase's largest tensors live for longer


def memory_gib(field: str) -> float:
    """Return a field of the process's status: VmRSS is resident memory now, VmHWM its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError(f"the system does not tell {field}")


class Watch:
    """Resident memory over time, sampled by a thread."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def peak(self, start: float, end: float) -> float:
        """Return the largest memory [GiB] between two times of ``time.perf_counter``.

        The sample before the start counts too, so that the shortest phase has one.
        """
        samples = list(self._samples)
        before = [gib for at, gib in samples if at <= start][-1:]
        return max(before + [gib for at, gib in samples if start < at <= end])

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY):
            self._samples.append((time.perf_counter(), memory_gib("VmRSS")))


def report(name: str, start: float, end: float, watch: Watch) -> None:
    print(f"| {name} | {end - start:.2f} | {watch.peak(start, end):.2f} |", flush=True)


def report_phases(start: float, phases: Mapping[str, float], watch: Watch) -> None:
    """A decision's phases follow each other without a gap, from the call's start on."""
    for name, seconds in phases.items():
        report(name, start, start + seconds, watch)
        start += seconds


def describe(checkpoint: Checkpoint) -> str:
    counts = []
    networks: dict[str, nn.Module] = {
        "transformer": checkpoint.transformer,
        "autoencoder": checkpoint.tokenizer,
    }
    for name, network in networks.items():
        parameters = list(network.parameters())
        formats = {str(p.dtype).removeprefix("torch.") for p in parameters}
        counts.append(f"{name} {sum(p.numel() for p in parameters):,} {'/'.join(formats)}")
    return f"{', '.join(counts)}; {PROMPT_TOKENS} prompt tokens of {checkpoint.config.text_tokens}"


def call(policy: CosmosPolicy, index: int, watch: Watch) -> bool:
    """Report one call; return whether its answer is made of numbers that differ."""
    print(f"| **call {index + 1}** | | |", flush=True)
    start = time.perf_counter()
    decision = policy.decide(random_query(index))
    end = time.perf_counter()
    report_phases(start, decision.phases, watch)
    report(f"whole, {decision.denoising_steps} evaluation(s)", start, end, watch)
    chunk = decision.positions
    return bool(np.isfinite(chunk).all() and np.ptp(chunk) > 1e-3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps; released: 10")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--calls", type=int, default=1, help="from the second on caches are warm")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary, Watch() as watch:
        folder = write_config(Path(temporary), {"denoising_steps": options.steps})
        print(describe_machine(), flush=True)
        time.sleep(2 * SAMPLE_EVERY)
        start = time.perf_counter()
        checkpoint = load_checkpoint(folder)
        policy = CosmosPolicy(checkpoint)
        end = time.perf_counter()
        print(f"{describe(checkpoint)}\n")
        print("| phase | wall [s] | peak resident memory [GiB] |\n|---|---|---|")
        report("make random weights", start, end, watch)
        sane = [call(policy, index, watch) for index in range(options.calls)]
    peak = memory_gib("VmHWM")
    print(f"\npeak resident memory of the process {peak:.2f} GiB, limit {LIMIT_GIB:.0f} GiB")
    if not all(sane):
        print("the chunk is not finite or all of its numbers are equal")
    return 0 if all(sane) and peak <= LIMIT_GIB else 1


if __name__ == "__main__":
    sys.exit(main())
