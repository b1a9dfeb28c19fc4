"""What ``cosmos run`` prints of a run beside its table."""

from __future__ import annotations

from math import nan
from types import SimpleNamespace
from typing import Any

from cosmos_policy_ros.cli.run import searches


def candidate(value: float, dropped: str = "", finished: bool = True) -> SimpleNamespace:
    return SimpleNamespace(value=value, dropped=dropped, finished=finished)


def decided(chosen: int, *candidates: Any, search: str = "{candidates: 4}") -> SimpleNamespace:
    return SimpleNamespace(search=search, chosen=chosen, candidates=candidates, evaluations=60)


def test_a_line_per_search_says_what_was_chosen_and_what_came_of_it() -> None:
    first = decided(1, candidate(0.25), candidate(0.75), candidate(nan, finished=False))
    second = decided(0, candidate(0.5), candidate(0.125, "round"), candidate(nan, "sieve"))
    assert list(searches([(first, 0), (second, 2)], 2)) == [
        "search      values of the candidates: [chosen], (left out before it had all of them)",
        "  chunk  1  0.25  [0.75]  late   60 evaluations; stage 2 reached",
        "  chunk  2  [0.50]  (0.12)  (none)   60 evaluations",
    ]
    assert list(searches([(decided(0, candidate(0.5), search=""), 0)], 4)) == []
