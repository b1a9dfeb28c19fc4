"""Recovery: an episode that cannot be read as it is becomes one that can; no whole message is lost.

An episode whose recorder died is finished in place. A lost ``metadata.yaml`` is made again from the
files. Everything else (a file that was cut off, another storage, compression) is written anew
beside the folder, read back, compared, and put in its place; what was there is kept under another
name. Whenever this ends, all that was whole before is in one folder, and the same call goes on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.rosbag2 import Reader
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.bags.bounds import read_summary
from cosmos_policy_ros.bags.check import CheckedFile
from cosmos_policy_ros.bags.mcap_file import McapFile, to_yaml
from cosmos_policy_ros.bags.messages import (
    EpisodeMetadata,
    Label,
    check_stamp,
    decode_label,
    decode_metadata,
    encode_label,
)
from cosmos_policy_ros.bags.repair import (
    ScanResult,
    describe_finished,
    describe_scan,
    repair_file,
    survey,
)
from cosmos_policy_ros.bags.storages import (
    PACKED,
    StoredFile,
    embedded_notes,
    first_message,
    storage_files,
    storage_of,
)
from cosmos_policy_ros.bags.types import load_types, types_of_definition
from cosmos_policy_ros.bags.writer import (
    EPISODE_TOPIC,
    LABEL_TOPIC,
    METADATA,
    RECORDING,
    add_file,
    joined,
    other_storage,
    read_metadata,
    write_metadata,
)
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import FolderLock, rename, replacing, sync
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.core.untrusted import UnreadableError, reading, shown
from cosmos_policy_ros.episodes.episode import NOT_JUDGED, OUTCOME, QUALITY, RECOVERED
from cosmos_policy_ros.episodes.folders import (
    DISCARD_REASON,
    ORIGINAL,
    VIDEO_FILE,
    WHOLE,
    EpisodeFolder,
    State,
    draft_of,
    id_number,
    interrupted,
    left_over,
    look,
    recover_command,
)
from cosmos_policy_ros.episodes.labels import logged, read_log
from cosmos_policy_ros.episodes.quality import QualityReport
from cosmos_policy_ros.episodes.recording import FLUSH_PERIOD

OLD_METADATA = METADATA + ORIGINAL
MOST_PROBLEMS = 3  # that are kept with the episode; the rest are counted


class FolderInUseError(RolloutError):
    """Another process has the folder: a recorder that lives, a recovery, one that labels."""


class NothingToRecoverError(RolloutError):
    """The episode is whole."""


class Recovered(NamedTuple):
    """A recovered episode: its folder, its messages, what is missing, what was kept beside it."""

    path: Path
    messages: int
    loss: str
    original: Path | None = None


def recover(folder: Path) -> Recovered:
    """Make the episode in a folder readable, as far as it is whole. No message is deleted.

    One that can be read is read whole, and written anew without what is damaged in it.

    Raises:
        NothingToRecoverError: it is whole.
        FolderInUseError: it is being recorded, or another process works on it.
        RolloutError: nothing in it can be read, it is no episode, or the disk refused; it is
            unchanged then, and can be recovered again.
    """
    # Whatever a damaged file makes a parser raise, the caller goes on to the next folder.
    with reading(folder, "an episode", RolloutError):
        unfinished = folder.name.endswith(RECORDING)
        if folder.is_symlink() and folder.is_dir() and not unfinished:
            raise UnreadableError(f"is a link; recover what it leads to: {recover_command(folder)}")
        if folder.is_symlink() or not folder.is_dir():
            raise UnreadableError(
                f"is no folder{', so no recorder made it' if unfinished else ''}; left as it is"
            )
        try:
            hold = FolderLock(folder)
        except BlockingIOError:
            by = "being recorded by a recorder that lives" if unfinished else "used by another"
            raise FolderInUseError(f"{folder}: is {by}; left alone") from None
        try:
            if unfinished:
                return _finish(folder)
            if folder.name.endswith(ORIGINAL):
                return _resume(folder)
            return _recover_bag(folder)
        except RolloutError as error:
            if str(folder) in str(error):
                raise
            raise RolloutError(f"{folder}: {error}; left as it is") from error
        finally:
            hold.release()


# ---------------------------------------------------------------- what a dead recorder left


def _finish(folder: Path) -> Recovered:
    """Look at everything first: a folder that cannot be recovered stays as it is."""
    final = folder.with_name(folder.name.removesuffix(RECORDING))
    file = _recording_file(folder, final.name)
    scan = survey(file)
    loss = "nothing: its recorder died after its last message was written"
    if not scan.finished:
        loss = f"up to {FLUSH_PERIOD:g} s before its recorder died were not yet written"
        if scan.cut_bytes:
            loss += f"; {scan.cut_bytes} bytes of a torn chunk were cut off"
    information = None
    if not (folder / METADATA).exists():
        notes = {OUTCOME: "its recorder died", RECOVERED: loss}
        notes = {**_metadata(file, scan).custom_data(), **notes}
        information = describe_scan(file.name, scan, notes)
        to_yaml(information)  # what cannot be written shows here
    else:  # it died between the last write and the folder's real name
        read_metadata(folder)
    with _writing(folder):
        repair_file(file, scan)
        if information is not None:
            write_metadata(folder, information)
        sync(folder)
        rename(folder, final)
    return Recovered(final, scan.total.total(), loss)


def _recording_file(folder: Path, name: str) -> Path:
    """Return the file that the recorder wrote; the folder may have been renamed since."""
    files = storage_files(folder)
    own = folder / f"{name}_0.mcap"
    file = own if own in files else next(iter(files), own)
    if file.is_symlink() or not file.is_file():
        raise RolloutError(f"{folder}: has no {file.name}, so there is nothing to recover")
    return file


def _metadata(file: Path, scan: ScanResult) -> EpisodeMetadata:
    for channel in scan.channels.values():
        if channel.topic == EPISODE_TOPIC.name and channel.id in scan.first:
            schema = scan.schemas[channel.schema_id]
            types = types_of_definition(schema.name, schema.data.decode())
            return decode_metadata(types, scan.first[channel.id].data)
    raise RolloutError(f"{file}: has no message on '{EPISODE_TOPIC.name}'; it is no episode")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn the disk's refusals into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise RolloutError(
            f"{folder}: cannot be recovered now: {error}; free disk space, or make the folder "
            f"writable, and recover it again"
        ) from error


# ---------------------------------------------------------------- a bag that was finished once


def _recover_bag(folder: Path) -> Recovered:
    found = look(folder)
    hopeless = found.state is State.DAMAGED and found.metadata is None
    if hopeless or found.state in (State.FOREIGN, State.NO_BAG, State.UNREADABLE, State.PURGED):
        raise RolloutError(f"{folder}: {found.trouble}")
    files = _own_files(found)
    readable = found.state in WHOLE and not found.remark
    plain = all(map(_is_plain, files))
    if readable and plain:
        readable = _fits(found, files)
        plain = not any(_problems(file) for file in files)
    with _writing(folder):
        if not plain:
            return _rewrite(found, files)
        loss = "" if readable else _relist(found, files).text
        labels = _settle_labels(folder)
    if not loss and not labels:
        raise NothingToRecoverError(f"{folder}: is whole; there is nothing to recover")
    messages = read_metadata(folder)["message_count"]
    return Recovered(folder, messages, loss or "nothing: labels were missing in the bag or the log")


def _own_files(found: EpisodeFolder) -> tuple[Path, ...]:
    """Return the files of an episode, without what a killed compaction has left beside them.

    Raises:
        RolloutError: two copies of an episode, or two episodes, are in the folder.
    """
    files = storage_files(found.path)
    if found.information is not None:
        left = left_over(found.path, found.information)
        files = tuple(file for file in files if file not in left)
    holders = []
    for file in files:
        try:
            if first_message(file, EPISODE_TOPIC.name) is not None:
                holders.append(file)
        except (UnreadableError, OSError):
            continue  # told when it is read
    videos = [file for file in holders if file.name.endswith(VIDEO_FILE)]
    if len(holders) == 2 and len(videos) == 1:
        # Nothing tells any more which is the episode; the video was read back before it was named.
        recording = next(file for file in holders if file not in videos)
        spare = videos[0] if _is_plain(recording) else recording
        return tuple(file for file in files if file != spare)
    if len(holders) > 1:
        names = " and ".join(shown(file.name) for file in holders[:2])
        raise RolloutError(
            f"{len(holders)} of its files hold an episode's metadata, {names}; move what does not "
            f"belong here into a folder of its own"
        )
    return files


def _is_plain(file: Path) -> bool:
    """Return whether a file is as our own, down to its index; its messages are not read."""
    try:
        with reading(file, "an MCAP file", RolloutError):
            if file.name.endswith(PACKED) or read_summary(file).statistics is None:
                return False
            first = first_message(file, EPISODE_TOPIC.name)
            return first is None or not first.packed
    except RolloutError:
        return False


def _problems(file: Path) -> list[str]:
    checked = CheckedFile(file)
    for _ in checked.messages():
        pass
    return checked.problems


def _fits(found: EpisodeFolder, files: Sequence[Path]) -> bool:
    """Return whether ``metadata.yaml`` tells the counts and the time that the files do."""
    assert found.information is not None, "it can be read"
    told, made = found.information, reduce(joined, map(describe_finished, files))
    same = all(told[key] == made[key] for key in ("starting_time", "duration", "message_count"))
    return same and _counts(told) == _counts(made)


def _relist(found: EpisodeFolder, files: Sequence[Path]) -> Loss:
    """Make ``metadata.yaml`` again from files that are whole; return what is lost."""
    folder = found.path
    described = [describe_finished(file) for file in files]
    information = reduce(joined, described)
    labels = _labels_in(files)
    counts = _counts(information) + _logged_only(folder, labels)
    loss = _loss(found, counts, [], set(_listed(information)))
    information["custom_data"] = _notes(found, files, found.metadata, labels, loss)
    to_yaml(information)  # what cannot be written shows here
    if (folder / METADATA).is_file():
        with replacing(folder / OLD_METADATA) as draft:
            shutil.copyfile(folder / METADATA, draft)
    write_metadata(folder, information)
    return loss


def _labels_in(files: Iterable[Path]) -> list[Label]:
    labels = []
    for path in files:
        with Reader(path) as file:
            wanted = [each for each in file.connections if each.topic == LABEL_TOPIC.name]
            for connection, _, cdr in file.messages(wanted) if wanted else ():
                types = types_of_definition(connection.msgtype, connection.msgdef.data)
                labels.append(decode_label(types, cdr))
    return labels


def _settle_labels(folder: Path) -> int:
    """Give log and bag the labels that the other one has; return how many that were."""
    information = read_metadata(folder)
    in_bag = {x.revision: x for x in _labels_in(folder / n for n in _listed(information))}
    in_log = {x.revision: x for x in read_log(folder)[0]}
    for_log = [in_bag[revision] for revision in sorted(in_bag.keys() - in_log.keys())]
    for_bag = [in_log[revision] for revision in sorted(in_log.keys() - in_bag.keys())]
    if for_log:
        with logged(folder, for_log):
            pass
    if for_bag:
        types = load_types(package_share() / "msg")
        messages = [encode_label(types, label) for label in for_bag]
        add_file(folder, information, LABEL_TOPIC, messages, types)
    return len(for_log) + len(for_bag)


def _logged_only(folder: Path, in_bag: Iterable[Label]) -> Counter[str]:
    """Count the labels that the bag has lost and the log has not, from which they come back."""
    known = {label.revision for label in in_bag}
    lost = {label.revision for label in read_log(folder)[0]} - known
    return Counter({LABEL_TOPIC.name: len(lost)})


def _listed(information: Mapping[str, Any]) -> list[str]:
    return list(information["relative_file_paths"])


# ---------------------------------------------------------------- written anew


@dataclass
class _Copy:
    """What was copied of a bag's files."""

    information: dict[str, Any] | None = None
    metadata: list[EpisodeMetadata] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)  # of the files that something was read of


def _rewrite(found: EpisodeFolder, files: Sequence[Path]) -> Recovered:
    """Write the bag anew beside its folder, then put it in its place."""
    folder = found.path
    original = folder.with_name(folder.name + ORIGINAL)
    if os.path.lexists(original):
        raise RolloutError(
            f"{folder}: {original.name} is there already, from an earlier recovery; move it away, "
            f"or delete it with 'cosmos episodes purge', and recover again"
        )
    draft = draft_of(folder)
    try:
        _clear(draft)
        draft.mkdir()
        copy = _copy_files(found, files, draft)
        if len(copy.metadata) != 1 or copy.information is None:
            raise RolloutError(f"{folder}: has no message on '{EPISODE_TOPIC.name}'; no episode")
        counts = _counts(copy.information) + _logged_only(folder, copy.labels)
        loss = _loss(found, counts, copy.problems, copy.names)
        notes = _notes(found, files, copy.metadata[0], copy.labels, loss)
        copy.information["custom_data"] = notes
        _copy_rest(folder, draft)
        write_metadata(draft, copy.information)
        _settle_labels(draft)
        for file in draft.rglob("*"):
            if file.is_dir() or file.is_file():
                sync(file)
        sync(draft)
        if (made := look(draft)).trouble:
            raise RolloutError(f"{folder}: what was made of it is no episode: {made.trouble}")
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    # From here on a recovery that ends halfway is gone on with, see _resume.
    rename(folder, original)
    rename(draft, folder)
    return Recovered(folder, copy.information["message_count"], loss.text, original)


def _resume(original: Path) -> Recovered:
    """Go on where a recovery ended between its two renamings."""
    folder = original.with_name(original.name.removesuffix(ORIGINAL))
    if not interrupted(original):
        raise NothingToRecoverError(f"{original}: was replaced by a recovery, which is done")
    with _writing(original):
        if look(draft_of(folder)).state in WHOLE:
            rename(draft_of(folder), folder)
            information = read_metadata(folder)
            loss = str((information.get("custom_data") or {}).get(RECOVERED, "nothing"))
            return Recovered(folder, information["message_count"], loss, original)
        rename(original, folder)
    return _recover_bag(folder)


def _clear(draft: Path) -> None:
    """Remove what a recovery that was killed has left."""
    if draft.is_symlink() or draft.is_file():
        draft.unlink()
    elif draft.exists():
        shutil.rmtree(draft)


def _copy_files(found: EpisodeFolder, files: Sequence[Path], draft: Path) -> _Copy:
    copy = _Copy()
    types = load_types(package_share() / "msg")
    scratch = draft / ".unpacked"
    scratch.mkdir()
    stem = found.id if id_number(found.id) else "episode"
    for file in files:
        number = len(copy.information["relative_file_paths"]) if copy.information else 0
        target = draft / f"{stem}_{number}.mcap"
        source = StoredFile(file, types)
        information = _copy_file(source, target, copy, types, scratch)
        copy.problems += source.problems
        if not information["message_count"]:
            target.unlink()
            continue
        copy.names.add(file.name)
        known = copy.information
        copy.information = joined(known, information) if known else information
    scratch.rmdir()
    return copy


def _copy_file(
    source: StoredFile, target: Path, copy: _Copy, types: Typestore, scratch: Path
) -> dict[str, Any]:
    """Write a file's messages, bytes and stamps unchanged, and read them back."""
    digest = hashlib.sha256()
    file = McapFile(target, (), types)
    try:
        for topic, stamp_ns, cdr in source.messages(scratch):
            check_stamp(stamp_ns, f"topic '{shown(topic.name)}'")
            if topic.name not in file.counts:
                file.declare(topic)
            file.write(topic.name, stamp_ns, cdr)
            _add(digest, topic.name, stamp_ns, cdr)
            if topic.name in (EPISODE_TOPIC.name, LABEL_TOPIC.name):
                own_types = types_of_definition(topic.msgtype, topic.definition)
                if topic.name == EPISODE_TOPIC.name:
                    copy.metadata.append(decode_metadata(own_types, cdr))
                    file.flush()  # in a chunk of its own, as recorded: a torn one costs no more
                else:
                    copy.labels.append(decode_label(own_types, cdr))
        for topic in source.declared.values():
            if topic.name not in file.counts:
                file.declare(topic)
        information = file.describe({})
        file.close(information)
    finally:
        file.abort()
    again = hashlib.sha256()
    checked = CheckedFile(target)
    for name, _, stamp_ns, cdr in checked.messages():
        _add(again, name, stamp_ns, cdr)
    if checked.problems or again.digest() != digest.digest():
        wrong = checked.problems[0] if checked.problems else "its messages are others"
        raise RolloutError(f"{source.path}: was not written as it was read ({wrong}); try again")
    return information


def _add(digest: Any, topic: str, stamp_ns: int, cdr: bytes) -> None:
    digest.update(f"{topic}\0{stamp_ns}\0{len(cdr)}\0".encode())
    digest.update(cdr)


def _copy_rest(folder: Path, draft: Path) -> None:
    """Take along what else is in the folder: the label log, contact sheets; no pipes, no links."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == METADATA or storage_of(entry.name) or entry.name.startswith("."):
                continue
            if entry.is_file(follow_symlinks=False):
                shutil.copy2(entry.path, draft / entry.name)
            elif entry.is_dir(follow_symlinks=False):
                shutil.copytree(entry.path, draft / entry.name, symlinks=True)


# ---------------------------------------------------------------- what is told of it


def _counts(information: Mapping[str, Any]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for topic in information["topics_with_message_count"]:
        counts[topic["topic_metadata"]["name"]] += topic["message_count"]
    return counts


class Loss(NamedTuple):
    """What is missing, in words, and whether that are messages, as far as is known."""

    text: str
    messages: bool


def _loss(
    found: EpisodeFolder, counts: Counter[str], problems: Sequence[str], names: set[str]
) -> Loss:
    """Hold what was found against what ``metadata.yaml`` says, if that can be read.

    Args:
        found: the folder as it was.
        counts: messages by topic.
        problems: of the files.
        names: of the files that something was read of.
    """
    parts, lost = list(problems[:MOST_PROBLEMS]), bool(problems)
    if len(problems) > MOST_PROBLEMS:
        parts.append(f"{len(problems) - MOST_PROBLEMS} further problems")
    if found.information is not None:
        parts += [
            f"{shown(name)} is missing or empty"
            for name in _listed(found.information)
            if name not in names and not (found.path / name).is_file()
        ]
        stated = _counts(found.information)
        count = (stated - counts).total()
        lost = count > 0
        if parts or lost:
            parts.insert(0, f"{count or 'none'} of {stated.total()} messages")
    if parts:
        return Loss("; ".join(parts), lost)
    if found.information is None:
        fate = "was lost" if found.state is State.METADATA_LOST else "could not be read"
        return Loss(f"nothing: its {METADATA} {fate}", lost)
    if stored := other_storage(found.information):
        return Loss(f"nothing: it was stored as {stored}", lost)
    return Loss(f"nothing: its {METADATA} did not fit its files", lost)


def _notes(
    found: EpisodeFolder,
    files: Sequence[Path],
    metadata: EpisodeMetadata | None,
    labels: Iterable[Label],
    loss: Loss,
) -> dict[str, str]:
    """Return the ``custom_data``: what was known, and what the bag tells itself."""
    if found.information is not None:
        told = found.information.get("custom_data") or {}
    else:
        told = next(filter(None, map(embedded_notes, files)), {})
    known = {str(key): str(value) for key, value in told.items()}
    notes = {**(metadata.custom_data() if metadata else {}), **known}
    discards = [label.note for label in labels if label.kind == "discard"]
    if discards:
        notes.setdefault(DISCARD_REASON, discards[-1])
    if DISCARD_REASON not in notes:
        notes.setdefault(OUTCOME, "unknown")
    if loss.messages and QUALITY in notes:
        try:
            before = QualityReport.from_json(notes[QUALITY])
            notes[QUALITY] = replace(before, go=False, reasons=(NOT_JUDGED,)).to_json()
        except ValueError:
            del notes[QUALITY]
    earlier = notes.get(RECOVERED, "")
    return {**notes, RECOVERED: f"{earlier}; {loss.text}" if earlier else loss.text}
