"""One run of a task: when to ask, when to move, when to hold, when to end.

A state machine without ROS, threads or clocks of its own. It is polled with the time that arms move
by (``rig.clock``) and answers with at most one thing to do; a dead or late part always means hold.
While the arms move it may ask for the next chunk already (``rig.execution``); what comes in time is
blended into the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np

from cosmos_policy_ros.core.errors import CosmosPolicyError, ObservationError
from cosmos_policy_ros.core.units import NS_PER_S, Array
from cosmos_policy_ros.rig.chunk import KEPT, Blend, ChunkTransition, TimedChunk, measure_transition
from cosmos_policy_ros.rig.decision import ActionPrefix, Decision, Query
from cosmos_policy_ros.rig.execution import SYNCHRONOUS, InferenceScheduler, LatencyTracker
from cosmos_policy_ros.rig.observation import Observation, SensorBuffer
from cosmos_policy_ros.rig.safety_gate import GateContext, GateResult, SafetyGate, StartDrift
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.tracking import TrackingMonitor

# What a run is to do, by which limits, where it stands and how it ended.


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
    """How a run ended.

    Attributes:
        outcome: time_limit, chunk_limit, stopped, cancelled or fault.
        message: one sentence for the operator.
        latched: whether nothing may move before the arms have been disarmed and armed again.
    """

    outcome: str
    message: str
    latched: bool = False

    @property
    def success(self) -> bool:
        """Whether it ran to one of its limits."""
        return self.outcome in ("time_limit", "chunk_limit")


LATE = "late"  # rule of a verdict on an answer that came too late to be of use


class _Asked(NamedTuple):
    """A query under way: when its observation was, as stamped and on the arms' clock."""

    stamp_ns: int
    seen_ns: int
    in_motion: bool


class Run:
    """One run of one task.

    Attributes:
        phase: where it stands.
        outcome: set when it is done.
        message: why it waits or what it does, for people.
        chunk: the chunk under way, or the last one.
        chunks, refused, late: counts; what came too late is not refused.
        transition: of the last answer; None of one that came too late, or is not for this rig.
        idle_ns: time the arms stood still between the first query and the last chunk.
    """

    def __init__(
        self,
        goal: Goal,
        rig: RigSpec,
        sources: SensorBuffer,
        gate: SafetyGate,
        limits: RunLimits,
        commanded: Array | None,
        *,
        dry: bool = False,
        scheduler: InferenceScheduler | None = None,
        tracking: TrackingMonitor | None = None,
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
            scheduler: when to ask in motion; None for never.
            tracking: watches whether the arms follow; None for one of its own.
        """
        self.goal, self.phase, self.outcome = goal, Phase.OBSERVING, None
        self.message, self.chunk = "", None
        self.chunks = self.refused = self.late = self.idle_ns = 0
        self.transition = None
        self._rig, self._sources, self._gate, self._limits = rig, sources, gate, limits
        self._commanded, self._dry = commanded, dry
        self._scheduler = scheduler or InferenceScheduler(SYNCHRONOUS, rig.rates, LatencyTracker())
        self._asked: _Asked | None = None
        self._missed = False  # an answer for the path under way: the next query is at rest
        self._ending: Outcome | None = None  # once the arms are at rest
        self._tracking, self._drift = tracking or TrackingMonitor(rig), StartDrift(rig)
        self._queries = self._refused_in_row = 0
        self._not_before_ns = self._executed_ns = self._moving_since_ns = 0
        self._waiting_since_ns: int | None = None
        self._observing_since: float | None = None

    phase: Phase
    outcome: Outcome | None
    chunk: TimedChunk | None
    transition: ChunkTransition | None

    def commanded(self, now_ns: int) -> Array | None:
        """Return the (14,) pose commanded at ``now_ns``; None before anything was."""
        if self._dry:
            return None
        return self.chunk.sample(now_ns) if self.chunk is not None else self._commanded

    def poll(self, now_ns: int, wall: float, *, ready: bool = True) -> Query | TimedChunk | None:
        """Advance.

        Args:
            now_ns: the clock that arms move by.
            wall: a monotonic clock in seconds, which goes on when a simulated one stands still.
            ready: whether a query would be answered at once.

        Returns:
            A query to send to the policy, a braking chunk to publish now, or None.
        """
        if self.phase is Phase.EXECUTING:
            return self._poll_executing(now_ns, ready)
        if self.phase is Phase.OBSERVING and ready:
            return self._poll_observing(now_ns, wall)
        return None

    def needs_observation(self, now_ns: int) -> bool:
        """Return whether a poll now would make an observation."""
        if self.phase is not Phase.EXECUTING:
            return self.phase is Phase.OBSERVING
        return self._is_time_to_ask(now_ns)

    def answer(self, decision: Decision, now_ns: int) -> tuple[GateResult, TimedChunk | None]:
        """Judge a decision; the chunk, when there is one, is to be published at once."""
        assert self._asked is not None, "nothing was asked"
        asked, self._asked = self._asked, None
        self.transition = None
        if self.phase is Phase.EXECUTING:
            return self._take_over(decision, asked, now_ns)
        if asked.in_motion:
            return self._too_late((now_ns - self._not_before_ns) / NS_PER_S), None
        return self._begin(decision, asked, now_ns)

    def _begin(
        self, decision: Decision, asked: _Asked, now_ns: int
    ) -> tuple[GateResult, TimedChunk | None]:
        """Start a chunk from rest."""
        now = self._context(asked, now_ns)
        verdict = self._drift.add(self._gate.judge(decision.positions, decision.dt, now))
        held = now.commanded
        at_rest = np.tile(held, (KEPT + self._rig.rates.chunk_steps, 1))
        self.transition = measure_transition(
            asked.stamp_ns,
            (now_ns - asked.seen_ns) / NS_PER_S,
            rows=(at_rest, decision.positions, verdict.positions),
            dt=decision.dt,
        )
        if verdict.positions is None:
            self._refuse(verdict)
            return verdict, None
        assert self._waiting_since_ns is not None
        self.idle_ns += now_ns - self._waiting_since_ns
        self._moving_since_ns = now_ns
        self._tracking.clear()
        self._tracking.add(now_ns, held)
        return verdict, self._execute(
            TimedChunk(
                chunk_id=self._next_id,
                start_ns=now_ns,
                dt=decision.dt,
                start=held,
                positions=verdict.positions,
                max_velocity=self._rig.max_velocity,
            )
        )

    def _take_over(
        self, decision: Decision, asked: _Asked, now_ns: int
    ) -> tuple[GateResult, TimedChunk | None]:
        """Splice a chunk into the path under way; one that cannot be leaves it as it is."""
        path = self.chunk
        assert path is not None
        meant = TimedChunk(
            chunk_id=self._next_id,
            start_ns=asked.seen_ns,
            dt=decision.dt,
            start=path.sample(asked.seen_ns),
            positions=decision.positions,
            max_velocity=self._rig.max_velocity,
        )
        execution = self._scheduler.execution
        blend = Blend(path, meant, now_ns, execution.blend_rows)
        if blend.lateness > 0:
            return self._too_late(blend.lateness), None
        now = self._context(asked, now_ns)
        verdict = self._drift.add(self._gate.judge_splice(blend, execution.blender, now))
        if verdict.rule != "shape":
            sent = None if verdict.positions is None else verdict.positions[KEPT:]
            self.transition = measure_transition(
                asked.stamp_ns,
                (now_ns - asked.seen_ns) / NS_PER_S,
                rows=(blend.old, blend.new[KEPT:], sent),
                dt=decision.dt,
                dropped=blend.dropped,
                blend_rows=blend.rows,
            )
        if verdict.positions is None:
            self._miss()
            self._refuse(verdict)
            return verdict, None
        return verdict, self._execute(blend.chunk(self._next_id, verdict.positions))

    def query_failed(self, error: CosmosPolicyError, recoverable: bool) -> None:
        """Hold, and ask again with a fresh observation unless the policy is gone for good.

        Arms that still move finish their chunk before.
        """
        asked, self._asked = self._asked, None
        if asked is None:
            return
        if asked.in_motion:
            self._miss()
        moving = self.phase is Phase.EXECUTING
        if not recoverable:
            self._end_at_rest("fault", f"query failed: {error}; the arms hold")
        elif moving:
            self.message = f"query failed: {error}; asking again once the arms rest"
        else:
            self._observe(f"query failed: {error}; the arms hold, asking again")

    def stop(self, now_ns: int, outcome: str, message: str) -> TimedChunk | None:
        """End the run; returns the braking chunk to publish when the arms are moving."""
        moving = self.phase is Phase.EXECUTING
        self._end(outcome, message)
        return self._brake(now_ns, self._limits.brake_seconds) if moving else None

    def fault(self, message: str) -> None:
        """End the run, the arms held elsewhere than on its path or about to be.

        Nothing moves again before the arms have been disarmed and armed.
        """
        self.phase, self.message = Phase.DONE, message
        self.outcome = Outcome("fault", message, latched=True)

    def pause(self, now_ns: int) -> TimedChunk | None:
        """Hold until :meth:`resume`; returns the braking chunk to publish when the arms are moving.

        An answer that is under way is of no use any more.
        """
        if self.phase in (Phase.PAUSED, Phase.DONE):
            return None
        moving = self.phase is Phase.EXECUTING
        self.phase, self.message, self._asked = Phase.PAUSED, "paused: the arms hold", None
        brake = self._brake(now_ns, self._limits.brake_seconds) if moving else None
        # A brake of before the pause may still be under way.
        still = now_ns if brake is None else brake.end_ns
        self._not_before_ns = max(self._not_before_ns, still)
        return brake

    def resume(self) -> None:
        """Go on after a pause or a loss, from what is seen from now on."""
        if self.phase is not Phase.PAUSED:
            return
        if self._ending is not None:  # it would have ended at the end of the path that was braked
            self._end(self._ending.outcome, self._ending.message)
        else:
            self._waiting_since_ns = None  # a pause is nobody's idleness
            self._observe("resumed: waiting for an observation")

    def _poll_executing(self, now_ns: int, ready: bool) -> Query | TimedChunk | None:
        path = self.chunk
        assert path is not None
        self._tracking.add(now_ns, path.sample(now_ns))
        if fault := self._not_following(now_ns):
            self.fault(fault)
            return self._brake(now_ns, self._rig.rates.loss_brake)
        if now_ns >= path.end_ns:
            self._come_to_rest(path)
            return None
        lost = self._sources.stale_source(now_ns)
        if lost:
            # Whoever mends a cable has a hand near the arms: they move on when told to, not by
            # themselves.
            self.phase, self._asked = Phase.PAUSED, None
            self.message = (
                f"{lost}: braked, the arms hold; fix it, then ~/pause with data: false goes on"
            )
            brake = self._brake(now_ns, self._rig.rates.loss_brake)
            self._not_before_ns = brake.end_ns
            return brake
        if ready and self._is_time_to_ask(now_ns):
            return self._ask_in_motion(path, now_ns)
        return None

    def _come_to_rest(self, path: TimedChunk) -> None:
        """Go on after the last row of a path."""
        self._waiting_since_ns = self._not_before_ns = path.end_ns
        self._executed_ns += path.end_ns - self._moving_since_ns
        if self._ending is not None:
            self._end(self._ending.outcome, self._ending.message)
        elif self._is_last(0):
            executed = self._executed_ns / NS_PER_S
            if self.goal.chunk_limit and self.chunks >= self.goal.chunk_limit:
                self._end("chunk_limit", f"executed its {self.chunks} chunks")
            else:
                self._end("time_limit", f"executed {executed:g} s of motion")
        elif self._asked is not None:
            # Whoever is at the old question cannot look at a new one yet.
            self.phase, self.message = Phase.QUERYING, "the answer is late: the arms hold"
        else:
            self._observe("waiting for an observation")

    def _is_last(self, under_way_ns: int) -> bool:
        """Return whether a limit is reached with so much more motion."""
        executed = (self._executed_ns + under_way_ns) / NS_PER_S
        limit = self.goal.chunk_limit
        return bool(limit and self.chunks >= limit) or executed >= self.goal.time_limit - 1e-9

    def _is_time_to_ask(self, now_ns: int) -> bool:
        path = self.chunk
        if path is None or self._asked is not None or self._missed or self._dry:
            return False
        left_ns = path.end_ns - now_ns
        last = self._is_last(path.end_ns - self._moving_since_ns)
        return not last and self._scheduler.due(left_ns / NS_PER_S)

    def _ask_in_motion(self, path: TimedChunk, now_ns: int) -> Query | None:
        try:
            observation = self._sources.observe(now_ns, self._not_before_ns)
        except ObservationError as error:
            self.message = f"executing chunk {self.chunks}; cannot ask for the next: {error}"
            return None
        left = (path.end_ns - now_ns) / NS_PER_S
        committed = self._scheduler.action_prefix(path, observation.seen_ns)
        return self._ask(observation, left, committed)

    def _ask(
        self, observation: Observation, left: float, committed: ActionPrefix | None = None
    ) -> Query:
        goal, index = self.goal, self._queries
        self._queries += 1
        self._asked = _Asked(observation.stamp_ns, observation.seen_ns, committed is not None)
        deadline = self._scheduler.deadline(left, goal.deadline)
        return Query(goal.task, goal.prompt, goal.seed, index, observation, deadline, committed)

    def _not_following(self, now_ns: int) -> str:
        """Return which joint does not follow its path, empty if all do or nothing is to move."""
        measured = self._sources.measured()
        # Of arms that have fallen silent it is not known whether they follow.
        stale = self._sources.state_age(now_ns) > self._rig.observation.state_age
        if self._dry or stale or measured is None:
            return ""
        deviation = self._tracking.check(now_ns, measured)
        return "" if deviation is None else deviation.message

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
        return self._ask(observation, 0.0)

    def _context(self, asked: _Asked, now_ns: int) -> GateContext:
        measured = self._sources.measured()
        assert measured is not None, "a query was sent without a state"
        held = self.commanded(now_ns)
        return GateContext(
            commanded=measured if held is None else held,
            measured=measured,
            state_age=self._sources.state_age(now_ns),
            result_age=(now_ns - asked.seen_ns) / NS_PER_S,
            trail=self._tracking.commanded if self.phase is Phase.EXECUTING else None,
        )

    def _execute(self, chunk: TimedChunk) -> TimedChunk:
        self.chunk, self._refused_in_row, self._missed = chunk, 0, False
        self.chunks += 1
        self.phase, self.message = Phase.EXECUTING, f"executing chunk {self.chunks}"
        return chunk

    @property
    def _next_id(self) -> str:
        return f"{self.goal.run_id}/{self.chunks}"

    def _miss(self) -> None:
        self._missed = True
        self._scheduler.missed()

    def _too_late(self, seconds: float) -> GateResult:
        """Drop an answer: the path plays out, and the next query comes from rest."""
        self.late += 1
        self._miss()
        message = f"the answer came {seconds:.2f} s too late for the path under way: dropped"
        if self.phase is Phase.QUERYING:
            self._observe(message)
        return GateResult(False, rule=LATE, value=seconds, message=message)

    def _refuse(self, verdict: GateResult) -> None:
        self.refused += 1
        self._refused_in_row += 1
        limit = self._rig.gate.refusals
        if self._refused_in_row >= limit:
            last = f"{limit} chunks refused in a row, the last: {verdict.message}"
            self._end_at_rest("fault", last)
        elif self.phase is Phase.EXECUTING:
            self.message = f"chunk refused, going on with the last: {verdict.message}"
        else:
            self._observe(f"chunk refused, holding: {verdict.message}")

    def _brake(self, now_ns: int, seconds: float) -> TimedChunk:
        assert self.chunk is not None
        self.chunk = self.chunk.brake(now_ns, seconds)
        self._executed_ns += self.chunk.end_ns - self._moving_since_ns
        return self.chunk

    def _observe(self, message: str) -> None:
        self.phase, self.message, self._observing_since = Phase.OBSERVING, message, None

    def _end_at_rest(self, outcome: str, message: str) -> None:
        """End, but let arms that move finish their chunk, which the gate has passed, before."""
        if self.phase is Phase.EXECUTING:
            self._ending, self.message = Outcome(outcome, message), message
        else:
            self._end(outcome, message)

    def _end(self, outcome: str, message: str) -> None:
        self.phase, self.message = Phase.DONE, message
        self.outcome = Outcome(outcome, message)
