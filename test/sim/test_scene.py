"""Pins the load-time changes: coarser images, untouched physics, and named failures."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.sim.scene import load_image_model, load_physics_model, merge_vertices


def test_physics_keeps_every_triangle_and_images_do_not() -> None:
    physics = load_physics_model("transfer_cube")
    fast = load_image_model("transfer_cube", "fast", 48, 64)
    full = load_image_model("transfer_cube", "full", 48, 64)
    assert physics.mesh_facenum.sum() == full.mesh_facenum.sum()
    assert fast.mesh_facenum.sum() < 0.3 * full.mesh_facenum.sum()
    assert physics.nq == fast.nq == full.nq
    assert physics.opt.timestep == 0.002
    assert (fast.vis.global_.offheight, fast.vis.global_.offwidth) == (48, 64)


def test_coarser_parts_stay_where_they_are() -> None:
    full = load_image_model("transfer_cube", "full", 48, 64)
    fast = load_image_model("transfer_cube", "fast", 48, 64)
    for index in range(full.ngeom):
        low, high = ((m.geom_aabb[index, :3] - m.geom_aabb[index, 3:]) for m in (full, fast))
        assert np.abs(np.linalg.norm(low) - np.linalg.norm(high)) < 0.02
        assert fast.geom_rbound[index] == pytest.approx(full.geom_rbound[index], abs=0.005)


def test_merging_drops_only_what_vanishes() -> None:
    near, beside, far, corner = [0.1, 0, 0], [0.2, 0, 0], [5, 0, 0], [5, 5, 0]
    triangles = np.array([near, beside, far, beside, far, corner], dtype=float)
    merged, kept = merge_vertices(triangles, 1.0)
    mean = [pytest.approx((0.1 + 0.2 + 0.2) / 3), 0, 0]
    assert merged[kept].tolist() == [[mean, far, corner]]


def test_unknown_task_is_named() -> None:
    with pytest.raises(RigError, match="no simulated task 'insertoin'; did you mean 'insertion'"):
        load_physics_model("insertoin")


def test_missing_gym_aloha_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RigError, match="pip install --no-deps gym-aloha"):
        load_physics_model("insertion")
