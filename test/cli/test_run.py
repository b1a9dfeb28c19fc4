"""What ``cosmos run`` prints of a run beside its table."""

from __future__ import annotations

from argparse import Namespace
from math import nan
from types import SimpleNamespace
from typing import Any

import pytest

from cosmos_policy_ros.cli.run import choose_checkpoints, searches


def candidate(value: float, dropped: str = "", finished: bool = True) -> SimpleNamespace:
    return SimpleNamespace(value=value, dropped=dropped, finished=finished)


def decided(chosen: int, *candidates: Any, search: str = "{candidates: 4}") -> SimpleNamespace:
    return SimpleNamespace(search=search, chosen=chosen, candidates=candidates, evaluations=60)


def test_a_line_per_search_says_what_was_chosen_and_what_came_of_it() -> None:
    first = decided(1, candidate(0.25), candidate(0.75), candidate(nan, finished=False))
    second = decided(
        0,
        candidate(0.5),
        candidate(0.125, "round"),
        candidate(nan, "sieve"),
        candidate(nan, "gate"),
    )
    assert list(searches([(first, 0), (second, 2)], 2)) == [
        "search      values of the candidates: [chosen], (left out before it had all of them)",
        "  chunk  1  0.25  [0.75]  late   60 evaluations; stage 2 reached",
        "  chunk  2  [0.50]  (0.12)  (none)  refused   60 evaluations",
    ]
    assert list(searches([(decided(0, candidate(0.5), search=""), 0)], 4)) == []


@pytest.mark.parametrize(
    ("given", "checkpoint", "world_model"),
    [
        ({}, "tiny", None),
        ({"planning": "best_of_8"}, "tiny", "tiny_planner"),
        ({"planning": "best_of_8", "world_model": "mine"}, "tiny", "mine"),
        ({"planning": "best_of_8", "checkpoint": "mine"}, "mine", None),
        ({"planning": "best_of_8", "task": "insertion"}, None, None),
        ({"engine": "demonstrator"}, None, None),
        ({"remote": "act://127.0.0.1:8777"}, None, None),
    ],
)
def test_what_ships_is_used_where_it_knows_the_task(
    given: dict[str, str], checkpoint: str | None, world_model: str | None
) -> None:
    names = ("engine", "remote", "checkpoint", "planning", "world_model")
    options = Namespace(**{name: given.get(name) for name in names})
    options.task = given.get("task", "either_cube")
    choose_checkpoints(options)
    assert (options.checkpoint, options.world_model) == (checkpoint, world_model)
