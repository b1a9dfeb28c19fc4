"""On the simulated rig, with answers that take their time: no pauses, and transitions that fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import load_task
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.evaluation import trial as trial_module
from cosmos_policy_ros.evaluation.trial import SimEnv, Timing, TrialBag
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.rig.execution import Execution, TransitionMode
from cosmos_policy_ros.rig.run import Goal
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.sim.demonstrator import Demonstrator

TASK, PROMPT = "either_cube", "hand over a cube"
GOAL = Goal("run", TASK, PROMPT, 20.0, 0, 3)


def in_motion(
    latency: float, transition: TransitionMode = "condition", jitter: float = 0.0
) -> Timing:
    rng = np.random.default_rng(1)
    return Timing(
        Execution("asynchronous", transition), lambda: latency + jitter * float(rng.uniform(-1, 1))
    )


def test_as_fast_as_answers_in_no_time_and_without_a_pause(env: SimEnv) -> None:
    moving = {
        (latency, jitter): env.run(
            GOAL, 3, Demonstrator(), timing=in_motion(latency, jitter=jitter)
        )
        for latency, jitter in ((0.1, 0.0), (0.6, 0.0), (0.5, 0.2), (0.9, 0.0))
    }
    for timing, trial in moving.items():
        assert trial.success and (trial.refused, trial.late) == (0, 0)
        assert trial.idle == pytest.approx(0.0, abs=0.02), timing
    blocking = env.run(GOAL, 3, Demonstrator(), timing=Timing(latency=lambda: 0.6))
    assert blocking.idle == pytest.approx(0.6 * (blocking.chunks - 1), abs=0.1)
    assert moving[0.6, 0.0].seconds < blocking.seconds - 2.0


def test_conditioned_chunks_begin_where_the_arms_are_going(env: SimEnv) -> None:
    """Of the shipped checkpoint, over a whole trial: the jump before anything is blended."""
    policy = CosmosPolicy.load(config_folder("models") / "tiny", device="cpu")

    def jumps(transition: TransitionMode) -> np.ndarray:
        trial = env.run(GOAL, 1000, policy, timing=in_motion(0.4, transition))
        found = [each.decided for each in trial.transitions[1:] if each.dropped]
        return np.array([(jump.position, jump.velocity) for jump in found])

    blended, conditioned = jumps("blend"), jumps("condition")
    told = [np.median(found, axis=0).round(4).tolist() for found in (blended, conditioned)]
    print(f"\nmedian jump in position and velocity: blend {told[0]}, condition {told[1]}")
    assert (np.median(conditioned, axis=0) < np.median(blended, axis=0) / 2).all()


def test_a_trial_in_motion_is_recorded_as_one_stretch(
    rig: RigSpec, types: Typestore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "CAMERA_SIZE", (64, 64))  # nobody looks
    env = SimEnv(rig, TASK, 64)
    store = EpisodeStore(tmp_path, types)
    task = load_task(TASK, config_folder("tasks"))
    bag = TrialBag(store, types, rig, task, image_size=64, prompt=PROMPT, seed=3, engine="x")
    trial = env.run(GOAL, 3, Demonstrator(), [bag], timing=in_motion(0.4))
    env.close()
    windows = EpisodeWindows(read_episode(bag.finish("done", trial.score)), 0.04)
    steps = windows.steps
    gaps = np.diff(steps.times_ns)
    # Only the second chunk comes after a pause: nothing was known of the latency before it.
    assert np.count_nonzero(np.abs(gaps - 40_000_000) > 5_000_000) <= 1
    before = 0.4  # s, until the first answer: all that is no motion
    assert trial.seconds - len(steps) * 0.04 == pytest.approx(before, abs=0.2)
