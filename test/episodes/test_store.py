"""Pins the life of an episode: begun, recorded, scored, discarded; nothing given is ever lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

import pytest
from helpers.waiting import wait_for
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata, Label
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.folders import episode_id
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.recording import Recording
from cosmos_policy_ros.episodes.store import EpisodeStore

START_NS = 1_700_000_000_000_000_000
NOW = datetime(2026, 11, 22, 10, 58, 30)
DiskOf = Callable[[int], AbstractContextManager[None]]


def score(
    store: EpisodeStore, points: float, *, success: bool = False, episode: str = "", **text: str
) -> Label:
    """Score an episode and return the label."""
    return store.score(OperatorScore(points, success, **text), episode=episode)[-1]  # type: ignore[arg-type]


def _record(store: EpisodeStore, metadata: EpisodeMetadata, topics: list[Topic]) -> Path:
    recording = store.begin(metadata, topics)
    recording.write("/cam", START_NS + 5 * 10**9, b"abc")
    return recording.finish("time_limit")


@pytest.fixture
def path(store: EpisodeStore, metadata: EpisodeMetadata, topics: list[Topic]) -> Path:
    """A finished episode."""
    return _record(store, metadata, topics)


@pytest.fixture
def recording(store: EpisodeStore, metadata: EpisodeMetadata, topics: list[Topic]) -> Recording:
    return store.begin(metadata, topics)


def _names(store: EpisodeStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir())


def test_id_is_dated_named_and_numbered() -> None:
    assert episode_id("transfer_cube", NOW, []) == "20261122-105830_transfer_cube_0001"


def test_id_goes_on_counting_whatever_the_clock_says() -> None:
    taken = ["20991231-000000_ziploc_0041.discarded", "notes", "20261122-105830_a_0007.recording"]
    assert episode_id("ziploc", NOW, taken) == "20261122-105830_ziploc_0042"
    assert episode_id("a", NOW, ["20261122-105830_a_9999"]).endswith("_10000")


def test_id_is_a_file_name_whatever_the_task() -> None:
    assert episode_id("../a b/ü", NOW, []) == "20261122-105830_-a-b-_0001"
    assert episode_id("", NOW, []) == "20261122-105830_episode_0001"
    assert len(episode_id("x" * 500, NOW, [])) < 72


def test_episode_is_read_back_whole(
    path: Path, metadata: EpisodeMetadata, topics: list[Topic]
) -> None:
    episode = read_episode(path)
    assert episode.id == path.name
    assert episode.metadata == replace(metadata, episode_id=path.name)
    assert {name: t.count for name, t in episode.topics.items()} == {
        "/cam": 1,
        "/joints": 0,
        "/episode": 1,
        "/episode/label": 0,
    }
    assert episode.topics["/cam"].msgtype == "sensor_msgs/msg/Image"
    assert (episode.start_ns, episode.duration_ns) == (START_NS, 5 * 10**9)
    assert (episode.outcome, episode.discarded, episode.score) == ("time_limit", False, None)


def test_score_while_recording_is_in_the_bag_at_once(
    recording: Recording, store: EpisodeStore
) -> None:
    label = score(store, 33.3, success=False, operator_name="ann", note="slipped")
    (file,) = recording.path.glob("*.mcap")
    assert b"slipped" in file.read_bytes()
    path = recording.finish("stopped")
    assert read_episode(path).labels == (label,)
    assert [f.name for f in path.glob("*.mcap")] == [f"{path.name}_0.mcap"]


def test_last_revision_counts_and_history_stays(
    recording: Recording, store: EpisodeStore, types: Typestore
) -> None:
    first = score(store, 20, success=False)
    path = recording.finish("stopped")
    second = score(store, 60, success=False, operator_name="bob")
    third = score(EpisodeStore(store.root, types, clock=lambda: 7), 100, success=True, note="video")
    assert [label.revision for label in (first, second, third)] == [1, 2, 3]
    episode = read_episode(path)
    assert episode.labels == (first, second, third)
    assert episode.score == third
    assert third.stamp_ns == 7


@pytest.mark.parametrize("points", [-0.1, 100.1, float("nan"), float("inf")])
@pytest.mark.parametrize("finished", [True, False])
def test_impossible_score_changes_nothing(
    recording: Recording, store: EpisodeStore, points: float, finished: bool
) -> None:
    if finished:
        recording.finish("stopped")
    with pytest.raises(RolloutError, match="must be a number from 0 to 100"):
        score(store, points, success=True)
    if not finished:
        recording.finish("stopped")
    assert read_episode(store.find()).labels == ()
    assert score(store, 100, success=True).revision == 1


@pytest.mark.parametrize("note", ["\ud800", "a\0b"])
def test_text_that_ros_cannot_carry_is_refused(
    path: Path, store: EpisodeStore, metadata: EpisodeMetadata, note: str
) -> None:
    with pytest.raises(RolloutError, match="note: "):
        score(store, 1, note=note)
    with pytest.raises(RolloutError, match="discard_reason: "):
        store.discard(note)
    with pytest.raises(RolloutError, match="prompt: "):
        replace(metadata, prompt=note)
    assert read_episode(path).labels == ()


def test_scores_reach_the_episode_that_was_named(
    store: EpisodeStore, metadata: EpisodeMetadata, topics: list[Topic]
) -> None:
    first, second = _record(store, metadata, topics), _record(store, metadata, topics)
    open_one = store.begin(metadata, topics)
    score(store, 10, success=False, episode=first.name)
    score(store, 30, success=False, episode=open_one.id)
    third = open_one.finish("stopped")
    assert [[s.points for s in read_episode(path).labels] for path in (first, second, third)] == [
        [10],
        [],
        [30],
    ]


def test_episode_is_found_by_the_number_not_by_the_clock(
    store: EpisodeStore, metadata: EpisodeMetadata, topics: list[Topic]
) -> None:
    ahead = datetime(2099, 12, 31)
    with patch("cosmos_policy_ros.episodes.store.datetime", now=lambda: ahead):
        first = _record(store, metadata, topics)
    second = _record(store, metadata, topics)
    assert first.name > second.name
    assert store.find() == second
    assert list(store.episodes()) == [first.name, second.name]


def test_unknown_episode_names_the_nearest(
    store: EpisodeStore, metadata: EpisodeMetadata, topics: list[Topic]
) -> None:
    with pytest.raises(RolloutError, match="holds no episode yet"):
        score(store, 1, success=True)
    name = _record(store, metadata, topics).name
    with pytest.raises(RolloutError, match=f"did you mean '{name}'"):
        score(store, 1, success=True, episode=name[:-1] + "2")
    with pytest.raises(RolloutError, match=f"the newest is '{name}'"):
        store.find("?")


def test_one_recording_at_a_time(
    recording: Recording, store: EpisodeStore, metadata: EpisodeMetadata, topics: list[Topic]
) -> None:
    with pytest.raises(RolloutError, match=f"'{recording.id}' is being recorded"):
        store.begin(metadata, topics)
    assert _names(store) == [f"{recording.id}.recording"]
    recording.finish("stopped")
    assert store.recording is None
    assert store.begin(metadata, topics).id != recording.id


def test_episode_ends_once(recording: Recording) -> None:
    path = recording.finish("stopped")
    ends = (lambda: recording.finish("again"), lambda: recording.discard(discarding))
    discarding = Label(recording.id, 0, "discard", START_NS, note="again")
    for end in ends:
        with pytest.raises(RolloutError, match="takes nothing more: it is closed as"):
            end()
    recording.write("/cam", START_NS, b"late")
    assert read_episode(path).outcome == "stopped"


@pytest.mark.parametrize("finished", [True, False])
def test_discarding_marks_and_deletes_nothing(
    recording: Recording, store: EpisodeStore, topics: list[Topic], finished: bool
) -> None:
    recording.write("/cam", START_NS, b"abc")
    score(store, 5, success=False)
    if finished:
        recording.finish("stopped")
    path = store.discard("yes: cable unplugged")
    assert _names(store) == [f"{recording.id}.discarded"] == [path.name]
    episode = read_episode(path)
    assert (episode.id, episode.discarded) == (recording.id, True)
    assert episode.discard_reason == "yes: cable unplugged"
    assert episode.outcome == ("stopped" if finished else "")
    assert episode.topics["/cam"].count == 1
    assert [(x.kind, x.points) for x in episode.labels] == [("score", 5), ("discard", 0)]
    assert episode.score is not None and episode.score.points == 5
    with pytest.raises(RolloutError, match="was discarded before: 'yes: cable unplugged'"):
        store.discard("again")


def test_discarded_episode_can_still_be_scored(path: Path, store: EpisodeStore) -> None:
    store.discard("wrong object", episode=path.name)
    assert score(store, 0, success=False, episode=path.name).revision == 2
    assert len(read_episode(path.with_name(f"{path.name}.discarded")).labels) == 2


def test_text_that_looks_like_something_else_survives_a_late_label(
    store: EpisodeStore, metadata: EpisodeMetadata, topics: list[Topic]
) -> None:
    odd = {"prompt": "yes", "engine": "1:30", "rig": "0x1F", "operator_name": "1e5"}
    path = _record(store, replace(metadata, **odd), topics)
    score(store, 1, success=True)
    with Reader(path) as reader:
        custom = reader.storage.metadata.custom
    assert custom is not None
    assert {name: custom[name] for name in odd} == odd


def test_unfinished_episode_is_refused_until_recovered(
    recording: Recording,
    store: EpisodeStore,
    metadata: EpisodeMetadata,
    topics: list[Topic],
    types: Typestore,
) -> None:
    other = EpisodeStore(store.root, types)
    for deed in (
        lambda: score(other, 1, success=True),
        lambda: other.discard("x"),
        lambda: read_episode(recording.path),
    ):
        with pytest.raises(RolloutError, match="is unfinished"):
            deed()
    assert other.begin(metadata, topics).id.endswith("_0002")
    assert read_episode(recording.finish("stopped")).labels == ()


def test_full_disk_frees_the_store_for_the_next_episode(
    recording: Recording,
    store: EpisodeStore,
    metadata: EpisodeMetadata,
    topics: list[Topic],
    disk_of: DiskOf,
) -> None:
    with disk_of(1_000_000):
        recording.write("/cam", START_NS, bytes(2_000_000))
        wait_for(lambda: store.recording is None, "the bag to fail")
    assert "its bag failed" in recording.failure
    with pytest.raises(RolloutError, match="is unfinished"):
        score(store, 50, success=True)
    _record(store, metadata, topics)
    assert f"{recording.id}.recording" in _names(store)


def test_two_labellers_at_once_get_two_revisions(
    path: Path, store: EpisodeStore, types: Typestore
) -> None:
    stores = [EpisodeStore(store.root, types) for _ in range(3)]
    threads = [
        threading.Thread(target=lambda s=s: [score(s, 50, success=True) for _ in range(2)])
        for s in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [label.revision for label in read_episode(path).labels] == list(range(1, 7))


def test_root_that_is_a_file_is_named(tmp_path: Path, types: Typestore) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RolloutError, match="cannot be the folder of episodes"):
        EpisodeStore(tmp_path / "file", types)


def test_seed_outside_uint64_is_refused(metadata: EpisodeMetadata) -> None:
    for seed in (-1, 2**64):
        with pytest.raises(RolloutError, match="seed: "):
            replace(metadata, seed=seed)


def test_bag_of_another_kind_is_no_episode(tmp_path: Path, types: Typestore) -> None:
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = writer.add_connection("/note", "std_msgs/msg/String", typestore=types)
        writer.write(topic, 1, b"\0\1\0\0\2\0\0\0x\0")
    with pytest.raises(RolloutError, match="it is a bag, but no episode"):
        read_episode(tmp_path / "bag")
    with pytest.raises(RolloutError, match="cannot be read: is not there"):
        read_episode(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 5, 8, 20, 100, -3])
def test_truncated_bag_is_named(path: Path, keep: int) -> None:
    file = path / f"{path.name}_0.mcap"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RolloutError, match="cannot be read as a bag"):
        read_episode(path)
