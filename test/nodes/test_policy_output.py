"""What the policy node sends, or leaves alone, when a keeper says that it holds the arms."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode

from cosmos_policy_ros.nodes.policy_output import PolicyOutput
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.clock import NS, SteadyClock
from cosmos_policy_ros.rig.spec import RigSpec

POSE = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.5] * 2)


class Surroundings:
    """The time, the arms that report now and then, and a keeper that says it holds them."""

    def __init__(self) -> None:
        self.now_ns, self.reported_ns, self.pose = 10 * NS, 0, POSE

    def measured(self) -> NDArray[np.float64]:
        return self.pose

    def state_age(self, now_ns: int) -> float:
        return (now_ns - self.reported_ns) / NS

    def holding(self) -> str:
        return "this node was kept waiting, and the arm guard holds the arms"


@pytest.fixture
def around() -> Surroundings:
    return Surroundings()


@pytest.fixture
def output(rig: RigSpec, around: Surroundings) -> Iterator[PolicyOutput]:
    """Armed, its arms' last report long ago, and about to brake."""
    node = LifecycleNode("policy_node_alone")
    clock = SteadyClock(lambda: around.now_ns, lambda: around.now_ns)
    output = PolicyOutput(
        node,
        rig,
        around,  # type: ignore[arg-type]
        around,  # type: ignore[arg-type]
        clock,
        lambda _: None,
        dry=False,
    )
    output.armed = True
    output.brake(TimedChunk.hold("run/0", around.now_ns, 0.04, POSE, POSE, rig.max_velocity))
    yield output
    node.destroy_node()


def sent_after(
    output: PolicyOutput, around: Surroundings, reports: list[float], speed: float = 0.0
) -> float | None:
    """Let the arms report at these seconds; return when something was sent to them."""
    began_ns = around.now_ns
    for at in reports:
        around.now_ns = around.reported_ns = began_ns + round(at * NS)
        around.pose = POSE + speed * at
        output.watch()
        if output.path is not None:
            return at
    return None


def every(period: float, first: float = 0.0) -> list[float]:
    return list(itertools.takewhile(lambda at: at < 3, itertools.count(first, period)))


def test_arms_at_rest_are_left_alone(output: PolicyOutput, around: Surroundings) -> None:
    assert sent_after(output, around, every(0.02)) is None


def test_arms_at_rest_that_are_heard_of_late_are_left_alone(
    output: PolicyOutput, around: Surroundings
) -> None:
    """A node that was kept waiting hears of them again when others let it."""
    assert sent_after(output, around, [0.0, 0.3, *every(0.02, 0.6)]) is None


def test_arms_that_go_on_moving_are_held(output: PolicyOutput, around: Surroundings) -> None:
    held = sent_after(output, around, every(0.02), speed=0.5)
    assert held == pytest.approx(0.4, abs=0.021)


def test_arms_of_which_it_stays_unknown_are_held(
    output: PolicyOutput, around: Surroundings
) -> None:
    assert sent_after(output, around, every(0.25)) == pytest.approx(1.0)
