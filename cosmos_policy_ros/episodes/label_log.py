"""The labels of an episode as lines of text beside its bag: appended, never rewritten.

A line is on the disk before anybody is told that the label was taken. Labels are messages in the
bag as well; whoever reads an episode takes both together, so that either alone is enough.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path

from cosmos_policy_ros.bags.messages import Label, check_stamp
from cosmos_policy_ros.core.config import from_mapping
from cosmos_policy_ros.core.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.core.files import sync
from cosmos_policy_ros.core.untrusted import UnreadableError, parse_json, read_file, reading, shown

LABEL_LOG = "labels.jsonl"
MAX_BYTES = 16 << 20
"""Of a label log; a label has some 300 bytes, one of the longest texts 200 kB."""
MAX_PROBLEMS = 100
"""Lines of a label log that are told as wrong, one by one."""
_TIME = "time"  # of the operator's wall clock, for people; the label's own stamp counts


def append(folder: Path, labels: Sequence[Label]) -> int:
    """Add labels; return the length that the label log had, by which :func:`undo` takes them back.

    A last line without an end, which a power cut may leave, is closed first.

    Raises:
        OSError: the disk refused; the label log is as before.
    """
    path = folder / LABEL_LOG
    new = not path.exists()
    now = datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
    # Escaped, since not everybody who reads lines ends them at "\\n" alone.
    lines = [json.dumps({_TIME: now, **asdict(label)}) for label in labels]
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
    return before


def undo(folder: Path, length: int) -> None:
    """Take back what was appended since the label log was ``length`` bytes long."""
    path = folder / LABEL_LOG
    os.truncate(path, length)
    sync(path)


def read(folder: Path) -> tuple[tuple[Label, ...], tuple[str, ...]]:
    """Return the labels of a label log, and what is wrong with the lines that are none.

    Raises:
        RolloutError: the file is there and cannot be read.
    """
    path = folder / LABEL_LOG
    if not os.path.lexists(path):
        return (), ()
    with reading(path, "a label log of labels", RolloutError, "the labels in the bag are whole"):
        content = read_file(path, MAX_BYTES)
    labels, problems = [], []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
        if not content:
            break
        where = f"{path}: line {number} is no label and is left out"
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
    for field in fields(Label):
        if field.name not in entry:
            raise UnreadableError(f"it has no {field.name}")
    try:
        label = from_mapping(Label, {f.name: entry[f.name] for f in fields(Label)}, "it")
        check_stamp(label.stamp_ns, "it")
    except CosmosPolicyError as error:
        raise UnreadableError(shown(str(error), 200)) from error
    return label
