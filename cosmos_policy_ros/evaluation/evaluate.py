"""An evaluation: every contender on the same scenes with the same noise, in shuffled order.

A line is written per trial as it ends; an evaluation that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
from tqdm import tqdm

from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.core.files import replace_text
from cosmos_policy_ros.core.paths import config_folder, package_share
from cosmos_policy_ros.core.task import load_task
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.evaluation.contenders import Contender, load_policy
from cosmos_policy_ros.evaluation.results import Result, read_results, to_line
from cosmos_policy_ros.evaluation.trial import SimEnv, TrialBag
from cosmos_policy_ros.rig.decision import Policy
from cosmos_policy_ros.rig.run import Goal
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.sim.tasks import USUAL, condition

TRIALS = "trials.jsonl"
ROLLOUTS = "rollouts"
SEEDS_PER_SCENE = 1000  # a search's candidates take seeds in a row


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

    def __post_init__(self) -> None:
        names = [contender.name for contender in self.contenders]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"contenders: {names} must be at least one, with different names")
        for name in ("trials", "threads", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("first_seed", "noise_seed", "order_seed", "processes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class Job:
    """One trial to be made; :attr:`key` as in its :class:`Result`."""

    contender: Contender
    condition: str
    seed: int
    noise_seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Contender, condition and scene."""
        return self.contender.name, self.condition, self.seed


def plan(config: EvaluationConfig) -> list[Job]:
    """Return all trials, shuffled, so that drift of the machine hits all contenders alike."""
    for name in config.conditions:
        condition(config.task, name)
    jobs = [
        Job(contender, name, config.first_seed + i, (config.noise_seed + i) * SEEDS_PER_SCENE)
        for contender in config.contenders
        for name in config.conditions
        for i in range(config.trials)
    ]
    order = np.random.default_rng(config.order_seed).permutation(len(jobs))
    return [jobs[index] for index in order]


def evaluate(config: EvaluationConfig, output: Path) -> list[Result]:
    """Make all trials that ``output`` does not hold yet; return the results of all.

    Raises:
        CosmosPolicyError: a contender, the task or a condition is wrong, or the disk refused.
    """
    load_task(config.task, config_folder("tasks"))
    jobs = plan(config)
    path = output / TRIALS
    done = read_results(path)
    wanted = {job.key for job in jobs}
    done = [result for result in done if result.key in wanted]
    # A line that a kill has cut short would spoil the next one.
    replace_text(path, "".join(map(to_line, done)))
    left = [job for job in jobs if job.key not in {result.key for result in done}]
    bar = tqdm(
        _results(config, output, left),
        "trials",
        total=len(jobs),
        initial=len(done),
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
    """Make trials, here or in processes; yield their results as they end."""
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
        finally:
            pool.shutdown(cancel_futures=True)  # after an interrupt nothing more begins


class Worker:
    """What one process keeps from trial to trial: the rig, and contenders once loaded."""

    def __init__(
        self, config: EvaluationConfig, output: Path, lock: AbstractContextManager[object]
    ) -> None:
        """Load the rig; ``lock`` is held while an episode gets its number."""
        self._config, self._output, self._lock = config, output, lock
        self._rig = load_rig("sim", config_folder("rigs"))
        self._task = load_task(config.task, config_folder("tasks"))
        # A CUDA build of torch loads Triton, whose LLVM crashes the process once Mesa's software
        # renderer has loaded its own; the other way round they get on.
        with suppress(ImportError):
            import_module("triton")
        self._env = SimEnv(self._rig, config.task, config.image_size)
        self._policies: dict[str, Policy] = {}
        self._types = load_types(package_share() / "msg")

    def close(self) -> None:
        """Free the renderer."""
        self._env.close()

    def make(self, job: Job) -> Result:
        """Make one trial."""
        contender, keep = job.contender, self._config.keep
        if contender.name not in self._policies:
            self._policies[contender.name] = load_policy(contender, self._config.threads)
        policy = self._policies[contender.name]
        run_id = f"{contender.name}/{job.condition}/{job.seed}".replace(" ", "_")
        prompt, limit = self._task.prompts[0], self._task.time_limit
        goal = Goal(run_id, self._task.name, prompt, limit, 0, job.noise_seed)
        bag = None if keep == "none" else self._begin_bag(job, policy.info.digest)
        observers = () if bag is None else (bag,)
        trial = self._env.run(goal, job.seed, policy, observers, condition=job.condition)
        episode = ""
        if bag is not None and trial.crashed:
            bag.discard(trial.outcome.message)
        elif bag is not None and keep == "successes" and not trial.success:
            bag.discard(f"reached {trial.reached} of {trial.stages} stages")
        elif bag is not None:
            episode = str(bag.finish(trial.outcome.outcome, trial.score))
        return Result(
            contender=contender.name,
            condition=job.condition,
            seed=job.seed,
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

    def _begin_bag(self, job: Job, digest: str) -> TrialBag:
        folder = self._output / ROLLOUTS / job.contender.name.replace(" ", "_")
        store = EpisodeStore(folder, self._types, clock=lambda: self._env.time_ns)
        with self._lock:  # two stores of one folder must not number their episodes at once
            return TrialBag(
                store,
                self._types,
                self._rig,
                self._task,
                seed=job.noise_seed,
                engine=job.contender.engine,
                checkpoint=job.contender.checkpoint or "",
                checkpoint_digest=digest,
            )


_worker: Worker | None = None  # of a process of the pool


def _prepare(config: EvaluationConfig, output: Path, lock: AbstractContextManager[object]) -> None:
    global _worker
    _worker = Worker(config, output, lock)


def _make(job: Job) -> Result:
    assert _worker is not None
    return _worker.make(job)
