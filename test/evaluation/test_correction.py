"""A person takes over a trial that goes wrong; the episode tells row by row who commanded it.

And what a person shows is, number by number, what a trial of the same motion teaches.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import load_task
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.evaluation.contenders import Contender
from cosmos_policy_ros.evaluation.correction import BACK, CALM, TRIES, Person
from cosmos_policy_ros.evaluation.evaluate import evaluate
from cosmos_policy_ros.evaluation.sim_room import ROLLOUTS, EvaluationConfig
from cosmos_policy_ros.evaluation.trial import SimEnv, TrialBag
from cosmos_policy_ros.model.checkpoint import load_checkpoint
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.decision import Decision, EngineInfo, Query
from cosmos_policy_ros.rig.run import Goal
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.teleoperation import TELEOPERATION, led_tick
from cosmos_policy_ros.sim.rig import START_POSE
from cosmos_policy_ros.training.config import DataConfig
from cosmos_policy_ros.training.dataset_index import index_episodes

TASK, PROMPT = "either_cube", "hand over the blue cube"
CHUNK = 50


def goal(seed: int) -> Goal:
    return Goal("run", TASK, PROMPT, 30.0, 0, seed)


class Targets:
    """Keeps what the arms were sent."""

    def __init__(self) -> None:
        self.chunks: list[TimedChunk] = []

    def joints(self, side: str, sample: Any) -> None: ...

    def images(self, stamp_ns: int, images: Any) -> None: ...

    def decided(self, *of_decision: Any) -> None: ...

    def sent(self, chunk: TimedChunk) -> None:
        self.chunks.append(chunk)

    @property
    def led(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Targets of a person, 50 a second."""
        led = [each for each in self.chunks if led_tick(each.chunk_id) is not None]
        return np.concatenate([each.positions for each in led])


class Repeats:
    """Decides on rows that it was given, and stays at the last."""

    info = EngineInfo()

    def __init__(self, rows: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        self._rows = rows

    def decide(self, query: Query) -> Decision:
        at = np.minimum(np.arange(CHUNK) + CHUNK * query.index, len(self._rows) - 1)
        return Decision(self._rows[at], 0.04, (), 0, "", "demonstrator")


class Waits(Repeats):
    """Stays where it began."""

    def __init__(self) -> None: ...

    def decide(self, query: Query) -> Decision:
        rows = np.repeat(query.observation.state[None], CHUNK, axis=0)
        return Decision(rows, 0.04, (), 0, "", "demonstrator")


class Wild(Waits):
    """Asks for what the gate refuses."""

    def decide(self, query: Query) -> Decision:
        decision = super().decide(query)
        return replace(decision, positions=decision.positions + 1.0)


class Booth:
    """Makes episodes of one scene."""

    def __init__(self, env: SimEnv, rig: RigSpec, types: Typestore, folder: Path) -> None:
        self.env, self.rig, self.types, self.folder = env, rig, types, folder

    def record(self, seed: int, policy: Any, person: Person | None, engine: str) -> Targets:
        """Record an episode below a folder of the engine's name; return what was sent."""
        store = EpisodeStore(self.folder / engine, self.types, clock=lambda: self.env.time_ns)
        task, sent = load_task(TASK, config_folder("tasks")), Targets()
        bag = TrialBag(
            store,
            self.types,
            self.rig,
            task,
            image_size=64,
            prompt=PROMPT,
            seed=seed,
            engine=engine,
        )
        trial = self.env.run(goal(seed), seed, policy, [bag, sent], person=person)
        bag.finish(trial.outcome.outcome, trial.episode_score)
        return sent


@pytest.fixture
def booth(env: SimEnv, rig: RigSpec, types: Typestore, tmp_path: Path) -> Booth:
    return Booth(env, rig, types, tmp_path)


def test_what_a_person_shows_teaches_what_a_trial_of_the_same_motion_does(booth: Booth) -> None:
    """Number by number: actions, when they are due, and from where on they are learned."""
    checkpoint = load_checkpoint(config_folder("models") / "tiny")
    shown = booth.record(4, Waits(), Person(booth.rig, 0.0), TELEOPERATION)
    booth.record(4, Repeats(shown.led[::2]), None, "demonstrator")
    entries = []
    for engine in (TELEOPERATION, "demonstrator"):
        data = DataConfig(demonstrations=(str(booth.folder / engine),), held_out=0.0)
        entries.append(index_episodes(data, checkpoint.config, checkpoint.text).entries)
    for led, tried in zip(*entries, strict=True):
        assert led.pool == tried.pool == "demonstration"
        assert led.led is not None and led.led.all()
        one, other = led.windows, tried.windows
        assert isinstance(one, EpisodeWindows) and isinstance(other, EpisodeWindows)
        count = min(len(one), len(other))  # the trial ends where the task is done
        assert count > 250
        np.testing.assert_array_equal(
            led.starts[led.starts < count - CHUNK], tried.starts[tried.starts < count - CHUNK]
        )
        np.testing.assert_array_equal(
            one.steps.times_ns[:count] - one.steps.times_ns[0],
            other.steps.times_ns[:count] - other.steps.times_ns[0],
        )
        for start in range(count - CHUNK):
            chunk, same = one.chunk(start, CHUNK), other.chunk(start, CHUNK)
            np.testing.assert_array_equal(chunk, same)
            # The arms were where they are in the trial, but for how a target is approached.
            now, then = one.at(start), other.at(start)
            assert np.abs(now.state - then.state).max() < 0.05, start


def test_a_trial_that_goes_wrong_is_corrected(booth: Booth) -> None:
    """The person takes over at rest, within the rig's limits; the episode tells whose it was."""
    sent = booth.record(3, Waits(), Person(booth.rig, 3.0), "cosmos")
    (path,) = sorted((booth.folder / "cosmos").glob("*_either_cube_*"))
    episode = read_episode(path)
    assert episode.quality.go, episode.quality.reasons
    assert episode.score is not None and episode.score.success
    windows = EpisodeWindows(episode)
    led = windows.steps.led
    assert not led[:100].any() and led[100:].all() and len(led) > 300
    before, targets = sent.chunks[1].positions[-1], sent.led
    speeds = np.diff(targets, axis=0, prepend=before[None]) * booth.rig.teleoperation.rate
    assert (np.abs(speeds) <= booth.rig.max_velocity * (1 + 1e-9)).all()
    found = {
        hg: [
            entry.pool
            for entry in index_episodes(
                DataConfig(
                    demonstrations=(),
                    rollouts=(str(booth.folder / "cosmos"),),
                    hg_dagger=hg,
                    recap_seconds=2.0,
                ),
                *_tiny(),
            ).entries
        ]
        for hg in (False, True)
    }
    assert found == {False: ["success"], True: ["success", "correction"]}


def _tiny() -> tuple[Any, Any]:
    checkpoint = load_checkpoint(config_folder("models") / "tiny")
    return checkpoint.config, checkpoint.text


def test_what_the_policy_did_not_do_is_not_counted_as_its_own(env: SimEnv, rig: RigSpec) -> None:
    trial = env.run(goal(3), 3, Waits(), person=Person(rig, 3.0))
    assert (trial.reached, trial.corrected, trial.success) == (0, 4, False)
    assert (trial.score, trial.episode_score) == (0.0, 100.0)
    assert trial.outcome.outcome == "taken_over" and not trial.crashed
    assert trial.outcome.message == "a person took over after 0 of 4 stages, and reached 4"
    refused = env.run(goal(3), 3, Wild(), person=Person(rig, 100.0))
    assert (refused.corrected, refused.refused, refused.chunks) == (4, 1, 0)


def test_where_nothing_is_to_be_seen_open_hands_go_back_to_the_start(
    env: SimEnv, rig: RigSpec
) -> None:
    sent = Targets()
    trial = env.run(goal(3), 3, Waits(), [sent], condition="covered", person=Person(rig, 0.0))
    assert (trial.outcome.outcome, trial.corrected) == ("taken_over", 0)
    assert trial.seconds == pytest.approx(0.2 + TRIES * (BACK + CALM), abs=0.1)
    arms = sent.led[-1].reshape(2, 7)
    np.testing.assert_allclose(arms[:, :6], np.tile(START_POSE, (2, 1)), atol=0.01)
    np.testing.assert_allclose(arms[:, 6], 1.0, atol=0.01)


def test_an_evaluation_keeps_what_was_corrected(tmp_path: Path) -> None:
    contender = Contender("demonstrator", engine="demonstrator")
    with pytest.raises(ValueError, match="keep: corrections needs corrected_after"):
        EvaluationConfig(TASK, (contender,), keep="corrections")
    config = EvaluationConfig(
        TASK, (contender,), trials=1, keep="corrections", corrected_after=2.0, processes=0
    )
    (result,) = evaluate(config, tmp_path)
    assert (result.outcome, result.success) == ("taken_over", False)
    assert result.episode and Path(result.episode).is_relative_to(tmp_path / ROLLOUTS)
