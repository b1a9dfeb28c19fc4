"""Pins that one key is one answer, that a total is agreed to first, and that blind is blind."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.episodes import START_NS, record
from helpers.waiting import PATIENCE
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.cli import cosmos
from cosmos_policy_ros.cli import score as score_command
from cosmos_policy_ros.cli.score import HELD
from cosmos_policy_ros.episodes.episode import read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore

ROOT = Path(__file__).parents[2]
FAULTY_TASK = """
name: faulty
description: A task with a deduction.
prompts: [do it]
time_limit: 10.0
rigs: [sim]
rubric:
  stages: [{name: half, points: 50}, {name: whole, points: 50}]
  deductions: [{name: dropped, points: 30}]
"""


@pytest.fixture
def episodes(tmp_path: Path, types: Typestore) -> EpisodeStore:
    return EpisodeStore(tmp_path / "episodes", types, clock=lambda: START_NS)


def score(
    monkeypatch: pytest.MonkeyPatch, episodes: EpisodeStore, lines: str, *arguments: str
) -> int:
    """Run the command with lines on a standard input that is no terminal."""
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return cosmos.main(["score", "--root", str(episodes.root), *arguments])


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        ("y\ny\nn\ny\ny\n", [("stage", 50), ("stage", 50), ("score", 100)]),
        ("y\nn\ny\nn\ny\n", [("stage", 50), ("deduction", 30), ("score", 20)]),
        ("n\nn\nn\nn\ny\n", [("score", 0)]),
        ("n\nn\ny\nn\ny\n", [("deduction", 30), ("score", 0)]),
        ("\n \nno\nyes\n\n", [("stage", 50), ("stage", 50), ("score", 100)]),
        # Back over a wrong answer, back from the total, back where there is nothing to go back to.
        ("b\nn\nb\ny\ny\nn\nn\nb\ny\ny\n", [("stage", 50), ("stage", 50), ("score", 100)]),
        ("x\ny\nn\nn\nn\nx\ny\n", [("stage", 50), ("score", 50)]),
    ],
)
def test_answers_become_labels(
    episodes: EpisodeStore,
    types: Typestore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: str,
    labels: list[tuple[str, float]],
) -> None:
    path = record(episodes, types, 0.1, task_yaml=FAULTY_TASK)
    assert score(monkeypatch, episodes, lines, "--operator", "ann") == 0
    found = read_episode(path).labels
    assert [(label.kind, label.points) for label in found] == labels
    assert {label.operator_name for label in found} == {"ann"}
    shown = capsys.readouterr().out
    total = f"{labels[-1][1]:g} of 100"
    assert 0 < shown.index(f"{total}, ") < shown.index(f"written: {total} (revision {len(labels)})")
    assert found[-1].success == ("100 of 100, success" in shown)


def test_a_note_can_be_added_and_an_old_score_is_kept(
    episodes: EpisodeStore, types: Typestore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record(episodes, types, 0.1)
    record(episodes, types, 0.1)
    for lines in ("y\ny\nn\nn\nn\nt\nslipped twice\ny\n", "n\nn\nn\nn\nn\ny\n"):
        assert score(monkeypatch, episodes, lines, "1") == 0
    scores = [label for label in read_episode(path).labels if label.kind == "score"]
    assert [(x.revision, x.points, x.note) for x in scores] == [
        (3, 50, "slipped twice"),
        (4, 0, ""),
    ]
    assert read_episode(episodes.find()).labels == ()


@pytest.mark.parametrize(
    ("lines", "code"), [("y\ny\ny\ny\ny\nn\n", 0), ("y\ny\ny\ny\ny\n", 1), ("", 1)]
)
def test_what_is_not_agreed_to_is_not_written(
    episodes: EpisodeStore,
    types: Typestore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: str,
    code: int,
) -> None:
    path = record(episodes, types, 0.1)
    assert score(monkeypatch, episodes, lines) == code
    assert read_episode(path).labels == ()
    told = capsys.readouterr()
    assert "nothing was written" in told.out + told.err


def test_blind_hides_what_ran(
    episodes: EpisodeStore,
    types: Typestore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record(episodes, types, 0.1)
    shown = {}
    for blind in (False, True):
        options = ["--blind"] if blind else []
        assert score(monkeypatch, episodes, "y\n" * 6, *options, "--note", "seen") == 0
        told = capsys.readouterr()
        shown[blind] = told.out + told.err
    for secret in ("aloha_tuned", "feedc0de", "engine"):
        assert secret in shown[False] and secret not in shown[True]
    assert score(monkeypatch, episodes, "y\n" * 6) == 0
    assert "scored before: 100, seen" in capsys.readouterr().out
    assert "scored before" not in shown[True]
    assert "transfer the red cube" in shown[True]


def test_unscored_ones_come_in_turn_and_blind_ones_shuffled(
    episodes: EpisodeStore,
    types: Typestore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [record(episodes, types, 0.1) for _ in range(4)]
    next(paths[3].glob("*.mcap")).write_bytes(b"rubbish")
    assert score(monkeypatch, episodes, "y\n" * 6, "2") == 0
    monkeypatch.setattr(score_command.SystemRandom, "shuffle", lambda self, x: x.reverse())
    capsys.readouterr()
    # The first is written, the second is not.
    assert score(monkeypatch, episodes, "y\n" * 11 + "n\n", "--unscored", "--blind") == 1
    told = capsys.readouterr()
    assert told.out.index(paths[2].name) < told.out.index(paths[0].name)
    assert paths[1].name not in told.out
    assert f"left out: {paths[3].name}, damaged" in told.err
    assert [len(read_episode(path).labels) for path in paths[:3]] == [0, 5, 5]
    assert score(monkeypatch, episodes, "y\n" * 6, "--unscored") == 1
    assert score(monkeypatch, episodes, "", "--unscored") == 1
    assert "every episode that can be read has its score" in capsys.readouterr().out


def test_an_episode_without_a_rubric_does_not_stop_the_others(
    episodes: EpisodeStore,
    types: Typestore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bare, whole = record(episodes, types, 0.1, task_yaml=""), record(episodes, types, 0.1)
    assert score(monkeypatch, episodes, "y\n" * 6, "--unscored") == 1
    assert f"episodes relabel {bare.name} TOTAL" in capsys.readouterr().err
    assert read_episode(bare).labels == () and len(read_episode(whole).labels) == 5


def test_an_unknown_pedal_is_named(
    episodes: EpisodeStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(monkeypatch, episodes, "", "--pedal", "pagedwn") == 1
    assert "did you mean 'pagedown'?" in capsys.readouterr().err


# ---------------------------------------------------------------- at a terminal


class Terminal:
    """The script at a terminal of its own."""

    def __init__(self, root: Path, *arguments: str) -> None:
        self._master, self._slave = pty.openpty()
        self.usual = termios.tcgetattr(self._slave)
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "scripts/cosmos", "score", "--root", str(root), *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
            # A shell that runs the tests in the background has them, and theirs, ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def until(self, words: str) -> None:
        """Wait until the words stand there, behind those that were waited for before."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.shown:
            assert time.monotonic() < deadline, f"no '{words}' in {self.shown!r}"
            if select.select([self._master], [], [], 0.2)[0]:
                self.shown += os.read(self._master, 4096).decode()
        self.shown = self.shown.partition(words)[2]

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def end(self) -> int:
        """Wait for its end; return its exit code. The terminal is as it was."""
        code = self.process.wait(PATIENCE)
        while select.select([self._master], [], [], 0.2)[0]:
            self.shown += os.read(self._master, 4096).decode()
        assert termios.tcgetattr(self._slave) == self.usual
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_one_key_is_one_answer(
    episodes: EpisodeStore, types: Typestore, terminals: list[Terminal]
) -> None:
    path = record(episodes, types, 0.1)
    terminals.append(terminal := Terminal(episodes.root))
    for question, key in (
        ("1/5 reached: touched (+25)? [y/n/b] ", "y"),
        ("yes\r\n  2/5 reached: lifted (+25)? [y/n/b] ", "n"),
        ("no\r\n  3/5 reached: met (+25)? [y/n/b] ", "b"),
        ("back\r\n  2/5 reached: lifted (+25)? [y/n/b] ", "\r"),
        ("yes\r\n  3/5 reached: met (+25)? [y/n/b] ", "q\x1b[15~ "),
        ("yes\r\n  4/5 reached: handed over (+25)? [y/n/b] ", "n"),
        ("no\r\n  5/5 was the task done? [y/n/b] ", "n"),
        ("75 of 100, no success. Write it? [y/n/b, t: note] ", "t"),
        ("note: ", "slipped\n"),
        ('75 of 100, no success, note "slipped". Write it?', "y"),
    ):
        terminal.until(question)
        terminal.press(key)
    terminal.until("written: 75 of 100 (revision 4)")
    assert terminal.end() == 0
    label = read_episode(path).labels[-1]
    assert (label.points, label.note, label.success) == (75, "slipped", False)


def test_a_pedal_held_down_answers_once(
    episodes: EpisodeStore, types: Typestore, terminals: list[Terminal]
) -> None:
    """Even one that sends a key which means something else."""
    record(episodes, types, 0.1)
    terminals.append(terminal := Terminal(episodes.root, "--pedal", "pagedown"))
    terminals.append(other := Terminal(episodes.root, "--pedal", "b"))
    for each, key in ((terminal, "\x1b[6~"), (other, "b")):
        each.until("1/5 ")
        each.press(key * 5)
        each.until("2/5 ")
        each.press("n")
        each.until("no\r\n  3/5 ")
        time.sleep(HELD)
        each.press(key)
        each.until("yes\r\n  4/5 ")


def test_ctrl_c_writes_nothing(
    episodes: EpisodeStore, types: Typestore, terminals: list[Terminal]
) -> None:
    path = record(episodes, types, 0.1)
    terminals.append(terminal := Terminal(episodes.root))
    terminal.until("1/5 ")
    terminal.press("yyyyy")
    terminal.until("Write it?")
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert terminal.end() == 130
    assert "interrupted" in terminal.shown and "Traceback" not in terminal.shown
    assert read_episode(path).labels == ()
