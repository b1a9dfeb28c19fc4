"""A benchmark in NumPy behind the pipe: a hand that must be brought to a place.

A picture shows the hand and the place in a few pixels. What goes wrong is a part of a task's name,
so that tests choose it: "dies", "hangs", "garbage", "prints", "raises", "black", "frozen",
"not_finite"; each at its second chunk.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = 0.05  # m of a full action


class StandIn:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def about(self) -> dict[str, str]:
        return {"stand-in": "1.0", "numpy": np.__version__}

    def prompt(self, suite: str, task: str, trial: int, seed: int) -> str:
        return f"reach place {seed * trial * 256 % 7 if self.settings['scenes'] else task}"

    def reset(self, suite: str, task: str, trial: int, seed: int) -> tuple[str, Any]:
        np.random.seed(self.settings["reset_seed"])
        self.task, self.trial, self.chunks = task, trial, 0
        self.hand = np.random.uniform(-0.01, 0.01, 3) + np.array([trial / 100, 0, 0])
        self.place = self.hand + np.array([0.3, 0.0, 0.0])
        return self.prompt(suite, task, trial, seed), self.observation()

    def execute(self, rows: NDArray[np.float64], draw: bool) -> tuple[int, bool, Any]:
        self.chunks += 1
        if self.chunks == 2:
            self.go_wrong()
        for index, row in enumerate(rows):
            whole = np.concatenate([row, self.settings["padding"]])
            assert len(whole) == len(self.settings["wait_action"])
            self.hand = self.hand + STEP * whole[:3]
            if np.abs(self.hand - self.place).max() < STEP / 2:
                return index + 1, True, None
        return len(rows), False, self.observation() if draw else None

    def go_wrong(self) -> None:
        if "prints" in self.task:
            print("what a library prints " * 1000)
        if "dies" in self.task:
            print("no more memory", file=sys.stderr, flush=True)
            os._exit(3)
        if "hangs" in self.task:
            time.sleep(1000)
        if "garbage" in self.task:
            os.write(replies(), b"%" * 64)
        if "raises" in self.task:
            raise ValueError("the physics became unstable")

    def observation(self) -> dict[str, NDArray[Any]]:
        size = self.settings["image_size"]
        images = {}
        for index, role in enumerate(self.settings["cameras"]):
            image = np.full((size, size, 3), 40 * (index + 1), np.uint8)
            at = np.clip((self.hand[:2] * 20 + size / 2).astype(int), 0, size - 1)
            image[at[1], at[0]] = 255
            image[0, : self.chunks + 1] = 7
            images[role] = image
        if "black" in self.task:
            images = {role: np.zeros((size, size, 3), np.uint8) for role in images}
        if "frozen" in self.task:
            images = {
                role: np.full((size, size, 3), 50 * i, np.uint8) for i, role in enumerate(images)
            }
        state = np.zeros(9)
        state[2:5] = self.hand
        if "not_finite" in self.task and self.chunks:
            state[0] = np.nan
        return {"state": state, **images}

    def close(self) -> None:
        if "slow_to_close" in getattr(self, "task", ""):
            time.sleep(1000)


def replies() -> int:
    """The pipe that answers go into: the one that is neither the requests' nor for printing."""
    for descriptor in range(3, 20):
        try:
            if str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith("pipe:"):
                return descriptor
        except OSError:
            continue
    raise AssertionError("no pipe")


def make(settings: dict[str, Any]) -> StandIn:
    if settings["split"] == "missing":
        raise ModuleNotFoundError("No module named 'libero'")
    return StandIn(settings)
