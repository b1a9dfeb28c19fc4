"""What an operator points at: which episodes of other programs are there, and of which format.

This is the one place that knows every format: a new one is a class with the methods of
:class:`foreign_episode.Source` and a few lines in :func:`find_sources`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.interop.foreign_episode import Source
from cosmos_policy_ros.interop.hdf5_layout import SUFFIXES as HDF5_SUFFIXES
from cosmos_policy_ros.interop.to_bag import Hdf5Source


def find_sources(place: Path) -> list[Source]:
    """Return the episode that a path is, or those below a folder.

    A file that is named is taken whatever its name ends with; below a folder, endings decide.

    Raises:
        RolloutError: the path is not there, or the folder has none below it.
    """
    place = place.expanduser()
    if place.is_file():
        return [Hdf5Source(place)]
    if not place.is_dir():
        raise RolloutError(f"{place}: no such file or folder")
    found = list(_below(place))
    if not found:
        raise RolloutError(f"{place}: no {', '.join(HDF5_SUFFIXES)} file below it")
    return found


def _below(folder: Path) -> Iterator[Source]:
    files = [p for p in folder.rglob("*") if p.suffix.lower() in HDF5_SUFFIXES and _is_file(p)]
    for path in sorted(files, key=_natural):
        yield Hdf5Source(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return True  # whatever the system says of it, it is said when it is opened


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort episode_2 before episode_10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d+)", str(path))
    ]
