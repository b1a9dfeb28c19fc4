"""What an operator says of an episode, put where it cannot be lost: the bag and the journal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rosbags.typesys.store import Typestore

from cosmos_policy_ros.errors import ConfigError, RolloutError
from cosmos_policy_ros.rig.config import parse_config
from cosmos_policy_ros.rollouts import journal
from cosmos_policy_ros.rollouts.bag_writer import LABEL_TOPIC, RECORDING
from cosmos_policy_ros.rollouts.durable import locked
from cosmos_policy_ros.rollouts.episode import read_labels
from cosmos_policy_ros.rollouts.late_labels import append_late
from cosmos_policy_ros.rollouts.messages import EpisodeFacts, Label, encode_label
from cosmos_policy_ros.rollouts.rubric import Judgement, tally
from cosmos_policy_ros.rollouts.task import Rubric, Task


def rubric_of(facts: EpisodeFacts) -> Rubric | None:
    """Return the rubric that was in force when the episode was recorded, if its task had one.

    Raises:
        RolloutError: the task's text in the episode is none.
    """
    if not facts.task_yaml:
        return None
    try:
        return parse_config(Task, facts.task_yaml, f"the task of '{facts.episode_id}'").rubric
    except ConfigError as error:
        raise RolloutError(f"{error}; give a score alone") from error


def labels_of(facts: EpisodeFacts, judgement: Judgement, stamp_ns: int) -> tuple[Label, ...]:
    """Return a judgement as labels without revisions: its stages and deductions, then the score.

    Raises:
        RolloutError: the judgement does not fit the rubric; see :func:`rubric.tally`.
    """
    named = bool(judgement.stages or judgement.deductions)
    found = tally(judgement, rubric_of(facts) if named else None)

    label = partial(
        Label,
        facts.episode_id,
        0,
        stamp_ns=stamp_ns,
        operator_name=judgement.operator_name,
    )
    return (
        *(label(kind="stage", item=name, points=n) for name, n in found.stages.items()),
        *(label(kind="deduction", item=name, points=n) for name, n in found.deductions.items()),
        label(kind="score", points=found.total, success=judgement.success, note=judgement.note),
    )


def add_labels(folder: Path, labels: Sequence[Label], types: Typestore) -> tuple[Label, ...]:
    """Give a finished episode further labels; return them with their revisions.

    Raises:
        RolloutError: the episode is unfinished, or the disk refused; nothing has changed then.
    """
    if folder.name.endswith(RECORDING):
        raise RolloutError(
            f"{folder}: is unfinished: its recorder died, or another one has it; recover it first"
        )
    try:
        with locked(folder):
            numbered = number(labels, read_labels(folder))
            length = journal.append(folder, numbered)
            try:
                append_late(folder, LABEL_TOPIC, encode(numbered, types), types=types)
            except BaseException:
                journal.undo(folder, length)
                raise
    except OSError as error:
        raise RolloutError(f"{folder}: cannot be labelled: {error}; label it again") from error
    return numbered


def number(labels: Sequence[Label], given: Iterable[Label]) -> tuple[Label, ...]:
    """Return labels with the revisions that follow those ``given`` before."""
    first = 1 + max((label.revision for label in given), default=0)
    return tuple(replace(label, revision=first + i) for i, label in enumerate(labels))


def encode(labels: Iterable[Label], types: Typestore) -> tuple[bytes, ...]:
    """Serialise labels."""
    return tuple(encode_label(types, label) for label in labels)
