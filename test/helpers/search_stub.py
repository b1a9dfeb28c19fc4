"""A searching engine that takes its time and computes nothing: for deadlines, deaths and hangs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.inference.spec import (
    Admit,
    EngineSpec,
    Footprint,
    PredictFuture,
    PredictValue,
    SampleActions,
    SampledActions,
    SearchInfo,
)
from cosmos_policy_ros.rig.decision import Query

SECONDS = 0.02  # that a task takes
TASKS = 5  # per candidate: its proposal, its futures, and the values of three
REFUSED = 13  # a seed
NO_LATENT = (1, 1, 1, 1)


class StubSearchEngine:
    """Answers with numbers that depend on nothing but the seed."""

    def __init__(self, digest: str) -> None:
        self.info = SearchInfo(
            digest=digest,
            planner_digest="stub-planner",
            dt=0.04,
            denoising_steps=1,
            pace={
                "sample_actions": SECONDS,
                "predict_future": SECONDS / 5,
                "predict_value": SECONDS / 5,
            },
        )

    def answer(self, task: object) -> object:
        time.sleep(SECONDS)
        if isinstance(task, SampleActions):
            if REFUSED in task.seeds:
                raise ObservationError("the stub sees no cube")
            latents = np.zeros((len(task.seeds), *NO_LATENT), np.float32)
            chunks = np.array([np.full((50, 14), seed / 1e4) for seed in task.seeds])
            return SampledActions(latents, chunks)
        if isinstance(task, PredictFuture):
            return np.zeros((len(task.seeds), task.members, *NO_LATENT), np.float32)
        assert isinstance(task, PredictValue)
        # Not the first nor the last is the best.
        return tuple((0.9 - 0.01 * abs(seed % 8 - 5),) * task.members for seed in task.seeds)


def proposals(query: Query) -> SampleActions:
    """Return a task for one candidate."""
    return SampleActions(query, (query.seed,))


def load(spec: EngineSpec, admit: Admit) -> StubSearchEngine:
    """Load at once."""
    return StubSearchEngine("stub-policy")


def load_another(spec: EngineSpec, admit: Admit) -> StubSearchEngine:
    """Load something else in every process."""
    return StubSearchEngine(f"stub-policy-{os.getpid()}")


def load_huge(spec: EngineSpec, admit: Admit) -> StubSearchEngine:
    """Ask for more than there is."""
    admit(Footprint("cpu", {"policy": int(9e12)}, int(1e9)))
    return StubSearchEngine("huge")


def load_most_of_it(spec: EngineSpec, admit: Admit) -> StubSearchEngine:
    """Ask for more than half of what there is; wait for the other to do so too."""
    admit(Footprint("cpu", {"policy": int(6e9)}, int(10e9)))
    while Path(f"/proc/{os.getppid()}").exists():
        time.sleep(0.1)
    return StubSearchEngine("large")
