"""Samples of prepared images are those of the bags, whatever became of the files."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.forked import CONTEXT

from cosmos_policy_ros.core.errors import ObservationError
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.model.checkpoint import Checkpoint, load_checkpoint
from cosmos_policy_ros.rig.observation import Observation
from cosmos_policy_ros.training import prepared_images
from cosmos_policy_ros.training.batch import Sample, WindowRef
from cosmos_policy_ros.training.config import TrainingConfig
from cosmos_policy_ros.training.dataset_index import DatasetIndex, Mixture, index_episodes
from cosmos_policy_ros.training.prepared_images import PreparedImages, prepare_run
from cosmos_policy_ros.training.samples import SampleMaker

from .conftest import START

Config = Callable[..., TrainingConfig]


@pytest.fixture(scope="module")
def checkpoint(episodes: Path) -> Checkpoint:
    return load_checkpoint(episodes / START)


@pytest.fixture
def dataset(config: Config, checkpoint: Checkpoint) -> DatasetIndex:
    return index_episodes(config().data, checkpoint.config, checkpoint.text)


@pytest.fixture
def prepared(checkpoint: Checkpoint, tmp_path: Path) -> PreparedImages:
    return PreparedImages(checkpoint.config, 1.0, tmp_path / "prepared")


def write(prepared: PreparedImages, dataset: DatasetIndex, count: int = 1) -> None:
    """Prepare the first episodes in this process."""
    for entry in dataset.entries[:count]:
        prepared.write(prepared._key(entry), entry)


def maker_of(
    dataset: DatasetIndex,
    checkpoint: Checkpoint,
    config: TrainingConfig,
    prepared: PreparedImages | None,
) -> SampleMaker:
    return SampleMaker(
        dataset,
        Mixture(dataset, config.mixture, 0),
        4,
        checkpoint.config,
        checkpoint.statistics,
        config.data,
        config.objective,
        prepared,
    )


def equal(one: Sample, other: Sample) -> None:
    for name in ("images", "proprio", "actions", "future_proprio"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.window, one.value, one.replaced) == (other.window, other.value, other.replaced)


def refuse(*_: object) -> Observation:
    raise AssertionError("the bag is read")


@pytest.mark.parametrize("augmentation", ["none", "strong"])
def test_samples_are_the_bags_own_and_no_bag_is_read(
    config: Config,
    checkpoint: Checkpoint,
    dataset: DatasetIndex,
    prepared: PreparedImages,
    augmentation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config(data={"augmentation": augmentation})
    windows = [WindowRef("policy", 0, 3, 11), WindowRef("value", 1, 59, 5)]
    from_bags = maker_of(dataset, checkpoint, settings, None)
    expected = [from_bags.make(window) for window in windows]
    write(prepared, dataset, 2)
    monkeypatch.setattr(EpisodeWindows, "observe", refuse)
    travelled = pickle.loads(pickle.dumps(prepared))  # noqa: S301  # as to a loading process
    maker = maker_of(dataset, checkpoint, settings, travelled)
    for window, sample in zip(windows, expected, strict=True):
        equal(maker.make(window), sample)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-200] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, Path.unlink])
def test_what_is_damaged_is_read_from_the_bag(
    config: Config,
    checkpoint: Checkpoint,
    dataset: DatasetIndex,
    prepared: PreparedImages,
    damage: Callable[[Path], None],
) -> None:
    write(prepared, dataset)
    last = len(dataset.entries[0].windows) - 1
    assert prepared.moment(dataset.entries[0], last) is not None
    damage(prepared._cache.path(prepared._key(dataset.entries[0])))
    assert prepared.moment(dataset.entries[0], last) is None
    window = WindowRef("policy", 0, last, 1)
    expected = maker_of(dataset, checkpoint, config(), None).make(window)
    equal(maker_of(dataset, checkpoint, config(), prepared).make(window), expected)


def test_a_step_without_an_observation_says_so_as_ever(
    config: Config,
    checkpoint: Checkpoint,
    dataset: DatasetIndex,
    prepared: PreparedImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen, observe = int(dataset.entries[0].windows.steps.times_ns[4]), EpisodeWindows.observe

    def refuse_one(windows: EpisodeWindows, stamp_ns: int) -> Observation:
        if stamp_ns == frozen:
            raise ObservationError("the camera is frozen")
        return observe(windows, stamp_ns)

    monkeypatch.setattr(EpisodeWindows, "observe", refuse_one)
    write(prepared, dataset)
    assert prepared.moment(dataset.entries[0], 3) is not None
    with pytest.raises(ObservationError, match="is frozen"):
        maker_of(dataset, checkpoint, config(), prepared).make(WindowRef("policy", 0, 4, 0))


def test_another_way_to_prepare_is_another_file(
    checkpoint: Checkpoint, dataset: DatasetIndex, prepared: PreparedImages
) -> None:
    write(prepared, dataset)
    for change in (
        {"flip_images": True},
        {"jpeg_quality": 95},
        {"dt": 0.08},
    ):
        other = replace(checkpoint.config, **change)  # type: ignore[arg-type]
        assert (
            PreparedImages(other, 1.0, prepared._cache.folder).moment(dataset.entries[0], 0) is None
        )


def test_processes_prepare_what_is_missing_and_the_bound_is_kept(
    checkpoint: Checkpoint, dataset: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose processes are spawned; forked, they need not import torch first."""
    contexts = {"spawn": CONTEXT}
    monkeypatch.setattr(prepared_images.multiprocessing, "get_context", contexts.__getitem__)
    size = PreparedImages(checkpoint.config, 1.0).size(dataset.entries[0])
    prepared = PreparedImages(checkpoint.config, 2.5 * size / 1e9, tmp_path / "prepared")
    prepared.write("of another run", dataset.entries[0])
    first = prepared._key(dataset.entries[0])
    prepared.write(first, dataset.entries[0])
    before = prepared._cache.path(first).stat()
    assert prepared.prepare(dataset.entries, processes=2) == 2
    files = {path.name: path.stat() for path in prepared._cache.folder.iterdir()}
    assert files.keys() == {first, prepared._key(dataset.entries[1])}
    assert {status.st_size for status in files.values()} == {size}
    assert files[first].st_ino == before.st_ino, "what is there is not made again"
    assert prepared.moment(dataset.entries[1], 7) is not None
    assert prepared.moment(dataset.entries[2], 7) is None


def test_a_full_disk_leaves_it_to_the_bags(
    dataset: DatasetIndex, prepared: PreparedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmos_policy_ros.core.disk_cache.SPARED", 1 << 62)
    assert prepared.prepare(dataset.entries, 1) == 0


def test_a_run_says_how_much_is_prepared(config: Config) -> None:
    assert prepare_run(config()) == "no images are prepared: data.prepared_gb is 0"
    text = prepare_run(config(data={"prepared_gb": 1e-9}))
    assert text.startswith("images of 0 of ")
    assert text.endswith("the others do not fit into data.prepared_gb or there")
