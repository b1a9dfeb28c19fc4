"""``cosmos export-hdf5`` and ``cosmos export-lerobot``: bags into other people's formats."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cosmos_policy_ros.cli.shared import add_root, open_store, say_count
from cosmos_policy_ros.core.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.core.untrusted import escaped
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.episodes.table import read_rows
from cosmos_policy_ros.interop.to_hdf5 import export_hdf5
from cosmos_policy_ros.interop.to_lerobot import LeRobotExport, LibraryError, load_library


def add_export_hdf5(parser: argparse.ArgumentParser) -> None:
    """Write episodes as HDF5 files in the layout of Cosmos Policy's released rollouts.

    One row per executed control step.
    """
    _add_selection(parser)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the files")
    parser.add_argument(
        "--images",
        choices=("jpeg", "raw", "video"),
        default="jpeg",
        help="JPEG data sets, what the released trainer reads as configured (jpeg); raw data sets; "
        "or MP4 files beside the HDF5 files",
    )
    parser.set_defaults(run=_export_hdf5)


def _export_hdf5(options: argparse.Namespace) -> int:
    folder = _new_folder(options.out)
    episodes, unreadable = _select(options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RolloutError(f"{folder}: cannot be made: {error}") from error
    number = 0  # of the next file: an episode that fails leaves no hole

    def export(episode: Episode) -> str:
        nonlocal number
        done = export_hdf5(episode, folder, number, options.images)
        number += 1
        return f"{done.path.name}, {done.steps} steps{_say_left_out(done.left_out, done.steps)}"

    return _export_each(episodes, folder, export, unreadable)


def add_export_lerobot(parser: argparse.ArgumentParser) -> None:
    """Write episodes as a LeRobot v3 data set, one frame per executed control step.

    Needs the extra 'lerobot'.
    """
    _add_selection(parser)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the data set")
    parser.add_argument("--repo-id", default="", help="its name on a hub (local/<folder>)")
    parser.add_argument(
        "--images",
        choices=("video", "image"),
        default="video",
        help="how the images are kept (video)",
    )
    parser.set_defaults(run=_export_lerobot)


def _export_lerobot(options: argparse.Namespace) -> int:
    load_library()  # before anything else: it is the likeliest thing to be missing
    folder = _new_folder(options.out)
    episodes, unreadable = _select(options)
    scored = all(episode.score is not None for episode in episodes)
    if not scored:
        print("not every episode has a score: the data set gets none", file=sys.stderr)
    if folder.is_dir():
        folder.rmdir()  # empty; the library makes it itself
    with _begin_lerobot(folder, episodes, options, scored) as data:

        def export(episode: Episode) -> str:
            added = data.add(episode)
            left_out = _say_left_out(added.left_out, added.frames)
            return f"episode {added.index}, {added.frames} frames{left_out}"

        return _export_each(episodes, folder, export, unreadable)


def _begin_lerobot(
    folder: Path, episodes: Sequence[Episode], options: argparse.Namespace, scored: bool
) -> LeRobotExport:
    """Make the data set after the first episode that can be looked at."""
    for episode in episodes:
        try:
            return LeRobotExport(
                folder, episode, repo_id=options.repo_id, images=options.images, scored=scored
            )
        except LibraryError:
            raise
        except CosmosPolicyError as error:
            last = error
    raise RolloutError(f"no episode can be exported; the last: {last}")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    add_root(parser)
    parser.add_argument(
        "ids", nargs="*", metavar="ID", help="an id, or its number alone (every GO episode)"
    )
    parser.add_argument("--task", help="of this task only")
    parser.add_argument("--no-go", action="store_true", help="those with verdict NO-GO, too")
    parser.add_argument(
        "--unscored",
        action="store_true",
        help="also episodes without a score, such as demonstrations; without it they are left out",
    )


def _select(options: argparse.Namespace) -> tuple[list[Episode], int]:
    """Choose the episodes, and say on stderr what was left out.

    Returns:
        The wanted episodes, oldest first, and how many could not be read.
    """
    store = open_store(options.root)
    unreadable, seen = 0, set[str]()
    if options.ids and options.task:
        raise RolloutError("name the episodes, or choose them by --task, not both")
    found = []
    for name in options.ids:
        episode = read_episode(store.find(name))
        if episode.discarded:
            raise RolloutError(f"{episode.id}: was discarded: {episode.discard_reason}")
        found.append(episode)
    for row in read_rows(store, task=options.task) if not options.ids else ():
        if row.episode is None:
            _say(f"{row.id}: {row.trouble}")
            unreadable += row.wrong
        elif row.episode.id in seen:
            _say(f"{row.id}: is a copy of an episode that is exported")
        elif not (row.episode.quality.go or options.no_go):
            _say(f"{row.id}: {row.episode.quality.text}")
        else:
            seen.add(row.episode.id)
            found.append(row.episode)
    unscored = [episode.id for episode in found if episode.score is None]
    if unscored and not options.unscored:
        _say(
            f"{len(unscored)} without a score, such as {unscored[0]}; a trainer would take them "
            f"for failures: score them, or export demonstrations with --unscored"
        )
        found = [episode for episode in found if episode.score is not None]
    if not found:
        raise RolloutError(f"{store.root}: no such episode among {len(store.episodes())}")
    return found, unreadable


def _say(text: str) -> None:
    print(f"left out: {escaped(text)}", file=sys.stderr, flush=True)


def _new_folder(path: Path) -> Path:
    """Return a folder to export into, which must be empty or not there yet; nothing is made."""
    path = path.expanduser()
    if path.exists() and (not path.is_dir() or next(path.iterdir(), None) is not None):
        raise RolloutError(f"{path}: is there and not empty; give a new folder with --out")
    return path


def _say_left_out(left_out: Sequence[str], steps: int) -> str:
    """Return how many steps are missing and why, as the end of a line; "" for none."""
    if not left_out:
        return ""
    return f"; {len(left_out)} of {steps + len(left_out)} steps left out, the first: {left_out[0]}"


def _export_each(
    episodes: Sequence[Episode],
    folder: Path,
    export: Callable[[Episode], str],
    unreadable: int,
) -> int:
    """Export one episode after the other and say what became of each; return the exit code.

    One that fails is passed over, as those were that are ``unreadable``; a missing library ends it.
    """
    failed = 0
    for episode in episodes:
        try:
            print(f"{episode.id}: {export(episode)}", flush=True)
        except LibraryError:
            raise
        except CosmosPolicyError as error:
            print(f"error: {escaped(str(error))}", file=sys.stderr, flush=True)
            failed += 1
    print(
        f"{say_count(len(episodes) - failed, 'episode')} exported into {folder}"
        f"{f', {failed} failed' if failed else ''}"
    )
    return int(failed + unreadable > 0)
