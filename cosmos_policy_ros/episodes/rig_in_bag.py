"""The rig of an episode as its bag shows it: the file that was in force, under the bag's names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from cosmos_policy_ros.bags.jpeg import rig_of_bag
from cosmos_policy_ros.core.config import parse_config
from cosmos_policy_ros.core.errors import ConfigError, RolloutError
from cosmos_policy_ros.episodes.episode import Episode
from cosmos_policy_ros.episodes.topics import absolute
from cosmos_policy_ros.rig.spec import Output, RigSpec


@dataclass(frozen=True)
class RigInBag:
    """A rig and where its topics are in a bag.

    Attributes:
        rig: cameras that were recorded as JPEG are "compressed" in it.
        namespace: of the recorder; "" for the root, else such as "/lab".
        as_received: the images are the camera's own bytes, not JPEG made of them.
    """

    rig: RigSpec
    namespace: str
    as_received: bool

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
        """What trajectories move, by the bag's topic, in the order of the 14-vector."""
        return {self.topic(output.topic): output for output in self.rig.outputs}


def find_rig(episode: Episode) -> RigInBag:
    """Return the rig of an episode.

    Raises:
        RolloutError: the rig file in its metadata is none, or its topics are not in the bag.
    """
    try:
        rig = parse_config(
            RigSpec, episode.metadata.rig_yaml, f"{episode.path}: the rig in its metadata"
        )
    except ConfigError as error:
        raise RolloutError(str(error)) from error
    for jpeg in (False, True):
        shown = rig_of_bag(rig, jpeg)
        names = _sensor_topics(shown)
        for namespace in sorted(_namespaces(names, episode.topics), key=len):
            if all(absolute(name, namespace) in episode.topics for name in names):
                return RigInBag(shown, namespace, as_received=shown == rig)
    missing = [n for n in _sensor_topics(rig) if not _ends(n, episode.topics)]
    wanted = ", ".join(missing or _sensor_topics(rig))
    raise RolloutError(
        f"{episode.path}: {wanted} of rig '{rig.name}' is not in the bag under one namespace; it "
        f"holds {', '.join(sorted(episode.topics))}"
    )


def _sensor_topics(rig: RigSpec) -> list[str]:
    cameras = [camera.topic for camera in rig.cameras]
    return cameras + [arm.joint_states for arm in rig.arms.values()]


def _namespaces(names: Iterable[str], topics: Iterable[str]) -> set[str]:
    """Return every namespace that puts the first relative one of ``names`` among ``topics``."""
    relative = next((name for name in names if not name.startswith("/")), None)
    if relative is None:
        return {""}
    return {topic.removesuffix(f"/{relative}") for topic in _ends(relative, topics)}


def _ends(name: str, topics: Iterable[str]) -> list[str]:
    return [topic for topic in topics if topic == name or topic.endswith(f"/{name}")]
