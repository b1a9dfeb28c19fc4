"""Pins the cameras: what they must see, noise that repeats by time, threads, and clear refusals."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from cosmos_policy_ros.core.errors import RigError
from cosmos_policy_ros.sim.render import Renderer
from cosmos_policy_ros.sim.rig import SimRig
from cosmos_policy_ros.sim.scene import CAMERAS, camera_matrix, load_physics_model


@pytest.fixture(scope="module")
def rig() -> SimRig:
    return SimRig("transfer_cube", 2)


def red(image: np.ndarray) -> np.ndarray:
    levels = image.astype(int)
    return (levels[..., 0] > 70) & (levels[..., 0] > 2 * levels[..., 1:].max(axis=2))


def test_images_have_the_asked_shape_and_see_the_scene(rig: SimRig) -> None:
    with Renderer("transfer_cube", 96, 128, noise_sigma=0.0) as renderer:
        images = renderer.render(rig.snapshot())
    assert list(images) == list(CAMERAS)
    for image in images.values():
        assert image.shape == (96, 128, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
    assert red(images["primary"]).sum() > 3
    table = images["primary"][48, 64]
    assert 30 < table.max() < 150
    for arm in ("left", "right"):
        # The gripper fills the lower edge's middle; it is much brighter than the table.
        assert images[f"{arm}_wrist"][-10:, 40:88].mean() > 80


def test_wrist_camera_sees_what_is_between_the_fingers(rig: SimRig) -> None:
    snapshot = rig.snapshot()
    qpos = snapshot.qpos.copy()
    qpos[8:14] = (0.0, -0.1, 0.6, 0.0, 0.5, 0.0)
    qpos[16:19] = (0.05, 0.5, 0.02)
    with Renderer("transfer_cube", 120, 160, noise_sigma=0.0) as renderer:
        images = renderer.render(replace(snapshot, qpos=qpos))
    rows, columns = np.nonzero(red(images["right_wrist"]))
    assert len(rows) > 200
    assert abs(columns.mean() - 80) < 10
    assert not red(images["left_wrist"])[:, :40].any()


def test_noise_is_small_and_a_function_of_time(rig: SimRig) -> None:
    snapshot = rig.snapshot()
    later = replace(snapshot, since_reset_ns=snapshot.since_reset_ns + 40_000_000)
    with Renderer("transfer_cube", 64, 64, noise_sigma=0.0) as clean:
        calm = clean.render(snapshot)
        assert all(np.array_equal(calm[r], p) for r, p in clean.render(later).items())
    with Renderer("transfer_cube", 64, 64) as noisy:
        one, two, again = noisy.render(snapshot), noisy.render(later), noisy.render(snapshot)
    for role in CAMERAS:
        np.testing.assert_array_equal(one[role], again[role])
        assert (one[role] != two[role]).mean() > 0.2
        difference = one[role].astype(int) - calm[role]
        assert np.abs(difference).max() <= 6
        assert 0.3 < difference.std() < 1.3


def test_draws_in_its_own_thread_beside_another_renderer(rig: SimRig) -> None:
    def draw() -> np.ndarray:
        with Renderer("transfer_cube", 48, 64, noise_sigma=0.0) as renderer:
            return renderer.render(rig.snapshot())["primary"]

    with Renderer("transfer_cube", 48, 64, noise_sigma=0.0) as renderer:
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(draw).result()
        np.testing.assert_array_equal(renderer.render(rig.snapshot())["primary"], other)


def test_follows_the_rig_to_another_task(rig: SimRig) -> None:
    insertion = SimRig("insertion", 0)
    with Renderer("transfer_cube", 64, 64, noise_sigma=0.0) as renderer:
        before = renderer.render(rig.snapshot())["primary"]
        image = renderer.render(insertion.snapshot())["primary"].astype(int)
        assert (image[..., 2] > 2 * image[..., 0]).sum() > 5
        np.testing.assert_array_equal(renderer.render(rig.snapshot())["primary"], before)


def test_full_quality_shows_the_same_scene(rig: SimRig) -> None:
    images = []
    for quality in ("fast", "full"):
        with Renderer("transfer_cube", 96, 128, quality=quality, noise_sigma=0.0) as renderer:  # type: ignore[arg-type]
            images.append(renderer.render(rig.snapshot())["primary"].astype(float))
    fast, full = images
    assert not np.array_equal(fast, full)
    assert np.corrcoef(fast.ravel(), full.ravel())[0, 1] > 0.9


def test_pinhole_matrix_follows_the_vertical_field_of_view() -> None:
    model = load_physics_model("transfer_cube")
    wrist = camera_matrix(model, "left_wrist", 480, 640)
    assert wrist[0, 0] == wrist[1, 1] == pytest.approx(240 / np.tan(np.radians(29)))
    assert wrist[:2, 2].tolist() == [320.0, 240.0]
    assert camera_matrix(model, "primary", 128, 128)[0, 0] == pytest.approx(79.03, abs=0.01)


def test_unusable_arguments_are_named() -> None:
    with pytest.raises(RigError, match="image size 0x10 px"):
        Renderer("transfer_cube", 10, 0)
    with pytest.raises(RigError, match=r"render quality 'best'.*fast, full"):
        Renderer("transfer_cube", 10, 10, quality="best")  # type: ignore[arg-type]
    with pytest.raises(RigError, match="sensor noise of -1"):
        Renderer("transfer_cube", 10, 10, noise_sigma=-1.0)


def test_closed_twice_is_harmless_and_drawing_then_is_refused(rig: SimRig) -> None:
    renderer = Renderer("transfer_cube", 16, 16)
    renderer.close()
    renderer.close()
    with pytest.raises(RigError, match="closed"):
        renderer.render(rig.snapshot())


def test_missing_egl_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco.egl", None)
    with pytest.raises(RigError, match="apt-get install libegl1 libgl1-mesa-dri"):
        Renderer("transfer_cube", 16, 16)
