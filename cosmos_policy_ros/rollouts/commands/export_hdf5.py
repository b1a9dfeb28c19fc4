"""What ``scripts/export_hdf5`` does: bags into HDF5 files, laid out as released rollouts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cosmos_policy_ros.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.rollouts.commands.selection import (
    add_selection,
    new_folder,
    say_left_out,
    select,
)
from cosmos_policy_ros.rollouts.commands.shared import open_store, run, say_count
from cosmos_policy_ros.rollouts.exchange.to_hdf5 import export_hdf5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``scripts/export_hdf5``; returns the exit code."""
    options = _parse(arguments)
    return run(lambda: _export_all(options))


def _export_all(options: argparse.Namespace) -> int:
    folder = new_folder(options.out)
    episodes = select(open_store(options.root), options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RolloutError(f"{folder}: cannot be made: {error}") from error
    index = failed = 0
    for episode in episodes:
        try:
            done = export_hdf5(episode, folder, index, options.images)
        except CosmosPolicyError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        left_out = say_left_out(done.left_out, done.steps)
        print(f"{episode.id}: {done.path.name}, {done.steps} steps{left_out}", flush=True)
        index += 1
    print(
        f"{say_count(index, 'episode')} exported into {folder}"
        f"{f', {failed} failed' if failed else ''}"
    )
    return int(failed > 0)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="export_hdf5",
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
    return parser.parse_args(arguments)
