"""A recorded decision is made again, and what differs is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.episodes import Writing
from helpers.search import TINY, query_of

from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.errors import CheckpointError, RolloutError
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.inference.cosmos_engine import SearchEngine
from cosmos_policy_ros.inference.spec import SearchConfig, parse_search
from cosmos_policy_ros.model.files import digest
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.nodes.convert import decision_to_message
from cosmos_policy_ros.planning import replay
from cosmos_policy_ros.planning.search import run_search
from cosmos_policy_ros.rig.decision import ActionPrefix, Candidate, Decision, Query


@pytest.fixture(scope="module")
def engine() -> SearchEngine:
    policy = CosmosPolicy.load(TINY, denoising_steps=1)
    return SearchEngine(policy, policy, SearchConfig())


@pytest.fixture(scope="module")
def decided(engine: SearchEngine) -> tuple[Query, Decision]:
    query = query_of()
    config = SearchConfig(candidates=3, futures=1, future_steps=1, values=2, value_steps=1)
    return query, run_search(engine, query, config)


def recorded(query: Query, decision: Decision, **changes: Any) -> Any:
    """Return a decision as a bag has it."""
    candidates = [
        SimpleNamespace(
            seed=c.seed, finished=c.finished, value=c.value, values=np.float32(c.values)
        )
        for c in decision.candidates
    ]
    fields = {
        "task": query.task,
        "prompt": query.prompt,
        "search": decision.search,
        "positions": decision.positions.ravel(),
        "chosen": decision.chosen,
        "reason": decision.reason,
        "candidates": candidates,
    }
    return SimpleNamespace(**{**fields, **changes})


def test_the_same_comes_out(engine: SearchEngine, decided: tuple[Query, Decision]) -> None:
    query, decision = decided
    difference = replay.replay(recorded(query, decision), query.observation, engine)
    assert difference.exact
    assert list(replay.lines(difference))[-1] == "the same decision, to the last bit"


def test_what_the_arms_were_committed_to_is_in_the_bag(
    engine: SearchEngine, decided: tuple[Query, Decision]
) -> None:
    query, decision = decided
    path = decision.positions + 0.01
    committed = ActionPrefix(path[:20], np.linspace(1.0, 0.1, 20), 0.8)
    in_motion = replace(query, committed=committed)
    config = parse_search(decision.search, "the test's")
    held = run_search(engine, in_motion, config)
    assert np.abs(held.positions - decision.positions).max() > 1e-3
    message = decision_to_message(held, in_motion, "run", "run/1", {})
    difference = replay.replay(message, query.observation, engine)
    np.testing.assert_array_equal(difference.chunk, 0.0)
    assert difference.same_choice
    older = recorded(query, decision)
    assert replay.replay(older, query.observation, engine).exact


def test_candidates_that_had_no_time_are_not_chosen(
    engine: SearchEngine, decided: tuple[Query, Decision]
) -> None:
    query, decision = decided
    candidates = list(decision.candidates)
    candidates[decision.chosen] = Candidate(candidates[decision.chosen].seed, finished=False)
    left = [i for i, c in enumerate(candidates) if c.finished]
    best = max(left, key=lambda i: candidates[i].value)
    fewer = replace(decision, candidates=tuple(candidates), chosen=best)
    difference = replay.replay(recorded(query, fewer), query.observation, engine)
    assert difference.same_choice
    assert not any(difference.values)
    assert "not finished in time" in "\n".join(replay.lines(difference))


def test_another_observation_is_noticed(
    engine: SearchEngine, decided: tuple[Query, Decision]
) -> None:
    query, decision = decided
    seen = replace(query.observation, state=query.observation.state + 1e-3)
    difference = replay.replay(recorded(query, decision), seen, engine)
    assert not difference.exact
    assert max(difference.values) > 0


def test_another_choice_is_told(engine: SearchEngine, decided: tuple[Query, Decision]) -> None:
    query, decision = decided
    other = (decision.chosen + 1) % 3
    difference = replay.replay(recorded(query, decision, chosen=other), query.observation, engine)
    assert not difference.same_choice
    words = f"ANOTHER CHOICE: candidate {other} then, {decision.chosen} now"
    assert list(replay.lines(difference))[-1] == words


def test_a_checkpoint_is_found_by_its_digest(tmp_path: Path) -> None:
    bag = episode(tmp_path)
    found = replay.find_checkpoint(bag, digest(TINY), "", "--checkpoint")
    assert Path(found) == TINY
    with pytest.raises(CheckpointError, match=r"no checkpoint with digest feed.*by --world-model"):
        replay.find_checkpoint(bag, "feed", str(TINY), "--world-model")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (1, "no decision 1: it has 1, 0 to 0"),
        (-1, "no decision -1"),
        (0, "was made by engine demonstrator, and only decisions of engine cosmos"),
    ],
)
def test_what_cannot_be_made_again_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], index: int, message: str
) -> None:
    bag = episode(tmp_path)
    assert cosmos.main(["replay-decision", str(bag), "--index", str(index)]) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(RolloutError):
        replay.recorded_decision(bag, index)


def episode(folder: Path) -> Path:
    """Return a bag with one decision, of the demonstrator."""
    types = load_types(package_share() / "msg")
    writing = Writing(EpisodeStore(folder, types), types)
    writing.seconds(0.2)
    writing.decision(100, "", engine="demonstrator")
    return writing.recording.finish("time_limit")
