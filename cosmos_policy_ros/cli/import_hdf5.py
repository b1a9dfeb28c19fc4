"""``cosmos import``: episodes of ALOHA, ACT and Cosmos HDF5 files into bags."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.cli.shared import add_root, say_count, say_seconds
from cosmos_policy_ros.core.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.core.untrusted import escaped
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.camera_names import parse_map
from cosmos_policy_ros.interop.hdf5_layout import SUFFIXES
from cosmos_policy_ros.interop.to_bag import Imported, Importer, ImportOptions, KnownSourceError


def add_import(parser: argparse.ArgumentParser) -> None:
    """Make bags of ALOHA, ACT and Cosmos Policy HDF5 episodes.

    What was done to a file's content, and what of it was not taken, stands in its line. What is
    wrong with a file is said and the others go on; then, and for a file that was imported before,
    the exit code is 1. Joints in another unit than radians, and grippers in another than 0 (closed)
    to 1 (open), are refused.
    """
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="SOURCE", help="HDF5 files, or folders of them"
    )
    add_root(parser)
    parser.add_argument(
        "--again", action="store_true", help="also take files that the store has already"
    )
    add_source_options(parser)
    parser.set_defaults(run=_import)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for what files do not say, or say wrongly."""
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
        help="steps per second of the source, 50 for ACT (what the file tells); at a multiple of "
        "the control rate every so many steps are taken, at any other they are resampled",
    )
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="the file's camera for primary, left_wrist or right_wrist, such as primary=top; once "
        "for each (those whose names are known)",
    )
    parser.add_argument(
        "--colours",
        choices=("rgb", "bgr"),
        help="rgb: a viewer shows the images in their colours; bgr: with red and blue exchanged, "
        "which is put right (what the layout tells)",
    )
    parser.add_argument(
        "--videos-as",
        choices=("jpeg", "raw"),
        default="jpeg",
        help="what the frames of videos become: JPEG of quality 95, or raw at ten times the size",
    )


def source_options(options: argparse.Namespace, *, again: bool = False) -> ImportOptions:
    """Return what those options say."""
    names = ("rig", "task", "prompt", "rate", "colours", "videos_as")
    return ImportOptions(
        cameras=parse_map(options.camera),
        again=again,
        **{name: getattr(options, name) for name in names},
    )


def _import(options: argparse.Namespace) -> int:
    types = load_types(package_share() / "msg")
    store = EpisodeStore(options.root.expanduser(), types)
    importer = Importer(store, types, source_options(options, again=options.again))
    imported = known = failed = 0
    files: dict[Path, None] = {}
    for source in options.sources:
        try:
            files |= dict.fromkeys(find_files([source]))
        except RolloutError as error:
            _say(f"error: {error}", sys.stderr)
            failed += 1
    for file in files:
        try:
            _say(f"{file}: {_line(importer.take(file))}", sys.stdout)
            imported += 1
        except KnownSourceError as error:
            _say(f"refused: {error}", sys.stderr)
            known += 1
        except CosmosPolicyError as error:
            _say(f"error: {error}", sys.stderr)
            failed += 1
        except Exception as error:  # a fault of ours with one file must not cost the others
            _say(f"error: {file}: {type(error).__name__}: {error}; please report it", sys.stderr)
            failed += 1
    print(
        f"{say_count(imported, 'episode')} imported into {escaped(str(store.root))}"
        f"{f', {known} there already' if known else ''}{f', {failed} failed' if failed else ''}"
    )
    return int(known + failed > 0)


def _line(done: Imported) -> str:
    """Return what is told of an imported file."""
    score = "" if done.score is None else f", {done.score:g} of 100"
    said = f"{done.steps} steps, {say_seconds(done.seconds)}{score}, {done.quality.text}"
    return "; ".join([f"{done.path.name}, {said}", *done.notes])


def _say(text: str, where: TextIO) -> None:
    """Print a line in which files have a say: nothing that a terminal obeys, or cannot print."""
    print(escaped(text), file=where, flush=True)


def find_files(sources: Iterable[Path]) -> list[Path]:
    """Return the HDF5 files named, and those below the folders named, each once.

    Raises:
        RolloutError: a path is not there, or a folder has none below it.
    """
    found: dict[Path, None] = {}
    for source in sources:
        source = source.expanduser()
        if source.is_dir():
            below = [p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES and _is_file(p)]
            if not below:
                raise RolloutError(f"{source}: no {', '.join(SUFFIXES)} file below it")
            found |= dict.fromkeys(sorted(below, key=_natural))
        elif source.is_file():
            found[source] = None
        else:
            raise RolloutError(f"{source}: no such file or folder")
    return list(found)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return True  # whatever the system says of it, it is said when it is opened


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort episode_2 before episode_10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d+)", str(path))
    ]
