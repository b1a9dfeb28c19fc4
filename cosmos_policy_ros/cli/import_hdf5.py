"""``cosmos import``: episodes of ALOHA, ACT and Cosmos HDF5 files into bags."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.cli.shared import add_root, say_count, say_seconds
from cosmos_policy_ros.core.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.hdf5_layout import SUFFIXES
from cosmos_policy_ros.interop.to_bag import Importer, ImportOptions, KnownSourceError


def add_import(parser: argparse.ArgumentParser) -> None:
    """Make bags of ALOHA, ACT and Cosmos Policy HDF5 episodes.

    What is wrong with a file is said and the others go on; then, and for a file that was imported
    before, the exit code is 1.
    """
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="SOURCE", help="HDF5 files, or folders of them"
    )
    add_root(parser)
    parser.add_argument(
        "--rig", help="a rig file's name or path (interbotix_1; sim for simulated data)"
    )
    parser.add_argument(
        "--task", help="a task file's name or path (the one with the episode's prompt)"
    )
    parser.add_argument(
        "--prompt", help="the task's text (the file's, else after the folder's name)"
    )
    parser.add_argument(
        "--rate",
        type=float,
        help="steps per second of the source, 50 for ACT (what the file tells); at 50 every second "
        "step is taken",
    )
    parser.add_argument(
        "--videos-as",
        choices=("jpeg", "raw"),
        default="jpeg",
        help="what the frames of videos become: JPEG of quality 95, or raw at ten times the size",
    )
    parser.add_argument(
        "--again", action="store_true", help="also take files that the store has already"
    )
    parser.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> int:
    files = find_files(options.sources)
    types = load_types(package_share() / "msg")
    store = EpisodeStore(options.root.expanduser(), types)
    names = ("rig", "task", "prompt", "rate", "videos_as", "again")
    choices = ImportOptions(**{name: getattr(options, name) for name in names})
    importer = Importer(store, types, choices)
    imported = known = failed = 0
    for file in files:
        try:
            done = importer.take(file)
            seconds = say_seconds(done.seconds)
            score = "" if done.score is None else f", {done.score:g} of 100"
            said = f"{done.steps} steps, {seconds}{score}, {done.quality.text}"
            print(f"{file}: {done.path.name}, {said}", flush=True)
            imported += 1
        except KnownSourceError as error:
            print(f"refused: {error}", file=sys.stderr, flush=True)
            known += 1
        except CosmosPolicyError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed += 1
    print(
        f"{say_count(imported, 'episode')} imported into {store.root}"
        f"{f', {known} there already' if known else ''}{f', {failed} failed' if failed else ''}"
    )
    return int(known + failed > 0)


def find_files(sources: Iterable[Path]) -> list[Path]:
    """Return the HDF5 files named, and those below the folders named, each once.

    Raises:
        RolloutError: a path is not there, or a folder has none below it.
    """
    found: dict[Path, None] = {}
    for source in sources:
        source = source.expanduser()
        if source.is_dir():
            below = [p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
            if not below:
                raise RolloutError(f"{source}: no {', '.join(SUFFIXES)} file below it")
            found |= dict.fromkeys(sorted(below, key=_natural))
        elif source.is_file():
            found[source] = None
        else:
            raise RolloutError(f"{source}: no such file or folder")
    return list(found)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort episode_2 before episode_10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d+)", str(path))
    ]
