"""The ALOHA rig without hardware: two arms, a table, objects. No threads, no wall clock, no ROS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.rig.arms import (
    ARM_DIM,
    ARMS,
    STATE_DIM,
    angle_from_finger,
    finger_from_angle,
)
from cosmos_policy_ros.rig.spec import RigSpec, load_rig
from cosmos_policy_ros.rig.trajectory_controller import TrajectoryController, TrajectoryPoint
from cosmos_policy_ros.sim.scene import ARM_JOINTS, PHYSICS_STEP_NS, load_physics_model
from cosmos_policy_ros.sim.tasks import USUAL, Judge, place_objects

CRANK_RADIUS = 0.022
ROD_LENGTH = 0.036
"""The crank [m] behind the constants that ALOHA datasets are normalised with."""

START_POSE = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)
"""Where ALOHA episodes start [rad]."""
START_FINGER = 0.02239
"""Nearly closed [m]."""

_INSTABILITIES = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


@dataclass(frozen=True)
class JointSample:
    """One arm's ``joint_states``.

    Attributes:
        stamp_ns: rig time.
        names: six joints, the gripper's motor, the left and the right finger.
        positions: [rad]; the fingers in [m], right = -left.
        velocities: [rad/s]; 0 for the fingers, as the real driver does.
    """

    stamp_ns: int
    names: tuple[str, ...]
    positions: tuple[float, ...]
    velocities: tuple[float, ...]


@dataclass(frozen=True)
class Snapshot:
    """All that an image of the rig depends on; cheap to copy while the physics waits.

    Attributes:
        stamp_ns: rig time.
        since_reset_ns: rig time since the objects were placed, which the sensor noise goes by: a
            scene looks the same whatever came before it.
        task: the scene.
        qpos: of arms and objects.
        condition: of the scene.
    """

    stamp_ns: int
    since_reset_ns: int
    task: str
    qpos: NDArray[np.float64]
    condition: str = USUAL


@dataclass(frozen=True)
class _Addresses:
    """Where one arm's six joints and two fingers are in MuJoCo's arrays."""

    qpos: slice
    dofs: slice
    actuators: slice


class SimRig:
    """Steps the physics under trajectory controllers.

    Attributes:
        time_ns: rig time. It starts at 1 s, because to ROS a stamp of 0 means "no time", and only
            ever grows, also across resets.
        task: whose scene is loaded.
        seed: what placed its objects.
        accepted: trajectories accepted since the reset, by controller.
        refused: trajectories refused since the reset, by controller.
        refusal: why the last one was refused; empty if none was.
    """

    def __init__(
        self,
        task: str = "transfer_cube",
        seed: int = 0,
        start_ns: int = NS_PER_S,
        *,
        spec: RigSpec | None = None,
    ) -> None:
        """Load the scene and place its objects; raises as :meth:`reset`.

        Args:
            task: which scene.
            seed: places the objects.
            start_ns: rig time of the start.
            spec: whose controllers and joint names it has; by default those of the rig "sim".
        """
        spec = spec or load_rig("sim", config_folder("rigs"))
        self.time_ns = start_ns
        self._outputs = spec.outputs
        self._names: dict[str, tuple[str, ...]] = {}
        for side, arm in spec.arms.items():
            finger = arm.gripper.finger_joint
            other = f"{finger.removesuffix('left_finger')}right_finger"
            self._names[side] = (*arm.names, finger, other)
        self.task = self._condition = ""
        self.reset(task, seed)

    @property
    def since_reset_ns(self) -> int:
        """Rig time since the objects were placed."""
        return self.time_ns - self._reset_ns

    @property
    def stages(self) -> tuple[str, ...]:
        """The task's stages, in order."""
        return self._judge.stages

    @property
    def reached(self) -> int:
        """How many of the stages have been reached since the reset, as the prompt asked."""
        return self._judge.best

    @property
    def reached_with_any(self) -> int:
        """How many have been reached with any object, whichever the prompt names."""
        return self._judge.best_with_any

    def reset(self, task: str, seed: int, condition: str = USUAL, prompt: str = "") -> None:
        """Put both arms at the start pose and place the objects by ``seed``.

        A prompt that names one of several objects lets that one alone count for the stages.

        Raises:
            RigError: unknown task or condition, negative seed, or gym-aloha is not installed.
        """
        if seed < 0:
            raise RigError(f"seed {seed} is negative; give 0 or more")
        if (task, condition) != (self.task, self._condition):
            self._model = load_physics_model(task, condition)
            self._data = mujoco.MjData(self._model)
            self._addresses: dict[str, _Addresses] = {}
            for arm in ARMS:
                first = self._model.joint(f"vx300s_{arm}/{ARM_JOINTS[0]}")
                actuator = np.flatnonzero(self._model.actuator_trnid[:, 0] == first.id)[0]
                starts = (int(first.qposadr[0]), int(first.dofadr[0]), int(actuator))
                self._addresses[arm] = _Addresses(*(slice(i, i + 8) for i in starts))
            self.task, self._condition = task, condition
        self.seed, self._reset_ns = seed, self.time_ns
        self._stuck: dict[int, float] = {}
        mujoco.mj_resetData(self._model, self._data)
        place_objects(task, seed, self._model, self._data, condition)
        start = np.tile([*START_POSE, _angle(START_FINGER)], len(ARMS))
        for addresses in self._addresses.values():
            self._data.qpos[addresses.qpos] = [*START_POSE, START_FINGER, -START_FINGER]
        self._controllers = {
            output.name: TrajectoryController(output.joints, start[list(output.columns)])
            for output in self._outputs
        }
        self._columns = [np.array(output.columns) for output in self._outputs]
        self._judge = Judge(task, self._model, prompt)
        self.accepted = dict.fromkeys(self._controllers, 0)
        self.refused = dict.fromkeys(self._controllers, 0)
        self.refusal = ""
        mujoco.mj_forward(self._model, self._data)

    def command(
        self,
        controller: str,
        joint_names: Sequence[str],
        points: Sequence[TrajectoryPoint],
        stamp_ns: int,
    ) -> None:
        """Hand a trajectory to a controller, such as "left", and count it.

        Raises:
            RigError: unknown controller, or it refused the trajectory (see
                :meth:`TrajectoryController.accept`).
        """
        known = self._controller(controller)
        try:
            known.accept(joint_names, points, stamp_ns, self.time_ns)
        except RigError as error:
            self.refused[controller] += 1
            self.refusal = f"{controller}: {error}"
            raise
        self.accepted[controller] += 1

    def goal(self, controller: str, positions: NDArray[np.float64]) -> None:
        """Write goals [rad] to a controller's servos, as a driver without trajectories does."""
        self._controller(controller).hold(positions)

    def _controller(self, name: str) -> TrajectoryController:
        if name not in self._controllers:
            raise RigError(
                f"the simulated rig has no controller '{name}'"
                f"{did_you_mean(name, self._controllers)}"
            )
        return self._controllers[name]

    def targets(self) -> NDArray[np.float64]:
        """Return what (14,) the servos are told now, in the drivers' units."""
        targets = np.empty(STATE_DIM)
        for columns, controller in zip(self._columns, self._controllers.values(), strict=True):
            targets[columns] = controller.sample(self.time_ns)
        return targets

    def stick(self, joints: Sequence[str]) -> None:
        """Let joints, such as "left/waist", stay where they are, and all others follow."""
        stuck = {}
        for name in joints:
            arm, joint = name.split("/")
            index = ARM_JOINTS.index(joint)
            column = ARMS.index(arm) * ARM_DIM + index
            position = float(self._data.qpos[self._addresses[arm].qpos][index])
            stuck[column] = self._stuck.get(column, position)
        self._stuck = stuck

    def advance(self, seconds: float) -> None:
        """Step the physics by ``seconds``, a multiple of the 2 ms physics step.

        Raises:
            RigError: not a multiple, or the physics became unstable (reset to go on).
        """
        steps = round(seconds * 1e9 / PHYSICS_STEP_NS)
        if steps < 0 or abs(steps * PHYSICS_STEP_NS - seconds * 1e9) > 1.0:
            raise RigError(
                f"cannot advance by {seconds} s; give a multiple of {PHYSICS_STEP_NS / 1e9} s"
            )
        for _ in range(steps):
            self.time_ns += PHYSICS_STEP_NS
            targets = self.targets()
            for column, position in self._stuck.items():
                targets[column] = position
            for arm, target in zip(ARMS, targets.reshape(len(ARMS), ARM_DIM).tolist(), strict=True):
                finger = finger_from_angle(target[6], CRANK_RADIUS, ROD_LENGTH)
                self._data.ctrl[self._addresses[arm].actuators] = [*target[:6], finger, -finger]
            mujoco.mj_step(self._model, self._data)
            self._judge.reached(self._data)
        if any(self._data.warning[kind].number for kind in _INSTABILITIES):
            raise RigError(
                f"the physics of '{self.task}' became unstable after {self.time_ns / 1e9:.2f} s "
                "of rig time; reset the rig"
            )

    def joint_states(self, arm: str) -> JointSample:
        """Return what the driver of the "left" or "right" arm would publish now."""
        if arm not in ARMS:
            raise RigError(f"the simulated rig has no arm '{arm}'{did_you_mean(arm, ARMS)}")
        addresses = self._addresses[arm]
        position = self._data.qpos[addresses.qpos].tolist()
        velocity = self._data.qvel[addresses.dofs].tolist()
        finger, finger_speed = position[6], velocity[6]
        angle = _angle(finger)
        dt = PHYSICS_STEP_NS / 1e9
        gripper_speed = (angle - _angle(finger - finger_speed * dt)) / dt
        return JointSample(
            self.time_ns,
            self._names[arm],
            (*position[:6], angle, finger, -finger),
            (*velocity[:6], gripper_speed, 0.0, 0.0),
        )

    def snapshot(self) -> Snapshot:
        """Return what :class:`~cosmos_policy_ros.sim.render.Renderer` draws."""
        qpos = self._data.qpos.copy()
        return Snapshot(self.time_ns, self.since_reset_ns, self.task, qpos, self._condition)


def _angle(finger: float) -> float:
    return angle_from_finger(finger, CRANK_RADIUS, ROD_LENGTH)
