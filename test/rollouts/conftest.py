"""What the tests of the rollouts room share: this package's types, a store, a real disk limit."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.rollouts.bag_writer import offered_qos
from cosmos_policy_ros.rollouts.mcap_file import Topic
from cosmos_policy_ros.rollouts.messages import EpisodeFacts
from cosmos_policy_ros.rollouts.store import EpisodeStore
from cosmos_policy_ros.rollouts.types import load_types

BEST_EFFORT = offered_qos(reliability="best_effort", durability="volatile", depth=5)
START_NS = 1_700_000_000_000_000_000


@pytest.fixture(scope="session")
def types() -> Typestore:
    return load_types(Path(__file__).parents[2] / "msg")


@pytest.fixture
def facts() -> EpisodeFacts:
    return EpisodeFacts(
        task="transfer_cube",
        prompt="transfer the red cube",
        rig="sim",
        engine="demonstrator",
        operator_name="ann",
        package_version="0.1.0",
        seed=2**64 - 1,
        rig_yaml="name: sim\n",
        task_yaml="name: transfer_cube\n",
    )


@pytest.fixture
def topics() -> list[Topic]:
    return [
        Topic("/cam", "sensor_msgs/msg/Image", (BEST_EFFORT,)),
        Topic("/joints", "sensor_msgs/msg/JointState"),
    ]


@pytest.fixture
def clock() -> Iterator[int]:
    """A clock that moves one second with every look."""
    return iter(range(START_NS, START_NS + 10**13, 10**9))


@pytest.fixture
def store(tmp_path: Path, types: Typestore, clock: Iterator[int]) -> EpisodeStore:
    return EpisodeStore(tmp_path / "episodes", types, clock=lambda: next(clock))


@pytest.fixture
def disk_of() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which the kernel refuses to let any file grow past a size in bytes."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
