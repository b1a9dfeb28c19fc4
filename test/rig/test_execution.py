"""A run that asks while the arms move: no pause if answers can come in time, else as at rest."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from helpers.feeding import JOINTS, fill
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_policy_ros.core.errors import WorkerError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.chunk import KEPT, TimedChunk
from cosmos_policy_ros.rig.decision import Candidate, Decision, Query
from cosmos_policy_ros.rig.execution import (
    Execution,
    InferenceScheduler,
    LatencyTracker,
    Mode,
    TransitionMode,
)
from cosmos_policy_ros.rig.observation import SensorBuffer
from cosmos_policy_ros.rig.run import LATE, Goal, Phase, Run, RunLimits
from cosmos_policy_ros.rig.safety_gate import SafetyGate
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

RIG = load_rig("sim", config_folder("rigs"))
GATE = SafetyGate(RIG)  # it remembers nothing; making one takes as long as a short run
LIMIT = RIG.max_velocity * RIG.gate.velocity_scale * RIG.rates.dt
GRIPPER = (0.038 - 0.01844) / (0.058 - 0.01844)
POSE = np.array([*JOINTS[:6], GRIPPER] * 2)
TICK = 0.01
CHUNK = 2.0


def chunk_near(seed: int) -> np.ndarray:
    """Return (50, 14) rows that swing about the pose, within the gate's start jump."""
    rng = np.random.default_rng(seed)
    swing = np.sin(np.linspace(0, rng.uniform(0.5, 4.0), 50) + rng.uniform(0, 6.28))
    return POSE + 0.06 * swing[:, None] * rng.uniform(-1, 1, 14)


class Bench:
    """A run on a rig that hardly moves, and a policy whose answers take what they take."""

    def __init__(
        self,
        latencies: Iterable[float],
        mode: Mode = "asynchronous",
        transition: TransitionMode = "blend",
        searches: bool = False,
        rig: RigSpec = RIG,
        **goal: float,
    ) -> None:
        self.now, self.tick_seconds = 10.0, TICK
        self.sources, self.latency = SensorBuffer(rig), LatencyTracker()
        limits = {"time_limit": 20.0, "chunk_limit": 0, "seed": 1, "deadline": 0.0} | goal
        self.scheduler = InferenceScheduler(
            Execution(mode, transition, searches=searches), rig.rates, self.latency
        )
        self.run = Run(
            Goal("r", "task", "prompt", **limits),  # type: ignore[arg-type]
            rig,
            self.sources,
            GATE if rig is RIG else SafetyGate(rig),
            RunLimits(observation_timeout=2.0, brake_seconds=0.4),
            None,
            scheduler=self.scheduler,
        )
        self.latencies = deque(latencies)
        self.thinking: tuple[Query, float] | None = None
        self.queries: list[Query] = []
        self.sent: list[tuple[int, TimedChunk]] = []
        self.rules: list[str] = []

    def tick(self, skip: str = "") -> None:
        now_ns = round(self.now * NS_PER_S)
        fill(self.sources, self.now, skip=skip)
        effect = self.run.poll(now_ns, self.now)
        if isinstance(effect, TimedChunk):
            self.sent.append((now_ns, effect))
            self.thinking = None
        elif effect is not None:
            self.queries.append(effect)
            self.thinking = effect, self.now + (self.latencies.popleft() if self.latencies else 0.1)
        if self.thinking is not None and self.now >= self.thinking[1]:
            query, self.thinking = self.thinking[0], None
            rows = chunk_near(query.index)
            decision = Decision(rows, 0.04, (Candidate(1),), 0, "only one", "test")
            verdict, chunk = self.run.answer(decision, now_ns)
            self.latency.add((now_ns - query.observation.stamp_ns) / NS_PER_S, {})
            self.rules.append(verdict.rule)
            if chunk is not None:
                self.sent.append((now_ns, chunk))
        self.now += self.tick_seconds

    def play(self, seconds: float = 60.0) -> None:
        until = self.now + seconds
        while self.run.outcome is None and self.now < until:
            self.tick()

    @property
    def idle_later(self) -> float:
        """Seconds of idleness after the first motion."""
        first = self.queries[0].observation.stamp_ns
        return (self.run.idle_ns - (self.sent[0][0] - first)) / NS_PER_S


@pytest.mark.parametrize("latency", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_no_pause_if_two_latencies_fit_into_a_chunk(latency: float) -> None:
    bench = Bench([latency] * 100)
    bench.play()
    assert bench.run.outcome is not None and bench.run.outcome.outcome == "time_limit"
    assert bench.idle_later == pytest.approx(0.0, abs=2 * TICK)
    assert set(bench.rules) == {""}
    assert all(query.committed is not None for query in bench.queries[1:])
    assert [query.held is None for query in bench.queries] == [False] + [True] * (
        len(bench.queries) - 1
    )
    # As in blocking mode the last chunk is executed whole.
    moved = (bench.sent[-1][1].end_ns - bench.sent[0][0]) / NS_PER_S
    assert 20.0 <= moved < 20.0 + CHUNK


@pytest.mark.parametrize("latency", [1.0, 1.4, 1.8])
def test_auto_asks_at_rest_if_a_pause_would_be_left(latency: float) -> None:
    bench = Bench([latency] * 100, mode="auto")
    bench.play(90.0)
    assert all(query.committed is None for query in bench.queries)
    per_chunk = bench.idle_later / (bench.run.chunks - 1)
    assert per_chunk == pytest.approx(latency, abs=0.05)


def test_blocking_never_asks_in_motion() -> None:
    bench = Bench([0.1] * 100, mode="synchronous")
    bench.play()
    assert bench.run.chunks == 10
    assert all(query.committed is None for query in bench.queries)


LATENCIES = st.lists(st.floats(0.0, 1.9), min_size=1, max_size=25)


@settings(max_examples=25)
@given(
    latencies=LATENCIES,
    mode=st.sampled_from(["asynchronous", "auto"]),
    transition=st.sampled_from(["blend", "condition"]),
)
def test_for_any_latencies_one_path_is_sent_and_nothing_of_the_past(
    latencies: list[float], mode: Mode, transition: TransitionMode
) -> None:
    bench = Bench(latencies, mode, transition, time_limit=12.0)
    bench.tick_seconds = 2 * TICK
    bench.play(120.0)
    assert bench.run.outcome is not None, bench.run.message
    assert bench.run.outcome.outcome == "time_limit", bench.run.message
    before: TimedChunk | None = None
    for now_ns, chunk in bench.sent:
        times = chunk.times_ns()
        assert chunk.sent_ns == now_ns, "times are counted from when it is sent"
        assert times[0] > 0 and (np.diff(times) > 0).all()
        rows = np.vstack([chunk.start, chunk.positions])
        assert (np.abs(np.diff(rows, axis=0)) <= LIMIT * (1 + 1e-9)).all()
        assert (chunk.positions >= RIG.lower - 1e-9).all()
        assert (chunk.positions <= RIG.upper + 1e-9).all()
        if before is not None:
            for found, was in zip(chunk.state(now_ns), before.state(now_ns), strict=True):
                np.testing.assert_allclose(found, was, atol=1e-9)
        before = chunk


def test_an_answer_that_comes_too_late_is_dropped_and_the_budget_adapts() -> None:
    bench = Bench([0.2, 0.2, 0.2, 1.5, 0.2, 0.2])
    while LATE not in bench.rules:
        bench.tick()
    late = len(bench.rules) - 1
    path = bench.sent[-1][1]
    assert len(bench.sent) == late, "nothing was sent of it"
    # It came after the path's end, where the arms hold; the next query is from rest.
    assert bench.now * NS_PER_S > path.end_ns
    assert bench.run.late == 1 and bench.run.refused == 0
    assert bench.run.transition is None
    bench.tick()
    assert bench.queries[-1].committed is None
    assert bench.queries[-1].observation.stamp_ns >= path.end_ns
    assert bench.latency.p95 == pytest.approx(1.5, abs=2 * TICK)
    # By the largest of so few latencies there is just time for one query a chunk.
    bench.play(2.1)
    (now_ns, _), asked = bench.sent[-1], bench.queries[-1]
    assert asked.committed is not None
    assert asked.observation.stamp_ns - now_ns < 0.5 * NS_PER_S


def test_an_answer_after_a_loss_or_a_pause_is_of_no_use() -> None:
    for end in ("loss", "pause"):
        bench = Bench([0.2, 0.2, 0.6])
        while len(bench.queries) < 3 or bench.queries[-1].committed is None:
            bench.tick()
        if end == "pause":
            brake = bench.run.pause(round(bench.now * NS_PER_S))
            assert brake is not None
        else:
            while bench.run.phase is Phase.EXECUTING:
                bench.tick(skip="left")
        assert bench.run.phase is Phase.PAUSED
        bench.thinking = None
        bench.run.resume()
        asked = len(bench.queries)
        while len(bench.queries) == asked:
            bench.tick()
        assert bench.queries[-1].committed is None


@pytest.mark.parametrize("refusals", [1, 3])
def test_a_refusal_in_motion_lets_the_path_end(refusals: int) -> None:
    """What has passed the gate is played out; then the run ends, or asks at rest."""
    rig = replace(RIG, gate=replace(RIG.gate, refusals=refusals))
    bench = Bench([0.2, 0.2, 0.6], rig=rig)
    while len(bench.queries) < 3:
        bench.tick()
    path, now_ns = bench.sent[-1][1], round(bench.now * NS_PER_S)
    bench.thinking = None
    far = Decision(np.tile(POSE + 0.45, (50, 1)), 0.04, (Candidate(1),), 0, "", "test")
    verdict, chunk = bench.run.answer(far, now_ns)
    assert (verdict.rule, chunk) == ("start_jump", None)
    assert bench.run.phase is Phase.EXECUTING
    while bench.run.phase is Phase.EXECUTING:
        bench.tick()
    assert bench.run.chunk is path
    assert bench.now * NS_PER_S >= path.end_ns
    if refusals == 1:
        assert bench.run.outcome is not None
        assert "refused in a row" in bench.run.outcome.message
    else:
        bench.tick()
        assert bench.queries[-1].committed is None


@pytest.mark.parametrize("recoverable", [True, False])
def test_a_policy_that_fails_in_motion_lets_the_path_end(recoverable: bool) -> None:
    bench = Bench([0.2, 0.2, 9.0])
    while len(bench.queries) < 3:
        bench.tick()
    path = bench.sent[-1][1]
    bench.thinking = None
    bench.run.query_failed(WorkerError("process 7 was killed"), recoverable)
    assert bench.run.phase is Phase.EXECUTING
    while bench.run.phase is Phase.EXECUTING:
        bench.tick()
    assert bench.now * NS_PER_S >= path.end_ns
    if recoverable:
        bench.tick()
        assert bench.queries[-1].committed is None
    else:
        assert bench.run.outcome is not None and bench.run.outcome.outcome == "fault"


def test_a_run_that_is_about_to_end_ends_after_a_pause_too() -> None:
    bench = Bench([0.2, 0.2, 9.0])
    while len(bench.queries) < 3:
        bench.tick()
    bench.thinking = None
    bench.run.query_failed(WorkerError("gave up"), recoverable=False)
    assert bench.run.pause(round(bench.now * NS_PER_S)) is not None
    assert bench.run.outcome is None
    bench.run.resume()
    assert bench.run.outcome is not None and "gave up" in bench.run.outcome.message


def test_what_is_committed_is_the_path_at_the_rows_that_are_asked_for() -> None:
    bench = Bench([0.2] * 20, transition="condition")
    while len(bench.queries) < 3:
        bench.tick()
    committed, path = bench.queries[-1].committed, bench.run.chunk
    assert committed is not None and path is not None
    stamp_ns = bench.queries[-1].observation.stamp_ns
    assert committed.seconds == pytest.approx((path.end_ns - stamp_ns) / NS_PER_S)
    for row, pose in enumerate(committed.positions):
        np.testing.assert_array_equal(pose, path.sample(stamp_ns + (row + 1) * 40_000_000))
    # Exact for what is past when the answer comes, and the rows that stay; then let go.
    held = round(0.2 / 0.04) + KEPT
    assert (committed.weights[:held] == 1.0).all()
    assert (np.diff(committed.weights[held - 1 :]) < 0).all()
    assert 0 < committed.weights[-1] < 0.3


def test_blending_alone_commits_to_nothing() -> None:
    bench = Bench([0.2] * 20, transition="blend")
    bench.play(5.0)
    assert bench.queries[-1].committed is not None
    assert not bench.queries[-1].committed.binds


def test_a_search_is_given_the_time_that_is_left() -> None:
    bench = Bench([0.5] * 20, searches=True, deadline=30.0)
    bench.play(8.0)
    first, second = bench.queries[:2]
    assert first.deadline == 30.0, "at rest it may take what the task says"
    assert second.committed is not None
    left = (bench.sent[0][1].end_ns - second.observation.stamp_ns) / NS_PER_S
    assert left == pytest.approx(CHUNK / 2, abs=2 * TICK)
    assert 0.8 < second.deadline < left
    short = Bench([0.5] * 20, searches=True, deadline=0.4)
    short.play(8.0)
    assert {query.deadline for query in short.queries} == {0.4}


def test_auto_gives_up_searching_in_motion_once_there_was_too_little_time() -> None:
    bench = Bench([0.3, 1.5, 0.3, 0.3, 0.3], mode="auto", searches=True)
    bench.play(15.0)
    assert bench.run.late == 1
    assert [query.committed is not None for query in bench.queries] == [
        False,
        True,
        *[False] * (len(bench.queries) - 2),
    ]


def test_boundaries_are_measured() -> None:
    bench = Bench([0.3] * 20)
    bench.play(6.0)
    transition = bench.run.transition
    assert transition is not None and transition.sent is not None
    assert transition.latency == pytest.approx(0.3, abs=2 * TICK)
    assert transition.dropped == pytest.approx(0.3 / 0.04 + KEPT, abs=1)
    for name in ("position", "velocity", "acceleration"):
        decided, sent = (dataclasses.asdict(j)[name] for j in (transition.decided, transition.sent))
        assert sent < decided, name
    assert "rows dropped; jump as decided" in str(transition)


def test_the_warm_up_counts_only_until_something_else_is_known() -> None:
    tracker = LatencyTracker()
    assert tracker.p95 is None
    tracker.add(5.0, {"encode": 4.0})
    assert tracker.p95 == 5.0
    tracker.add(0.4, {"encode": 0.1})
    tracker.add(0.6, {"encode": 0.3})
    assert tracker.p95 == 0.6
    assert tracker.cautious == pytest.approx(0.9)
    assert tracker.summary() == {
        "total": "p50 0.6 s, p95 0.6 s",
        "encode": "p50 0.3 s, p95 0.3 s",
    }
    tracker.restarted()
    tracker.add(7.0, {"encode": 6.0})
    assert tracker.p95 == 0.6
    for _ in range(99):
        tracker.add(0.2, {})
    assert tracker.p95 == 0.2
    assert tracker.phases_p95("encode", "unheard-of") == 0.3
