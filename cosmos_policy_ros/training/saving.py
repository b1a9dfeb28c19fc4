"""Where a training run can be taken up again: weights and optimiser, nothing but tensors.

Everything random is a function of the seed and the step, so there is nothing else to remember.
Written by all processes beside the training; a folder has its real name only when it is whole.
"""

from __future__ import annotations

import re
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from cosmos_policy_ros.core.errors import CheckpointError, TrainingError
from cosmos_policy_ros.model.weights import distributed_reader
from cosmos_policy_ros.training.optimisers import Average, Optimisers
from cosmos_policy_ros.training.parallel import DistContext

PARTIAL = ".partial"
_NAME = re.compile(r"step_(\d{9})")


class TrainingState(NamedTuple):
    """All that a training is, at one step."""

    optimisers: Optimisers
    average: Average | None

    def tensors(self) -> dict[str, Tensor]:
        """Return what a point consists of; the learning rate and its like stand in the config."""
        tensors = {f"network.{n}": p.detach() for n, p in self.optimisers.parameters.items()}
        if self.average is not None:
            tensors |= {f"average.{n}": t for n, t in self.average.tensors.items()}
        return tensors | self.optimisers.moments()


class SavedSteps:
    """The folder of resume points."""

    def __init__(self, folder: Path, world: DistContext, keep: int) -> None:
        """Use ``folder``; all but the newest ``keep`` points are deleted."""
        self._folder, self._world, self._keep = folder, world, keep
        self._writing: tuple[Path, Future[Any]] | None = None

    def newest(self) -> int:
        """Return the newest step that is whole; 0 for none."""
        return max(self._steps(), default=0)

    def save(self, step: int, state: TrainingState) -> None:
        """Begin to write a point; training may go on at once.

        Raises:
            TrainingError: the last one could not be written.
        """
        self.finish()
        partial = self._path(step).with_name(self._path(step).name + PARTIAL)
        if self._world.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._world.wait()
        response = async_save(
            state.tensors(),
            storage_writer=FileSystemWriter(partial),
            process_group=self._world.savers,
        )
        self._writing = (partial, response)  # type: ignore[assignment]

    def finish(self) -> None:
        """Wait until the point being written is whole."""
        if self._writing is None:
            return
        partial, response = self._writing
        self._writing = None
        try:
            response.result()
        except (OSError, RuntimeError, CheckpointException) as error:
            raise TrainingError(
                f"{partial}: cannot be written: {error}; free disk space and go on with --resume"
            ) from error
        self._world.wait()
        if self._world.first:
            partial.rename(partial.with_name(partial.name.removesuffix(PARTIAL)))
            for step in sorted(self._steps())[: -self._keep]:
                shutil.rmtree(self._path(step), ignore_errors=True)
        self._world.wait()

    def restore(self, step: int, state: TrainingState) -> None:
        """Bring everything back to a point.

        Raises:
            TrainingError: it does not fit, or is damaged.
        """
        path = self._path(step)
        state.optimisers.begin_after(step)
        try:
            load(
                state.tensors(),
                storage_reader=distributed_reader(path),
                process_group=self._world.savers,
            )
        except (OSError, RuntimeError, ValueError, CheckpointError, CheckpointException) as error:
            raise TrainingError(
                f"{path}: cannot be resumed from: {error}; remove it to go on from the one before"
            ) from error

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step:09d}"

    def _steps(self) -> list[int]:
        names = self._folder.glob("step_*") if self._folder.is_dir() else ()
        return [int(match[1]) for path in names if (match := _NAME.fullmatch(path.name))]
