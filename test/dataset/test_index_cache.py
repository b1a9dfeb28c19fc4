"""An index from the disk is the one that the bag gives, and a changed episode has another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.episodes import START_NS, Writing
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.disk_cache import DiskCache
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.dataset import index_cache
from cosmos_policy_ros.dataset.checks import Expected, load_check_limits
from cosmos_policy_ros.dataset.index_cache import IndexedEpisode, digest_of_files
from cosmos_policy_ros.dataset.windows import EpisodeWindows
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.rig.chunk import TimedChunk

DT = 0.04


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 1 << 30)


@pytest.fixture
def store(tmp_path: Path, types: Typestore) -> EpisodeStore:
    return EpisodeStore(tmp_path / "episodes", types)


@pytest.fixture
def episode(store: EpisodeStore, types: Typestore) -> Path:
    writing = Writing(store, types)
    for number in range(2):
        positions = np.full((20, 14), 0.4 + number / 10)
        begin_ns = START_NS + number * 800_000_000
        chunk = TimedChunk(f"run/{number}", begin_ns, DT, positions[0], positions, np.full(14, 9.0))
        writing.trajectory(chunk)
    writing.seconds(1.7)
    path = writing.recording.finish("stopped")
    store.score(OperatorScore(70.0, note="ünï\ncode"), episode=path.name)
    return path


EXPECTED = Expected(20, (8, 8), 224, ("transfer the red cube",), "text.safetensors")


def test_a_report_is_kept_for_the_same_measures(
    episode: Path, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = load_check_limits()
    made = IndexedEpisode(episode, cache)
    report = made.report(made.windows(DT), DT, limits, EXPECTED)
    assert report.steps == 40

    def judged(*_: object, **__: object) -> None:
        raise AssertionError("the bag was judged again")

    monkeypatch.setattr(index_cache, "judge_episode", judged)
    kept = IndexedEpisode(episode, cache)
    more_prompts = replace(EXPECTED, prompts=(*EXPECTED.prompts, "juggle"))
    assert kept.report(kept.windows(DT), DT, limits, more_prompts) == report
    for limits_now, expected_now in (
        (replace(limits, moving=0.2), EXPECTED),
        (limits, replace(EXPECTED, chunk_steps=21)),
        (limits, replace(EXPECTED, camera_size=(9, 16))),
        (limits, replace(EXPECTED, prompts=())),
    ):
        with pytest.raises(AssertionError, match="judged again"):
            kept.report(kept.windows(DT), DT, limits_now, expected_now)
    for file in cache.folder.iterdir():
        file.write_text("spoilt")
    again = IndexedEpisode(episode, cache)
    monkeypatch.undo()
    assert again.report(again.windows(DT), DT, limits, EXPECTED) == report


def same(one: EpisodeWindows, other: EpisodeWindows) -> None:
    assert one.episode == other.episode
    assert one.rig == other.rig
    assert one.indexed.keys() == other.indexed.keys()
    for name, topic in one.indexed.items():
        twin = other.indexed[name]
        assert (topic.msgtype, topic.definition, topic.files) == (
            *(twin.msgtype, twin.definition, twin.files),
        )
        for array in ("stamps_ns", "received_ns", "places"):
            np.testing.assert_array_equal(getattr(topic, array), getattr(twin, array))
    for mine, its in zip(one.sent, other.sent, strict=True):
        assert (mine.chunk_id, mine.start_ns) == (its.chunk_id, its.start_ns)
        np.testing.assert_array_equal(mine.offsets_ns, its.offsets_ns)
        np.testing.assert_array_equal(mine.positions, its.positions)
    for array in ("times_ns", "actions", "stretch"):
        np.testing.assert_array_equal(getattr(one.steps, array), getattr(other.steps, array))
    step = len(one) // 2
    at = int(one.steps.times_ns[step])
    assert one.observe(at).digest() == other.observe(at).digest()


def test_it_is_the_bags_own(
    episode: Path, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_bag = EpisodeWindows(read_episode(episode), DT)
    made = IndexedEpisode(episode, cache)
    same(made.windows(DT), from_bag)

    def refuse(*_: object) -> None:
        raise AssertionError("the bag is indexed once more")

    monkeypatch.setattr(index_cache, "read_episode", refuse)
    monkeypatch.setattr("cosmos_policy_ros.dataset.playback.index_topics", refuse)
    again = IndexedEpisode(episode, cache)
    assert again.digest == made.digest
    same(again.windows(DT), from_bag)
    half_rate = EpisodeWindows(again.episode, 2 * DT, from_bag.indexed, from_bag.sent)
    assert len(again.windows(2 * DT)) == len(half_rate) < len(from_bag)


def add_score(episode: Path, store: EpisodeStore) -> None:
    store.score(OperatorScore(0.0), episode=episode.name)


def change_metadata(episode: Path, store: EpisodeStore) -> None:
    file = episode / "metadata.yaml"
    file.write_text(file.read_text().replace("stopped", "stepped"))


def touch(episode: Path, store: EpisodeStore) -> None:
    """Change a byte of a file that is too large to be read whole."""
    (file,) = episode.glob("*_0.mcap")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("change", [add_score, change_metadata, touch])
def test_a_changed_episode_is_another(
    episode: Path,
    store: EpisodeStore,
    change: Callable[[Path, EpisodeStore], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index_cache, "WHOLE", 10_000)
    before = digest_of_files(episode)
    assert digest_of_files(episode) == before
    change(episode, store)
    assert digest_of_files(episode) != before


def test_a_copy_is_known_by_its_files(episode: Path, cache: DiskCache, tmp_path: Path) -> None:
    IndexedEpisode(episode, cache).windows(DT)
    copy = shutil.copytree(episode, tmp_path / "elsewhere" / episode.name)
    assert digest_of_files(copy) == digest_of_files(episode)
    found = IndexedEpisode(copy, cache)
    same(found.windows(DT), EpisodeWindows(read_episode(copy), DT))
    assert all(file.parent == copy for file in found.episode.files)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x80\x04pickle"])
def test_a_damaged_file_is_made_again(episode: Path, cache: DiskCache, content: bytes) -> None:
    IndexedEpisode(episode, cache).windows(DT)
    (file,) = cache.folder.iterdir()
    file.write_bytes(content)
    same(IndexedEpisode(episode, cache).windows(DT), EpisodeWindows(read_episode(episode), DT))
    assert file.stat().st_size > len(content)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    episode: Path, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    indexed = IndexedEpisode(episode, DiskCache(in_the_way / "cache", 1 << 30))
    same(indexed.windows(DT), EpisodeWindows(read_episode(episode), DT))


def test_an_episode_that_cannot_be_read_is_none(tmp_path: Path, cache: DiskCache) -> None:
    with pytest.raises(RolloutError, match="cannot be read"):
        IndexedEpisode(tmp_path / "20261122-105830_x_0001", cache)
