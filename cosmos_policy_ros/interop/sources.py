"""What an operator points at: which episodes of other programs are there, and of which format.

This is the one place that knows every format: a new one is a class with the methods of
:class:`foreign_episode.Source` and a few lines in :func:`find_sources`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.episodes.folders import is_aside
from cosmos_policy_ros.interop.foreign_episode import ImportContext, OpenEpisode, Source
from cosmos_policy_ros.interop.hdf5_layout import SUFFIXES as HDF5_SUFFIXES
from cosmos_policy_ros.interop.hdf5_layout import Hdf5Source
from cosmos_policy_ros.interop.lerobot_episode import sources_of
from cosmos_policy_ros.interop.lerobot_set import INFO as LEROBOT_INFO
from cosmos_policy_ros.interop.lerobot_set import is_set
from cosmos_policy_ros.interop.ros_bag import RosBagSource
from cosmos_policy_ros.interop.ros_bag_files import SUFFIXES as BAG_SUFFIXES
from cosmos_policy_ros.interop.ros_bag_files import bags_in, is_storage


def find_sources(place: Path) -> list[Source]:
    """Return the episode that a path is, or those below a folder.

    A file that is named is taken whatever its name ends with; below a folder, endings decide.

    Raises:
        RolloutError: the path is not there, or the folder has none below it.
    """
    place = place.expanduser()
    if place.is_file():
        return [RosBagSource(place, (place,)) if is_storage(place) else Hdf5Source(place)]
    if not place.is_dir():
        raise RolloutError(f"{place}: no such file or folder")
    if is_set(place):
        return [*sources_of(place)]
    found = list(_below(place))
    if not found:
        endings = ", ".join((*HDF5_SUFFIXES, *BAG_SUFFIXES))
        raise RolloutError(
            f"{place}: no {endings} file and no LeRobot data set ({LEROBOT_INFO}) below it"
        )
    return found


@dataclass(frozen=True)
class UnreadableSource:
    """A place whose episodes cannot be told, as one of several: it must not cost the others."""

    path: Path
    error: RolloutError

    @property
    def name(self) -> str:
        """The folder's."""
        return self.path.name

    def open(self, _: ImportContext) -> AbstractContextManager[OpenEpisode]:
        """Raise what is wrong with it."""
        raise self.error


def _below(place: Path) -> Iterator[Source]:
    """Yield what is in a folder and those below it, in the order of the names."""
    folders = []
    for name, below, _ in os.walk(place):
        # What a recovery replaced would come twice.
        below[:] = [each for each in below if not is_aside(Path(name, each))]
        folders.append(Path(name))
    for folder in sorted(folders, key=_natural):
        here: list[Source] = [RosBagSource(*each) for each in bags_in(folder)]
        here += [
            Hdf5Source(path)
            for path in folder.iterdir()
            if path.suffix.lower() in HDF5_SUFFIXES and _is_file(path)
        ]
        yield from sorted(here, key=lambda source: _natural(source.path))
        if is_set(folder):
            try:
                yield from sources_of(folder)
            except RolloutError as error:
                yield UnreadableSource(folder, error)


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
