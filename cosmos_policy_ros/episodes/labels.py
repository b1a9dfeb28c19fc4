"""What an operator says of an episode, put where it cannot be lost: the bag and the label log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.mcap_file import McapFile, Topic
from cosmos_policy_ros.bags.messages import EpisodeMetadata, Label, encode_label
from cosmos_policy_ros.bags.writer import (
    LABEL_TOPIC,
    RECORDING,
    describe_bag,
    end_ns,
    read_metadata,
    with_file,
    write_metadata,
)
from cosmos_policy_ros.core.config import did_you_mean, parse_config
from cosmos_policy_ros.core.errors import ConfigError, RolloutError
from cosmos_policy_ros.core.files import locked, rename, sync
from cosmos_policy_ros.core.task import FULL_SCORE, Rubric, Task
from cosmos_policy_ros.episodes import label_log
from cosmos_policy_ros.episodes.episode import read_labels

# A label that comes after the bag was closed, added to the bag as one more MCAP file.


def append_late(folder: Path, topic: Topic, messages: Sequence[bytes], *, types: Typestore) -> Path:
    """Add messages to a finished bag; return the new file, ``<episode_id>_<n>.mcap``.

    Nothing that is there is rewritten but ``metadata.yaml``, and that one atomically. Their receive
    stamp is the bag's last one, so that the bag still spans its trial and ``ros2 bag play``
    does not wait until the day of the label; when it was given stands in each header.

    The caller holds the folder's lock (``durable.locked``).

    Raises:
        RolloutError: the bag is not finished, or the disk refused; the bag is then as before.
    """
    information = read_metadata(folder)
    target = _next_file(folder, information["relative_file_paths"])
    draft = folder / f".{target.name}"
    try:
        addition = _write(draft, target.name, topic, end_ns(information), messages, types)
        rename(draft, target)
        write_metadata(folder, with_file(information, addition))
    except OSError as error:
        target.unlink(missing_ok=True)
        raise RolloutError(
            f"{folder}: the label cannot be added: {error}; the bag is as before, label it again"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return target


def _next_file(folder: Path, listed: list[str]) -> Path:
    """Return the next free ``<episode_id>_<n>.mcap``, after the pattern of the bag's first file."""
    stem = Path(listed[0]).stem.rpartition("_")[0]
    candidates = (folder / f"{stem}_{number}.mcap" for number in count(1))
    return next(path for path in candidates if not path.exists())


def _write(
    path: Path,
    name: str,
    topic: Topic,
    stamp_ns: int,
    messages: Sequence[bytes],
    types: Typestore,
) -> dict[str, Any]:
    """Write a file to the disk and return the metadata it has as ``name``."""
    path.unlink(missing_ok=True)  # of a process that was killed in here
    file = McapFile(path, [topic], types)
    try:
        for cdr in messages:
            file.write(topic.name, stamp_ns, cdr)
        information = describe_bag(replace(file.contents, name=name), {})
        file.close(information)
    finally:
        file.abort()
    sync(path)
    return information


# From what an operator saw to a score: a total, or stages and deductions by the task's rubric.


TOLERANCE = 1e-3  # points; a total that came through a float32


@dataclass(frozen=True)
class OperatorScore:
    """What an operator says of a trial.

    Attributes:
        score: 0 to 100; None to have it computed from stages and deductions.
        success: whether the task was done.
        stages: names of the stages reached.
        deductions: names of the deductions charged.
        operator_name: who says so.
        note: free text.
    """

    score: float | None = None
    success: bool = False
    stages: tuple[str, ...] = ()
    deductions: tuple[str, ...] = ()
    operator_name: str = ""
    note: str = ""


@dataclass(frozen=True)
class RubricScore:
    """A score in points: the total, and those of each stage and deduction named in it."""

    total: float
    stages: Mapping[str, int]
    deductions: Mapping[str, int]


def tally(operator_score: OperatorScore, rubric: Rubric | None) -> RubricScore:
    """Add a score up.

    Raises:
        RolloutError: neither a total nor a stage, a total outside 0 to 100, a stage or deduction
            that the rubric does not have or that is named twice, or a total that is not their sum.
    """
    given = operator_score.score
    if given is not None and not (math.isfinite(given) and 0 <= given <= FULL_SCORE):
        raise RolloutError(
            f"score: {given} must be a number from 0 to {FULL_SCORE}; nothing was written"
        )
    if not operator_score.stages and not operator_score.deductions:
        if given is None:
            raise RolloutError(
                f"give a score from 0 to {FULL_SCORE}, or the stages that were reached"
            )
        return RubricScore(given, {}, {})
    if rubric is None:
        raise RolloutError("the episode's task has no rubric; give a score alone")
    stages = _points("stage", operator_score.stages, {s.name: s.points for s in rubric.stages})
    deductions = _points(
        "deduction", operator_score.deductions, {d.name: d.points for d in rubric.deductions}
    )
    total = max(0, sum(stages.values()) - sum(deductions.values()))
    if given is not None and abs(given - total) > TOLERANCE:
        raise RolloutError(
            f"score: {given:g} is not the {total} that the stages less the deductions make; "
            f"correct one of them, or leave the score out; nothing was written"
        )
    return RubricScore(total, stages, deductions)


def _points(kind: str, names: Sequence[str], known: Mapping[str, int]) -> dict[str, int]:
    points: dict[str, int] = {}
    for name in names:
        if name not in known:
            raise RolloutError(f"{kind} '{name}' is not in the rubric{_hint(name, known)}")
        if name in points:
            raise RolloutError(f"{kind} '{name}' is named twice; name it once")
        points[name] = known[name]
    return points


def _hint(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known) or "; it has none"


def rubric_of(metadata: EpisodeMetadata) -> Rubric | None:
    """Return the rubric that was in force when the episode was recorded, if its task had one.

    Raises:
        RolloutError: the task's text in the episode is none.
    """
    if not metadata.task_yaml:
        return None
    try:
        return parse_config(Task, metadata.task_yaml, f"the task of '{metadata.episode_id}'").rubric
    except ConfigError as error:
        raise RolloutError(f"{error}; give a score alone") from error


def labels_of(
    metadata: EpisodeMetadata, operator_score: OperatorScore, stamp_ns: int
) -> tuple[Label, ...]:
    """Return a score as labels without revisions: its stages and deductions, then the score.

    Raises:
        RolloutError: the score does not fit the rubric; see :func:`rubric.tally`.
    """
    named = bool(operator_score.stages or operator_score.deductions)
    found = tally(operator_score, rubric_of(metadata) if named else None)

    label = partial(
        Label,
        metadata.episode_id,
        0,
        stamp_ns=stamp_ns,
        operator_name=operator_score.operator_name,
    )
    return (
        *(label(kind="stage", item=name, points=n) for name, n in found.stages.items()),
        *(label(kind="deduction", item=name, points=n) for name, n in found.deductions.items()),
        label(
            kind="score",
            points=found.total,
            success=operator_score.success,
            note=operator_score.note,
        ),
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
            length = label_log.append(folder, numbered)
            try:
                append_late(folder, LABEL_TOPIC, encode(numbered, types), types=types)
            except BaseException:
                label_log.undo(folder, length)
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
