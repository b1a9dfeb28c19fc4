"""What the tests of the exchange share: episodes that were imported once, in every layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.exchange import ROWS, Shared, look
from helpers.foreign_bags import Made, foreign_types
from helpers.foreign_episode import Ours, Take, record_ours, rig_file, teleoperated
from helpers.hdf5 import ROLLOUT, write_hdf5
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop import hdf5_layout
from cosmos_policy_ros.interop.foreign_episode import ImportOptions
from cosmos_policy_ros.interop.hdf5_layout import Hdf5Source
from cosmos_policy_ros.interop.importer import Importer


@pytest.fixture(autouse=True)
def read_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test's files the process that tries them first; ``shared`` is made with it."""
    monkeypatch.setattr(hdf5_layout, "try_apart", lambda *_: None)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, types: Typestore) -> Mapping[str, Shared]:
    """Return a demonstration of raw images, one of videos, and a rollout of JPEG files."""
    folder = tmp_path_factory.mktemp("shared")
    demo = folder / "fold_shirt_1500_steps/train"
    sources = {
        "raw": write_hdf5(demo / "raw.hdf5", "raw", rows=ROWS),
        "video": write_hdf5(demo / "video.hdf5", "video", rows=ROWS),
        "jpeg": write_hdf5(folder / "jpeg.hdf5", "jpeg", rows=ROWS, attributes=ROLLOUT),
    }
    rigs = {"raw": "interbotix_1", "video": "ros1_names", "jpeg": "sim"}
    store = EpisodeStore(folder / "store", types)
    return {
        images: Shared(
            source,
            *look(
                Importer(store, types, ImportOptions(rigs[images], rate=25))
                .take(Hdf5Source(source))
                .path
            ),
        )
        for images, source in sources.items()
    }


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory, types: Typestore) -> Ours:
    """Return an episode of our recorder, whose messages others might have recorded."""
    return record_ours(EpisodeStore(tmp_path_factory.mktemp("ours"), types), types)


@pytest.fixture(scope="session")
def make(types: Typestore) -> Made:
    return Made(foreign_types(types))


@pytest.fixture
def take(store: EpisodeStore, make: Made, tmp_path: Path) -> Take:
    return Take(store, make, tmp_path / "sources")


@pytest.fixture
def named(tmp_path: Path) -> str:
    """Return the rig file of a teleoperated rig."""
    return rig_file(tmp_path / "rigs", teleoperated())
