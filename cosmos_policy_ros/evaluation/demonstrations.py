"""Demonstrations of the simulated rig's demonstrator, recorded as bags: data to train on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from cosmos_policy_ros.evaluation.trial import TrialRoom
from cosmos_policy_ros.evaluation.trial_bag import TrialBag
from cosmos_policy_ros.rig.run import Goal
from cosmos_policy_ros.rig.share import config_folder, share_folder
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.rollouts.bag_metadata import read_metadata
from cosmos_policy_ros.rollouts.bag_writer import RECORDING
from cosmos_policy_ros.rollouts.store import EpisodeStore
from cosmos_policy_ros.rollouts.task import load_task
from cosmos_policy_ros.rollouts.types import load_types
from cosmos_policy_ros.sim.demonstrator import Demonstrator

ENGINE = "demonstrator"
SEED = "seed"  # among a bag's facts


@dataclass(frozen=True)
class DemonstrationConfig:
    """What is demonstrated.

    Attributes:
        task: a name in ``config/tasks`` that the demonstrator knows.
        count: scenes 0 to count - 1; those it fails in are discarded.
        jitter: how much demonstrations differ, see the demonstrator.
        size: rows and columns of the pictures [px].
        processes: at work side by side.
    """

    task: str
    count: int
    jitter: float = 1.0
    size: int = 64
    processes: int = 2

    def __post_init__(self) -> None:
        for name in ("count", "size", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")


def demonstrate(config: DemonstrationConfig, root: Path) -> tuple[Path, ...]:
    """Record every scene that ``root`` does not hold yet; return the folders of episodes.

    Raises:
        CosmosPolicyError: unknown task, EGL is missing, or the disk refused.
    """
    load_task(config.task, config_folder("tasks"))
    folders = [root / f"part_{index}" for index in range(config.processes)]
    shares = [
        [seed for seed in range(index, config.count, config.processes) if seed not in done]
        for index, folder in enumerate(folders)
        for done in (_recorded(folder),)
    ]
    bar = tqdm(total=config.count, initial=config.count - sum(map(len, shares)), disable=None)
    bar.set_description("demonstrations")
    with bar, ProcessPoolExecutor(config.processes, get_context("spawn")) as pool:
        for batch in _batches(shares):
            jobs = [
                pool.submit(record, config, folders[index], seeds)
                for index, seeds in batch
                if seeds
            ]
            for job in jobs:
                bar.update(job.result())
    return tuple(folders)


def record(config: DemonstrationConfig, folder: Path, seeds: Sequence[int]) -> int:
    """Record some scenes into one folder; return how many. For a process of its own."""
    rig = load_rig("sim", config_folder("rigs"))
    task = load_task(config.task, config_folder("tasks"))
    types = load_types(share_folder() / "msg")
    room = TrialRoom(rig, task.name, config.size)
    try:
        store = EpisodeStore(folder, types, clock=lambda: room.time_ns)
        for seed in seeds:
            bag = TrialBag(store, types, rig, task, seed=seed, engine=ENGINE)
            run_id, prompt = f"demonstration_{seed}", task.prompts[0]
            goal = Goal(run_id, task.name, prompt, task.time_limit, 0, seed)
            trial = room.run(goal, seed, Demonstrator(jitter=config.jitter), [bag])
            if trial.success:
                bag.finish(trial.outcome.outcome, trial.score)
            else:
                bag.discard(f"the demonstrator failed: {trial.outcome.message}")
    finally:
        room.close()
    return len(seeds)


BATCH = 10  # scenes per call of a process: what a kill loses, and how often the bar moves


def _batches(shares: Sequence[Sequence[int]]) -> list[list[tuple[int, Sequence[int]]]]:
    rounds = max((len(share) + BATCH - 1) // BATCH for share in shares)
    return [
        [(index, share[turn * BATCH : (turn + 1) * BATCH]) for index, share in enumerate(shares)]
        for turn in range(rounds)
    ]


def _recorded(folder: Path) -> set[int]:
    """Return the scenes whose episodes are whole."""
    if not folder.is_dir():
        return set()
    bags = [path for path in folder.iterdir() if path.is_dir() and RECORDING not in path.name]
    return {int((read_metadata(bag).get("custom_data") or {}).get(SEED, -1)) for bag in bags}
