"""A run may move only on a fresh observation and an accepted chunk; everything else holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.feeding import JOINTS, fill, image

from cosmos_policy_ros.core.errors import WorkerError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.decision import Candidate, Decision, Query
from cosmos_policy_ros.rig.observation import SensorBuffer
from cosmos_policy_ros.rig.run import Goal, Phase, Run, RunLimits
from cosmos_policy_ros.rig.safety_gate import SafetyGate
from cosmos_policy_ros.rig.spec import RigSpec

GRIPPER = (0.038 - 0.01844) / (0.058 - 0.01844)
POSE = np.array([*JOINTS[:6], GRIPPER] * 2)


def decision(offset: float = 0.0) -> Decision:
    return Decision(np.tile(POSE + offset, (50, 1)), 0.04, (Candidate(1),), 0, "only one", "test")


class Bench:
    """A run with sources that report every control period."""

    def __init__(
        self, rig: RigSpec, time_limit: float = 20.0, chunk_limit: int = 0, dry: bool = False
    ) -> None:
        self.sources = SensorBuffer(rig)
        self.now = 10.0
        goal = Goal("r", "task", "prompt", time_limit, chunk_limit, 195)
        limits = RunLimits(observation_timeout=2.0, brake_seconds=0.4)
        self.run = Run(goal, rig, self.sources, SafetyGate(rig), limits, None, dry=dry)

    def poll(self, skip: str = "") -> Query | TimedChunk | None:
        now_ns = int(self.now * NS_PER_S)
        fill(self.sources, self.now, skip=skip, pose=self.run.commanded(now_ns))
        return self.run.poll(now_ns, self.now)

    def until(self, phase: Phase, skip: str = "") -> Query | TimedChunk | None:
        for _ in range(200):
            effect = self.poll(skip)
            if self.run.phase is phase:
                return effect
            self.now += 0.04
        raise AssertionError(f"never reached {phase}: {self.run.message}")


@pytest.fixture
def bench(rig: RigSpec) -> Bench:
    return Bench(rig)


def test_of_an_unsure_chunk_only_the_first_rows_are_executed(bench: Bench) -> None:
    bench.until(Phase.QUERYING)
    unsure = replace(decision(), executed_rows=20)
    verdict, chunk = bench.run.answer(unsure, int(bench.now * NS_PER_S))
    assert verdict.positions is not None and len(verdict.positions) == 50, "all were judged"
    assert chunk is not None
    np.testing.assert_array_equal(chunk.positions, verdict.positions[:20])
    assert not chunk.velocities[-1].any()
    bench.until(Phase.QUERYING)
    assert bench.now == pytest.approx(chunk.end_ns / NS_PER_S, abs=0.1)


def test_a_refused_chunk_of_which_little_would_be_executed_is_refused(bench: Bench) -> None:
    bench.until(Phase.QUERYING)
    rows = decision().positions.copy()
    rows[40:] += 1.5  # far beyond what is executed
    asked = replace(decision(), positions=rows, executed_rows=20)
    verdict, chunk = bench.run.answer(asked, int(bench.now * NS_PER_S))
    assert not verdict.accepted and chunk is None


@pytest.mark.parametrize("offset", [0.0, 0.04, -0.12, 0.4, -0.4, np.nan])
def test_what_the_gate_will_say_at_rest_is_known_with_the_query(
    rig: RigSpec, bench: Bench, offset: float
) -> None:
    bench.until(Phase.QUERYING)
    _, chunk = bench.run.answer(decision(0.1), int(bench.now * NS_PER_S))
    assert chunk is not None
    while bench.run.phase is not Phase.OBSERVING:
        bench.now += 0.04
        bench.poll()
    sagging = chunk.positions[-1] - 0.05  # off where they are held
    query = None
    while query is None:
        bench.now += 0.04
        fill(bench.sources, bench.now, pose=sagging)
        query = bench.run.poll(int(bench.now * NS_PER_S), bench.now)
    assert isinstance(query, Query) and query.held is not None
    np.testing.assert_array_equal(query.held, chunk.positions[-1])
    answer = decision(0.1 + offset)
    foreseen = SafetyGate(rig).foresee(query, answer.positions)
    verdict, _ = bench.run.answer(answer, int(bench.now * NS_PER_S))
    assert foreseen == ("" if verdict.accepted else verdict.message)
    assert verdict.accepted == (abs(offset) < 0.3)


def test_it_asks_moves_and_asks_again_with_what_it_sees_after_the_chunk(bench: Bench) -> None:
    query = bench.until(Phase.QUERYING)
    assert isinstance(query, Query)
    assert query.index == 0
    assert bench.poll() is None
    verdict, chunk = bench.run.answer(decision(), int(bench.now * NS_PER_S))
    assert verdict.accepted
    assert chunk is not None
    end = chunk.end_ns
    again = bench.until(Phase.QUERYING)
    assert isinstance(again, Query)
    assert again.index == 1
    assert again.observation.stamp_ns >= end


def test_time_limit_counts_motion_and_not_thinking(rig: RigSpec) -> None:
    bench = Bench(rig, time_limit=4.0)
    for _ in range(2):
        bench.until(Phase.QUERYING)
        bench.now += 5.0  # a slow policy
        fill(bench.sources, bench.now)
        bench.run.answer(decision(), int(bench.now * NS_PER_S))
    bench.until(Phase.DONE)
    assert bench.run.outcome is not None
    assert bench.run.outcome.outcome == "time_limit"
    assert bench.run.chunks == 2
    assert bench.run.idle_ns / NS_PER_S == pytest.approx(10.0, abs=0.2)


def test_chunk_limit(rig: RigSpec) -> None:
    bench = Bench(rig, chunk_limit=1)
    bench.until(Phase.QUERYING)
    bench.run.answer(decision(), int(bench.now * NS_PER_S))
    bench.until(Phase.DONE)
    assert bench.run.outcome is not None
    assert bench.run.outcome.success


def test_a_silent_camera_holds_then_ends_the_run_with_its_name(bench: Bench) -> None:
    for _ in range(10):
        assert bench.poll(skip="primary") is None
        bench.now += 0.04
    assert bench.run.phase is Phase.OBSERVING
    assert "cam_high" in bench.run.message
    bench.until(Phase.DONE, skip="primary")
    assert bench.run.outcome is not None
    assert bench.run.outcome.outcome == "fault"
    assert "cam_high" in bench.run.outcome.message


def test_refused_chunks_never_become_a_chunk_and_end_the_run(bench: Bench, rig: RigSpec) -> None:
    for attempt in range(rig.gate.refusals):
        query = bench.until(Phase.QUERYING)
        assert isinstance(query, Query)
        verdict, chunk = bench.run.answer(decision(0.5), int(bench.now * NS_PER_S))
        assert chunk is None
        assert verdict.rule == "start_jump"
        assert bench.run.refused == attempt + 1
    assert bench.run.phase is Phase.DONE
    assert bench.run.outcome is not None
    assert "refused in a row" in bench.run.outcome.message


def test_arms_that_fell_silent_while_the_policy_thought_are_not_moved(bench: Bench) -> None:
    bench.until(Phase.QUERYING)
    bench.now += 0.6
    verdict, chunk = bench.run.answer(decision(), int(bench.now * NS_PER_S))
    assert (verdict.rule, chunk) == ("stale_state", None)
    assert bench.run.phase is Phase.OBSERVING
    assert isinstance(bench.until(Phase.QUERYING), Query)  # they are back


def test_an_answer_to_what_was_seen_long_ago_moves_nothing(bench: Bench, rig: RigSpec) -> None:
    bench.until(Phase.QUERYING)
    bench.now += rig.gate.result_age + 1.0
    fill(bench.sources, bench.now)
    verdict, chunk = bench.run.answer(decision(), int(bench.now * NS_PER_S))
    assert (verdict.rule, chunk) == ("result_age", None)


def test_what_was_refused_is_asked_again_with_other_noise(bench: Bench, rig: RigSpec) -> None:
    """From what is seen there, the same noise would be answered with the same chunk."""
    seeds = []
    for answer in (0.5, 0.5, 0.0, 0.5, 0.0):
        query = bench.until(Phase.QUERYING)
        assert isinstance(query, Query)
        seeds.append(query.seed)
        bench.run.answer(decision(answer), int(bench.now * NS_PER_S))
    assert seeds == [195, 1195, 2195, 195, 1195]


def test_one_good_chunk_resets_the_count_of_refusals(bench: Bench, rig: RigSpec) -> None:
    for _ in range(2):
        for _ in range(rig.gate.refusals - 1):
            bench.until(Phase.QUERYING)
            bench.run.answer(decision(0.5), int(bench.now * NS_PER_S))
        bench.until(Phase.QUERYING)
        _, chunk = bench.run.answer(decision(), int(bench.now * NS_PER_S))
        assert chunk is not None


def lose(bench: Bench, source: str, frozen: bool = False) -> TimedChunk:
    """Lose a source in mid-chunk; return the brake."""
    for _ in range(50):
        bench.now += 0.04
        if frozen:
            bench.sources.add_image(source, image(7), int(bench.now * NS_PER_S))
        brake = bench.poll(skip=source)
        if brake is not None:
            assert isinstance(brake, TimedChunk)
            return brake
    raise AssertionError(f"nothing braked: {bench.run.message}")


@pytest.mark.parametrize(
    ("source", "frozen", "limit", "words"),
    [
        ("left", False, 0.5, "follower_left/joint_states: no good joint state for 0.52 s"),
        ("right", False, 0.5, "follower_right/joint_states: no good joint state for 0.52 s"),
        ("primary", False, 1.0, "cam_high/camera/color/image_rect_raw: no new image for 1.04 s"),
        ("left_wrist", True, 1.04, "cam_left_wrist/camera/color/image_rect_raw: no new image"),
    ],
)
def test_a_source_lost_in_mid_chunk_brakes_within_two_periods_and_latches(
    bench: Bench, source: str, frozen: bool, limit: float, words: str
) -> None:
    bench.until(Phase.QUERYING)
    moving = decision()
    moving.positions[:, 0] += np.linspace(0.0, 1.0, 50)
    _, chunk = bench.run.answer(moving, int(bench.now * NS_PER_S))
    assert chunk is not None
    brake = lose(bench, source, frozen)
    assert 0 < brake.start_ns - chunk.start_ns - limit * NS_PER_S <= 0.041 * NS_PER_S
    assert brake.end_ns - brake.start_ns == 80_000_000
    for _ in range(100):  # everything is back, but nobody has said that the arms may move
        bench.now += 0.04
        assert bench.poll() is None
    assert bench.run.phase is Phase.PAUSED
    assert words in bench.run.message
    assert "~/pause with data: false goes on" in bench.run.message
    bench.run.resume()
    # The next query continues from where the brake has led, not from where the chunk would be.
    query = bench.until(Phase.QUERYING)
    assert isinstance(query, Query)
    held = bench.run.commanded(int(bench.now * NS_PER_S))
    np.testing.assert_array_equal(held, brake.positions[-1])


@pytest.mark.parametrize("jump", [-10.0, 10.0])
def test_a_clock_that_jumps_in_mid_chunk_sends_nothing_in_haste(bench: Bench, jump: float) -> None:
    bench.until(Phase.QUERYING)
    _, chunk = bench.run.answer(decision(0.05), int(bench.now * NS_PER_S))
    assert chunk is not None
    for _ in range(10):
        bench.now += 0.04
        assert bench.poll() is None
    bench.now += jump
    sent = []
    for _ in range(400):  # 16 s: the chunk's 2, and 10 that are lived twice
        sent.append(bench.poll())
        bench.now += 0.04
    (query,) = [each for each in sent if each is not None]
    assert isinstance(query, Query)
    assert query.observation.stamp_ns >= chunk.end_ns
    fill(bench.sources, bench.now)
    # Where the chunk was to end; arms that have not come so far are refused the next one.
    np.testing.assert_array_equal(
        bench.run.commanded(int(bench.now * NS_PER_S)), chunk.positions[-1]
    )
    far = decision(0.5)
    verdict, none = bench.run.answer(far, int(bench.now * NS_PER_S))
    assert (verdict.rule, none) == ("start_jump", None)


def test_a_rig_may_let_a_chunk_go_on_without_images(rig: RigSpec) -> None:
    blind = replace(rig, observation=replace(rig.observation, image_timeout=0.0))
    bench = Bench(blind)
    bench.until(Phase.QUERYING)
    bench.run.answer(decision(), int(bench.now * NS_PER_S))
    bench.until(Phase.OBSERVING, skip="primary")


def test_stop_while_moving_brakes_and_while_waiting_does_nothing(bench: Bench) -> None:
    assert bench.run.stop(int(bench.now * NS_PER_S), "stopped", "by hand") is None
    assert bench.run.outcome is not None
    assert not bench.run.outcome.success


def test_stop_in_mid_chunk_returns_the_brake(bench: Bench) -> None:
    bench.until(Phase.QUERYING)
    bench.run.answer(decision(), int(bench.now * NS_PER_S))
    bench.now += 1.0
    brake = bench.run.stop(int(bench.now * NS_PER_S), "stopped", "by hand")
    assert brake is not None
    assert brake.chunk_id.endswith("/brake")


def test_a_dead_worker_is_asked_again_unless_it_is_gone_for_good(bench: Bench) -> None:
    bench.until(Phase.QUERYING)
    bench.run.query_failed(WorkerError("process 7 was killed by SIGKILL"), recoverable=True)
    assert bench.run.phase is Phase.OBSERVING
    assert "SIGKILL" in bench.run.message
    bench.until(Phase.QUERYING)
    bench.run.query_failed(WorkerError("gave up"), recoverable=False)
    assert bench.run.outcome is not None
    assert bench.run.outcome.outcome == "fault"


def test_a_pause_brakes_along_the_path_and_what_follows_is_seen_after_it(bench: Bench) -> None:
    bench.until(Phase.QUERYING)
    _, chunk = bench.run.answer(decision(0.05), int(bench.now * NS_PER_S))
    assert chunk is not None
    bench.now += 0.5
    brake = bench.run.pause(int(bench.now * NS_PER_S))
    assert brake is not None
    np.testing.assert_allclose(brake.start, chunk.sample(int(bench.now * NS_PER_S)))
    assert bench.run.phase is Phase.PAUSED
    assert bench.run.pause(int(bench.now * NS_PER_S)) is None, "a second one changes nothing"
    for _ in range(100):
        bench.now += 0.04
        assert bench.poll() is None
    bench.run.resume()
    query = bench.until(Phase.QUERYING)
    assert isinstance(query, Query)
    assert query.index == 1
    held = bench.run.commanded(int(bench.now * NS_PER_S))
    assert held is not None
    np.testing.assert_array_equal(held, brake.positions[-1])
    assert bench.run.idle_ns < 0.5 * NS_PER_S


def test_after_a_person_has_led_the_arms_it_goes_on_from_there(bench: Bench) -> None:
    """From the pose that was commanded last, whoever commanded it; and nothing old is looked at."""
    bench.until(Phase.QUERYING)
    bench.run.answer(decision(), int(bench.now * NS_PER_S))
    bench.now += 0.5
    assert bench.run.pause(int(bench.now * NS_PER_S)) is not None
    bench.now += 5.0
    led_ns, pose = int(bench.now * NS_PER_S), POSE + 0.3
    bench.run.led(pose, led_ns, "paused: a person leads the arms")
    assert bench.run.paused and bench.run.commanded(led_ns) is pose
    bench.run.resume()
    query = bench.until(Phase.QUERYING)
    assert isinstance(query, Query)
    assert query.observation.stamp_ns >= led_ns
    _, chunk = bench.run.answer(decision(), int(bench.now * NS_PER_S))
    assert chunk is not None
    np.testing.assert_array_equal(chunk.start, pose)


def test_a_pause_while_waiting_needs_no_brake_and_asks_anew(bench: Bench) -> None:
    bench.until(Phase.QUERYING)
    paused_at = int(bench.now * NS_PER_S) + 20_000_000
    assert bench.run.pause(paused_at) is None
    bench.run.resume()
    assert bench.run.poll(paused_at, bench.now) is None, "nothing is newer than the pause yet"
    bench.now += 0.2
    query = bench.until(Phase.QUERYING)
    assert isinstance(query, Query)
    assert query.observation.stamp_ns >= paused_at


def test_a_pause_while_a_lost_arms_brake_is_under_way_waits_for_its_end(bench: Bench) -> None:
    bench.until(Phase.QUERYING)
    bench.run.answer(decision(), int(bench.now * NS_PER_S))
    brake = lose(bench, "left")
    assert bench.run.pause(int(bench.now * NS_PER_S)) is None
    bench.run.resume()
    query = bench.until(Phase.QUERYING)
    assert isinstance(query, Query)
    assert query.observation.stamp_ns >= brake.end_ns


def test_a_dry_run_begins_every_chunk_where_the_arms_stand(rig: RigSpec) -> None:
    bench = Bench(rig, dry=True)
    for _ in range(3):
        bench.until(Phase.QUERYING)
        verdict, chunk = bench.run.answer(decision(0.12), int(bench.now * NS_PER_S))
        assert verdict.accepted, verdict.message
        assert chunk is not None
        np.testing.assert_allclose(chunk.start, POSE)
        bench.now += 2.0
