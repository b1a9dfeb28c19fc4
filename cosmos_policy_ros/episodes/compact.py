"""A finished episode made small: its camera images become video, all else stays byte for byte.

The recording's file is replaced by one with the video. The new file is written beside the old one,
read back whole, and waited for until it is on the disk; then ``metadata.yaml``, which names the
bag's files, is replaced by one rename. Killed at any moment, the episode is the old one or the new
one, whole. A file that is then left over is removed by the next run.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.bags.bounds import read_summary
from cosmos_policy_ros.bags.check import CheckedFile, Received
from cosmos_policy_ros.bags.jpeg import COMPRESSED, IMAGE
from cosmos_policy_ros.bags.mcap_file import HASH_KEY, QOS_KEY, VERIFY, Declaration, McapFile
from cosmos_policy_ros.bags.types import types_of_definition
from cosmos_policy_ros.bags.video import (
    DEFINITION,
    FORMAT,
    VIDEO,
    VideoDecoder,
    VideoEncoder,
    is_key,
    require_encoder,
    video_topic,
)
from cosmos_policy_ros.bags.writer import RECORDING, read_metadata, write_metadata
from cosmos_policy_ros.core.config import load_config
from cosmos_policy_ros.core.errors import ObservationError, RolloutError
from cosmos_policy_ros.core.files import locked, rename, stands_at, sync
from cosmos_policy_ros.core.paths import package_share
from cosmos_policy_ros.core.untrusted import UnreadableError, open_file, reading, shown
from cosmos_policy_ros.episodes.episode import QUALITY, Episode, read_episode
from cosmos_policy_ros.episodes.folders import COMPACTED, VIDEO_FILE, State, left_over, look
from cosmos_policy_ros.episodes.quality import QualityReport
from cosmos_policy_ros.episodes.topics import find_rig
from cosmos_policy_ros.rig.images import decode_image
from cosmos_policy_ros.rig.observation import fingerprint

LEFT = "; the episode stays as it is"
_MOST_PSNR = 99.0  # dB; of equal images it is infinite
_BLOCK = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class CompactionConfig:
    """``config/compaction.yaml``."""

    crf: int  # x264's rate factor
    group: int  # images from one key frame to the next
    least_psnr: float  # dB of every image against its source

    def __post_init__(self) -> None:
        for name, low, high in (("crf", 1, 40), ("group", 1, 250), ("least_psnr", 0, 60)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}: {value} must be from {low} to {high}")


def load_compaction() -> CompactionConfig:
    """Read the package's ``compaction.yaml``. Raises ConfigError when it is wrong."""
    return load_config(CompactionConfig, package_share() / "config" / "compaction.yaml")


class Compacted(NamedTuple):
    """What a compaction came to: images, bytes of the bag's files, PSNR of the images [dB]."""

    images: int
    bytes_before: int
    bytes_after: int
    least_psnr: float
    mean_psnr: float


def compact(
    folder: Path, config: CompactionConfig, progress: Callable[[int, int], None] | None = None
) -> Compacted | None:
    """Make an episode's camera images video; returns None where they are.

    Its id, labels, metadata, quality, all other topics and both stamps of every message stay. The
    recording's messages are no longer those that a decision's digest was made of.

    Args:
        folder: of the episode.
        config: of the video, and what is too bad.
        progress: told how many images of how many are done.

    Raises:
        RolloutError: it is unfinished, discarded, damaged, being compacted by another process, has
            images that cannot become video, or the disk refused; it is as before then.
    """
    if folder.name.endswith(RECORDING):  # its lock may be a recorder's, and is not waited for
        raise RolloutError(f"{folder}: is unfinished, and only finished episodes are compacted")
    require_encoder()
    try:
        with reading(folder, "an episode", RolloutError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return _compact(folder, descriptor, config, progress or (lambda done, total: None))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RolloutError(
            f"{folder}: cannot be compacted: {error.strerror or error}{LEFT}; free disk space, or "
            f"make the folder writable, and compact it again"
        ) from error


def is_compacted(episode: Episode) -> bool:
    """Return whether an episode's images are video."""
    return any(topic.msgtype == VIDEO for topic in episode.topics.values())


def _compact(
    folder: Path, descriptor: int, config: CompactionConfig, progress: Callable[[int, int], None]
) -> Compacted | None:
    with locked(folder):
        found = look(folder)
        if found.trouble:
            raise RolloutError(f"{folder}: {found.trouble}{LEFT}")
        if found.state is State.DISCARDED:
            raise RolloutError(f"{folder}: is discarded, and only finished episodes are compacted")
        information = found.information
        assert information is not None, "it can be read"
        _remove_left_over(folder, information)
        _remove_drafts(folder)
        episode = read_episode(folder, found)
        if is_compacted(episode):
            return None
        with reading(folder, "an episode", RolloutError, VERIFY):
            plan = _plan(episode)
        stem = plan.files[0].stem.rpartition("_")[0] or episode.id
        target = folder / f"{stem}{VIDEO_FILE}"
        draft = target.with_name(f".{target.name}.partial")
        file = McapFile(draft, (), types_of_definition(VIDEO, DEFINITION))
        # Held until the end: a draft that is not held is of a process that was killed.
        hold = os.dup(file.descriptor)
        fcntl.flock(hold, fcntl.LOCK_EX)
    try:
        # Not under the folder's lock: a score must not wait for minutes.
        making = _Making(plan, file, config, progress)
        making.write()
        note = making.note()
        file.close(_described(information, plan, target.name, note))
        making.check(draft)
        sync(draft)
        result = making.result(draft.stat().st_size)
        with locked(folder):
            if not stands_at(descriptor, folder):
                raise RolloutError(f"{folder}: was moved or discarded while it was compacted")
            _exchange(folder, plan, draft, target, note)
        return result
    except FileNotFoundError as error:
        raise RolloutError(f"{folder}: was moved or deleted while it was compacted") from error
    finally:
        file.abort()
        with suppress(OSError):  # where it has its name, or the folder is gone
            os.unlink(draft.name, dir_fd=descriptor)
        os.close(hold)


def _exchange(folder: Path, plan: _Plan, draft: Path, target: Path, note: str) -> None:
    """Make the episode the new one; the caller has the folder's lock."""
    information = read_metadata(folder)  # with the labels that were given meanwhile
    gone = {path.name for path in plan.files}.difference(information["relative_file_paths"])
    if gone:
        raise RolloutError(f"{folder}: {', '.join(gone)} is no part of it any more{LEFT}")
    after = _described(information, plan, target.name, note)
    rename(draft, target)
    try:
        write_metadata(folder, after)  # its rename is the exchange
    finally:
        # Whichever it is by now, the other's files go; where they cannot, with the next run.
        with suppress(OSError, RolloutError):
            _remove_left_over(folder, read_metadata(folder))


def _remove_left_over(folder: Path, information: Mapping[str, Any]) -> None:
    for path in left_over(folder, information):
        path.unlink()
    sync(folder)


def _remove_drafts(folder: Path) -> None:
    """Remove what killed processes were writing; RolloutError where one is still at it."""
    for path in folder.glob(f".*{VIDEO_FILE}.partial"):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RolloutError(
                    f"{folder}: is being compacted by another process; wait for it"
                ) from None
            path.unlink()


class _Camera(NamedTuple):
    """A topic that becomes video: its name then, and whether grey images may be on it."""

    name: str
    grey: bool


class _Plan(NamedTuple):
    """What of an episode is rewritten.

    Attributes:
        folder: of the episode.
        files: those with images, in order.
        declared: the topics of the new file.
        cameras: by the name that they have in the old ones.
        images: how many there are.
    """

    folder: Path
    files: tuple[Path, ...]
    declared: tuple[Declaration, ...]
    cameras: Mapping[str, _Camera]
    images: int


def _plan(episode: Episode) -> _Plan:
    rig = find_rig(episode)
    grey: dict[str, bool] = {camera.role: camera.grey for camera in rig.rig.cameras}
    cameras = {
        topic: _Camera(video_topic(topic), grey[role]) for topic, role in rig.cameras.items()
    }
    types = types_of_definition(VIDEO, DEFINITION)
    files: list[Path] = []
    declared: dict[str, Declaration] = {}
    for path in episode.files:
        summary = read_summary(path)
        channels = summary.channels.values()
        if not any(channel.topic in cameras for channel in channels):
            continue  # such as labels that were given later
        files.append(path)
        for channel in channels:
            schema = summary.schemas[channel.schema_id]
            qos, digest = (channel.metadata.get(key, "") for key in (QOS_KEY, HASH_KEY))
            name, kind, text = channel.topic, schema.name, schema.data.decode()
            if schema.encoding != "ros2msg" or channel.message_encoding != "cdr":
                raise UnreadableError(f"{shown(name)} is not of ROS 2 messages as CDR")
            if name in cameras:
                if kind not in (IMAGE, COMPRESSED):
                    raise UnreadableError(f"{shown(name)} holds no images but {shown(kind)}")
                name, kind, text = cameras[name].name, VIDEO, DEFINITION
                digest = types.hash_rihs01(VIDEO)
            topic = Declaration(name, kind, text, digest, qos)
            if declared.setdefault(name, topic)[:3] != topic[:3]:
                raise UnreadableError(f"{shown(name)} has messages of two types")
    if not files:
        raise UnreadableError("none of its files has its cameras")
    count = sum(episode.topics[topic].count for topic in cameras)
    return _Plan(episode.path, tuple(files), tuple(declared.values()), cameras, count)


def _described(
    information: Mapping[str, Any], plan: _Plan, video: str, note: str
) -> dict[str, Any]:
    """Return the bag's metadata with the video in the place of the files that it replaces."""
    after = copy.deepcopy(dict(information))
    old = [path.name for path in plan.files]
    names = after["relative_file_paths"]
    at = names.index(old[0])
    parts = {each.get("path"): each for each in after.get("files") or []}
    after["relative_file_paths"] = [
        video if i == at else name for i, name in enumerate(names) if i == at or name not in old
    ]
    if len(old) == 1 and old[0] in parts:
        parts[video] = {**parts.pop(old[0]), "path": video}
        after["files"] = [parts[n] for n in after["relative_file_paths"] if n in parts]
    else:
        after["files"] = []  # optional, and of several files only their sum would be known
    digests = {topic.name: topic.digest for topic in plan.declared}
    for listed in after["topics_with_message_count"]:
        about = listed["topic_metadata"]
        if (camera := plan.cameras.get(about["name"])) is not None:
            about.update(
                name=camera.name, type=VIDEO, type_description_hash=digests.get(camera.name, "")
            )
    notes = {**(after.get("custom_data") or {}), COMPACTED: note}
    if QUALITY in notes:
        notes[QUALITY] = _renamed(notes[QUALITY], {n: c.name for n, c in plan.cameras.items()})
    after["custom_data"] = notes
    return after


def _renamed(quality: str, names: Mapping[str, str]) -> str:
    """Return a quality report with its cameras' topics under their new names."""
    try:
        report = QualityReport.from_json(quality)
    except ValueError:
        return quality
    old = re.compile(r"(?<!\S)(" + "|".join(map(re.escape, names)) + r")(?!\S)")
    reasons = tuple(old.sub(lambda found: names[found[1]], reason) for reason in report.reasons)
    topics = {names.get(name, name): health for name, health in report.topics.items()}
    return replace(report, reasons=reasons, topics=topics).to_json()


class _Making:
    """Writes the new file, image by image held against its source, and reads it back."""

    def __init__(
        self,
        plan: _Plan,
        file: McapFile,
        config: CompactionConfig,
        progress: Callable[[int, int], None],
    ) -> None:
        self._plan, self._file, self._config, self._progress = plan, file, config, progress
        self._types = types_of_definition(VIDEO, DEFINITION)
        self._coders = {name: _Coder(config) for name in plan.cameras}
        self._written = hashlib.sha256()
        self._psnr: list[float] = []
        self._newest_ns: dict[str, int] = {}
        self._sizes = {path.name: path.stat().st_size for path in plan.files}
        for topic in plan.declared:
            file.declare(topic)

    def write(self) -> None:
        """Write every message of the old files."""
        for path in self._plan.files:
            source = CheckedFile(path)
            for message in source.messages():
                name, cdr = message.topic, message.cdr
                if (camera := self._plan.cameras.get(name)) is not None:
                    name, cdr = camera.name, self._video(message, camera)
                self._file.write(name, message.stamp_ns, cdr)
                _note(self._written, name, message.stamp_ns, cdr)
            if source.problems:
                raise RolloutError(f"{self._plan.folder}: is damaged: {source.problems[0]}{LEFT}")
        if len(self._psnr) != self._plan.images:
            raise RolloutError(
                f"{self._plan.folder}: has {len(self._psnr)} images, its metadata say "
                f"{self._plan.images}{LEFT}; {VERIFY}"
            )

    def _video(self, message: Received, camera: _Camera) -> bytes:
        """Return the message of video for an image that may be as bad as the limit."""
        where = f"{self._plan.folder}: image {len(self._psnr)}, of {message.topic}"
        if message.stamp_ns < self._newest_ns.get(message.topic, 0):
            raise RolloutError(
                f"{where}, was received before the one in front of it, and a player of the video "
                f"would mix them up{LEFT}"
            )
        self._newest_ns[message.topic] = message.stamp_ns
        with reading(where, "an image", RolloutError, LEFT[2:]):
            kind = message.schema.name
            types = types_of_definition(kind, message.schema.data.decode())
            image: Any = types.deserialize_cdr(message.cdr, kind)
            try:
                rgb = decode_image(image, message.topic, grey=camera.grey)
            except ObservationError as error:
                raise RolloutError(f"{where}: {error}{LEFT}") from error
            data, psnr = self._coders[message.topic].code(rgb, fingerprint(image))
            make, header = self._types.types, image.header
            stamp = make["builtin_interfaces/msg/Time"](header.stamp.sec, header.stamp.nanosec)
            video = make[VIDEO](stamp, header.frame_id, np.frombuffer(data, np.uint8), FORMAT)
            cdr = bytes(self._types.serialize_cdr(video, VIDEO))
        if psnr < self._config.least_psnr:
            raise RolloutError(
                f"{where}, would be {psnr:.1f} dB from its source (at least "
                f"{self._config.least_psnr:g}, see compaction.yaml){LEFT}; compact it with a lower "
                f"crf"
            )
        self._psnr.append(psnr)
        self._progress(len(self._psnr), self._plan.images)
        return cdr

    def check(self, draft: Path) -> None:
        """Read the finished file back: checksums, index, and every message as it was written."""
        found, read = CheckedFile(draft), hashlib.sha256()
        for message in found.messages():
            _note(read, message.topic, message.stamp_ns, message.cdr)
        same = read.digest() == self._written.digest() and dict(found.counts) == {
            name: count for name, count in self._file.counts.items() if count
        }
        if found.problems or not same:
            problem = found.problems[0] if found.problems else "its messages are other ones"
            raise RolloutError(
                f"{self._plan.folder}: the new file is not what was written: {problem}{LEFT}; look "
                f"after the disk"
            )

    def note(self) -> str:
        """Return what the metadata tell of the compaction, as JSON."""
        config = self._config
        files = {
            path.name: {"bytes": self._sizes[path.name], "sha256": _sha256(path)}
            for path in self._plan.files
        }
        return json.dumps(
            {
                "format": FORMAT,
                "crf": config.crf,
                "group": config.group,
                "images": len(self._psnr),
                "psnr_least": round(self._least, 2),
                "psnr_mean": round(self._mean, 2),
                "replaced": files,
            }
        )

    @property
    def _least(self) -> float:
        return min(self._psnr, default=_MOST_PSNR)

    @property
    def _mean(self) -> float:
        return sum(self._psnr) / len(self._psnr) if self._psnr else _MOST_PSNR

    def result(self, size: int) -> Compacted:
        """Return what it came to; ``size`` is that of the new file."""
        before = sum(self._sizes.values())
        return Compacted(len(self._psnr), before, size, self._least, self._mean)


class _Coder:
    """Encodes a camera's images and decodes each again."""

    def __init__(self, config: CompactionConfig) -> None:
        self._encoder = VideoEncoder(config.crf, config.group)
        self._decoder: VideoDecoder | None = None

    def code(self, rgb: NDArray[np.uint8], source: int) -> tuple[bytes, float]:
        """Return an image's data, and how near what they show is to it [dB].

        Args:
            rgb: (H, W, 3).
            source: fingerprint of its message.
        """
        data = self._encoder.encode(rgb, source)
        if is_key(data):
            self._decoder = VideoDecoder()
        assert self._decoder is not None, "x264 begins with a key frame"
        self._decoder.add(data)
        shown_again = self._decoder.image(-1)
        if shown_again.shape != rgb.shape:
            raise UnreadableError(f"{rgb.shape} pixels became {shown_again.shape}")
        return data, min(cv2.PSNR(rgb, shown_again), _MOST_PSNR)


def _note(sha: Any, topic: str, stamp_ns: int, cdr: bytes) -> None:
    sha.update(f"{topic} {stamp_ns} {len(cdr)} ".encode())
    sha.update(cdr)


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()
