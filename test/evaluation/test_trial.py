"""A trial in one process: it goes as on the graph, ends as it should, and is recorded whole."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers.policy_servers import PolicyServer, openpi, swing
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.errors import ConfigError, ObservationError, RemoteError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.task import load_task
from cosmos_policy_ros.dataset.gate_replay import check_episode
from cosmos_policy_ros.dataset.playback import decisions, observations
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.evaluation.contenders import Contender, load_policy, rig_of
from cosmos_policy_ros.evaluation.trial import JUDGE, SimEnv, Timing, Trial, TrialBag
from cosmos_policy_ros.model.images import reduce
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.decision import Decision, EngineInfo, Query
from cosmos_policy_ros.rig.execution import Execution
from cosmos_policy_ros.rig.observation import Observation
from cosmos_policy_ros.rig.run import Goal
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.sim.demonstrator import Demonstrator
from cosmos_policy_ros.sim.render import Image
from cosmos_policy_ros.sim.rig import JointSample
from cosmos_policy_ros.sim.tasks import conditions

TASK, PROMPT = "either_cube", "hand over a cube"


def goal(**changes: object) -> Goal:
    return replace(Goal("run", TASK, PROMPT, 20.0, 0, 3), **changes)  # type: ignore[arg-type]


class Asked(Demonstrator):
    """A demonstrator that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: list[Query] = []

    def decide(self, query: Query) -> Decision:
        self.queries.append(query)
        return super().decide(query)


class Notes:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.joint_stamps: list[int] = []
        self.seen: dict[int, dict[str, Image]] = {}
        self.chunks: list[TimedChunk] = []
        self.decided_for: list[str] = []

    def joints(self, side: str, sample: JointSample) -> None:
        if side == "left":
            self.joint_stamps.append(sample.stamp_ns)

    def images(self, stamp_ns: int, images: dict[str, Image]) -> None:
        self.seen[stamp_ns] = images

    def decided(self, decision: Decision, query: Query, chunk_id: str, seconds: float) -> None:
        self.decided_for.append(chunk_id)

    def sent(self, chunk: TimedChunk) -> None:
        self.chunks.append(chunk)


def trial_bag(store: EpisodeStore, types: Typestore, rig: RigSpec, engine: str) -> TrialBag:
    task = load_task(TASK, config_folder("tasks"))
    return TrialBag(store, types, rig, task, image_size=64, prompt=PROMPT, seed=3, engine=engine)


class Recorded(NamedTuple):
    """A demonstrator's trial, what it was asked, what an observer saw, and its bag."""

    trial: Trial
    queries: list[Query]
    notes: Notes
    bag: Path


@pytest.fixture(scope="module")
def recorded(
    env: SimEnv, rig: RigSpec, types: Typestore, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    notes, policy = Notes(), Asked()
    store = EpisodeStore(tmp_path_factory.mktemp("bags"), types, clock=lambda: env.time_ns)
    bag = trial_bag(store, types, rig, "demonstrator")
    trial = env.run(goal(), 3, policy, [bag, notes])
    path = bag.finish(trial.outcome.outcome, trial.score)
    return Recorded(trial, policy.queries, notes, path)


def test_the_demonstrator_succeeds_and_an_observer_sees_all_of_it(recorded: Recorded) -> None:
    trial, queries, notes, _ = recorded
    assert (trial.outcome.outcome, trial.score, trial.success) == ("done", 100.0, True)
    assert trial.chunks == len(notes.chunks) == len(queries) in (5, 6)
    assert len(trial.thinking) == trial.chunks
    assert trial.seconds == pytest.approx(0.2 + 2.0 * trial.chunks)
    assert set(np.diff(notes.joint_stamps)) == {10_000_000}
    assert set(np.diff(list(notes.seen))) == {40_000_000}
    # Each chunk begins at its query, and the next query when it has been executed.
    for query, chunk in zip(queries, notes.chunks, strict=True):
        assert query.observation.stamp_ns == chunk.start_ns
    for chunk, query in zip(notes.chunks, queries[1:], strict=False):
        assert query.observation.stamp_ns == chunk.end_ns
    # The policy sees what the cameras saw; observers what the model makes of it.
    first = queries[0].observation
    assert first.images["primary"].shape == (240, 320, 3)
    np.testing.assert_array_equal(
        notes.seen[first.stamp_ns]["primary"], reduce(first.images["primary"], 64)
    )


def test_who_watches_changes_nothing(env: SimEnv) -> None:
    def chunks(*observers: Notes) -> list[np.ndarray]:
        notes = Notes()
        env.run(goal(chunk_limit=1), 5, Demonstrator(), [notes, *observers])
        return [chunk.positions for chunk in notes.chunks]

    alone, watched = chunks(), chunks(Notes())
    np.testing.assert_array_equal(alone, watched)
    assert env.run(goal(chunk_limit=1), 5, Demonstrator()).outcome.outcome == "chunk_limit"


@pytest.mark.parametrize("name", ["one_outside", "both_outside", "distractors"])
def test_every_harder_condition_can_be_done(env: SimEnv, name: str) -> None:
    assert env.run(goal(), 1, Demonstrator(jitter=0.0), condition=name).success


def test_conditions_look_different_and_covered_cameras_show_nothing(env: SimEnv) -> None:
    images = {}
    for name in conditions(TASK):
        notes = Notes()
        env.run(goal(), 1, Fails(), [notes], condition=name)
        images[name] = next(iter(notes.seen.values()))["primary"].astype(int)
    usual = images.pop("usual")
    assert images.pop("covered").max() < 10
    for name, image in images.items():
        assert np.abs(image - usual).max() > 60, name


class Hold:
    """Never moves."""

    @property
    def info(self) -> EngineInfo:
        return EngineInfo()

    def decide(self, query: Query) -> Decision:
        rows = np.repeat(query.observation.state[None], 50, axis=0)
        return Decision(rows, 0.04, (), 0, "", "demonstrator")


class Fails(Hold):
    """Cannot answer."""

    def decide(self, query: Query) -> Decision:
        raise ObservationError("nothing to be seen")


class Leaps(Hold):
    """Asks for what the gate refuses."""

    def decide(self, query: Query) -> Decision:
        decision = super().decide(query)
        return replace(decision, positions=decision.positions + 1.0)


def test_a_scene_looks_the_same_whatever_was_tried_before_it(env: SimEnv) -> None:
    """Else a trial made again, or after another contender's, is another trial."""
    seen: list[dict[str, np.ndarray]] = []

    class Watching(Demonstrator):
        def decide(self, query: Query) -> Decision:
            seen.append({role: image.copy() for role, image in query.observation.images.items()})
            return super().decide(query)

    for scene, chunks in ((7, 1), (8, 2), (7, 1)):
        env.run(Goal("run", "transfer_cube", "", 20.0, chunks, 1), scene, Watching(jitter=0.0))
    assert len(seen) == 4
    for role, image in seen[0].items():
        assert np.array_equal(image, seen[3][role]), role


def test_a_policy_that_does_nothing_runs_out_of_time(env: SimEnv) -> None:
    trial = env.run(goal(time_limit=4.0), 0, Hold())
    assert (trial.outcome.outcome, trial.chunks, trial.score) == ("time_limit", 2, 0.0)
    assert not trial.crashed


@pytest.mark.parametrize(
    ("policy", "words", "refused"),
    [(Fails(), "nothing to be seen", 0), (Leaps(), "3 chunks refused in a row", 3)],
)
def test_faults_are_no_failures_of_skill_but_refused_chunks_are(
    env: SimEnv, policy: Hold, words: str, refused: int
) -> None:
    trial = env.run(goal(), 0, policy)
    assert trial.crashed == (not refused)
    assert words in trial.outcome.message
    assert (trial.chunks, trial.refused) == (0, refused)


def test_a_trials_bag_holds_what_was_seen_and_told(recorded: Recorded) -> None:
    trial, queries, notes, bag = recorded
    episode = read_episode(bag)
    assert episode.score is not None
    assert (episode.score.points, episode.score.success) == (100.0, True)
    assert episode.score.operator_name == JUDGE
    assert (episode.metadata.prompt, episode.metadata.seed) == (PROMPT, 3)
    windows = EpisodeWindows(episode)
    np.testing.assert_allclose(
        windows.steps.actions[:50], notes.chunks[0].positions, rtol=0, atol=1e-9
    )
    assert len(windows) == 50 * trial.chunks
    for query in queries:
        seen = windows.observe(query.observation.stamp_ns)
        np.testing.assert_allclose(seen.state, query.observation.state, atol=1e-12)
        for role, image in seen.images.items():
            np.testing.assert_array_equal(image, reduce(query.observation.images[role], 64))


class Ponders(Hold):
    """Takes its time."""

    def decide(self, query: Query) -> Decision:
        time.sleep(0.3)
        return super().decide(query)


def test_what_a_policy_takes_can_be_charged_to_the_rigs_clock(env: SimEnv) -> None:
    free = env.run(goal(chunk_limit=3), 0, Ponders())
    charged = env.run(goal(chunk_limit=3), 0, Ponders(), timing=Timing(charged=True))
    assert min(charged.thinking) >= 0.3
    assert free.idle == 0.0 and free.seconds == pytest.approx(6.2)
    tick = 0.01  # s, to the next one of which each answer is rounded up
    assert charged.seconds == pytest.approx(6.2 + sum(charged.thinking), abs=3 * tick)
    assert charged.idle == pytest.approx(sum(charged.thinking[1:]), abs=2 * tick)


def test_a_remote_policys_trial_executes_its_own_rows(
    env: SimEnv, rig: RigSpec, types: Typestore, tmp_path: Path
) -> None:
    """25 rows at 50 Hz, at rest and in motion, and the bag is one like any other."""
    with PolicyServer(openpi(swing)) as server:
        contender = Contender("pi0", "remote", remote=f"openpi://127.0.0.1:{server.port}")
        policy, executing = load_policy(contender, 1), rig_of(contender, rig)
        assert (executing.rates.chunk_steps, executing.rates.dt) == (25, 0.02)
        for timing in (Timing(), Timing(Execution("asynchronous"), lambda: 0.1)):
            store = EpisodeStore(tmp_path, types, clock=lambda: env.time_ns)
            bag, notes = trial_bag(store, types, rig, "remote"), Notes()
            trial = env.run(
                goal(chunk_limit=4), 3, policy, [bag, notes], timing=timing, rig=executing
            )
            assert (trial.outcome.outcome, trial.chunks, trial.refused) == ("chunk_limit", 4, 0)
            assert {each.dt for each in notes.chunks} == {0.02}
            episode = read_episode(bag.finish(trial.outcome.outcome, trial.score))
            assert episode.quality.go, episode.quality.reasons
            windows = EpisodeWindows(episode)
            whole = 12 * 4 if timing.latency is None else round(trial.seconds / 0.04) - 9
            assert len(windows) == pytest.approx(whole, abs=2)
            assert check_episode(episode.path).judged == -(-len(windows) // 50)
        refused = env.run(goal(), 3, policy)  # on the rig as its file says
        assert refused.outcome.message.startswith("3 chunks refused in a row")
        assert "takes (50, 14) at 0.04 s" in refused.outcome.message


def test_a_remote_contender_needs_a_server() -> None:
    with pytest.raises(ValueError, match="go together"):
        Contender("pi0", "remote")
    with pytest.raises(ValueError, match="go together"):
        Contender("mine", checkpoint="tiny", remote="openpi://localhost")
    with pytest.raises(ConfigError, match="no URL"):
        load_policy(Contender("pi0", "remote", remote="localhost"), 1)
    with PolicyServer(openpi(swing)) as server:
        pass
    with pytest.raises(RemoteError, match="no connection"):
        load_policy(Contender("pi0", "remote", remote=f"openpi://127.0.0.1:{server.port}"), 1)


def test_a_bag_has_the_decisions_and_what_each_was_made_of(recorded: Recorded) -> None:
    """None were in it: a search in the simulator could not be looked at, nor made again."""
    found = list(decisions(recorded.bag))
    seen = list(observations(recorded.bag))
    assert len(found) == len(recorded.queries)
    for message, observation, query in zip(found, seen, recorded.queries, strict=True):
        assert isinstance(observation, Observation)
        assert message.observation_digest == observation.digest()
        np.testing.assert_array_equal(observation.state, query.observation.state)
        assert message.candidates[message.chosen].seed == query.seed
    sent = [chunk.chunk_id for chunk in recorded.notes.chunks]
    assert [message.chunk_id for message in found] == recorded.notes.decided_for == sent
