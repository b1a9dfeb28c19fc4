"""An episode whose recorder died: made a bag again, with what was lost said in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mcap.exceptions import McapError
from mcap.reader import make_reader

from cosmos_policy_ros.errors import RolloutError
from cosmos_policy_ros.rollouts.bag_metadata import (
    METADATA,
    describe_bag,
    read_metadata,
    write_metadata,
)
from cosmos_policy_ros.rollouts.bag_writer import EPISODE_TOPIC, RECORDING
from cosmos_policy_ros.rollouts.durable import Hold, rename, sync
from cosmos_policy_ros.rollouts.episode import OUTCOME, RECOVERED, bare_id
from cosmos_policy_ros.rollouts.mcap_repair import Mended, mend
from cosmos_policy_ros.rollouts.messages import EpisodeFacts, decode_facts
from cosmos_policy_ros.rollouts.recording import FLUSH_PERIOD
from cosmos_policy_ros.rollouts.types import types_of_definition


class RecordingInProgressError(RolloutError):
    """The episode belongs to a recorder that lives."""


@dataclass(frozen=True)
class Recovered:
    """An episode that was made whole again: its folder, its messages, and what is missing."""

    path: Path
    messages: int
    loss: str


def recover(folder: Path) -> Recovered:
    """Finish ``<episode_id>.recording`` in place and give it its real name. Nothing is deleted.

    Raises:
        RolloutError: it is being recorded, or nothing in it can be read, or the disk refused; the
            folder stays as it is then, and can be recovered again.
    """
    try:
        hold = Hold(folder)
    except BlockingIOError:
        raise RecordingInProgressError(
            f"{folder}: is being recorded by a recorder that lives"
        ) from None
    except OSError as error:
        raise RolloutError(f"{folder}: cannot be recovered: {error}") from error
    try:
        return _recover(folder)
    except OSError as error:
        raise RolloutError(
            f"{folder}: cannot be recovered now: {error}; free disk space, or make the folder "
            f"writable, and recover it again"
        ) from error
    finally:
        hold.release()


def _recover(folder: Path) -> Recovered:
    final = folder.with_name(bare_id(folder.name))
    file = folder / f"{final.name}_0.mcap"
    if not file.is_file():
        raise RolloutError(f"{folder}: has no {file.name}, so there is nothing to recover")
    mended = mend(file)
    loss = _describe_loss(mended)
    if not (folder / METADATA).exists():
        facts = _read_facts(file)
        notes = {**facts.custom_data(), OUTCOME: "its recorder died", RECOVERED: loss}
        write_metadata(folder, describe_bag(mended.contents, notes))
    else:  # it died between the last write and the folder's real name
        read_metadata(folder)
    sync(folder)
    rename(folder, final)
    return Recovered(final, sum(mended.contents.counts.values()), loss)


def _read_facts(file: Path) -> EpisodeFacts:
    try:
        with file.open("rb") as stream:
            reader = make_reader(stream)
            for schema, _, message in reader.iter_messages(topics=[EPISODE_TOPIC.name]):
                assert schema is not None
                types = types_of_definition(schema.name, schema.data.decode())
                return decode_facts(types, message.data)
    except McapError as error:
        raise RolloutError(f"{file}: cannot be read: {error}") from error
    raise RolloutError(f"{file}: has no message on '{EPISODE_TOPIC.name}'; it is no episode")


def _describe_loss(mended: Mended) -> str:
    if mended.finished_before:
        return "nothing: its recorder died after its last message was written"
    torn = f"{mended.cut_bytes} bytes of a torn chunk were cut off" if mended.cut_bytes else ""
    unwritten = f"up to {FLUSH_PERIOD:g} s before its recorder died were not yet written"
    return "; ".join(filter(None, (unwritten, torn)))


def unfinished(root: Path) -> tuple[Path, ...]:
    """Return the folders of a store that look unfinished, oldest first."""
    return tuple(sorted(p for p in root.glob(f"*{RECORDING}") if p.is_dir()))
