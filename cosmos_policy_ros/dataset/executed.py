"""An episode as the rows that other formats hold: what was seen and done at each executed step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.bags.jpeg import COMPRESSED, is_jpeg
from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.units import Array
from cosmos_policy_ros.core.untrusted import reading
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import Episode
from cosmos_policy_ros.rig.arms import ARM_DIM, STATE_DIM, Gripper, finger_from_angle

_ANGLE = 1e-6  # rad; half the step of a central difference


@dataclass(frozen=True)
class ExecutedStep:
    """One row.

    Attributes:
        state, action: (14,) policy units.
        velocity: (14,) policy units per second; zeros where no driver reported it.
        effort: (14,) in the drivers' units; zeros where no driver reported it.
        images: (H, W, 3) uint8 RGB by role.
        jpegs: by role the very files of the images that were recorded as JPEG.
    """

    state: Array
    action: Array
    velocity: Array
    effort: Array
    images: Mapping[str, NDArray[np.uint8]]
    jpegs: Mapping[str, bytes]


class ExecutedEpisode:
    """Yields an episode's steps in their order.

    Attributes:
        episode: its summary.
        rig: as the bag shows it.
        left_out: why each step without an observation is missing; grows while they are read.
    """

    def __init__(self, episode: Episode) -> None:
        """Index a finished episode; raises RolloutError when nothing was executed in it."""
        self.episode = episode
        self.left_out: list[str] = []
        self._windows = EpisodeWindows(episode)
        self.rig = self._windows.rig.rig
        if not len(self._windows):
            raise RolloutError(f"{episode.path}: holds no executed step: nothing to export")

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[ExecutedStep]:
        """Yield the steps at which the rig's limits allow an observation."""
        self.left_out.clear()
        steps = self._windows.steps
        for time, action in zip(steps.times_ns, steps.actions, strict=True):
            stamp_ns = int(time)
            try:
                seen = self._windows.observe(stamp_ns)
            except ObservationError as error:
                self.left_out.append(str(error))
                continue
            with reading(self.episode.path, "an episode", RolloutError, VERIFY):
                jpegs = {}
                for name, role in self._windows.rig.cameras.items():
                    topic = self._windows.topics[name]
                    if topic.msgtype == COMPRESSED:
                        data = bytes(topic.read(topic.newest(stamp_ns)).data)
                        if is_jpeg(data):
                            jpegs[role] = data
                velocity, effort = self._measured(stamp_ns)
            yield ExecutedStep(seen.state, action, velocity, effort, seen.images, jpegs)

    def _measured(self, stamp_ns: int) -> tuple[Array, Array]:
        """Return the (14,) velocity and effort of the arms' newest joint states."""
        velocity, effort = np.zeros(STATE_DIM), np.zeros(STATE_DIM)
        for index, (side, arm) in enumerate(self.rig.arms.items()):
            names, topic = arm.state_names, self._windows.topics[self._windows.rig.arms[side]]
            # Where both arms report on one topic, the newest message may be the other's.
            read = (topic.read(at) for at in range(topic.newest(stamp_ns), -1, -1))
            state = next(each for each in read if names[-1] in each.name)
            part = slice(index * ARM_DIM, (index + 1) * ARM_DIM)
            velocity[part] = _by_name(state, "velocity", names)
            effort[part] = _by_name(state, "effort", names)
            gripper = part.stop - 1
            if velocity[gripper]:
                position = state.position[state.name.index(names[-1])]
                velocity[gripper] *= opening_per_reading(arm.gripper, position)
        return velocity, effort


def _by_name(state: Any, field: str, names: tuple[str, ...]) -> Array:
    given = dict(zip(state.name, getattr(state, field), strict=False))
    values = np.array([given.get(name, 0.0) for name in names], np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def opening_per_reading(gripper: Gripper, reading: float) -> float:
    """Return by how much the opening (0 to 1) changes with the driver's number."""
    per_unit = 1 / gripper.state_stroke
    if gripper.state_source != "crank":
        return per_unit
    assert gripper.crank is not None
    radius, rod = gripper.crank.radius, gripper.crank.rod
    ends = [finger_from_angle(reading + step, radius, rod) for step in (-_ANGLE, _ANGLE)]
    return per_unit * (ends[1] - ends[0]) / (2 * _ANGLE)
