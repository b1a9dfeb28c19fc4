"""A scripted policy for the simulated tasks, behind the same seam as the model.

It sees what the model sees, three pictures and the state, finds the objects by colour and answers
with chunks. It makes rollouts to record, to train small models on and to test the whole graph with.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.errors import ObservationError
from cosmos_policy_ros.rig.config import did_you_mean
from cosmos_policy_ros.rig.crank import angle_from_finger
from cosmos_policy_ros.rig.decision import Candidate, Decision, EngineInfo, Query
from cosmos_policy_ros.rig.observation import Observation
from cosmos_policy_ros.sim.motion import MotionPlanner
from cosmos_policy_ros.sim.rig import CRANK_RADIUS, ROD_LENGTH
from cosmos_policy_ros.sim.scripts import SCRIPTS, Variation
from cosmos_policy_ros.sim.sight import PrimarySight

CHUNK_ROWS = 50
DT = 0.04
"""Rows per chunk and seconds between them, as of the released ALOHA checkpoint."""

SERVO_LAG = 0.15
"""How far [rad] the arms may stand off the last row and still count as having got there."""

_GRIPPERS = [6, 13]


@dataclass(frozen=True)
class GripperConstants:
    """The rig's gripper constants that ALOHA data are normalised with.

    Attributes:
        state_closed: finger position [m] that the state calls 0.
        state_open: finger position [m] that the state calls 1.
        command_closed: motor angle [rad] that an action calls 0.
        command_open: motor angle [rad] that an action calls 1.
    """

    state_closed: float = 0.01844
    state_open: float = 0.05800
    command_closed: float = -0.6213
    command_open: float = 1.4910


class Demonstrator:
    """Implements :class:`~cosmos_policy_ros.rig.decision.Policy` for the simulated tasks.

    The whole episode is planned at query 0; later queries return the next rows of that plan, and
    the last row for ever after its end. Nothing depends on when the queries come, so the arms may
    rest between chunks for as long as they like; after a chunk that was braked on its way, the
    next one goes on from where the arms stand. Asked while they move, it answers with what follows
    at the times that are asked for, between two rows of the plan if need be.
    """

    def __init__(
        self,
        *,
        grippers: GripperConstants | None = None,
        jitter: float = 1.0,
        choice: float | None = None,
    ) -> None:
        """Remember how to demonstrate.

        Args:
            grippers: the rig's constants.
            jitter: how much demonstrations differ by ``query.seed``: 0 not at all, 1 a few
                millimetres at the grasp and a few centimetres in the air. More makes failures.
            choice: 0 to 1, which of a task's several ways is taken; drawn anew for each where None.
        """
        self._grippers = grippers or GripperConstants()
        self._jitter, self._choice = jitter, choice
        self._sight: dict[str, PrimarySight] = {}  # by task: each has its lens
        self._plan: NDArray[np.float64] | None = None
        self._next = 0.0
        self._reason = ""

    @property
    def info(self) -> EngineInfo:
        """A script has no checkpoint and nothing to warn of."""
        return EngineInfo()

    def decide(self, query: Query) -> Decision:
        """Return the next (50, 14) rows at 25 Hz.

        Raises:
            ObservationError: an object is hidden or out of reach, the task is not one of the
                simulated ones, or the first query of the run was never asked.
        """
        phases: dict[str, float] = {}
        if query.index == 0:
            began = time.perf_counter()
            self._plan = self._make_plan(query)
            phases["plan"] = time.perf_counter() - began
        if self._plan is None:
            raise ObservationError(
                f"the demonstrator has no plan for query {query.index}; start the run anew, it "
                "plans at query 0"
            )
        first = self._resume(self._plan, query)
        self._next = first + CHUNK_ROWS
        rows = f"rows {first + 1:g} to {self._next:g} of {len(self._plan)}"
        return Decision(
            positions=_rows(self._plan, first),
            dt=DT,
            candidates=(Candidate(query.seed),),
            chosen=0,
            reason=f"{self._reason}; {rows}",
            engine="demonstrator",
            phases=phases,
        )

    def _resume(self, plan: NDArray[np.float64], query: Query) -> float:
        """Return the row to go on from: the next one or, after a brake, where the arms stand."""
        if query.index == 0:
            return 0
        if query.committed is not None:
            return max(self._next - query.committed.seconds / DT, 0.0)
        last = min(round(self._next), len(plan)) - 1
        begin = max(0, last + 1 - CHUNK_ROWS)
        off = np.delete(plan[begin : last + 1] - query.observation.state, _GRIPPERS, axis=1)
        distances = np.abs(off).max(axis=1)
        if distances[-1] <= SERVO_LAG:
            return round(self._next)
        return begin + int(np.argmin(distances)) + 1

    def _make_plan(self, query: Query) -> NDArray[np.float64]:
        if query.task not in SCRIPTS:
            raise ObservationError(
                f"the demonstrator has no script for task '{query.task}'"
                f"{did_you_mean(query.task, SCRIPTS)}"
            )
        script = SCRIPTS[query.task]
        image = query.observation.images.get("primary")
        if image is None:
            raise ObservationError(
                "the demonstrator needs the primary picture; the observation has "
                f"{', '.join(query.observation.images) or 'none'}"
            )
        if query.task not in self._sight:
            self._sight[query.task] = PrimarySight(query.task)
        sight = self._sight[query.task]
        seen = {thing.name: sight.locate(image, thing) for thing in script.things}
        planner = MotionPlanner(self._motor_state(query.observation), DT)
        variation = Variation.draw(query.seed, self._jitter)
        if self._choice is not None:
            variation = replace(variation, choice=self._choice)
        for phase in script.phases(seen, variation):
            planner.add(phase)
        places = ", ".join(f"{name} at ({x:.3f}, {y:.3f}) m" for name, (x, y) in seen.items())
        self._reason = f"scripted {query.task}: saw {places}"
        return self._policy_units(planner.rows())

    def _motor_state(self, observation: Observation) -> NDArray[np.float64]:
        """Return the state with the grippers as motor angles [rad]."""
        state = np.array(observation.state, dtype=np.float64)
        if state.shape != (14,) or not np.isfinite(state).all():
            raise ObservationError(
                f"the demonstrator needs 14 finite state values, found {state.tolist()}"
            )
        limits = self._grippers
        for index in _GRIPPERS:
            finger = limits.state_closed + state[index] * (limits.state_open - limits.state_closed)
            state[index] = angle_from_finger(finger, CRANK_RADIUS, ROD_LENGTH)
        return state

    def _policy_units(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        limits = self._grippers
        span = limits.command_open - limits.command_closed
        rows[:, _GRIPPERS] = (rows[:, _GRIPPERS] - limits.command_closed) / span
        return rows


def _rows(plan: NDArray[np.float64], first: float) -> NDArray[np.float64]:
    """Return a chunk of a plan from a row on, which may be between two; the last row for ever."""
    at = np.minimum(np.arange(CHUNK_ROWS) + first, len(plan) - 1)
    before = np.floor(at).astype(int)
    after = np.minimum(before + 1, len(plan) - 1)
    share = (at - before)[:, None]
    return np.asarray((1 - share) * plan[before] + share * plan[after])
