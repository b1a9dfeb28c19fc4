"""How long a training step takes on a device, by its parts, on samples that are made up.

The step is the trainer's own: encoding, loss, gradients, optimiser, sharded over the processes. No
bag is read, so it runs where only torch and diffusers are installed:

    python -m cosmos_policy_ros.training.step_speed FOLDER --batch 25 [--processes 8]

prints a line of JSON, :class:`StepSpeed`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from cosmos_policy_ros.core.errors import CosmosPolicyError, TrainingError
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.model.config import Precision
from cosmos_policy_ros.training.batch import Batch, WindowRef
from cosmos_policy_ros.training.config import (
    LoraConfig,
    ObjectiveConfig,
    OptimiserConfig,
    RunConfig,
)
from cosmos_policy_ros.training.flops import encoding_flops, gradient_flops
from cosmos_policy_ros.training.loss import ROLES, JointLoss, LossMeter
from cosmos_policy_ros.training.optimisers import Optimisers, learning_rate
from cosmos_policy_ros.training.parallel import (
    DistContext,
    check_sharing,
    joined,
    launch_processes,
    shard_network,
)
from cosmos_policy_ros.training.start import add_adapters
from cosmos_policy_ros.training.step import add_gradients, move_weights
from cosmos_policy_ros.training.targets import TargetMaker

PROGRAM = "cosmos_policy_ros.training.step_speed"
WARM_UP = 2  # steps: the first makes the moments, the second finds its memory where it was
ENCODING, GRADIENTS, OPTIMISER = "encoding", "gradients", "optimiser"


@dataclass(frozen=True)
class StepSpeed:
    """One training step, as measured.

    Seconds are those of the first process, which waits for the others in every step. The parts are
    those of the step whose whole is the median, so they add up to it.

    Attributes:
        device: of the first process, in torch's words.
        processes: that shared weights and batch.
        batch: samples per step, over all processes.
        precision: of the transformer's arithmetic.
        trained: parameters that were trained: all, or the adapters'.
        seconds: of a whole step, the median.
        encoding: seconds of it in the autoencoder, which makes images into latents.
        gradients: seconds of it forward and backward through the transformer, exchange included.
        optimiser: seconds of it for clipping and AdamW.
        all_seconds: of every step measured, in their order.
        flops: of matrix products, attention and convolutions in a step, over all processes;
            activations that are computed a second time count.
        peak_memory: bytes that the first process's tensors took at most; None on a CPU.
    """

    device: str
    processes: int
    batch: int
    precision: Precision
    trained: int
    seconds: float
    encoding: float
    gradients: float
    optimiser: float
    all_seconds: tuple[float, ...]
    flops: float
    peak_memory: int | None

    @property
    def encoding_share(self) -> float:
        """The autoencoder's part of a step, 0 to 1."""
        return self.encoding / self.seconds

    @property
    def tflops(self) -> float:
        """TFLOP/s of one device."""
        return self.flops / self.processes / self.seconds / 1e12

    @property
    def samples_per_second(self) -> float:
        """Over all processes."""
        return self.batch / self.seconds

    @classmethod
    def from_json(cls, line: str) -> StepSpeed:
        """Read a line that :meth:`to_json` wrote."""
        content = json.loads(line)
        return cls(**{**content, "all_seconds": tuple(content["all_seconds"])})

    def to_json(self) -> str:
        """Return a line of JSON."""
        return json.dumps(asdict(self))


def measure_step(
    checkpoint: Checkpoint,
    device: torch.device | str,
    *,
    batch: int,
    lora: bool = False,
    steps: int = 5,
    micro_batch: int = 0,
    precision: Precision = "bfloat16",
) -> StepSpeed:
    """Train for a few steps and tell how long one takes.

    In a process of ``torchrun`` all processes do it together, and each calls this.

    Args:
        checkpoint: with weights or random. Its transformer is trained and sharded, and stays so:
            it is of no further use. Its memory is free after ``gc.collect()``: blocks that compute
            twice refer to themselves.
        device: where the step runs; in a process of ``torchrun`` its own GPU.
        batch: samples per step, over all processes.
        lora: train adapters of the default rank beside frozen weights, as for one small GPU.
        steps: that are measured; :data:`WARM_UP` more come first.
        micro_batch: samples at once per process; 0 for all of its own.
        precision: of the transformer's arithmetic; its weights are float32. The autoencoder works
            in the checkpoint's.

    Raises:
        TrainingError: the device's memory is too small, a count is below 1, or the processes
            cannot share the batch.
        ConfigError: no such device here.
    """
    if min(batch, steps) < 1 or micro_batch < 0:
        raise TrainingError(
            f"batch {batch}, steps {steps}, micro_batch {micro_batch}: at least 1 sample and 1 "
            f"step are needed, and micro_batch is not negative"
        )
    with joined(str(device)) as world:
        run = RunConfig(
            steps=steps,
            batch=batch,
            micro_batch=micro_batch or max(batch // world.size, 1),
            precision=precision,
        )
        check_sharing(run, world.size)
        threads = torch.get_num_threads()
        torch.set_num_threads(run.threads)  # as for a training
        try:
            return StepTrial(checkpoint, world, run, LoraConfig() if lora else None).run()
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"{world.device}: its memory is too small for a step of {run.micro_batch} samples "
                f"at once{'' if lora else ' that trains all weights'} "
                f"({str(error).splitlines()[0]}); take a smaller micro-batch, more processes, or "
                f"adapters (lora)"
            ) from error
        finally:
            torch.set_num_threads(threads)


def measure_processes(
    count: int,
    folder: Path,
    *,
    batch: int,
    lora: bool = False,
    steps: int = 5,
    device: str = "auto",
    precision: Precision = "bfloat16",
    timeout: float = 1800.0,
) -> StepSpeed:
    """Measure with several processes, one per GPU, that ``torchrun`` starts here.

    Args:
        count: of the processes.
        folder: a checkpoint's; without weights they are random.
        batch: as for :func:`measure_step`, like the others.
        lora: train adapters.
        steps: that are measured.
        device: in torch's words; each process takes its own GPU.
        precision: of the arithmetic.
        timeout: seconds until it is given up.

    Raises:
        TrainingError: it failed or hung; its last words are in the message.
    """
    words = [str(folder), "--processes", str(count), "--batch", str(batch), "--steps", str(steps)]
    words += ["--device", device, "--precision", precision, *(["--lora"] if lora else [])]
    command = [sys.executable, "-m", PROGRAM, *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as running:
        try:
            printed, complaints = running.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            running.terminate()  # torchrun takes its processes along
            raise TrainingError(
                f"{count} processes did not end within {timeout:g} s; are they waiting for each "
                f"other? try fewer"
            ) from None
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    if running.returncode or len(lines) != 1:
        told = [line for line in complaints.splitlines() if line.startswith("error: ")]
        last = (told or complaints.strip().splitlines() or ["nothing"])[-1].removeprefix("error: ")
        raise TrainingError(f"{count} processes ended with {running.returncode}: {last}")
    return StepSpeed.from_json(lines[0])


# ---------------------------------------------------------------- one process's part


class StepTrial:
    """A network, what it learns from and what moves it, as the trainer puts them together.

    Attributes:
        optimisers: their parameters are those that are trained.
    """

    def __init__(
        self, checkpoint: Checkpoint, world: DistContext, run: RunConfig, lora: LoraConfig | None
    ) -> None:
        """Move both networks to the process's device and shard the transformer."""
        self._checkpoint, self._world, self._run, self._lora = checkpoint, world, run, lora
        self._network = checkpoint.transformer
        # Weights in float32, as a training's start has them.
        self._network.to(world.device, torch.float32).requires_grad_(True).train()
        checkpoint.tokenizer.to(world.device)
        if lora is not None:
            add_adapters(self._network, lora, run.seed)
        shard_network(self._network, world, run)
        self._config = OptimiserConfig()
        self.optimisers = Optimisers(self._network, self._config, world.device)
        self._clock = _Clock(world.device)
        targets = _TimedTargets(checkpoint, world.device, self._clock)
        self._loss = JointLoss(checkpoint, ObjectiveConfig(), targets, world.device)
        own = run.batch // world.size
        self._batches = [
            make_batch(checkpoint, min(run.micro_batch, own - first), world.rank * own + first)
            for first in range(0, own, run.micro_batch)
        ]

    def run(self) -> StepSpeed:
        """Take the steps and return what was measured."""
        device, run = self._world.device, self._run
        gpu = device.type == "cuda"
        if gpu:
            torch.cuda.reset_peak_memory_stats(device)
        measured = [self.step(number) for number in range(WARM_UP + run.steps)][WARM_UP:]
        whole = [sum(parts.values()) for parts in measured]
        middle = sorted(range(run.steps), key=lambda step: whole[step])[(run.steps - 1) // 2]
        parts, model = measured[middle], self._checkpoint.config
        per_sample = encoding_flops(model) + gradient_flops(
            model, self._lora, recompute=run.activation_checkpointing
        )
        return StepSpeed(
            device=str(device),
            processes=self._world.size,
            batch=run.batch,
            precision=run.precision,
            trained=sum(p.numel() for p in self.optimisers.parameters.values()),
            seconds=whole[middle],
            encoding=parts[ENCODING],
            gradients=parts[GRADIENTS],
            optimiser=parts[OPTIMISER],
            all_seconds=tuple(whole),
            flops=run.batch * per_sample,
            peak_memory=torch.cuda.max_memory_allocated(device) if gpu else None,
        )

    def step(self, number: int) -> dict[str, float]:
        """Take a step and return the seconds of its parts."""
        clock, world = self._clock, self._world
        meter = LossMeter(self._checkpoint.layout.frames, world.device)
        clock.start()
        for index, batch in enumerate(self._batches):
            add_gradients(
                self._network,
                self._loss,
                batch,
                meter,
                len(batch.windows) / self._run.batch,
                world,
                last=index + 1 == len(self._batches),
            )
            clock.end(GRADIENTS)
        move_weights(self.optimisers, learning_rate(number, self._config), self._config.clip_norm)
        clock.end(OPTIMISER)
        return clock.seconds()


def make_batch(checkpoint: Checkpoint, count: int, first: int = 0) -> Batch:
    """Return ``count`` samples of noise, one of each role in turn.

    Args:
        checkpoint: sizes, and the prompts it knows.
        count: of the samples.
        first: the number of the first one in the step, which seeds it.
    """
    model = checkpoint.config
    random = np.random.default_rng(first)
    size, images = model.image_size, 2 * len(checkpoint.layout.cameras)

    def vectors(length: int) -> Tensor:
        return torch.from_numpy(random.uniform(-1, 1, (count, length)).astype(np.float32))

    numbers = range(first, first + count)
    prompts = sorted(checkpoint.text.embeddings)
    return Batch(
        windows=tuple(WindowRef(ROLES[n % len(ROLES)], 0, n, n) for n in numbers),
        prompts=tuple(prompts[n % len(prompts)] for n in numbers),
        images=torch.from_numpy(random.integers(0, 256, (count, images, size, size, 3), np.uint8)),
        proprio=vectors(model.proprio_dims),
        actions=vectors(model.chunk_steps * model.action_dims),
        future_proprio=vectors(model.proprio_dims),
        value=vectors(1)[:, 0],
        futures=tuple(n + model.chunk_steps for n in numbers),
        replaced=(),
    )


class _TimedTargets(TargetMaker):
    """Tells the clock when images are encoded; what comes before it is the transformer's part."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, clock: _Clock) -> None:
        super().__init__(checkpoint, device)
        self._clock = clock

    def __call__(self, batch: Batch) -> Tensor:
        self._clock.end(GRADIENTS)
        clean = super().__call__(batch)
        self._clock.end(ENCODING)
        return clean


class _Clock:
    """Seconds between moments of a step.

    A GPU works behind its back: moments are put into its queue, so that nothing waits for them and
    the step is as fast as without. A CPU has done what was asked of it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._gpu = device, device.type == "cuda"
        self._moments: list[tuple[str, Any]] = []

    def start(self) -> None:
        """Wait until nothing is left to do, and begin."""
        self._wait()
        self._moments = [("", self._now())]

    def end(self, part: str) -> None:
        """Count what came since the last moment to a part."""
        self._moments.append((part, self._now()))

    def seconds(self) -> dict[str, float]:
        """Wait for the end and return the seconds of each part."""
        self._wait()
        sums: dict[str, float] = defaultdict(float)
        for (_, before), (part, after) in zip(self._moments, self._moments[1:], strict=False):
            sums[part] += before.elapsed_time(after) / 1e3 if self._gpu else after - before
        return dict(sums)

    def _now(self) -> Any:
        if not self._gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _wait(self) -> None:
        if self._gpu:
            torch.cuda.synchronize(self._device)


# ---------------------------------------------------------------- as a program


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says; the first process prints one line of JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint's; random where it has no weights")
    parser.add_argument("--batch", type=int, default=1, help="samples per step, of all processes")
    parser.add_argument("--micro-batch", type=int, default=0, help="at once per process (all)")
    parser.add_argument("--steps", type=int, default=5, help="that are measured")
    parser.add_argument("--lora", action="store_true", help="train adapters, not the weights")
    parser.add_argument("--device", default="auto", help="in torch's words")
    parser.add_argument("--precision", choices=get_args(Precision), default="bfloat16")
    parser.add_argument("--processes", type=int, default=1, help="on this machine, one per GPU")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    if options.processes > 1 and "RANK" not in os.environ:
        return launch_processes(options.processes, PROGRAM, given)
    first = os.environ.get("RANK", "0") == "0"
    try:
        speed = measure_step(
            load_checkpoint(options.folder, unfinished=True),
            options.device,
            batch=options.batch,
            lora=options.lora,
            steps=options.steps,
            micro_batch=options.micro_batch,
            precision=options.precision,
        )
    except CosmosPolicyError as error:
        # One of torchrun's processes speaks for all, but each of its own memory.
        if first or isinstance(error.__cause__, torch.OutOfMemoryError):
            print(f"error: {error}", file=sys.stderr)
        return 1
    if first:
        print(speed.to_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
