"""Where a bag of another recorder has a rig's sensors, and what else in it moves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from cosmos_policy_ros.bags.jpeg import COMPRESSED, IMAGE, SUFFIX
from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.writer import RELIABLE
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.episodes.topics import absolute
from cosmos_policy_ros.interop.ros_bag_files import BagTopic, Recorded
from cosmos_policy_ros.rig.images import decode_image
from cosmos_policy_ros.rig.spec import Camera, RigSpec

JOINT_STATE = "sensor_msgs/msg/JointState"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
_ASIDE = ("/compressedDepth", "/theora", "/ffmpeg")  # further topics of a camera that is known
_STANDS = 1e-3  # what moves by less stands still, in any unit of a robot's
_LOOKED_AT = 0.04  # s between two messages that are asked whether something moves
_SHOWN = 6


class RigTopics(NamedTuple):
    """Where a bag has what a rig file names.

    Attributes:
        rig: as the imported bag will show it.
        namespace: of the recorder; "" for the root, else such as "/lab".
        cameras: by the bag's topic.
        arms: indices of the arms by the bag's topic of joint states.
        written: the imported bag's topics by this one's.
    """

    rig: RigSpec
    namespace: str
    cameras: Mapping[str, Camera]
    arms: Mapping[str, tuple[int, ...]]
    written: Mapping[str, Topic]


def find_topics(
    topics: Mapping[str, BagTopic], rig: RigSpec, given: Mapping[str, str]
) -> RigTopics:
    """Return where a bag has a rig's sensors: under one namespace, whatever it is.

    Args:
        topics: of the bag.
        rig: its file.
        given: topics of cameras by role.

    Raises:
        RolloutError: an arm or a camera is not there, or there are several.
    """
    namespace = _namespace(topics, rig)
    arms: dict[str, tuple[int, ...]] = {}
    for index, arm in enumerate(rig.arms.values()):
        name = absolute(arm.joint_states, namespace)
        arms[name] = (*arms.get(name, ()), index)
    cameras: dict[str, Camera] = {}
    infos: dict[str, str] = {}
    for camera in rig.cameras:
        name = _camera_topic(topics, camera, namespace, given.get(camera.role))
        if name in cameras:
            raise RolloutError(f"{shown(name)} is the topic of two cameras; give --camera for each")
        kind: Literal["raw", "compressed"] = "raw"
        if topics[name].msgtype == COMPRESSED:
            kind = "compressed"
        shown_as = camera
        if kind != camera.transport:
            plain = camera.topic.removesuffix(SUFFIX)
            topic = plain if kind == "raw" else plain + SUFFIX
            shown_as = replace(camera, topic=topic, transport=kind)
        cameras[name] = shown_as
        info = absolute(camera.info_topic, namespace)
        if info in topics and topics[info].msgtype == CAMERA_INFO:
            infos[info] = absolute(camera.info_topic)
    written = {name: absolute(camera.topic) for name, camera in cameras.items()}
    written |= {name: absolute(rig.arms.values()[of[0]].joint_states) for name, of in arms.items()}
    written |= infos
    return RigTopics(
        replace(rig, cameras=tuple(cameras.values()), trajectory_stamp="start"),
        namespace,
        cameras,
        arms,
        {name: Topic(to, topics[name].msgtype, RELIABLE) for name, to in written.items()},
    )


def _namespace(topics: Mapping[str, BagTopic], rig: RigSpec) -> str:
    """Return under which namespace a bag has both arms."""
    names = [arm.joint_states for arm in rig.arms.values()]
    states = [name for name, topic in topics.items() if topic.msgtype == JOINT_STATE]
    ending = absolute(names[0])
    fitting = {state.removesuffix(ending) for state in states if state.endswith(ending)}
    fitting = {n for n in fitting if all(absolute(name, n) in states for name in names)}
    if "" in fitting or len(fitting) == 1:
        return min(fitting)
    if fitting:
        raise RolloutError(
            f"has rig '{rig.name}' under {some(sorted(fitting))}; write the topics of one of them "
            f"into a rig file, with the namespace, and give it as --rig"
        )
    raise RolloutError(
        f"{' and '.join(dict.fromkeys(map(absolute, names)))} of rig '{rig.name}' is not in it; it "
        f"has joint states on {some(states) or 'no topic'}: give --rig with a file that names them"
    )


def _camera_topic(
    topics: Mapping[str, BagTopic], camera: Camera, namespace: str, given: str | None
) -> str:
    """Return the bag's topic of a camera, of the rig's own kind if it has both."""
    name = given or absolute(camera.topic, namespace)
    plain = name.removesuffix(SUFFIX)
    images = [t for t, topic in topics.items() if topic.msgtype in (IMAGE, COMPRESSED)]
    for candidate in (name, plain, plain + SUFFIX):
        if candidate in images:
            return candidate
    others = [t for t in topics if t.startswith(f"{plain}/")]
    aside = f" (but {some(others)}, which is not read)" if others else ""
    raise RolloutError(
        f"{shown(name)} of camera {camera.role} is not in it{aside}; it has images on "
        f"{some(images) or 'no topic'}: give --camera {camera.role}=TOPIC"
    )


def check_image(topic: BagTopic, data: bytes, camera: Camera) -> None:
    """Refuse images that no observation could be made of. Raises RolloutError."""
    message = topic.read(data)
    encoding = getattr(message, "encoding", None)
    if encoding is not None and encoding not in camera.encodings:
        raise RolloutError(
            f"{shown(topic.name)}: its images are '{shown(encoding)}', the rig file takes "
            f"{', '.join(camera.encodings)}; convert them, or add it to the camera's encodings"
        )
    try:
        decode_image(message, shown(topic.name), grey=camera.grey, size=camera.size)
    except ObservationError as error:
        raise RolloutError(f"its first image cannot be used: {error}") from error


def _flat(*parts: Any) -> list[float]:
    return [float(value) for part in parts for value in part]


def _xyz(vector: Any) -> tuple[float, float, float]:
    return vector.x, vector.y, vector.z


# Numbers of a message that change when something moves, and those that are speeds: there all but 0
# is motion.
_PLACES: Mapping[str, Callable[[Any], list[float]]] = {
    JOINT_STATE: lambda m: _flat(m.position),
    TRAJECTORY: lambda m: _flat(*(point.positions for point in m.points[-1:])),
    "geometry_msgs/msg/PoseStamped": lambda m: _flat(_xyz(m.pose.position)),
    "interbotix_xs_msgs/msg/JointGroupCommand": lambda m: _flat(m.cmd),
    "nav_msgs/msg/Odometry": lambda m: _flat(_xyz(m.pose.pose.position)),
    "std_msgs/msg/Float32MultiArray": lambda m: _flat(m.data),
    "std_msgs/msg/Float64MultiArray": lambda m: _flat(m.data),
}
_SPEEDS: Mapping[str, Callable[[Any], list[float]]] = {
    JOINT_STATE: lambda m: _flat(m.velocity),
    "geometry_msgs/msg/Twist": lambda m: _flat(_xyz(m.linear), _xyz(m.angular)),
    "geometry_msgs/msg/TwistStamped": lambda m: _flat(_xyz(m.twist.linear), _xyz(m.twist.angular)),
}


@dataclass
class Leftovers:
    """The topics of which nothing is taken.

    Attributes:
        topics: names of those that could tell a motion.
        cameras: names of further cameras.
    """

    topics: Collection[str]
    cameras: Collection[str]
    _first: dict[str, list[float]] = field(default_factory=dict)
    _looked: dict[str, int] = field(default_factory=dict)
    _moving: dict[str, None] = field(default_factory=dict)

    def watch(self, topic: BagTopic, each: Recorded) -> None:
        """Look whether something moves."""
        name = topic.name
        since = each.received_ns - self._looked.get(name, -NS_PER_S)
        if name in self._moving or since < _LOOKED_AT * NS_PER_S:
            return
        self._looked[name] = each.received_ns
        try:
            message = topic.read(each.data)
            places = _PLACES.get(topic.msgtype, lambda _: [])(message)
            speeds = _SPEEDS.get(topic.msgtype, lambda _: [])(message)
        except (RolloutError, AttributeError):
            return  # nothing is taken of it, so that nothing is lost
        first = self._first.setdefault(name, places)
        ways = [abs(a - b) for a, b in zip(places, first, strict=False)]
        if any(each > _STANDS for each in (*ways, *map(abs, speeds))):
            self._moving[name] = None

    @property
    def notes(self) -> list[str]:
        """What is not taken, for a report."""
        notes = []
        if self.cameras:
            notes.append(f"not taken: camera{'s' * (len(self.cameras) > 1)} {some(self.cameras)}")
        if self._moving:
            s = "s" * (len(self._moving) == 1)
            notes.append(f"not taken: {some(self._moving)}, which move{s}")
        return notes


def find_leftovers(
    topics: Mapping[str, BagTopic], found: RigTopics, commands: Collection[str]
) -> Leftovers:
    """Return the topics besides a rig's own and those of all its commands."""
    leaders = {
        absolute(arm.leader.joint_states, found.namespace)
        for arm in found.rig.arms.values()
        if arm.leader is not None
    }
    known = {name.removesuffix(SUFFIX) for name in found.cameras}
    return Leftovers(
        [
            name
            for name, topic in topics.items()
            if topic.msgtype in {*_PLACES, *_SPEEDS}
            and name not in {*commands, *found.written, *leaders}
        ],
        [
            name
            for name, topic in topics.items()
            if topic.msgtype in (IMAGE, COMPRESSED)
            and name.removesuffix(SUFFIX) not in known
            and not name.endswith(_ASIDE)
        ],
    )


def some(names: Collection[str]) -> str:
    """Return names for a message, the first few of many."""
    texts = [shown(name) for name in list(names)[:_SHOWN]]
    return ", ".join([*texts, "…"] if len(names) > _SHOWN else texts)
