"""Trials: every contender on the same scenes with the same noise, wherever they are made.

A line is written per trial as it ends; an evaluation that was killed goes on where it was.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from tqdm import tqdm

from cosmos_policy_ros.core.errors import ConfigError, CosmosPolicyError, WorkerError
from cosmos_policy_ros.core.files import replace_text
from cosmos_policy_ros.core.processes import end_with_parent
from cosmos_policy_ros.evaluation.contenders import Contender
from cosmos_policy_ros.evaluation.plan import Job, remaining
from cosmos_policy_ros.evaluation.results import Result, read_results, to_line
from cosmos_policy_ros.inference.ray_host import connect
from cosmos_policy_ros.inference.worker import as_answer

TRIALS = "trials.jsonl"
SAME_FOLDER = ".same_folder"  # tells a machine of a cluster whether it sees the output folder
KILLED = (
    "a process of the evaluation was killed (was there enough memory?): the trials that had ended "
    "are kept, and the same command goes on"
)


class Room(Protocol):
    """What one process keeps from trial to trial: where trials are made, and contenders loaded."""

    def make(self, job: Job) -> Result:
        """Make one trial. Raises CosmosPolicyError when none can be made at all."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Evaluation(Protocol):
    """The config of an evaluation: who tries what, and in which room."""

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """All are compared with the first."""
        ...

    @property
    def processes(self) -> int:
        """Trials at once; 0 makes them one by one in this process."""
        ...

    @property
    def threads(self) -> int:
        """Torch's, per process."""
        ...

    @property
    def ray(self) -> str | None:
        """Address of a Ray cluster that makes the trials; None: this machine."""
        ...

    @property
    def gpus(self) -> float:
        """Of each process on a cluster."""
        ...

    @property
    def writes_bags(self) -> bool:
        """Whether a room writes into the output folder."""
        ...

    def jobs(self) -> list[Job]:
        """Return all trials in their order. Raises ConfigError."""
        ...

    def room(self, output: Path, lock: AbstractContextManager[object], folder: str) -> Room:
        """Return a room of this process.

        Args:
            output: folder of the evaluation.
            lock: is held while an episode gets its number.
            folder: of the episodes, below their contender's.

        Raises:
            CosmosPolicyError: there can be none here.
        """
        ...


def evaluate(config: Evaluation, output: Path) -> list[Result]:
    """Make all trials that ``output`` does not hold yet; return the results of all.

    Those that a fault has ended are made once more.

    Raises:
        CosmosPolicyError: a contender or the config is wrong, the room cannot be used, the disk
            refused, or a process of the evaluation was killed.
    """
    jobs = config.jobs()
    path = output / TRIALS
    wanted = {job.key for job in jobs}
    done = [result for result in read_results(path) if result.key in wanted]
    # A line that a kill has cut short would spoil the next one.
    replace_text(path, "".join(map(to_line, done)))
    left = remaining(jobs, done)
    bar = tqdm(
        _results(config, output, left),
        "trials",
        total=len(jobs),
        initial=len(jobs) - len(left),
        disable=None,
        smoothing=0.0,
    )
    with path.open("a", encoding="utf-8") as lines:
        for result in bar:
            done.append(result)
            lines.write(to_line(result))
            lines.flush()
    return done


def _results(config: Evaluation, output: Path, jobs: Sequence[Job]) -> Iterator[Result]:
    """Make trials, here, in processes or on a cluster; yield their results as they end."""
    if not jobs:
        return
    if config.ray is not None:
        yield from _on_cluster(config, config.ray, output, jobs)
        return
    if not config.processes:
        room = config.room(output, nullcontext(), "")
        try:
            yield from map(room.make, jobs)
        finally:
            room.close()
        return
    context = get_context("spawn")
    setting_up = (config, output, context.Lock())
    with ProcessPoolExecutor(config.processes, context, _prepare, setting_up) as pool:
        futures = [pool.submit(_make, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise WorkerError(KILLED) from error
        finally:
            pool.shutdown(cancel_futures=True)  # after an interrupt nothing more begins


def _on_cluster(
    config: Evaluation, address: str, output: Path, jobs: Sequence[Job]
) -> Iterator[Result]:
    """Make trials in actors of a Ray cluster, which places them where there is room."""
    ray = connect(address)
    token = uuid4().hex
    replace_text(output / SAME_FOLDER, token)
    kind = ray.remote(num_cpus=config.threads, num_gpus=config.gpus, max_restarts=0)(_Actor)
    actors = [
        kind.remote(config, output.absolute(), token)
        for _ in range(min(max(config.processes, 1), len(jobs)))
    ]
    try:
        made = ray.util.ActorPool(actors).map_unordered(
            lambda actor, job: actor.make.remote(job), jobs
        )
        for result in made:
            if isinstance(result, CosmosPolicyError):
                raise result
            yield result
    except ray.exceptions.RayError as error:
        raise WorkerError(KILLED) from error
    finally:
        for actor in actors:
            ray.kill(actor)
        (output / SAME_FOLDER).unlink(missing_ok=True)


class _Actor:
    """A :class:`Room` on some machine. Errors are returned: raised they would lose their class.

    Its episodes go into a folder of its own, since their numbers are given out per folder.
    """

    def __init__(self, config: Evaluation, output: Path, token: str) -> None:
        self._made: tuple[Evaluation, Path, str] = (config, output, token)
        self._room: Room | None = None

    def make(self, job: Job) -> Result | CosmosPolicyError:
        """Make one trial."""
        config, output, token = self._made
        try:
            if self._room is None:
                mine = f"{platform.node()}_{os.getpid()}"
                if config.writes_bags:
                    _check_shared(output, token)
                self._room = config.room(output, nullcontext(), mine)
            return self._room.make(job)
        except Exception as error:
            return as_answer(error)


def _check_shared(output: Path, token: str) -> None:
    """Make sure that this machine sees the folder. Raises ConfigError."""
    try:
        shared = (output / SAME_FOLDER).read_text(encoding="utf-8") == token
    except OSError:
        shared = False
    if not shared:
        raise ConfigError(
            f"{output}: is not the same folder on {platform.node()}, and the bags would stay "
            "there: give an --output that all machines share, or keep: none"
        )


_room: Room | None = None  # of a process of the pool


def _prepare(config: Evaluation, output: Path, lock: AbstractContextManager[object]) -> None:
    global _room
    # Else it would wait for ever for the next trial, with its simulator and its network.
    end_with_parent()
    _room = config.room(output, lock, "")


def _make(job: Job) -> Result:
    assert _room is not None
    return _room.make(job)
