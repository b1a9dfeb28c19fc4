"""What ``cosmos export-lerobot`` does: bags into a LeRobot v3 data set."""

from __future__ import annotations

import argparse
import sys
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
from cosmos_policy_ros.core.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.episodes.episode import Episode
from cosmos_policy_ros.interop.to_lerobot import LeRobotExport, LibraryError, load_library


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cosmos export-lerobot``; returns the exit code."""
    options = _parse(arguments)
    return run(lambda: _export_all(options))


def _export_all(options: argparse.Namespace) -> int:
    load_library()  # before anything else: it is the likeliest thing to be missing
    folder = new_folder(options.out)
    episodes = select(open_store(options.root), options)
    scored = all(episode.score is not None for episode in episodes)
    if not scored:
        print("not every episode has a score: the data set gets none", file=sys.stderr)
    with _begin(folder, episodes, options, scored) as data:

        def export(episode: Episode) -> str:
            added = data.add(episode)
            left_out = say_left_out(added.left_out, added.frames)
            return f"episode {added.index}, {added.frames} frames{left_out}"

        return export_each(episodes, folder, export)


def _begin(
    folder: Path, episodes: Sequence[Episode], options: argparse.Namespace, scored: bool
) -> LeRobotExport:
    """Make the data set after the first episode that can be looked at."""
    if folder.is_dir():
        folder.rmdir()  # empty; the library makes it itself
    for episode in episodes:
        try:
            return LeRobotExport(
                folder,
                episode,
                repo_id=options.repo_id,
                images=options.images,
                scored=scored,
            )
        except LibraryError:
            raise
        except CosmosPolicyError as error:
            last = error
    raise RolloutError(f"no episode can be exported; the last: {last}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cosmos export-lerobot",
        description="Write episodes as a LeRobot v3 data set, one frame per executed control step. "
        "Needs the extra 'lerobot'.",
    )
    add_selection(parser)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the data set")
    parser.add_argument("--repo-id", default="", help="its name on a hub (local/<folder>)")
    parser.add_argument(
        "--images",
        choices=("video", "image"),
        default="video",
        help="how the images are kept (video)",
    )
    return parse(parser, arguments)
