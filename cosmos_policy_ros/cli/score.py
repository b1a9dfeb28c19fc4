"""What ``cosmos score`` does: an episode scored stage by stage, one key per answer."""

from __future__ import annotations

import argparse
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import SystemRandom
from types import TracebackType
from typing import Any, Literal

from cosmos_policy_ros.cli.shared import (
    Filter,
    add_root,
    find,
    open_store,
    parse,
    read_rows,
    run,
    say_seconds,
)
from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.task import FULL_SCORE, Rubric
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.episodes.labels import OperatorScore, rubric_of, tally
from cosmos_policy_ros.episodes.store import EpisodeStore

# One key, one answer: from a terminal without Enter, from a pipe line by line, from a foot pedal.
#
# A pedal is a keyboard with one key. Held down it repeats that key, many times a second: all of it
# is one answer.


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
ESCAPE, END_OF_INPUT = "\x1b", "\x04"
SLICE = 0.2  # s
SEQUENCE_PATIENCE = 0.05  # s; the rest of a function key's sequence is there at once
HELD = 0.75  # s; keyboards repeat a held key after 0.25 to 0.66 s


def pedal_keys(name: str) -> tuple[str, ...]:
    """Return what a pedal's key sends; nothing for the name "".

    Raises:
        RolloutError: neither a single character nor a key that is known by name.
    """
    if not name:
        return ()
    if name.lower() in PEDALS:
        return PEDALS[name.lower()]
    if len(name) == 1:
        return (name,)
    raise RolloutError(
        f"--pedal {name}: is neither one character nor a known key{did_you_mean(name, PEDALS)}"
    )


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._terminal is not None:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._usual)

    def read(self) -> Key:
        """Wait for a key and return what it means, "" when nothing.

        Raises:
            RolloutError: the input has ended.
        """
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
        """Wait for a line and return it without its end; a terminal shows it.

        Raises:
            RolloutError: the input has ended.
        """
        if self._terminal is not None:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._usual)
        line = sys.stdin.readline()
        if self._terminal is not None:
            tty.setcbreak(self._terminal, termios.TCSADRAIN)
        if not line:
            raise _ended()
        return line.strip()


def _ended() -> RolloutError:
    return RolloutError("the input ended before the last answer; nothing was written for this one")


def _read_key(descriptor: int) -> str:
    """Return a key, with all of the sequence that stands for one without a character."""
    # In slices: a Ctrl-C that arrives just before a blocking read would wait for the next key.
    while not select.select([descriptor], [], [], SLICE)[0]:
        pass
    key = os.read(descriptor, 1).decode(errors="replace") or END_OF_INPUT
    while key.startswith(ESCAPE) and select.select([descriptor], [], [], SEQUENCE_PATIENCE)[0]:
        key += os.read(descriptor, 1).decode(errors="replace")
        if key[2:] and key[-1] != "[" and (key[-1].isalpha() or key[-1] == "~"):
            break
    return key


HELP = "y, Enter or space: yes   n: no   b: back one question   Ctrl-C: stop"


@dataclass(frozen=True)
class Question:
    """Something to answer with yes or no, and the points that hang on it."""

    kind: Literal["stage", "deduction", "success"]
    name: str = ""
    points: int = 0

    @property
    def text(self) -> str:
        """What the operator is asked."""
        return {
            "stage": f"reached: {self.name} (+{self.points})?",
            "deduction": f"to deduct: {self.name} (-{self.points})?",
            "success": "was the task done?",
        }[self.kind]


def questions_of(rubric: Rubric) -> tuple[Question, ...]:
    """Return a rubric's stages, its deductions, then whether the task was done."""
    return (
        *(Question("stage", stage.name, stage.points) for stage in rubric.stages),
        *(Question("deduction", fault.name, fault.points) for fault in rubric.deductions),
        Question("success"),
    )


def judgement_of(
    answers: Sequence[tuple[Question, bool]], operator_name: str = "", note: str = ""
) -> OperatorScore:
    """Return the answers as a score; without any stage or deduction its score is 0."""
    yes = [question for question, answer in answers if answer]
    stages = tuple(q.name for q in yes if q.kind == "stage")
    deductions = tuple(q.name for q in yes if q.kind == "deduction")
    return OperatorScore(
        score=None if stages or deductions else 0.0,
        success=any(q.kind == "success" for q in yes),
        stages=stages,
        deductions=deductions,
        operator_name=operator_name,
        note=note,
    )


class Interview:
    """Asks for one episode's score; nothing is written in here."""

    def __init__(self, episode: Episode, keyboard: Keyboard, operator_name: str, note: str) -> None:
        """Prepare the questions.

        Raises:
            RolloutError: the episode's task has no rubric.
        """
        rubric = rubric_of(episode.metadata)
        if rubric is None:
            raise RolloutError(
                f"episode '{episode.id}' has no rubric; score it by a total: "
                f"episodes relabel {episode.id} TOTAL"
            )
        self._rubric, self._keyboard = rubric, keyboard
        self._questions = questions_of(rubric)
        self._operator, self._note = operator_name, note

    def operator_score(self) -> OperatorScore | None:
        """Ask until the operator agrees with the total; None when nothing is to be written."""
        answers: list[bool] = []
        while True:
            while len(answers) < len(self._questions):
                self._ask(answers)
            answered = list(zip(self._questions, answers, strict=True))
            operator_score = judgement_of(answered, self._operator, self._note)
            answer = self._confirm(operator_score)
            if answer == "back":
                answers.pop()
            elif answer == "text":
                _say("  note: ", end="")
                self._note = self._keyboard.line()
            else:
                return operator_score if answer == "yes" else None

    def _ask(self, answers: list[bool]) -> None:
        number, count = len(answers) + 1, len(self._questions)
        answer = self._key(f"  {number}/{count} {self._questions[number - 1].text}", "[y/n/b]")
        if answer in ("yes", "no"):
            answers.append(answer == "yes")
        elif answer == "back" and answers:
            answers.pop()

    def _confirm(self, operator_score: OperatorScore) -> str:
        total = tally(operator_score, self._rubric).total
        done = "success" if operator_score.success else "no success"
        note = f', note "{operator_score.note}"' if operator_score.note else ""
        text = f"  {total:g} of {FULL_SCORE}, {done}{note}. Write it?"
        return self._key(text, "[y/n/b, t: note]")

    def _key(self, text: str, choices: str) -> str:
        _say(f"{text} {choices} ", end="")
        answer = self._keyboard.read()
        while not answer:
            answer = self._keyboard.read()
        _say(answer if answer != "text" else "")
        return answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos score``; returns the exit code."""
    options = _parse(arguments)
    return run(lambda: _score_all(options))


def _score_all(options: argparse.Namespace) -> int:
    pedal = pedal_keys(options.pedal)
    store = open_store(options.root)
    episodes = _chosen(store, options)
    if not episodes:
        _say(f"{store.root}: every episode has its score")
        return 0
    _say(HELP)
    failed = 0
    with Keyboard(pedal) as keyboard:
        for number, episode in enumerate(episodes, 1):
            _say(_headline(episode, options.blind, f"{number} of {len(episodes)}"))
            try:
                interview = Interview(episode, keyboard, options.operator, options.note)
            except RolloutError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                failed += 1
                continue
            _write(store, episode, interview.operator_score())
    return int(failed > 0)


def _chosen(store: EpisodeStore, options: argparse.Namespace) -> list[Episode]:
    if not options.unscored:
        return [read_episode(find(store, options.id))]
    if options.id:
        raise RolloutError("name an episode, or --unscored, not both")
    rows = read_rows(store, Filter(task=options.task, scored=False))
    for row in rows:
        if row.episode is None:
            print(f"left out: {row.id} is {row.state}: {row.trouble}", file=sys.stderr, flush=True)
    episodes = [row.episode for row in rows if row.episode is not None]
    if options.blind:
        # In order of time the checkpoint could be guessed from its neighbours.
        SystemRandom().shuffle(episodes)
    return episodes


def _write(store: EpisodeStore, episode: Episode, operator_score: OperatorScore | None) -> None:
    if operator_score is None:
        _say("  nothing was written")
        return
    label = store.score(operator_score, episode=episode.id)[-1]
    _say(f"  written: {label.points:g} of {FULL_SCORE} (revision {label.revision})")


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


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cosmos score",
        description="Score an episode stage by stage, one key per answer. Nothing is written "
        "before the total was shown and agreed to; an earlier score stays in the history.",
    )
    add_root(parser)
    parser.add_argument("id", nargs="?", default="", help="its id, or its number (the newest)")
    parser.add_argument("--unscored", action="store_true", help="all without a score, in turn")
    parser.add_argument("--task", default="", help="with --unscored: of this task only")
    parser.add_argument(
        "--blind",
        action="store_true",
        help="hide checkpoint, digest, engine and earlier score; --unscored then comes shuffled",
    )
    parser.add_argument("--operator", default="", help="who scores")
    parser.add_argument("--note", default="", help="free text kept with the score")
    parser.add_argument(
        "--pedal",
        default="",
        metavar="KEY",
        help="key that a foot pedal sends, for yes: one character, enter, space, pagedown, f1 …",
    )
    return parse(parser, arguments)
