"""What the policy node sends, or leaves alone, when a watchdog says that it holds the arms."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.nodes.policy_topics import PolicyOutput
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.clock import SteadyClock
from cosmos_policy_ros.rig.spec import RigSpec

POSE = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.5] * 2)
MOVES = np.array([1.0, 0, 0, 0, 0, 0, 0] * 2)  # the waists
WATCHDOG_HOLDS = "the arm interface holds the arms: it says so"


class Surroundings:
    """The time, the arms that report now and then, and a watchdog that may say it holds them."""

    def __init__(self) -> None:
        self.now_ns, self.reported_ns, self.pose, self.held = 10 * NS_PER_S, 10 * NS_PER_S, POSE, ""

    def measured(self) -> NDArray[np.float64]:
        return self.pose

    def state_age(self, now_ns: int) -> float:
        return (now_ns - self.reported_ns) / NS_PER_S

    def holding(self) -> str:
        return self.held


@pytest.fixture
def around() -> Surroundings:
    return Surroundings()


@pytest.fixture
def output(rig: RigSpec, around: Surroundings) -> Iterator[PolicyOutput]:
    """Armed, of arms that have reported at 10 s."""
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
    yield output
    node.destroy_node()


@pytest.fixture
def braking(rig: RigSpec, output: PolicyOutput, around: Surroundings) -> PolicyOutput:
    """Told to brake what it has not sent, while the watchdog says that it holds."""
    around.held, around.reported_ns = WATCHDOG_HOLDS, 0
    output.brake(TimedChunk.hold("run/0", around.now_ns, 0.04, POSE, POSE, rig.max_velocity))
    return output


def on_its_way(output: PolicyOutput, around: Surroundings, rig: RigSpec, speed: float) -> None:
    """Move both waists at ``speed`` [rad/s] for 2 s, and brake when the watchdog says it holds."""
    rows = POSE + speed * MOVES * np.arange(1, 51)[:, None] * 0.04
    chunk = TimedChunk("run/0", around.now_ns, 0.04, POSE, rows, rig.max_velocity)
    assert output.move(chunk) == ""
    for _ in range(25):
        around.now_ns = around.reported_ns = around.now_ns + NS_PER_S // 50
        around.pose = chunk.sample(around.now_ns)
        output.watch()
    around.held = WATCHDOG_HOLDS
    output.brake(chunk.brake(around.now_ns, 0.4))


def sent_after(
    output: PolicyOutput, around: Surroundings, reports: list[float], speed: float = 0.0
) -> float | None:
    """Let the arms report at these seconds; return when something was sent to them."""
    began_ns, before, pose = around.now_ns, output.path, around.pose
    for at in reports:
        around.now_ns = around.reported_ns = began_ns + round(at * NS_PER_S)
        around.pose = pose + speed * MOVES * at
        output.watch()
        if output.path is not before:
            return at
    return None


def every(period: float, first: float = 0.0) -> list[float]:
    return list(itertools.takewhile(lambda at: at < 4, itertools.count(first, period)))


def test_arms_at_rest_are_left_alone(braking: PolicyOutput, around: Surroundings) -> None:
    assert sent_after(braking, around, every(0.02)) is None


def test_arms_at_rest_that_are_heard_of_late_are_left_alone(
    braking: PolicyOutput, around: Surroundings
) -> None:
    """A node that was stopped for 3 s heard of them again after 0.8 to 1.0 s."""
    assert sent_after(braking, around, [1.1, 1.12, *every(0.02, 1.4)]) is None


def test_arms_that_go_on_moving_are_held(braking: PolicyOutput, around: Surroundings) -> None:
    held = sent_after(braking, around, every(0.02), speed=0.5)
    assert held == pytest.approx(0.4, abs=0.021)


def test_arms_of_which_it_stays_unknown_are_held(
    braking: PolicyOutput, around: Surroundings
) -> None:
    assert sent_after(braking, around, every(0.25)) == pytest.approx(3.0)


SLOW = 0.06  # rad/s; less than what counts as motion


def test_arms_that_follow_a_slow_path_are_not_seen_to_be_held(
    output: PolicyOutput, around: Surroundings, rig: RigSpec
) -> None:
    """The drill: a stray watchdog's word at the slow start of a motion, which then went on."""
    on_its_way(output, around, rig, SLOW)
    held = sent_after(output, around, every(0.02), speed=SLOW)
    assert held == pytest.approx(1.0, abs=0.021)


def test_a_stop_of_arms_on_a_slow_path_acts(
    output: PolicyOutput, around: Surroundings, rig: RigSpec
) -> None:
    on_its_way(output, around, rig, SLOW)
    before = output.path
    output.disarm()
    assert output.path is not before


def test_arms_that_rest_off_their_path_are_left_alone(
    output: PolicyOutput, around: Surroundings, rig: RigSpec
) -> None:
    on_its_way(output, around, rig, 0.5)
    before = output.path
    assert sent_after(output, around, every(0.02)[:45]) is None
    output.disarm()
    assert output.path is before
