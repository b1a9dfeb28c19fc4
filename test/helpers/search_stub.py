"""A searching engine that computes nothing, and can be held up: for deadlines, deaths and hangs."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.inference.spec import (
    STAGES,
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

HOLD = "hold"  # a file in the checkpoint's folder: seeds from the one in it on are not answered
LOADING = "loading"  # a file there: nothing has loaded yet
REFUSED = 13  # a seed
NO_LATENT = (1, 1, 1, 1)


class StubSearchEngine:
    """Answers with numbers that depend on nothing but the seed."""

    def __init__(self, digest: str, folder: str = "") -> None:
        self._folder = Path(folder)
        self.info = SearchInfo(
            digest=digest,
            world_model_digest="stub-planner",
            dt=0.04,
            denoising_steps=1,
            pace=dict.fromkeys(STAGES, 0.001),
        )

    def answer(self, task: object) -> object:
        assert isinstance(task, SampleActions | PredictFuture | PredictValue)
        with suppress(FileNotFoundError):  # nothing is to be held, or no longer
            while max(task.seeds) >= int((self._folder / HOLD).read_text()):
                (self._folder / f"held_{os.getpid()}").touch()
                time.sleep(0.005)
        if isinstance(task, SampleActions):
            if REFUSED in task.seeds:
                raise ObservationError("the stub sees no cube")
            latents = np.zeros((len(task.seeds), *NO_LATENT), np.float32)
            chunks = np.array([np.full((50, 14), seed / 1e4) for seed in task.seeds])
            unsure = tuple(0.1 if seed % 8 == 2 else 0.01 for seed in task.seeds)
            own = tuple(0.5 + 0.01 * (seed % 8) for seed in task.seeds)
            return SampledActions(latents, chunks, own, unsure)
        if isinstance(task, PredictFuture):
            return np.zeros((len(task.seeds), len(task.members), *NO_LATENT), np.float32)
        # Not the first nor the last is the best.
        return tuple((0.9 - 0.01 * abs(seed % 8 - 5),) * len(task.members) for seed in task.seeds)


def proposals(query: Query) -> SampleActions:
    """Return a task for one candidate."""
    return SampleActions(query, (query.seed,))


def load(spec: EngineSpec, admit: Admit) -> StubSearchEngine:
    """Load, as soon as there is no file of that name in its folder."""
    while (Path(spec.checkpoint) / LOADING).exists():
        time.sleep(0.005)
    return StubSearchEngine("stub-policy", spec.checkpoint)


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
