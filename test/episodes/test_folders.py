"""Pins what a folder is, in every command alike, and that what its message advises really helps.

Training counted an episode without metadata.yaml nowhere, the list left a renamed folder out, and a
converted bag was called damaged, to be rebuilt by a command that did nothing with it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.broken_bags import BROKEN, Broken, bit_lost, messages_of, record_scored
from helpers.episodes import record
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.folders import WHOLE, State, identify, look, scan
from cosmos_policy_ros.episodes.store import EpisodeStore

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def recorded(types: Typestore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_scored(EpisodeStore(tmp_path_factory.mktemp("recorded"), types), types)


@pytest.fixture
def episode(recorded: Path, store: EpisodeStore) -> Path:
    """A healthy episode in the store."""
    return Path(shutil.copytree(recorded, store.root / recorded.name))


@pytest.fixture(params=BROKEN.values(), ids=BROKEN)
def broken(request: pytest.FixtureRequest) -> Broken:
    kind: Broken = request.param
    return kind


def run(*arguments: object) -> int:
    return cosmos.main([str(each) for each in arguments])


def advised(text: str) -> list[str]:
    """Return the command that a message ends with."""
    found = re.search(r": cosmos (.+)$", text)
    assert found, text
    return shlex.split(found[1])


def test_every_state_is_told_alike_and_its_advice_helps(
    episode: Path, types: Typestore, store: EpisodeStore, broken: Broken, capsys: Output
) -> None:
    before, labels = messages_of(episode), read_episode(episode).labels
    sound = record(store, types, 0.1)
    broken.do(episode)
    found = look(episode)
    assert (found.state, found.id) == (broken.state, episode.name)
    assert identify(episode) == episode.name
    # Every command tells it in the same words.
    with pytest.raises(RolloutError) as refused:
        read_episode(episode)
    assert str(refused.value) == f"{episode}: {found.trouble}"
    assert run("episodes", "list", "--root", store.root) == 1
    listed = capsys.readouterr().out
    assert f"{broken.state.value}: {found.trouble}" in listed and sound.name in listed
    assert run("episodes", "verify", "--root", store.root, "--all") == 1
    assert found.trouble in capsys.readouterr().out
    assert run("replay-gate", episode) == 1
    assert found.trouble in capsys.readouterr().err
    # What it says to do makes it whole again.
    assert run(*advised(found.trouble)) == 0
    again = look(episode)
    assert (again.state, again.trouble, again.remark) == (State.FINISHED, "", "")
    assert again.id == episode.name
    kept = messages_of(episode)
    assert set(kept) <= set(before) and len(kept) > 1
    assert (len(kept) < len(before)) == broken.loses
    mended = read_episode(episode)
    lossless = mended.recovered.startswith(("nothing: ", "none of 167 messages; "))
    assert lossless != broken.loses, mended.recovered
    if "/episode/label" in {topic for topic, *_ in kept}:
        assert mended.labels == labels
    # What is then wrong is the verdict alone, and that is told how to mend, too.
    run("episodes", "verify", "--root", store.root, "--write", episode.name)
    assert run("episodes", "verify", "--root", store.root, episode.name) == 0
    assert "sound" in capsys.readouterr().out.splitlines()[-1]


def test_damage_that_only_reading_shows_is_mended_as_advised(
    episode: Path, store: EpisodeStore, capsys: Output
) -> None:
    before = messages_of(episode)
    bit_lost(episode)
    assert look(episode).state is State.FINISHED
    assert run("episodes", "verify", "--root", store.root, episode.name) == 1
    advice = capsys.readouterr().out.splitlines()[-1]
    assert run(*advised(advice)) == 0
    kept = messages_of(episode)
    assert set(kept) < set(before) and len(kept) > 1
    run("episodes", "verify", "--root", store.root, "--write", episode.name)
    assert run("episodes", "verify", "--root", store.root, episode.name) == 0


def test_a_label_that_bag_or_log_lacks_is_settled_as_advised(
    episode: Path, store: EpisodeStore, capsys: Output
) -> None:
    (episode / "labels.jsonl").unlink()
    assert run("episodes", "verify", "--root", store.root, episode.name) == 1
    assert run(*advised(capsys.readouterr().out.splitlines()[-1])) == 0
    assert run("episodes", "verify", "--root", store.root, episode.name) == 0
    assert run("recover", episode) == 0
    assert "is whole; there is nothing to recover" in capsys.readouterr().out


def test_a_file_that_is_not_listed_is_remarked_and_listed_by_the_advice(
    episode: Path, store: EpisodeStore
) -> None:
    late = next(episode.glob("*_1.mcap"))
    late.rename(late.with_name(late.name.replace("_1", "_2")))
    assert look(episode).state is State.DAMAGED
    assert run("recover", store.root) == 0
    shutil.copy(episode / "metadata.yaml.original", episode / "metadata.yaml")
    late.with_name(late.name.replace("_1", "_2")).rename(late)
    (episode / f"{episode.name}_9.mcap").write_bytes(late.read_bytes())
    remark = look(episode).remark
    assert look(episode).state is State.FINISHED and "is not listed" in remark
    assert run(*advised(remark)) == 0
    assert look(episode).remark == ""


def test_a_renamed_folder_is_its_episode_by_either_name(
    episode: Path, types: Typestore, store: EpisodeStore, capsys: Output
) -> None:
    renamed = episode.rename(episode.with_name("best run"))
    assert store.find(episode.name) == store.find("best run") == store.find("1") == renamed
    assert record(store, types, 0.1).name.endswith("_0002"), "the number is taken"
    assert run("episodes", "list", "--root", store.root) == 0
    assert f"{episode.name} (best run)" in capsys.readouterr().out
    for command in ("show", "verify"):
        assert run("episodes", command, "--root", store.root, "best run") == 0
    assert run("episodes", "relabel", "--root", store.root, "1", "50") == 0
    assert run("episodes", "discard", "--root", store.root, "1", "--reason", "x") == 0
    assert (store.root / "best run.discarded").is_dir()
    found = look(store.root / "best run.discarded")
    assert (found.state, found.id) == (State.DISCARDED, episode.name)
    assert {label.episode_id for label in read_episode(found.path).labels} == {episode.name}


def test_a_discarded_episode_stays_so_under_another_name_and_no_purge_takes_it(
    episode: Path, store: EpisodeStore, capsys: Output
) -> None:
    renamed = store.discard("bumped", episode=episode.name).rename(store.root / "keep")
    assert look(renamed).state is State.DISCARDED
    assert run("episodes", "list", "--root", store.root) == 0
    assert "keep" not in capsys.readouterr().out
    assert run("episodes", "purge", "--root", store.root, "--yes") == 0
    assert renamed.is_dir()
    (renamed / "metadata.yaml").unlink()
    assert run("recover", renamed) == 0, "the bag itself tells that it was discarded, and why"
    assert read_episode(renamed).discard_reason == "bumped"


def test_of_two_copies_each_is_reached_by_its_folder_and_both_are_told(
    episode: Path, store: EpisodeStore, capsys: Output
) -> None:
    copy = Path(shutil.copytree(episode, store.root / "copy"))
    assert run("episodes", "list", "--root", store.root) == 0
    out = capsys.readouterr().out
    assert "same id as copy" in out and f"same id as {episode.name}" in out
    assert store.find("copy") == copy and store.find(episode.name) == episode
    with pytest.raises(RolloutError, match=r"is in 2 folders of .*; give the name of one"):
        store.find("1")
    assert set(store.episodes().values()) == {episode, copy}
    other = episode.rename(store.root / "other")
    with pytest.raises(RolloutError, match="copy and other"):
        store.find(episode.name)
    assert store.find("other") == other


def test_a_foreign_bag_and_other_folders_are_no_episodes(
    episode: Path, types: Typestore, store: EpisodeStore, capsys: Output
) -> None:
    for name, plugin in (("db", StoragePlugin.SQLITE3), ("mcap", StoragePlugin.MCAP)):
        with Writer(store.root / name, version=8, storage_plugin=plugin) as writer:
            topic = writer.add_connection("/note", "std_msgs/msg/String", typestore=types)
            writer.write(topic, 1, b"\0\1\0\0\2\0\0\0x\0")
    (store.root / "log").mkdir()
    (store.root / "readme").write_text("x")
    (store.root / "mcap" / "metadata.yaml").unlink()
    states = {each.path.name: each.state for each in scan(store.root)}
    assert states == {
        episode.name: State.FINISHED,
        "db": State.FOREIGN,
        "mcap": State.FOREIGN,
    }
    assert list(store.episodes()) == [episode.name] and store.find() == episode
    assert advised(look(store.root / "db").trouble) == ["import", str(store.root / "db")]
    assert run("episodes", "list", "--root", store.root) == 0, "nothing is wrong with them"
    assert capsys.readouterr().out.count("cosmos import") == 2
    assert run("recover", store.root) == 0
    assert "left alone" in capsys.readouterr().out
    assert run("recover", store.root / "db") == 1


def test_an_episode_without_its_recording_is_to_be_copied_again(
    episode: Path, store: EpisodeStore
) -> None:
    next(episode.glob("*_0.mcap")).unlink()
    found = look(episode)
    assert (found.state, found.id) == (State.DAMAGED, episode.name)
    assert "copy it again" in found.trouble and "cosmos recover" not in found.trouble
    assert run("recover", store.root) == 1


# ---------------------------------------------------------------- names and permissions


@pytest.fixture
def hostile(episode: Path, types: Typestore, store: EpisodeStore) -> Path:
    """A store with names and things that no recorder makes, beside an episode."""
    shutil.copytree(episode, store.root / "\x1b[31mred\n")
    shutil.copytree(episode, os.fsdecode(os.fsencode(store.root) + b"/caf\xe9"))
    broken = Path(shutil.copytree(episode, os.fsdecode(os.fsencode(store.root) + b"/\xff' x")))
    (broken / "metadata.yaml").unlink()
    (store.root / "link").symlink_to(episode)
    (store.root / "loop").symlink_to(store.root / "loop")
    (store.root / "20200101-000000_x_0007").write_text("a file")
    os.mkfifo(store.root / "20200101-000000_x_0008")
    return store.root


def test_names_that_no_terminal_can_show_end_nothing(hostile: Path, capsys: Output) -> None:
    for arguments in (("list",), ("verify", "--all"), ("purge", "--yes")):
        code = run("episodes", *arguments, "--root", hostile)
        told = "".join(capsys.readouterr())
        assert (code == 1) == (arguments != ("purge", "--yes")), told
        assert "\x1b" not in told
    assert run("recover", hostile) == 1  # for the file and the pipe
    told = capsys.readouterr()
    assert "recovered " in told.out and told.err.count("error: ") == 2
    assert "\x1b" not in told.out + told.err
    assert run("episodes", "verify", "--root", hostile, "--all") == 1
    told = capsys.readouterr()
    assert told.out.count(": sound") >= 3 and "with problems" in told.out


@pytest.fixture
def as_nobody(episode: Path) -> Iterator[Path]:
    """An episode, and one that may not be entered, seen by a user without privileges."""
    root = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(episode, root / episode.name)
        shutil.copytree(episode, root / "closed")
        root.chmod(0o755)
        (root / "closed").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield root
        finally:
            os.seteuid(user)
    finally:
        (root / "closed").chmod(0o755)
        shutil.rmtree(root)


def test_a_folder_that_may_not_be_read_is_told_and_the_others_are_read(
    as_nobody: Path, capsys: Output
) -> None:
    assert {each.path.name: each.state for each in scan(as_nobody)}["closed"] is State.UNREADABLE
    assert run("episodes", "list", "--root", as_nobody) == 1
    out = capsys.readouterr().out
    assert "closed" in out and "Permission denied" in out and " 75 " in out
    assert run("recover", as_nobody) == 1
    assert sum(each.state in WHOLE for each in scan(as_nobody)) == 1
