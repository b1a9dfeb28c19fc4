"""One motion, recorded by ours and by others, teaches the same: by windows and in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import lerobot
from helpers.foreign_bags import foreign_types, messages_of, write_bag
from helpers.hdf5 import CAMERAS
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.config import from_mapping
from cosmos_policy_ros.dataset.windows import ExecutedEpisode, ExecutedStep
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.foreign_episode import ImportOptions
from cosmos_policy_ros.interop.importer import Importer
from cosmos_policy_ros.interop.sources import find_sources
from cosmos_policy_ros.model.checkpoint import load_checkpoint
from cosmos_policy_ros.training.batch import WindowRef
from cosmos_policy_ros.training.config import TrainingConfig
from cosmos_policy_ros.training.dataset_index import Mixture, index_episodes
from cosmos_policy_ros.training.parallel import joined
from cosmos_policy_ros.training.reports import read_steps
from cosmos_policy_ros.training.samples import SampleMaker
from cosmos_policy_ros.training.trainer import Trainer

from .conftest import record_wave, settings

PROMPT = "transfer the red cube"
ROLES = dict(zip(CAMERAS, ("primary", "left_wrist", "right_wrist"), strict=True))
EPISODES = 2
Rows = list[ExecutedStep]


def stock_hdf5(folder: Path, episodes: list[Path], types: Typestore) -> None:
    """Write what Interbotix' recorder does: JPEG files in padded rows, and how long they are."""
    for number, rows in enumerate(map(rows_of, episodes)):
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"] = False
            file["observations/qpos"] = [row.state for row in rows]
            file["observations/qvel"] = [row.velocity for row in rows]
            file["observations/effort"] = [row.effort for row in rows]
            file["action"] = [row.action for row in rows]
            images = {camera: [row.jpegs[role] for row in rows] for camera, role in ROLES.items()}
            longest = max(len(jpeg) for files in images.values() for jpeg in files)
            for camera, files in images.items():
                padded = [np.frombuffer(jpeg.ljust(longest, b"\0"), np.uint8) for jpeg in files]
                file[f"observations/images/{camera}"] = np.stack(padded)
            file["compress_len"] = [[len(jpeg) for jpeg in files] for files in images.values()]


def lerobot_set(folder: Path, episodes: list[Path], types: Typestore) -> None:
    rows = [rows_of(episode) for episode in episodes]

    def motion(count: int, episode: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        found = rows[episode % 10]
        vectors = [row.action if episode >= 10 else row.state for row in found]
        return np.asarray(vectors, np.float32)

    def pictures(count: int, camera: str, episode: int) -> list[bytes]:
        return [row.jpegs[ROLES[camera]] for row in rows[episode]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lerobot, "motion", motion)
        patch.setattr(lerobot, "pictures", pictures)
        patch.setattr(lerobot, "encoded", lambda files, suffix: files)
        data_set = lerobot.LeRobot(
            version="v3.0",
            images="jpeg",
            rows=[len(each) for each in rows],
            prompts=[PROMPT] * len(rows),
        )
        data_set.write(folder / "set")


def foreign_bag(folder: Path, episodes: list[Path], types: Typestore) -> None:
    for episode in episodes:
        messages = messages_of(episode)
        write_bag(folder / episode.name, messages, foreign_types(types), "sqlite3 file zstd")


def rows_of(episode: Path) -> Rows:
    return list(ExecutedEpisode(read_episode(episode)))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, types: Typestore) -> Path:
    """Episodes of our recorder, their images as JPEG."""
    store = EpisodeStore(tmp_path_factory.mktemp("ours"), types)
    for phase in range(EPISODES):
        record_wave(store, types, phase, jpeg=True, image_size=(48, 64))
    return store.root


def configured(episodes: Path, folder: Path) -> TrainingConfig:
    data = {"demonstrations": [str(folder)], "rollouts": [], "held_out": 0.0}
    return from_mapping(TrainingConfig, settings(episodes, data=data, run={"steps": 2}), "test")


@pytest.fixture(scope="module")
def taught(ours: Path, episodes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a training on them."""
    return losses(configured(episodes, ours), tmp_path_factory.mktemp("taught") / "out")


def maker_of(config: TrainingConfig) -> SampleMaker:
    checkpoint = load_checkpoint(Path(config.start.checkpoint))
    found = index_episodes(config.data, checkpoint.config, checkpoint.text)
    assert [entry.report.reasons for entry in found.entries] == [()] * EPISODES, found.lines()
    return SampleMaker(
        *(found, Mixture(found, config.mixture, 0), 4, checkpoint.config, checkpoint.statistics),
        *(config.data, config.objective),
    )


def losses(config: TrainingConfig, output: Path) -> list[float]:
    output.mkdir()
    with joined("cpu") as world:
        Trainer(config, output, world).run()
    return [line["loss"] for line in read_steps(output / "training/steps.jsonl")]


@pytest.mark.parametrize("record", [foreign_bag, stock_hdf5, lerobot_set])
def test_it_teaches_what_our_own_recording_does(
    ours: Path,
    taught: list[float],
    episodes: Path,
    types: Typestore,
    tmp_path: Path,
    record: Callable[[Path, list[Path], Typestore], None],
) -> None:
    source, root = tmp_path / "source", tmp_path / "imported"
    source.mkdir()
    record(source, sorted(ours.iterdir()), types)
    told = ImportOptions("sim", prompt=PROMPT)
    if record is stock_hdf5:  # its recorder exchanges red and blue: put right, they are coded anew
        told = replace(told, rate=25.0, colours="rgb")
    importer = Importer(EpisodeStore(root, types), types, told)
    for each in find_sources(source):
        assert importer.take(each).quality.go

    recorded, imported = (maker_of(configured(episodes, folder)) for folder in (ours, root))
    pairs = zip(recorded.dataset_index.entries, imported.dataset_index.entries, strict=True)
    for index, (one, other) in enumerate(pairs):
        np.testing.assert_array_equal(one.starts, other.starts)
        for start in one.starts.tolist():
            window = WindowRef("policy", index, start, 0)
            mine, its = recorded.make(window), imported.make(window)
            np.testing.assert_array_equal(mine.images, its.images)
            for name in ("proprio", "actions", "future_proprio"):
                np.testing.assert_allclose(getattr(mine, name), getattr(its, name), atol=1e-5)
            assert (mine.prompt, mine.value) == (its.prompt, its.value)
    learned = losses(configured(episodes, root), tmp_path / "out")
    assert learned == pytest.approx(taught, rel=1e-3)
