"""The episodes of a folder as a table: one row each, also where nothing can be read of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.episodes.episode import Episode, read_episode
from cosmos_policy_ros.episodes.folders import EpisodeFolder, State, bare_id, copies, scan
from cosmos_policy_ros.episodes.store import EpisodeStore

_NOTHING_WRONG = (State.RECORDING, State.FOREIGN, State.ORIGINAL)


def begun(episode: str) -> datetime | None:
    """Return when an episode began by the operator's wall clock, from its id or folder name."""
    try:
        return datetime.strptime(bare_id(episode)[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return None


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
        row = read_row(folder)
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


def read_row(folder: EpisodeFolder) -> Row:
    """Return what can be told of the episode in a folder that was looked at."""
    if folder.trouble:
        return Row(folder, trouble=folder.trouble)
    try:
        return Row(folder, read_episode(folder.path, folder))
    except RolloutError as error:
        return Row(folder, trouble=" ".join(str(error).split()))
