"""Which episodes a command takes: those named, or all that are good enough."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from cosmos_policy_ros.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.rollouts.commands.shared import add_root, find, say_count
from cosmos_policy_ros.rollouts.commands.table import Filter, read_rows
from cosmos_policy_ros.rollouts.episode import Episode, read_episode
from cosmos_policy_ros.rollouts.exchange.to_lerobot import LibraryError
from cosmos_policy_ros.rollouts.store import EpisodeStore


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
        elif not (row.episode.verdict.go or options.no_go):
            _tell(f"{row.id}: {row.episode.verdict.text}")
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
