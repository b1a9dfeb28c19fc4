"""Trials spread over a Ray cluster, here one of this machine alone: the results are the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from helpers.forked import forked_evaluations

from cosmos_policy_ros.core.errors import ConfigError, CosmosPolicyError
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.evaluation import evaluate as evaluation
from cosmos_policy_ros.evaluation.contenders import Contender
from cosmos_policy_ros.evaluation.evaluate import _check_shared, evaluate
from cosmos_policy_ros.evaluation.results import Result
from cosmos_policy_ros.evaluation.sim_room import EvaluationConfig
from cosmos_policy_ros.inference.ray_host import connect

CONFIG = EvaluationConfig(
    "either_cube", (Contender("good", "demonstrator"),), trials=2, chunks=1, processes=0, keep="all"
)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = connect("local")
    yield ray
    ray.shutdown()


def without_clock(results: list[Result]) -> list[Result]:
    """Return them in one order and without what differs from run to run anyway."""
    known = [replace(r, thinking=0.0, episode="") for r in results]
    return sorted(known, key=lambda r: r.key)


def test_trials_are_the_same_on_a_cluster(ray: Any, tmp_path: Path) -> None:
    for name in ("alone", "spread"):
        (tmp_path / name).mkdir()
    alone = evaluate(CONFIG, tmp_path / "alone")
    spread = evaluate(replace(CONFIG, ray="local", processes=2), tmp_path / "spread")
    assert without_clock(spread) == without_clock(alone)
    assert {(result.outcome, result.chunks) for result in spread} == {("chunk_limit", 1)}
    folders = {Path(result.episode).parent for result in spread}
    # Of an actor each.
    assert {path.parent.name for path in folders} == {"good"}
    for result in spread:
        score = read_episode(Path(result.episode)).score
        assert score is not None
        assert score.points == result.score
    assert not list((tmp_path / "spread").glob(".same*"))


def test_what_a_contender_refuses_is_said_here(ray: Any, tmp_path: Path) -> None:
    wrong = replace(CONFIG, contenders=(Contender("x", checkpoint="/nowhere"),), ray="local")
    with pytest.raises(CosmosPolicyError, match="/nowhere"):
        evaluate(wrong, tmp_path)


def test_a_folder_that_is_not_shared_takes_no_bags(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="that all machines share, or keep: none"):
        _check_shared(tmp_path, "token")


def die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_told_in_a_sentence(tmp_path: Path) -> None:
    """A traceback of the process pool reached the operator."""
    killed = replace(CONFIG, processes=1, keep="none")
    with (
        forked_evaluations(),
        patch.object(evaluation, "_make", die),
        pytest.raises(CosmosPolicyError, match="was killed"),
    ):
        evaluate(killed, tmp_path)
