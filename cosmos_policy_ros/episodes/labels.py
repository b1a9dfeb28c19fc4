"""What an operator says of an episode: points by the task's rubric, labels, and their log.

A label is a message in the bag and a line of the label log beside it. Readers merge both, so that
either alone is enough.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.messages import (
    EpisodeMetadata,
    Label,
    LabelKind,
    check_stamp,
    encode_label,
)
from cosmos_policy_ros.bags.writer import LABEL_TOPIC, BagWriter
from cosmos_policy_ros.core.config import did_you_mean, from_mapping, parse_config
from cosmos_policy_ros.core.errors import ConfigError, CosmosPolicyError, RolloutError
from cosmos_policy_ros.core.files import sync
from cosmos_policy_ros.core.task import FULL_SCORE, Deduction, Rubric, Stage, Task
from cosmos_policy_ros.core.untrusted import UnreadableError, parse_json, read_file, reading, shown

LABEL_LOG = "labels.jsonl"
MAX_BYTES = 16 << 20  # of a label log; a label has some 300 bytes, one of the longest texts 200 kB
MAX_PROBLEMS = 100  # lines of a label log that are reported as wrong, one by one
TOLERANCE = 1e-3  # points; a total that came through a float32


@dataclass(frozen=True)
class OperatorScore:
    """An operator's score of a trial.

    Attributes:
        score: 0 to 100; None to have it computed from stages and deductions.
        success: whether the task was done.
        stages: names of the stages reached.
        deductions: names of the deductions charged.
        operator_name: who scores.
        note: free text.
    """

    score: float | None = None
    success: bool = False
    stages: tuple[str, ...] = ()
    deductions: tuple[str, ...] = ()
    operator_name: str = ""
    note: str = ""


class RubricScore(NamedTuple):
    """A score in points: the total, and the kind, name and points of each item named in it."""

    total: float
    items: tuple[tuple[LabelKind, str, int], ...]


def tally(operator_score: OperatorScore, rubric: Rubric | None) -> RubricScore:
    """Add a score up. Raises RolloutError when it does not fit the rubric."""
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
        return RubricScore(given, ())
    if rubric is None:
        raise RolloutError("the episode's task has no rubric; give a score alone")
    items: list[tuple[LabelKind, str, int]] = []
    kinds: tuple[tuple[LabelKind, tuple[str, ...], Sequence[Stage | Deduction]], ...] = (
        ("stage", operator_score.stages, rubric.stages),
        ("deduction", operator_score.deductions, rubric.deductions),
    )
    for kind, names, known in kinds:
        points = {each.name: each.points for each in known}
        for name in names:
            if name not in points:
                hint = did_you_mean(name, points) or "; it has none"
                raise RolloutError(f"{kind} '{name}' is not in the rubric{hint}")
            if names.count(name) > 1:
                raise RolloutError(f"{kind} '{name}' is named twice; name it once")
            items.append((kind, name, points[name]))
    total = max(0, sum(-n if kind == "deduction" else n for kind, _, n in items))
    if given is not None and abs(given - total) > TOLERANCE:
        raise RolloutError(
            f"score: {given:g} is not the {total} that the stages less the deductions make; "
            f"correct one of them, or leave the score out; nothing was written"
        )
    return RubricScore(total, tuple(items))


def rubric_of(metadata: EpisodeMetadata) -> Rubric | None:
    """Return the rubric that was in force when the episode was recorded, if its task had one."""
    if not metadata.task_yaml:
        return None
    try:
        return parse_config(Task, metadata.task_yaml, f"the task of '{metadata.episode_id}'").rubric
    except ConfigError as error:
        raise RolloutError(f"{error}; give a score alone") from error


def labels_of(
    metadata: EpisodeMetadata, operator_score: OperatorScore, stamp_ns: int
) -> tuple[Label, ...]:
    """Return a score as labels without revisions: its stages and deductions, then the score."""
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
        *(label(kind=kind, item=name, points=points) for kind, name, points in found.items),
        label(
            kind="score",
            points=found.total,
            success=operator_score.success,
            note=operator_score.note,
        ),
    )


def number(labels: Iterable[Label], given: Iterable[Label] = ()) -> tuple[Label, ...]:
    """Return labels with the revisions that follow those ``given`` before."""
    first = 1 + max((label.revision for label in given), default=0)
    return tuple(replace(label, revision=first + i) for i, label in enumerate(labels))


def write_labels(writer: BagWriter, labels: Iterable[Label], types: Typestore) -> None:
    """Add numbered labels to the log and to an open bag: to both or to neither."""
    try:
        with logged(writer.path, labels):
            for label in labels:
                writer.write(LABEL_TOPIC.name, label.stamp_ns, encode_label(types, label))
            writer.flush()
    except OSError as error:
        raise RolloutError(f"{writer.path}: cannot be labelled: {error}") from error


@contextmanager
def logged(folder: Path, labels: Iterable[Label]) -> Iterator[None]:
    """Append labels to the log, and take them back if the block, which writes the bag, raises.

    A last line without an end, which a power cut may leave, is closed first. When the disk refuses,
    the log is as before, and the error an OSError.
    """
    path = folder / LABEL_LOG
    new = not path.exists()
    # For people; the label's own stamp counts.
    now = datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
    # Escaped, since some readers end lines at more than "\\n".
    lines = [json.dumps({"time": now, **asdict(label)}) for label in labels]
    with path.open("ab+") as file:
        before = file.tell()
        torn = before and os.pread(file.fileno(), 1, before - 1) != b"\n"
        content = (b"\n" if torn else b"") + "".join(f"{x}\n" for x in lines).encode()
        if before + len(content) > MAX_BYTES:
            raise OSError(errno.EFBIG, f"it would have more than {MAX_BYTES} bytes")
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise
    if new:
        sync(folder)
    try:
        yield
    except BaseException:
        os.truncate(path, before)
        sync(path)
        raise


def read_log(folder: Path) -> tuple[tuple[Label, ...], tuple[str, ...]]:
    """Return the labels of a label log, and what is wrong with the lines that are none."""
    path = folder / LABEL_LOG
    if not os.path.lexists(path):
        return (), ()
    with reading(path, "a label log of labels", RolloutError, "the labels in the bag are whole"):
        content = read_file(path, MAX_BYTES)
    labels, problems = [], []
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    for row, line in enumerate(lines, 1):
        where = f"{path}: line {row} is no label and is left out"
        try:
            with reading(where, "a label", RolloutError):
                labels.append(_parse(line))
        except RolloutError as error:
            problems.append(str(error))
    if len(problems) > MAX_PROBLEMS:
        more = len(problems) - MAX_PROBLEMS
        problems[MAX_PROBLEMS:] = [f"{path}: {more} further lines are no labels"]
    return tuple(labels), tuple(problems)


def _parse(line: bytes) -> Label:
    entry = parse_json(line.decode(errors="replace"))
    if not isinstance(entry, dict):
        raise UnreadableError("it is no mapping")
    names = [field.name for field in fields(Label)]
    for name in names:
        if name not in entry:
            raise UnreadableError(f"it has no {name}")
    try:
        label = from_mapping(Label, {name: entry[name] for name in names}, "it")
        check_stamp(label.stamp_ns, "it")
    except CosmosPolicyError as error:
        raise UnreadableError(shown(str(error), 200)) from error
    return label
