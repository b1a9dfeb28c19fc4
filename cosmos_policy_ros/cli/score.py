"""``cosmos score``: an episode scored stage by stage, one key per answer.

Keys come from a terminal without Enter, from a pipe line by line, or from a foot pedal: a keyboard
with one key, which repeats it many times a second while it is held down.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import termios
import time
import tty
from secrets import SystemRandom
from typing import Any, Literal

from cosmos_policy_ros.cli.shared import add_root, open_store, say_seconds
from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.task import FULL_SCORE
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.core.untrusted import escaped
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.episodes.labels import OperatorScore, rubric_of, tally
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.episodes.table import read_rows

Key = Literal["yes", "no", "back", "text", ""]
MEANINGS: dict[str, Key] = {
    **dict.fromkeys(("y", "Y", "\n", "\r", " "), "yes"),
    **dict.fromkeys(("n", "N"), "no"),
    **dict.fromkeys(("b", "B", "\x7f", "\b"), "back"),
    **dict.fromkeys(("t", "T"), "text"),
}
# What terminals send for the keys that pedals come set to; a letter or digit is itself.
PEDALS: dict[str, tuple[str, ...]] = {
    "enter": ("\n", "\r"),
    "space": (" ",),
    "tab": ("\t",),
    "up": ("\x1b[A", "\x1bOA"),
    "down": ("\x1b[B", "\x1bOB"),
    "right": ("\x1b[C", "\x1bOC"),
    "left": ("\x1b[D", "\x1bOD"),
    "pageup": ("\x1b[5~",),
    "pagedown": ("\x1b[6~",),
    "f1": ("\x1bOP", "\x1b[11~", "\x1b[[A"),
    "f2": ("\x1bOQ", "\x1b[12~", "\x1b[[B"),
    "f3": ("\x1bOR", "\x1b[13~", "\x1b[[C"),
    "f4": ("\x1bOS", "\x1b[14~", "\x1b[[D"),
    "f5": ("\x1b[15~", "\x1b[[E"),
    **{f"f{n}": (f"\x1b[{n + 11}~",) for n in (6, 7, 8, 9, 10)},
    **{f"f{n}": (f"\x1b[{n + 12}~",) for n in (11, 12)},
}
END_OF_INPUT = "\x04"
SLICE = 0.2  # s
SEQUENCE_PATIENCE = 0.05  # s; the rest of a function key's sequence is there at once
HELD = 0.75  # s; keyboards repeat a held key after 0.25 to 0.66 s


def add_score(parser: argparse.ArgumentParser) -> None:
    """Score an episode stage by stage, one key per answer.

    Nothing is written before the total was shown and agreed to; an earlier score stays in the
    history.
    """
    add_root(parser)
    parser.add_argument("id", nargs="?", default="", help="its id, or its number (the newest)")
    parser.add_argument("--unscored", action="store_true", help="all without a score, in turn")
    parser.add_argument("--task", help="with --unscored: of this task only")
    parser.add_argument(
        "--blind",
        action="store_true",
        help="hide checkpoint, digest, engine and earlier score; --unscored then comes shuffled",
    )
    parser.add_argument("--operator", default="", help="who scores")
    parser.add_argument("--note", default="", help="free text kept with the score")
    parser.add_argument(
        "--pedal",
        metavar="KEY",
        help="key that a foot pedal sends, for yes: one character, enter, space, pagedown, f1 …",
    )
    parser.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> int:
    pedal = _pedal_keys(options.pedal)
    store = open_store(options.root)
    episodes, failed = _chosen(store, options)
    if not episodes:
        which = "every episode that can be read" if failed else "every episode"
        _say(f"{store.root}: {which} has its score")
        return int(failed > 0)
    _say("y, Enter or space: yes   n: no   b: back one question   Ctrl-C: stop")
    with Keyboard(pedal) as keyboard:
        for number, episode in enumerate(episodes, 1):
            _say(_headline(episode, options.blind, f"{number} of {len(episodes)}"))
            if rubric_of(episode.metadata) is None:
                print(
                    f"error: episode '{episode.id}' has no rubric; score it by a total: "
                    f"episodes relabel {episode.id} TOTAL",
                    file=sys.stderr,
                    flush=True,
                )
                failed += 1
                continue
            operator_score = interview(episode, keyboard, options.operator, options.note)
            if operator_score is None:
                _say("  nothing was written")
                continue
            label = store.score(operator_score, episode=episode.path.name)[-1]
            _say(f"  written: {label.points:g} of {FULL_SCORE} (revision {label.revision})")
    return int(failed > 0)


def _pedal_keys(name: str | None) -> tuple[str, ...]:
    """Return what a terminal sends for a pedal's key."""
    if name is None:
        return ()
    if name.lower() in PEDALS:
        return PEDALS[name.lower()]
    if len(name) == 1:
        return (name,)
    raise RolloutError(
        f"--pedal {name}: is neither one character nor a known key{did_you_mean(name, PEDALS)}"
    )


def _chosen(store: EpisodeStore, options: argparse.Namespace) -> tuple[list[Episode], int]:
    """Return the episodes to score, and how many could not be read."""
    if not options.unscored:
        return [read_episode(store.find(options.id))], 0
    if options.id:
        raise RolloutError("name an episode, or --unscored, not both")
    episodes, failed = [], 0
    for row in read_rows(store, task=options.task, scored=False):
        if row.episode is None:
            text = f"left out: {row.id}, {row.state}: {escaped(row.trouble)}"
            print(text, file=sys.stderr, flush=True)
            failed += row.wrong
        else:
            episodes.append(row.episode)
    if options.blind:
        # In order of time the checkpoint could be guessed from its neighbours.
        SystemRandom().shuffle(episodes)
    return episodes, failed


def _headline(episode: Episode, blind: bool, count: str) -> str:
    metadata = episode.metadata
    lines = [
        f"\n{episode.id} ({count}){', discarded' if episode.discarded else ''}",
        f"  {metadata.task}: {metadata.prompt}; {say_seconds(episode.duration_ns / NS_PER_S)}, "
        f"ended by {episode.outcome or '-'}",
    ]
    if not blind:
        digest = metadata.checkpoint_digest[:12]
        lines.append(
            f"  engine {metadata.engine}, checkpoint {metadata.checkpoint or '-'} {digest}"
        )
        if episode.score is not None:
            lines.append(f"  scored before: {episode.score.points:g}, {episode.score.note}")
    return "\n".join(lines)


def interview(
    episode: Episode, keyboard: Keyboard, operator_name: str, note: str
) -> OperatorScore | None:
    """Ask until the operator agrees with the total; None when nothing is to be written."""
    rubric = rubric_of(episode.metadata)
    assert rubric is not None
    questions = [
        *(("stage", s.name, f"reached: {s.name} (+{s.points})?") for s in rubric.stages),
        *(("deduction", d.name, f"to deduct: {d.name} (-{d.points})?") for d in rubric.deductions),
        ("success", "", "was the task done?"),
    ]
    answers: list[bool] = []
    while True:
        number = len(answers)
        if number < len(questions):
            answer = keyboard.ask(
                f"  {number + 1}/{len(questions)} {questions[number][2]} [y/n/b] "
            )
            if answer in ("yes", "no"):
                answers.append(answer == "yes")
            elif answer == "back" and answers:
                answers.pop()
            continue
        yes = [question for question, answered in zip(questions, answers, strict=True) if answered]
        stages = tuple(name for kind, name, _ in yes if kind == "stage")
        deductions = tuple(name for kind, name, _ in yes if kind == "deduction")
        operator_score = OperatorScore(
            score=None if stages or deductions else 0.0,
            success=answers[-1],
            stages=stages,
            deductions=deductions,
            operator_name=operator_name,
            note=note,
        )
        total = tally(operator_score, rubric).total
        done = "success" if operator_score.success else "no success"
        noted = f', note "{note}"' if note else ""
        answer = keyboard.ask(
            f"  {total:g} of {FULL_SCORE}, {done}{noted}. Write it? [y/n/b, t: note] "
        )
        if answer == "back":
            answers.pop()
        elif answer == "text":
            _say("  note: ", end="")
            note = keyboard.line()
        else:
            return operator_score if answer == "yes" else None


class Keyboard:
    """Standard input: keys if it is a terminal, lines otherwise. A context manager.

    Within it a terminal shows nothing of what is typed and hands each key over at once; Ctrl-C
    interrupts as ever.
    """

    def __init__(self, pedal: tuple[str, ...] = ()) -> None:
        """Take what the keys of ``pedal`` send for a yes, whatever else they mean."""
        self._pedal = pedal
        self._pedalled = -HELD
        self._terminal = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._usual: list[Any] = []

    def __enter__(self) -> Keyboard:
        if self._terminal is not None:
            self._usual = termios.tcgetattr(self._terminal)
            tty.setcbreak(self._terminal, termios.TCSADRAIN)
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal is not None:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._usual)

    def ask(self, question: str) -> Key:
        """Ask, wait for a key that means something, and show its meaning."""
        _say(question, end="")
        answer: Key = ""
        while not answer:
            answer = self._read()
        _say(answer if answer != "text" else "")
        return answer

    def _read(self) -> Key:
        """Wait for a key and return what it means, "" when nothing."""
        if self._terminal is None:
            return MEANINGS.get(self.line()[:1] or "\n", "")
        key = _read_key(self._terminal)
        if key == END_OF_INPUT:
            raise _ended()
        if key not in self._pedal:
            return MEANINGS.get(key, "")
        before, self._pedalled = self._pedalled, time.monotonic()
        return "yes" if self._pedalled - before > HELD else ""

    def line(self) -> str:
        """Wait for a line and return it without its end; a terminal shows it."""
        if self._terminal is not None:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._usual)
        line = sys.stdin.readline()
        if self._terminal is not None:
            tty.setcbreak(self._terminal, termios.TCSADRAIN)
        if not line:
            raise _ended()
        return line.strip()


def _read_key(descriptor: int) -> str:
    """Return a key, with all of the sequence that stands for one without a character."""
    # In slices: a Ctrl-C that arrives just before a blocking read would wait for the next key.
    while not select.select([descriptor], [], [], SLICE)[0]:
        pass
    key = os.read(descriptor, 1).decode(errors="replace") or END_OF_INPUT
    while key.startswith("\x1b") and select.select([descriptor], [], [], SEQUENCE_PATIENCE)[0]:
        key += os.read(descriptor, 1).decode(errors="replace")
        if key[2:] and key[-1] != "[" and (key[-1].isalpha() or key[-1] == "~"):
            break
    return key


def _ended() -> RolloutError:
    return RolloutError("the input ended before the last answer; nothing was written for this one")


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)
