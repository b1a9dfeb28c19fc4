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
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from cosmos_policy_ros.core.errors import TrainingError
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.statistics import constant_dimensions, describe_unused, load_statistics
from cosmos_policy_ros.training.batch import Batch, collate
from cosmos_policy_ros.training.config import TrainingConfig
from cosmos_policy_ros.training.dataset_index import Mixture, index_episodes
from cosmos_policy_ros.training.loss import JointLoss, LossMeter
from cosmos_policy_ros.training.optimisers import Average, Optimisers, learning_rate
from cosmos_policy_ros.training.parallel import DistContext, check_sharing, shard_network
from cosmos_policy_ros.training.prepared_images import prepared_images
from cosmos_policy_ros.training.reports import Reports, Validation, card, validate
from cosmos_policy_ros.training.samples import SampleMaker, Shard, load
from cosmos_policy_ros.training.saving import SavedSteps, begin_folder, write_card, write_weights
from cosmos_policy_ros.training.start import add_adapters, check_start, load_start, merge_adapters
from cosmos_policy_ros.training.step import add_gradients, move_weights
from cosmos_policy_ros.training.targets import TargetMaker

LOG = "training"  # folder of everything that a checkpoint does not consist of
DATA_DIGEST = "data_digest"
CHECKED = 8  # samples per process, at least, unless a step has fewer
OTHER_DATA = 0.8  # fraction of a random network's loss; above, the data is unlike the start's


class Trainer:
    """One run, from the start's checkpoint or a resume point to ``run.steps``."""

    def __init__(self, config: TrainingConfig, output: Path, world: DistContext) -> None:
        """Load, index the data, check the start, shard the network.

        Args:
            config: decides everything.
            output: the checkpoint folder to make; exists. A run in there is continued.
            world: the processes.

        Raises:
            CosmosPolicyError: something is wrong with data, checkpoint or config.
        """
        check_sharing(config.run, world.size)
        self.config, self.output, self.world = config, output, world
        run = config.run
        torch.set_num_threads(run.threads)

        # Data.
        checkpoint = load_start(config.start, world.device, run.seed)
        model = checkpoint.config
        self.dataset_index = world.broadcast_from_rank0(
            lambda: index_episodes(config.data, model, checkpoint.text)
        )
        self.mixture = Mixture(self.dataset_index, config.mixture, run.seed)

        # The folder, and the statistics in there: the last file of those that do not change.
        def begin() -> None:
            if not (output / files.STATISTICS).is_file():
                begin_folder(output, checkpoint, self.dataset_index, config.start.statistics)

        world.broadcast_from_rank0(begin)
        statistics = load_statistics(
            output / files.STATISTICS, model.action_dims, model.proprio_dims
        )
        self.checkpoint = replace(checkpoint, statistics=statistics)

        # From a batch to its loss.
        self.maker = SampleMaker(
            self.dataset_index,
            self.mixture,
            run.batch,
            model,
            statistics,
            config.data,
            config.objective,
            prepared_images(config.data, model),
        )
        targets = TargetMaker(self.checkpoint, world.device, config.data.latent_cache_gb)
        self.joint_loss = JointLoss(self.checkpoint, config.objective, targets, world.device)

        # The start.
        self.saved = SavedSteps(output / LOG / "resume", world, run.keep)
        self.first_step = world.broadcast_from_rank0(self.saved.newest)
        self.start_loss: tuple[float, float] | None = None
        if not self.first_step and not config.start.scratch:
            slots = self._shard(0).slots(0)[: -(-CHECKED // run.micro_batch)]
            batches = [collate([self.maker[slot] for slot in each]) for each in slots]
            self.start_loss = check_start(
                self.checkpoint, self.joint_loss, batches, world, refuse=config.start.check
            )

        # The network, sharded, and what moves it.
        self.network = self.checkpoint.transformer
        if config.lora is not None:
            add_adapters(self.network, config.lora, run.seed)
        shard_network(self.network, world, run)
        self.optimisers = Optimisers(self.network, config.optimiser, world.device)
        self.average: Average | None = None
        if config.optimiser.average:
            self.average = Average(self.optimisers.parameters, config.optimiser.average)
        if self.first_step:
            self.optimisers.begin_after(self.first_step)
            self.saved.restore(self.first_step, self._state())
        self._last: dict[str, Any] = {}  # metadata of the last step
        self._stopping = False

    def _shard(self, first_step: int) -> Shard:
        run, world = self.config.run, self.world
        return Shard(run.batch, run.micro_batch, world.rank, world.size, first_step, run.steps)

    def _state(self) -> dict[str, Tensor]:
        """Return what a resume point consists of; learning rates and the like are configured."""
        tensors = {f"network.{n}": p.detach() for n, p in self.optimisers.parameters.items()}
        if self.average is not None:
            tensors |= {f"average.{n}": t for n, t in self.average.tensors.items()}
        return tensors | self.optimisers.moments()

    # ---------------------------------------------------------------- the run

    def run(self) -> Validation | None:
        """Train to the end, or until Ctrl-C; return the validation of the last checkpoint.

        Raises:
            TrainingError: the loss is not finite, the disk refused, or the data went bad.
        """

        def stop(*_: Any) -> None:
            self._stopping = True

        with ExitStack() as stack:
            # Ctrl-C and a batch system's SIGTERM end the run after a whole step, saved.
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.signal(number, stop))
            reports = None
            if self.world.first:
                reports = Reports(self.output / LOG, self.first_step, self.config.run.steps)
                stack.callback(reports.close)
                self._introduce(reports)
            batches = load(self.maker, self._shard(self.first_step))
            validation = None
            for step in range(self.first_step, self.config.run.steps):
                stopping = self._step(step, batches, reports)
                last = stopping or step + 1 == self.config.run.steps
                if last or (step + 1) % self.config.run.save_every == 0:
                    validation = self._save(step + 1, reports)
                if stopping:
                    break
            self.saved.finish()
        return validation

    def _step(self, step: int, batches: Iterator[Batch], reports: Reports | None) -> bool:
        """Do one step of the optimiser; return whether any process was told to stop."""
        began, run, optimiser = time.monotonic(), self.config.run, self.config.optimiser
        meter = LossMeter(self.checkpoint.layout.frames, self.world.device)
        replaced: list[str] = []
        micro_batches = len(self._shard(step).slots(step))
        for index in range(micro_batches):
            batch = next(batches)
            replaced += batch.replaced
            add_gradients(
                self.network,
                self.joint_loss,
                batch,
                meter,
                len(batch.windows) / run.batch,
                self.world,
                last=index + 1 == micro_batches,
            )
        rate = learning_rate(step, optimiser)
        norm = move_weights(self.optimisers, rate, optimiser.clip_norm)
        if self.average is not None:
            self.average.update(step + 1)

        stopping = torch.tensor([float(self._stopping)], device=self.world.device)
        for sums in (meter.errors, meter.loss, stopping):
            self.world.total(sums)
        loss_value = float(meter.loss)
        if not math.isfinite(loss_value):
            raise TrainingError(
                f"step {step + 1}: the loss is {loss_value}; lower optimiser.learning_rate and go "
                f"on with --resume from step {self.saved.newest()}"
            )
        if reports is not None:
            for reason in replaced:
                reports.say(f"another window was taken: {reason}")
            self._last = {
                "step": step + 1,
                "loss": loss_value,
                "learning_rate": rate,
                "gradient_norm": float(norm),
                "samples_per_second": run.batch / (time.monotonic() - began),
                "replaced": len(replaced),
                "l1": meter.l1(),
            }
            reports.step(self._last)
        return bool(stopping)

    def _save(self, step: int, reports: Reports | None) -> Validation | None:
        """Write a resume point and a checkpoint; validate the latter."""
        self.saved.save(step, self._state())
        with nullcontext() if self.average is None else self.average.applied():
            # The whole network in the first process; on a CPU its own memory, so written at once.
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            tensors: dict[str, Any] = get_model_state_dict(self.network, options=options)
            if reports is not None:
                if self.config.lora is not None:
                    tensors = merge_adapters(tensors, self.config.lora)
                write_weights(tensors, self.checkpoint, self.output)
        validation = None
        if reports is not None:
            run = self.config.run
            validation = validate(
                self.output,
                self.dataset_index.held_out,
                run.validation_windows,
                self.world.device,
                run.threads,
            )
            reports.validated(step, validation)
            metadata = self._summary(step, validation)
            lines = card(
                self.output.name,
                metadata,
                self._data_lines(),
                self._last["l1"],
                self.checkpoint.layout.name,
            )
            write_card(self.output, metadata, lines)
        self.world.wait()
        return validation

    # ---------------------------------------------------------------- for people

    def _data_lines(self) -> list[str]:
        """Return what is learned from, what is not, and what is odd about it."""
        return self.dataset_index.lines(self.config.start.statistics)

    def _introduce(self, reports: Reports) -> None:
        for line in self._data_lines():
            reports.say(line)
        reports.say(self.mixture.describe(self.config.run.batch))
        if self.start_loss is not None:
            started, random = self.start_loss
            reports.say(f"first loss {started:.3f}; a random network's would be {random:.3f}")
            if not started < OTHER_DATA * random:
                reports.say(
                    "the weights are trained, but on other data: statistics, cameras or prompts "
                    "are not those that they know. Look whether all three are meant to be so"
                )
        elif self.first_step:
            reports.say(f"resumed after step {self.first_step}")
            try:
                provenance = json.loads((self.output / files.PROVENANCE).read_text("utf-8"))
            except (OSError, json.JSONDecodeError):
                pass  # killed before the first checkpoint was whole
            else:
                if provenance.get(DATA_DIGEST) != self.dataset_index.digest():
                    reports.say(
                        "the data has changed since: the curve is not what it would have been"
                    )
        else:
            reports.say("from scratch: random weights, as start.scratch says")
        if unused := describe_unused(self.checkpoint.statistics):
            reports.say(unused)
        if constant := constant_dimensions(self.checkpoint.statistics):
            reports.say(f"never moved in the statistics, always 0: {', '.join(constant)}")

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
            "mixture": {role: round(part, 4) for role, part in self.mixture.fractions.items()},
            "numerics": self.config.objective.numerics,
            "value": self.config.objective.value,
            "last_loss": self._last["loss"],
            "held_out": held_out,
        }
