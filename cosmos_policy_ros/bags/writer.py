"""One rosbag2 directory per episode, MCAP inside, raw messages as they came.

The folder is called ``<episode_id>.recording`` while it grows and takes its real name only when it
is whole and on the disk, so a bag that looks finished is finished.
"""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.typesys.store import Typestore
from ruamel.yaml import YAML

from cosmos_policy_ros.bags.mcap_file import Compression, McapFile, Topic, to_yaml
from cosmos_policy_ros.bags.messages import (
    EPISODE_TYPE,
    LABEL_TYPE,
    EpisodeMetadata,
    check_stamp,
    encode_metadata,
)
from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.files import FolderLock, place_of, rename, replace_text, stands_at, sync
from cosmos_policy_ros.core.untrusted import UnreadableError, check_yaml, read_text, reading, shown

METADATA = "metadata.yaml"
NEWEST_READ = 9
MAX_METADATA_BYTES = 4 << 20  # a hundred topics make 40 kB
MAX_TOPICS = 2048  # readers compare each with each
MAX_NUMBER = 2**63 - 1  # what rosbag2's own fields hold
_ROOT = "rosbag2_bagfile_information"


def read_metadata(folder: Path, *, any_storage: bool = False) -> dict[str, Any]:
    """Return the content under ``rosbag2_bagfile_information``.

    Read as YAML 1.2, as it was written: YAML 1.1 would turn the prompt "yes" into a boolean.

    Args:
        folder: of the bag.
        any_storage: also of a bag whose messages are not read here as they are stored.

    Raises:
        RolloutError: the file is missing or is not the metadata of a bag as they are recorded here.
    """
    path = folder / METADATA
    with reading(path, "a bag's metadata", RolloutError):
        text = read_text(path, MAX_METADATA_BYTES)
        check_yaml(text)
        content = YAML(typ="safe").load(text)
        if not isinstance(content, dict) or not isinstance(content.get(_ROOT), dict):
            raise UnreadableError(f"has no mapping '{_ROOT}'")
        information = cast("dict[str, Any]", content[_ROOT])
        _check_metadata(information)
        if not any_storage and (stored := other_storage(information)):
            raise UnreadableError(f"is of a bag stored as {stored}")
    return information


def other_storage(information: Mapping[str, Any]) -> str:
    """Return how a bag is stored in words; empty for MCAP files as they are written here."""
    storage, mode = information["storage_identifier"], information.get("compression_mode") or "none"
    packed = str(mode).lower() != "none"
    if storage == "mcap" and not packed:
        return ""
    return f"{shown(storage)}{f' with compressed {shown(mode).lower()}s' if packed else ''}"


def _check_metadata(information: Mapping[str, Any]) -> None:
    """Refuse what would lead a reader out of the folder, or keep it busy for too long."""
    if not isinstance(information["storage_identifier"], str):
        raise UnreadableError("its storage_identifier is no text")
    version = information["version"]
    if type(version) is not int or version > NEWEST_READ:
        raise UnreadableError(
            f"its version {shown(version)} is none that is read here, {NEWEST_READ} or older"
        )
    names = information["relative_file_paths"]
    plain = isinstance(names, list) and all(
        isinstance(n, str) and n == Path(n).name and "\0" not in n for n in names
    )
    if not plain or len(set(names)) < max(len(names), 1):
        raise UnreadableError("its relative_file_paths are not names of files beside it, each once")
    topics = information["topics_with_message_count"]
    if len(topics) > MAX_TOPICS:
        raise UnreadableError(f"has {len(topics)} topics, at most {MAX_TOPICS} are read")
    for topic in topics:
        _check_number(topic, "message_count")
        for key in ("name", "type"):
            if not isinstance(topic["topic_metadata"][key], str):
                raise UnreadableError(f"a topic's {key} is no text")
        if (encoding := topic["topic_metadata"]["serialization_format"]) != "cdr":
            raise UnreadableError(f"a topic is serialised as '{shown(encoding)}', not as cdr")
    _check_number(information, "message_count")
    _check_number(information["duration"], "nanoseconds")
    _check_number(information["starting_time"], "nanoseconds_since_epoch")
    if not isinstance(information.get("custom_data") or {}, dict):
        raise UnreadableError("its custom_data is no mapping")
    if not isinstance(information.get("files") or [], list):
        raise UnreadableError("its files is no list")


def _check_number(where: Mapping[str, Any], key: str) -> None:
    value = where[key]
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise UnreadableError(f"its {key} {shown(value)} is no whole number of 64 bits")


def write_metadata(folder: Path, information: Mapping[str, Any]) -> None:
    """Replace a bag's metadata atomically; raises OSError."""
    replace_text(folder / METADATA, to_yaml({_ROOT: information}))


def add_notes(folder: Path, notes: Mapping[str, str]) -> None:
    """Add entries to the ``custom_data`` of a finished bag; raises OSError too."""
    information = read_metadata(folder)
    information["custom_data"] = {**(information.get("custom_data") or {}), **notes}
    write_metadata(folder, information)


def add_file(
    folder: Path,
    information: Mapping[str, Any],
    topic: Topic,
    messages: Sequence[bytes],
    types: Typestore,
) -> None:
    """Add messages to a finished bag as one more MCAP file, ``<episode_id>_<n>.mcap``.

    Nothing is rewritten but the bag's metadata, ``information``, and these atomically. The receive
    stamps are the bag's last one, so that ``ros2 bag play`` does not wait until the day of the
    addition. The caller holds the folder's lock. Raises OSError; the bag is then as before.
    """
    start_ns = information["starting_time"]["nanoseconds_since_epoch"]
    end_ns = start_ns + information["duration"]["nanoseconds"]
    stem = Path(information["relative_file_paths"][0]).stem.rpartition("_")[0]
    names = (folder / f"{stem}_{i}.mcap" for i in count(1))
    target = next(path for path in names if not path.exists())
    draft = folder / f".{target.name}"
    try:
        draft.unlink(missing_ok=True)  # of a process that was killed in here
        file = McapFile(draft, [topic], types)
        try:
            for cdr in messages:
                file.write(topic.name, end_ns, cdr)
            addition = file.describe({}, name=target.name)
            file.close(addition)
        finally:
            file.abort()
        sync(draft)
        rename(draft, target)
        write_metadata(folder, joined(information, addition))
    except OSError:
        target.unlink(missing_ok=True)
        raise
    finally:
        draft.unlink(missing_ok=True)


def joined(information: Mapping[str, Any], addition: Mapping[str, Any]) -> dict[str, Any]:
    """Return a bag's metadata with those of further files; its notes stay its own."""
    whole = copy.deepcopy(dict(information))
    whole["relative_file_paths"] += addition["relative_file_paths"]
    whole["files"] = (whole.get("files") or []) + addition["files"]
    for added in addition["topics_with_message_count"]:
        for listed in whole["topics_with_message_count"]:
            keys = ("name", "type", "type_description_hash")
            known, new = listed["topic_metadata"], added["topic_metadata"]
            if all(known.get(key, "") == new[key] for key in keys):
                listed["message_count"] += added["message_count"]
                break
        else:
            whole["topics_with_message_count"].append(added)
    spans = [_span(each) for each in (information, addition) if each["message_count"]]
    if spans:
        first_ns = min(first for first, _ in spans)
        whole["starting_time"] = {"nanoseconds_since_epoch": first_ns}
        whole["duration"] = {"nanoseconds": max(last for _, last in spans) - first_ns}
    whole["message_count"] += addition["message_count"]
    return whole


def _span(information: Mapping[str, Any]) -> tuple[int, int]:
    first_ns = information["starting_time"]["nanoseconds_since_epoch"]
    return first_ns, first_ns + information["duration"]["nanoseconds"]


RECORDING = ".recording"
"""Suffix of the folder of an unfinished bag."""
DISCARDED = ".discarded"
"""Suffix of the folder of a bag that the operator does not want used."""


def offered_qos(*, reliable: bool = True, latched: bool = False, depth: int = 10) -> Qos:
    """Return a QoS profile; what is latched reaches also those that subscribe later."""
    for_ever = QosTime(9223372036, 854775807)  # the largest int64 of nanoseconds
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=depth,
        reliability=QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
        durability=QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        deadline=for_ever,
        lifespan=for_ever,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=for_ever,
        avoid_ros_namespace_conventions=False,
    )


RELIABLE = (offered_qos(),)
# So that a player or a late panel learns them whenever it joins.
LATCHED = (offered_qos(latched=True, depth=1),)
EPISODE_TOPIC = Topic("/episode", EPISODE_TYPE, LATCHED)
LABEL_TOPIC = Topic("/episode/label", LABEL_TYPE, LATCHED)
OWN_TOPICS = (EPISODE_TOPIC, LABEL_TOPIC)


class BagWriter:
    """Writes one episode; safe to share between threads.

    The folder is held against recovery and other recorders until the bag is closed, or this process
    ends, however it ends. After a failed write it takes nothing more: what stands on the disk stays
    in the ``.recording`` folder, and every further call says why.

    Attributes:
        folder: where the finished bag will be.
        path: where the bag is while it grows.
        sizes: bytes of messages per topic, so far.
        ended: why it takes nothing more; empty while it does.
    """

    def __init__(
        self,
        folder: Path,
        topics: Sequence[Topic],
        metadata: EpisodeMetadata,
        *,
        types: Typestore,
        start_ns: int,
        compression: Compression = "none",
    ) -> None:
        """Open ``<folder>.recording`` and write the metadata as the first message.

        Args:
            folder: where the finished bag will be; its name is the episode's id.
            topics: what may be written, besides :data:`OWN_TOPICS`.
            metadata: go into the first message and, as text, into ``metadata.yaml``.
            types: knows the type of every topic.
            start_ns: receive stamp of the metadata, the recorder's clock.
            compression: of the chunks inside the file; every reader undoes it by itself.

        Raises:
            RolloutError: a folder of that name exists, the disk refuses, a topic is listed twice,
                or its type is unknown.
        """
        self.folder = folder
        self.path = folder.with_name(folder.name + RECORDING)
        self.sizes: dict[str, int] = {topic.name: 0 for topic in (*OWN_TOPICS, *topics)}
        self.ended = ""
        self._notes = metadata.custom_data()
        self._lock = threading.Lock()
        for suffix in ("", RECORDING, DISCARDED):
            taken = folder.with_name(folder.name + suffix)
            if taken.exists():
                raise RolloutError(f"{taken}: exists already; take another episode id")
        _check_topics(topics, types)
        first = encode_metadata(types, metadata, start_ns)
        try:
            self.path.mkdir(parents=True)
            self._hold = FolderLock(self.path)
            file = self.path / f"{folder.name}_0.mcap"
            try:
                self._file = McapFile(file, (*OWN_TOPICS, *topics), types, compression)
            except OSError:
                self._hold.release()
                raise
        except OSError as error:
            raise RolloutError(f"{self.path}: cannot start a bag: {error}") from error
        self.write(EPISODE_TOPIC.name, start_ns, first)
        self.flush()

    def write(self, topic: str, stamp_ns: int, cdr: bytes) -> None:
        """Append one message, byte for byte; ``stamp_ns`` is its receipt by the recorder's clock.

        Raises:
            RolloutError: unknown topic, impossible stamp, the bag is closed, or the disk refused.
        """
        with self._writing("write"):
            if topic not in self.sizes:
                raise RolloutError(
                    f"topic '{topic}' is not part of episode '{self.folder.name}'"
                    f"{did_you_mean(topic, self.sizes)}"
                )
            check_stamp(stamp_ns, f"topic '{topic}'")
            self._file.write(topic, stamp_ns, cdr)
            self.sizes[topic] += len(cdr)

    def flush(self) -> None:
        """Hand everything written so far to the operating system: it survives this process.

        Without it the last part of up to 1 MiB stays in memory. Raises as :meth:`write`.
        """
        with self._writing("write"):
            self._file.flush()

    def free_bytes(self) -> int:
        """Return what is left on the disk that the bag is on; raises OSError."""
        with self._lock:
            self._check_open()
            return shutil.disk_usage(self._hold.descriptor).free

    def displaced(self) -> str:
        """Return what became of folder or file under the writer; empty while both are in place.

        An open file can be written to long after its folder was deleted, without an error. Raises
        OSError when the disk does not answer.
        """
        with self._lock:
            if self.ended:
                return ""
            for path, descriptor in (
                (self.path, self._hold.descriptor),
                (self._file.path, self._file.descriptor),
            ):
                if not stands_at(descriptor, path):
                    now = place_of(descriptor)
                    fate = "deleted" if now is None else f"moved to {now}"
                    instead = ", and something else is in its place" if path.exists() else ""
                    return f"{path} was {fate} while it was recorded{instead}"
            if self._file.cut:
                return f"{self._file.path} was cut short while it was recorded"
            return ""

    def end_displaced(self, reason: str, notes: Mapping[str, str]) -> None:
        """End a bag for the ``reason`` of :meth:`displaced`; finish what is left of it."""
        with self._lock:
            if self.ended:
                return
            try:
                saved = self._finish_elsewhere({**self._notes, **notes})
            except OSError as error:
                saved = f"it cannot be finished: {error}"
            self._end(f"{reason}; {saved}")

    def _finish_elsewhere(self, notes: Mapping[str, str]) -> str:
        file, folder = place_of(self._file.descriptor), place_of(self._hold.descriptor)
        if file is None or self._file.cut:
            return "what was recorded is lost"
        information = self._file.describe(notes)
        self._file.close(information)
        sync(file)
        if folder is None or file != folder / self._file.path.name:
            return f"the messages so far are in {file}"
        write_metadata(folder, information)
        sync(folder)
        if folder.name == self.path.name:  # moved with its parent, or to another one
            final = folder.with_name(self.folder.name)
            rename(folder, final)
            folder = final
        return f"the episode so far is whole in {folder}"

    def close(self, notes: Mapping[str, str] | None = None, *, discarded: bool = False) -> Path:
        """Write index and metadata, wait for the disk, give the folder its real name; return it.

        Args:
            notes: further entries of ``custom_data``, such as the outcome.
            discarded: name the folder ``<episode_id>.discarded``.

        Raises:
            RolloutError: already closed, or the disk refused; the ``.recording`` folder stays.
        """
        final = self.folder.with_name(self.folder.name + DISCARDED) if discarded else self.folder
        with self._writing("finish"):
            information = self._file.describe({**self._notes, **(notes or {})})
            self._file.close(information)
            write_metadata(self.path, information)
            for file in self.path.iterdir():
                if file.is_file():  # and no pipe, which would be waited for
                    sync(file)
            sync(self.path)
            rename(self.path, final)
            self._end(f"it is closed as {final}")
        return final

    def abort(self, reason: str = "it was broken off") -> None:
        """Stop without index or metadata; the ``.recording`` folder stays to be recovered later."""
        with self._lock:
            self._end(self.ended or f"{reason}; what was written is in {self.path}")

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close a bag that is still open; leave it unfinished when an error is under way."""
        if error is not None:
            self.abort()
        elif not self.ended:
            self.close()

    def _check_open(self) -> None:
        if self.ended:
            raise RolloutError(f"episode '{self.folder.name}' takes nothing more: {self.ended}")

    @contextmanager
    def _writing(self, deed: str) -> Iterator[None]:
        """Hold the lock of an open bag; a refusal of the disk ends the bag.

        After a torn write a further one would only bury the tear.
        """
        with self._lock:
            self._check_open()
            try:
                yield
            except OSError as error:
                self._end(f"its bag failed ({error}); what was written is in {self.path}")
                raise RolloutError(
                    f"{self.path}: cannot {deed} the bag: {error}; what was written before stays "
                    f"there; free disk space and start the next episode"
                ) from error

    def _end(self, reason: str) -> None:
        self.ended = reason
        self._file.abort()
        self._hold.release()


def _check_topics(topics: Sequence[Topic], types: Typestore) -> None:
    seen = {topic.name for topic in OWN_TOPICS}
    for topic in topics:
        if not topic.name.startswith("/"):
            raise RolloutError(f"topic '{topic.name}': must be absolute, such as '/{topic.name}'")
        if topic.name in seen:
            raise RolloutError(f"topic '{topic.name}': is listed twice or reserved; remove one")
        if topic.msgtype not in types.fielddefs:
            # Suggested are types of the same last name, not any of the hundreds there are.
            last = topic.msgtype.rpartition("/")[2]
            near = [name for name in types.fielddefs if name.rpartition("/")[2] == last]
            raise RolloutError(
                f"topic '{topic.name}': type '{topic.msgtype}' is unknown; add its package's msg "
                f"folder{did_you_mean(topic.msgtype, near)}"
            )
        seen.add(topic.name)
