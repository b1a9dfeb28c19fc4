"""Images of a data set as the network takes them, made once and kept on disk.

Each sample takes six camera images, which are decoded and resized twice: 50 ms of a core, in every
epoch and every run anew. Prepared, it is two records of a file. A step that is not prepared, or
whose record is damaged, is read from its bag, so that samples are the same in any case.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import multiprocessing
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.disk_cache import DiskCache, cache_folder
from cosmos_policy_ros.core.errors import ObservationError, RolloutError, TrainingError
from cosmos_policy_ros.core.units import GIGABYTE
from cosmos_policy_ros.model import files, images, sequence
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.images import ImageArray
from cosmos_policy_ros.model.layout import LAYOUTS
from cosmos_policy_ros.model.sequence import check_state, reduce_images
from cosmos_policy_ros.model.text import load_text
from cosmos_policy_ros.training.config import DataConfig, TrainingConfig
from cosmos_policy_ros.training.dataset_index import EpisodeEntry, index_episodes
from cosmos_policy_ros.training.start import start_folder


class Moment(NamedTuple):
    """What was seen at one step.

    Attributes:
        images: (C, S, S, 3) uint8, one per camera in the layout's order; not yet cropped.
        state: (proprio,) policy units; 14 of an ALOHA.
    """

    images: ImageArray
    state: NDArray[np.float64]


def moment_of(entry: EpisodeEntry, step: int, config: CheckpointConfig) -> Moment:
    """Read a step from its bag.

    Raises:
        ObservationError: there was no usable observation.
        RolloutError: the bag is damaged there.
    """
    observation = entry.observe(step)
    check_state(observation.state, config.proprio_dims)
    reduced = reduce_images(observation, config)
    cameras = LAYOUTS[config.layout].cameras
    return Moment(torch.stack([reduced[role] for role in cameras]).numpy(), observation.state)


class PreparedImages:
    """The prepared steps of all data sets, a file per episode and way of preparing.

    May be pickled to loading processes.
    """

    def __init__(self, config: CheckpointConfig, gigabytes: float, folder: Path | None = None):
        """Look at nothing yet.

        Args:
            config: of the checkpoint: cameras, sizes, and what is done to images.
            gigabytes: all files together have at most.
            folder: by default in the user's cache.
        """
        self._config = config
        self._record = np.dtype(
            [
                ("images", np.uint8, _image_shape(config)),
                ("state", np.float64, (config.proprio_dims,)),
                ("usable", np.bool_),
                ("checksum", np.uint32),
            ]
        )
        limit = int(gigabytes * GIGABYTE)
        self._cache = DiskCache(folder or cache_folder("prepared_images"), limit)

    @property
    def folder(self) -> Path:
        """The folder of all prepared images."""
        return self._cache.folder

    def moment(self, entry: EpisodeEntry, step: int) -> Moment | None:
        """Return a prepared step; None where it is not prepared, or its record is damaged."""
        path = self._cache.path(self._key(entry))
        try:
            offset = step * self._record.itemsize
            found = np.fromfile(path, self._record, count=1, offset=offset)
        except OSError:
            return None
        if not len(found) or not found[0]["usable"] or _checksum(found[0]) != found[0]["checksum"]:
            return None
        return Moment(found[0]["images"], found[0]["state"])

    def size(self, entry: EpisodeEntry) -> int:
        """Return the bytes of an episode's file."""
        return len(entry.windows) * self._record.itemsize

    def prepare(self, entries: Sequence[EpisodeEntry], processes: int) -> int:
        """Prepare episodes, as many as the bound and the disk allow; return how many there are.

        Files of these episodes stay; others go, the least recently used first, to make room.

        Raises:
            TrainingError: a process that prepares was killed, or the disk refused.
        """
        wanted = {self._key(entry): entry for entry in entries}
        present = {key for key in wanted if self._cache.find(key) is not None}
        missing = {key: entry for key, entry in wanted.items() if key not in present}
        needed = sum(self.size(entry) for entry in missing.values())
        room = self._cache.make_room(needed, present) if missing else 0
        chosen = {}
        for key, entry in missing.items():
            if self.size(entry) <= room:
                chosen[key] = entry
                room -= self.size(entry)
        if chosen:
            self._prepare_in_processes(chosen, processes)
        return len(present) + len(chosen)

    def _prepare_in_processes(self, missing: dict[str, EpisodeEntry], processes: int) -> None:
        # Forking a process with threads is asking for a hang.
        spawn = multiprocessing.get_context("spawn")
        count = min(processes, len(missing))
        with ProcessPoolExecutor(count, spawn, torch.set_num_threads, (1,)) as pool:
            tasks: list[Future[None]] = [
                pool.submit(self.write, key, entry) for key, entry in missing.items()
            ]
            try:
                for task in tqdm(
                    as_completed(tasks), "preparing images", len(tasks), unit=" episodes"
                ):
                    task.result()
            except BrokenProcessPool as error:
                raise TrainingError(
                    "a process that prepares images was killed, by the system if memory ran out: "
                    "start again with less beside it; what is prepared stays"
                ) from error
            except OSError as error:
                raise TrainingError(
                    f"{self._cache.folder}: prepared images cannot be written: {error}; set "
                    f"data.prepared_gb: 0 to read the bags themselves"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    def write(self, key: str, entry: EpisodeEntry) -> None:
        """Write an episode's file, step by step in their order. Raises OSError."""
        with self._cache.making(key) as draft, draft.open("wb") as file:
            for step in range(len(entry.windows)):
                record = np.zeros(1, self._record)
                try:
                    moment = moment_of(entry, step, self._config)
                except (ObservationError, RolloutError):
                    pass  # said when a sample needs it, by the same words as without this file
                else:
                    record[0]["images"], record[0]["state"] = moment
                    record[0]["usable"] = True
                    record[0]["checksum"] = _checksum(record[0])
                record.tofile(file)

    def _key(self, entry: EpisodeEntry) -> str:
        config = self._config
        about: list[Any] = [
            *(entry.digest, config.dt, LAYOUTS[config.layout].cameras, config.image_size),
            *(config.flip_images, config.jpeg_quality, config.proprio_dims, _digest_of_code()),
        ]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _image_shape(config: CheckpointConfig) -> tuple[int, int, int, int]:
    size = config.image_size
    return len(LAYOUTS[config.layout].cameras), size, size, 3


def _checksum(record: Any) -> int:
    return zlib.crc32(record["state"].tobytes(), zlib.crc32(record["images"]))


@lru_cache(maxsize=1)
def _digest_of_code() -> str:
    """Return the digest of what makes images small, beside the code that reads episodes."""
    sha = hashlib.sha256(PIL.__version__.encode())
    for module in (images, sequence):
        sha.update(inspect.getsource(module).encode())
    return sha.hexdigest()


def prepared_images(data: DataConfig, config: CheckpointConfig) -> PreparedImages | None:
    """Return where a run's prepared images are; None if its config asks for none."""
    return PreparedImages(config, data.prepared_gb) if data.prepared_gb else None


def describe_prepared(
    data: DataConfig, config: CheckpointConfig, entries: Sequence[EpisodeEntry]
) -> list[str]:
    """Return what a run will keep on disk, as lines for people; none if it asks for none."""
    prepared = prepared_images(data, config)
    if prepared is None:
        return []
    size = sum(prepared.size(entry) for entry in entries) / GIGABYTE
    return [f"prepared images: {size:.1f} GB on disk, of at most {data.prepared_gb:g}"]


def prepare_run(config: TrainingConfig) -> str:
    """Prepare the images of a run before it begins; return a line that says how many there are.

    Raises:
        CosmosPolicyError: something is wrong with data, checkpoint or config, or the disk refused.
    """
    folder = start_folder(config.start.checkpoint)
    model = load_config(CheckpointConfig, folder / files.CONFIG)
    prepared = prepared_images(config.data, model)
    if prepared is None:
        return "no images are prepared: data.prepared_gb is 0"
    text = load_text(folder / files.TEXT, model.text_tokens, model.transformer.text_width)
    entries = index_episodes(config.data, model, text).entries
    count = prepared.prepare(entries, len(os.sched_getaffinity(0)))
    rest = "" if count == len(entries) else "; the others do not fit into data.prepared_gb or there"
    return f"images of {count} of {len(entries)} episodes are prepared in {prepared.folder}{rest}"
