"""``cosmos gpu-check``: is a device right, how fast is it, and does it stay so?"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from cosmos_policy_ros import __version__
from cosmos_policy_ros.core.errors import ConfigError, TrainingError
from cosmos_policy_ros.core.files import replace_text
from cosmos_policy_ros.inference.gpu_bench import (
    CUT_SHORT,
    NEEDS_GPU,
    SMALL,
    Bench,
    Row,
    Size,
    describe_device,
    guarded,
)
from cosmos_policy_ros.inference.gpu_numbers import check_numbers
from cosmos_policy_ros.inference.gpu_speed import Speed, measure_memory
from cosmos_policy_ros.inference.gpu_steadiness import measure_restart, measure_steadiness
from cosmos_policy_ros.model.checkpoint import choose_device, load_checkpoint
from cosmos_policy_ros.training.step_speed import StepSpeed, measure_processes, measure_step

SECTIONS = ("right", "fast", "memory", "steady")
SAMPLES = 8  # of a training step on one GPU


def add_gpu_check(parser: argparse.ArgumentParser) -> None:
    """Check and measure a GPU: numbers, speed, memory, steadiness.

    Random weights are made on the device; nothing is downloaded, and neither ROS nor MuJoCo is
    needed. "right" compares the device with a CPU, with diffusers and with itself; "fast", "memory"
    and "steady" measure. A row above its limit ("≤") is wrong, marked with "!!", and the exit code
    1; aims are for an H100. The released size should take under ten minutes on a GPU; on a CPU a
    small one is measured, to show that everything runs.
    """
    parser.add_argument("--device", default="auto", help="torch device (auto: a GPU, else the CPU)")
    parser.add_argument(
        "--size", choices=("full", "small"), help="the released network or a small one (by device)"
    )
    parser.add_argument(
        "--only", choices=SECTIONS, action="append", help="a section; may be given several times"
    )
    parser.add_argument("--calls", type=int, help="decisions in a row (200 on a GPU, 20 on a CPU)")
    parser.add_argument(
        "--folder", type=Path, help="for temporary checkpoints, 9 GB (system's own)"
    )
    parser.add_argument("--output", type=Path, help="JSON file (gpu-check-DEVICE.json)")
    parser.set_defaults(run=_gpu_check)


def _gpu_check(options: argparse.Namespace) -> int:
    device = choose_device(options.device)
    is_gpu = device.type == "cuda"
    size: Size = options.size or ("full" if is_gpu else "small")
    calls = (200 if is_gpu else 20) if options.calls is None else options.calls
    _check(options, calls)
    begun, rows, section = time.perf_counter(), [], ""
    with tempfile.TemporaryDirectory(prefix="gpu_check_", dir=options.folder) as temporary:
        bench = Bench(device, Path(temporary), size)
        machine = describe_device(device) | {
            "package": __version__,
            "python": platform.python_version(),
            "size": size,
        }
        print("\n".join(f"{name}: {value}" for name, value in machine.items()))
        for row in _rows(bench, options.only or SECTIONS, calls):
            if row.section != section:
                print(f"\n{row.section}")
            print(describe(row), flush=True)
            section = row.section
            rows.append(row)
    spent = time.perf_counter() - begun
    name = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    output = options.output or Path(f"gpu-check-{name}.json")
    result = {"machine": machine, "seconds": spent, "rows": [asdict(row) for row in rows]}
    replace_text(output, json.dumps(result, indent=1) + "\n")
    wrong = [row.name for row in rows if row.wrong]
    cut = [row.section for row in rows if row.name == CUT_SHORT]
    verdict = f"WRONG: {'; '.join(wrong)}" if wrong else "no number is wrong"
    verdict += f", but no memory for all of {', '.join(cut)}" if cut else ""
    print(f"\n{verdict}; {spent:.0f} s; written to {output}")
    return 1 if wrong or cut else 0


def _check(options: argparse.Namespace, calls: int) -> None:
    """Refuse at once what would end ten minutes of measuring without a result."""
    if calls < 1:
        raise ConfigError(f"--calls {calls}: at least 1 is needed")
    for name, folder in (("--folder", options.folder), ("--output", options.output)):
        place = folder if name == "--folder" or folder is None else folder.absolute().parent
        if place is not None and not (place.is_dir() and os.access(place, os.W_OK)):
            raise ConfigError(f"{name}: {place} is no folder that can be written to")


def _rows(bench: Bench, sections: Sequence[str], calls: int) -> Iterator[Row]:
    """Yield the rows of some sections; weights are written once and loaded for each."""
    folder, written = bench.write("checkpoint", {} if bench.size == "full" else SMALL)
    ways: dict[str, Callable[[], Iterator[Row]]] = {
        "right": lambda: check_numbers(bench, load_checkpoint(folder, bench.device)),
        "fast": lambda: _speed(bench, folder),
        "memory": lambda: measure_memory(bench, folder, written),
        "steady": lambda: _steadiness(bench, folder, calls),
    }
    for section in SECTIONS:
        if section in sections:
            yield from guarded(section, ways[section])
            bench.collect()


def _speed(bench: Bench, folder: Path) -> Iterator[Row]:
    speed = Speed(bench, load_checkpoint(folder, bench.device))
    yield from speed.rows()
    best = speed.best
    del speed  # training takes the memory
    yield from _training(bench, folder, best)


def _steadiness(bench: Bench, folder: Path, calls: int) -> Iterator[Row]:
    yield from measure_steadiness(bench, load_checkpoint(folder, bench.device), calls)
    yield from measure_restart(bench, folder)


def _training(bench: Bench, folder: Path, best: float) -> Iterator[Row]:
    """Yield a row per way of training: all weights, adapters, all weights over all GPUs."""
    batch = SAMPLES if bench.is_gpu else 1
    ways: dict[str, Callable[[], StepSpeed]] = {
        f"training step of {batch}, all weights": lambda: measure_step(
            load_checkpoint(folder, bench.device), bench.device, batch=batch, lora=False
        ),
        f"training step of {batch}, adapters": lambda: measure_step(
            load_checkpoint(folder, bench.device), bench.device, batch=batch, lora=True
        ),
    }
    over_all = f"training step of {batch} per GPU, sharded"
    if bench.gpus > 1:
        ways[over_all] = lambda: measure_processes(bench.gpus, folder, batch=batch * bench.gpus)
    for name, measure in ways.items():
        try:
            step = measure()
        except TrainingError as error:
            yield Row("fast", name, None, remark=f"not here: {error}")
            continue
        finally:
            bench.collect()  # a trained network is of no further use, and large
        memory = f"; {step.peak_memory / 1e9:.1f} GB" if step.peak_memory else ""
        remark = (
            f"{step.tflops:.3g} TFLOP/s per device, {step.tflops / best:.0%} of its best product; "
            f"encoding {step.encoding_share:.0%} of it{memory}"
        )
        figures = {"encoding": step.encoding, "gradients": step.gradients, "tflops": step.tflops}
        yield Row("fast", name, step.seconds, "s", remark=remark, figures=figures)
    if over_all not in ways:
        yield Row("fast", over_all, None, remark=f"{NEEDS_GPU}, and a second one")


def describe(row: Row) -> str:
    """Return a row as a line of the table."""
    if row.value is None:
        return f"  {row.name:<46} {'-':>10}         {row.remark}"
    bound = row.aim if row.limit is None else row.limit
    sign = "aim " if row.limit is None else "≤ "
    limit = "" if bound is None else f"{sign}{bound:.3g}"
    mark = "!!" if row.wrong else "  "
    return (
        f"{mark}{row.name:<46} {row.value:>10.4g} {row.unit:<7} {limit:<10} {row.remark}".rstrip()
    )
