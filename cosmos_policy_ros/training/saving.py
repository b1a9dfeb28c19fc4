"""What a run writes: a checkpoint folder like any other, its card, and steps to resume from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from cosmos_policy_ros import __version__
from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import (
    CheckpointError,
    ObservationError,
    RolloutError,
    TrainingError,
)
from cosmos_policy_ros.core.files import replace_text, replacing
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.checkpoint import Checkpoint
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.statistics import write_statistics
from cosmos_policy_ros.model.weights import distributed_reader
from cosmos_policy_ros.training.dataset_index import DatasetIndex
from cosmos_policy_ros.training.parallel import DistContext

CARD = "README.md"
PARTIAL = ".partial"
STEP = re.compile(r"step_(\d{9})")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file whole or not at all. Raises TrainingError when the disk refuses."""
    try:
        with replacing(target) as draft:
            shutil.copyfile(source, draft)
    except OSError as error:
        raise TrainingError(f"{target}: cannot be written: {error}") from error


def write_tensors(tensors: Mapping[str, Tensor], precision: torch.dtype, file: Path) -> None:
    """Write a file whole or not at all, beside a ``config.yaml``.

    Raises:
        TrainingError: the disk refused.
    """
    kept = {k: t.detach().to("cpu", precision).contiguous() for k, t in tensors.items()}
    try:
        with replacing(file) as draft:
            save_file(kept, draft)
            draft.chmod((file.parent / files.CONFIG).stat().st_mode)  # not for the owner alone
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{file}: cannot be written: {error}") from error


def write_rounded(source: Path, target: Path) -> None:
    """Write a checkpoint's weights anew in half precision; they are loaded as before.

    Raises:
        TrainingError: the disk refused.
    """
    for name in files.WEIGHTS:
        write_tensors(load_file(source / name), torch.float16, target / name)


def begin_folder(
    folder: Path,
    checkpoint: Checkpoint,
    dataset_index: DatasetIndex,
    statistics: Literal["checkpoint", "demonstrations"],
) -> None:
    """Write what the training does not change: config, prompts, autoencoder, statistics."""
    for name in (files.CONFIG, files.TEXT, files.VAE):
        if (checkpoint.path / name).is_file():  # the autoencoder may be random
            copy_file(checkpoint.path / name, folder / name)
    note_camera_size(dataset_index, folder)
    if statistics == "checkpoint":
        copy_file(checkpoint.path / files.STATISTICS, folder / files.STATISTICS)
        return
    if dataset_index.ranges is None:
        raise TrainingError(
            "start.statistics: there are no demonstrations to take the ranges from; set it to "
            "checkpoint"
        )
    write_statistics(folder / files.STATISTICS, dataset_index.ranges.content)


def note_camera_size(dataset_index: DatasetIndex, folder: Path) -> None:
    """Write the cameras' size into a checkpoint's config if it names another aspect ratio.

    Images of the same aspect ratio need no entry: all are squeezed to a square. Images that have
    the model's own size were squeezed before they were recorded, as evaluations do, and tell of no
    camera.
    """
    for entry in (*dataset_index.entries, *dataset_index.held_out):
        try:
            images = entry.observe(int(entry.starts[0])).images
            break
        except (ObservationError, RolloutError):
            continue
    else:
        return
    rows, columns, _ = next(iter(images.values())).shape
    file = folder / files.CONFIG
    config = load_config(CheckpointConfig, file)
    noted_rows, noted_columns = config.trained_on
    squeezed = (rows, columns) == (config.image_size, config.image_size)
    if squeezed or rows * noted_columns == columns * noted_rows:
        return
    text = re.sub(r"^camera_size:.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    line = f"camera_size: [{rows}, {columns}]  # px, rows and columns of what it was trained on"
    try:
        replace_text(file, f"{text.rstrip()}\n{line}\n")
    except OSError as error:
        raise TrainingError(f"{file}: cannot be written: {error}") from error


def write_weights(tensors: Mapping[str, Tensor], checkpoint: Checkpoint, folder: Path) -> None:
    """Write the network and, once, the autoencoder in the checkpoint's format.

    A program that loads the folder meanwhile finds the old network or the new one.
    """
    precision = torch.bfloat16 if checkpoint.config.precision == "bfloat16" else torch.float32
    if not (folder / files.VAE).is_file():
        vae = checkpoint.tokenizer.vae.state_dict()
        write_tensors(vae, precision, folder / files.VAE)
    write_tensors(tensors, precision, folder / files.TRANSFORMER)


def write_card(folder: Path, metadata: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Write the model card for people and ``provenance.json`` for programs."""
    history = {"trainer": f"cosmos_policy_ros {__version__}", **metadata}
    replace_text((folder / files.PROVENANCE), json.dumps(history, indent=2) + "\n")
    replace_text((folder / CARD), "\n".join(lines) + "\n")


class SavedSteps:
    """The folder of resume points: weights and optimiser, nothing but tensors.

    Everything random is a function of the seed and the step. All processes write, beside the
    training; a point has its real name only when it is whole.
    """

    def __init__(self, folder: Path, world: DistContext, keep: int) -> None:
        """Use ``folder``; all but the newest ``keep`` points are deleted."""
        self._folder, self._world, self._keep = folder, world, keep
        self._writing: tuple[Path, Future[Any]] | None = None

    def newest(self) -> int:
        """Return the newest step that is whole; 0 for none."""
        return max(self._steps(), default=0)

    def save(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Begin to write a point; training may go on at once.

        Raises:
            TrainingError: the last one could not be written.
        """
        self.finish()
        partial = self._folder / f"step_{step:09d}{PARTIAL}"
        if self._world.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._world.wait()
        writer, group = FileSystemWriter(partial), self._world.savers
        future = async_save(tensors, storage_writer=writer, process_group=group)
        self._writing = (partial, future)  # type: ignore[assignment]

    def finish(self) -> None:
        """Wait until the point being written is whole."""
        if self._writing is None:
            return
        partial, future = self._writing
        self._writing = None
        try:
            future.result()
        except (OSError, RuntimeError, CheckpointException) as error:
            raise TrainingError(
                f"{partial}: cannot be written: {_reason(error)}; free disk space and go on with "
                f"--resume"
            ) from error
        self._world.wait()
        if self._world.first:
            partial.rename(partial.with_name(partial.name.removesuffix(PARTIAL)))
            for step in sorted(self._steps())[: -self._keep]:
                shutil.rmtree(self._folder / f"step_{step:09d}", ignore_errors=True)
        self._world.wait()

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Fill tensors, in place, with what they were at a point.

        Raises:
            TrainingError: the point does not fit, or is damaged.
        """
        path = self._folder / f"step_{step:09d}"
        try:
            reader, group = distributed_reader(path), self._world.savers
            load(tensors, storage_reader=reader, process_group=group)
        except (OSError, RuntimeError, ValueError, CheckpointError, CheckpointException) as error:
            raise TrainingError(
                f"{path}: cannot be resumed from: {_reason(error)}; remove it to go on from the "
                f"one before"
            ) from error

    def _steps(self) -> list[int]:
        names = self._folder.glob("step_*") if self._folder.is_dir() else ()
        return [int(match[1]) for path in names if (match := STEP.fullmatch(path.name))]


def _reason(error: BaseException) -> str:
    """Return an error in a line; torch's own text for a resume point holds a traceback."""
    if isinstance(error, CheckpointException) and error.failures:
        error, _ = next(iter(error.failures.values()))
    return str(error).splitlines()[0] if str(error) else type(error).__name__
