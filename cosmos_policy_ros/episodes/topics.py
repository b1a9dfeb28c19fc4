"""The topics of an episode: which ones are recorded, and under what names a bag has them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from cosmos_policy_ros.bags.jpeg import rig_of_bag
from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import DECISION_TYPE
from cosmos_policy_ros.bags.video import rig_of_video
from cosmos_policy_ros.bags.writer import LATCHED, RELIABLE
from cosmos_policy_ros.core.config import parse_config
from cosmos_policy_ros.core.errors import ConfigError, RolloutError
from cosmos_policy_ros.episodes.episode import Episode
from cosmos_policy_ros.rig.spec import Output, RigSpec

POLICY_NODE = "policy_node"
RECORDER_NODE = "recorder_node"
SIM_RIG_NODE = "sim_rig_node"
ARM_INTERFACE_NODE = "arm_interface_node"
GATE_RESULT_TYPE = "cosmos_policy_ros/msg/GateResult"


def future_topic(role: str) -> str:
    """Return where the policy node publishes its predicted images of a camera."""
    return f"{POLICY_NODE}/future/{role}"


def absolute(name: str, namespace: str = "") -> str:
    """Return the absolute name of a rig file's topic in a namespace such as "/lab"."""
    return name if name.startswith("/") else f"{namespace}/{name}"


def rig_topics(rig: RigSpec, decisions: bool = False) -> tuple[Topic, ...]:
    """Return an episode's images, joint states and trajectories, names absolute.

    ``decisions``: and what the policy decided.
    """
    names = {*_sensors(rig), *(output.topic for output in rig.outputs)}
    if decisions:
        names.add(f"{POLICY_NODE}/decision")
    return tuple(
        replace(topic, name=absolute(topic.name))
        for topic in episode_topics(rig)
        if topic.name in names
    )


def episode_topics(rig: RigSpec) -> tuple[Topic, ...]:
    """Return the topics of an episode on ``rig``, names relative to the nodes' namespace."""
    topics = []
    for camera in rig.cameras:
        kind = "Image" if camera.transport == "raw" else "CompressedImage"
        topics.append(Topic(camera.topic, f"sensor_msgs/msg/{kind}", RELIABLE))
        topics.append(Topic(camera.info_topic, "sensor_msgs/msg/CameraInfo", RELIABLE))
    # Once each: both arms' joint states may be on one topic.
    states = dict.fromkeys(arm.joint_states for arm in rig.arms.values())
    topics += [Topic(name, "sensor_msgs/msg/JointState", RELIABLE) for name in states]
    topics += [
        Topic(output.topic, "trajectory_msgs/msg/JointTrajectory", RELIABLE)
        for output in rig.outputs
    ]
    topics += [
        Topic(future_topic(camera.role), "sensor_msgs/msg/Image", RELIABLE)
        for camera in rig.cameras
    ]
    topics += [
        Topic(f"{POLICY_NODE}/decision", DECISION_TYPE, RELIABLE),
        Topic(f"{POLICY_NODE}/gate_result", GATE_RESULT_TYPE, RELIABLE),
        Topic(f"{POLICY_NODE}/state", "cosmos_policy_ros/msg/PolicyState", LATCHED),
    ]
    if rig.kind == "sim":
        topics.append(Topic(f"{SIM_RIG_NODE}/state", "cosmos_policy_ros/msg/RigState", LATCHED))
    return tuple(topics)


@dataclass(frozen=True)
class RigInBag:
    """A rig, and where a bag has its topics.

    Attributes:
        rig: with compressed cameras where they were recorded as JPEG, or became video.
        namespace: the recorder's; "" for the root, else such as "/lab".
        as_seen: the images are those that the policy saw, not video made of them.
    """

    rig: RigSpec
    namespace: str
    as_seen: bool

    def topic(self, name: str) -> str:
        """Return the bag's name for a topic of the rig file."""
        return absolute(name, self.namespace)

    @cached_property
    def cameras(self) -> dict[str, str]:
        """Roles by the bag's topic, in the order the policy sees them."""
        return {self.topic(camera.topic): camera.role for camera in self.rig.cameras}

    @cached_property
    def arms(self) -> dict[str, str]:
        """The bag's joint state topics by side; both may be the same."""
        return {side: self.topic(arm.joint_states) for side, arm in self.rig.arms.items()}

    @cached_property
    def sensors(self) -> tuple[str, ...]:
        """The bag's topics that an observation is made of, cameras first, each once."""
        return tuple(dict.fromkeys([*self.cameras, *self.arms.values()]))

    @cached_property
    def outputs(self) -> dict[str, Output]:
        """The outputs by the bag's trajectory topic, in the order of the 14-vector."""
        return {self.topic(output.topic): output for output in self.rig.outputs}


def find_rig(episode: Episode) -> RigInBag:
    """Return the rig that an episode was recorded on.

    Raises:
        RolloutError: the rig file in its metadata is invalid, its topics are not in the bag, or an
            earlier version recorded it.
    """
    try:
        rig = _parse_rig(episode.metadata.rig_yaml)
    except ConfigError as error:
        raise RolloutError(f"{episode.path}: {error}") from error
    # Without its gate results, a decision's chunk would be taken to start when it was sent.
    if old := next((t for t in episode.topics if t.endswith(f"{POLICY_NODE}/verdict")), None):
        raise RolloutError(
            f"{episode.path}: an earlier version recorded it, with {old} for today's "
            f"{POLICY_NODE}/gate_result; read it with that version, "
            f"{episode.metadata.package_version}"
        )
    video = rig_of_video(rig)
    for shown in (rig_of_bag(rig, False), rig_of_bag(rig, True), video):
        names = _sensors(shown)
        namespaces = {""}
        if relative := next((name for name in names if not name.startswith("/")), None):
            ending = f"/{relative}"
            namespaces = {t.removesuffix(ending) for t in episode.topics if t.endswith(ending)}
        for namespace in sorted(namespaces, key=len):
            if all(absolute(name, namespace) in episode.topics for name in names):
                return RigInBag(shown, namespace, as_seen=shown is not video)
    names = _sensors(rig)
    missing = [n for n in names if not any(t == n or t.endswith(f"/{n}") for t in episode.topics)]
    raise RolloutError(
        f"{episode.path}: {', '.join(missing or names)} of rig '{rig.name}' is not in the bag "
        f"under one namespace; it holds {', '.join(sorted(episode.topics))}"
    )


@lru_cache(maxsize=64)  # the episodes of a lab have a handful of rigs
def _parse_rig(text: str) -> RigSpec:
    return parse_config(RigSpec, text, "the rig in its metadata")


def _sensors(rig: RigSpec) -> list[str]:
    return [c.topic for c in rig.cameras] + [arm.joint_states for arm in rig.arms.values()]
