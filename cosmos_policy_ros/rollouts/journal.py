"""The labels of an episode as lines of text beside its bag: appended, never rewritten.

A line is on the disk before anybody is told that the label was taken. Labels are messages in the
bag as well; whoever reads an episode takes both together, so that either alone is enough.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts.durable import sync
from cosmos_policy_ros.rollouts.messages import Label

JOURNAL = "labels.jsonl"
_TIME = "time"  # of the operator's wall clock, for people; the label's own stamp counts


def append(folder: Path, labels: Sequence[Label]) -> int:
    """Add labels; return the length that the journal had, by which :func:`undo` takes them back.

    A last line without an end, which a power cut may leave, is closed first.

    Raises:
        OSError: the disk refused; the journal is as before.
    """
    path = folder / JOURNAL
    new = not path.exists()
    now = datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
    lines = [json.dumps({_TIME: now, **asdict(label)}, ensure_ascii=False) for label in labels]
    with path.open("ab+") as file:
        before = file.tell()
        torn = before and os.pread(file.fileno(), 1, before - 1) != b"\n"
        try:
            file.write((b"\n" if torn else b"") + "".join(f"{x}\n" for x in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise
    if new:
        sync(folder)
    return before


def undo(folder: Path, length: int) -> None:
    """Take back what was appended since the journal was ``length`` bytes long."""
    path = folder / JOURNAL
    os.truncate(path, length)
    sync(path)


def read(folder: Path) -> tuple[tuple[Label, ...], tuple[str, ...]]:
    """Return the labels of a journal, and what is wrong with the lines that are none.

    Raises:
        RolloutError: the file is there and cannot be read.
    """
    path = folder / JOURNAL
    try:
        content = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return (), ()
    except OSError as error:
        raise RolloutError(f"{path}: cannot be read: {error}") from error
    labels, problems = [], []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            labels.append(_parse(line))
        except (ValueError, TypeError, KeyError, RolloutError) as error:
            problems.append(f"{path}: line {number} is no label and is left out: {error}")
    return tuple(labels), tuple(problems)


def _parse(line: str) -> Label:
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise TypeError("it is no mapping")
    return Label(**{f.name: entry[f.name] for f in fields(Label)})
