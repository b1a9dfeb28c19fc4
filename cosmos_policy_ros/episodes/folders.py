"""What a folder below a root of episodes is: the one answer that every command gives.

An episode is a bag with this package's metadata in it, whatever its folder is called; its id is the
one in the bag. Where a folder cannot be read as it is, its state says why and which command helps.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.bounds import read_summary
from cosmos_policy_ros.bags.messages import EpisodeMetadata, decode_metadata
from cosmos_policy_ros.bags.storages import (
    PACKED,
    FirstMessage,
    first_message,
    storage_files,
    storage_of,
)
from cosmos_policy_ros.bags.types import load_types, types_of_definition
from cosmos_policy_ros.bags.writer import (
    DISCARDED,
    EPISODE_TOPIC,
    METADATA,
    RECORDING,
    other_storage,
    read_metadata,
)
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import FolderLock
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.core.untrusted import UnreadableError, parse_json, reading, shown

ORIGINAL = ".original"
"""Suffix of what a recovery replaced: kept until a purge."""
RECOVERING = ".recovering"
"""Suffix of what a recovery is writing."""
PURGED = ".purged"
"""Suffix of what is being deleted: half an episode must not be taken for one."""
DISCARD_REASON = "discard_reason"
"""Entry of ``custom_data``."""
COMPACTED = "compacted"
"""Entry of ``custom_data``: how, from which files, and what it came to."""
VIDEO_FILE = "_video.mcap"
"""How the file with the video is called behind the episode's id."""
# s; a recorder makes its folder and locks it a moment later. Trying the lock in between, only to
# look, would have the recorder refused.
JUST_BEGUN = 2.0

_MAX_TASK_CHARACTERS = 40  # a folder name of at most 72 characters, read whole in a file manager
_MAX_ID = 200  # characters; file systems take 255 bytes with all suffixes
_ID = re.compile(r"\d{8}-\d{6}_[A-Za-z0-9_-]+_(?P<number>\d{4,9})")


class State(Enum):
    """What a folder is, in a word for people."""

    FINISHED = "finished"
    DISCARDED = "discarded"
    RECORDING = "recording"
    UNFINISHED = "unfinished"
    METADATA_LOST = "metadata lost"
    OTHER_STORAGE = "other storage"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    FOREIGN = "foreign"
    ORIGINAL = "original"
    PURGED = "half purged"
    NO_BAG = "no bag"


WHOLE = frozenset((State.FINISHED, State.DISCARDED))
RECOVERABLE = frozenset((State.UNFINISHED, State.METADATA_LOST, State.OTHER_STORAGE, State.DAMAGED))
NO_EPISODE = frozenset((State.NO_BAG, State.ORIGINAL, State.PURGED))


@dataclass(frozen=True)
class EpisodeFolder:
    """A folder, and what it is.

    Attributes:
        path: of the folder.
        state: what it is.
        id: the episode's, from the bag; else from the folder's name; empty when it is none.
        trouble: why it cannot be read as an episode, and what to do; empty when it can.
        remark: what ``recover`` would correct in one that can be read.
        metadata: the episode's, where it is whole.
        information: content of ``metadata.yaml``, where it can be read.
    """

    path: Path
    state: State
    id: str = ""
    trouble: str = ""
    remark: str = ""
    metadata: EpisodeMetadata | None = None
    information: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """The id for people, with the folder's name where that is another."""
        name = bare_id(self.path.name)
        if not self.id or self.id == name:
            return shown(self.path.name if not self.id else name, _MAX_ID)
        return f"{self.id} ({shown(self.path.name, _MAX_ID)})"

    @property
    def files(self) -> tuple[Path, ...]:
        """The bag's files as ``metadata.yaml`` lists them."""
        names = self.information["relative_file_paths"] if self.information else ()
        return tuple(self.path / name for name in names)


def episode_id(task: str, now: datetime, taken: Iterable[str]) -> str:
    """Return an id such as ``20261122-105830_transfer_cube_0001``.

    The trailing number is one above the highest in ``taken``, ids or folder names, so ids stay
    apart, and in order, even when the clock is set back.
    """
    label = re.sub(r"[^A-Za-z0-9_-]+", "-", task)[:_MAX_TASK_CHARACTERS] or "episode"
    number = 1 + max((id_number(name) for name in taken), default=0)
    return f"{now:%Y%m%d-%H%M%S}_{label}_{number:04d}"


def bare_id(folder_name: str) -> str:
    """Return a folder's name without what its end says of its state."""
    for suffix in (PURGED, ORIGINAL, RECORDING, DISCARDED):
        folder_name = folder_name.removesuffix(suffix)
    return folder_name


def id_number(name: str) -> int:
    """Return the running number of an id or folder name, 0 when it is not an episode's."""
    match = _ID.fullmatch(bare_id(name))
    return int(match["number"]) if match else 0


def look(path: Path) -> EpisodeFolder:
    """Find out what a folder is; whatever is wrong with it is part of the answer."""
    try:
        with reading(path, "a folder", RolloutError):
            return _look(path)
    except RolloutError as error:
        trouble = f"{_less(path, error)}; make it readable, or move it away"
        return EpisodeFolder(path, State.UNREADABLE, _id_of_name(path), trouble)


def _look(path: Path) -> EpisodeFolder:
    name, own_id = path.name, _id_of_name(path)
    if name.endswith(PURGED):
        trouble = f"is what an interrupted purge left; go on: {_purge(path)}"
        return EpisodeFolder(path, State.PURGED, own_id, trouble)
    if name.endswith(ORIGINAL):
        if interrupted(path):
            trouble = f"its recovery was interrupted; go on: {recover_command(path)}"
            return EpisodeFolder(path, State.DAMAGED, own_id or bare_id(name), trouble)
        trouble = f"is what a recovery replaced and kept; delete it: {_purge(path)}"
        return EpisodeFolder(path, State.ORIGINAL, own_id, trouble)
    if not path.is_dir():
        there = os.path.lexists(path)
        trouble = "cannot be read: is no folder" if there else "cannot be read: is not there"
        return EpisodeFolder(path, State.NO_BAG, own_id, trouble)
    files = storage_files(path)
    if name.endswith(RECORDING):
        found, *_ = _metadata_in(files)
        return _recorded(path, found.episode_id if found else "")
    if not files and not os.path.lexists(path / METADATA):
        return EpisodeFolder(path, State.NO_BAG, own_id, "cannot be read: holds no bag")
    return _look_at_bag(path, files)


def _look_at_bag(path: Path, files: Sequence[Path]) -> EpisodeFolder:
    information, fault = None, "has no metadata.yaml"
    if os.path.lexists(path / METADATA):
        try:
            information, fault = read_metadata(path, any_storage=True), ""
        except RolloutError as error:
            fault = _less(path, error)
    metadata, packed, unread = _metadata_in(files)
    known_id = _valid_id(metadata.episode_id) if metadata else _told_id(information)
    episode_id = known_id or bare_id(path.name)

    def answer(state: State, trouble: str = "", remark: str = "") -> EpisodeFolder:
        return EpisodeFolder(path, state, episode_id, trouble, remark, metadata, information)

    recover = recover_command(path)
    stored = other_storage(information) if information else ""
    if packed and not stored:
        stored = "mcap with compressed messages"
    listed = information["relative_file_paths"] if information else []
    if information:
        left = left_over(path, information)
        files = [file for file in files if file not in left]
    present = {file.name for file in files}
    missing = [each for each in listed if each not in present]
    if metadata is None:
        # Such a file shows what it holds only when it is unpacked whole.
        sealed = _sealed(files) and (information is None or _lists_episode(information))
        if unread or missing or (known_id and not sealed):
            wrong = unread or "none of its files holds the episode's metadata"
            if missing:
                wrong = f"its file {shown(missing[0])} is missing"
            return answer(
                State.DAMAGED,
                f"cannot be read as a bag: {wrong}; nothing can be recovered from it as it is, "
                f"copy it again",
            )
        if not sealed:
            return EpisodeFolder(
                path,
                State.FOREIGN,
                trouble=f"has no message on '{EPISODE_TOPIC.name}': it is a bag, but no episode; "
                f"make one of it: cosmos import {shlex.quote(str(path))}",
                information=information,
            )
    if fault:
        state = State.DAMAGED if os.path.lexists(path / METADATA) else State.METADATA_LOST
        return answer(state, f"{fault}; make it again from the bag's files: {recover}")
    assert information is not None
    if stored:
        return answer(
            State.OTHER_STORAGE,
            f"is stored as {stored}, which is not read as it is; rewrite it: {recover}",
        )
    if missing:
        return answer(
            State.DAMAGED,
            f"its file {shown(missing[0])} is missing; copy it again, or keep what is there: "
            f"{recover}",
        )
    count = 0
    for name in listed:
        try:
            with reading(f"{shown(name)}: cannot be read as a bag", "an MCAP file", RolloutError):
                summary = read_summary(path / name)
        except RolloutError as error:
            return answer(
                State.DAMAGED, f"{error}; copy it again, or keep what is whole: {recover}"
            )
        statistics = summary.statistics
        count += statistics.message_count if statistics else 0
    remark = ""
    if extra := sorted(present.difference(listed)):
        remark = f"{shown(extra[0])} is not listed in metadata.yaml; correct that: {recover}"
    elif count != information["message_count"]:
        remark = (
            f"metadata.yaml says {information['message_count']} messages, its files hold {count}; "
            f"correct that: {recover}"
        )
    notes = information.get("custom_data") or {}
    unwanted = path.name.endswith(DISCARDED) or DISCARD_REASON in notes
    return answer(State.DISCARDED if unwanted else State.FINISHED, remark=remark)


def _recorded(path: Path, found_id: str) -> EpisodeFolder:
    own_id = _valid_id(found_id) or bare_id(path.name)
    if is_locked(path):
        trouble = "is being recorded, so it is unfinished; wait until it is stopped"
        return EpisodeFolder(path, State.RECORDING, own_id, trouble)
    trouble = f"its recorder died, so it is unfinished; make it whole: {recover_command(path)}"
    return EpisodeFolder(path, State.UNFINISHED, own_id, trouble)


def draft_of(folder: Path) -> Path:
    """Return where a recovery writes a folder anew."""
    return folder.with_name(f".{folder.name}{RECOVERING}")


def interrupted(original: Path) -> bool:
    """Tell of what a recovery replaced whether it ended before the new folder took its place."""
    folder = original.with_name(original.name.removesuffix(ORIGINAL))
    return not os.path.lexists(folder) and draft_of(folder).is_dir()


def is_locked(folder: Path) -> bool:
    """Tell whether a living recorder has a folder."""
    try:
        if time.time() - folder.stat().st_mtime < JUST_BEGUN:
            return True
        FolderLock(folder).release()
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _metadata_in(files: Iterable[Path]) -> tuple[EpisodeMetadata | None, bool, str]:
    """Return the metadata in a bag, whether messages are compressed, and what was not readable."""
    fault = ""
    for file in files:
        try:
            with reading(file.name, "a file of a bag", RolloutError):
                if (found := first_message(file, EPISODE_TOPIC.name)) is not None:
                    return decode_metadata(_types_of(found), found.cdr), found.packed, ""
        except RolloutError as error:
            fault = fault or shown(str(error), 300)
    return None, False, fault


def _types_of(found: FirstMessage) -> Typestore:
    if found.definition:
        return types_of_definition(found.msgtype, found.definition)
    return load_types(package_share() / "msg")


def left_over(folder: Path, information: Mapping[str, Any]) -> tuple[Path, ...]:
    """Return the files that a killed compaction has left beside those that are the episode.

    None while one of the episode's own files is missing: what is left may be all there is.
    """
    listed = information["relative_file_paths"]
    if not all((folder / name).is_file() for name in listed):
        return ()
    found = [path for path in sorted(folder.glob(f"*{VIDEO_FILE}")) if path.name not in listed]
    for name, size in _replaced(information).items():
        path = folder / name
        if name not in listed and path.is_file() and path.stat().st_size == size:
            found.append(path)
    return tuple(found)


def _replaced(information: Mapping[str, Any]) -> dict[str, int]:
    """Return names and sizes of the files that the episode's video took the place of."""
    note = (information.get("custom_data") or {}).get(COMPACTED, "")
    if not note:
        return {}
    with suppress(UnreadableError, KeyError, TypeError, AttributeError):
        files = parse_json(note)["replaced"]
        return {str(n): int(f["bytes"]) for n, f in files.items() if n == Path(n).name}
    return {}


def identify(path: Path) -> str:
    """Return the id of the episode in a folder, without looking at all of it; empty for none."""
    if is_aside(path):
        return ""
    try:
        with reading(path, "a folder", RolloutError):
            files = storage_files(path) if path.is_dir() else ()
            found, *_ = _metadata_in(files)
            if found is not None and (known := _valid_id(found.episode_id)):
                return known
            if id_number(path.name) or _sealed(files):
                return bare_id(path.name)
            if os.path.lexists(path / METADATA):
                return _told_id(read_metadata(path, any_storage=True))
            return bare_id(path.name) if found is not None else ""
    except RolloutError:
        return _id_of_name(path)


def candidates(root: Path) -> list[Path]:
    """Return what in a folder is a bag, or is called like an episode, without looking into it.

    Not what recoveries replaced and purges left.

    Raises:
        RolloutError: the folder cannot be listed.
    """
    return [path for path in _entries(root) if not is_aside(path) and is_bag(path)]


def scan(root: Path) -> tuple[EpisodeFolder, ...]:
    """Look at all that is a bag in a folder, or is called like an episode, oldest first.

    Raises:
        RolloutError: the folder cannot be listed.
    """
    found = [look(path) for path in _entries(root) if is_aside(path) or is_bag(path)]
    return tuple(sorted(found, key=lambda each: _order(each.id, each.path)))


def is_aside(path: Path) -> bool:
    """Tell whether a folder is kept by a recovery, half written by one, or left by a purge."""
    if path.name.endswith(ORIGINAL):
        return not interrupted(path)
    return path.name.endswith((PURGED, RECOVERING))


def is_bag(path: Path) -> bool:
    """Tell whether a path has anything of a bag, or is called like an episode."""
    if id_number(path.name):
        return True
    try:
        return path.is_dir() and (
            path.name.endswith(RECORDING)
            or os.path.lexists(path / METADATA)
            or bool(storage_files(path))
        )
    except OSError:  # looking at it tells why
        return True


class KnownId(NamedTuple):
    """The id of the episode in a folder, and what tells the folder from a later one."""

    version: tuple[int, int]
    id: str


def known_ids(root: Path, before: Mapping[Path, KnownId]) -> dict[Path, KnownId]:
    """Return the id of each folder in a root that holds an episode, oldest first.

    What has not changed since ``before``, an earlier answer, is not read again.
    """
    known: dict[Path, KnownId] = {}
    for path in _entries(root):
        try:
            status = path.lstat()
        except OSError:  # renamed or deleted meanwhile
            continue
        version = status.st_ino, status.st_mtime_ns
        if path in before and before[path].version == version and not path.is_symlink():
            known[path] = before[path]
        else:
            known[path] = KnownId(version, identify(path))
    chosen = {path: each for path, each in known.items() if each.id}
    return dict(sorted(chosen.items(), key=lambda item: _order(item[1].id, item[0])))


def below(root: Path) -> Iterator[EpisodeFolder]:
    """Look at every bag below a folder, however deep, and at all that is called like an episode.

    Links and hidden folders are not entered.
    """
    for path in _entries(root):
        found = look(path)
        if found.state is not State.NO_BAG or id_number(path.name):
            yield found
        elif path.is_dir() and not path.is_symlink():
            try:
                yield from below(path)
            except RolloutError as error:
                yield EpisodeFolder(path, State.UNREADABLE, trouble=_less(path, error))


def copies(folders: Iterable[EpisodeFolder]) -> dict[Path, Path]:
    """Return the folders whose episode has the id of another one's, each with such another."""
    same: dict[str, list[Path]] = defaultdict(list)
    for each in folders:
        if each.id and each.state not in NO_EPISODE:
            same[each.id].append(each.path)
    return {
        path: next(other for other in paths if other != path)
        for paths in same.values()
        for path in paths
        if len(paths) > 1
    }


def _entries(root: Path) -> list[Path]:
    with reading(root, "a folder of episodes", RolloutError):
        return sorted(path for path in root.iterdir() if not path.name.startswith("."))


def _order(own_id: str, path: Path) -> tuple[bool, int, str, str]:
    number = id_number(own_id)
    return not number, number, own_id, path.name


def _valid_id(text: str) -> str:
    """Return an id that was read from a bag, if it is one: it is shown, and becomes a file name."""
    return text if len(text) <= _MAX_ID and _ID.fullmatch(text) else ""


def _id_of_name(path: Path) -> str:
    return bare_id(path.name) if id_number(path.name) else ""


def _told_id(information: Mapping[str, Any] | None) -> str:
    notes = (information or {}).get("custom_data") or {}
    return _valid_id(str(notes.get("episode_id", "")))


def _lists_episode(information: Mapping[str, Any] | None) -> bool:
    topics = (information or {}).get("topics_with_message_count", ())
    return any(t["topic_metadata"]["name"] == EPISODE_TOPIC.name for t in topics)


def _sealed(files: Iterable[Path]) -> bool:
    return any(file.name.endswith(PACKED) and storage_of(file.name) != "mcap" for file in files)


def recover_command(path: Path) -> str:
    """Return the command that recovers the episode in a folder, or that a link leads to."""
    path = path.resolve() if path.is_symlink() else path
    if not path.name.isprintable():  # the name cannot be typed as it is shown
        path = path.parent
    return f"cosmos recover {shlex.quote(str(path))}"


def _purge(path: Path) -> str:
    return f"cosmos episodes purge --root {shlex.quote(str(path.parent))}"


def _less(path: Path, error: RolloutError) -> str:
    """Return an error's text without the folder's path, which its reader adds again."""
    text = str(error)
    return text.removeprefix(f"{path}/").removeprefix(f"{path}: ")
