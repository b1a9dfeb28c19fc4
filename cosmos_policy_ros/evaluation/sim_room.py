"""Trials on the simulated rig: what ``cosmos evaluate`` reads, and where they are made."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Literal

from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.core.paths import config_folder, package_share
from cosmos_policy_ros.core.task import choose_prompt, load_task
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.trial_info import TrialInfo
from cosmos_policy_ros.evaluation.contenders import (
    Contender,
    check_names,
    check_numbers,
    load_policy,
    rig_of,
)
from cosmos_policy_ros.evaluation.correction import Person
from cosmos_policy_ros.evaluation.plan import InitialState, Job, plan
from cosmos_policy_ros.evaluation.results import Result
from cosmos_policy_ros.evaluation.trial import SimEnv, Timing, TrialBag
from cosmos_policy_ros.rig.decision import Policy
from cosmos_policy_ros.rig.run import Goal
from cosmos_policy_ros.rig.spec import RigSpec, load_rig
from cosmos_policy_ros.sim.tasks import USUAL, condition

ROLLOUTS = "rollouts"


@dataclass(frozen=True)
class EvaluationConfig:
    """A file of ``config/evaluations``.

    Attributes:
        task: a name in ``config/tasks`` that the simulated rig knows.
        contenders: all are compared with the first.
        conditions: of the scenes, see :mod:`~cosmos_policy_ros.sim.tasks`.
        trials: scenes per condition.
        chunks: executed in a trial at most, to try an evaluation out; 0 for the task's time limit.
        first_seed: of the scenes; demonstrations are made of low ones, which are not held out.
        noise_seed: of the policies. The noise of a scene is the same for all.
        order_seed: shuffles the trials.
        keep: which trials' bags stay in ``rollouts``, scored: those with success are
            demonstrations to train on, those that a person took over are corrections; the others
            are marked as discarded then.
        corrected_after: seconds without a new stage, or until a refused chunk, after which the
            stand-in of a person takes over by leaders and does the rest; the table is of what the
            policy had reached until then, the bag's score of both. None: never.
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
    chunks: int = 0
    first_seed: int = 100_000
    noise_seed: int = 1
    order_seed: int = 0
    keep: Literal["none", "successes", "corrections", "all"] = "none"
    corrected_after: float | None = None
    image_size: int = 64
    processes: int = 2
    threads: int = 1
    ray: str | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        check_names(self.contenders)
        seeds = ("first_seed", "noise_seed", "order_seed")
        check_numbers(
            self, ("trials", "threads", "image_size"), (*seeds, "chunks", "processes", "gpus")
        )
        if self.corrected_after is not None:
            check_numbers(self, (), ("corrected_after",))
        elif self.keep == "corrections":
            raise ValueError("keep: corrections needs corrected_after, seconds; found none")

    @property
    def writes_bags(self) -> bool:
        """Whether trials' bags are written into the output folder."""
        return self.keep != "none"

    def jobs(self) -> list[Job]:
        """Return all trials in their order. Raises ConfigError: an unknown task or condition."""
        task = load_task(self.task, config_folder("tasks"))
        for contender in self.contenders:
            choose_prompt(task, contender.prompt)
        for name in self.conditions:
            condition(self.task, name)
        scenes = [
            InitialState(self.task, name, self.first_seed + i)
            for name in self.conditions
            for i in range(self.trials)
        ]
        names = [contender.name for contender in self.contenders]
        return plan(names, scenes, self.noise_seed, self.order_seed)

    def room(self, output: Path, lock: AbstractContextManager[object], folder: str) -> SimRoom:
        """Return the simulated rig of this process. Raises CosmosPolicyError."""
        return SimRoom(self, output, lock, folder)


class SimRoom:
    """The simulated rig of one process, and contenders once loaded."""

    def __init__(
        self,
        config: EvaluationConfig,
        output: Path,
        lock: AbstractContextManager[object],
        folder: str,
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
            executing = rig_of(contender, self._rig)
            policy = load_policy(contender, self._config.threads, executing)
            self._loaded[contender.name] = policy, executing
        (policy, rig), keep = self._loaded[contender.name], self._config.keep
        run_id = f"{contender.name}/{state.condition}/{state.number}".replace(" ", "_")
        prompt = choose_prompt(self._task, contender.prompt)
        limit = self._task.time_limit
        goal = Goal(run_id, self._task.name, prompt, limit, self._config.chunks, job.noise_seed)
        bag = None if keep == "none" else self._begin_bag(contender, job, policy.info.digest)
        observers = () if bag is None else (bag,)
        patience = self._config.corrected_after
        trial = self._env.run(
            goal,
            state.number,
            policy,
            observers,
            condition=state.condition,
            timing=Timing(charged=contender.charge_latency),
            rig=rig,
            person=None if patience is None else Person(self._rig, patience),
        )
        episode = ""
        if bag is not None and trial.crashed:
            bag.discard(trial.outcome.message)
        elif bag is not None and keep == "successes" and not trial.success:
            bag.discard(f"reached {trial.reached} of {trial.stages} stages")
        elif bag is not None and keep == "corrections" and trial.corrected is None:
            bag.discard("there was no takeover to learn from")
        elif bag is not None:
            episode = str(bag.finish(trial.outcome.outcome, trial.episode_score))
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
            success_with_any=trial.success_with_any,
            chunks=trial.chunks,
            refused=trial.refused,
            seconds=trial.seconds,
            thinking=median(trial.thinking) if trial.thinking else 0.0,
            episode=episode,
            decisions=len(trial.thinking),
            evaluations=trial.evaluations,
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
                image_size=self._config.image_size,
                prompt=choose_prompt(self._task, contender.prompt),
                seed=job.noise_seed,
                engine=contender.engine,
                checkpoint=contender.checkpoint or contender.remote or "",
                checkpoint_digest=digest,
                trial=TrialInfo("", state.condition, state.number, contender.name),
            )
