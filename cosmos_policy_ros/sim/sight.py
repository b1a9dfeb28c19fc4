"""Finding the coloured objects on the table in the primary camera's picture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import mujoco  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.errors import ObservationError
from cosmos_policy_ros.sim.scene import CAMERAS, camera_matrix, load_physics_model

_CHANNELS = {"red": 0, "green": 1, "blue": 2}
_BRIGHT = 70
"""Least grey level of the object's colour; its darkest side has 146, and 82 in a shadow."""
_DOMINANCE = 2.0
"""The colour is this many times stronger than both others; grey parts have 1."""
_VISIBLE = 0.4
"""Least share of an object's upper face that must be seen to trust its middle."""
_REFINEMENTS = 3
"""The outline's middle is not quite the object's, more so near the picture's edge; each round of
comparing the seen outline with the expected one makes that error ten times smaller."""
_CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)


@dataclass(frozen=True)
class Thing:
    """What to look for.

    Attributes:
        name: for messages.
        colour: red, green or blue.
        size: (3,) extent [m] along the world's axes when it lies on the table.
    """

    name: str
    colour: str
    size: tuple[float, float, float]


class PrimarySight:
    """The primary camera as a measuring device: pose and lens are known from the scene."""

    def __init__(self, task: str = "transfer_cube") -> None:
        self._model = load_physics_model(task)
        data = mujoco.MjData(self._model)
        mujoco.mj_forward(self._model, data)
        camera = self._model.camera(CAMERAS["primary"]).id
        self._position = data.cam_xpos[camera].copy()
        self._rotation = data.cam_xmat[camera].reshape(3, 3).copy()

    def locate(self, image: NDArray[np.uint8], thing: Thing) -> tuple[float, float]:
        """Return the x and y [m] of the middle of ``thing`` lying on the table.

        Args:
            image: (H, W, 3) uint8 RGB, any size, square pixels.
            thing: what to look for.

        Raises:
            ObservationError: it is not in the picture, or mostly hidden.
        """
        height, width = image.shape[:2]
        lens = camera_matrix(self._model, "primary", height, width)
        rows, columns = np.nonzero(_mask(image, thing.colour))
        depth = self._position[2] - thing.size[2]
        expected = thing.size[0] * thing.size[1] * (lens[0, 0] / depth) ** 2
        if len(rows) < _VISIBLE * expected:
            raise ObservationError(
                f"the primary picture ({width}x{height}) shows {len(rows)} {thing.colour} pixels "
                f"where the {thing.name} should cover about {expected:.0f}; reset the rig, or move "
                "what hides it"
            )
        seen = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
        x, y = self._on_plane(seen, lens, thing.size[2] / 2.0)
        for _ in range(_REFINEMENTS):
            error = seen - self._outline_middle(x, y, thing, lens)
            scale = (self._position[2] - thing.size[2] / 2.0) / lens[0, 0]
            x, y = x + scale * error[0], y - scale * error[1]
        return x, y

    def _on_plane(
        self, pixel: NDArray[np.float64], lens: NDArray[np.float64], plane: float
    ) -> tuple[float, float]:
        """Return where the ray through ``pixel`` (column, row) meets the height ``plane`` [m]."""
        column, row = (pixel - lens[:2, 2]) / lens[0, 0]
        ray = self._rotation @ np.array([column, -row, -1.0])
        x, y, _ = self._position + (plane - self._position[2]) / ray[2] * ray
        return float(x), float(y)

    def _outline_middle(
        self, x: float, y: float, thing: Thing, lens: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the middle (column, row) of the outline that ``thing`` at (x, y) would have."""
        corners = (_CORNERS - np.array([0.5, 0.5, 0.0])) * thing.size + np.array([x, y, 0.0])
        view = (corners - self._position) @ self._rotation
        pixels = lens[:2, 2] + lens[0, 0] * view[:, :2] * [1.0, -1.0] / -view[:, 2:]
        outline = cv2.convexHull(pixels.astype(np.float32))
        moments = cv2.moments(outline)
        return np.array([moments["m10"], moments["m01"]]) / moments["m00"]


def _mask(image: NDArray[np.uint8], colour: str) -> NDArray[np.bool_]:
    levels = image.astype(np.float32)
    own = levels[..., _CHANNELS[colour]]
    others = np.delete(levels, _CHANNELS[colour], axis=2).max(axis=2)
    return np.asarray((own > _BRIGHT) & (own > _DOMINANCE * others))
