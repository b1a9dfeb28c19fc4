"""What is learned from, what is not, and why: nothing is left out without a word."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rosbags.rosbag2 import Writer
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import TrainingError
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.model import files
from cosmos_policy_ros.model.config import CheckpointConfig
from cosmos_policy_ros.model.statistics import load_statistics
from cosmos_policy_ros.model.text import load_text
from cosmos_policy_ros.rig.teleoperation import TELEOPERATION
from cosmos_policy_ros.training.config import DataConfig, MixtureConfig
from cosmos_policy_ros.training.dataset_index import DatasetIndex, Mixture, index_episodes
from cosmos_policy_ros.training.saving import begin_folder

from .conftest import TINY, record_wave, wave


def dataset_index(folder: Path, **others: object) -> DatasetIndex:
    data = DataConfig(**{"demonstrations": (str(folder),), "held_out": 0.0, **others})  # type: ignore[arg-type]
    model = load_config(CheckpointConfig, TINY / files.CONFIG)
    text = load_text(TINY / files.TEXT, model.text_tokens, model.transformer.text_width)
    return index_episodes(data, model, text)


@pytest.fixture
def store(tmp_path: Path, types: Typestore) -> EpisodeStore:
    return EpisodeStore(tmp_path, types)


def test_pools_and_scores(episodes: Path) -> None:
    found = dataset_index(episodes / "demonstrations", rollouts=(str(episodes / "rollouts"),))
    assert [(s.pool, s.score) for s in found.entries] == [
        *[("demonstration", 1.0)] * 3,
        ("success", 1.0),
        ("failure", 0.0),
        ("failure", 0.4),
    ]
    assert [len(source.starts) for source in found.entries] == [60] * 6
    assert found.left_out == ()


def test_demonstrations_are_held_out_by_their_ids(episodes: Path) -> None:
    once, again = (dataset_index(episodes / "demonstrations", held_out=0.3) for _ in range(2))
    assert len(once.held_out) == 1
    assert len(once.entries) == 2
    assert [s.windows.episode.id for s in once.held_out] == [
        s.windows.episode.id for s in again.held_out
    ]
    assert once.digest() == again.digest()
    assert once.digest() != dataset_index(episodes / "demonstrations").digest()


def cut_short(path: Path) -> None:
    (file,) = path.glob("*.mcap")
    file.write_bytes(file.read_bytes()[:-1000])


def without_metadata(path: Path) -> None:
    (path / "metadata.yaml").write_text("rosbag2_bagfile_information: {}")


@pytest.mark.parametrize("damage", [cut_short, without_metadata])
def test_a_damaged_bag_is_named_and_the_others_are_used(
    store: EpisodeStore, types: Typestore, damage: Callable[[Path], None]
) -> None:
    damaged, _ = (record_wave(store, types, phase) for phase in (0, 1))
    damage(damaged)
    found = dataset_index(store.root)
    assert len(found.entries) == 1
    ((path, reason),) = found.left_out
    assert path == damaged
    assert "cannot be read" in reason


def test_a_foreign_bag_is_named(store: EpisodeStore, types: Typestore) -> None:
    record_wave(store, types, 0)
    with Writer(store.root / "foreign", version=8) as writer:
        connection = writer.add_connection("/chatter", "std_msgs/msg/String", typestore=types)
        message = types.types["std_msgs/msg/String"](data="hello")
        writer.write(connection, 1, types.serialize_cdr(message, "std_msgs/msg/String"))
    ((path, reason),) = dataset_index(store.root).left_out
    assert path.name == "foreign"
    assert "it is a bag, but no episode; make one of it: cosmos import" in reason


def test_an_episode_without_metadata_is_counted_and_a_renamed_one_is_used(
    store: EpisodeStore, types: Typestore
) -> None:
    """The first was counted nowhere."""
    lost, renamed = (record_wave(store, types, phase) for phase in (0, 1))
    (lost / "metadata.yaml").unlink()
    renamed = renamed.rename(store.root / "best_run")
    found = dataset_index(store.root)
    assert [entry.windows.episode.path for entry in found.entries] == [renamed]
    ((path, reason),) = found.left_out
    assert path == lost and reason.startswith("has no metadata.yaml; make it again")


def test_a_copy_is_not_learned_from_twice(
    store: EpisodeStore, types: Typestore, tmp_path: Path
) -> None:
    first, other = (record_wave(store, types, phase) for phase in (0, 1))
    shutil.copytree(first, store.root / "zz_copy")
    # In another folder, under an id that another recorder gave an episode of its own.
    elsewhere = EpisodeStore(tmp_path / "elsewhere", types)
    same_id = record_wave(elsewhere, types, 2)
    shutil.copytree(other, elsewhere.root / "copied")
    assert same_id.name == first.name
    found = dataset_index(store.root, rollouts=(str(elsewhere.root),))
    assert {entry.windows.episode.path for entry in found.entries} == {first, other}
    told = {path.name: reason for path, reason in found.left_out}
    assert told == {
        "zz_copy": f"is the same episode as {first}; delete one of the copies",
        same_id.name: "has no score; 'cosmos score' gives it one",
        "copied": "has no score; 'cosmos score' gives it one",
    }
    both = dataset_index(store.root, demonstrations=(str(store.root), str(elsewhere.root)))
    assert len(both.entries) == 3
    assert dict(both.left_out)[elsewhere.root / "copied"].startswith("is the same episode as")


def test_every_other_reason_is_told(store: EpisodeStore, types: Typestore) -> None:
    record_wave(store, types, 0)
    discarded = record_wave(store, types, 1)
    store.discard("bumped the table", episode=discarded.name)
    failed = record_wave(store, types, 2, score=25.0)
    foreign = record_wave(store, types, 3, prompt="juggle")
    broken = wave(60, 4)
    broken[7, 3] = np.nan
    not_finite = record_wave(store, types, 4, positions=broken)
    other_rate = store.root / "notes"
    other_rate.mkdir()  # no bag, no word
    reasons = {
        path.name.split(".")[0]: reason for path, reason in dataset_index(store.root).left_out
    }
    assert reasons == {
        discarded.name.split(".")[0]: "was discarded",
        failed.name: "is a demonstration that failed: scored 25",
        foreign.name: f"its prompt 'juggle' has no embedding in {TINY / files.TEXT}; "
        "'cosmos embed-prompts' adds one",
        not_finite.name: "NO-GO: the action of step 7 is not finite",
    }


def test_no_go_is_left_out_unless_told_otherwise(store: EpisodeStore, types: Typestore) -> None:
    record_wave(store, types, 0)
    path = record_wave(store, types, 1)
    metadata = path / "metadata.yaml"
    text = metadata.read_text()
    assert '"go": true' in text
    metadata.write_text(
        text.replace('"go": true', '"go": false').replace('"reasons": []', '"reasons": ["frozen"]')
    )
    ((left, reason),) = dataset_index(store.root).left_out
    assert (left, reason) == (path, "NO-GO: frozen")
    assert len(dataset_index(store.root, use_no_go=True).entries) == 2


def test_what_the_checks_refuse_is_left_out_unless_told_otherwise(
    store: EpisodeStore, types: Typestore
) -> None:
    """Arms that do not do what they are told taught a policy as if they did."""
    record_wave(store, types, 0)
    other = wave(60, 0)
    other[:, 2] = np.linspace(-0.9, 0.9, 60)
    path = record_wave(store, types, 0, states=other)
    ((left, reason),) = dataset_index(store.root).left_out
    assert left == path
    assert reason.startswith("NO-GO: the states are off their actions by more than 0.3 rad")
    found = dataset_index(store.root, use_no_go=True)
    assert len(found.entries) == 2
    said = "\n".join(found.lines())
    assert f"warning: following: 1 of 2 episodes, such as {path.name}: the states are off" in said


def lost_metadata(path: Path) -> None:
    (path / "metadata.yaml").unlink()


def lost_metadata_of_sqlite(path: Path) -> None:
    lost_metadata(path)
    (file,) = path.glob("*.mcap")
    file.rename(file.with_suffix(".db3"))


def packed(path: Path) -> None:
    lost_metadata(path)
    (file,) = path.glob("*.mcap")
    file.rename(file.with_name(f"{file.name}.zstd"))


def died(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.recording"))


@pytest.mark.parametrize("damage", [lost_metadata, lost_metadata_of_sqlite, packed, died])
def test_an_episode_that_cannot_be_read_is_counted(
    store: EpisodeStore, types: Typestore, damage: Callable[[Path], None]
) -> None:
    """One that had lost its metadata was in no count at all."""
    record_wave(store, types, 0)
    path = record_wave(store, types, 1)
    damage(path)
    found = dataset_index(store.root)
    ((left, reason),) = found.left_out
    assert left.name.removesuffix(".recording") == path.name
    assert reason
    assert f"episodes left out: 1\n  {left.name}: {reason}" in "\n".join(found.lines())


def test_an_arm_at_rest_gives_no_steep_statistics(
    store: EpisodeStore, types: Typestore, tmp_path: Path
) -> None:
    """One tick of its encoder was stretched to all of -1 to 1; 0.03 rad away was 38."""
    ticks = np.random.default_rng(0).integers(0, 2, (60, 7)) * 2 * np.pi / 4096
    for phase in range(2):
        actions = wave(60, phase)
        actions[:, 7:] = 0.4
        states = actions.copy()
        states[:, 7:] += ticks
        record_wave(store, types, phase, positions=actions, states=states)
    found = dataset_index(store.root)
    assert "the right arm (at most 2)" in "\n".join(found.lines())
    assert found.ranges is not None
    assert "state right/waist (1)" in found.ranges.text
    written = tmp_path / "checkpoint"
    written.mkdir()
    begin_folder(written, SimpleNamespace(path=TINY), found, "demonstrations")  # type: ignore[arg-type]
    proprio = load_statistics(written / files.STATISTICS, 14, 14).proprio
    rest = np.r_[wave(1, 0)[0, :7], np.full(7, 0.4)]
    away = rest + np.r_[np.zeros(7), np.full(7, 0.03)]
    assert np.abs(proprio.normalise(np.stack([rest, away]))[:, 7:]).max() < 3


def test_images_of_two_shapes_are_said(store: EpisodeStore, types: Typestore) -> None:
    for phase, size in enumerate(((8, 8), (9, 16))):
        record_wave(store, types, phase, image_size=size)
    said = "\n".join(dataset_index(store.root).lines())
    assert "primary: images of several sizes (rows x columns, episodes): 8x8 in 1" in said
    assert "9x16 in 1; of several aspect ratios" in said


def test_a_rollout_without_a_score_is_left_out(store: EpisodeStore, types: Typestore) -> None:
    record_wave(store, types, 0)
    record_wave(store, types, 1, score=0.0)
    found = dataset_index(store.root, demonstrations=(), rollouts=(str(store.root),))
    ((_, reason),) = found.left_out
    assert reason == "has no score; 'cosmos score' gives it one"


def test_what_a_person_corrected_is_a_demonstration_on_request(
    store: EpisodeStore, types: Typestore, tmp_path: Path
) -> None:
    for phase, score in ((1, 100.0), (2, 0.0)):
        record_wave(store, types, phase, score, taken_over=20)
    record_wave(store, types, 3, 100.0)
    folders = {"demonstrations": (), "rollouts": (str(tmp_path),)}
    plain = dataset_index(tmp_path, **folders)
    assert plain.left_out == ()
    assert [entry.pool for entry in plain.entries] == ["success", "failure", "success"]
    corrected = dataset_index(tmp_path, **folders, hg_dagger=True)
    assert [entry.pool for entry in corrected.entries[3:]] == ["correction"] * 2
    assert [entry.score for entry in corrected.entries[3:]] == [1.0, 0.0]
    for entry in corrected.entries[3:]:
        assert entry.starts.tolist() == [*range(20, 60)]
    assert any(line.startswith("corrections         2 episodes") for line in corrected.lines())
    assert Mixture(corrected, MixtureConfig(), 0).draw(0, 0, 4).entry in (3, 4)
    assert corrected.digest() != plain.digest()


def test_the_stretch_before_a_takeover_is_worth_nothing_on_request(
    store: EpisodeStore, types: Typestore, tmp_path: Path
) -> None:
    record_wave(store, types, 1, 100.0, taken_over=20)
    folders = {"demonstrations": (), "rollouts": (str(tmp_path),)}
    (plain,) = dataset_index(tmp_path, **folders).entries
    assert plain.worthless is None
    (entry,) = dataset_index(tmp_path, **folders, recap_seconds=0.4).entries
    assert entry.worthless is not None
    assert np.flatnonzero(entry.worthless).tolist() == [*range(10, 21)]


def test_an_episode_that_a_person_led_is_a_demonstration_wherever_it_lies(
    store: EpisodeStore, types: Typestore, tmp_path: Path
) -> None:
    record_wave(store, types, 1, taken_over=0, engine=TELEOPERATION)
    record_wave(store, types, 2, 100.0, taken_over=0, engine=TELEOPERATION)
    record_wave(store, types, 3, 40.0, taken_over=0, engine=TELEOPERATION)
    found = dataset_index(tmp_path, demonstrations=(), rollouts=(str(tmp_path),), hg_dagger=True)
    pools = [(entry.pool, entry.score) for entry in found.entries]
    assert pools == [("demonstration", 1.0)] * 2 + [("failure", 0.4), ("correction", 0.4)]


def test_nothing_to_learn_from_is_refused(store: EpisodeStore, types: Typestore) -> None:
    with pytest.raises(TrainingError, match="no episode in there"):
        dataset_index(store.root)
    with pytest.raises(TrainingError, match="is no folder of episodes; fix data"):
        dataset_index(store.root / "elsewhere")
    record_wave(store, types, 0, prompt="juggle")
    with pytest.raises(
        TrainingError, match=r"none of the 1 episodes.*1 times 'its prompt 'juggle' has"
    ):
        dataset_index(store.root)


def test_windows_with_gaps_are_counted(episodes: Path, tmp_path: Path, types: Typestore) -> None:
    shutil.copytree(episodes / "demonstrations", tmp_path / "copy")
    store = EpisodeStore(tmp_path / "copy", types)
    record_wave(store, types, 6, rows=90)  # the images end before the rows do
    found = dataset_index(store.root)
    assert found.windows_left_out == 0
    assert len(found.entries[-1].windows) < 90
