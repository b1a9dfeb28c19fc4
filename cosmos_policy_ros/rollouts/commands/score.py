"""What ``scripts/score`` does: an episode scored stage by stage, one key per answer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import SystemRandom
from typing import Literal

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts.commands.keys import Keyboard, pedal_keys
from cosmos_policy_ros.rollouts.commands.shared import add_root, find, open_store, run, say_seconds
from cosmos_policy_ros.rollouts.commands.table import Filter, read_rows
from cosmos_policy_ros.rollouts.episode import Episode, read_episode
from cosmos_policy_ros.rollouts.labelling import rubric_of
from cosmos_policy_ros.rollouts.rubric import Judgement, tally
from cosmos_policy_ros.rollouts.store import EpisodeStore
from cosmos_policy_ros.rollouts.task import FULL_SCORE, Rubric

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
) -> Judgement:
    """Return the answers as a judgement; without any stage or deduction its score is 0."""
    yes = [question for question, answer in answers if answer]
    stages = tuple(q.name for q in yes if q.kind == "stage")
    deductions = tuple(q.name for q in yes if q.kind == "deduction")
    return Judgement(
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
        rubric = rubric_of(episode.facts)
        if rubric is None:
            raise RolloutError(
                f"episode '{episode.id}' has no rubric; score it by a total: "
                f"episodes relabel {episode.id} TOTAL"
            )
        self._rubric, self._keyboard = rubric, keyboard
        self._questions = questions_of(rubric)
        self._operator, self._note = operator_name, note

    def judgement(self) -> Judgement | None:
        """Ask until the operator agrees with the total; None when nothing is to be written."""
        answers: list[bool] = []
        while True:
            while len(answers) < len(self._questions):
                self._ask(answers)
            answered = list(zip(self._questions, answers, strict=True))
            judgement = judgement_of(answered, self._operator, self._note)
            answer = self._confirm(judgement)
            if answer == "back":
                answers.pop()
            elif answer == "text":
                _say("  note: ", end="")
                self._note = self._keyboard.line()
            else:
                return judgement if answer == "yes" else None

    def _ask(self, answers: list[bool]) -> None:
        number, count = len(answers) + 1, len(self._questions)
        answer = self._key(f"  {number}/{count} {self._questions[number - 1].text}", "[y/n/b]")
        if answer in ("yes", "no"):
            answers.append(answer == "yes")
        elif answer == "back" and answers:
            answers.pop()

    def _confirm(self, judgement: Judgement) -> str:
        total = tally(judgement, self._rubric).total
        done = "success" if judgement.success else "no success"
        note = f', note "{judgement.note}"' if judgement.note else ""
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
    """Run ``scripts/score``; returns the exit code."""
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
            _write(store, episode, interview.judgement())
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


def _write(store: EpisodeStore, episode: Episode, judgement: Judgement | None) -> None:
    if judgement is None:
        _say("  nothing was written")
        return
    label = store.score(judgement, episode=episode.id)[-1]
    _say(f"  written: {label.points:g} of {FULL_SCORE} (revision {label.revision})")


def _headline(episode: Episode, blind: bool, count: str) -> str:
    facts = episode.facts
    lines = [
        f"\n{episode.id} ({count}){', discarded' if episode.discarded else ''}",
        f"  {facts.task}: {facts.prompt}; {say_seconds(episode.duration_ns / NS_PER_S)}, "
        f"ended by {episode.outcome or '-'}",
    ]
    if not blind:
        digest = facts.checkpoint_digest[:12]
        lines.append(f"  engine {facts.engine}, checkpoint {facts.checkpoint or '-'} {digest}")
        if episode.score is not None:
            lines.append(f"  scored before: {episode.score.points:g}, {episode.score.note}")
    return "\n".join(lines)


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="score",
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
    return parser.parse_args(arguments)
