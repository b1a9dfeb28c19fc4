"""The only place that deletes an episode, and it takes discarded ones alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts.bag_writer import DISCARDED
from cosmos_policy_ros.rollouts.durable import locked, rename
from cosmos_policy_ros.rollouts.episode import id_number

PURGED = ".purged"
"""Suffix of what is being deleted: half an episode must not be taken for one."""


def discarded(root: Path) -> tuple[Path, ...]:
    """Return the folders of the discarded episodes, and those a purge that died has left.

    Raises:
        RolloutError: the root folder cannot be listed.
    """
    try:
        folders = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError as error:
        raise RolloutError(f"{root}: cannot be listed: {error}") from error
    return tuple(sorted(path for path in folders if _is_discarded(path)))


def delete(folder: Path) -> None:
    """Delete a discarded episode for good.

    Raises:
        RolloutError: it is not discarded, or the disk refused; what is left of it is deleted by
            the next purge.
    """
    if not _is_discarded(folder):
        raise RolloutError(f"{folder}: is not discarded; only discarded episodes are deleted")
    try:
        if not folder.name.endswith(PURGED):
            doomed = folder.with_name(folder.name + PURGED)
            with locked(folder):
                rename(folder, doomed)
            folder = doomed
        shutil.rmtree(folder)
    except OSError as error:
        raise RolloutError(f"{folder}: cannot be deleted: {error}") from error


def _is_discarded(folder: Path) -> bool:
    name = folder.name.removesuffix(PURGED)
    return name.endswith(DISCARDED) and id_number(name) > 0
