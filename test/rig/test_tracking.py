"""A joint that does not follow is named, whatever the others do; one that lags is not."""

from __future__ import annotations

import numpy as np
import pytest

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.arms import GRIPPER_INDICES
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.tracking import STILL_FOR, Deviation, StillnessWatch, TrackingMonitor

TICK = NS_PER_S // 50


def swing(at_ns: int) -> np.ndarray:
    """Every joint, grippers too, at up to 3 rad/s."""
    pose = np.full(14, np.sin(at_ns / NS_PER_S * 3.0))
    pose[list(GRIPPER_INDICES)] = 0.5
    return pose


def follow(rig: RigSpec, lag: float, stuck: int | None = None) -> Deviation | None:
    """Follow a swing for three seconds; a joint sticks after one."""
    monitor = TrackingMonitor(rig)
    for tick in range(150):
        now = tick * TICK
        measured = swing(max(now - round(lag * NS_PER_S), 0))
        if stuck is not None and now > NS_PER_S:
            measured[stuck] = swing(NS_PER_S)[stuck]
        monitor.add(now, swing(now))
        if found := monitor.check(now, measured):
            return found
    return None


def test_arms_that_lag_as_they_may_follow(rig: RigSpec) -> None:
    assert follow(rig, 0.0) is None
    assert follow(rig, rig.tracking.lag) is None


def test_arms_that_lag_further_do_not(rig: RigSpec) -> None:
    assert follow(rig, 4 * rig.tracking.lag) is not None


@pytest.mark.parametrize("joint", [0, 5, 7, 12])
def test_a_stuck_joint_is_named(rig: RigSpec, joint: int) -> None:
    found = follow(rig, 0.05, stuck=joint)
    assert found is not None
    assert found.joints == (joint,)
    assert found.message.startswith(f"{rig.joint_names[joint]} has been")


def test_a_gripper_that_holds_an_object_is_no_fault(rig: RigSpec) -> None:
    assert follow(rig, 0.05, stuck=GRIPPER_INDICES[0]) is None


def test_a_bump_is_no_fault(rig: RigSpec) -> None:
    monitor = TrackingMonitor(rig)
    rest = np.zeros(14)
    for tick in range(200):
        now = tick * TICK
        bumped = tick % 20 < rig.tracking.sustained * NS_PER_S / TICK - 1
        monitor.add(now, rest)
        assert monitor.check(now, rest + (0.4 if bumped else 0.0)) is None


def test_stillness_is_seen_and_not_assumed() -> None:
    watch = StillnessWatch()
    assert not watch.still and not watch.moving
    pose = np.zeros(14)
    for tick in range(round(STILL_FOR * NS_PER_S / TICK)):
        watch.add(tick * TICK, pose)
        assert not watch.still
    watch.add(round(STILL_FOR * NS_PER_S), pose)
    assert watch.still and not watch.moving
    watch.add(round(STILL_FOR * NS_PER_S) + TICK, pose + 0.03)
    assert watch.moving and not watch.still
    watch.add(
        round(3 * NS_PER_S), pose + 0.5
    )  # kept waiting: it has not seen how they stopped there
    assert not watch.moving and not watch.still
    pose = pose.copy()
    pose[GRIPPER_INDICES[1]] = 1.0  # a gripper that closes is no arm that moves
    watch.clear()
    for tick in range(20):
        watch.add(tick * TICK, pose * (tick % 2))
    assert watch.still
