"""Pins that a file that does not fit is told in words that an operator can read."""

from __future__ import annotations

from cosmos_policy_ros.model.strict import summarise


def test_names_that_differ_in_their_block_are_folded() -> None:
    names = [f"blocks.{i}.{part}" for i in (0, 1, 2, 5, 7, 8) for part in ("a", "b")]
    assert summarise([*names, "z", "blocks.3.c"]) == [
        "blocks.3.c",
        "blocks.{0-2,5,7-8}.a",
        "blocks.{0-2,5,7-8}.b",
        "z",
    ]
