"""One motion, recorded by ours and by others, and told in every way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from helpers.episodes import MS, RIG, START_NS, Writing
from helpers.foreign_bags import Made, Message, messages_of, write_bag
from numpy.typing import NDArray
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.foreign_episode import ImportOptions
from cosmos_policy_ros.interop.importer import Imported, Importer, rig_text
from cosmos_policy_ros.interop.sources import find_sources
from cosmos_policy_ros.rig.arms import ARM_DIM, ARM_JOINTS, Driver, Leader
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.spec import RigSpec

SECONDS = 2.4
PROMPT = "transfer the red cube"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"


class Ours(NamedTuple):
    """An episode of our recorder, its windows, and its messages."""

    windows: EpisodeWindows
    messages: list[Message]

    @property
    def sensors(self) -> list[Message]:
        """The messages but for those that tell actions."""
        return [m for m in self.messages if m.msgtype != TRAJECTORY]


def record_ours(store: EpisodeStore, types: Typestore, seconds: float = SECONDS) -> Ours:
    """Record two chunks, the pause between them, and what was seen meanwhile."""
    writing = Writing(store, types)
    for at in range(0, round(seconds * 1000), 10):
        for side, arm in RIG.arms.items():
            # A gripper from 0.2 on, which no published unit is mistaken for.
            names = [*arm.names, arm.gripper.finger_joint]
            writing.joints(side, at, names, [at / 1e5] * 7 + [0.026 + at / 1e5])
        for camera in RIG.cameras:
            if at % 40 == 0:
                writing.image(camera.role, at)
    writing.trajectory(_chunk(100, "run/0", 20))
    writing.trajectory(_chunk(1300, "run/1", 25))
    path = writing.recording.finish("stopped")
    return Ours(EpisodeWindows(read_episode(path)), messages_of(path))


def _chunk(start_ms: int, name: str, rows: int) -> TimedChunk:
    """Return a chunk whose rows hold the ms at which each is due, in tenths of a mrad."""
    due = start_ms + np.arange(1, rows + 1) * 40.0
    positions = np.repeat(due[:, None] / 1e4, 14, axis=1)
    return TimedChunk(name, ns(start_ms), 0.04, np.zeros(14), positions, np.full(14, 3.0))


class Take:
    """Imports bags into one store."""

    def __init__(self, store: EpisodeStore, make: Made, folder: Path) -> None:
        self.store, self.make, self.folder = store, make, folder

    def bag(self, path: Path, **options: Any) -> Imported:
        """Import the bag that is at a path."""
        given = {"rig": "sim", "prompt": PROMPT, **options}
        (source,) = find_sources(path)
        return Importer(self.store, self.make.types, ImportOptions(**given)).take(source)

    def __call__(
        self, messages: Iterable[Message], form: str = "mcap", parts: int = 1, **options: Any
    ) -> Imported:
        """Write a bag and import it."""
        path = self.folder / ("run.bag" if form.startswith("ros1") else "run")
        return self.bag(write_bag(path, messages, self.make.types, form, parts), **options)


def windows_of(done: Imported) -> EpisodeWindows:
    """Return the windows of an imported episode."""
    return EpisodeWindows(read_episode(done.path))


def check_equal(found: EpisodeWindows, wanted: EpisodeWindows) -> None:
    """Compare window by window: what was done, and what was seen before and after it."""
    assert np.array_equal(found.steps.times_ns, wanted.steps.times_ns)
    assert np.array_equal(found.steps.actions, wanted.steps.actions)
    assert np.array_equal(found.usable(10), wanted.usable(10))
    for step in np.flatnonzero(wanted.usable(10)):
        assert np.array_equal(found.chunk(step, 10), wanted.chunk(step, 10))
        for at in (step, wanted.future(step, 10)):
            moment = int(wanted.steps.times_ns[at])
            assert found.observe(moment).digest() == wanted.observe(moment).digest()


def ns(at_ms: float) -> int:
    """Return a moment of the recording."""
    return START_NS + round(at_ms * MS)


def teleoperated() -> RigSpec:
    """Return the simulated rig with drivers and leaders, as the stock one has them."""
    arms = {}
    for side, arm in RIG.arms.items():
        of = f"follower_{side}"
        driver = Driver(f"{of}/commands/joint_group", f"{of}/commands/joint_single", of)
        leader = Leader(f"leader_{side}/joint_states", -0.6842, 0.3083)
        arms[side] = replace(arm, driver=driver, leader=leader)
    return replace(RIG, arms=replace(RIG.arms, **arms))


def rig_file(folder: Path, rig: RigSpec) -> str:
    """Write a rig file; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rig.yaml").write_text(rig_text(rig))
    return str(folder / "rig.yaml")


def told(at_ms: float) -> NDArray[np.float64]:
    """Return the (14,) goals that are sent at a moment: a way, and grippers that open."""
    row = np.repeat(at_ms / 1e4, 14) + np.arange(14) / 100
    row[[6, 13]] = at_ms / 1e4
    return row


def goals(
    make: Made, rig: RigSpec, times_ms: Iterable[float], grippers_ms: Iterable[float] | None = None
) -> list[Message]:
    """Return what a teleoperation sends to the drivers of both arms."""
    found, times = [], list(times_ms)
    for index, arm in enumerate(rig.arms.values()):
        driver, part = arm.driver, slice(index * ARM_DIM, (index + 1) * ARM_DIM)
        assert driver is not None
        for at in times:
            joints = told(at)[part][:ARM_JOINTS]
            found.append(make.group(f"/{driver.joint_group}", ns(at), "arm", joints))
        for at in times if grippers_ms is None else grippers_ms:
            opening = arm.gripper.command(told(at)[part][ARM_JOINTS:])[0]
            found.append(make.single(f"/{driver.joint_single}", ns(at), "gripper", opening))
    return found


def leaders(make: Made, rig: RigSpec, times_ms: Iterable[float], late_ns: int = 0) -> list[Message]:
    """Return joint states of both leaders that are received late."""
    found, times = [], list(times_ms)
    for index, arm in enumerate(rig.arms.values()):
        leader = arm.leader
        assert leader is not None
        for at in times:
            row = told(at)[index * ARM_DIM : (index + 1) * ARM_DIM]
            row[6] = leader.closed + row[6] * (leader.open - leader.closed)
            state = make.joints(f"/{leader.joint_states}", ns(at), arm.names, row)
            found.append(state._replace(received_ns=state.received_ns + late_ns))
    return found
