"""Trials in the simulator: every contender on the same scenes with the same noise.

A line is written per trial as it ends; an evaluation that was killed goes on where it was.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Literal
from uuid import uuid4

from tqdm import tqdm

from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.core.errors import ConfigError, CosmosPolicyError, WorkerError
from cosmos_policy_ros.core.files import replace_text
from cosmos_policy_ros.core.paths import config_folder, package_share
from cosmos_policy_ros.core.task import load_task
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.trial_info import TrialInfo
from cosmos_policy_ros.evaluation.contenders import Contender, load_policy, rig_of
from cosmos_policy_ros.evaluation.plan import InitialState, Job, plan, remaining
from cosmos_policy_ros.evaluation.results import Result, read_results, to_line
from cosmos_policy_ros.evaluation.trial import SimEnv, Timing, TrialBag
from cosmos_policy_ros.inference.ray_host import connect
from cosmos_policy_ros.inference.worker import as_answer
from cosmos_policy_ros.rig.decision import Policy
from cosmos_policy_ros.rig.run import Goal
from cosmos_policy_ros.rig.spec import RigSpec, load_rig
from cosmos_policy_ros.sim.tasks import USUAL, condition

TRIALS = "trials.jsonl"
ROLLOUTS = "rollouts"
SAME_FOLDER = ".same_folder"  # tells a machine of a cluster whether it sees the output folder
KILLED = (
    "a process of the evaluation was killed (was there enough memory?): the trials that had ended "
    "are kept, and the same command goes on"
)


@dataclass(frozen=True)
class EvaluationConfig:
    """A file of ``config/evaluations``.

    Attributes:
        task: a name in ``config/tasks`` that the simulated rig knows.
        contenders: all are compared with the first.
        conditions: of the scenes, see :mod:`~cosmos_policy_ros.sim.tasks`.
        trials: scenes per condition.
        first_seed: of the scenes; demonstrations are made of low ones, which are not held out.
        noise_seed: of the policies. The noise of a scene is the same for all.
        order_seed: shuffles the trials.
        keep: which trials' bags stay in ``rollouts``, scored: those with success are
            demonstrations to train on, the others are marked as discarded then.
        image_size: of the bags [px]; the checkpoints'.
        processes: trials at once; 0 makes them one by one in this process.
        threads: torch's, per process.
        ray: address of a Ray cluster that makes the trials, "auto" or "local"; None: this machine.
        gpus: of each process on a cluster; a part of one where several share it.
    """

    task: str
    contenders: tuple[Contender, ...]
    conditions: tuple[str, ...] = (USUAL,)
    trials: int = 100
    first_seed: int = 100_000
    noise_seed: int = 1
    order_seed: int = 0
    keep: Literal["none", "successes", "all"] = "none"
    image_size: int = 64
    processes: int = 2
    threads: int = 1
    ray: str | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        names = [contender.name for contender in self.contenders]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"contenders: {names} must be at least one, with different names")
        for name in ("trials", "threads", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("first_seed", "noise_seed", "order_seed", "processes", "gpus"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} must not be negative")


def scenes(config: EvaluationConfig) -> list[InitialState]:
    """Return the scenes that all contenders meet. Raises ConfigError: an unknown condition."""
    for name in config.conditions:
        condition(config.task, name)
    return [
        InitialState(config.task, name, config.first_seed + i)
        for name in config.conditions
        for i in range(config.trials)
    ]


def jobs_of(config: EvaluationConfig) -> list[Job]:
    """Return all trials in their order. Raises ConfigError: an unknown condition."""
    names = [contender.name for contender in config.contenders]
    return plan(names, scenes(config), config.noise_seed, config.order_seed)


def evaluate(config: EvaluationConfig, output: Path) -> list[Result]:
    """Make all trials that ``output`` does not hold yet; return the results of all.

    Those that a fault has ended are made once more.

    Raises:
        CosmosPolicyError: a contender, the task or a condition is wrong, the disk refused, or a
            process of the evaluation was killed.
    """
    load_task(config.task, config_folder("tasks"))
    jobs = jobs_of(config)
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


def _results(config: EvaluationConfig, output: Path, jobs: Sequence[Job]) -> Iterator[Result]:
    """Make trials, here, in processes or on a cluster; yield their results as they end."""
    if not jobs:
        return
    if config.ray is not None:
        yield from _on_cluster(config, config.ray, output, jobs)
        return
    if not config.processes:
        worker = Worker(config, output, nullcontext())
        try:
            yield from map(worker.make, jobs)
        finally:
            worker.close()
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
    config: EvaluationConfig, address: str, output: Path, jobs: Sequence[Job]
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
    """A :class:`Worker` on some machine. Errors are returned: raised they would lose their class.

    Its episodes go into a folder of its own, since their numbers are given out per folder.
    """

    def __init__(self, config: EvaluationConfig, output: Path, token: str) -> None:
        self._made: tuple[EvaluationConfig, Path, str] = (config, output, token)
        self._worker: Worker | None = None

    def make(self, job: Job) -> Result | CosmosPolicyError:
        """Make one trial."""
        config, output, token = self._made
        try:
            if self._worker is None:
                mine = f"{platform.node()}_{os.getpid()}"
                if config.keep != "none":
                    _check_shared(output, token)
                self._worker = Worker(config, output, nullcontext(), mine)
            return self._worker.make(job)
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


class Worker:
    """What one process keeps from trial to trial: the rig, and contenders once loaded."""

    def __init__(
        self,
        config: EvaluationConfig,
        output: Path,
        lock: AbstractContextManager[object],
        folder: str = "",
    ) -> None:
        """Load the rig.

        Args:
            config: of the evaluation.
            output: its folder.
            lock: is held while an episode gets its number.
            folder: of the episodes, below their contender's.
        """
        self._config, self._output, self._lock, self._folder = config, output, lock, folder
        self._contenders = {each.name: each for each in config.contenders}
        self._rig = load_rig("sim", config_folder("rigs"))
        self._task = load_task(config.task, config_folder("tasks"))
        # A CUDA build of torch loads Triton, whose LLVM crashes the process once Mesa's software
        # renderer has loaded its own; the other way round they get on.
        with suppress(ImportError):
            import_module("triton")
        self._env = SimEnv(self._rig, config.task, config.image_size)
        self._loaded: dict[str, tuple[Policy, RigSpec]] = {}
        self._types = load_types(package_share() / "msg")

    def close(self) -> None:
        """Free the renderer."""
        self._env.close()

    def make(self, job: Job) -> Result:
        """Make one trial."""
        contender, state = self._contenders[job.contender], job.state
        if contender.name not in self._loaded:
            policy = load_policy(contender, self._config.threads)
            self._loaded[contender.name] = policy, rig_of(contender, self._rig)
        (policy, rig), keep = self._loaded[contender.name], self._config.keep
        run_id = f"{contender.name}/{state.condition}/{state.number}".replace(" ", "_")
        prompt, limit = self._task.prompts[0], self._task.time_limit
        goal = Goal(run_id, self._task.name, prompt, limit, 0, job.noise_seed)
        bag = None if keep == "none" else self._begin_bag(contender, job, policy.info.digest)
        observers = () if bag is None else (bag,)
        trial = self._env.run(
            goal,
            state.number,
            policy,
            observers,
            condition=state.condition,
            timing=Timing(charged=contender.charge_latency),
            rig=rig,
        )
        episode = ""
        if bag is not None and trial.crashed:
            bag.discard(trial.outcome.message)
        elif bag is not None and keep == "successes" and not trial.success:
            bag.discard(f"reached {trial.reached} of {trial.stages} stages")
        elif bag is not None:
            episode = str(bag.finish(trial.outcome.outcome, trial.score))
        return Result(
            contender=contender.name,
            task=state.task,
            condition=state.condition,
            state=state.number,
            noise_seed=job.noise_seed,
            outcome=trial.outcome.outcome,
            message=trial.outcome.message if trial.crashed else "",
            crashed=trial.crashed,
            score=trial.score,
            success=trial.success,
            chunks=trial.chunks,
            refused=trial.refused,
            seconds=trial.seconds,
            thinking=median(trial.thinking) if trial.thinking else 0.0,
            episode=episode,
        )

    def _begin_bag(self, contender: Contender, job: Job, digest: str) -> TrialBag:
        folder = self._output / ROLLOUTS / contender.name.replace(" ", "_") / self._folder
        store = EpisodeStore(folder, self._types, clock=lambda: self._env.time_ns)
        state = job.state
        with self._lock:  # two stores of one folder must not number their episodes at once
            return TrialBag(
                store,
                self._types,
                self._rig,
                self._task,
                seed=job.noise_seed,
                engine=contender.engine,
                checkpoint=contender.checkpoint or contender.remote or "",
                checkpoint_digest=digest,
                trial=TrialInfo("", state.condition, state.number, contender.name),
            )


_worker: Worker | None = None  # of a process of the pool


def _prepare(config: EvaluationConfig, output: Path, lock: AbstractContextManager[object]) -> None:
    global _worker
    _worker = Worker(config, output, lock)


def _make(job: Job) -> Result:
    assert _worker is not None
    return _worker.make(job)
