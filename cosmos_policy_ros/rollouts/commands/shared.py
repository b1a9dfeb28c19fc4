"""What the command lines of this room share: how they start, end, and say times and sizes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cosmos_policy_ros.errors import CosmosPolicyError, RolloutError
from cosmos_policy_ros.rig.share import share_folder
from cosmos_policy_ros.rollouts.episode import bare_id, id_number
from cosmos_policy_ros.rollouts.store import EpisodeStore
from cosmos_policy_ros.rollouts.types import load_types

INTERRUPTED, PIPE_CLOSED = 130, 141  # as a shell reports SIGINT and SIGPIPE
_ID_TIME = "%Y%m%d-%H%M%S"
_ID_TIME_CHARACTERS = 15


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
    return EpisodeStore(root, load_types(share_folder() / "msg"))


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
