"""One run of a task: when to query the policy, when to move, when to hold, when to end.

A state machine without ROS, threads or clocks. It is polled with the time that arms move by
(``rig.clock``) and answers with at most one thing to do; a dead or late part always means hold.
While the arms move it may already query for the next chunk (``rig.execution``), which is then
blended into the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from cosmos_policy_ros.core.errors import CosmosPolicyError, ObservationError
from cosmos_policy_ros.core.units import NS_PER_S, SEEDS, Array
from cosmos_policy_ros.rig.chunk import KEPT, Blend, ChunkTransition, TimedChunk, measure_transition
from cosmos_policy_ros.rig.decision import ActionPrefix, Decision, Query
from cosmos_policy_ros.rig.execution import SYNCHRONOUS, InferenceScheduler, LatencyTracker
from cosmos_policy_ros.rig.observation import Observation, SensorBuffer
from cosmos_policy_ros.rig.safety_gate import GateContext, GateResult, SafetyGate, StartDrift
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rig.tracking import TrackingMonitor


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
        brake_seconds: seconds in which a pause or stop brings a chunk under way to rest.
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


# Between the seeds of a query whose answer was refused and of the next one, since from what is seen
# there the same noise is answered with the same chunk. More than a search has candidates.
OTHER_NOISE = 1000
LATE = "late"  # rule of a gate result whose answer came too late to be of use


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

        The arms hold ``commanded`` (14,), None where no pose was commanded yet. A ``dry`` run's
        chunks go nowhere, so that every one begins where the arms stand. Without a ``scheduler``
        it never queries in motion.
        """
        self.goal, self.phase, self.message = goal, Phase.OBSERVING, ""
        self.outcome: Outcome | None = None
        self.chunk: TimedChunk | None = None
        self.transition: ChunkTransition | None = None
        self.chunks = self.refused = self.late = self.idle_ns = 0
        self._rig, self._sources, self._gate, self._limits = rig, sources, gate, limits
        self._commanded, self._dry = commanded, dry
        self._scheduler = scheduler or InferenceScheduler(SYNCHRONOUS, rig.rates, LatencyTracker())
        self._tracking, self._drift = tracking or TrackingMonitor(rig), StartDrift(rig)
        self._pending: Query | None = None
        self._missed = False  # an answer for the path under way: the next query is at rest
        self._fault_at_rest = ""  # ends the run once the arms are at rest
        self._queries = self._refused_in_row = 0
        self._not_before_ns = self._executed_ns = self._moving_since_ns = 0
        self._waiting_since_ns: int | None = None
        self._observing_since: float | None = None

    def commanded(self, now_ns: int) -> Array | None:
        """Return the (14,) pose commanded at ``now_ns``; None before anything was."""
        if self._dry:
            return None
        return self.chunk.sample(now_ns) if self.chunk is not None else self._commanded

    def needs_observation(self, now_ns: int) -> bool:
        """Return whether a poll now would make an observation."""
        if self.phase is Phase.EXECUTING:
            return self._is_time_to_query(now_ns)
        return self.phase is Phase.OBSERVING

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
        self.phase, self.message = Phase.QUERYING, "waiting for the policy"
        held = self.commanded(now_ns)
        return self._query(observation, held=observation.state if held is None else held)

    def _poll_executing(self, now_ns: int, ready: bool) -> Query | TimedChunk | None:
        path = self.chunk
        assert path is not None
        self._tracking.add(now_ns, path.sample(now_ns))
        measured = self._sources.measured()
        # Of arms that have fallen silent it is not known whether they follow.
        silent = self._sources.state_age(now_ns) > self._rig.observation.state_age
        if not (self._dry or silent or measured is None):
            deviation = self._tracking.check(now_ns, measured)
            if deviation is not None:
                self.fault(deviation.message)
                return self._brake(now_ns, self._rig.rates.loss_brake)
        if now_ns >= path.end_ns:
            self._come_to_rest(path)
            return None
        if lost := self._sources.stale_source(now_ns):
            # A hand may be near the arms, at a cable: they move on only when told to.
            self.phase, self._pending = Phase.PAUSED, None
            self.message = (
                f"{lost}: braked, the arms hold; fix it, then ~/pause with data: false goes on"
            )
            brake = self._brake(now_ns, self._rig.rates.loss_brake)
            self._not_before_ns = brake.end_ns
            return brake
        if not (ready and self._is_time_to_query(now_ns)):
            return None
        try:
            observation = self._sources.observe(now_ns, self._not_before_ns)
        except ObservationError as error:
            self.message = f"executing chunk {self.chunks}; cannot ask for the next: {error}"
            return None
        left = (path.end_ns - now_ns) / NS_PER_S
        prefix = self._scheduler.action_prefix(path, observation.seen_ns)
        return self._query(observation, left, prefix)

    def _query(
        self,
        observation: Observation,
        left: float = 0.0,
        prefix: ActionPrefix | None = None,
        held: Array | None = None,
    ) -> Query:
        goal, index = self.goal, self._queries
        seed = (goal.seed + OTHER_NOISE * self._refused_in_row) % SEEDS
        self._queries += 1
        deadline = self._scheduler.deadline(left, goal.deadline)
        self._pending = Query(
            goal.task, goal.prompt, seed, index, observation, deadline, prefix, held
        )
        return self._pending

    def _is_time_to_query(self, now_ns: int) -> bool:
        path = self.chunk
        if path is None or self._pending is not None or self._missed or self._dry:
            return False
        if self._limit_reached(path.end_ns - self._moving_since_ns):  # it is the last chunk
            return False
        return self._scheduler.due((path.end_ns - now_ns) / NS_PER_S)

    def _come_to_rest(self, path: TimedChunk) -> None:
        """Go on after the last row of a path."""
        self._waiting_since_ns = self._not_before_ns = path.end_ns
        self._executed_ns += path.end_ns - self._moving_since_ns
        limit = self._limit_reached(0)
        if self._fault_at_rest:
            self._end("fault", self._fault_at_rest)
        elif limit == "chunk_limit":
            self._end(limit, f"executed its {self.chunks} chunks")
        elif limit:
            self._end(limit, f"executed {self._executed_ns / NS_PER_S:g} s of motion")
        elif self._pending is not None:  # a policy that is at the old query cannot take a new one
            self.phase, self.message = Phase.QUERYING, "the answer is late: the arms hold"
        else:
            self._observe("waiting for an observation")

    def _limit_reached(self, under_way_ns: int) -> str:
        """Return which limit is reached with so much more motion, empty for none."""
        if self.goal.chunk_limit and self.chunks >= self.goal.chunk_limit:
            return "chunk_limit"
        executed = (self._executed_ns + under_way_ns) / NS_PER_S
        return "time_limit" if executed >= self.goal.time_limit - 1e-9 else ""

    def answer(self, decision: Decision, now_ns: int) -> tuple[GateResult, TimedChunk | None]:
        """Judge a decision; the chunk, when there is one, is to be published at once."""
        query, self._pending = self._pending, None
        assert query is not None, "nothing was asked"
        self.transition = None
        if self.phase is Phase.EXECUTING:
            return self._answer_in_motion(query, decision, now_ns)
        if query.committed is not None:
            return self._too_late((now_ns - self._not_before_ns) / NS_PER_S), None
        now = self._context(query, now_ns)
        result = self._drift.add(self._gate.judge(decision.positions, decision.dt, now))
        at_rest = np.tile(now.commanded, (KEPT + self._rig.rates.chunk_steps, 1))
        self.transition = measure_transition(
            query.observation.stamp_ns,
            now.result_age,
            rows=(at_rest, decision.positions, result.positions),
            dt=decision.dt,
        )
        if result.positions is None:
            self._refuse(result)
            return result, None
        assert self._waiting_since_ns is not None
        self.idle_ns += now_ns - self._waiting_since_ns
        self._moving_since_ns = now_ns
        self._tracking.clear()
        self._tracking.add(now_ns, now.commanded)
        # All of it was judged; where the policy was unsure it looks again before its end.
        positions = result.positions[: decision.executed_rows or None]
        chunk = self._timed(decision.dt, now_ns, now.commanded, positions)
        return result, self._execute(chunk)

    def _answer_in_motion(
        self, query: Query, decision: Decision, now_ns: int
    ) -> tuple[GateResult, TimedChunk | None]:
        """Blend a chunk into the path under way; one that cannot be leaves the path unchanged."""
        path, seen_ns = self.chunk, query.observation.seen_ns
        assert path is not None
        decided = self._timed(decision.dt, seen_ns, path.sample(seen_ns), decision.positions)
        execution = self._scheduler.execution
        blend = Blend(path, decided, now_ns, execution.blend_rows)
        if blend.lateness > 0:
            return self._too_late(blend.lateness), None
        now = self._context(query, now_ns)
        result = self._drift.add(self._gate.judge_blend(blend, execution.blender, now))
        if result.rule != "shape":
            sent = None if result.positions is None else result.positions[KEPT:]
            self.transition = measure_transition(
                query.observation.stamp_ns,
                now.result_age,
                rows=(blend.old, blend.new[KEPT:], sent),
                dt=decision.dt,
                dropped=blend.dropped,
                blend_rows=blend.rows,
            )
        if result.positions is None:
            self._miss()
            self._refuse(result)
            return result, None
        return result, self._execute(blend.chunk(decided.chunk_id, result.positions))

    def _context(self, query: Query, now_ns: int) -> GateContext:
        measured = self._sources.measured()
        assert measured is not None, "a query was sent without a state"
        held = self.commanded(now_ns)
        return GateContext(
            commanded=measured if held is None else held,
            measured=measured,
            state_age=self._sources.state_age(now_ns),
            result_age=(now_ns - query.observation.seen_ns) / NS_PER_S,
            trail=self._tracking.commanded if self.phase is Phase.EXECUTING else None,
        )

    def _timed(self, dt: float, start_ns: int, start: Array, positions: Array) -> TimedChunk:
        chunk_id = f"{self.goal.run_id}/{self.chunks}"
        return TimedChunk(chunk_id, start_ns, dt, start, positions, self._rig.max_velocity)

    def _execute(self, chunk: TimedChunk) -> TimedChunk:
        self.chunk, self._refused_in_row, self._missed = chunk, 0, False
        self.chunks += 1
        self.phase, self.message = Phase.EXECUTING, f"executing chunk {self.chunks}"
        return chunk

    def _refuse(self, result: GateResult) -> None:
        self.refused += 1
        self._refused_in_row += 1
        limit = self._rig.gate.refusals
        if self._refused_in_row >= limit:
            self._fault(f"{limit} chunks refused in a row, the last: {result.message}")
        elif self.phase is Phase.EXECUTING:
            self.message = f"chunk refused, going on with the last: {result.message}"
        else:
            self._observe(f"chunk refused, holding: {result.message}")

    def _too_late(self, seconds: float) -> GateResult:
        """Drop an answer: the path plays out, and the next query comes from rest."""
        self.late += 1
        self._miss()
        message = f"the answer came {seconds:.2f} s too late for the path under way: dropped"
        if self.phase is Phase.QUERYING:
            self._observe(message)
        return GateResult(False, rule=LATE, value=seconds, message=message)

    def _miss(self) -> None:
        self._missed = True
        self._scheduler.missed()

    def query_failed(self, error: CosmosPolicyError, recoverable: bool) -> None:
        """Hold, and query again with a fresh observation unless the policy is gone for good.

        Arms that still move finish their chunk before.
        """
        query, self._pending = self._pending, None
        if query is None:
            return
        if query.committed is not None:
            self._miss()
        if not recoverable:
            self._fault(f"query failed: {error}; the arms hold")
        elif self.phase is Phase.EXECUTING:
            self.message = f"query failed: {error}; asking again once the arms rest"
        else:
            self._observe(f"query failed: {error}; the arms hold, asking again")

    def _fault(self, message: str) -> None:
        """End, but let arms that move finish their chunk, which the gate has passed, before."""
        if self.phase is Phase.EXECUTING:
            self._fault_at_rest = self.message = message
        else:
            self._end("fault", message)

    def pause(self, now_ns: int) -> TimedChunk | None:
        """Hold until :meth:`resume`; returns the braking chunk to publish when the arms are moving.

        An answer that is under way is of no use any more.
        """
        if self.paused:
            return None
        moving = self.phase is Phase.EXECUTING
        self.phase, self.message, self._pending = Phase.PAUSED, "paused: the arms hold", None
        brake = self._brake(now_ns, self._limits.brake_seconds) if moving else None
        # A brake of before the pause may still be under way.
        still_ns = now_ns if brake is None else brake.end_ns
        self._not_before_ns = max(self._not_before_ns, still_ns)
        return brake

    def resume(self) -> None:
        """Go on after a pause or a lost source, from what is seen from now on."""
        if self.phase is not Phase.PAUSED:
            return
        if self._fault_at_rest:  # the pause braked the path at whose end this was due
            self._end("fault", self._fault_at_rest)
        else:
            self._waiting_since_ns = None  # a pause is not idle time
            self._observe("resumed: waiting for an observation")

    @property
    def paused(self) -> bool:
        """Whether it waits for :meth:`resume`, or is over."""
        return self.phase in (Phase.PAUSED, Phase.DONE)

    def led(self, pose: Array, now_ns: int, message: str) -> None:
        """Note that a person has led the arms of a paused run to a (14,) pose: it goes on there.

        What was seen before counts no more.
        """
        self.chunk, self._commanded = None, pose
        self._not_before_ns, self.message = max(self._not_before_ns, now_ns), message

    def stop(self, now_ns: int, outcome: str, message: str) -> TimedChunk | None:
        """End the run; returns the braking chunk to publish when the arms are moving."""
        moving = self.phase is Phase.EXECUTING
        self._end(outcome, message)
        return self._brake(now_ns, self._limits.brake_seconds) if moving else None

    def fault(self, message: str) -> None:
        """End the run because the arms are not, or soon will not be, where its path has them.

        Nothing moves again before the arms have been disarmed and armed.
        """
        self._end("fault", message, latched=True)

    def _brake(self, now_ns: int, seconds: float) -> TimedChunk:
        assert self.chunk is not None
        self.chunk = self.chunk.brake(now_ns, seconds)
        self._executed_ns += self.chunk.end_ns - self._moving_since_ns
        return self.chunk

    def _observe(self, message: str) -> None:
        self.phase, self.message, self._observing_since = Phase.OBSERVING, message, None

    def _end(self, outcome: str, message: str, *, latched: bool = False) -> None:
        self.phase, self.message = Phase.DONE, message
        self.outcome = Outcome(outcome, message, latched)
