"""Images of the rig's three cameras, drawn off screen through EGL."""

from __future__ import annotations

from typing import Any

import cv2
import mujoco  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.sim.rig import Snapshot
from cosmos_policy_ros.sim.scene import CAMERAS, Quality, camera_matrix, load_image_model
from cosmos_policy_ros.sim.tasks import USUAL, condition

Image = NDArray[np.uint8]

_COSTLY_EFFECTS = ("SHADOW", "REFLECTION", "SKYBOX", "FOG", "HAZE")
_MAX_GEOMS = 200
"""The larger scene has 54 geoms; room for what MuJoCo adds itself."""
_TILE_MARGIN = 64
"""The noise tile is this much larger than an image [px]: 4096 different shifts."""


class Renderer:
    """Draws snapshots. Belongs to the thread that made it: make, use and close it there.

    A snapshot of another task is drawn too; the first one then takes a second to load its scene.
    """

    def __init__(
        self,
        task: str,
        height: int,
        width: int,
        *,
        quality: Quality = "fast",
        noise_sigma: float = 1.0,
    ) -> None:
        """Make a GL context.

        Args:
            task: the scene to prepare for.
            height: image rows [px].
            width: image columns [px].
            quality: ``fast`` is meant for CPUs; ``full`` adds shadows, anti-aliasing, all details.
            noise_sigma: grey levels of sensor noise, a function of time since the reset alone; 0 is
                none. A real camera never sends the same bytes twice, and a policy may take frames
                that do repeat for a frozen camera.

        Raises:
            RigError: EGL is missing, or an argument is unusable.
        """
        if height < 1 or width < 1:
            raise RigError(f"image size {width}x{height} px; both sides must be at least 1")
        if quality not in ("fast", "full"):
            raise RigError(f"render quality '{quality}' is not a choice; known: fast, full")
        if not 0.0 <= noise_sigma <= 50.0:
            raise RigError(f"sensor noise of {noise_sigma} grey levels; give 0 to 50")
        self._height, self._width, self._quality = height, width, quality
        shape = (height + _TILE_MARGIN, width + _TILE_MARGIN, 3)
        noise = np.random.default_rng(0).normal(0.0, noise_sigma, shape).round()
        self._brighter = np.clip(noise, 0, 255).astype(np.uint8)
        self._darker = np.clip(-noise, 0, 255).astype(np.uint8)
        self._rect = mujoco.MjrRect(0, 0, width, height)
        try:  # EGL, whatever MUJOCO_GL says: a rig has no display
            from mujoco.egl import GLContext  # type: ignore[import-untyped]

            self._gl: Any = GLContext(width, height)
            self._gl.make_current()
        except Exception as error:  # PyOpenGL reports a missing library in five different ways
            raise RigError(
                f"cannot draw without a display: EGL failed with {type(error).__name__}: {error}; "
                "install it (apt-get install libegl1 libgl1-mesa-dri), and leave MUJOCO_GL and "
                "PYOPENGL_PLATFORM unset or 'egl'"
            ) from error
        self._load(task, USUAL)

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the GL context; harmless when done twice."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def _load(self, task: str, condition_name: str) -> None:
        self._model = load_image_model(
            task, self._quality, self._height, self._width, condition_name
        )
        self._data = mujoco.MjData(self._model)
        self._shown = (task, condition_name)
        self._covered = condition(task, condition_name).covered
        self._scene = mujoco.MjvScene(self._model, _MAX_GEOMS)
        if self._quality == "fast":
            for effect in _COSTLY_EFFECTS:
                self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{effect}")] = 0
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def camera_matrix(self, role: str) -> NDArray[np.float64]:
        """Return the (3, 3) pinhole matrix [px] of one camera role."""
        return camera_matrix(self._model, role, self._height, self._width)

    def render(self, snapshot: Snapshot) -> dict[str, Image]:
        """Return one (H, W, 3) uint8 RGB image per camera role.

        Raises:
            RigError: the renderer is closed, or the snapshot's task is unknown.
        """
        if self._gl is None:
            raise RigError("the renderer is closed; make a new one")
        self._gl.make_current()
        if (snapshot.task, snapshot.condition) != self._shown:
            self._context.free()
            self._load(snapshot.task, snapshot.condition)
        self._data.qpos[:] = snapshot.qpos
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        return {role: self._draw(role, snapshot.since_reset_ns) for role in CAMERAS}

    def _draw(self, role: str, since_reset_ns: int) -> Image:
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = self._model.camera(CAMERAS[role]).id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self._model, self._data, mujoco.MjvOption(), None, camera, everything, self._scene
        )
        upside_down = np.empty((self._height, self._width, 3), np.uint8)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(upside_down, None, self._rect, self._context)
        if self._covered:
            upside_down[:] = 0
        # The noise is one tile, shifted by role and time.
        step = since_reset_ns // 1_000_000 + 1000 * list(CAMERAS).index(role)
        row, column = (step * 29) % _TILE_MARGIN, (step // _TILE_MARGIN * 13) % _TILE_MARGIN
        tile = slice(row, row + self._height), slice(column, column + self._width)
        brighter = cv2.add(cv2.flip(upside_down, 0), self._brighter[tile])
        return np.asarray(cv2.subtract(brighter, self._darker[tile]), np.uint8)
