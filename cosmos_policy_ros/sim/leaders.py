"""Leader arms of the simulated rig, and the hands that move them.

They rest with the followers, or are led through what the scripted demonstrator would do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import ARM_DIM, ARM_JOINTS, ARMS, STATE_DIM
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.teleoperation import leader_pose
from cosmos_policy_ros.sim.faults import Fault
from cosmos_policy_ros.sim.scene import ARM_JOINTS as JOINTS

TREMOR = 0.001  # rad, standard deviation of a hand that holds still


class SimLeaders:
    """Both leaders, each at a pose that it asks of its follower."""

    def __init__(self, rig: RigSpec, dt: float) -> None:
        """Take them from the rig file; ``dt`` is between two rows of what they are led through."""
        self._rig, self._dt = rig, dt
        self._rows: Array | None = None
        self._began_ns = 0
        self._resting = np.zeros(STATE_DIM)
        # By side, and by joint or "" for the whole arm: its pose when that froze.
        self._frozen: dict[str, dict[str, Array]] = {}
        self._random = np.random.default_rng(0)

    def rest(self, followers: Array) -> None:
        """Let go: the hands keep the leaders where (14,) the followers are, policy units."""
        self._rows, self._resting = None, followers.copy()

    def lead(self, rows: Array, now_ns: int, seed: int) -> None:
        """Begin to lead both through (N, 14) rows; at their end they are held there."""
        self._rows, self._began_ns = rows, now_ns
        self._random = np.random.default_rng(seed)

    @property
    def leading(self) -> bool:
        """Whether a demonstration is played, or was to its end."""
        return self._rows is not None

    def positions(self, side: str, now_ns: int, faults: Sequence[Fault] = ()) -> Array:
        """Return what (7,) the encoders of a leader read: six joints [rad], its gripper's motor."""
        arm = self._rig.arms[side]
        assert arm.leader is not None
        delay = sum(fault.value for fault in faults if fault.kind == "leader_delay")
        pose = self._pose(now_ns - round(delay * NS_PER_S))
        pose = pose[ARMS.index(side) * ARM_DIM :][:ARM_DIM].copy()
        pose[:ARM_JOINTS] += self._random.normal(0.0, TREMOR, ARM_JOINTS)
        self._freeze(side, pose, [fault for fault in faults if fault.kind == "leader_frozen"])
        pose[0] += sum(fault.value for fault in faults if fault.kind == "leader_jump")
        return leader_pose(arm.leader, pose)

    def _freeze(self, side: str, pose: Array, faults: Sequence[Fault]) -> None:
        """Set what is frozen of one arm's (7,) pose back to where it was when that began."""
        before, self._frozen[side] = self._frozen.get(side, {}), {}
        for fault in faults:
            frozen = before.get(fault.joint, pose.copy())
            self._frozen[side][fault.joint] = frozen
            stuck = JOINTS.index(fault.joint) if fault.joint else slice(None)
            pose[stuck] = frozen[stuck]

    def _pose(self, now_ns: int) -> Array:
        if self._rows is None:
            return self._resting
        at = (now_ns - self._began_ns) / NS_PER_S / self._dt
        at = min(max(at, 0.0), len(self._rows) - 1.0)
        before = int(at)
        rest, after = at - before, min(before + 1, len(self._rows) - 1)
        pose: Array = (1 - rest) * self._rows[before] + rest * self._rows[after]
        return pose
