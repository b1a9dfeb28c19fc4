"""Episodes of the simulated rig without a simulator: small images and states, by the second."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.jpeg import rig_of_bag
from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import DECISION_TYPE, EpisodeMetadata
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.quality import QualityMonitor, load_limits, sensors_of
from cosmos_policy_ros.episodes.recording import Options, Recording
from cosmos_policy_ros.episodes.store import DEFAULTS, EpisodeStore
from cosmos_policy_ros.episodes.topics import episode_topics
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

MS = 1_000_000
DAY = datetime(2026, 1, 1)
START_NS = 1_700_000_000_000_000_000
CAMERA_PERIOD, JOINT_PERIOD = 40, 10  # ms
RIG = load_rig("sim", config_folder("rigs"))
DECISION = "policy_node/decision"


def metadata(task: str = "transfer_cube", **others: Any) -> EpisodeMetadata:
    """Return the metadata of an episode of a shipped task on the simulated rig."""
    known = {
        "task": task,
        "prompt": "transfer the red cube",
        "rig": RIG.name,
        "engine": "cosmos",
        "checkpoint": "aloha_tuned",
        "checkpoint_digest": "feedc0de" * 8,
        "operator_name": "ann",
        "rig_yaml": (config_folder("rigs") / "sim.yaml").read_text(),
        "task_yaml": (config_folder("tasks") / f"{task}.yaml").read_text(),
    }
    return EpisodeMetadata(**{**known, **others})


@cache
def noise(role: str, at: int) -> NDArray[np.uint8]:
    """Return the pixels that a camera shows ``at`` ms where a test does not say which."""
    return np.random.default_rng([ord(role[0]), at]).integers(0, 256, (8, 8, 3), np.uint8)


class Writing:
    """Writes an episode's messages as a recorder would; makes them too."""

    def __init__(
        self,
        store: EpisodeStore,
        types: Typestore,
        *,
        namespace: str = "",
        jpeg: bool = False,
        rig: RigSpec = RIG,
        options: Options = DEFAULTS,
        **of_metadata: Any,
    ) -> None:
        self.types, self.rig, self.namespace = types, rig, namespace
        topics = [Topic(self.topic(t.name), t.msgtype, t.qos) for t in episode_topics(rig)]
        cameras = {self.topic(camera.topic) for camera in rig.cameras}
        jpegs = tuple(topic for topic in topics if jpeg and topic.name in cameras)
        shown = rig_of_bag(rig, jpeg)
        limits = load_limits()
        watch = QualityMonitor(sensors_of(shown, self.topic), rig.observation.camera_skew, limits)
        # Which episodes a training holds out depends on their ids, and these on the wall clock.
        with patch("cosmos_policy_ros.episodes.store.datetime", now=lambda: DAY):
            self.recording: Recording = store.begin(
                metadata(**of_metadata),
                topics,
                watch,
                replace(options, jpegs=jpegs, jpeg_quality=rig.recording.jpeg_quality),
            )

    def topic(self, name: str) -> str:
        return f"{self.namespace}/{name}"

    def image(
        self,
        role: str,
        at: int,
        pixels: NDArray[np.uint8] | None = None,
        received: int | None = None,
    ) -> None:
        """Write (H, W, 3) pixels as a camera's image stamped ``at`` ms, by default of noise."""
        if pixels is None:
            pixels = noise(role, at)
        (camera,) = (c for c in self.rig.cameras if c.role == role)
        height, width, _ = pixels.shape
        fields = {"height": height, "width": width, "encoding": "rgb8", "is_bigendian": 0}
        fields |= {"step": 3 * width, "data": pixels.ravel()}
        self._write(camera.topic, "sensor_msgs/msg/Image", at, received, **fields)

    def state(self, side: str, at: int, received: int | None = None) -> None:
        """Write an arm's joint state stamped ``at`` ms."""
        arm = self.rig.arms[side]
        names = [*arm.names, arm.gripper.finger_joint]
        self.joints(side, at, names, [at / 1e5] * len(names), received)

    def joints(
        self,
        side: str,
        at: int,
        names: Sequence[str],
        positions: Sequence[float],
        received: int | None = None,
    ) -> None:
        """Write an arm's joint state stamped ``at`` ms."""
        arm, none = self.rig.arms[side], np.zeros(0)
        fields = {"name": list(names), "position": np.array(positions)}
        fields |= {"velocity": none, "effort": none}
        self._write(arm.joint_states, "sensor_msgs/msg/JointState", at, received, **fields)

    def trajectory(self, chunk: TimedChunk, to: Sequence[str] = ()) -> None:
        """Write a chunk as the policy node sends it, unstamped, to some outputs or to all."""
        make, at = self.types.types, (chunk.sent_ns - START_NS) // MS
        sent = self.rig.command(chunk.positions)
        for output in self.rig.outputs:
            if to and output.name not in to:
                continue
            points, rows = [], np.ascontiguousarray(sent[:, output.columns])
            for row, due_ns in zip(rows, chunk.times_ns(), strict=True):
                sec, nanosec = divmod(due_ns, 1000 * MS)
                due = make["builtin_interfaces/msg/Duration"](sec=sec, nanosec=nanosec)
                none = {k: np.zeros(0) for k in ("velocities", "accelerations", "effort")}
                kind = make["trajectory_msgs/msg/JointTrajectoryPoint"]
                points.append(kind(positions=row, time_from_start=due, **none))
            self._write(
                output.topic,
                "trajectory_msgs/msg/JointTrajectory",
                at,
                None,
                frame_id=chunk.chunk_id,
                stamped=False,
                joint_names=list(output.joints),
                points=points,
            )

    def decision(self, at: int, digest: str, received: int | None = None, **told: Any) -> None:
        """Write a decision on the observation stamped ``at`` ms; ``told`` are fields of it."""
        numbers: dict[str, Any] = {
            "positions": np.zeros(0),
            "phase_seconds": np.zeros(0, np.float32),
            "committed": np.zeros(0),
            "committed_weights": np.zeros(0),
            "committed_seconds": 0.0,
            "held": np.zeros(0),
        }
        texts = ("run_id", "task", "prompt", "engine", "reason", "numerics", "search")
        empty: Mapping[str, Any] = {
            **dict.fromkeys((*texts, "checkpoint_digest", "world_model_digest"), ""),
            **dict.fromkeys(("denoising_steps", "evaluations", "requested", "finished"), 0),
            **dict.fromkeys(("chosen", "steps", "executed_rows"), 0),
            **{"candidates": [], "phases": [], "dt": 0.04, **numbers},
        }
        fields = {**empty, "chunk_id": f"run/{at}", "observation_digest": digest, **told}
        self._write(DECISION, DECISION_TYPE, at, received, **fields)

    def seconds(self, seconds: float, *, without: str = "") -> None:
        """Write what a healthy rig sends in so many seconds, but for a source."""
        for at in range(0, round(seconds * 1000), JOINT_PERIOD):
            for side in ("left", "right"):
                if side != without:
                    self.state(side, at)
            for camera in self.rig.cameras:
                if at % CAMERA_PERIOD == 0 and camera.role != without:
                    self.image(camera.role, at)

    def follow(
        self,
        seconds: float,
        pose: Callable[[int], NDArray[np.float64]],
        image: Callable[[str, int], NDArray[np.uint8]] = noise,
    ) -> None:
        """Write arms that are at the (14,) ``pose`` of each moment [ms], and what cameras show."""
        for at in range(0, round(seconds * 1000), JOINT_PERIOD):
            self.follow_once(at, pose(at), image)

    def follow_once(
        self,
        at: int,
        pose: NDArray[np.float64],
        image: Callable[[str, int], NDArray[np.uint8]] = noise,
    ) -> None:
        """Write one moment of it."""
        for index, (side, arm) in enumerate(self.rig.arms.items()):
            joints, gripper = pose[7 * index : 7 * index + 6], arm.gripper
            finger = gripper.state_closed + pose[7 * index + 6] * gripper.state_stroke
            names = [*arm.names, gripper.finger_joint]
            self.joints(side, at, names, [*joints, 0.0, finger])
        for camera in self.rig.cameras:
            if at % CAMERA_PERIOD == 0:
                self.image(camera.role, at, image(camera.role, at))

    def _write(
        self,
        to: str,
        kind: str,
        at: int,
        received: int | None,
        /,
        frame_id: str = "",
        stamped: bool = True,
        **fields: Any,
    ) -> None:
        sec, nanosec = divmod(START_NS + at * MS if stamped else 0, 1000 * MS)
        make = self.types.types
        stamp = make["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)
        header = make["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)
        cdr = bytes(self.types.serialize_cdr(make[kind](header=header, **fields), kind))
        receipt = START_NS + (at if received is None else received) * MS
        self.recording.write(self.topic(to), receipt, cdr)


def record(
    store: EpisodeStore,
    types: Typestore,
    seconds: float = 3.0,
    *,
    then: Callable[[Recording], Path] | None = None,
    **options: Any,
) -> Path:
    """Record a healthy episode; return its folder."""
    without = options.pop("without", "")
    writing = Writing(store, types, **options)
    writing.seconds(seconds, without=without)
    return then(writing.recording) if then else writing.recording.finish("time_limit")
