"""Pauses, transitions and success of the ways in which one chunk can follow another.

    . scripts/env.sh
    python benchmark/overlap.py demonstrator        # or: tiny
    python benchmark/overlap.py tiny --trials 20 --latencies 0.3 0.6

Whole trials on the simulated rig in one process, the answers coming as late on the rig's clock as
the column says (``0.6±0.3`` is uniform). Beside the package's own three ways the two that are usual
elsewhere, on the same scenes and noise: *latest wins*, where every new chunk replaces the rest of
the one before as it is, and *ensembling* (Zhao et al. 2023, ACT), where every row is the average of
all chunks that speak of it, both asking again as soon as they have an answer. Every chunk passes
the gate, whatever made it.

Idle is the fraction of the time between the first motion and the end that the arms stood still.
Jumps are at the transitions after the first, before the package's way of joining them and after it,
their medians and p95: position [rad], velocity [rad/s], acceleration [rad/s²] (``rig.chunk``).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.evaluation.trial import SimEnv, Timing, Trial
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.rig.chunk import KEPT, Blend, TimedChunk
from cosmos_policy_ros.rig.decision import Policy
from cosmos_policy_ros.rig.execution import Execution, InferenceScheduler
from cosmos_policy_ros.rig.run import Goal
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.sim.demonstrator import Demonstrator

TASK, PROMPT, TIME_LIMIT = "either_cube", "hand over a cube", 20.0
FIRST_SEED = 1000  # scenes that no training has seen
LATENCIES = ("0.1", "0.3", "0.6", "0.9", "0.3±0.15", "0.6±0.3", "1.2", "1.8")
DECAY = 0.01  # of ACT's weights, the oldest chunk's being the largest


class Eager(InferenceScheduler):
    """Asks again as soon as the last answer is there."""

    def due(self, left: float) -> bool:
        """Return whether anything of the path is left."""
        return left > 0


def latest_wins(blend: Blend) -> Array:
    """Replace the rest of the path as it is."""
    return np.vstack([blend.old[:KEPT], blend.new[KEPT:]])


class Ensemble:
    """Averages all chunks of a run that speak of a row."""

    def __init__(self) -> None:
        self._chunks: list[TimedChunk] = []

    def __call__(self, blend: Blend) -> Array:
        """Return the rows of all chunks so far."""
        self._chunks.append(blend.decided)
        rows = latest_wins(blend)
        for index in range(KEPT, len(rows)):
            due_ns = blend.path.due_ns(blend.first + index)
            told = [each.sample(due_ns) for each in self._chunks if due_ns <= each.end_ns]
            weights = np.exp(-DECAY * np.arange(len(told)))
            rows[index] = np.average(told, axis=0, weights=weights)
        return rows


class Way(NamedTuple):
    """One way: its execution, made anew for every trial, and its trigger."""

    execution: Callable[[], Execution]
    scheduler: type[InferenceScheduler] = InferenceScheduler


WAYS = {
    "synchronous": Way(Execution),
    "overlap + blend": Way(lambda: Execution("asynchronous", "blend")),
    "overlap + condition": Way(lambda: Execution("asynchronous", "condition")),
    "latest wins": Way(lambda: Execution("asynchronous", "blend", 0, blender=latest_wins), Eager),
    "ensembling": Way(lambda: Execution("asynchronous", "blend", 0, blender=Ensemble()), Eager),
}


def think(latency: str, seed: int) -> Callable[[], float]:
    """Return what draws the latencies of a trial."""
    mean, spread = (float(part) for part in re.split("±", f"{latency}±0")[:2])
    rng = np.random.default_rng(seed)
    return lambda: mean + spread * float(rng.uniform(-1.0, 1.0))


def row(latency: str, name: str, trials: list[Trial]) -> str:
    """Return a line of the table."""
    transitions = [each for trial in trials for each in trial.transitions[1:]]
    moving = sum(trial.seconds for trial in trials)
    cells = []
    for quantity, digits in (("position", 3), ("velocity", 2), ("acceleration", 1)):
        for jumps in (
            [getattr(each.decided, quantity) for each in transitions],
            [getattr(each.sent, quantity) for each in transitions if each.sent is not None],
        ):
            low, high = np.quantile(jumps, (0.5, 0.95)) if jumps else (np.nan, np.nan)
            cells.append(f"{low:.{digits}f}, {high:.{digits}f}")
    counts = f"{sum(t.late for t in trials)} | {sum(t.refused for t in trials)}"
    success = 100 * np.mean([trial.success for trial in trials])
    score = np.mean([trial.score for trial in trials])
    return (
        f"| {latency} | {name} | {100 * sum(t.idle for t in trials) / moving:.1f} % | {counts} | "
        f"{' | '.join(f'{a} → {b}' for a, b in zip(cells[::2], cells[1::2], strict=True))} | "
        f"{success:.0f} % | {score:.0f} | {moving / len(trials):.1f} s |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=("demonstrator", "tiny"))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--latencies", nargs="+", default=LATENCIES)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    options = parser.parse_args()

    def make_policy() -> Policy:
        if options.engine == "demonstrator":
            return Demonstrator()
        return CosmosPolicy.load(config_folder("models") / "tiny", device="cpu")

    policy = make_policy()
    env = SimEnv(load_rig("sim", config_folder("rigs")), TASK, 64)
    print("| latency [s] | way | idle | late | refused | position | velocity | acceleration | "
          "success | score | time |\n" + "|---" * 11 + "|")  # fmt: skip
    for latency in options.latencies:
        for name in options.ways:
            way, trials = WAYS[name], []
            for seed in range(FIRST_SEED, FIRST_SEED + options.trials):
                goal = Goal("run", TASK, PROMPT, TIME_LIMIT, 0, seed)
                timing = Timing(way.execution(), think(latency, seed), way.scheduler)
                trials.append(env.run(goal, seed, policy, timing=timing))
            print(row(latency, name, trials), flush=True)
    env.close()


if __name__ == "__main__":
    main()
