"""Whose the arms are, and for how long their owner lends them."""

from __future__ import annotations

import pytest

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.ownership import Ownership


@pytest.fixture
def lent() -> Ownership:
    """The arms of policy node "a", which has sent one chunk and lends them now."""
    ownership = Ownership(patience=0.3)
    ownership.on_state("a", True, "run", (1, "run/0"), 0)
    ownership.lent = True
    return ownership


def test_a_lender_that_goes_on_speaking_goes_on_lending(lent: Ownership) -> None:
    for now in range(1, 50):
        lent.on_state("a", True, "run", (1, "run/0"), now * NS_PER_S // 10)
    assert lent.lent


@pytest.mark.parametrize(
    ("identity", "armed", "announced", "now"),
    [
        ("a", True, (2, "run/1"), 0.1),  # it commands the arms again
        ("a", False, (1, "run/0"), 0.1),  # disarmed
        ("b", True, (1, "other/0"), 0.5),  # it fell silent, and another took the arms
    ],
)
def test_what_ends_it(
    lent: Ownership, identity: str, armed: bool, announced: tuple[int, str], now: float
) -> None:
    lent.on_state(identity, armed, "run", announced, round(now * NS_PER_S))
    assert not lent.lent


@pytest.mark.parametrize("identity", ["", "b"])
def test_another_nodes_state_does_not(lent: Ownership, identity: str) -> None:
    lent.on_state(identity, True, "other", (5, "other/0"), NS_PER_S // 10)
    assert lent.lent
    assert lent.owner == "a"


def test_what_a_person_sends_is_taken_once_like_the_owners_own(lent: Ownership) -> None:
    lent.announce("teleoperation/1")
    assert lent.take("left", "teleoperation/1")
    assert not lent.take("left", "teleoperation/1")
    assert lent.take("right", "teleoperation/1")
    assert not lent.take("left", "teleoperation/2")
