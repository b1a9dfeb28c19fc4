"""What the encoders of the simulated rig's leaders read."""

from __future__ import annotations

import numpy as np

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import ARM_JOINTS, STATE_DIM
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.sim.faults import Faults
from cosmos_policy_ros.sim.leaders import TREMOR, SimLeaders

RIG = load_rig("sim", config_folder("rigs"))
SPEED = 0.5  # rad/s at which the hands move every joint


def readings(*faults: str) -> Array:
    """Return (20, 7) what the left leader reads in two seconds, ten times each."""
    leaders, acting = SimLeaders(RIG, 0.1), Faults.parse(faults)
    rows = np.arange(21)[:, None] * 0.1 * SPEED * np.ones(STATE_DIM)
    leaders.lead(rows, 0, seed=3)
    times = np.arange(20) * 0.1
    return np.array(
        [
            leaders.positions("left", round(now * NS_PER_S), acting.leader_faults("left", now))
            for now in times
        ]
    )


def test_hands_tremble_on_the_way() -> None:
    path = np.arange(20) * 0.1 * SPEED
    off = readings()[:, :ARM_JOINTS] - path[:, None]
    assert 0.5 * TREMOR < off.std() < 2 * TREMOR


def test_an_arm_freezes_and_thaws() -> None:
    read = readings("leader_frozen:left@0.45-1.45")
    assert (read[5:15] == read[5]).all()
    assert (read[15, :ARM_JOINTS] > read[14, :ARM_JOINTS] + 0.4).all()


def test_one_joint_freezes() -> None:
    read = readings("leader_frozen:left/elbow@0.45-1.45")
    moved = read[14] - read[5]
    assert moved[2] == 0.0
    assert (np.delete(moved, 2) > 0.0).all()


def test_faults_add_up() -> None:
    """Two joints freeze, one after the other, and then the whole arm, where it is by then."""
    read = readings(
        "leader_frozen:left/elbow@0.25-1.95",
        "leader_frozen:left/waist@0.65-1.95",
        "leader_frozen:left@1.05-1.95",
        "leader_jump:left=0.5@1.45-1.95",
    )
    assert (read[3:, 2] == read[3, 2]).all()
    assert (read[7:15, 0] == read[7, 0]).all()
    assert read[7, 0] > read[6, 0]
    assert (read[11:15] == read[11]).all()
    assert read[11, 1] > read[10, 1]
    np.testing.assert_allclose(read[15:, 0], read[14, 0] + 0.5)


def test_the_other_arm_is_not_touched() -> None:
    assert (readings("leader_frozen:right/elbow") == readings()).all()
