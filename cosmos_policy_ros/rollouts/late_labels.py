"""A label that comes after the bag was closed, added to the bag as one more MCAP file."""

from __future__ import annotations

import shutil
import tempfile
from itertools import count
from pathlib import Path

from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys.store import Typestore

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts.bag_metadata import (
    end_ns,
    read_metadata,
    with_file,
    write_metadata,
)
from cosmos_policy_ros.rollouts.bag_writer import METADATA_VERSION, Topic
from cosmos_policy_ros.rollouts.durable import rename, sync


def append_late(folder: Path, topic: Topic, cdr: bytes, *, types: Typestore) -> Path:
    """Add one message to a finished bag; return the new file, ``<episode_id>_<n>.mcap``.

    Nothing that is there is rewritten but ``metadata.yaml``, and that one atomically. The message's
    receive stamp is the bag's last one, so that the bag still spans its trial and ``ros2 bag play``
    does not wait until the day of the label; when it was given stands in its header.

    The caller holds the folder's lock (``durable.locked``).

    Raises:
        RolloutError: the bag is not finished, or the disk refused; the bag is then as before.
    """
    information = read_metadata(folder)
    draft = _draft_folder(folder)
    added: Path | None = None
    try:
        target = _next_file(folder, information["relative_file_paths"])
        addition = _write_single(draft / target.stem, topic, end_ns(information), cdr, types)
        sync(draft / target.stem / target.name)
        rename(draft / target.stem / target.name, target)
        added = target
        write_metadata(folder, with_file(information, addition))
    except (OSError, WriterError) as error:
        if added is not None:
            added.unlink(missing_ok=True)
        raise RolloutError(
            f"{folder}: the label cannot be added: {error}; the bag is as before, label it again"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _draft_folder(folder: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=".label-", dir=folder))
    except OSError as error:
        raise RolloutError(f"{folder}: the label cannot be added: {error}") from error


def _next_file(folder: Path, listed: list[str]) -> Path:
    """Return the next free ``<episode_id>_<n>.mcap``, after the pattern of the bag's first file."""
    stem = Path(listed[0]).stem.rpartition("_")[0]
    candidates = (folder / f"{stem}_{number}.mcap" for number in count(1))
    return next(path for path in candidates if not path.exists())


def _write_single(
    folder: Path, topic: Topic, stamp_ns: int, cdr: bytes, types: Typestore
) -> dict[str, object]:
    """Write a bag of one message and return its metadata."""
    with Writer(folder, version=METADATA_VERSION, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(
            topic.name, topic.msgtype, typestore=types, offered_qos_profiles=topic.qos
        )
        writer.write(connection, stamp_ns, cdr)
    return read_metadata(folder)
