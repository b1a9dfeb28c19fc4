"""Our trajectories through every distro's controller, and the settings shipped for them."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from helpers.controllers import DISTROS, Distro, DistroController
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.chunk import Blend, TimedChunk
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryPoint

NOW = 1_000 * NS_PER_S
RIG = load_rig("sim", config_folder("rigs"))
NAMES = RIG.arms.left.names
SPEED = np.array([*RIG.arms.left.max_velocity, RIG.arms.left.gripper.max_velocity])
START = np.array([*RIG.arms.left.start, 0.0])
CHUNK_NS = 2 * NS_PER_S


def trajectory(start: np.ndarray, rows: np.ndarray) -> list[TrajectoryPoint]:
    """What the policy node sends of a chunk."""
    return sent(TimedChunk("", 0, RIG.rates.dt, start, rows, SPEED))


def sent(chunk: TimedChunk) -> list[TrajectoryPoint]:
    """What the policy node sends of a chunk, whether it begins at rest or takes over."""
    return [
        TrajectoryPoint(tuple(row), tuple(velocity), time)
        for row, velocity, time in zip(
            chunk.positions, chunk.velocities, chunk.times_ns(), strict=True
        )
    ]


def wander(seed: int, start: np.ndarray) -> np.ndarray:
    """Return a chunk that begins where the arm is held and ends elsewhere."""
    there = START + np.random.default_rng(seed).uniform(-0.5, 0.5, 7)
    share = (1 - np.cos(np.pi * np.arange(1, 51) / 50)[:, None]) / 2
    return np.asarray(start + share * (there - start))


@pytest.mark.parametrize("distro", ["humble", "jazzy"])
def test_path_tolerances_agree_with_the_rigs_tracking_limits(distro: str) -> None:
    """No controller file had one: a stuck joint was driven against for as long as it was asked."""
    content = yaml.safe_load((config_folder("controllers") / f"{distro}.yaml").read_text())
    given = content["/**/arm_controller"]["ros__parameters"]["constraints"]
    for arm in RIG.arms.values():
        errors = [RIG.tracking.error] * 3 + [RIG.tracking.wrist_error] * 3
        for joint, error, speed in zip(arm.joints, errors, arm.max_velocity, strict=True):
            limit = error + RIG.tracking.lag * speed
            assert limit <= given[joint]["trajectory"] < limit + 0.05
        assert given[arm.gripper.joint]["trajectory"] == 0.0


@pytest.mark.parametrize("stamped", [False, True], ids=["stamp 0", "stamped"])
@pytest.mark.parametrize("distro", DISTROS)
def test_chunk_after_chunk_is_followed_to_the_row(distro: Distro, stamped: bool) -> None:
    """150 chunks with pauses to think in between; every row is met when it is due."""
    controller, held, now = DistroController(distro, NAMES, START), START, NOW
    for number in range(150):
        rows = wander(number, held)
        controller.accept(NAMES, trajectory(held, rows), now if stamped else 0, now)
        due = [controller.sample(now + (row + 1) * NS_PER_S // 25) for row in range(50)]
        np.testing.assert_allclose(due, rows, atol=1e-12)
        held = rows[-1]
        assert (controller.sample(now + CHUNK_NS + NS_PER_S // 3) == held).all(), "holds exactly"
        now += CHUNK_NS + NS_PER_S // 3


@pytest.mark.parametrize("distro", DISTROS)
def test_a_brake_takes_over_without_a_jump(distro: Distro) -> None:
    controller, rows = DistroController(distro, NAMES, START), wander(1, START)
    controller.accept(NAMES, trajectory(START, rows), 0, NOW)
    whole = TimedChunk("", NOW, RIG.rates.dt, START, rows, SPEED)
    now = NOW + round(0.73 * NS_PER_S)
    brake = whole.brake(now, 0.4)
    before = controller.sample(now)
    controller.accept(NAMES, trajectory(brake.start, brake.positions), 0, now)
    path = np.array([controller.sample(now + t * NS_PER_S // 1000) for t in range(600)])
    np.testing.assert_allclose(path[0], before, atol=1e-9)
    assert np.abs(np.diff(path, axis=0)).max() <= np.abs(np.diff(rows, axis=0)).max() / 40 * 1.1
    assert (path[401:] == brake.positions[-1]).all()


@pytest.mark.parametrize("stamped", [False, True], ids=["stamp 0", "stamped"])
@pytest.mark.parametrize("distro", DISTROS)
def test_splices_upon_splices_are_one_path(distro: Distro, stamped: bool) -> None:
    """A chunk a second, each into the one before: no stall, no jump, and what the run believes."""
    controller, now = DistroController(distro, NAMES, START), NOW
    rest = np.zeros(7)
    path = TimedChunk("0", now, RIG.rates.dt, START, wander(0, START), SPEED, rest)
    controller.accept(NAMES, sent(path), now if stamped else 0, now)
    for number in range(1, 100):
        # Stamps of images and answers keep to no grid.
        seen, now = now + 613_000_001, now + 1_009_000_007
        here = path.sample(seen)
        decided = TimedChunk("", seen, RIG.rates.dt, here, wander(number, here), SPEED, rest)
        blend = Blend(path, decided, now, 5)
        assert blend.lateness <= 0
        before = controller.state(now)
        path = blend.chunk(str(number), blend.blended())
        controller.accept(NAMES, sent(path), now if stamped else 0, now)
        for found, was in zip(controller.state(now), before, strict=True):
            np.testing.assert_allclose(found, was, atol=1e-6)
        for at in (now + 1, now + 20_000_000, now + 400_000_000, now + 900_000_000):
            np.testing.assert_allclose(controller.sample(at), path.sample(at), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(DISTROS),
    st.lists(st.tuples(st.integers(0, 2500), st.booleans()), min_size=1, max_size=8),
)
def test_whenever_a_chunk_comes_the_commanded_path_has_no_jump(
    distro: Distro, chunks: list[tuple[int, bool]]
) -> None:
    """Early or late, stamped for the future or not: chunks begin at what is commanded then."""
    controller, now, last = DistroController(distro, NAMES, START), NOW, START
    for seed, (wait, ahead) in enumerate(chunks):
        rows = wander(seed, last)
        stamp = now + 100_000_000 if ahead else 0
        controller.accept(NAMES, trajectory(last, rows), stamp, now)
        for _ in range(max(wait, 1)):
            now += 1_000_000
            here = controller.sample(now)
            # A joint at its limit moves 0.003 rad in this time; a cubic between two rows more.
            assert np.abs(here - last).max() < 0.006
            last = here


@pytest.mark.parametrize("distro", ["jazzy", "master"])
def test_from_jazzy_on_a_trajectory_has_to_end_at_rest(distro: Distro) -> None:
    controller = DistroController(distro, NAMES, START)
    moving = [TrajectoryPoint(tuple(START), (0.1,) * 7, NS_PER_S)]
    with pytest.raises(RigError, match="does not end at rest"):
        controller.accept(NAMES, moving, 0, NOW)


@pytest.mark.parametrize(
    ("distro", "setting"),
    [("humble", "open_loop_control"), ("jazzy", "interpolate_from_desired_state")],
)
def test_settings_fit_the_rig_and_begin_where_it_was_commanded(distro: str, setting: str) -> None:
    path = config_folder("controllers") / f"{distro}.yaml"
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    arm = plain["/**/arm_controller"]["ros__parameters"]
    assert tuple(arm["joints"]) == NAMES
    assert arm[setting] is True
    assert "arm_controller" in plain["/**/controller_manager"]["ros__parameters"]
    for each in RIG.arms.values():
        assert each.trajectory.endswith("/arm_controller/joint_trajectory")
