"""The episodes of a folder as rows of a table; one that cannot be read is a row that says why."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts.bag_writer import DISCARDED, RECORDING
from cosmos_policy_ros.rollouts.commands.shared import begun
from cosmos_policy_ros.rollouts.durable import Hold
from cosmos_policy_ros.rollouts.episode import Episode, read_episode
from cosmos_policy_ros.rollouts.store import EpisodeStore

HEAD = (
    "episode",
    "task",
    "outcome",
    "score",
    "success",
    "integrity",
    "seconds",
    "messages",
    "state",
)
RIGHT_ALIGNED = frozenset(("score", "seconds", "messages"))
NOTHING = "-"
# s; a recorder makes its folder and then takes hold of it: whoever tried the hold in between, only
# to look, would have it refused.
JUST_BEGUN = 2.0


@dataclass(frozen=True)
class Row:
    """One episode of the table.

    Attributes:
        id: its id.
        path: its folder.
        episode: what was read of it; None when nothing could be.
        trouble: why not.
    """

    id: str
    path: Path
    episode: Episode | None = None
    trouble: str = ""

    @property
    def state(self) -> str:
        """What is special about it, in a word; empty for an ordinary finished one."""
        if self.path.name.endswith(RECORDING):
            return "recording" if _is_held(self.path) else "unfinished"
        if self.path.name.endswith(DISCARDED):
            return "discarded"
        if self.episode is None:
            return "unreadable"
        return "recovered" if self.episode.recovered else ""


@dataclass(frozen=True)
class Filter:
    """Which episodes are wanted.

    Attributes:
        task: of this task only; "" for any.
        since: begun at this time of the operator's wall clock or later.
        scored: True or False for those with or without a score; None for both.
        go: only those whose integrity verdict is GO.
        discarded: discarded ones too.
    """

    task: str = ""
    since: datetime | None = None
    scored: bool | None = None
    go: bool = False
    discarded: bool = False

    def takes(self, row: Row) -> bool:
        """Return whether a row is wanted, as far as can be told of an unreadable one."""
        if row.path.name.endswith(DISCARDED) and not self.discarded:
            return False
        start = begun(row.id)
        if self.since is not None and start is not None and start < self.since:
            return False
        if row.episode is None:
            return not self.task or f"_{self.task}_" in row.id
        if self.task and row.episode.facts.task != self.task:
            return False
        if self.go and not row.episode.verdict.go:
            return False
        return self.scored is None or self.scored == (row.episode.score is not None)


def read_rows(store: EpisodeStore, wanted: Filter) -> tuple[Row, ...]:
    """Return the wanted episodes, oldest first.

    Raises:
        RolloutError: the folder cannot be listed.
    """
    rows = (_read_row(name, path) for name, path in store.episodes().items())
    return tuple(row for row in rows if wanted.takes(row))


def format_table(rows: Iterable[Row]) -> str:
    """Return the rows under a head, one line each."""
    rows = tuple(rows)
    cells = {row.id: _cells(row, row.episode) for row in rows if row.episode is not None}
    lines = [HEAD, *cells.values()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    widths[0] = max(len(row.id) for row in rows) if rows else widths[0]
    return "\n".join(
        [_line(HEAD, widths)]
        + [
            _line(cells[row.id], widths)
            if row.id in cells
            else f"{row.id:<{widths[0]}}  {row.state}: {row.trouble}"
            for row in rows
        ]
    )


def _read_row(name: str, path: Path) -> Row:
    if path.name.endswith(RECORDING):
        return Row(name, path, trouble="its recorder has it, or died; see scripts/recover")
    try:
        return Row(name, path, read_episode(path))
    except RolloutError as error:
        return Row(name, path, trouble=" ".join(str(error).split()))


def _cells(row: Row, episode: Episode) -> tuple[str, ...]:
    score = episode.score
    return (
        row.id,
        episode.facts.task,
        episode.outcome or NOTHING,
        f"{score.points:g}" if score else NOTHING,
        NOTHING if score is None else "yes" if score.success else "no",
        "GO" if episode.verdict.go else "NO-GO",
        f"{episode.duration_ns / NS_PER_S:.1f}",
        str(sum(topic.count for topic in episode.topics.values())),
        row.state or NOTHING,
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        f"{cell:>{width}}" if head in RIGHT_ALIGNED else f"{cell:<{width}}"
        for head, cell, width in zip(HEAD, cells, widths, strict=True)
    ]
    return "  ".join(padded).rstrip()


def _is_held(folder: Path) -> bool:
    """Tell whether a living recorder has it."""
    try:
        if time.time() - folder.stat().st_mtime < JUST_BEGUN:
            return True
        Hold(folder).release()
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
