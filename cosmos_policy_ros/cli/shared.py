"""What the commands share: options, the folder of episodes, times and sizes."""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.paths import config_folder, package_share
from cosmos_policy_ros.episodes.store import EpisodeStore

GOES_ON = "interrupted: the same command goes on where it was"


def add_root(parser: argparse.ArgumentParser) -> None:
    """Add the option for the folder of the episodes."""
    parser.add_argument(
        "--root", type=Path, default=Path("rollouts"), help="folder of the episodes (rollouts)"
    )


def add_config(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add a config file, by its name in a folder of ``config`` or its path, and ``--set``."""
    known = ", ".join(sorted(path.stem for path in config_folder(folder).glob("*.yaml")))
    parser.add_argument("config", help=f"a YAML file, or one of {known}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the config"
    )


def positive(text: str) -> int:
    """Return the whole number, at least 1, that an option is."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def open_store(root: Path) -> EpisodeStore:
    """Open a folder of episodes that is there.

    Raises:
        RolloutError: it is not; a wrong path would otherwise become a new, empty folder.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise RolloutError(f"{root}: is no folder; give the folder of the episodes with --root")
    return EpisodeStore(root, load_types(package_share() / "msg"))


def say_seconds(seconds: float) -> str:
    """Return a duration for people, such as "44.0 s" or "3 min 12 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def say_bytes(count: int) -> str:
    """Return a size for people, such as "83.2 MB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def say_count(count: int, thing: str) -> str:
    """Return a number of things for people, such as "1 episode" or "3 episodes"."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
