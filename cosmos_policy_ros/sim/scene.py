"""The simulated ALOHA: gym-aloha's models, adapted at load time.

Only the model files of the ``gym-aloha`` wheel are used (Apache-2.0, v0.1.5); the package itself is
never imported, so its own dependencies need not be installed. MuJoCo must be >=3.3.7,<3.8: older
and newer versions treat the contacts of the insertion task differently and it fails.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any, Literal

import mujoco  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.rig.arms import ARMS
from cosmos_policy_ros.sim.tasks import USUAL, condition

Quality = Literal["fast", "full"]

ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")

CAMERAS = {"left_wrist": "left_wrist", "right_wrist": "right_wrist", "primary": "top"}
"""Camera role -> name of the camera in the model."""

PHYSICS_STEP_NS = 2_000_000
"""The models' own time step; their contacts are tuned for it."""

_WRIST_FOVY_DEG = 58.0
"""A RealSense D405's vertical field of view; the models ship 20 degrees."""
_NARROW_TOP_FOVY_DEG = 42.0
"""Of ``either_cube``'s primary camera, which sees the table where both arms reach; the models' 78
degrees show the room around it, and a cube is two of a small model's pixels."""
_WRIST_POSITION = (0.0, 0.0, 0.115)
_WRIST_PITCH_DEG = 38.0
"""The wrist camera sits above the gripper and looks forward and down, fingertips in the image's
lower half, as on an ALOHA; in the gripper's frame (x along the fingers, z up) [m]."""

_BLOCK_COLOUR = (0.1, 0.7, 0.1, 1.0)

_NEAR_PLANE = 0.01
"""In units of the scene's extent (1.7 m); the models' 0.1 would cut the fingers away."""

_MERGE_CELL = 5.0
_FINGER_MERGE_CELL = 2.0
"""Side [mm] of the cells within which vertices merge in fast images. The arms' screw heads and
fillets are most of their 30 000 triangles, and without a GPU triangles are what an image costs."""

_STL_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def load_physics_model(task: str, condition_name: str = USUAL) -> Any:
    """Return the ``mujoco.MjModel`` the rig is stepped with."""
    return _load_spec(task, condition_name).compile()


def load_image_model(
    task: str, quality: Quality, height: int, width: int, condition_name: str = USUAL
) -> Any:
    """Return a ``mujoco.MjModel`` with the same joints, prepared for (height, width) images.

    ``full`` keeps the models' meshes, shadows and anti-aliasing; ``fast`` drops what costs most
    and shows least when a CPU draws the image.
    """
    spec = _load_spec(task, condition_name)
    spec.visual.global_.offheight = height
    spec.visual.global_.offwidth = width
    spec.visual.map.znear = _NEAR_PLANE
    if quality == "fast":
        spec.visual.quality.shadowsize = 0
        spec.visual.quality.offsamples = 0
        for light in spec.lights:
            light.castshadow = False
        for mesh in spec.meshes:
            if mesh.name.startswith("vx300s_"):
                facets = np.frombuffer((_assets() / mesh.file).read_bytes(), _STL_FACET, offset=84)
                corners = facets["corners"].reshape(-1, 3).astype(np.float64)
                cell = _FINGER_MERGE_CELL if "_finger_" in mesh.name else _MERGE_CELL
                vertices, faces = merge_vertices(corners, cell)
                mesh.file = ""
                mesh.uservert, mesh.userface = vertices.ravel(), faces.ravel()
    return spec.compile()


def _load_spec(task: str, condition_name: str) -> Any:
    """Return the ``mujoco.MjSpec`` of a scene.

    Raises:
        RigError: unknown task or condition, or gym-aloha is not installed or does not fit MuJoCo.
    """
    shown = condition(task, condition_name)
    scene = "transfer_cube" if task == "either_cube" else task
    path = _assets() / f"bimanual_viperx_{scene}.xml"
    try:
        spec = mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise RigError(
            f"{path}: not a model MuJoCo {mujoco.__version__} can read: {error}; "
            "reinstall gym-aloha==0.1.5 and mujoco>=3.3.7,<3.8"
        ) from error
    spec.option.timestep = PHYSICS_STEP_NS / 1e9
    pitch = math.radians(_WRIST_PITCH_DEG)
    right, up = np.array([0.0, -1.0, 0.0]), np.array([math.sin(pitch), 0.0, math.cos(pitch)])
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, np.stack([right, up, np.cross(right, up)], axis=1).ravel())
    for arm in ARMS:
        camera = spec.camera(f"{arm}_wrist")
        camera.mode = mujoco.mjtCamLight.mjCAMLIGHT_FIXED
        camera.pos, camera.quat, camera.fovy = _WRIST_POSITION, quaternion, _WRIST_FOVY_DEG
    if task == "either_cube":
        _add_second_cube(spec)
        spec.camera(CAMERAS["primary"]).fovy = _NARROW_TOP_FOVY_DEG
    for geom, colour in shown.colours.items():
        spec.geom(geom).rgba = (*colour, 1.0)
    for x, y in shown.blocks:
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.015] * 3, pos=[x, y, 0.015], rgba=_BLOCK_COLOUR
        )
    return spec


def _add_second_cube(spec: Any) -> None:
    """Add a blue cube like the red one, with the physics of ``transfer_cube``'s."""
    for key in spec.keys:  # has no place for another object's pose
        spec.delete(key)
    first = spec.geom("red_box")
    body = spec.worldbody.add_body(name="blue_box")
    body.mass, body.inertia = first.parent.mass, first.parent.inertia
    body.explicitinertial = True
    body.add_joint(
        name="blue_box_joint",
        type=mujoco.mjtJoint.mjJNT_FREE,
        frictionloss=spec.joint("red_box_joint").frictionloss,
    )
    blue = (0.0, 0.0, 1.0, 1.0)
    geom = body.add_geom(name="blue_box", type=first.type, size=first.size, rgba=blue)
    for same in ("condim", "friction", "solimp", "solref"):
        setattr(geom, same, getattr(first, same))


def _assets() -> Path:
    found = importlib.util.find_spec("gym_aloha")
    if found is None or not found.submodule_search_locations:
        raise RigError(
            "gym-aloha, whose model files the simulated rig uses, is not installed; "
            "run: pip install --no-deps gym-aloha==0.1.5"
        )
    return Path(found.submodule_search_locations[0]) / "assets"


def merge_vertices(
    corners: NDArray[np.float64], cell: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Merge the (3T, 3) corners of triangles within a grid cell into their mean.

    Returns:
        The (V, 3) vertices, and the vertices' indices of each triangle that did not vanish.
    """
    cells = np.floor(corners / cell).astype(np.int64)
    _, index, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    index = index.reshape(-1)
    sums = np.stack([np.bincount(index, corners[:, axis]) for axis in range(3)], axis=1)
    faces = index.reshape(-1, 3)
    alive = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    return sums / counts[:, None], faces[alive]


def camera_matrix(model: Any, role: str, height: int, width: int) -> NDArray[np.float64]:
    """Return the (3, 3) pinhole matrix [px] of the camera with ``role`` at this image size.

    The models give a vertical field of view; pixels are square.
    """
    focal = height / 2.0 / math.tan(math.radians(float(model.camera(CAMERAS[role]).fovy[0])) / 2.0)
    return np.array([[focal, 0.0, width / 2.0], [0.0, focal, height / 2.0], [0.0, 0.0, 1.0]])
