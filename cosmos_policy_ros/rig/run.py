"""One run of a task: when to ask, when to move, when to hold, when to end.

A state machine without ROS, threads or clocks of its own. It is polled with the rig's time and
answers with at most one thing to do; a dead or late part always means hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.errors import CosmosPolicyError, ObservationError
from cosmos_policy_ros.rig.chunk import NS, TimedChunk
from cosmos_policy_ros.rig.decision import Decision, Query
from cosmos_policy_ros.rig.gate import SafetyGate, Situation, Verdict
from cosmos_policy_ros.rig.sources import Sources
from cosmos_policy_ros.rig.spec import RigSpec

LOSS_BRAKE_PERIODS = 2  # control periods to rest once a source is lost: blind, so no further


def loss_brake_seconds(rig: RigSpec) -> float:
    """Return the time in which a rig's arms are brought to rest once a source is lost."""
    return LOSS_BRAKE_PERIODS * rig.rates.dt


class Phase(str, Enum):
    """Where a run stands."""

    OBSERVING = "observing"
    QUERYING = "querying"
    EXECUTING = "executing"
    PAUSED = "paused"
    DONE = "done"


@dataclass(frozen=True)
class Goal:
    """What a run is to do.

    Attributes:
        run_id: hex UUID of the action goal.
        task: name of the task file.
        prompt: text for the model.
        time_limit: seconds of executed motion; as in the paper, thinking does not count.
        chunk_limit: chunks to execute at most; 0 for no limit.
        seed: base noise seed.
        deadline: wall seconds for one decision; 0 for as long as it takes.
    """

    run_id: str
    task: str
    prompt: str
    time_limit: float
    chunk_limit: int
    seed: int
    deadline: float = 0.0


@dataclass(frozen=True)
class RunLimits:
    """Patience and braking.

    Attributes:
        observation_timeout: wall seconds to wait for a usable observation before giving up.
        brake_seconds: time in which a chunk under way is brought to rest when somebody asks.
    """

    observation_timeout: float
    brake_seconds: float


@dataclass(frozen=True)
class Outcome:
    """How a run ended: time_limit, chunk_limit, stopped, cancelled or fault."""

    outcome: str
    message: str

    @property
    def success(self) -> bool:
        """Whether it ran to one of its limits."""
        return self.outcome in ("time_limit", "chunk_limit")


class Run:
    """One run of one task.

    Attributes:
        phase: where it stands.
        outcome: set when it is done.
        message: why it waits or what it does, for people.
        chunk: the chunk under way, or the last one.
        chunks, refused: counts.
        idle_ns: time the arms stood still between the first query and the last chunk.
    """

    def __init__(
        self,
        goal: Goal,
        rig: RigSpec,
        sources: Sources,
        gate: SafetyGate,
        limits: RunLimits,
        commanded: NDArray[np.float64] | None,
        *,
        dry: bool = False,
    ) -> None:
        """Begin observing.

        Args:
            goal: what to do.
            rig: limits and rates.
            sources: of the observations.
            gate: judges the chunks.
            limits: patience and braking.
            commanded: what the arms hold, None when only they know.
            dry: whether chunks go nowhere, so that every one begins where the arms stand.
        """
        self.goal, self.phase, self.outcome = goal, Phase.OBSERVING, None
        self.message, self.chunk = "", None
        self.chunks = self.refused = self.idle_ns = 0
        self._rig, self._sources, self._gate, self._limits = rig, sources, gate, limits
        self._commanded, self._dry = commanded, dry
        self._queries = self._refused_in_row = 0
        self._not_before_ns = self._decided_on_ns = 0
        self._waiting_since_ns: int | None = None
        self._observing_since: float | None = None

    phase: Phase
    outcome: Outcome | None
    chunk: TimedChunk | None

    def commanded(self, now_ns: int) -> NDArray[np.float64] | None:
        """Return the (14,) pose commanded at ``now_ns``; None before anything was."""
        if self._dry:
            return None
        return self.chunk.sample(now_ns) if self.chunk is not None else self._commanded

    def poll(self, now_ns: int, wall: float) -> Query | TimedChunk | None:
        """Advance.

        Args:
            now_ns: the rig's clock.
            wall: a monotonic clock in seconds, which goes on when the rig's stands still.

        Returns:
            A query to send to the policy, a braking chunk to publish now, or None.
        """
        if self.phase is Phase.EXECUTING:
            return self._poll_executing(now_ns)
        if self.phase is Phase.OBSERVING:
            return self._poll_observing(now_ns, wall)
        return None

    def answer(self, decision: Decision, now_ns: int) -> tuple[Verdict, TimedChunk | None]:
        """Judge a decision; the chunk, when there is one, is to be published at once."""
        measured = self._sources.measured()
        assert measured is not None, "a query was sent without a state"
        held = self.commanded(now_ns)
        held = measured if held is None else held
        situation = Situation(
            commanded=held,
            measured=measured,
            state_age=self._sources.state_age(now_ns),
            result_age=(now_ns - self._decided_on_ns) / NS,
        )
        verdict = self._gate.judge(decision.positions, decision.dt, situation)
        if verdict.positions is None:
            self._refuse(verdict)
            return verdict, None
        assert self._waiting_since_ns is not None
        self.idle_ns += now_ns - self._waiting_since_ns
        self._refused_in_row = 0
        self.chunk = TimedChunk(
            chunk_id=f"{self.goal.run_id}/{self.chunks}",
            start_ns=now_ns,
            dt=decision.dt,
            start=held,
            positions=verdict.positions,
            max_velocity=self._rig.max_velocity,
        )
        self.chunks += 1
        self.phase = Phase.EXECUTING
        self.message = f"executing chunk {self.chunks}"
        return verdict, self.chunk

    def query_failed(self, error: CosmosPolicyError, recoverable: bool) -> None:
        """Hold, and ask again with a fresh observation unless the policy is gone for good."""
        if self.phase is not Phase.QUERYING:
            return
        if recoverable:
            self._observe(f"query failed: {error}; the arms hold, asking again")
        else:
            self._end("fault", f"query failed: {error}; the arms hold")

    def stop(self, now_ns: int, outcome: str, message: str) -> TimedChunk | None:
        """End the run; returns the braking chunk to publish when the arms are moving."""
        moving = self.phase is Phase.EXECUTING
        self._end(outcome, message)
        return self._brake(now_ns, self._limits.brake_seconds) if moving else None

    def pause(self, now_ns: int) -> TimedChunk | None:
        """Hold until :meth:`resume`; returns the braking chunk to publish when the arms are moving.

        An answer that is under way is of no use any more.
        """
        if self.phase in (Phase.PAUSED, Phase.DONE):
            return None
        moving = self.phase is Phase.EXECUTING
        self.phase, self.message = Phase.PAUSED, "paused: the arms hold"
        brake = self._brake(now_ns, self._limits.brake_seconds) if moving else None
        # A brake of before the pause may still be under way.
        still = now_ns if brake is None else brake.end_ns
        self._not_before_ns = max(self._not_before_ns, still)
        return brake

    def resume(self) -> None:
        """Go on after a pause or a loss, from what is seen from now on."""
        if self.phase is Phase.PAUSED:
            self._waiting_since_ns = None  # a pause is nobody's idleness
            self._observe("resumed: waiting for an observation")

    def _poll_executing(self, now_ns: int) -> TimedChunk | None:
        assert self.chunk is not None
        if now_ns >= self.chunk.end_ns:
            self._waiting_since_ns = self._not_before_ns = self.chunk.end_ns
            executed = self.chunks * self._rig.rates.chunk_steps * self._rig.rates.dt
            if self.goal.chunk_limit and self.chunks >= self.goal.chunk_limit:
                self._end("chunk_limit", f"executed its {self.chunks} chunks")
            elif executed >= self.goal.time_limit - 1e-9:
                self._end("time_limit", f"executed {executed:g} s of motion")
            else:
                self._observe("waiting for an observation")
            return None
        lost = self._sources.lost(now_ns)
        if not lost:
            return None
        # Whoever mends a cable has a hand near the arms: they move on when told to, not by
        # themselves.
        self.phase = Phase.PAUSED
        self.message = (
            f"{lost}: braked, the arms hold; mend it, then ~/pause with data: false goes on"
        )
        brake = self._brake(now_ns, loss_brake_seconds(self._rig))
        self._not_before_ns = brake.end_ns
        return brake

    def _poll_observing(self, now_ns: int, wall: float) -> Query | None:
        if self._waiting_since_ns is None:
            self._waiting_since_ns = now_ns
        if self._observing_since is None:
            self._observing_since = wall
        try:
            observation = self._sources.observe(now_ns, self._not_before_ns)
        except ObservationError as error:
            waited = wall - self._observing_since
            self.message = f"holding: {error}"
            if waited > self._limits.observation_timeout:
                self._end("fault", f"no usable observation for {waited:.1f} s: {error}")
            return None
        self.phase = Phase.QUERYING
        self.message = "waiting for the policy"
        index, goal = self._queries, self.goal
        self._queries += 1
        self._decided_on_ns = observation.stamp_ns
        return Query(goal.task, goal.prompt, goal.seed, index, observation, goal.deadline)

    def _refuse(self, verdict: Verdict) -> None:
        self.refused += 1
        self._refused_in_row += 1
        limit = self._rig.gate.refusals
        if self._refused_in_row >= limit:
            self._end("fault", f"{limit} chunks refused in a row, the last: {verdict.message}")
        else:
            self._observe(f"chunk refused, holding: {verdict.message}")

    def _brake(self, now_ns: int, seconds: float) -> TimedChunk:
        assert self.chunk is not None
        self.chunk = self.chunk.brake(now_ns, seconds)
        return self.chunk

    def _observe(self, message: str) -> None:
        self.phase, self.message, self._observing_since = Phase.OBSERVING, message, None

    def _end(self, outcome: str, message: str) -> None:
        self.phase, self.message = Phase.DONE, message
        self.outcome = Outcome(outcome, message)
