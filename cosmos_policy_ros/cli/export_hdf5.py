"""What ``cosmos export-hdf5`` does: bags into HDF5 files, laid out as released rollouts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cosmos_policy_ros.cli.shared import (
    add_selection,
    export_each,
    new_folder,
    open_store,
    parse,
    run,
    say_left_out,
    select,
)
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.episode import Episode
from cosmos_policy_ros.interop.to_hdf5 import export_hdf5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos export-hdf5``; returns the exit code."""
    options = _parse(arguments)
    return run(lambda: _export_all(options))


def _export_all(options: argparse.Namespace) -> int:
    folder = new_folder(options.out)
    episodes = select(open_store(options.root), options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RolloutError(f"{folder}: cannot be made: {error}") from error
    number = 0  # of the next file: an episode that fails leaves no hole

    def export(episode: Episode) -> str:
        nonlocal number
        done = export_hdf5(episode, folder, number, options.images)
        number += 1
        return f"{done.path.name}, {done.steps} steps{say_left_out(done.left_out, done.steps)}"

    return export_each(episodes, folder, export)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cosmos export-hdf5",
        description="Write episodes as HDF5 files in the layout of Cosmos Policy's released "
        "rollouts, one row per executed control step.",
    )
    add_selection(parser)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the files")
    parser.add_argument(
        "--images",
        choices=("jpeg", "raw", "video"),
        default="jpeg",
        help="JPEG data sets, what the released trainer reads as configured (jpeg); raw data sets; "
        "or MP4 files beside the HDF5 files",
    )
    return parse(parser, arguments)
