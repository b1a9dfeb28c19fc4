"""What an episode consists of on disk: every topic of the rig, and of whoever drives it."""

from __future__ import annotations

from dataclasses import replace

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.writer import offered_qos
from cosmos_policy_ros.rig.spec import RigSpec

POLICY_NODE = "policy_node"
RECORDER_NODE = "recorder_node"
SIM_RIG_NODE = "sim_rig_node"

_RELIABLE = (offered_qos(reliability="reliable", durability="volatile", depth=10),)
_LATCHED = (offered_qos(reliability="reliable", durability="transient_local", depth=1),)


def future_topic(role: str) -> str:
    """Return where the policy node shows what it imagines of a camera."""
    return f"{POLICY_NODE}/future/{role}"


def absolute(name: str, namespace: str = "") -> str:
    """Return the whole name of a rig file's topic for nodes in a namespace such as "/lab"."""
    return name if name.startswith("/") else f"{namespace}/{name}"


def rig_topics(rig: RigSpec) -> tuple[Topic, ...]:
    """Return the images, joint states and trajectories of an episode, absolute, without nodes."""
    names = {camera.topic for camera in rig.cameras}
    names |= {arm.joint_states for arm in rig.arms.values()}
    names |= {output.topic for output in rig.outputs}
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
        topics.append(Topic(camera.topic, f"sensor_msgs/msg/{kind}", _RELIABLE))
        topics.append(Topic(camera.info_topic, "sensor_msgs/msg/CameraInfo", _RELIABLE))
    # Once each: both arms' joint states may be on one topic.
    states = dict.fromkeys(arm.joint_states for arm in rig.arms.values())
    topics += [Topic(name, "sensor_msgs/msg/JointState", _RELIABLE) for name in states]
    topics += [
        Topic(output.topic, "trajectory_msgs/msg/JointTrajectory", _RELIABLE)
        for output in rig.outputs
    ]
    topics += [
        Topic(future_topic(camera.role), "sensor_msgs/msg/Image", _RELIABLE)
        for camera in rig.cameras
    ]
    topics += [
        Topic(f"{POLICY_NODE}/decision", "cosmos_policy_ros/msg/Decision", _RELIABLE),
        Topic(f"{POLICY_NODE}/verdict", "cosmos_policy_ros/msg/Verdict", _RELIABLE),
        Topic(f"{POLICY_NODE}/state", "cosmos_policy_ros/msg/PolicyState", _LATCHED),
    ]
    if rig.kind == "sim":
        topics.append(Topic(f"{SIM_RIG_NODE}/state", "cosmos_policy_ros/msg/RigState", _LATCHED))
    return tuple(topics)
