"""A training run, top to bottom.

Every process does the same with its own shard of each batch; the first also reports and writes.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from cosmos_policy_ros.core.errors import TrainingError
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import Checkpoint
from cosmos_policy_ros.model.statistics import constant_dimensions, describe_unused, load_statistics
from cosmos_policy_ros.training.config import TrainingConfig
from cosmos_policy_ros.training.export import gather, write_card, write_weights
from cosmos_policy_ros.training.loss import JointLoss, LossMeter
from cosmos_policy_ros.training.mixture import Mixture
from cosmos_policy_ros.training.optimisers import Average, Optimisers, learning_rate
from cosmos_policy_ros.training.parallel import (
    DistContext,
    check_sharing,
    exchange_gradients,
    share_network,
)
from cosmos_policy_ros.training.reports import Reports, Validation, card, judge
from cosmos_policy_ros.training.samples import Batch, SampleMaker, Shard, collate, load
from cosmos_policy_ros.training.saving import SavedSteps, TrainingState
from cosmos_policy_ros.training.start import (
    CHECKED,
    UNLIKE,
    check_start,
    copy_file,
    copy_fixed_files,
    dataset_index_for,
    load_start,
    measure_demonstrations,
    note_camera_size,
    prepare_network,
)
from cosmos_policy_ros.training.targets import TargetMaker

LOG = "training"  # folder of everything that a checkpoint does not consist of
RESUME = "resume"
DATA_DIGEST = "data_digest"


class Trainer:
    """One run, from the start's checkpoint, or where it was left, to ``run.steps``."""

    def __init__(self, config: TrainingConfig, output: Path, world: DistContext) -> None:
        """Load, look at the data, check the start, share the network.

        Args:
            config: decides everything.
            output: the checkpoint folder to make; exists. A run in there is gone on with.
            world: the processes.

        Raises:
            CosmosPolicyError: something is wrong with data, checkpoint or config; says what.
        """
        check_sharing(config, world.size)
        self.config, self.output, self.world = config, output, world
        torch.set_num_threads(config.run.threads)
        checkpoint = load_start(config.start, world.device, config.run.seed)
        self.dataset_index = world.broadcast_from_rank0(
            lambda: dataset_index_for(config.data, checkpoint.config, checkpoint.text)
        )
        self.checkpoint = self._with_statistics(checkpoint)
        self.mixture = Mixture(self.dataset_index, config.mixture, config.run.seed)
        self.maker = SampleMaker(
            self.dataset_index,
            self.mixture,
            config.run.batch,
            self.checkpoint.config,
            self.checkpoint.statistics,
            config.data,
            config.objective,
        )
        targets = TargetMaker(self.checkpoint, world.device, config.data.latent_cache_gb)
        self.lesson = JointLoss(self.checkpoint, config.objective, targets, world.device)
        self.saved = SavedSteps(output / LOG / RESUME, world, config.run.keep)
        self.first_step = world.broadcast_from_rank0(self.saved.newest)
        self.start_loss = self._check_start()
        self.network = prepare_network(self.checkpoint, config)
        share_network(self.network, world, config.run)
        self.optimisers = Optimisers(self.network, config.optimiser, world.device)
        self.trained = list(self.optimisers.parameters.values())
        self.average = self._make_average()
        self.state = TrainingState(self.optimisers, self.average)
        if self.first_step:
            self.saved.restore(self.first_step, self.state)
        self._stopping = False

    # ---------------------------------------------------------------- before the first step

    def _with_statistics(self, checkpoint: Checkpoint) -> Checkpoint:
        """Fill the output folder with what the training does not change; use its statistics."""
        file = self.output / files.STATISTICS

        def fill() -> None:
            if file.is_file():
                return  # of the run that this one goes on with
            copy_fixed_files(checkpoint, self.output)
            note_camera_size(self.dataset_index, self.output)
            if self.config.start.statistics == "demonstrations":
                measure_demonstrations(self.dataset_index, self.output)
            else:
                copy_file(checkpoint.path / files.STATISTICS, file)

        self.world.broadcast_from_rank0(fill)
        config = checkpoint.config
        statistics = load_statistics(file, config.action_dims, config.proprio_dims)
        return replace(checkpoint, statistics=statistics)

    def _check_start(self) -> tuple[float, float] | None:
        if self.first_step or self.config.start.scratch:
            return None
        count = -(-CHECKED // self.config.run.micro_batch)
        chosen = self._share(0).places(0)[:count]
        batches = [collate([self.maker[place] for place in places]) for places in chosen]
        refuse = self.config.start.check
        return check_start(self.checkpoint, self.lesson, batches, self.world, refuse=refuse)

    def _make_average(self) -> Average | None:
        decay = self.config.optimiser.average
        return Average(self.optimisers.parameters, decay) if decay else None

    def _share(self, first_step: int) -> Shard:
        run, world = self.config.run, self.world
        return Shard(run.batch, run.micro_batch, world.rank, world.size, first_step, run.steps)

    # ---------------------------------------------------------------- the run

    def run(self) -> Validation | None:
        """Train to the end, or until Ctrl-C; return how the last checkpoint was judged.

        Raises:
            TrainingError: the loss is not finite, the disk refused, or the data went bad.
        """
        with ExitStack() as stack:
            self._listen(stack)
            reports = None
            if self.world.first:
                log = self.output / LOG
                reports = Reports(log, self.first_step, self.config.run.steps)
                stack.callback(reports.close)
                self._introduce(reports)
            batches = load(self.maker, self._share(self.first_step))
            validation = None
            for step in range(self.first_step, self.config.run.steps):
                stop = self._step(step, batches, reports)
                last = stop or step + 1 == self.config.run.steps
                if last or (step + 1) % self.config.run.save_every == 0:
                    validation = self._save(step + 1, reports)
                if stop:
                    break
            self.saved.finish()
        return validation

    def _step(self, step: int, batches: Iterator[Batch], reports: Reports | None) -> bool:
        """Do one step of the optimiser; return whether somebody pressed Ctrl-C."""
        began, run = time.monotonic(), self.config.run
        tally = LossMeter(self.checkpoint.layout.frames, self.world.device)
        micro_batches = len(self._share(step).places(step))
        replaced: list[str] = []
        for index in range(micro_batches):
            batch = next(batches)
            replaced += batch.replaced
            exchange_gradients(self.network, index + 1 == micro_batches)
            share = len(batch.picks) / run.batch
            loss = self.lesson.loss(self.network, batch, tally, share)
            # Shared gradients are averaged over the processes, the step's are to be summed.
            torch.autograd.backward(loss * self.world.size)
        rate = learning_rate(step, self.config.optimiser)
        norm = self._update(rate)
        if self.average is not None:
            self.average.update(step + 1)
        stopping = torch.tensor([float(self._stopping)], device=self.world.device)
        for numbers in (tally.errors, tally.loss, stopping):
            self.world.total(numbers)
        loss_value = float(tally.loss)
        if not math.isfinite(loss_value):
            raise TrainingError(
                f"step {step + 1}: the loss is {loss_value}; lower optimiser.learning_rate and go "
                f"on with --resume from step {self.saved.newest()}"
            )
        if reports is not None:
            for reason in replaced:
                reports.say(f"another window was taken: {reason}")
            self._metadata: dict[str, Any] = {
                "step": step + 1,
                "loss": loss_value,
                "learning_rate": rate,
                "gradient_norm": norm,
                "samples_per_second": run.batch / (time.monotonic() - began),
                "replaced": len(replaced),
                "l1": tally.l1(),
            }
            reports.step(self._metadata)
        return bool(stopping)

    def _update(self, rate: float) -> float:
        """Step the optimiser; return the gradients' norm before clipping."""
        for parameter in self.trained:
            if parameter.grad is not None:
                # As released: a number that is not one moves nothing.
                torch.nan_to_num_(_local(parameter.grad), nan=0.0, posinf=0.0, neginf=0.0)
        clip = self.config.optimiser.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.trained, clip)
        self.optimisers.step(rate)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _save(self, step: int, reports: Reports | None) -> Validation | None:
        """Write what can be resumed and what can be deployed; judge the latter."""
        self.saved.save(step, self.state)
        with nullcontext() if self.average is None else self.average.applied():
            tensors = gather(self.network, self.config.lora)  # on a CPU the network's own memory
            if reports is not None:
                write_weights(tensors, self.checkpoint, self.output)
        validation = None
        if reports is not None:
            run = self.config.run
            validation = judge(
                self.output,
                self.dataset_index.held_out,
                run.validation_windows,
                self.world.device,
                run.threads,
            )
            reports.judged(step, validation)
            metadata = self._summary(step, validation)
            lines = card(
                self.output.name, metadata, self.dataset_index.lines(), self._metadata["l1"]
            )
            write_card(self.output, metadata, lines)
        self.world.wait()
        return validation

    # ---------------------------------------------------------------- for people

    def _introduce(self, reports: Reports) -> None:
        for line in self.dataset_index.lines():
            reports.say(line)
        shares = ", ".join(f"{role} {share:.0%}" for role, share in self.mixture.shares.items())
        reports.say(f"a batch of {self.config.run.batch}: {shares}")
        if self.start_loss is not None:
            started, random = self.start_loss
            reports.say(f"first loss {started:.3f}; a random network's would be {random:.3f}")
            if not started < UNLIKE * random:
                reports.say(
                    "the weights are trained, but on other data: statistics, cameras or prompts "
                    "are not those that they know. Look whether all three are meant to be so"
                )
        elif self.first_step:
            reports.say(f"resumed after step {self.first_step}")
            if self._data_changed():
                reports.say("the data has changed since: the curve is not what it would have been")
        else:
            reports.say("from scratch: random weights, as start.scratch says")
        if unused := describe_unused(self.checkpoint.statistics):
            reports.say(unused)
        if constant := constant_dimensions(self.checkpoint.statistics):
            reports.say(f"never moved in the statistics, always 0: {', '.join(constant)}")

    def _data_changed(self) -> bool:
        try:
            told = json.loads((self.output / files.PROVENANCE).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return False  # killed before the first checkpoint was whole
        return bool(told.get(DATA_DIGEST) != self.dataset_index.digest())

    def _summary(self, step: int, validation: Validation) -> dict[str, Any]:
        start, held_out = "from scratch, random weights", {}
        if self.start_loss is not None:
            start = "{:.3f}; a random network's {:.3f}".format(*self.start_loss)
        elif self.first_step and not self.config.start.scratch:
            start = "compared before it was resumed"
        if validation.windows:
            held_out = {"action_l1": validation.action_l1, "pose_l1": validation.pose_l1}
        return {
            "steps": step,
            "planned_steps": self.config.run.steps,
            "samples": step * self.config.run.batch,
            "start": str(self.checkpoint.path),
            "start_digest": self.checkpoint.digest,
            "first_loss": start,
            "digest": files.digest(self.output),
            DATA_DIGEST: self.dataset_index.digest(),
            "mixture": {role: round(share, 4) for role, share in self.mixture.shares.items()},
            "numerics": self.config.objective.numerics,
            "value": self.config.objective.value,
            "last_loss": self._metadata["loss"],
            "held_out": held_out,
        }

    def _listen(self, stack: ExitStack) -> None:
        """Let Ctrl-C and a batch system's SIGTERM end the run after a whole step, saved."""

        def stop(*_: Any) -> None:
            self._stopping = True

        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, stop)
            stack.callback(signal.signal, number, before)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
