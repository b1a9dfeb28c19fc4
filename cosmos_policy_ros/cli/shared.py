"""What the commands share: options, the folder of episodes and its table, times and sizes."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.bags.writer import DISCARDED, RECORDING
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import FolderLock
from cosmos_policy_ros.core.paths import config_folder, package_share
from cosmos_policy_ros.episodes.episode import Episode, bare_id, id_number, read_episode
from cosmos_policy_ros.episodes.store import EpisodeStore

GOES_ON = "interrupted: the same command goes on where it was"
# s; a recorder makes its folder and locks it a moment later. Trying the lock in between, only to
# look, would have the recorder refused.
JUST_BEGUN = 2.0


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


def find(store: EpisodeStore, name: str) -> Path:
    """Return the folder of an episode by its id or its number alone; "" is the newest."""
    if name.isdecimal():
        for known, path in store.episodes().items():
            if id_number(known) == int(name):
                return path
    return store.find(name)


def begun(episode: str) -> datetime | None:
    """Return when an episode began by the operator's wall clock, from its id or folder name."""
    try:
        return datetime.strptime(bare_id(episode)[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return None


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


@dataclass(frozen=True)
class Row:
    """One episode of the table; ``trouble`` says why nothing could be read of it."""

    id: str
    path: Path
    episode: Episode | None = None
    trouble: str = ""

    @property
    def state(self) -> str:
        """What is special about it, in a word; empty for an ordinary finished one."""
        if self.path.name.endswith(RECORDING):
            return "recording" if _is_locked(self.path) else "unfinished"
        if self.path.name.endswith(DISCARDED):
            return "discarded"
        if self.episode is None:
            return "unreadable"
        return "recovered" if self.episode.recovered else ""


def read_rows(
    store: EpisodeStore,
    *,
    task: str | None = None,
    since: datetime | None = None,
    scored: bool | None = None,
    go: bool = False,
    discarded: bool = False,
) -> list[Row]:
    """Return the wanted episodes, oldest first, as far as can be told of an unreadable one.

    Args:
        store: the folder.
        task: of this task only.
        since: begun at this time of the operator's wall clock or later.
        scored: True or False for those with or without a score; None for both.
        go: only those whose quality is GO.
        discarded: discarded ones too.

    Raises:
        RolloutError: the folder cannot be listed.
    """
    rows = []
    for name, path in store.episodes().items():
        if path.name.endswith(DISCARDED) and not discarded:
            continue
        start = begun(name)
        if since is not None and start is not None and start < since:
            continue
        row = Row(name, path, trouble="its recorder has it, or died; see cosmos recover")
        if not path.name.endswith(RECORDING):
            try:
                row = Row(name, path, read_episode(path))
            except RolloutError as error:
                row = Row(name, path, trouble=" ".join(str(error).split()))
        if row.episode is None:
            wanted = not task or f"_{task}_" in name
        else:
            wanted = (
                (not task or row.episode.metadata.task == task)
                and (row.episode.quality.go or not go)
                and (scored is None or scored == (row.episode.score is not None))
            )
        if wanted:
            rows.append(row)
    return rows


def _is_locked(folder: Path) -> bool:
    """Tell whether a living recorder has it."""
    try:
        if time.time() - folder.stat().st_mtime < JUST_BEGUN:
            return True
        FolderLock(folder).release()
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
