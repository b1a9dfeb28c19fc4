"""What the commands share: options, the folder of episodes and its table, times and sizes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cosmos_policy_ros.bags.types import load_types
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.paths import config_folder, package_share
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.episodes.folders import EpisodeFolder, State, bare_id, copies, scan
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


_NOTHING_WRONG = (State.RECORDING, State.FOREIGN, State.ORIGINAL)


@dataclass(frozen=True)
class Row:
    """One episode of the table; ``trouble`` says why nothing could be read of it."""

    folder: EpisodeFolder
    episode: Episode | None = None
    trouble: str = ""
    same: str = ""  # name of another folder whose episode has the same id

    @property
    def id(self) -> str:
        """What it is called in a table and in a message."""
        return self.folder.title

    @property
    def wrong(self) -> bool:
        """Whether a command that passes it over has something to report."""
        return self.episode is None and self.folder.state not in _NOTHING_WRONG

    @property
    def state(self) -> str:
        """What is special about it, in some words; empty for an ordinary finished one."""
        words = []
        if self.folder.state is not State.FINISHED:
            words.append(self.folder.state.value)
        elif self.episode is None:
            words.append(State.UNREADABLE.value)
        if self.episode is not None and self.episode.recovered:
            words.append("recovered")
        if self.folder.remark:
            words.append(self.folder.remark)
        if self.same:
            words.append(f"same id as {shown(self.same)}")
        return ", ".join(words)


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
        discarded: discarded ones too, and what recoveries replaced.

    Raises:
        RolloutError: the folder cannot be listed.
    """
    rows = []
    folders = scan(store.root)
    same = copies(folders)
    for folder in folders:
        kept = folder.state in (State.DISCARDED, State.ORIGINAL)
        if folder.state is State.PURGED or (kept and not discarded):
            continue
        start = begun(folder.id)
        if since is not None and start is not None and start < since:
            continue
        row = Row(folder, trouble=folder.trouble)
        if not folder.trouble:
            try:
                row = Row(folder, read_episode(folder.path, folder))
            except RolloutError as error:
                row = Row(folder, trouble=" ".join(str(error).split()))
        if folder.path in same:
            row = replace(row, same=same[folder.path].name)
        if row.episode is None:
            wanted = not task or f"_{task}_" in folder.id
        else:
            wanted = (
                (not task or row.episode.metadata.task == task)
                and (row.episode.quality.go or not go)
                and (scored is None or scored == (row.episode.score is not None))
            )
        if wanted:
            rows.append(row)
    return rows
