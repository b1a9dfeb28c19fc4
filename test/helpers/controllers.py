"""joint_trajectory_controller as its distros have it, where they differ (metadata: ALOHA, 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryController, TrajectoryPoint

Distro = Literal["humble", "jazzy", "master"]
DISTROS: tuple[Distro, ...] = ("humble", "jazzy", "master")


class DistroController(TrajectoryController):
    """One arm's controller.

    The base is Humble's with ``open_loop_control``; Jazzy's and Kilted's refuse a trajectory that
    does not end at rest; master's goes on with the old one until the new one's first moment.
    """

    def __init__(
        self, distro: Distro, joint_names: Sequence[str], positions: NDArray[np.float64]
    ) -> None:
        super().__init__(joint_names, positions)
        self._distro = distro
        self._waiting: tuple[Sequence[str], Sequence[TrajectoryPoint], int] | None = None

    def accept(
        self,
        joint_names: Sequence[str],
        points: Sequence[TrajectoryPoint],
        stamp_ns: int,
        now_ns: int,
    ) -> None:
        if self._distro != "humble" and points and any(points[-1].velocities):
            raise RigError(
                "the trajectory does not end at rest; allow_nonzero_velocity_at_trajectory_end"
            )
        if self._distro == "master" and now_ns < stamp_ns and now_ns < self.end_ns:
            # Refused now or never; what it refuses does not depend on the old trajectory.
            TrajectoryController(self.joint_names, self.sample(now_ns)).accept(
                joint_names, points, stamp_ns, now_ns
            )
            self._waiting = joint_names, points, stamp_ns
        else:
            self._waiting = None
            super().accept(joint_names, points, stamp_ns, now_ns)

    def sample(self, now_ns: int) -> NDArray[np.float64]:
        if self._waiting is not None and now_ns >= self._waiting[2]:
            (names, points, stamp_ns), self._waiting = self._waiting, None
            super().accept(names, points, stamp_ns, stamp_ns)
        return super().sample(now_ns)
