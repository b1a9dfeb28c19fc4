"""Trials on a benchmark: what ``cosmos evaluate`` reads, and where they are made.

The environment waits while the policy thinks, and its actions are its own: they go past the run and
the safety gate, which are the arms'.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import ConfigError, RemoteError, WorkerError
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.environments.benchmark import (
    Benchmark,
    examine,
    load_benchmark,
    open_process,
)
from cosmos_policy_ros.environments.environment import Environment, Scene
from cosmos_policy_ros.evaluation.contenders import (
    Contender,
    check_names,
    check_not_simulated,
    check_numbers,
    load_policy,
)
from cosmos_policy_ros.evaluation.plan import InitialState, Job, plan
from cosmos_policy_ros.evaluation.results import Result
from cosmos_policy_ros.rig.decision import Policy, Query

DONE, LIMIT, FAULT, NOT_FINITE = "done", "step_limit", "fault", "not_finite"


@dataclass(frozen=True)
class BenchmarkConfig:
    """A file of ``config/evaluations`` with the key ``benchmark``.

    Attributes:
        benchmark: a name in ``config/benchmarks``, or a file.
        contenders: all are compared with the first.
        suites: of the benchmark; all where empty.
        tasks: of each suite; all where empty.
        trials: per task and noise seed.
        first_trial: number of the first.
        noise_seeds: of the policies. Each is that of all trials, as in the released evaluation,
            and with several of them all trials are made with each.
        order_seed: shuffles the trials.
        executed: rows of each chunk; None as the benchmark says. A policy server's config says it
            for its own.
        environment: folder of the benchmark's environment; None for the one beside the package's.
        processes: trials at once; 0 makes them one by one in this process.
        threads: torch's, per process.
        ray: address of a Ray cluster that makes the trials, "auto" or "local"; None: this machine.
        gpus: of each process on a cluster; a part of one where several share it.
    """

    benchmark: str
    contenders: tuple[Contender, ...]
    suites: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    trials: int = 50
    first_trial: int = 0
    noise_seeds: tuple[int, ...] = (195,)
    order_seed: int = 0
    executed: int | None = None
    environment: str | None = None
    processes: int = 2
    threads: int = 1
    ray: str | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        check_names(self.contenders)
        check_not_simulated(self.contenders)
        for contender in self.contenders:
            if contender.engine not in ("cosmos", "remote") or contender.charge_latency:
                raise ValueError(
                    f"contender '{contender.name}': engine {contender.engine} and charge_latency "
                    "are the simulated rig's; a benchmark takes engine cosmos or remote, and waits"
                )
        not_negative = ("first_trial", "order_seed", "processes", "gpus")
        check_numbers(self, ("trials", "threads"), not_negative)
        seeds = self.noise_seeds
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"noise_seeds: {list(seeds)} must be at least one, each once, from 0")
        if self.executed is not None and self.executed < 1:
            raise ValueError(f"executed: {self.executed} must be at least 1 row")

    @property
    def writes_bags(self) -> bool:
        """No: a benchmark's trials leave a line each."""
        return False

    def chosen(self, benchmark: Benchmark) -> dict[str, tuple[str, ...]]:
        """Return the tasks of each suite, in the benchmark's order. Raises ConfigError."""
        for name in self.suites:
            if name not in benchmark.suites:
                hint = did_you_mean(name, benchmark.suites)
                raise ConfigError(f"suites: {benchmark.title} has no '{name}'{hint}")
        known = {task for suite in benchmark.suites.values() for task in suite.tasks}
        for task in self.tasks:
            if task not in known:
                hint = did_you_mean(task, known)
                raise ConfigError(f"tasks: {benchmark.title} has no '{task}'{hint}")
        return {
            name: tuple(task for task in suite.tasks if not self.tasks or task in self.tasks)
            for name, suite in benchmark.suites.items()
            if not self.suites or name in self.suites
        }

    def jobs(self) -> list[Job]:
        """Return all trials in their order. Raises ConfigError: no such suite, task or trial."""
        benchmark = load_benchmark(self.benchmark)
        end, there = self.first_trial + self.trials, benchmark.initial_states
        if there and end > there:
            raise ConfigError(
                f"trials: {benchmark.title} has initial states 0 to {there - 1} of a task, and "
                f"{self.first_trial} to {end - 1} are asked for; take fewer"
            )
        states = [
            InitialState(f"{suite}/{task}", suite, trial, noise_seed=seed)
            for suite, tasks in self.chosen(benchmark).items()
            for task in tasks
            for seed in self.noise_seeds
            for trial in range(self.first_trial, end)
        ]
        return plan([each.name for each in self.contenders], states, 0, self.order_seed)

    def room(
        self, output: Path, lock: AbstractContextManager[object], folder: str
    ) -> BenchmarkRoom:
        """Return an environment of this process. Raises BenchmarkError: it is not installed."""
        return BenchmarkRoom(self)


class BenchmarkRoom:
    """A benchmark's environment in a process of its own, and contenders once loaded."""

    def __init__(self, config: BenchmarkConfig) -> None:
        """Find the benchmark. Raises BenchmarkError: it is not installed."""
        self._benchmark = load_benchmark(config.benchmark)
        self._executed = config.executed or self._benchmark.executed
        self._threads = config.threads
        self._environment = open_process(self._benchmark, config.environment)
        self._contenders = {each.name: each for each in config.contenders}
        self._loaded: dict[str, Policy] = {}
        self._examined = ""

    def close(self) -> None:
        """End the environment's process."""
        self._environment.close()

    def make(self, job: Job) -> Result:
        """Make one trial.

        What the environment's process or a policy server dies of crashes the trial alone.

        Raises:
            CosmosPolicyError: the benchmark is not the one that its pins name, its cameras show
                what they must not, or a contender has no answer to such a task.
        """
        contender, state, environment = (
            self._contenders[job.contender],
            job.state,
            self._environment,
        )
        self._examined = self._examined or examine(self._benchmark, environment)
        if contender.name not in self._loaded:
            self._loaded[contender.name] = load_policy(contender, self._threads)
        policy = self._loaded[contender.name]
        suite, _, task = state.task.partition("/")
        wall, cpu = time.perf_counter(), time.process_time() + environment.cpu
        trial = Attempt()
        try:
            trial.run(environment, Scene(suite, task, state.number), policy, job, self._rows)
        except (WorkerError, RemoteError) as error:
            trial.outcome, trial.message = FAULT, str(error)
        return Result(
            contender=contender.name,
            task=state.task,
            condition=state.condition,
            state=state.number,
            noise_seed=job.noise_seed,
            outcome=trial.outcome,
            message=trial.message,
            crashed=trial.outcome == FAULT,
            score=100.0 if trial.outcome == DONE else 0.0,
            success=trial.outcome == DONE,
            chunks=len(trial.thinking),
            decisions=len(trial.thinking),
            evaluations=trial.evaluations,
            refused=0,
            seconds=trial.steps * self._benchmark.dt,
            thinking=median(trial.thinking) if trial.thinking else 0.0,
            steps=trial.steps,
            wall=time.perf_counter() - wall,
            cpu=time.process_time() + environment.cpu - cpu,
            environment=self._examined,
        )

    def _rows(self, chunk: Array, contender: str) -> Array:
        """Return the rows of a chunk that are executed. Raises ConfigError."""
        benchmark = self._benchmark
        executed = self._executed
        if self._contenders[contender].engine == "remote":
            executed = len(chunk)  # as its own config says
        if chunk.ndim != 2 or chunk.shape[1] != benchmark.action_dims:
            raise ConfigError(
                f"contender '{contender}': its chunks have shape {chunk.shape}, and "
                f"{benchmark.title} executes rows of {benchmark.action_dims}: give a checkpoint "
                "of that robot"
            )
        if len(chunk) < executed:
            raise ConfigError(
                f"contender '{contender}': its chunks have {len(chunk)} rows, and {executed} "
                "are executed of each; set 'executed' to at most that"
            )
        return chunk[:executed]


class Attempt:
    """One trial under way.

    Attributes:
        outcome: done, step_limit, not_finite (a chunk was no numbers), or fault.
        message: of a fault.
        steps: executed.
        thinking: wall seconds of each decision.
        evaluations: of the networks, for all decisions.
    """

    def __init__(self) -> None:
        self.outcome, self.message = LIMIT, ""
        self.steps = 0
        self.thinking: list[float] = []
        self.evaluations = 0

    def run(
        self,
        environment: Environment,
        scene: Scene,
        policy: Policy,
        job: Job,
        rows_of: Callable[[Array, str], Array],
    ) -> None:
        """Let a policy try until success or the limit. Raises CosmosPolicyError."""
        prompt = environment.reset(scene, job.noise_seed)
        while self.steps < environment.limit:
            seen, index = environment.observe(), len(self.thinking)
            began = time.perf_counter()
            query = Query(job.state.task, prompt, job.noise_seed, index, seen)
            decision = policy.decide(query)
            self.thinking.append(time.perf_counter() - began)
            self.evaluations += decision.evaluations
            rows = rows_of(decision.positions, job.contender)
            if not np.isfinite(rows).all():
                self.outcome = NOT_FINITE
                return
            progress = environment.execute(rows)
            self.steps += progress.steps
            if progress.success:
                self.outcome = DONE
                return


def list_prompts(config: BenchmarkConfig) -> list[str]:
    """Return the prompts of all trials, each once, by resetting where they are composed there.

    Raises:
        CosmosPolicyError: the benchmark is not installed, or its process died.
    """
    benchmark = load_benchmark(config.benchmark)
    environment = open_process(benchmark, config.environment)
    prompts: dict[str, None] = {}
    asked: set[tuple[object, ...]] = set()
    try:
        for job in config.jobs():
            state = job.state
            once = (state.task, state.number, job.noise_seed)
            key = once if benchmark.prompts_at_reset else once[:1]
            if key not in asked:
                asked.add(key)
                suite, _, task = state.task.partition("/")
                prompts[environment.prompt(Scene(suite, task, state.number), job.noise_seed)] = None
    finally:
        environment.close()
    return list(prompts)
