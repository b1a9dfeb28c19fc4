"""The gate let a hand run onto the table (595 N), a gripper into the other, an arm into its own.

All three chunks keep to every joint's limits; in MuJoCo the others pressed with 656 and 474 N.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.rig import vx300s
from cosmos_policy_ros.rig.arms import ARMS, GRIPPER_INDICES
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.collision import Base, Bases, CollisionModel, Geometry
from cosmos_policy_ros.rig.safety_gate import GateContext, GateResult, SafetyGate
from cosmos_policy_ros.rig.spec import load_rig
from cosmos_policy_ros.sim.kinematics import ArmKinematics, gripper_pose
from cosmos_policy_ros.sim.scene import load_physics_model

RIG = load_rig("sim", config_folder("rigs"))
assert RIG.geometry is not None
GEOMETRY = RIG.geometry
GATE, JOINTS_ONLY = SafetyGate(RIG), SafetyGate(replace(RIG, geometry=None))
MODEL = CollisionModel(GEOMETRY)
START = np.array([*RIG.arms.left.start])
BODIES = ("", "shoulder_link", "upper_arm_link", "upper_forearm_link", "lower_forearm_link")
BODIES += ("wrist_link", "gripper_link")
"""What vx300s.CAPSULES' frames are called in the model."""
FINGER_BODIES = {1: "left_finger_link", -1: "right_finger_link"}
FINGER_BODY_X = 0.0687  # m; of the fingers' bodies before the hand's
NEWTON = 50.0  # beyond what a grasp takes


def both(left: Any, right: Any, opening: float = 0.0) -> np.ndarray:
    return np.array([*left, opening, *right, opening])


def moved(start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return (50, 14) rows with minimum jerk."""
    t = np.arange(1, 51)[:, None] / 50
    return np.asarray(start + t**3 * (10 - 15 * t + 6 * t**2) * (goal - start))


def judge(rows: np.ndarray, held: np.ndarray, gate: SafetyGate = GATE) -> GateResult:
    return gate.judge(rows, 0.04, GateContext(held, held))


# ---------------------------------------------------------------- the model


@cache
def scene() -> Any:
    return load_physics_model("transfer_cube")


@cache
def capsule_scene() -> tuple[Any, Any]:
    """Return MuJoCo's model and data of both arms with the capsules on their bodies."""
    package = importlib.util.find_spec("gym_aloha")
    assert package is not None and package.origin is not None
    assets = Path(package.origin).parent / "assets"
    spec = mujoco.MjSpec.from_file(str(assets / "bimanual_viperx_transfer_cube.xml"))
    for side in ARMS:
        for number, capsule in enumerate(vx300s.CAPSULES):
            name = FINGER_BODIES.get(capsule.slides, BODIES[capsule.frame])
            ends = np.array([capsule.start, capsule.end])
            if capsule.slides:
                ends[:, 0] -= FINGER_BODY_X
            spec.body(f"vx300s_{side}" + (f"/{name}" if name else "")).add_geom(
                name=f"{side}{number}",
                type=mujoco.mjtGeom.mjGEOM_CAPSULE,
                fromto=ends.ravel(),
                size=[capsule.radius, 0, 0],
                mass=0,
            )
    model = spec.compile()
    return model, mujoco.MjData(model)


def servo_targets(pose: np.ndarray) -> list[float]:
    """Return the 16 joints of the model for a pose of the 14-vector."""
    targets: list[float] = []
    for arm in pose.reshape(2, 7):
        finger = vx300s.FINGER_CLOSED + arm[6] * (vx300s.FINGER_OPEN - vx300s.FINGER_CLOSED)
        targets += [*arm[:6], finger, -finger]
    return targets


def mujoco_distance(pose: np.ndarray, one: str, other: str) -> float:
    """Return the least distance between two links' capsules as MuJoCo has it."""
    model, data = capsule_scene()
    data.qpos[:16] = servo_targets(pose)
    mujoco.mj_kinematics(model, data)

    same = one.split()[0] == other.split()[0]

    def geoms(name: str) -> list[int]:
        side, link = name.split(" ", 1)
        return [
            model.geom(f"{side}{i}").id
            for i, capsule in enumerate(vx300s.CAPSULES)
            # Of its own arm the upper forearm meets nothing.
            if capsule.link == link and not (same and capsule.frame == vx300s.UPPER_FOREARM)
        ]

    if other == "table":
        heights = []
        for geom in geoms(one):
            up = abs(data.geom_xmat[geom][8]) * model.geom_size[geom][1]
            heights.append(data.geom_xpos[geom][2] - up - model.geom_size[geom][0])
        return float(min(heights))
    pairs = [(a, b) for a in geoms(one) for b in geoms(other)]
    return float(min(mujoco.mj_geomDistance(model, data, a, b, 3.0, np.zeros(6)) for a, b in pairs))


poses = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).uniform(RIG.lower, RIG.upper)
)


@given(poses)
@settings(max_examples=30)
def test_distances_are_mujocos(pose: np.ndarray) -> None:
    """Of the same capsules on MuJoCo's own bodies: kinematics and distances are right."""
    found = MODEL.distances(pose[None])
    for (one, other), distance in found.items():
        expected = mujoco_distance(pose, one, other)
        if expected > 0.001:  # MuJoCo's depth of an overlap is another thing
            assert distance == pytest.approx(expected, abs=1e-5), (one, other)
        elif other != "table":
            assert distance < 0.0011


LINKS = {
    "1_base": "base",
    "2_shoulder": "shoulder",
    "3_upper_arm": "upper arm",
    "4_upper_forearm": "forearm",
    "5_lower_forearm": "forearm",
    "6_wrist": "wrist",
    "7_gripper": "hand",
    "8_gripper_prop": "hand",
    "9_gripper_bar": "hand",
    "10_left_gripper_finger": "fingers",
    "10_right_gripper_finger": "fingers",
}
OUTSIDE = {"base": 0.023, "fingers": 0.010}  # m; the foot's edge and the fingers' ridge


@pytest.mark.parametrize("side", ARMS)
@pytest.mark.parametrize(("geom", "link"), LINKS.items())
def test_capsules_enclose_the_meshes(side: str, geom: str, link: str) -> None:
    """By 6 mm at most a point of a link's surface sticks out, and a capsule by 4 cm."""
    model, data = capsule_scene()
    data.qpos[:16] = servo_targets(both(START, START))
    mujoco.mj_kinematics(model, data)
    number = model.geom(f"vx300s_{side}/{geom}").id
    mesh = model.geom_dataid[number]
    corners = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
    faces = model.mesh_face[model.mesh_faceadr[mesh] :][: model.mesh_facenum[mesh]]
    weights = np.random.default_rng(0).dirichlet(np.ones(3), len(faces))
    points = np.vstack([corners, np.einsum("fk,fkx->fx", weights, corners[faces])])
    points = points @ data.geom_xmat[number].reshape(3, 3).T + data.geom_xpos[number]
    off = np.full(len(points), np.inf)
    for i, capsule in enumerate(vx300s.CAPSULES):
        if capsule.link != link:
            continue
        here = model.geom(f"{side}{i}").id
        axis = data.geom_xmat[here].reshape(3, 3)[:, 2]
        from_middle = points - data.geom_xpos[here]
        along = np.clip(from_middle @ axis, *(model.geom_size[here][1] * np.array([-1, 1])))
        gap = np.linalg.norm(from_middle - along[:, None] * axis, axis=1) - capsule.radius
        off = np.minimum(off, gap)
    assert off.max() <= OUTSIDE.get(link, 0.0067)


def test_the_model_of_the_arm_is_mujocos() -> None:
    for side in ARMS:
        for joint, low, high in zip(vx300s.JOINTS, vx300s.LOWER, vx300s.UPPER, strict=True):
            np.testing.assert_allclose(scene().joint(f"vx300s_{side}/{joint}").range, (low, high))


# ---------------------------------------------------------------- collisions


@cache
def reach(side: str, x: float, y: float, z: float, pitch: float) -> tuple[float, ...]:
    kinematics = ArmKinematics(side)
    return tuple(kinematics.reach(gripper_pose(side, np.array([x, y, z]), pitch)))


def hardest(rows: np.ndarray, held: np.ndarray) -> dict[frozenset[str], float]:
    """Drive the simulated arms through rows; return the hardest force [N] between two links."""
    model, data, forces = scene(), mujoco.MjData(scene()), {}
    data.qpos[:16], data.qpos[16:19] = servo_targets(held), (0.0, 0.95, 0.02)
    path = np.vstack([held, rows, *[rows[-1:]] * 12])
    for before, after in pairwise(path):
        for step in range(1, 21):
            data.ctrl[:] = servo_targets(before + (after - before) * step / 20)
            mujoco.mj_step(model, data)
            for number in range(data.ncon):
                pair = frozenset(_link(model, int(g)) for g in data.contact[number].geom)
                force = np.zeros(6)
                mujoco.mj_contactForce(model, data, number, force)
                forces[pair] = max(forces.get(pair, 0.0), float(force[0]))
    return forces


def _link(model: Any, geom: int) -> str:
    name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, geom) or ""
    side, _, part = name.removeprefix("vx300s_").partition("/")
    return f"{side} {LINKS[part]}" if part else name


APART = both(reach("left", -0.12, 0.5, 0.25, 0), reach("right", 0.12, 0.5, 0.25, 0))
LOW = reach("left", -0.02, 0.5, 0.15, 20)
COLLISIONS = {
    "a hand onto the table": (
        both(LOW, START),
        both(reach("left", -0.02, 0.5, -0.02, 20), START),
        ("left hand", "table"),
    ),
    "fingers onto the table": (
        both(reach("left", -0.1, 0.5, 0.15, 60), START),
        both(reach("left", -0.1, 0.5, -0.06, 60), START),
        ("left fingers", "table"),
    ),
    "gripper into gripper": (
        APART,
        both(reach("left", 0.06, 0.5, 0.25, 0), reach("right", -0.06, 0.5, 0.25, 0)),
        ("left fingers", "right hand"),
    ),
    "a hand into the other arm": (
        both(reach("left", -0.1, 0.5, 0.2, 0), START),
        both(reach("left", 0.25, 0.5, 0.3, 0), START),
        ("left fingers", "right hand"),
    ),
    "an arm into its own shoulder": (
        both(START, START),
        both((0.0, -1.2, 1.6, 0.0, 2.2, 0.0), START),
        ("left shoulder", "left hand"),
    ),
}


@pytest.mark.parametrize("case", COLLISIONS)
def test_a_collision_is_refused_by_name(case: str) -> None:
    held, goal, between = COLLISIONS[case]
    rows = moved(held, goal)
    assert judge(rows, held, JOINTS_ONLY).accepted, "every joint keeps to its limits"
    forces = {pair: force for pair, force in hardest(rows, held).items() if force > NEWTON}
    assert forces, "the simulated arms collide"
    verdict = judge(rows, held)
    assert (verdict.rule, verdict.positions) == ("collision", None)
    for name in between:
        assert name in verdict.message
    assert 0 <= verdict.step < 50
    assert verdict.value < verdict.limit <= GEOMETRY.margin


@pytest.mark.parametrize("case", COLLISIONS)
def test_the_way_back_out_of_a_collision_is_free(case: str) -> None:
    held, goal, _ = COLLISIONS[case]
    way = moved(held, goal)
    first = next(i for i in range(50) if MODEL.approach(*_motion(held, way[: i + 1])) is not None)
    stuck = way[first]
    verdict = judge(moved(stuck, held), stuck)
    assert verdict.accepted, verdict.message
    assert judge(np.tile(stuck, (50, 1)), stuck).accepted
    assert judge(moved(stuck, way[min(first + 6, 49)]), stuck).rule == "collision"


def _motion(held: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    chunk = TimedChunk("", 0, 0.04, held, rows, RIG.max_velocity)
    at = np.vstack([np.zeros(14), chunk.velocities])
    return np.vstack([held, rows]), at, 0.04, held[GRIPPER_INDICES]


def test_what_happens_between_two_rows_counts() -> None:
    """Fingertips sweep through each other from one row to the next, both well clear at the rows."""
    tips = both(reach("left", 0.0, 0.5, 0.25, 0), reach("right", 0.0, 0.5, 0.25, 0))
    opposite = np.eye(14)[0] + np.eye(14)[7]
    unseen = 0
    for phase in np.linspace(-0.5, 0.5, 11):
        rows = tips + opposite * (0.12 * (np.arange(12) - 5.5 + phase))[:, None]
        clear = MODEL.distances(rows)[("left fingers", "right fingers")] > GEOMETRY.margin
        unseen += clear
        assert MODEL.approach(*_motion(rows[0], rows[1:])) is not None
    assert unseen >= 2
    assert MODEL.approach(*_motion(rows[0], rows[:3])) is None


def test_a_grasp_and_a_hand_over_are_no_collisions() -> None:
    """Fingers that are commanded shut around a cube are as wide as the cube, or as they were."""
    kinematics, meet = ArmKinematics("left"), np.array([0.0, 0.5, 0.25])
    giver = ArmKinematics("right").reach(gripper_pose("right", meet, 60))
    take = gripper_pose("left", meet, 0, roll_deg=90)
    held = np.array([*kinematics.reach(take), 1.0, *giver, 0.0])
    measured = held.copy()
    measured[13] = 0.55  # around a cube of 4 cm
    rows = np.tile(held, (50, 1))
    rows[:, 6] = np.clip(1.0 - np.arange(50) / 20, 0.0, 1.0)
    assert GATE.judge(rows, 0.04, GateContext(held, measured)).accepted
    # Shut fingers do run into each other.
    shut = np.array([*kinematics.reach(take.backed_off(0.12)), 0.0, *giver, 0.0])
    goal = np.array([*held[:6], 0.0, *held[7:]])
    verdict = judge(moved(shut, goal), shut)
    assert verdict.rule == "collision"
    assert "left fingers and right fingers" in verdict.message


wandering = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@given(wandering, st.floats(0.01, 0.12))
@settings(max_examples=20, deadline=None)
def test_nothing_that_passes_comes_too_close_at_any_moment(
    random: np.random.Generator, speed: float
) -> None:
    """Looked at every 4 ms, along the cubic that the arms are told."""
    held = both(START, START, 0.5) + random.normal(0, 0.5, 14)
    held = np.clip(held, RIG.lower, RIG.upper)
    way = random.uniform(-1, 1, 14) * speed
    way[GRIPPER_INDICES] *= 0.3
    ramp = np.minimum(np.arange(1, 51) / 10, 1.0)[:, None]
    rows = np.clip(held + np.cumsum(way * ramp, axis=0), RIG.lower, RIG.upper)
    found = MODEL.approach(*_motion(held, rows))
    chunk = TimedChunk("", 0, 0.04, held, rows, RIG.max_velocity)
    every = np.stack([chunk.sample(at) for at in range(0, chunk.end_ns + 1, 4_000_000)])
    opened = every.copy()
    opened[:, GRIPPER_INDICES] = np.maximum.accumulate(every[:, GRIPPER_INDICES], axis=0)
    before, along = MODEL.distances(held[None]), MODEL.distances(every)
    wide = MODEL.distances(opened)
    short = {
        names: distance
        for names, distance in along.items()
        if max(distance, wide[names]) < min(_margin(names), before[names]) - 0.003
    }
    if found is None:
        assert not short
    else:
        assert found.distance < found.limit <= _margin(found.between)


def _margin(names: tuple[str, str]) -> float:
    one, other = names
    touching = one.endswith("fingers") and other == "table"
    if other != "table" and one.split()[0] != other.split()[0]:
        parts = {name.split()[1] for name in names}
        touching = touching or parts in ({"fingers"}, {"fingers", "hand"})
    return GEOMETRY.finger_margin if touching else GEOMETRY.margin


@given(wandering)
@settings(max_examples=8, deadline=None)
def test_where_the_rig_stands_in_its_frame_makes_no_difference(
    random: np.random.Generator,
) -> None:
    pose = random.uniform(RIG.lower, RIG.upper)
    yaw, shift = random.uniform(-3, 3), random.uniform(-1, 1, 3)
    cos, sin = np.cos(yaw), np.sin(yaw)

    def elsewhere(base: Base) -> Base:
        x, y, z = base.position
        at = np.array([cos * x - sin * y, sin * x + cos * y, z]) + shift
        return Base((float(at[0]), float(at[1]), float(at[2])), base.yaw + yaw)

    bases = Bases(elsewhere(GEOMETRY.bases.left), elsewhere(GEOMETRY.bases.right))
    there = CollisionModel(
        Geometry(bases, float(shift[2]), GEOMETRY.margin, GEOMETRY.finger_margin)
    )
    for names, distance in MODEL.distances(pose[None]).items():
        assert there.distances(pose[None])[names] == pytest.approx(distance, abs=1e-9)
