"""RoboCasa's kitchens behind the pipe of ``worker.py``; run by RoboCasa's own interpreter."""

from __future__ import annotations

import platform
import random
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from worker import LazyCameras, observation, release_context

PACKAGES = ("robocasa", "robosuite", "mujoco", "numpy")
SEEDS_APART = 256  # of two trials, times the policy's seed
# Pose of the hand relative to where it is, as the released evaluation's pickle has it.
CONTROLLER: dict[str, Any] = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}


class RoboCasa:
    """One kitchen at a time: every trial builds its own."""

    def __init__(self, settings: dict[str, Any], lazy: bool = True) -> None:
        import robosuite

        if settings["scenes"]:
            import robocasa  # noqa: F401  registers the kitchens
        self._robosuite, self._settings, self._lazy = robosuite, settings, lazy
        self._env: Any = None

    def about(self) -> dict[str, str]:
        """Return versions by name."""
        found = {}
        for name in PACKAGES:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "none"
        return found | {"Python": platform.python_version()}

    def prompt(self, suite: str, task: str, trial: int, seed: int) -> str:
        """Return the prompt that a reset composes, of which objects it has drawn."""
        self._build(task, trial, seed, pictures=False)
        prompt = self._lang(task)
        self.close()
        return prompt

    def reset(self, suite: str, task: str, trial: int, seed: int) -> tuple[str, Any]:
        """Build the trial's kitchen, and wait until the objects lie still."""
        self._build(task, trial, seed, pictures=True)
        settings, env = self._settings, self._env
        self._cameras = LazyCameras(env, [*settings["cameras"].values()], "robot0_eef_pos")
        seen: Any = None
        for index in range(settings["wait_steps"]):
            last = index + 1 == settings["wait_steps"]
            self._cameras.show(last or not self._lazy)
            seen, *_ = env.step(np.array(settings["wait_action"]))
        return self._lang(task), observation(seen, self._settings["cameras"])

    def execute(self, rows: NDArray[np.float64], draw: bool) -> tuple[int, bool, Any]:
        """Execute rows up to success; the base rests."""
        padding, seen = np.array(self._settings["padding"]), None
        for index, row in enumerate(rows):
            last = index + 1 == len(rows)
            self._cameras.show((last and draw) or not self._lazy)
            seen, *_ = self._env.step(np.concatenate([row, padding]))
            if self._env._check_success():
                return index + 1, True, None
        return len(rows), False, observation(seen, self._settings["cameras"]) if draw else None

    def close(self) -> None:
        """Free the renderer."""
        if self._env is not None:
            release_context(self._env)
            self._env.close()
        self._env = None

    def _build(self, task: str, trial: int, seed: int, pictures: bool) -> None:
        self.close()
        settings, scenes = self._settings, self._settings["scenes"]
        kitchen: dict[str, Any] = {}
        scene_seed = seed * trial * SEEDS_APART
        if scenes:
            scene = scenes[trial // settings["trials_per_scene"] % len(scenes)]
            kitchen = {
                "seed": scene_seed,
                "layout_and_style_ids": (tuple(scene),),
                "obj_instance_split": settings["split"],
                "generative_textures": None,
                "randomize_cameras": False,
                "translucent_robot": False,
            }
        # A kitchen draws from a generator of its own; what does not, such as the noise of the arm's
        # first pose, must not depend on which trials came before.
        np.random.seed(scene_seed % 2**32)
        random.seed(scene_seed)
        self._env = self._robosuite.make(
            env_name=task,
            robots=settings["robot"],
            controller_configs=self._controller(),
            camera_names=[*settings["cameras"].values()],
            camera_widths=settings["image_size"],
            camera_heights=settings["image_size"],
            has_renderer=False,
            has_offscreen_renderer=pictures,
            ignore_done=True,
            use_object_obs=True,
            use_camera_obs=pictures,
            camera_depths=False,
            **kitchen,
        )
        release_context(self._env)
        self._env.reset()

    def _controller(self) -> dict[str, Any]:
        """Return the hand's controller; a kitchen puts it into the robot's by itself."""
        hand = deepcopy(CONTROLLER)
        if self._settings["scenes"]:
            return hand
        from robosuite.controllers.composite.composite_controller_factory import (
            refactor_composite_controller_config,
        )

        whole: dict[str, Any] = refactor_composite_controller_config(
            hand, self._settings["robot"], ["right"]
        )
        order = ["right", "right_gripper", "base", "torso"]
        whole.setdefault("composite_controller_specific_configs", {})["body_part_ordering"] = order
        return whole

    def _lang(self, task: str) -> str:
        return str(self._env.get_ep_meta().get("lang") or task)


def make(settings: dict[str, Any]) -> RoboCasa:
    """Return RoboCasa's environments of some settings."""
    return RoboCasa(settings)
