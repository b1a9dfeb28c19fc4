"""A wall clock that is set, or a second /clock, changes no age and no place on a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.clock import JUMP_LIMIT, SimulatedClock, SteadyClock

BOOT = 5_000 * NS_PER_S  # a monotonic clock's time
WALL = 1_800_000_000 * NS_PER_S


class Machine:
    """Both clocks of a machine; readings take time, and now and then a long time."""

    def __init__(self) -> None:
        self.steady, self.offset = BOOT, WALL - BOOT
        self.interruption = 0

    def steady_ns(self) -> int:
        self.steady += 1_000
        return self.steady

    def ros_ns(self) -> int:
        self.steady += 1_000 + self.interruption
        return self.steady + self.offset

    def pass_time(self, seconds: float) -> None:
        self.steady += round(seconds * NS_PER_S)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@given(steps=st.lists(st.floats(-3600.0, 3600.0), max_size=5), waits=st.floats(0.0, 10.0))
def test_no_step_of_the_wall_clock_moves_it(steps: list[float], waits: float) -> None:
    machine = Machine()
    clock = SteadyClock(machine.ros_ns, machine.steady_ns)
    for step in steps:
        before = clock.now_ns()
        machine.offset += round(step * NS_PER_S)
        machine.pass_time(waits)
        assert 0 <= clock.now_ns() - before - waits * NS_PER_S < 1e6
        jumped = (machine.offset - (WALL - BOOT)) / NS_PER_S
        assert bool(clock.jump()) or abs(jumped) <= JUMP_LIMIT + 1e-4
        stamp = machine.ros_ns()
        receipt = clock.receipt(stamp)
        assert abs(receipt.received_ns - receipt.stamped_ns) < 1e6


@pytest.mark.parametrize("seconds", [-3600.0, -0.06, 0.06, 3600.0])
def test_a_jump_is_told_until_it_is_trusted(machine: Machine, seconds: float) -> None:
    clock = SteadyClock(machine.ros_ns, machine.steady_ns)
    assert not clock.jump()
    machine.offset += round(seconds * NS_PER_S)
    assert f"was set by {seconds:+.3f} s" in clock.jump()
    machine.offset -= round(seconds * NS_PER_S)
    assert clock.jump(), "what was stamped meanwhile is still there"
    clock.trust()
    assert not clock.jump()


def test_small_steps_add_up(machine: Machine) -> None:
    clock = SteadyClock(machine.ros_ns, machine.steady_ns)
    for _ in range(3):
        assert not clock.jump()
        machine.offset += round(0.02 * NS_PER_S)
    assert clock.jump()


def test_an_interrupted_reading_is_no_jump(machine: Machine) -> None:
    clock = SteadyClock(machine.ros_ns, machine.steady_ns)
    machine.interruption = NS_PER_S
    assert not clock.jump()
    assert abs(clock.to_ros(clock.now_ns()) - machine.steady - machine.offset) < 20 * NS_PER_S


class Topic:
    """A /clock that publishes."""

    def __init__(self) -> None:
        self.waiting: list[int] = []

    def take(self) -> list[int]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def publish(self, *seconds: float) -> None:
        self.waiting += [round(s * NS_PER_S) for s in seconds]


def test_simulated_time_follows_its_steps() -> None:
    topic = Topic()
    clock = SimulatedClock(topic.take)
    assert clock.now_ns() == 0
    topic.publish(7.0, 7.01, 7.01, 7.05)
    assert clock.now_ns() == round(7.05 * NS_PER_S)
    assert not clock.jump()
    assert clock.receipt(7 * NS_PER_S).stamped_ns == 7 * NS_PER_S


@pytest.mark.parametrize("foreign", [7.6, 6.9, 0.0, 10_000.0])
def test_a_foreign_clock_message_is_told_and_moves_nothing(foreign: float) -> None:
    topic = Topic()
    clock = SimulatedClock(topic.take)
    topic.publish(7.0, foreign, 7.01)
    assert clock.now_ns() == 7 * NS_PER_S
    assert "/clock jumped by" in clock.jump()
    topic.publish(7.02)
    assert clock.now_ns() == round(7.01 * NS_PER_S), "it goes on with the steps that can be time"
    clock.trust()
    assert not clock.jump()


def test_a_simulator_that_starts_again_leaves_time_growing() -> None:
    topic = Topic()
    clock = SimulatedClock(topic.take)
    topic.publish(100.0, 0.0, 0.02)
    assert clock.now_ns() == round(100.02 * NS_PER_S)
    assert clock.jump()
    receipt = clock.receipt(round(0.02 * NS_PER_S))
    assert receipt.stamped_ns == receipt.received_ns
