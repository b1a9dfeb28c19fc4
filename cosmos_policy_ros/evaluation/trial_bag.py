"""A trial as a bag like any other: what the recorder node would have written of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rosbags.typesys.store import Typestore

from cosmos_policy_ros import __version__
from cosmos_policy_ros.rig.chunk import TimedChunk
from cosmos_policy_ros.rig.share import config_folder
from cosmos_policy_ros.rig.spec import RigSpec
from cosmos_policy_ros.rollouts.integrity import Integrity, load_limits, sensors_of
from cosmos_policy_ros.rollouts.messages import EpisodeFacts
from cosmos_policy_ros.rollouts.rig_messages import RigMessages
from cosmos_policy_ros.rollouts.rubric import Judgement
from cosmos_policy_ros.rollouts.store import EpisodeStore
from cosmos_policy_ros.rollouts.task import Task
from cosmos_policy_ros.rollouts.topics import absolute, rig_topics
from cosmos_policy_ros.sim.render import Image
from cosmos_policy_ros.sim.rig import JointSample

JUDGE = "the simulated rig's judge"


class TrialBag:
    """Records one trial; a :class:`~cosmos_policy_ros.evaluation.trial.Witness`."""

    def __init__(
        self,
        store: EpisodeStore,
        types: Typestore,
        rig: RigSpec,
        task: Task,
        *,
        seed: int,
        engine: str,
        checkpoint: str = "",
        checkpoint_digest: str = "",
    ) -> None:
        """Begin an episode.

        Args:
            store: takes it.
            types: the store's.
            rig: description of the simulated rig.
            task: whose file goes along.
            seed: the policy's.
            engine: "cosmos" or "demonstrator".
            checkpoint: the policy's folder.
            checkpoint_digest: the sha256 over its files.

        Raises:
            RolloutError: the store cannot take it.
        """
        self._store, self._rig, self._messages = store, rig, RigMessages(types)
        limits = load_limits(config_folder("rigs").parent)
        watch = Integrity(sensors_of(rig, absolute), rig.observation.camera_skew, limits)
        facts = EpisodeFacts(
            task=task.name,
            prompt=task.prompts[0],
            rig=rig.name,
            engine=engine,
            checkpoint=checkpoint,
            checkpoint_digest=checkpoint_digest,
            operator_name=JUDGE,
            package_version=__version__,
            seed=seed,
            rig_yaml=(config_folder("rigs") / f"{rig.name}.yaml").read_text(encoding="utf-8"),
            task_yaml=(config_folder("tasks") / f"{task.name}.yaml").read_text(encoding="utf-8"),
        )
        self._recording = store.begin(facts, rig_topics(rig), watch)

    def joints(self, side: str, sample: JointSample) -> None:
        """Record a joint state."""
        arm = self._rig.arms[side]
        position, velocity = np.array(sample.positions), np.array(sample.velocities)
        cdr = self._messages.joints(sample.names, sample.stamp_ns, position, velocity)
        self._recording.write(absolute(arm.joint_states), sample.stamp_ns, cdr)

    def pictures(self, stamp_ns: int, pictures: dict[str, Image]) -> None:
        """Record what the cameras see."""
        for camera in self._rig.cameras:
            cdr = self._messages.picture(pictures[camera.role], stamp_ns)
            self._recording.write(absolute(camera.topic), stamp_ns, cdr)

    def sent(self, chunk: TimedChunk) -> None:
        """Record what the arms are told, unstamped as the policy node sends it."""
        sent = self._messages.trajectories(
            self._rig,
            chunk.chunk_id,
            0,
            chunk.step_ns,
            chunk.positions,
            chunk.velocities,
            chunk.sent_after_ns,
        )
        for topic, cdr in sent:
            self._recording.write(absolute(topic), chunk.sent_ns, cdr)

    def finish(self, outcome: str, points: float) -> Path:
        """Score the episode and close its bag; return its folder.

        Raises:
            RolloutError: the disk refused.
        """
        judgement = Judgement(points, success=points == 100.0, operator_name=JUDGE)
        self._store.score(judgement)
        return self._recording.finish(outcome)

    def discard(self, reason: str) -> None:
        """Close the bag of a trial that must not be counted.

        Raises:
            RolloutError: the disk refused.
        """
        self._store.discard(reason, operator_name=JUDGE)
