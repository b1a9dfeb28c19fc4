"""Where a gripper is for given joints, and which joints put it somewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import mujoco  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.rig.arms import ARMS
from cosmos_policy_ros.rig.chunk import minimum_jerk
from cosmos_policy_ros.sim.scene import ARM_JOINTS, load_physics_model

PINCH = np.array([0.14, 0.0, 0.0])
"""The point between the fingertips in the gripper's frame [m]; the tips end at 0.154."""

_POSITION_TOLERANCE = 2e-4
_ROTATION_TOLERANCE = 2e-3
"""An inverse solution is this good [m], [rad]: ten times finer than the grasps need."""
_ITERATIONS = 300
_DAMPING = 0.02
"""Keeps steps finite where the wrist is straight and two of its joints turn about one axis."""
_MAX_STEP = 0.2
"""Largest joint change [rad] in one iteration; the Jacobian means nothing further away."""
_SHOULDER, _ELBOW = -0.4, 0.8
"""Where the search for an upright solution starts [rad]: mid-workspace, elbow up."""
_LIMIT_MARGIN = 0.01
"""Solutions keep this far [rad] from the joint limits."""


@dataclass(frozen=True)
class Pose:
    """A pinch point and the gripper's orientation in the world.

    Attributes:
        position: (3,) [m].
        quaternion: (4,) unit, w first; x along the fingers, y from finger to finger.
    """

    position: NDArray[np.float64]
    quaternion: NDArray[np.float64]

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Pose:
        """Return this pose shifted in the world [m]."""
        return Pose(self.position + np.array([x, y, z]), self.quaternion)

    def backed_off(self, distance: float) -> Pose:
        """Return this pose pulled back along the fingers [m]."""
        along = np.empty(3)
        mujoco.mju_rotVecQuat(along, np.array([1.0, 0.0, 0.0]), self.quaternion)
        return Pose(self.position - distance * along, self.quaternion)


def gripper_pose(
    arm: str, position: NDArray[np.float64], pitch_deg: float, roll_deg: float = 0.0
) -> Pose:
    """Return a pose facing the other arm, pitched down and rolled about the fingers."""
    quaternion = np.array([1.0, 0.0, 0.0, 0.0])
    yaw_deg = 0.0 if arm == "left" else 180.0
    for axis, degrees in (((0, 0, 1), yaw_deg), ((0, 1, 0), pitch_deg), ((1, 0, 0), roll_deg)):
        turn, product = np.empty(4), np.empty(4)
        mujoco.mju_axisAngle2Quat(turn, np.array(axis, dtype=np.float64), np.radians(degrees))
        mujoco.mju_mulQuat(product, quaternion, turn)
        quaternion = product
    return Pose(np.asarray(position, dtype=np.float64), quaternion)


def between(start: Pose, end: Pose, fraction: float) -> Pose:
    """Return the pose on the straight way from ``start`` (0) to ``end`` (1)."""
    turn, quaternion = np.empty(3), start.quaternion.copy()
    mujoco.mju_subQuat(turn, end.quaternion, start.quaternion)
    mujoco.mju_quatIntegrate(quaternion, turn, fraction)
    return Pose(start.position + fraction * (end.position - start.position), quaternion)


class ArmKinematics:
    """Forward and inverse kinematics of one arm, by MuJoCo's own model of it."""

    def __init__(self, arm: str) -> None:
        self._arm = arm
        self._model = load_physics_model("transfer_cube")
        self._data = mujoco.MjData(self._model)
        joints = [self._model.joint(f"vx300s_{arm}/{name}") for name in ARM_JOINTS]
        self._qpos = [int(joint.qposadr[0]) for joint in joints]
        self._dofs = [int(joint.dofadr[0]) for joint in joints]
        ranges = np.array([joint.range for joint in joints])
        self._low, self._high = ranges[:, 0] + _LIMIT_MARGIN, ranges[:, 1] - _LIMIT_MARGIN
        self._base = self._model.body(f"vx300s_{arm}").pos[:2].copy()
        self._facing = 1.0 if arm == "left" else -1.0
        self._gripper = self._model.body(f"vx300s_{arm}/gripper_link").id

    def forward(self, joints: NDArray[np.float64]) -> Pose:
        """Return the gripper's pose for (6,) joints [rad]."""
        self._data.qpos[self._qpos] = joints
        mujoco.mj_kinematics(self._model, self._data)
        rotation = self._data.xmat[self._gripper].reshape(3, 3)
        position = self._data.xpos[self._gripper] + rotation @ PINCH
        return Pose(position, self._data.xquat[self._gripper].copy())

    def reach(self, target: Pose) -> NDArray[np.float64]:
        """Return (6,) joints [rad] that reach ``target`` with elbow up and forearm unturned.

        Raises:
            ObservationError: the arm cannot get there.
        """
        ahead, aside = self._facing * (target.position[:2] - self._base)
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, target.quaternion)
        pitch, roll = -np.arcsin(rotation[6]), np.arctan2(rotation[7], rotation[8])
        wrist = pitch - _SHOULDER - _ELBOW
        waist = np.arctan2(aside, ahead)
        return self.inverse(target, np.array([waist, _SHOULDER, _ELBOW, 0.0, wrist, roll]))

    def inverse(self, target: Pose, seed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the (6,) joints [rad] near ``seed`` that reach ``target``.

        Damped least squares (Wampler 1986; Nakamura and Hanafusa 1986).

        Raises:
            ObservationError: the arm cannot get there.
        """
        joints = np.clip(seed, self._low, self._high)
        local, turn = np.empty(3), np.empty(3)
        linear, angular = np.empty((3, self._model.nv)), np.empty((3, self._model.nv))
        for _ in range(_ITERATIONS):
            now = self.forward(joints)
            mujoco.mju_subQuat(local, target.quaternion, now.quaternion)
            mujoco.mju_rotVecQuat(turn, local, now.quaternion)
            error = np.concatenate([target.position - now.position, turn])
            distance, angle = float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:]))
            if distance < _POSITION_TOLERANCE and angle < _ROTATION_TOLERANCE:
                return joints
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_jac(self._model, self._data, linear, angular, now.position, self._gripper)
            jacobian = np.vstack([linear[:, self._dofs], angular[:, self._dofs]])
            damped = jacobian @ jacobian.T + _DAMPING**2 * np.eye(6)
            step = jacobian.T @ np.linalg.solve(damped, error)
            step *= min(1.0, _MAX_STEP / max(float(np.abs(step).max()), 1e-12))
            joints = np.clip(joints + step, self._low, self._high)
        x, y, z = target.position
        raise ObservationError(
            f"the {self._arm} gripper cannot reach ({x:.3f}, {y:.3f}, {z:.3f}) m: {distance:.3f} m "
            f"and {angle:.2f} rad are left; start from the start pose, or reset with another seed"
        )


# From phases to one row of joint targets per control period, smooth and within speed.

_SPEED = 2.0
"""Planned peak joint speed [rad/s]; the motors' limit is 3.14, the rest is margin for the velocity
estimates made between rows."""
_LINE_PIECES = 16
"""Inverse solutions along a straight line; between them joints are interpolated."""
_STRETCH = 1.05
"""Factor by which a move that is too fast is made longer, until it is not."""

_COLUMNS = {"left": (slice(0, 6), 6), "right": (slice(7, 13), 13)}
"""Arm -> columns of its joints and of its gripper."""


@dataclass(frozen=True)
class Move:
    """What one arm does in one phase. None leaves that part as it is.

    Attributes:
        to: where the gripper goes.
        straight: on a line through space; otherwise the shortest way for the joints.
        gripper: motor angle [rad] the gripper goes to.
    """

    to: Pose | None = None
    straight: bool = False
    gripper: float | None = None


@dataclass(frozen=True)
class Phase:
    """Moves of one or both arms that start and end at rest together, in at least ``seconds``."""

    moves: Mapping[str, Move]
    seconds: float = 0.4


def plan_motion(
    start: NDArray[np.float64], phases: Iterable[Phase], dt: float
) -> NDArray[np.float64]:
    """Return rows (N, 14) that go through all phases, the first one ``dt`` after the start.

    A row is, as ``start``, the left arm then the right arm: six joints and the gripper's motor
    angle each [rad].

    Raises:
        ObservationError: an arm cannot reach a pose.
    """
    arms = {arm: ArmKinematics(arm) for arm in ARMS}
    rows: list[NDArray[np.float64]] = []
    now = start
    for phase in phases:
        path = _path(arms, now, phase)
        now = path[-1]
        seconds = phase.seconds
        while True:
            count = max(1, round(seconds / dt))
            t = np.arange(1, count + 1) / count
            progress = minimum_jerk(t) * _LINE_PIECES
            piece = np.minimum(progress.astype(np.int64), _LINE_PIECES - 1)
            rest = (progress - piece)[:, None]
            timed = (1.0 - rest) * path[piece] + rest * path[piece + 1]
            if np.abs(np.diff(np.vstack([path[:1], timed]), axis=0)).max() <= _SPEED * dt:
                break
            seconds *= _STRETCH
        rows.extend(timed)
    return np.array(rows)


def _path(
    arms: Mapping[str, ArmKinematics], start: NDArray[np.float64], phase: Phase
) -> NDArray[np.float64]:
    """Return (pieces + 1, 14) points equally spaced in the phase's progress."""
    fractions = np.linspace(0.0, 1.0, _LINE_PIECES + 1)
    path = np.repeat(start[None], len(fractions), axis=0)
    for side, move in phase.moves.items():
        columns, gripper = _COLUMNS[side]
        arm, joints = arms[side], start[columns]
        if move.to is not None and move.straight:
            begin = arm.forward(joints)
            for index in range(1, len(fractions)):
                target = between(begin, move.to, float(fractions[index]))
                path[index, columns] = arm.inverse(target, path[index - 1, columns])
        elif move.to is not None:
            path[:, columns] = joints + fractions[:, None] * (arm.reach(move.to) - joints)
        if move.gripper is not None:
            path[:, gripper] += fractions * (move.gripper - start[gripper])
    return path
