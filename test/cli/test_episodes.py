"""Pins that the table survives every bag, that history stays, and that only purge deletes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from helpers.episodes import START_NS, Writing, record
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.writer import BagWriter
from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.labels import OperatorScore
from cosmos_policy_ros.episodes.store import EpisodeStore

ROOT = Path(__file__).parents[2]


@pytest.fixture
def episodes(tmp_path: Path, types: Typestore) -> EpisodeStore:
    return EpisodeStore(tmp_path / "episodes", types, clock=lambda: START_NS)


class Terminal:
    """Runs the command on a store's folder and keeps what it says."""

    def __init__(self, store: EpisodeStore, capsys: pytest.CaptureFixture[str]) -> None:
        self._root, self._capsys = store.root, capsys
        self.out = self.err = ""
        self.code = 0

    def __call__(self, command: str, *arguments: str) -> int:
        code = cosmos.main(["episodes", command, "--root", str(self._root), *arguments])
        self.out, self.err = self._capsys.readouterr()
        return code

    def ids(self, *arguments: str) -> list[str]:
        """Return the numbers of the episodes that ``list`` shows."""
        self.code = self("list", *arguments)
        return re.findall(r"^\d{8}-\d{6}_\w+_(\d{4}) ", self.out, re.MULTILINE)


@pytest.fixture
def terminal(episodes: EpisodeStore, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(episodes, capsys)


def run(command: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts/cosmos", command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,  # type: ignore[call-overload]
    )


def die(writing: Writing, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave an episode as a recorder that was killed would."""

    def kill(bag: BagWriter, *_: object, **__: object) -> Path:
        bag.flush()
        bag.abort()
        return bag.path

    monkeypatch.setattr(BagWriter, "close", kill)
    writing.recording.finish("")
    monkeypatch.undo()
    return writing.recording.path


def test_list_shows_every_state_and_survives_what_it_cannot_read(
    episodes: EpisodeStore, types: Typestore, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, broken = record(episodes, types), record(episodes, types, 0.1)
    episodes.score(OperatorScore(75.5, True), episode=good.name)
    next(broken.glob("*.mcap")).write_bytes(b"rubbish")
    (record(episodes, types, 0.1) / "metadata.yaml").unlink()
    record(episodes, types, 0.1)
    episodes.discard("cable unplugged")
    dead = die(Writing(episodes, types), monkeypatch)
    recording = Writing(episodes, types).recording
    monkeypatch.setattr("cosmos_policy_ros.episodes.folders.JUST_BEGUN", 0.0)
    assert terminal.ids("--all") == ["0001", "0002", "0003", "0004", "0005", "0006"]
    table = {line.split()[0]: " ".join(line.split()[1:]) for line in terminal.out.splitlines()}
    assert table[good.name] == "transfer_cube time_limit 75.5 yes GO 3.0 827 -"
    assert table[broken.name].startswith("damaged: ") and "cannot be read" in table[broken.name]
    assert " discarded" in terminal.out
    assert terminal.code == 1
    assert table[dead.stem].startswith("unfinished: its recorder died")
    assert table[recording.id].startswith("recording: ")
    recording.finish("stopped")
    episodes.recover()
    assert terminal.ids() == ["0001", "0002", "0003", "0005", "0006"]
    assert re.search(r"_0005 .* recovered$", terminal.out, re.MULTILINE)
    assert terminal.out.splitlines()[-1].endswith("2 of them not readable")


def test_list_filters(
    episodes: EpisodeStore, types: Typestore, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.episodes.DAY", datetime.now())
    record(episodes, types, 0.1, task="insertion")
    record(episodes, types, 2.5, without="primary")
    monkeypatch.setattr("helpers.episodes.DAY", datetime(2020, 1, 1))
    scored = record(episodes, types, 2.5)
    episodes.score(OperatorScore(100, True), episode=scored.name)
    assert terminal.ids() == ["0001", "0002", "0003"]
    assert terminal.ids("--task", "insertion") == ["0001"]
    assert terminal.ids("--scored") == ["0003"]
    assert terminal.ids("--unscored") == ["0001", "0002"]
    assert terminal.ids("--go", "--task", "transfer_cube") == ["0003"]
    tomorrow = f"{datetime.now() + timedelta(days=1):%Y-%m-%d}"
    assert terminal.ids("--since", "7d") == ["0001", "0002"]
    assert terminal.ids("--since", "2020-01-01") == ["0001", "0002", "0003"]
    assert terminal.ids("--since", tomorrow) == []
    assert terminal.out.endswith(": no such episode among 3\n")


def test_relabelling_keeps_the_history_and_show_tells_it(
    episodes: EpisodeStore, types: Typestore, terminal: Terminal
) -> None:
    path = record(episodes, types)
    assert terminal("relabel", "1", "20") == 1
    assert "say --success or --no-success" in terminal.err
    assert terminal("relabel", "1", "100", "--success", "--operator", "ann") == 0
    stages = ["--stage", "touched", "--stage", "lifted"]
    assert terminal("relabel", path.name, *stages, "--no-success", "--note", "seen again") == 0
    assert "50 of 100, no success (revision 4, before 100)" in terminal.out
    assert terminal("relabel", path.name, "60") == 0
    assert "60 of 100, no success" in terminal.out
    assert [x.points for x in read_episode(path).labels] == [100, 25, 25, 50, 60]
    assert terminal("show") == 0
    for words in ("#1", "ann", "100, success", "#2", "+25 touched", "50, no success  seen again"):
        assert words in terminal.out
    assert re.search(r"score +60 of 100", terminal.out)
    assert re.search(r"/cam_high/camera/color/image_rect_raw +75  sensor_msgs", terminal.out)
    assert "checkpoint digest feedc0de" in " ".join(terminal.out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["relabel", "1", "101", "--success"], "must be a number from 0 to 100"),
        (["relabel", "1", "--stage", "lifed", "--success"], "did you mean 'lifted'"),
        (["relabel", "1", "--success"], "give a score from 0 to 100, or the stages"),
        (["relabel", "7", "1", "--success"], "episode '7' is not in"),
        (["show", "nonsense"], "episode 'nonsense' is not in"),
        (["verify"], "name the episodes to verify, or --all"),
    ],
)
def test_what_cannot_be_is_one_line(
    episodes: EpisodeStore,
    types: Typestore,
    terminal: Terminal,
    arguments: list[str],
    words: str,
) -> None:
    path = record(episodes, types, 0.1)
    assert terminal(*arguments) == 1
    assert terminal.err.startswith("error: ") and words in terminal.err
    assert len(terminal.err.splitlines()) == 1
    assert read_episode(path).labels == ()


def test_only_purge_deletes_and_only_what_is_discarded_and_only_after_yes(
    episodes: EpisodeStore,
    types: Typestore,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, unwanted = record(episodes, types, 0.1), record(episodes, types, 0.1)
    dead = die(Writing(episodes, types), monkeypatch)
    (episodes.root / "notes.discarded").mkdir()
    assert terminal("purge") == 0 and "nothing to delete" in terminal.out
    assert terminal("discard", unwanted.name, "--reason", "wrong object") == 0
    discarded = episodes.root / f"{unwanted.name}.discarded"
    for answer in ("", "\n", "y\n", "no\n"):
        monkeypatch.setattr("sys.stdin", Said(answer))
        assert terminal("purge") == 1
        assert terminal.out.endswith("nothing was deleted\n")
        assert discarded.name in terminal.out and kept.name not in terminal.out
        assert discarded.is_dir()
    monkeypatch.setattr("sys.stdin", Said("yes\n"))
    assert terminal("purge") == 0
    names = {kept.name, dead.name, "notes.discarded"}
    assert {path.name for path in episodes.root.iterdir()} == names
    episodes.discard("again", episode=kept.name)
    half = episodes.root / f"{kept.name}.discarded"
    half.rename(half.with_name(half.name + ".purged"))  # by a purge that was killed
    assert terminal.ids("--all") == ["0003"]
    assert terminal("purge", "--yes") == 0
    assert {path.name for path in episodes.root.iterdir()} == names - {kept.name}


class Said:
    """A standard input that says one line."""

    def __init__(self, line: str) -> None:
        self._line = line

    def readline(self) -> str:
        return self._line


def test_verify_names_the_bad_one_and_write_stores_a_verdict(
    episodes: EpisodeStore, types: Typestore, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = record(episodes, types)
    writing = Writing(episodes, types)
    writing.seconds(3)
    die(writing, monkeypatch)
    assert terminal("verify", "--all") == 1
    assert f"{good.name}: sound, 826 messages, GO" in terminal.out
    assert "is unfinished" in terminal.out and "2 episodes verified, 1 with" in terminal.out
    episodes.recover()
    assert terminal("verify", "2") == 1
    assert "it was never judged; its messages make it GO" in terminal.out
    assert terminal.ids("--go") == ["0001"]
    assert terminal("verify", "--all", "--write") == 0
    assert terminal("verify", "--all") == 0
    assert terminal.ids("--go") == ["0001", "0002"]
    file = next(good.glob("*_0.mcap"))
    file.write_bytes(file.read_bytes()[:-1])
    assert terminal("verify", "--all", "--write") == 1
    assert f"{file.name}: is damaged or cut off" in terminal.out


def test_scripts_end_without_a_traceback(episodes: EpisodeStore, types: Typestore) -> None:
    path = record(episodes, types, 0.1)
    listed = run("episodes", "list", "--root", episodes.root)
    assert (listed.returncode, listed.stderr) == (0, "") and path.name in listed.stdout
    missing = run("episodes", "list", "--root", episodes.root / "nowhere")
    assert missing.returncode == 1 and not (episodes.root / "nowhere").exists()
    assert missing.stderr.startswith("error: ") and len(missing.stderr.splitlines()) == 1
    full = "PYTHONUNBUFFERED=1 {} {} episodes list --root {} | true; echo ${{PIPESTATUS[0]}}"
    command = full.format(sys.executable, ROOT / "scripts/cosmos", episodes.root)
    piped = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == ("141\n", "")


def test_recover_by_hand(
    episodes: EpisodeStore,
    types: Typestore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    writing = Writing(episodes, types)
    writing.seconds(0.5)
    dead = die(writing, monkeypatch)
    living = Writing(episodes, types).recording
    hopeless = tmp_path / "other" / "20260101-000000_t_0001.recording"
    hopeless.mkdir(parents=True)
    result = run("recover", tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"recovered {dead.with_suffix('')}: 140 messages" in result.stdout
    assert "lost: up to 0.5 s before its recorder died" in result.stdout
    assert f"left alone: {living.path}: is being recorded" in result.stdout
    assert result.stderr.startswith(f"error: {hopeless}: has no")
    assert living.open and read_episode(dead.with_suffix("")).recovered
    assert cosmos.main(["recover", str(episodes.root)]) == 0
    assert cosmos.main(["recover", str(living.path)]) == 1
    assert cosmos.main(["recover", str(tmp_path / "nowhere")]) == 1
    living.finish("stopped")
    capsys.readouterr()
    assert cosmos.main(["recover", str(episodes.root)]) == 0
    assert "no episode below it needs to be recovered" in capsys.readouterr().out


def test_recover_takes_one_folder(
    episodes: EpisodeStore, types: Typestore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (die(Writing(episodes, types), monkeypatch) for _ in range(2))
    assert cosmos.main(["recover", str(one)]) == 0
    assert not one.exists() and other.is_dir()
