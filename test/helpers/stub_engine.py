"""An engine that fails on demand: the checkpoint's name says how it loads, the seed how it decides.

It runs in a real worker process, so only what can be sent to one (spec and query) selects a fault.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from enum import IntEnum
from pathlib import Path

import numpy as np

from cosmos_policy_ros.core.errors import CheckpointError, ObservationError
from cosmos_policy_ros.inference.engines import DirectEngine
from cosmos_policy_ros.inference.spec import Admit, EngineSpec
from cosmos_policy_ros.rig.decision import Candidate, Decision, EngineInfo, Query
from cosmos_policy_ros.rig.run import OTHER_NOISE

ROWS, DT = 50, 0.04
FOR_EVER = 3600.0  # s; whoever waits this long has failed its test
WAIT = "wait for "  # and the path of a file; the engine has loaded when it is there


class Seed(IntEnum):
    """What the engine does when it is asked with this seed."""

    GOOD = 1
    NAN = 2
    JUMP_UP = 3
    JUMP_DOWN = 4
    REFUSE = 5
    SLEEP_FIRST = 6
    """Never answers query 0, answers every later one."""
    DIE = 7
    RAISE = 8
    FAST = 9
    """Swings by 1.2 rad towards the middle and back, at up to 1.9 rad/s."""


class StubEngine:
    """Both waists swing out by 0.3 rad and back in every chunk."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(digest="stub-digest", warning="this is a stub")

    def decide(self, query: Query) -> Decision:
        query = replace(query, seed=query.seed % OTHER_NOISE)  # asked again it does the same
        if query.seed == Seed.SLEEP_FIRST and query.index == 0:
            time.sleep(FOR_EVER)
        if query.seed == Seed.DIE:
            os._exit(3)
        if query.seed == Seed.RAISE:
            raise ZeroDivisionError("a bug in the engine")
        if query.seed == Seed.REFUSE:
            raise ObservationError("the stub sees no cube")
        return Decision(
            positions=_chunk(query),
            dt=DT,
            candidates=(Candidate(query.seed),),
            chosen=0,
            reason="the stub's only one",
            engine=self._spec.engine,
            phases={"think": 0.0},
        )


def _chunk(query: Query) -> np.ndarray:
    positions = np.tile(query.observation.state, (ROWS, 1))
    waists = [0, 7]
    reach = np.full(len(waists), 0.3)
    if query.seed == Seed.FAST:
        reach = np.where(query.observation.state[waists] > 0, -1.2, 1.2)
    swing = 0.5 * (1.0 - np.cos(2.0 * np.pi * np.arange(1, ROWS + 1) / ROWS))
    positions[:, waists] += swing[:, None] * reach
    if query.seed == Seed.NAN:
        positions[20, 8] = np.nan
    if query.seed in (Seed.JUMP_UP, Seed.JUMP_DOWN):
        positions += 0.5 if query.seed == Seed.JUMP_UP else -0.5
    return positions


def load(spec: EngineSpec, admit: Admit) -> DirectEngine:
    """Load, or fail to, as ``spec.checkpoint`` says."""
    if spec.checkpoint == "refuse":
        raise CheckpointError("stub/model.safetensors is missing; download it")
    if spec.checkpoint == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.checkpoint == "hang":
        time.sleep(FOR_EVER)
    if spec.checkpoint.startswith(WAIT):
        while not Path(spec.checkpoint.removeprefix(WAIT)).exists():
            time.sleep(0.01)
    return DirectEngine(StubEngine(spec))
