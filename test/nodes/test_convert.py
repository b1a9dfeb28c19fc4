"""What reaches the arms: exact times, the rig's gripper units, the start as the rig file says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.nodes.convert import (
    TrajectoryMessages,
    decision_to_message,
    gate_result_to_message,
    image_to_message,
)
from cosmos_policy_ros.nodes.shell import stamp_to_ns
from cosmos_policy_ros.rig.chunk import ChunkTransition, Discontinuity, TimedChunk
from cosmos_policy_ros.rig.decision import Candidate, Decision, Query
from cosmos_policy_ros.rig.observation import Observation
from cosmos_policy_ros.rig.safety_gate import GateResult
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

START_NS = 1_700_000_000_123_456_789
JOINTS = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]
# What is sent for a closed and for an open gripper [rad], per rig file.
GRIPPER = {"sim": (-0.6213, 1.4910), "interbotix_1": (0.6197, 1.6214)}


@pytest.fixture(params=sorted(GRIPPER))
def any_rig(request: pytest.FixtureRequest) -> RigSpec:
    return load_rig(request.param, config_folder("rigs"))


def chunk(rig: RigSpec) -> TimedChunk:
    """Return a chunk in which every one of the 14 targets moves at its own speed."""
    start = np.linspace(-0.2, 0.2, 14)
    start[[6, 13]] = 0.25
    positions = start + np.linspace(0.01, 0.5, 50)[:, None] * np.linspace(0.1, 1.4, 14)
    return TimedChunk("run/3", START_NS, 0.04, start, positions, rig.max_velocity)


def test_times_are_exact_nanoseconds(any_rig: RigSpec) -> None:
    for trajectory in TrajectoryMessages(any_rig).fill(chunk(any_rig), START_NS):
        times = [p.time_from_start for p in trajectory.points]
        assert [t.sec * 10**9 + t.nanosec for t in times] == [
            40_000_000 * (row + 1) for row in range(50)
        ]
        assert (times[24].sec, times[24].nanosec) == (1, 0)
        assert (times[-1].sec, times[-1].nanosec) == (2, 0)


def test_each_arm_gets_its_own_seven(any_rig: RigSpec) -> None:
    given = chunk(any_rig)
    left, right = TrajectoryMessages(any_rig).fill(given, START_NS)
    for trajectory, first in ((left, 0), (right, 7)):
        assert list(trajectory.joint_names) == JOINTS
        assert trajectory.header.frame_id == "run/3"
        rows = np.array([p.positions for p in trajectory.points])
        np.testing.assert_array_equal(rows[:, :6], given.positions[:, first : first + 6])
        speeds = np.array([p.velocities for p in trajectory.points])
        np.testing.assert_array_equal(speeds[:, :6], given.velocities[:, first : first + 6])
        assert not speeds[-1].any()
        assert all(len(p.effort) == len(p.accelerations) == 0 for p in trajectory.points)


def test_grippers_are_sent_in_the_rigs_unit(any_rig: RigSpec) -> None:
    closed, opened = GRIPPER[any_rig.name]
    given = chunk(any_rig)
    given.positions[:, 6] = np.linspace(0.0, 1.0, 50)
    given.positions[:, 13] = 0.5
    left, right = TrajectoryMessages(any_rig).fill(given, START_NS)
    angles = [p.positions[6] for p in left.points]
    assert angles[0] == pytest.approx(closed, abs=1e-12)
    assert angles[-1] == pytest.approx(opened, abs=1e-12)
    assert right.points[7].positions[6] == pytest.approx((closed + opened) / 2, abs=1e-12)
    # A velocity has the stroke's scale but not its offset.
    middle = left.points[24].velocities[6]
    assert middle == pytest.approx((opened - closed) / 49 / 0.04, rel=1e-9)


def test_the_policys_own_array_is_left_alone(any_rig: RigSpec) -> None:
    given = chunk(any_rig)
    before = given.positions.copy()
    TrajectoryMessages(any_rig).fill(given, START_NS)
    np.testing.assert_array_equal(given.positions, before)


@pytest.mark.parametrize(("stamp", "expected"), [("zero", 0), ("start", START_NS)])
def test_the_stamp_is_as_the_rig_file_says(rig: RigSpec, stamp: str, expected: int) -> None:
    spec = replace(rig, trajectory_stamp=stamp)
    for trajectory in TrajectoryMessages(spec).fill(chunk(spec), START_NS):
        header = trajectory.header
        assert header.stamp.sec * 10**9 + header.stamp.nanosec == expected


def test_a_decision_is_told_whole() -> None:
    observation = Observation(START_NS, {"primary": np.zeros((2, 2, 3), np.uint8)}, np.ones(14), {})
    query = Query("ziploc", "put candy in bag", 195, 4, observation)
    candidates = (Candidate(195, (0.25, 0.75), 0.5, 0.25), Candidate(196, finished=False))
    positions = np.arange(700.0).reshape(50, 14)
    search = {"world_model_digest": "other", "numerics": "paper", "search": "{candidates: 2}"}
    decision = Decision(
        positions, 0.04, candidates, 0, "best value", "cosmos", "digest", 10, **search
    )
    told = decision_to_message(decision, query, "run", "run/4", {"encode": 0.5, "denoise": 1.5})
    assert told.header.stamp.sec * 10**9 + told.header.stamp.nanosec == START_NS
    assert (told.run_id, told.chunk_id, told.task) == ("run", "run/4", "ziploc")
    assert (told.prompt, told.engine) == ("put candy in bag", "cosmos")
    assert (told.checkpoint_digest, told.denoising_steps) == ("digest", 10)
    assert {name: getattr(told, name) for name in search} == search
    assert told.observation_digest == observation.digest()
    assert (told.requested, told.finished, told.chosen, told.reason) == (2, 1, 0, "best value")
    assert list(told.phases) == ["encode", "denoise"]
    assert list(told.phase_seconds) == [0.5, 1.5]
    assert (told.dt, told.steps) == (0.04, 50)
    np.testing.assert_array_equal(np.reshape(told.positions, (50, 14)), positions)
    first, second = told.candidates
    assert (first.seed, first.finished, first.value, first.spread) == (195, True, 0.5, 0.25)
    assert list(first.values) == [0.25, 0.75]
    assert not second.finished
    assert math.isnan(second.value)


def test_a_policy_that_answers_in_half_the_precision_is_told_too() -> None:
    observation = Observation(START_NS, {}, np.ones(14), {})
    query = Query("ziploc", "put candy in bag", 195, 4, observation)
    positions = np.arange(700, dtype=np.float32).reshape(50, 14)
    decision = Decision(positions, 0.04, (Candidate(195),), 0, "only one", "remote")
    told = decision_to_message(decision, query, "run", "run/4", {})
    np.testing.assert_array_equal(np.reshape(told.positions, (50, 14)), positions)


def test_an_imagined_image_bears_its_decisions_stamp_and_chunk() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    told = image_to_message(image, START_NS, "run/4")
    assert told.header.stamp.sec * 10**9 + told.header.stamp.nanosec == START_NS
    assert (told.header.frame_id, told.encoding) == ("run/4", "rgb8")
    assert (told.height, told.width, told.step) == (2, 4, 12)
    assert bytes(told.data) == image.tobytes()


def test_a_gate_result_tells_of_its_transition(rig: RigSpec) -> None:
    transition = ChunkTransition(
        START_NS, 0.3, 9, 5, Discontinuity(0.1, 2.0, 30.0), Discontinuity(0.01, 0.2, 3.0)
    )
    now_ns = START_NS + 300_000_000
    told = gate_result_to_message(GateResult(True), transition, "run/1", now_ns, rig)
    assert (stamp_to_ns(told.asked), told.latency, told.dropped) == (START_NS, 0.3, 9)
    assert told.blend_rows == 5
    assert list(told.jump_decided) == [0.1, 2.0, 30.0]
    assert list(told.jump_sent) == [0.01, 0.2, 3.0]
    refused = gate_result_to_message(
        GateResult(False), replace(transition, sent=None), "run/1", START_NS, rig
    )
    assert not refused.jump_sent


def test_a_gate_result_names_its_joint(rig: RigSpec) -> None:
    refusal = GateResult(False, None, 0, "step_speed", 9, 3, 0.4, 0.1, "too fast")
    told = gate_result_to_message(refusal, None, "run/1", START_NS, rig)
    assert (told.accepted, told.rule, told.joint_name) == (False, "step_speed", "right/elbow")
    assert (told.joint, told.step, told.value, told.limit) == (9, 3, 0.4, 0.1)
    assert (told.chunk_id, told.message) == ("run/1", "too fast")
    accepted = gate_result_to_message(GateResult(True, clamped=2), None, "run/1", START_NS, rig)
    assert (accepted.accepted, accepted.joint, accepted.joint_name) == (True, -1, "")
    assert accepted.clamped == 2
