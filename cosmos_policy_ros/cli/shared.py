"""What the command lines of this room share: how they start, end, and say times and sizes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import argcomplete

from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.bags.writer import DISCARDED, RECORDING
from cosmos_policy_ros.core.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.core.files import FolderLock
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.core.units import NS_PER_S
from cosmos_policy_ros.episodes.episode import Episode, bare_id, id_number, read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.to_lerobot import LibraryError

INTERRUPTED, PIPE_CLOSED = 130, 141  # as a shell reports SIGINT and SIGPIPE
_ID_TIME = "%Y%m%d-%H%M%S"
_ID_TIME_CHARACTERS = 15


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, or answer a shell that asks how the line may go on."""
    argcomplete.autocomplete(parser)
    return parser.parse_args(arguments)


def run(
    command: Callable[[], int], interrupted: str = "interrupted: nothing further was written"
) -> int:
    """Run a command and return its exit code; no traceback for what an operator can meet."""
    try:
        code = command()
        sys.stdout.flush()
    except CosmosPolicyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes once more at its end, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code


def add_root(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the episodes are."""
    parser.add_argument(
        "--root", type=Path, default=Path("rollouts"), help="folder of the episodes (rollouts)"
    )


def open_store(root: Path) -> EpisodeStore:
    """Open a folder of episodes that is there.

    Raises:
        RolloutError: it is not; a wrong path would otherwise become a new, empty folder.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise RolloutError(f"{root}: is no folder; give the folder of the episodes with --root")
    return EpisodeStore(root, load_types(package_share() / "msg"))


def find(store: EpisodeStore, name: str) -> Path:
    """Return the folder of an episode by its id or its number alone; "" is the newest.

    Raises:
        RolloutError: no such episode, with the nearest id.
    """
    if name.isdecimal():
        for known, path in store.episodes().items():
            if id_number(known) == int(name):
                return path
    return store.find(name)


def begun(episode: str) -> datetime | None:
    """Return when an episode began by the operator's wall clock, from its id or folder name."""
    try:
        return datetime.strptime(bare_id(episode)[:_ID_TIME_CHARACTERS], _ID_TIME)
    except ValueError:
        return None


def say_seconds(seconds: float) -> str:
    """Return a duration for people, such as "44.0 s" or "3 min 12 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def say_bytes(count: int) -> str:
    """Return a size for people, such as "3.4 MB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def say_count(count: int, thing: str) -> str:
    """Return a number of things for people, such as "1 episode" or "3 episodes"."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def folder_bytes(folder: Path) -> int:
    """Return the size of everything in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# The episodes of a folder as rows of a table; one that cannot be read is a row that says why.


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
        go: only those whose quality verdict is GO.
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
        if self.task and row.episode.metadata.task != self.task:
            return False
        if self.go and not row.episode.quality.go:
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
        return Row(name, path, trouble="its recorder has it, or died; see cosmos recover")
    try:
        return Row(name, path, read_episode(path))
    except RolloutError as error:
        return Row(name, path, trouble=" ".join(str(error).split()))


def _cells(row: Row, episode: Episode) -> tuple[str, ...]:
    score = episode.score
    return (
        row.id,
        episode.metadata.task,
        episode.outcome or NOTHING,
        f"{score.points:g}" if score else NOTHING,
        NOTHING if score is None else "yes" if score.success else "no",
        "GO" if episode.quality.go else "NO-GO",
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
        FolderLock(folder).release()
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


# Which episodes a command takes: those named, or all that are good enough.


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`select` reads."""
    add_root(parser)
    parser.add_argument(
        "ids", nargs="*", metavar="ID", help="an id, or its number alone (every GO episode)"
    )
    parser.add_argument("--task", default="", help="of this task only")
    parser.add_argument("--no-go", action="store_true", help="those with verdict NO-GO, too")
    parser.add_argument(
        "--unscored",
        action="store_true",
        help="also episodes without a score, such as demonstrations; without it they are left out",
    )


def select(store: EpisodeStore, options: argparse.Namespace) -> list[Episode]:
    """Return the wanted episodes, oldest first, and say on stderr what was left out.

    Raises:
        RolloutError: one that was named is not there, unreadable or discarded, or none is left.
    """
    if options.ids and options.task:
        raise RolloutError("name the episodes, or choose them by --task, not both")
    found = _named(store, options.ids) if options.ids else _good(store, options)
    unscored = [episode.id for episode in found if episode.score is None]
    if unscored and not options.unscored:
        _tell(
            f"{len(unscored)} without a score, such as {unscored[0]}; a trainer would take them "
            f"for failures: score them, or export demonstrations with --unscored"
        )
        found = [episode for episode in found if episode.score is not None]
    if not found:
        raise RolloutError(f"{store.root}: no such episode among {len(store.episodes())}")
    return found


def _named(store: EpisodeStore, names: Iterable[str]) -> list[Episode]:
    found = [read_episode(find(store, name)) for name in names]
    for episode in found:
        if episode.discarded:
            raise RolloutError(f"{episode.id}: was discarded: {episode.discard_reason}")
    return found


def _good(store: EpisodeStore, options: argparse.Namespace) -> list[Episode]:
    found = []
    for row in read_rows(store, Filter(task=options.task)):
        if row.episode is None:
            _tell(f"{row.id}: {row.trouble}")
        elif not (row.episode.quality.go or options.no_go):
            _tell(f"{row.id}: {row.episode.quality.text}")
        else:
            found.append(row.episode)
    return found


def _tell(text: str) -> None:
    print(f"left out: {text}", file=sys.stderr, flush=True)


def export_each(episodes: Iterable[Episode], folder: Path, export: Callable[[Episode], str]) -> int:
    """Export one episode after the other and say what became of each; return the exit code.

    Args:
        episodes: to export.
        folder: where to, for the last line.
        export: returns what to say of an episode that was exported; one that raises
            CosmosPolicyError is told and passed over, but for :class:`LibraryError`, which ends it.
    """
    done = failed = 0
    for episode in episodes:
        try:
            said = export(episode)
        except LibraryError:
            raise
        except CosmosPolicyError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        print(f"{episode.id}: {said}", flush=True)
        done += 1
    print(
        f"{say_count(done, 'episode')} exported into {folder}"
        f"{f', {failed} failed' if failed else ''}"
    )
    return int(failed > 0)


def new_folder(path: Path) -> Path:
    """Return a folder to export into, which must be empty or not there yet; nothing is made.

    Raises:
        RolloutError: it holds something, or is a file.
    """
    path = path.expanduser()
    if path.exists() and (not path.is_dir() or next(path.iterdir(), None) is not None):
        raise RolloutError(f"{path}: is there and not empty; give a new folder with --out")
    return path


def say_left_out(left_out: tuple[str, ...], steps: int) -> str:
    """Return how many steps are missing and why, as the end of a line; "" for none."""
    if not left_out:
        return ""
    return f"; {len(left_out)} of {steps + len(left_out)} steps left out, the first: {left_out[0]}"
