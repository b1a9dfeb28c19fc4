"""Other searches in the place of recorded ones: their choices, and what those were found worth."""

from __future__ import annotations

import math
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
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.evaluation.search_comparison import (
    NO_SEARCH,
    RecordedSearch,
    Signals,
    choices,
    gain_kept,
    read_searches,
    signal_table,
    signals,
    table,
)
from cosmos_policy_ros.inference.cosmos_engine import SearchEngine
from cosmos_policy_ros.inference.spec import Adaptive, Round, SearchConfig, parse_search
from cosmos_policy_ros.model.policy import CosmosPolicy
from cosmos_policy_ros.nodes.convert import decision_to_message
from cosmos_policy_ros.planning.search import run_search

CONFIG = SearchConfig(candidates=4, futures=2, future_steps=2, values=2, value_steps=2)


@pytest.fixture(scope="module")
def engine() -> SearchEngine:
    policy = CosmosPolicy.load(TINY, denoising_steps=1)
    return SearchEngine(policy, policy, CONFIG)


@pytest.fixture(scope="module")
def recorded(engine: SearchEngine) -> list[RecordedSearch]:
    found = []
    for seed in (195, 300, 400):
        query = query_of(seed=seed)
        message = decision_to_message(run_search(engine, query, CONFIG), query, "run", "run/0", {})
        found.append(RecordedSearch(Path("bag"), message, query.observation))
    return found


def test_a_search_chooses_what_it_would_have_chosen(
    engine: SearchEngine, recorded: list[RecordedSearch]
) -> None:
    two = replace(CONFIG, candidates=2)
    none, same, fewer = choices(recorded, engine, {"same": CONFIG, "two": two})
    assert (none.name, none.evaluations, list(none.chosen)) == (NO_SEARCH, 1, [0, 0, 0])
    assert list(same.chosen) == [each.message.chosen for each in recorded]
    # A candidate's values do not depend on how many others there are.
    assert list(fewer.chosen) == [int(np.argmax(each.values[:2])) for each in recorded]
    assert any(fewer.chosen != same.chosen), "the third or fourth was the best of some"
    # Of the released code's two steps one is taken, and of an ensemble's two members each one.
    assert (same.evaluations, fewer.evaluations) == (4 * 7, 2 * 7)
    lines = table(recorded, [none, same, fewer])
    assert lines[1] == f"`{CONFIG.text()}`"
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    assert "| 28 " in rows["same"]
    assert "3 of 3" in rows["same"]
    assert "100 % (100 to 100)" in rows["same"]
    assert "0 % (0 to 0)" in rows[NO_SEARCH]
    assert rows["recorded"].split("|")[2:] == rows["same"].split("|")[2:]


def test_more_than_was_recorded_cannot_be_judged(
    engine: SearchEngine, recorded: list[RecordedSearch]
) -> None:
    with pytest.raises(RolloutError, match="search many: has 5 proposals, and what only 4 are"):
        list(choices(recorded, engine, {"many": replace(CONFIG, candidates=5)}))
    copies = replace(CONFIG, proposals=2, perturbation=0.1)
    with pytest.raises(RolloutError, match="search copies: has perturbed copies"):
        list(choices(recorded, engine, {"copies": copies}))


def valued(chosen: int, *values: float) -> RecordedSearch:
    candidates = [SimpleNamespace(value=value) for value in values]
    message = SimpleNamespace(candidates=candidates, chosen=chosen)
    return RecordedSearch(Path("bag"), message, query_of().observation)


def test_the_gain_is_over_the_base_seed() -> None:
    found = [valued(1, 0.5, 0.9, 0.7), valued(0, 0.6, 0.2, 0.1), valued(2, 0.0, 0.3, 0.6)]
    assert gain_kept(found, np.array([1, 0, 2])) == (1.0, 1.0, 1.0)
    # 0.2 of 0.4, 0.4 lost of nothing, and 0.3 of 0.6.
    kept = gain_kept(found, np.array([2, 1, 1]))
    assert kept.value == pytest.approx(0.1)
    assert kept.low < kept.value < kept.high
    assert np.isnan(gain_kept(found[1:2], np.array([0])).value), "there was nothing to gain"


def test_an_episode_without_a_search_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    types = load_types(package_share() / "msg")
    writing = Writing(EpisodeStore(tmp_path, types), types)
    writing.seconds(0.2)
    writing.decision(100, "", engine="demonstrator")
    bag = writing.recording.finish("time_limit")
    with pytest.raises(RolloutError, match="none of 1 episodes has a decision of a search"):
        read_searches([bag])
    command = ["compare-searches", str(bag), "--searches", "best_of_8_quick"]
    assert cosmos.main(command) == 1
    assert "record some with planning:=best_of_8" in capsys.readouterr().err
    assert cosmos.main([*command[:-1], "best_of_8_quik"]) == 1
    assert "did you mean 'best_of_8_quick'" in capsys.readouterr().err


def test_searches_are_compared_one_at_a_time(
    recorded: list[RecordedSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = parse_search(recorded[0].message.search, "it")
    strange = replace(other, candidates=3).text()
    messages = [recorded[0].message, decision_like(recorded[1].message, search=strange)]
    folder = "cosmos_policy_ros.evaluation.search_comparison"
    monkeypatch.setattr(f"{folder}.decisions", lambda path: iter([messages[int(path.name)]]))
    monkeypatch.setattr(f"{folder}.observations", lambda path: iter([recorded[0].seen]))
    assert len(read_searches([Path("0")])) == 1
    with pytest.raises(RolloutError, match=r"1: has a decision with search .*candidates: 3"):
        read_searches([Path("0"), Path("1")])
    nan = [replaced(candidate, value=math.nan) for candidate in recorded[0].message.candidates]
    for spoilt in ({"chosen": 4}, {"chosen": -1}, {"candidates": nan}):
        messages[0] = decision_like(recorded[0].message, **spoilt)
        with pytest.raises(RolloutError, match="0: has a decision that chose candidate"):
            read_searches([Path("0")])


def replaced(candidate: object, **changes: object) -> SimpleNamespace:
    return SimpleNamespace(finished=candidate.finished, **changes)  # type: ignore[attr-defined]


def decision_like(message: object, **changes: object) -> SimpleNamespace:
    names = (
        "candidates",
        "chosen",
        "search",
        "checkpoint_digest",
        "world_model_digest",
        "numerics",
    )
    return SimpleNamespace(**{name: getattr(message, name) for name in names} | changes)


def test_a_signal_that_knows_where_it_matters_keeps_all_of_the_gain(
    engine: SearchEngine, recorded: list[RecordedSearch]
) -> None:
    found = [valued(1, 0.5, 0.9), valued(0, 0.6, 0.2), valued(0, 0.6, 0.2), valued(0, 0.6, 0.1)]
    knows = np.array([3.0, 1.0, 2.0, 0.0])
    rows = signal_table(found, Signals(knows, -knows, -knows))
    words = {line.split("|")[1].strip(): line.split("|")[2:4] for line in rows[2:]}
    assert words["variance above 2.25"] == [" 25 % ", " 100 % (100 to 100) "]
    assert words["distance above -0.75"] == [" 25 % ", " 0 % (0 to 0) "]
    assert words["value below -2.25"] == [" 25 % ", " 100 % (100 to 100) "]
    # With one denoising step nothing is known of the variance.
    measured = signals(recorded, engine)
    assert np.isnan(measured.variance).all()
    assert (measured.distance > 0).all() and np.isfinite(measured.value).all()
    assert not any("variance" in line for line in signal_table(recorded, measured))


@pytest.mark.parametrize(
    "partial",
    [
        {"proposals": 6},
        {"proposals": 2, "perturbation": 0.1},
        {"rounds": (Round(1, 1, 2),)},
        {"adaptive": Adaptive(4, value=0.0)},
        {"depth": 2, "beam": 1},
    ],
)
def test_a_search_that_leaves_something_out_is_no_measure(
    recorded: list[RecordedSearch], monkeypatch: pytest.MonkeyPatch, partial: dict[str, Any]
) -> None:
    """Perturbed copies, which nothing drops, were taken for proposals."""
    message = decision_like(recorded[0].message, search=replace(CONFIG, **partial).text())
    folder = "cosmos_policy_ros.evaluation.search_comparison"
    monkeypatch.setattr(f"{folder}.decisions", lambda _: iter([message]))
    monkeypatch.setattr(f"{folder}.observations", lambda _: iter([recorded[0].seen]))
    with pytest.raises(RolloutError, match="leaves something out"):
        read_searches([Path("bag")])
