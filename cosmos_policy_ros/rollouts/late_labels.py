"""A label that comes after the bag was closed, added to the bag as one more MCAP file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from rosbags.typesys.store import Typestore

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts.bag_metadata import (
    describe_bag,
    end_ns,
    read_metadata,
    with_file,
    write_metadata,
)
from cosmos_policy_ros.rollouts.durable import rename, sync
from cosmos_policy_ros.rollouts.mcap_file import McapFile, Topic


def append_late(folder: Path, topic: Topic, messages: Sequence[bytes], *, types: Typestore) -> Path:
    """Add messages to a finished bag; return the new file, ``<episode_id>_<n>.mcap``.

    Nothing that is there is rewritten but ``metadata.yaml``, and that one atomically. Their receive
    stamp is the bag's last one, so that the bag still spans its trial and ``ros2 bag play``
    does not wait until the day of the label; when it was given stands in each header.

    The caller holds the folder's lock (``durable.locked``).

    Raises:
        RolloutError: the bag is not finished, or the disk refused; the bag is then as before.
    """
    information = read_metadata(folder)
    target = _next_file(folder, information["relative_file_paths"])
    draft = folder / f".{target.name}"
    try:
        addition = _write(draft, target.name, topic, end_ns(information), messages, types)
        rename(draft, target)
        write_metadata(folder, with_file(information, addition))
    except OSError as error:
        target.unlink(missing_ok=True)
        raise RolloutError(
            f"{folder}: the label cannot be added: {error}; the bag is as before, label it again"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return target


def _next_file(folder: Path, listed: list[str]) -> Path:
    """Return the next free ``<episode_id>_<n>.mcap``, after the pattern of the bag's first file."""
    stem = Path(listed[0]).stem.rpartition("_")[0]
    candidates = (folder / f"{stem}_{number}.mcap" for number in count(1))
    return next(path for path in candidates if not path.exists())


def _write(
    path: Path,
    name: str,
    topic: Topic,
    stamp_ns: int,
    messages: Sequence[bytes],
    types: Typestore,
) -> dict[str, Any]:
    """Write a file to the disk and return the metadata it has as ``name``."""
    path.unlink(missing_ok=True)  # of a process that was killed in here
    file = McapFile(path, [topic], types)
    try:
        for cdr in messages:
            file.write(topic.name, stamp_ns, cdr)
        information = describe_bag(replace(file.contents, name=name), {})
        file.close(information)
    finally:
        file.abort()
    sync(path)
    return information
