"""Whatever path the arms are on, a brake ends it when the policy node is gone, and only then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.dataset.windows import BRAKE
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.controller_brakes import HOLD, BrakeTrajectory, ControllerBrakes
from cosmos_policy_ros.rig.spec import RigSpec, load_rig
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryController, TrajectoryPoint

SIM, REAL = (load_rig(name, config_folder("rigs")) for name in ("sim", "interbotix_2"))
RIG = replace(SIM, stream=REAL.stream)  # controllers take its trajectories; a real rig's patience
LEFT, RIGHT = RIG.outputs
NOW = 1_000 * NS_PER_S
TICK = NS_PER_S // 50
PATIENCE = round(RIG.stream.heartbeat_timeout * NS_PER_S)
SMALLEST = 1e-9
START = np.concatenate([[*arm.start, 0.0] for arm in RIG.arms.values()])


def walk(seed: int) -> TimedChunk:
    """Return a random chunk within the rig's speeds, from the start pose."""
    steps = np.random.default_rng(seed).uniform(-0.5, 0.5, (50, 14)) * RIG.max_velocity / 25.0
    path = np.clip(START + np.cumsum(steps, axis=0), RIG.lower, RIG.upper)
    return TimedChunk("run/3", NOW, 0.04, START, path, RIG.max_velocity)


def points_of(chunk: TimedChunk, columns: tuple[int, ...]) -> list[TrajectoryPoint]:
    positions = RIG.command(chunk.positions)[:, columns].tolist()
    velocities = RIG.command_speed(chunk.velocities)[:, columns].tolist()
    return [
        TrajectoryPoint(tuple(p), tuple(v), time)
        for p, v, time in zip(positions, velocities, chunk.times_ns(), strict=True)
    ]


class Bench:
    """A guard, the controllers beside it, and a policy node that may fall silent."""

    def __init__(self, rig: RigSpec = RIG) -> None:
        self.brakes = ControllerBrakes(rig, self.measured)
        self.now = NOW
        self.armed = self.alive = True
        self.announced = (0, "")
        self.offset: np.ndarray | None = None  # of the arms from where they are commanded
        self.holds: dict[str, BrakeTrajectory] = {}
        start = RIG.command(START[None])[0]
        self.controllers = {
            o.name: TrajectoryController(o.joints, start[list(o.columns)]) for o in RIG.outputs
        }

    def measured(self, now_ns: int) -> np.ndarray | None:
        sent = np.zeros(14)
        for output in RIG.outputs:
            sent[list(output.columns)] = self.controllers[output.name].sample(now_ns)
        pose = RIG.commanded(sent[None])[0]
        return pose if self.offset is None else pose + self.offset

    def speak(self) -> None:
        self.obey(self.brakes.on_policy_state("me", self.armed, "run", self.announced, self.now))

    def send(self, chunk: TimedChunk) -> None:
        self.announced = (self.announced[0] + 1, chunk.chunk_id)
        if self.alive:
            self.speak()
        for output in RIG.outputs:
            points = points_of(chunk, output.columns)
            self.controllers[output.name].accept(output.joints, points, 0, self.now)
            self.obey(
                self.brakes.on_trajectory(
                    output.name, chunk.chunk_id, output.joints, points, 0, self.now
                )
            )

    def run(self, ns: int) -> None:
        for _ in range(ns // TICK):
            self.now += TICK
            if self.alive:
                self.speak()
            self.obey(self.brakes.tick(self.now))

    def obey(self, holds: dict[str, BrakeTrajectory]) -> None:
        self.holds |= holds
        for name, hold in holds.items():
            self.controllers[name].accept(hold.joints, hold.points, 0, self.now)
            # As on the wire, where the arm interface hears itself.
            assert not self.brakes.on_trajectory(
                name, hold.chunk_id, hold.joints, hold.points, 0, self.now
            )

    def resting(self) -> bool:
        return all(self.now >= each.end_ns for each in self.controllers.values())


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.run(NS_PER_S // 10)
    return bench


def test_it_keeps_out_of_the_way_of_a_policy_node_that_lives(bench: Bench) -> None:
    bench.send(walk(0))
    bench.run(3 * NS_PER_S)
    assert not bench.holds and not bench.brakes.reason
    assert bench.resting()


def test_silence_holds_both_arms_and_stays(bench: Bench) -> None:
    bench.send(walk(1))
    bench.run(NS_PER_S // 2)
    bench.alive = False
    bench.run(PATIENCE + 2 * TICK)
    assert set(bench.holds) == {LEFT.name, RIGHT.name}
    assert "the policy node was last heard of 0.3" in bench.brakes.reason
    assert all(h.chunk_id == f"run/3{HOLD}" for h in bench.holds.values())
    assert HOLD.endswith(BRAKE), "who reads the bag knows a brake by it"
    bench.run(round(RIG.rates.loss_brake * NS_PER_S))
    assert bench.resting()
    # Alive again, but nobody has seen to the arms: what it sends is ended at once.
    bench.alive = True
    bench.run(NS_PER_S)
    assert bench.brakes.reason
    bench.send(walk(2))
    bench.run(round(RIG.rates.loss_brake * NS_PER_S))
    assert bench.resting()
    bench.armed = False
    bench.run(NS_PER_S // 10)
    assert not bench.brakes.reason


def test_disarmed_or_at_rest_nothing_is_sent(bench: Bench) -> None:
    chunk = walk(3)
    bench.send(chunk)
    bench.send(chunk.brake(bench.now, 0.4))
    bench.armed = False
    bench.run(NS_PER_S)
    bench.alive = False
    bench.run(NS_PER_S)
    assert not bench.holds
    bench.alive = bench.armed = True
    bench.run(2 * NS_PER_S)
    assert bench.resting()
    bench.alive = False
    bench.run(NS_PER_S)
    assert bench.brakes.reason and not bench.holds, "what rests is not sent anything"


def test_who_was_kept_waiting_listens_first(bench: Bench) -> None:
    bench.send(walk(4))
    late = bench.now + NS_PER_S
    assert not bench.brakes.tick(late)
    bench.now = late
    bench.speak()
    assert not bench.brakes.tick(late + TICK)
    assert not bench.brakes.reason


def test_a_wait_too_short_for_a_patient_rig_is_one_nevertheless() -> None:
    """The announcement lies unread, behind the trajectory that it is of."""
    bench = Bench(SIM)
    bench.run(NS_PER_S // 10)
    bench.announced = (1, "run/0")
    points = points_of(walk(0), LEFT.columns)
    assert not bench.brakes.on_trajectory(LEFT.name, "run/0", LEFT.joints, points, 0, bench.now)
    bench.now += NS_PER_S // 3
    assert bench.now - NOW < SIM.stream.heartbeat_timeout * NS_PER_S / 2
    assert not bench.brakes.tick(bench.now)
    bench.speak()
    assert not bench.brakes.tick(bench.now + TICK)
    assert not bench.brakes.reason


def test_who_is_always_kept_waiting_holds_nevertheless(bench: Bench) -> None:
    bench.send(walk(5))
    late = bench.now + NS_PER_S // 5
    assert not bench.brakes.tick(late)
    late += NS_PER_S // 5
    assert set(bench.brakes.tick(late)) == {LEFT.name, RIGHT.name}


def test_what_no_controller_takes_is_refused(bench: Bench) -> None:
    bench.announced = (1, "run/0")
    bench.speak()
    with pytest.raises(RigError, match="no points"):
        bench.brakes.on_trajectory(LEFT.name, "run/0", LEFT.joints, [], 0, bench.now)


@given(seed=st.integers(0, 2**32 - 1), after=st.integers(0, 2 * NS_PER_S))
def test_a_hold_follows_the_path_and_rests(seed: int, after: int) -> None:
    """Every pose of it is one of the path's, every step of it no longer than the path's."""
    chunk = walk(seed)
    bench = Bench()
    bench.send(TimedChunk("go_to_start", NOW, 0.04, START, START[None], RIG.max_velocity))
    bench.send(chunk)
    before = {name: each.state(NOW + after)[0] for name, each in bench.controllers.items()}
    bench.now = NOW + after
    bench.brakes.tick(bench.now - TICK)
    bench.brakes.on_policy_state("me", True, "run", bench.announced, bench.now - 2 * PATIENCE)
    for name, hold in bench.brakes.tick(bench.now).items():
        columns = next(list(o.columns) for o in RIG.outputs if o.name == name)
        assert hold.points[-1].velocities == (0.0,) * len(hold.joints)
        ahead = RIG.command(
            np.stack(
                [chunk.sample(bench.now + int(t)) for t in np.linspace(0, 0.08, 801) * NS_PER_S]
            )
        )[:, columns]
        path = np.vstack([before[name], [p.positions for p in hold.points]])
        assert (path >= ahead.min(axis=0) - SMALLEST).all()
        assert (path <= ahead.max(axis=0) + SMALLEST).all()
        limit = np.abs(RIG.command_speed(RIG.max_velocity[None])[0, columns])
        assert (np.abs(np.diff(path, axis=0)) / 0.04 <= 1.5 * limit).all()


@pytest.mark.parametrize("armed", [True, False])
@pytest.mark.parametrize("chunk_id", ["", "moveit", "run/9", f"run/3{HOLD}"])
def test_a_stranger_is_held_against_where_the_arm_is(
    bench: Bench, chunk_id: str, armed: bool
) -> None:
    """Whatever it is called, also as the arm interface's own holds are; disarmed arms are free."""
    bench.send(walk(1))
    bench.run(NS_PER_S // 2)
    bench.armed = armed
    bench.run(TICK)
    there = tuple(bench.controllers[LEFT.name].sample(bench.now) - 1.0)
    points = [TrajectoryPoint(there, (), NS_PER_S)]
    bench.controllers[LEFT.name].accept(LEFT.joints, points, 0, bench.now)
    bench.obey(bench.brakes.on_trajectory(LEFT.name, chunk_id, LEFT.joints, points, 0, bench.now))
    bench.run(NS_PER_S // 5)
    assert bool(bench.holds) == armed
    if not armed:
        return
    assert set(bench.holds) == {LEFT.name, RIGHT.name}
    assert f"came on {LEFT.topic} that this policy node has not sent" in bench.brakes.reason
    assert len(bench.holds[LEFT.name].points) == 1, "held where it is measured"
    assert len(bench.holds[RIGHT.name].points) == 2, "braked along its own path"
    assert bench.resting()


def test_a_stop_ends_what_a_stranger_sent_just_before_it(bench: Bench) -> None:
    """By the name of the chunk under way, so that it might have been announced."""
    bench.send(walk(1))
    bench.run(NS_PER_S // 2)
    there = tuple(bench.controllers[LEFT.name].sample(bench.now) - 1.0)
    points = [TrajectoryPoint(there, (), NS_PER_S)]
    bench.controllers[LEFT.name].accept(LEFT.joints, points, 0, bench.now)
    assert not bench.brakes.on_trajectory(LEFT.name, "run/3", LEFT.joints, points, 0, bench.now)
    bench.armed = False
    bench.run(NS_PER_S // 5)
    assert set(bench.holds) == {LEFT.name}
    assert not bench.brakes.reason, "disarmed arms are free"
    after = bench.controllers[LEFT.name]
    assert (after.sample(bench.now) == after.sample(bench.now + NS_PER_S)).all()


@pytest.mark.parametrize("armed", [True, False])
def test_what_a_controller_takes_after_its_hold_is_ended(bench: Bench, armed: bool) -> None:
    """The drill: a stranger's trajectory that the controller heard of later than we did."""
    bench.send(walk(1))
    bench.run(NS_PER_S // 2)
    there = tuple(bench.controllers[LEFT.name].sample(bench.now) - 1.0)
    points = [TrajectoryPoint(there, (), 4 * NS_PER_S)]
    bench.obey(bench.brakes.on_trajectory(LEFT.name, "run/3", LEFT.joints, points, 0, bench.now))
    bench.run(NS_PER_S // 10)
    assert set(bench.holds) == {LEFT.name, RIGHT.name}
    bench.armed = armed
    bench.controllers[LEFT.name].accept(LEFT.joints, points, 0, bench.now)
    bench.run(NS_PER_S)
    left = bench.controllers[LEFT.name]
    at_rest = left.sample(bench.now)
    assert (at_rest == left.sample(bench.now + NS_PER_S)).all()
    assert np.abs(at_rest - there).max() > 0.5, "it came there only once"
    bench.holds.clear()
    bench.run(3 * NS_PER_S)
    assert not bench.holds


def test_disarmed_arms_that_have_come_to_rest_are_free(bench: Bench) -> None:
    bench.armed = False
    bench.run(NS_PER_S // 2)
    there = tuple(bench.controllers[LEFT.name].sample(bench.now) - 1.0)
    points = [TrajectoryPoint(there, (), 4 * NS_PER_S)]
    bench.controllers[LEFT.name].accept(LEFT.joints, points, 0, bench.now)
    bench.obey(bench.brakes.on_trajectory(LEFT.name, "", LEFT.joints, points, 0, bench.now))
    bench.run(4 * NS_PER_S)
    assert not bench.holds


def test_a_hold_waits_until_it_is_known_where_the_arm_is(bench: Bench) -> None:
    silent, measured = True, bench.measured
    bench.brakes = ControllerBrakes(RIG, lambda now_ns: None if silent else measured(now_ns))
    bench.announced = (0, "")
    bench.speak()
    points = points_of(walk(1), LEFT.columns)
    assert not bench.brakes.on_trajectory(LEFT.name, "x", LEFT.joints, points, 0, bench.now)
    bench.run(NS_PER_S // 10)
    assert bench.brakes.reason and not bench.holds
    silent = False
    bench.run(TICK)
    assert set(bench.holds) == {LEFT.name}


def test_a_brake_of_an_arm_that_is_elsewhere_becomes_a_hold(bench: Bench) -> None:
    bench.send(walk(1))
    bench.run(NS_PER_S // 2)
    bench.offset = np.zeros(14)
    bench.offset[8] = 0.5  # the right shoulder, pushed away
    bench.alive = False
    bench.run(PATIENCE + 2 * TICK)
    assert len(bench.holds[LEFT.name].points) == 2
    assert len(bench.holds[RIGHT.name].points) == 1


def test_another_policy_nodes_states_change_nothing(bench: Bench) -> None:
    bench.send(walk(1))
    bench.run(NS_PER_S // 5)
    for identity, armed in (("other", False), ("other", True), ("", False), ("", True)):
        bench.brakes.on_policy_state(identity, armed, "run", (9, "run/9"), bench.now)
        assert bench.brakes.ownership.owner == "me"
    bench.alive = False
    bench.run(NS_PER_S // 2)
    assert bench.brakes.reason
    bench.brakes.on_policy_state("other", False, "", (0, ""), bench.now)
    assert bench.brakes.reason, "only the owner's operator lets go"
    bench.brakes.on_policy_state("other", True, "", (0, ""), bench.now)
    assert not bench.brakes.reason, "or one who arms another node after the owner has died"


def test_a_trajectory_that_starts_at_another_time_is_refused(bench: Bench) -> None:
    for start in (bench.now - NS_PER_S, bench.now + NS_PER_S, 3600 * NS_PER_S):
        bench.announced = (bench.announced[0] + 1, "run/0")
        bench.speak()
        points = points_of(walk(2), LEFT.columns)
        with pytest.raises(RigError, match="from now"):
            bench.brakes.on_trajectory(LEFT.name, "run/0", LEFT.joints, points, start, bench.now)


def test_a_bad_trajectory_that_is_announced_late_is_refused_and_the_other_followed(
    bench: Bench,
) -> None:
    """Its error went through the node's callback and ended the node."""
    chunk = walk(2)
    for output in RIG.outputs:
        start = bench.now + 3600 * NS_PER_S if output is LEFT else 0
        points = points_of(chunk, output.columns)
        if output is RIGHT:
            bench.controllers[output.name].accept(output.joints, points, 0, bench.now)
        bench.brakes.on_trajectory(output.name, "run/0", output.joints, points, start, bench.now)
    bench.announced = (bench.announced[0] + 1, "run/0")
    bench.speak()
    assert bench.brakes.refusal.startswith(f"{LEFT.name}: ")
    bench.run(NS_PER_S // 5)
    bench.alive = False
    bench.run(PATIENCE + 4 * TICK)
    assert RIGHT.name in bench.holds and LEFT.name not in bench.holds
