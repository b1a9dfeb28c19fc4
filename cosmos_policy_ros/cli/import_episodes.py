"""``cosmos import``: episodes that other programs recorded, into the store."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TextIO

from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.cli.shared import add_root, say_count, say_seconds
from cosmos_policy_ros.core.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.core.untrusted import escaped
from cosmos_policy_ros.episodes.store import EpisodeStore
from cosmos_policy_ros.interop.camera_names import parse_map
from cosmos_policy_ros.interop.foreign_episode import ImportOptions, Source
from cosmos_policy_ros.interop.importer import Imported, Importer, KnownSourceError
from cosmos_policy_ros.interop.sources import find_sources


def add_import(parser: argparse.ArgumentParser) -> None:
    """Make episodes of what other programs recorded: HDF5 files, LeRobot data sets, bags.

    What a SOURCE is, it tells itself: HDF5 files of ALOHA, ACT and Cosmos; LeRobot data sets (v2.0,
    v2.1, v3) with all their episodes; bags of ROS 2 (MCAP or SQLite, packed or not, in several
    files, metadata.yaml lost) and of ROS 1, each one episode. What was done to its content, and
    what of it was not taken, stands in its line. What is wrong with one is said and the others go
    on; then, and for a source that was imported before, the exit code is 1. Joints in another unit
    than radians, and grippers in another than the rig file's, are refused.
    """
    parser.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="SOURCE",
        help="HDF5 files, LeRobot data sets, bags' folders or files, or folders of them",
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
        "--prompt",
        help="the task's text, which a bag never tells (the file's, else after the folder's name)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        help="steps per second of an HDF5 file, 50 for ACT (what the file tells); at a multiple of "
        "the control rate every so many steps are taken, at any other they are resampled",
    )
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="the source's camera for primary, left_wrist or right_wrist, such as primary=top or a "
        "bag's topic primary=/top/image_raw; once for each (those whose names are known, and the "
        "rig file's topics)",
    )
    parser.add_argument(
        "--colours",
        choices=("rgb", "bgr"),
        help="rgb: a viewer shows a file's images in their colours; bgr: with red and blue "
        "exchanged, which is put right (what the layout tells)",
    )
    parser.add_argument(
        "--first-arm",
        choices=("left", "right"),
        help="the arm whose seven columns, waist to gripper, come first in a LeRobot data set "
        "(what the columns' names tell)",
    )
    parser.add_argument(
        "--videos-as",
        choices=("jpeg", "raw"),
        default="jpeg",
        help="what the frames of videos become: JPEG of quality 95, or raw at ten times the size",
    )


def source_options(options: argparse.Namespace, *, again: bool = False) -> ImportOptions:
    """Return what those options say."""
    names = ("rig", "task", "prompt", "rate", "colours", "first_arm", "videos_as")
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
    found: dict[Source, None] = {}  # each once
    for place in options.sources:
        try:
            found |= dict.fromkeys(find_sources(place))
        except RolloutError as error:
            _say(f"error: {error}", sys.stderr)
            failed += 1
    for source in found:
        try:
            _say(f"{source.path}: {_line(importer.take(source))}", sys.stdout)
            imported += 1
        except KnownSourceError as error:
            _say(f"refused: {error}", sys.stderr)
            known += 1
        except CosmosPolicyError as error:
            _say(f"error: {error}", sys.stderr)
            failed += 1
        except Exception as error:  # a fault of ours with one source must not cost the others
            fault = f"{type(error).__name__}: {error}"
            _say(f"error: {source.path}: {fault}; please report it", sys.stderr)
            failed += 1
    print(
        f"{say_count(imported, 'episode')} imported into {escaped(str(store.root))}"
        f"{f', {known} there already' if known else ''}{f', {failed} failed' if failed else ''}"
    )
    return int(known + failed > 0)


def _line(done: Imported) -> str:
    """Return what is told of an imported source."""
    score = "" if done.score is None else f", {done.score:g} of 100"
    said = f"{done.steps} steps, {say_seconds(done.seconds)}{score}, {done.quality.text}"
    return "; ".join([f"{done.path.name}, {said}", *done.notes])


def _say(text: str, where: TextIO) -> None:
    """Print a line in which files have a say: nothing that a terminal obeys, or cannot print."""
    print(escaped(text), file=where, flush=True)
