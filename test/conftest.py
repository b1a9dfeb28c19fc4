"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata
from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.bags.writer import offered_qos
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.rig.spec import RigSpec, load_rig

BEST_EFFORT = offered_qos(reliable=False, depth=5)
START_NS = 1_700_000_000_000_000_000

# A busy machine is no reason to fail: no test of this package judges wall time.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
# Nor are the task files of the person who runs the tests.
os.environ["COSMOS_POLICY_TASKS"] = os.devnull
# Nor is that person's cache, which episodes of tests would fill.
_CACHE = tempfile.TemporaryDirectory(prefix="cosmos_policy_cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name


# Side by side, the file that begins last keeps the others waiting for as long as it takes.
LONGEST = ("evaluation", "training", "cli", "nodes", "planning", "test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the folders with the longest files come first."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))


@pytest.fixture(scope="session")
def rig() -> RigSpec:
    """The simulated rig's description."""
    return load_rig("sim", config_folder("rigs"))


@pytest.fixture(scope="session")
def types() -> Typestore:
    return load_types(Path(__file__).parents[1] / "msg")


@pytest.fixture
def metadata() -> EpisodeMetadata:
    return EpisodeMetadata(
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
