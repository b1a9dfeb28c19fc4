"""A person at the leaders who takes over a trial that goes wrong, without a wall clock.

The hands do what the scripted demonstrator would do from what is seen then. What the followers are
told are a teleoperation's targets, as the arm interface sends them, so that an episode tells row by
row who commanded it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.arms import ARM_JOINTS, ARMS, STATE_DIM
from cosmos_policy_ros.rig.chunk import TimedChunk, minimum_jerk
from cosmos_policy_ros.rig.decision import Query
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.teleoperation import REACH, TELEOPERATION, Phase, Teleoperation
from cosmos_policy_ros.sim.demonstrator import DT, Demonstrator
from cosmos_policy_ros.sim.leaders import SimLeaders
from cosmos_policy_ros.sim.rig import START_POSE

TRIES = 4  # ways to the task's end, or back to the start pose, after which a person gives up
BACK = 2.5  # s that the way back takes
CALM = 0.5  # s that the hands rest at the end of a way: the followers are there


@dataclass(frozen=True)
class LedTarget(TimedChunk):
    """One target of a teleoperation.

    Attributes:
        end_velocity: (14,) at the target; the next one takes over before it is reached.
    """

    end_velocity: Array | None = None

    @cached_property
    def velocities(self) -> Array:
        """(1, 14) velocities at the target."""
        assert self.end_velocity is not None
        return self.end_velocity[None]


class Person:
    """Leads the arms of one trial.

    Attributes:
        patience: seconds without a new stage after which a person takes over.
    """

    def __init__(self, rig: RigSpec, patience: float, jitter: float = 1.0) -> None:
        """Stand by. ``jitter`` is how much the demonstrator's ways differ."""
        self.patience = patience
        self._rig, self._demonstrator = rig, Demonstrator(jitter=jitter)
        self._leaders, self._teleoperation = SimLeaders(rig, DT), Teleoperation(rig)
        self._reached, self._since_ns, self._until_ns, self._sent = 0, -1, 0, 0

    @property
    def period_ns(self) -> int:
        """Nanoseconds from one target to the next."""
        return round(NS_PER_S / self._rig.teleoperation.rate)

    def takes_over(self, reached: int, now_ns: int) -> bool:
        """Return whether too long no further stage has been reached; asked again and again."""
        if self._since_ns < 0 or reached > self._reached:
            self._reached, self._since_ns = reached, now_ns
        return now_ns - self._since_ns >= self.patience * NS_PER_S

    def lead(self, query: Query, followers: Array, now_ns: int) -> None:
        """Begin to lead the arms from (14,) where they are told to be, by what a query sees.

        Where an object is hidden or out of reach, open hands go back to the start pose first.
        """
        try:
            rows = self._demonstrator.plan(query)
        except ObservationError:
            rows = _way_back(followers)
        self._leaders.rest(followers)
        self._read(now_ns)
        if not self.follows:
            self._teleoperation.begin(followers, now_ns)
        self._leaders.lead(rows, now_ns, query.seed)
        self._until_ns = now_ns + round((len(rows) * DT + CALM) * NS_PER_S)

    @property
    def follows(self) -> bool:
        """Whether nothing holds the followers."""
        return self._teleoperation.phase is Phase.FOLLOWING

    def leads(self, now_ns: int) -> bool:
        """Return whether the followers are on a way that is not at its end."""
        return self.follows and now_ns < self._until_ns

    def tick(self, now_ns: int, measured: Array | None) -> TimedChunk | None:
        """Return what the followers are told now, None for nothing."""
        self._read(now_ns)
        before = self._teleoperation.target.copy()
        target = self._teleoperation.tick(now_ns, measured)
        if target is None:
            return None
        self._sent += 1
        period = self.period_ns / NS_PER_S
        return LedTarget(
            f"{TELEOPERATION}/{self._sent}",
            now_ns,
            REACH * period,
            before,
            target[None].copy(),
            self._rig.max_velocity,
            end_velocity=(target - before) / period,
        )

    def _read(self, now_ns: int) -> None:
        for side, arm in self._rig.arms.items():
            assert arm.leader is not None
            positions = self._leaders.positions(side, now_ns).tolist()
            names = arm.leader.names or arm.names
            self._teleoperation.on_leader(side, names, positions, now_ns)


def _way_back(followers: Array) -> Array:
    """Return (N, 14) rows to the start pose, the grippers open."""
    goal = followers.reshape(len(ARMS), -1).copy()
    goal[:, :ARM_JOINTS], goal[:, ARM_JOINTS] = START_POSE, 1.0
    t = np.arange(1, round(BACK / DT) + 1)[:, None] * DT / BACK
    rows: Array = followers + minimum_jerk(t) * (goal.reshape(STATE_DIM) - followers)
    return rows
